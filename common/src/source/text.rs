//! Finding a value in a text, whole.

use unicode_normalization::{UnicodeNormalization, is_nfc, is_nfkc};

use crate::visible::deceptive;

/// Whether a value looks like what it is: normal form C, no compatibility forms, nothing invisible, no word of mixed
/// alphabets.
pub(super) fn is_plain(value: &str) -> bool {
    crate::red::off("A05-source") || (is_nfc(value) && is_nfkc(value) && deceptive(value).is_empty())
}

/// How a run of characters stands in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It is part of something longer, or is not there.
    Absent,
    /// Whole words, but perhaps the end of a longer name: in "Hilton Garden Inn is fine", `Garden Inn` is.
    Unclear,
    /// Whole words.
    Whole,
    /// All that stands between two quotation marks.
    Quoted,
}

/// Longest quotation, in characters.
const QUOTATION_CHARS_MAX: usize = 512;

/// Whether capitals count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Exact,
    Folded,
}

/// A text prepared for searching.
#[derive(Clone, Debug)]
pub(super) struct Text {
    characters: Vec<char>,
    /// Where quotations stand: the first character inside, and the closing mark.
    quotations: Vec<(usize, usize)>,
}

/// Longest value that is looked for in a text, and longest text it is looked for in, in characters.
const SOUGHT_CHARS_MAX: usize = 256;
/// See [`SOUGHT_CHARS_MAX`].
const SEARCHED_CHARS_MAX: usize = 16 * 1024;

impl Text {
    pub(super) fn new(text: &str) -> Self {
        // Spaces and line breaks of all sorts become spaces. Any other invisible character stays, and since no value
        // has one, nothing it is part of is ever found.
        let characters: Vec<char> = text.nfc().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
        let quotations = quotations(&characters);
        Self { characters, quotations }
    }

    /// What stands between quotation marks.
    pub(super) fn quotations(&self) -> impl Iterator<Item = String> + '_ {
        self.quotations.iter().map(|(from, to)| self.slice(*from, *to).iter().collect())
    }

    /// The pieces between spaces, without the punctuation around them.
    pub(super) fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.characters.split(|c| *c == ' ').map(bare).filter(|word| !word.is_empty())
    }

    /// Words that begin with a capital and do not begin a sentence: what a text calls by name.
    pub(super) fn proper_words(&self) -> impl Iterator<Item = String> + '_ {
        let mut sentence_starts = true;
        self.characters.split(|c| *c == ' ').filter(|piece| !piece.is_empty()).filter_map(move |piece| {
            let first = std::mem::replace(
                &mut sentence_starts,
                piece.last().is_some_and(|c| is_stop(*c) && *c != ','),
            );
            let word = bare(piece);
            (!first && word.chars().next().is_some_and(char::is_uppercase) && word != "I").then_some(word)
        })
    }

    /// The best standing of `value` anywhere in the text, and the words just before the places where it stands so.
    pub(super) fn find(&self, value: &str, case: Case) -> (Standing, Vec<String>) {
        let wanted: Vec<char> = value.chars().collect();
        // Comparing is quadratic, and both sides may be somebody's to choose.
        if wanted.len() > SOUGHT_CHARS_MAX || self.characters.len() > SEARCHED_CHARS_MAX {
            return (Standing::Absent, Vec::new());
        }
        let mut best = (Standing::Absent, Vec::new());
        for (from, here) in self.characters.windows(wanted.len().max(1)).enumerate() {
            if !here.iter().zip(&wanted).all(|(a, b)| same(*a, *b, case)) {
                continue;
            }
            let standing = self.standing(from, from + wanted.len());
            if standing > best.0 {
                best = (standing, Vec::new());
            }
            if standing == best.0 && standing != Standing::Absent {
                best.1.push(self.word_before(from));
            }
        }
        best
    }

    fn standing(&self, from: usize, to: usize) -> Standing {
        if crate::red::off("F09-whole") {
            return Standing::Quoted;
        }
        if self.quotations.contains(&(from, to)) {
            return Standing::Quoted;
        }
        // Part of a quotation is not what was quoted.
        let inside = self.quotations.iter().any(|(start, end)| *start <= from && to <= *end);
        if inside || !self.begins(from) || !self.ends(to) || self.goes_on(from, to) {
            return Standing::Absent;
        }
        self.comes_from(from)
    }

    /// Whether a word may begin here. A handle or channel is named with or without its sign.
    fn begins(&self, at: usize) -> bool {
        let free = |at: usize| self.before(at).is_none_or(|c| c == ' ' || is_opening(c));
        free(at) || (matches!(self.before(at), Some('#' | '@')) && free(at - 1))
    }

    /// Whether a word may end here: at a space, or at punctuation before one.
    fn ends(&self, at: usize) -> bool {
        let rest = self.slice(at, self.characters.len());
        let rest = if let ['\'' | '\u{2019}', 's', after @ ..] = rest { after } else { rest };
        rest.iter().find(|c| !is_closing(**c) && !is_stop(**c)).is_none_or(|c| *c == ' ')
    }

    /// Whether a capitalised word ends here and another capital or a number follows: the first part of a name.
    fn goes_on(&self, from: usize, to: usize) -> bool {
        let last_word = self.slice(from, to).rsplit(|c| *c == ' ').next().and_then(<[char]>::first);
        let next = (self.characters.get(to) == Some(&' ')).then(|| self.characters.get(to + 1)).flatten();
        last_word.is_some_and(|c| c.is_uppercase()) && next.is_some_and(|c| is_proud(*c))
    }

    /// The same to the left, where the first word of a sentence is capitalised for another reason.
    fn comes_from(&self, from: usize) -> Standing {
        let first = self.characters.get(from).is_some_and(|c| is_proud(*c));
        if !first || self.before(from) != Some(' ') {
            return Standing::Whole;
        }
        let left = self.slice(0, from - 1);
        let word = left.rsplit(|c| *c == ' ').next().unwrap_or_default();
        let (Some(begin), Some(end)) = (word.first(), word.last()) else { return Standing::Whole };
        if !begin.is_uppercase() || is_stop(*end) || is_closing(*end) {
            return Standing::Whole;
        }
        let sentence = self.slice(0, left.len() - word.len());
        let starts = sentence.iter().rfind(|c| **c != ' ').is_none_or(|c| is_stop(*c) && *c != ',');
        if starts { Standing::Unclear } else { Standing::Absent }
    }

    fn word_before(&self, at: usize) -> String {
        let left = self.slice(0, at);
        let end = left.iter().rposition(|c| *c != ' ' && !is_opening(*c)).map_or(0, |last| last + 1);
        let word = self.slice(0, end).rsplit(|c| *c == ' ').next().unwrap_or_default();
        // A sign such as `#` is a word of its own here.
        let bare = bare(word);
        if bare.is_empty() { word.iter().collect() } else { bare.to_lowercase() }
    }

    fn before(&self, at: usize) -> Option<char> {
        self.characters.get(at.checked_sub(1)?).copied()
    }

    fn slice(&self, from: usize, to: usize) -> &[char] {
        self.characters.get(from..to).unwrap_or_default()
    }
}

