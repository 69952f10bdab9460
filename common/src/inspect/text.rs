//! The texts in arguments and results, and how long ones are cut.

use std::collections::BTreeSet;

use crate::json::Value;

/// Most bytes of one piece.
pub const PIECE_BYTES_MAX: usize = 8 * 1024;
/// How much the end of one piece and the beginning of the next have in common. What is shorter is not cut in two.
pub const OVERLAP_BYTES: usize = 1024;
/// Most pieces that are asked about at once.
const PIECES_MAX: usize = 64;
/// Most batches of one inspection.
pub const BATCHES_MAX: usize = 256;

/// A text with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// JSON Pointer (RFC 6901) within arguments or result.
    pub path: String,
    /// The text.
    pub text: String,
}

impl Part {
    /// What the text is called: the last part of the pointer that is no position in a list.
    #[must_use]
    pub fn name(&self) -> &str {
        let mut names = self.path.rsplit('/');
        names.find(|name| !name.bytes().all(|byte| byte.is_ascii_digit())).unwrap_or_default()
    }
}

/// Every text of a value, and every number as it is written. The names of members are one text more, at the root: they
/// can be somebody's words too.
#[must_use]
pub fn parts_of(value: &Value) -> Vec<Part> {
    let mut parts = Vec::new();
    value.for_each_leaf(&mut |path, leaf| {
        let text = match leaf {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.as_str().to_owned(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return,
        };
        if !text.is_empty() {
            parts.push(Part { path: path.to_owned(), text });
        }
    });
    let mut names = BTreeSet::new();
    member_names(value, &mut names);
    if !names.is_empty() {
        let text = names.into_iter().collect::<Vec<_>>().join("\n");
        parts.push(Part { path: String::new(), text });
    }
    parts
}

fn member_names<'v>(value: &'v Value, names: &mut BTreeSet<&'v str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| member_names(item, names)),
        Value::Object(members) => {
            for (name, member) in members {
                names.insert(name);
                member_names(member, names);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A piece of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'p> {
    /// Of which part.
    pub path: &'p str,
    /// Where it begins in the part, in bytes.
    pub start: usize,
    /// Its text.
    pub text: &'p str,
}

/// Pieces that are asked about together. No two are of the same part, so that a path names one of them.
pub type Batch<'p> = Vec<Piece<'p>>;

/// Cuts parts into pieces and puts these together, in order. Every byte is in a piece, and whatever is no longer than
/// `OVERLAP_BYTES` is whole in one.
#[must_use]
pub fn batches(parts: &[Part]) -> Vec<Batch<'_>> {
    let mut batches: Vec<Batch<'_>> = Vec::new();
    let mut room = 0;
    for part in parts {
        for piece in pieces(part) {
            let last = batches.last_mut().filter(|batch| {
                piece.text.len() <= room
                    && batch.len() < PIECES_MAX
                    && batch.iter().all(|other| other.path != piece.path)
            });
            match last {
                Some(batch) => {
                    room -= piece.text.len();
                    batch.push(piece);
                }
                None => {
                    room = PIECE_BYTES_MAX.saturating_sub(piece.text.len());
                    batches.push(vec![piece]);
                }
            }
        }
    }
    batches
}

fn pieces(part: &Part) -> impl Iterator<Item = Piece<'_>> {
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let begin = start?;
        let end = part.text.floor_char_boundary((begin + PIECE_BYTES_MAX).min(part.text.len()));
        start =
            (end < part.text.len()).then(|| part.text.floor_char_boundary(end.saturating_sub(OVERLAP_BYTES)));
        Some(Piece { path: &part.path, start: begin, text: part.text.get(begin..end)? })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(path: &str, text: impl Into<String>) -> Part {
        Part { path: path.to_owned(), text: text.into() }
    }

    #[test]
    fn numbers_and_the_names_of_members_are_text_too() {
        let value =
            Value::parse(r#"{"to":["a","b"],"n":4111111111111111,"x":null,"o":{"a@b.cd":true}}"#).unwrap();
        let parts = parts_of(&value);
        let shown: Vec<String> = parts.iter().map(|part| format!("{}={}", part.path, part.text)).collect();
        assert_eq!(shown, ["/n=4111111111111111", "/to/0=a", "/to/1=b", "=a@b.cd\nn\no\nto\nx"]);
        assert_eq!(part("/keys/0", "").name(), "keys");
        assert_eq!(part("", "").name(), "");
    }

    #[test]
    fn small_parts_are_asked_about_together_and_large_ones_in_pieces() {
        let parts = [part("/a", "x".repeat(20_000)), part("/b", "y"), part("/c", "z")];
        let lengths: Vec<Vec<(usize, usize)>> = batches(&parts)
            .iter()
            .map(|batch| batch.iter().map(|piece| (piece.start, piece.text.len())).collect())
            .collect();
        assert_eq!(lengths, [vec![(0, 8_192)], vec![(7_168, 8_192)], vec![(14_336, 5_664), (0, 1), (0, 1)]]);
    }

    proptest! {
        #[test]
        fn what_fits_the_overlap_is_whole_in_one_piece(
            before in 0..20_000_usize, length in 1..OVERLAP_BYTES - 8, after in 0..10_000_usize, filler in "[aé🦀]",
        ) {
            let needle = "N".repeat(length);
            let text = [filler.repeat(before), needle.clone(), filler.repeat(after)].concat();
            let parts = [part("/p", text)];
            let all = batches(&parts);
            prop_assert!(all.iter().flatten().any(|piece| piece.text.contains(&needle)));
            let mut covered = 0;
            for piece in all.iter().flatten() {
                prop_assert!(piece.start <= covered && piece.text.len() <= PIECE_BYTES_MAX);
                covered = piece.start + piece.text.len();
            }
            prop_assert_eq!(covered, parts[0].text.len());
        }
    }
}
