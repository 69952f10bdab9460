//! Text as detectors read it: one byte per character, with what only disguises taken off.
//!
//! Digits and letters in full width, mathematical or Indic digits, dashes and spaces of every kind become the ASCII
//! they are read as; characters that are not seen are left out. So a card number with zero-width spaces in it is a
//! card number. Everything else that is not ASCII becomes [`OTHER`].

use std::ops::Range;

use crate::visible::is_invisible;

/// Stands for a character that is none of ASCII.
pub(super) const OTHER: u8 = 0x80;

/// A text, folded, with the way back.
pub(super) struct Folded {
    bytes: Vec<u8>,
    /// Byte offset in the text of every character that was kept.
    starts: Vec<usize>,
    length: usize,
}

impl Folded {
    pub(super) fn new(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len());
        let mut starts = Vec::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            if let Some(byte) = fold(character) {
                bytes.push(byte);
                starts.push(start);
            }
        }
        Self { bytes, starts, length: text.len() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The byte at a position; 0 beyond the end.
    pub(super) fn at(&self, position: usize) -> u8 {
        self.bytes.get(position).copied().unwrap_or(0)
    }

    /// The byte before a position; 0 before the beginning.
    pub(super) fn before(&self, position: usize) -> u8 {
        position.checked_sub(1).map_or(0, |before| self.at(before))
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Whether these bytes stand at a position.
    pub(super) fn has_at(&self, position: usize, needle: &[u8]) -> bool {
        self.bytes.get(position..).is_some_and(|rest| rest.starts_with(needle))
    }

    /// The end of the run of bytes of a class that begins at a position.
    pub(super) fn run_end(&self, start: usize, is_member: impl Fn(u8) -> bool) -> usize {
        let run = self.bytes.get(start..).unwrap_or_default().iter();
        start + run.take_while(|byte| is_member(**byte)).count()
    }

    /// As [`Self::run_end`], over so many bytes at most: what may begin anywhere must not read on to the end each time.
    pub(super) fn run_end_within(&self, start: usize, most: usize, is_member: impl Fn(u8) -> bool) -> usize {
        let run = self.bytes.get(start..).unwrap_or_default().iter().take(most);
        start + run.take_while(|byte| is_member(**byte)).count()
    }

    /// Every longest run of bytes of a class.
    pub(super) fn runs(&self, is_member: impl Fn(u8) -> bool + Copy) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.len() && !is_member(self.at(at)) {
                at += 1;
            }
            let start = at;
            at = self.run_end(start, is_member);
            (at > start).then_some(start..at)
        })
    }

    /// Where that is in the text; both ends are boundaries of characters.
    pub(super) fn span(&self, range: &Range<usize>) -> Range<usize> {
        let offset = |position: usize| self.starts.get(position).copied().unwrap_or(self.length);
        offset(range.start)..offset(range.end)
    }
}

fn fold(character: char) -> Option<u8> {
    let code = u32::from(character);
    let digit = |zero: u32| u8::try_from(code - zero).ok().map(|value| b'0' + value % 10);
    match code {
        0x09 | 0x20 => Some(b' '),
        0x0a..=0x7f => Some(u8::try_from(code).unwrap_or(OTHER)),
        0x0660..=0x0669 => digit(0x0660),
        0x06f0..=0x06f9 => digit(0x06f0),
        0x0966..=0x096f => digit(0x0966),
        0x1_d7ce..=0x1_d7ff => digit(0x1_d7ce),
        0xff01..=0xff5e => u8::try_from(code - 0xfee0).ok(),
        0x2010..=0x2015 | 0x2212 | 0xfe58 | 0xfe63 => Some(b'-'),
        0x3002 | 0xff61 => Some(b'.'),
        0x2028 | 0x2029 | 0x85 => Some(b'\n'),
        _ if character.is_whitespace() => Some(b' '),
        _ if character.is_control() => Some(OTHER),
        _ if is_invisible(character) => None,
        _ => Some(OTHER),
    }
}

/// Part of a word of ASCII letters and digits.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::string_slice, reason = "of ASCII, or at places that are being tested")]

    use super::*;

    #[test]
    fn disguises_are_taken_off_and_the_way_back_is_kept() {
        let text = "a\u{200b}４\u{2011}٣\u{a0}𝟗é";
        let folded = Folded::new(text);
        assert_eq!(folded.slice(0..folded.len()), b"a4-3 9\x80");
        let span = folded.span(&(1..4));
        assert_eq!(&text[span], "４\u{2011}٣");
        assert_eq!(folded.span(&(0..7)), 0..text.len());
        assert_eq!((folded.at(99), folded.before(0)), (0, 0));
    }
}