fn same(a: char, b: char, case: Case) -> bool {
    a == b || (case == Case::Folded && a.to_lowercase().eq(b.to_lowercase()))
}

/// A piece of text without the quotation marks, brackets and punctuation around it, and without a possessive `'s`.
pub(super) fn bare(piece: &[char]) -> String {
    let from = piece.iter().position(|c| !is_opening(*c)).unwrap_or(piece.len());
    let trimmed = piece.get(from..).unwrap_or_default();
    let to = trimmed.iter().rposition(|c| !is_closing(*c) && !is_stop(*c)).map_or(0, |last| last + 1);
    let word = match trimmed.get(..to).unwrap_or_default() {
        [word @ .., '\'' | '\u{2019}', 's'] => word,
        word => word,
    };
    word.iter().collect()
}

/// The quotations of a text: pairs of one sort of mark, opening after a space or bracket and closing before one, so
/// that the apostrophe in "don't" is none.
fn quotations(characters: &[char]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(mark) = characters.get(at) {
        let after_space = at
            .checked_sub(1)
            .and_then(|last| characters.get(last))
            .is_none_or(|c| *c == ' ' || "([{<".contains(*c));
        let closing = match mark {
            '"' | '\'' | '`' => Some(*mark),
            '\u{201c}' | '\u{201e}' => Some('\u{201d}'),
            '\u{2018}' => Some('\u{2019}'),
            '\u{ab}' => Some('\u{bb}'),
            _ => None,
        };
        let end = closing.filter(|_| after_space).and_then(|closing| {
            (at + 1..characters.len()).take(QUOTATION_CHARS_MAX).find(|end| {
                characters.get(*end) == Some(&closing)
                    && characters.get(end + 1).is_none_or(|c| !c.is_alphanumeric())
            })
        });
        match end {
            Some(end) if end > at + 1 => {
                found.push((at + 1, end));
                at = end + 1;
            }
            _ => at += 1,
        }
    }
    found
}

fn is_proud(character: char) -> bool {
    character.is_uppercase() || character.is_numeric()
}

fn is_opening(character: char) -> bool {
    matches!(
        character,
        '"' | '\'' | '`' | '(' | '[' | '{' | '<' | '\u{201c}' | '\u{201e}' | '\u{2018}' | '\u{ab}'
    )
}

fn is_closing(character: char) -> bool {
    matches!(character, '"' | '\'' | '`' | ')' | ']' | '}' | '>' | '\u{201d}' | '\u{2019}' | '\u{bb}')
}

fn is_stop(character: char) -> bool {
    matches!(character, '.' | ',' | ';' | ':' | '!' | '?' | '\u{2026}')
}
