//! A document to chunks: whole paragraphs as far as they go, each with the end of the one before it.

/// A chunk is ended where a paragraph ends once it has this many bytes.
const CHUNK_BYTES_TARGET: usize = 1_200;
/// Longest chunk, in bytes; a longer paragraph is cut between words.
pub const CHUNK_BYTES_MAX: usize = 2_000;
/// How much of a chunk's end the next one begins with, at most, in bytes.
const OVERLAP_BYTES: usize = 200;

/// Cuts a text. No chunk is empty or longer than [`CHUNK_BYTES_MAX`], and every word is in one.
#[must_use]
pub fn chunks(text: &str) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    let mut current = String::new();
    // What `current` has beyond the overlap it began with.
    let mut is_new = false;
    for piece in paragraphs(text).flat_map(cut) {
        let is_full = current.len() + 2 + piece.len() > CHUNK_BYTES_TARGET;
        if is_new && is_full {
            let next = overlap(&current).to_owned();
            chunks.push(std::mem::replace(&mut current, next));
        }
        if !current.is_empty() {
            current.push_str("\n\n");
        }
        current.push_str(piece);
        is_new = true;
    }
    if is_new {
        chunks.push(current);
    }
    chunks
}

/// Runs of lines that are not empty.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return None;
            }
            let mut end = 0;
            for line in rest.split_inclusive('\n') {
                if line.trim().is_empty() {
                    break;
                }
                end += line.len();
            }
            let (paragraph, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
            rest = after;
            if !paragraph.trim().is_empty() {
                return Some(paragraph.trim_end());
            }
        }
    })
}

/// A paragraph in pieces that leave room for the overlap, cut between sentences, else between words, else anywhere.
fn cut(paragraph: &str) -> impl Iterator<Item = &str> {
    const PIECE_BYTES_MAX: usize = CHUNK_BYTES_MAX - OVERLAP_BYTES - 2;
    let mut rest = paragraph;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        if rest.len() <= PIECE_BYTES_MAX {
            return Some(std::mem::take(&mut rest));
        }
        let longest = prefix(rest, PIECE_BYTES_MAX);
        let sentence = longest.rfind(". ").map(|at| at + 1).filter(|at| *at > PIECE_BYTES_MAX / 2);
        let word = longest.rfind(char::is_whitespace).filter(|at| *at > 0);
        let at = sentence.or(word).unwrap_or(longest.len());
        let (piece, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
        rest = after;
        Some(piece.trim_end())
    })
}

/// The end of a chunk, from the beginning of a word on.
fn overlap(chunk: &str) -> &str {
    let mut from = chunk.len().saturating_sub(OVERLAP_BYTES);
    while !chunk.is_char_boundary(from) {
        from += 1;
    }
    let end = chunk.get(from..).unwrap_or_default();
    let begin = if from == 0 { Some(0) } else { end.find(char::is_whitespace) };
    begin.and_then(|at| end.get(at..)).unwrap_or_default().trim_start()
}

/// The longest prefix of at most `bytes` that ends between two characters.
fn prefix(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paragraphs_stay_whole_and_chunks_overlap() {
        let paragraph = |name: &str| format!("{name} {}", "word ".repeat(90)).trim_end().to_owned();
        let text = ["Alpha", "Beta", "Gamma", "Delta"].map(paragraph).join("\n\n \r\n");
        let found = chunks(&text);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("Alpha") && found[0].contains("Beta"));
        assert!(found[1].starts_with("word") && found[1].contains("Gamma") && found[1].contains("Delta"));
        assert_eq!(chunks("one\ntwo\n\nthree"), ["one\ntwo\n\nthree"]);
        assert_eq!(chunks(" \n\t\n"), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_too_long(text in "([a-zäé東]{1,9}[ .\n]{1,3}){0,900}", long in "[a-zä]{0,5000}") {
            let text = format!("{text}{long}");
            let found = chunks(&text);
            prop_assert!(found.iter().all(|chunk| !chunk.trim().is_empty() && chunk.len() <= CHUNK_BYTES_MAX));
            let mut at = 0;
            for word in text.split_whitespace().filter(|word| word.len() < 200) {
                // In order: each word is in the chunk the one before it was in, or in a later one.
                while at < found.len() && !found[at].contains(word) {
                    at += 1;
                }
                prop_assert!(at < found.len(), "{word} is lost");
            }
        }
    }
}
