//! A server's words, on their way to people.

use writ_common::visible::visible;

/// Longest piece of a server's text in a log or an answer, in characters.
pub(crate) const TEXT_CHARS_MAX: usize = 300;

/// The text in one line, with what hides made visible, and cut.
pub(crate) fn bounded(text: &str) -> String {
    cut(text, TEXT_CHARS_MAX)
}

/// As [`bounded`], to another length.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    let mut start: String = text.chars().take(chars_max).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    visible(&start)
}
