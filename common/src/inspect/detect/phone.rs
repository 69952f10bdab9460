//! Telephone numbers: with `+` and a country code (ITU-T E.164), and the ten digits of the North American plan in
//! their usual grouping. Other national numbers cannot be told from other figures, and are not found.

use std::ops::Range;

use super::fold::{Folded, is_word};

/// Fewest digits that are taken for a number with a country code; the most are E.164's.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=15;

pub(super) fn scan_international(text: &Folded, found: &mut Vec<Range<usize>>) {
    let mut at = 0;
    while at < text.len() {
        let is_start = text.at(at) == b'+' && !is_word(text.before(at)) && text.before(at) != b'+';
        match is_start.then(|| international(text, at)).flatten() {
            Some(end) => {
                found.push(at..end);
                at = end;
            }
            None => at += 1,
        }
    }
}

fn international(text: &Folded, plus: usize) -> Option<usize> {
    let mut digits: Vec<u8> = Vec::new();
    let mut at = plus + 1;
    let mut end = None;
    loop {
        let gap = text.run_end(at, |byte| matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/'));
        let group = gap..text.run_end(gap, |byte| byte.is_ascii_digit());
        if group.is_empty() || gap - at > 3 || digits.len() + group.len() > *DIGITS.end() {
            break;
        }
        digits.extend(text.slice(group.clone()));
        at = group.end;
        if is_word(text.at(at)) {
            break;
        }
        if DIGITS.contains(&digits.len()) {
            end = Some(at);
        }
    }
    end.filter(|_| has_country_code(&digits))
}

/// Whether the digits begin with a country code that was given out.
fn has_country_code(digits: &[u8]) -> bool {
    let [first, second, third, ..] = digits else { return false };
    match (first, second, third) {
        (b'1', b'2'..=b'9', _) | (b'7', b'0'..=b'9', _) => true,
        (b'2', b'0' | b'7', _) | (b'2', b'1'..=b'6' | b'9', _) => true,
        (b'3', _, _) => true,
        (b'4', b'2', third) => matches!(third, b'0' | b'1' | b'3'),
        (b'4' | b'5', _, _) => true,
        (b'6', _, _) => true,
        (b'8', b'0'..=b'2' | b'4'..=b'8', _) => true,
        (b'9', b'0'..=b'6' | b'8' | b'9', _) => true,
        (b'9', b'7', third) => (b'0'..=b'7').contains(third) || *third == b'9',
        _ => false,
    }
}

/// `(415) 555-2671`, `415-555-2671`, `415.555.2671`, `415 555 2671`.
pub(super) fn scan_north_american(text: &Folded, found: &mut Vec<Range<usize>>) {
    for group in text.runs(|byte| byte.is_ascii_digit()) {
        if let Some(range) = north_american(text, &group) {
            found.push(range);
        }
    }
}

fn north_american(text: &Folded, area: &Range<usize>) -> Option<Range<usize>> {
    let in_brackets = text.before(area.start) == b'(' && text.at(area.end) == b')';
    let start = if in_brackets { area.start - 1 } else { area.start };
    let mut at = area.end + usize::from(in_brackets);
    let separator = text.at(at);
    if matches!(separator, b' ' | b'-' | b'.') {
        at += 1;
    } else if !in_brackets {
        return None;
    }
    let exchange = at..at + 3;
    let line = at + 4..at + 8;
    let is_code = |range: &Range<usize>| {
        let code = text.slice(range.clone());
        code.len() == 3
            && code.iter().all(u8::is_ascii_digit)
            && code.first().is_some_and(|byte| *byte >= b'2')
    };
    let is_line = text.slice(line.clone()).iter().all(u8::is_ascii_digit) && line.end <= text.len();
    let second = text.at(exchange.end);
    let is_separated = matches!(second, b' ' | b'-' | b'.') && (in_brackets || second == separator);
    // `11-415-555-2671` is something else; `1-415-555-2671` is not.
    let outside = |byte: u8| is_word(byte) || byte == b'_';
    let after_a_one = start >= 2 && text.before(start - 1) == b'1' && !is_word(text.before(start - 2));
    let joined = !in_brackets && matches!(text.before(start), b'-' | b'.' | b'/') && !after_a_one;
    let is_alone = !outside(text.before(start)) && !outside(text.at(line.end)) && !joined;
    let ends = !(matches!(text.at(line.end), b'-' | b'.') && is_word(text.at(line.end + 1)));
    (is_code(area) && is_code(&exchange) && is_line && is_separated && is_alone && ends)
        .then_some(start..line.end)
}
