//! Payment cards: issuer prefix and length (ISO/IEC 7812-1, as the networks publish their ranges), and the check
//! digit (Luhn, annex B of the same).

use std::ops::Range;

use super::fold::{Folded, is_word};

/// Fewest and most digits of a card number.
const DIGITS: std::ops::RangeInclusive<usize> = 12..=19;
/// Most groups a number is written in.
const GROUPS_MAX: usize = 19;

pub(super) fn scan(text: &Folded, found: &mut Vec<Range<usize>>) {
    let groups: Vec<Range<usize>> = text.runs(|byte| byte.is_ascii_digit()).collect();
    let mut next = 0;
    while let Some(rest) = groups.get(next..).filter(|rest| !rest.is_empty()) {
        match longest(text, rest) {
            Some((used, range)) => {
                found.push(range);
                next += used;
            }
            None => next += 1,
        }
    }
}

/// The number that begins with the first of these groups, and how many of them it takes.
fn longest(text: &Folded, groups: &[Range<usize>]) -> Option<(usize, Range<usize>)> {
    let first = groups.first()?;
    if is_word(text.before(first.start)) {
        return None;
    }
    let mut digits: Vec<u8> = Vec::new();
    let mut best = None;
    let mut end = first.start;
    for (index, group) in groups.iter().enumerate().take(GROUPS_MAX) {
        let is_apart = index > 0 && !are_joined(text, groups, index);
        digits.extend(text.slice(group.clone()).iter().map(|byte| byte - b'0'));
        if is_apart || digits.len() > *DIGITS.end() {
            break;
        }
        end = group.end.max(end);
        let is_whole = !is_word(text.at(end)) && (index > 0 || !is_decimal(text, group));
        if is_whole
            && is_grouped(groups.get(..=index).unwrap_or_default())
            && is_of_issuer(&digits)
            && luhn(&digits)
        {
            best = Some((index + 1, first.start..end));
        }
    }
    best
}

/// One separator between them, the same as between the first two.
fn are_joined(text: &Folded, groups: &[Range<usize>], index: usize) -> bool {
    let gap = |index: usize| {
        let (before, after) = (groups.get(index.checked_sub(1)?)?, groups.get(index)?);
        (after.start == before.end + 1).then(|| text.at(before.end))
    };
    matches!(gap(index), Some(b' ' | b'-' | b'.')) && gap(index) == gap(1)
}

/// Digits before or after a decimal point.
fn is_decimal(text: &Folded, group: &Range<usize>) -> bool {
    let before = text.before(group.start) == b'.' && text.before(group.start - 1).is_ascii_digit();
    before || (text.at(group.end) == b'.' && text.at(group.end + 1).is_ascii_digit())
}

/// As people write cards: in one, beginning with four, or digit by digit. Columns of figures are not cards.
fn is_grouped(groups: &[Range<usize>]) -> bool {
    let lengths: Vec<usize> = groups.iter().map(ExactSizeIterator::len).collect();
    match lengths.as_slice() {
        [_] => true,
        [4, rest @ ..] if rest.len() <= 4 => rest.iter().all(|length| (2..=7).contains(length)),
        _ => lengths.len() >= 15 && lengths.iter().all(|length| *length == 1),
    }
}

/// Whether a network issues numbers that begin so and are so long.
fn is_of_issuer(digits: &[u8]) -> bool {
    let prefix =
        |count: usize| digits.iter().take(count).fold(0_u32, |number, digit| number * 10 + u32::from(*digit));
    let length = digits.len();
    match (prefix(4), prefix(6)) {
        // Visa
        (4000..=4999, _) => matches!(length, 13 | 16 | 19),
        // Mastercard, and Mir next to it
        (5100..=5599 | 2221..=2720, _) => length == 16,
        (2200..=2204, _) => (16..=19).contains(&length),
        // American Express
        (3400..=3499 | 3700..=3799, _) => length == 15,
        // Diners Club
        (3000..=3059 | 3095 | 3600..=3699 | 3800..=3999, _) => (14..=19).contains(&length),
        // JCB
        (3528..=3589, _) => (16..=19).contains(&length),
        // RuPay
        (_, 508_500..=508_999 | 817_200..=820_199) => length == 16,
        // Maestro
        (5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763, _) => DIGITS.contains(&length),
        // Discover, RuPay, UnionPay
        (6011 | 6440..=6599 | 6200..=6299 | 8100..=8171, _) => (16..=19).contains(&length),
        _ => false,
    }
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| match (index % 2, u32::from(*digit) * 2) {
            (0, doubled) => doubled / 2,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}
