//! E-mail addresses: `local@domain`, as people write them (a subset of RFC 5321 section 4.1.2), with letters of other
//! scripts in both halves (RFC 6531).

use std::ops::Range;

use super::fold::{Folded, OTHER};

/// Longest local part and longest domain, in bytes (RFC 5321 section 4.5.3.1).
const LOCAL_MAX: usize = 64;
const DOMAIN_MAX: usize = 255;
/// What file names end in, and no top-level domain is: `logo@2x.png`.
const FILES: [&[u8]; 12] =
    [b"css", b"gif", b"htm", b"html", b"jpeg", b"jpg", b"js", b"json", b"lock", b"png", b"svg", b"webp"];

pub(super) fn scan(text: &Folded, found: &mut Vec<Range<usize>>) {
    for at in 0..text.len() {
        if text.at(at) == b'@'
            && let Some(range) = address_around(text, at)
        {
            found.push(range);
        }
    }
}

fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == OTHER || b".!#$%&'*+/=?^_`{|}~-".contains(&byte)
}

fn is_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == OTHER || matches!(byte, b'-' | b'.')
}

fn address_around(text: &Folded, at: usize) -> Option<Range<usize>> {
    let mut start = at;
    while at - start <= LOCAL_MAX && is_local(text.before(start)) {
        start -= 1;
    }
    // Quotation marks and the like belong to the sentence.
    while start < at && !(text.at(start).is_ascii_alphanumeric() || matches!(text.at(start), OTHER | b'_')) {
        start += 1;
    }
    let local = text.slice(start..at);
    if local.is_empty() || local.len() > LOCAL_MAX || local.ends_with(b".") || has_empty_label(local) {
        return None;
    }
    let mut end = text.run_end(at + 1, is_domain).min(at + 1 + DOMAIN_MAX);
    while end > at + 1 && matches!(text.before(end), b'.' | b'-') {
        end -= 1;
    }
    is_domain_name(text.slice(at + 1..end)).then_some(start..end)
}

fn has_empty_label(text: &[u8]) -> bool {
    text.windows(2).any(|pair| pair == b"..")
}

fn is_domain_name(domain: &[u8]) -> bool {
    let mut labels = domain.rsplit(|byte| *byte == b'.');
    let top = labels.next().unwrap_or_default();
    let is_top = top.len() >= 2
        && (top.starts_with(b"xn--") || top.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == OTHER))
        && !FILES.iter().any(|ending| top.eq_ignore_ascii_case(ending));
    let mut count = 0;
    let are_labels = labels.all(|label| {
        count += 1;
        (1..=63).contains(&label.len()) && !label.starts_with(b"-") && !label.ends_with(b"-")
    });
    is_top && are_labels && count > 0
}
