//! Numbers that name: amounts, accounts, telephones.

use crate::json::Number;

/// An amount in exact decimal text: `1,050.00`, `£1,050` and `1050` are the same.
///
/// Commas separate thousands and nothing else; `1.050,00` says different things in different countries and is refused.
pub(super) fn amount(value: &str) -> Option<String> {
    let (sign, rest) = match value.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", value),
    };
    let rest = rest.trim_start_matches(['$', '€', '£', '¥', '₹']).trim_end_matches(['$', '€', '£', '¥', '₹']);
    let (whole, fraction) = match rest.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (rest, String::new()),
    };
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let grouped = whole.contains(',');
    if (grouped && !(1..=3).contains(&first.len())) || !groups.clone().all(|group| group.len() == 3) {
        return None;
    }
    let digits: String = std::iter::once(first).chain(groups).collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Number::parse(&format!("{sign}{digits}{fraction}")).ok().map(|number| number.as_str().to_owned())
}

/// An account number with the shape of ISO 13616, in capitals without spaces and dashes.
///
/// The check digits are the bank's business: here only sameness matters, and a wrong account has no source anyway.
pub(super) fn iban(value: &str) -> Option<String> {
    let mut compact = String::with_capacity(value.len());
    for character in value.chars().filter(|c| !matches!(c, ' ' | '-')) {
        compact.push(character.is_ascii_alphanumeric().then(|| character.to_ascii_uppercase())?);
    }
    let bytes = compact.as_bytes();
    let shaped = matches!(bytes, [a, b, c, d, ..] if a.is_ascii_uppercase() && b.is_ascii_uppercase() && c.is_ascii_digit() && d.is_ascii_digit());
    (shaped && (15..=34).contains(&bytes.len()) && value.trim() == value).then_some(compact)
}

/// A telephone number: its digits, after a `+` if it has one.
pub(super) fn phone(value: &str) -> Option<String> {
    let international = value.strip_prefix('+').or_else(|| value.strip_prefix("00"));
    let digits = international.unwrap_or(value);
    let allowed = |c: char| c.is_ascii_digit() || matches!(c, ' ' | '-' | '.' | '/' | '(' | ')');
    // The optional zero of `+49 (0)30` is dialled by some readers.
    if !digits.chars().all(allowed) || value.contains("(0)") || value.trim() != value {
        return None;
    }
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let plus = if international.is_some() { "+" } else { "" };
    (5..=15).contains(&digits.len()).then(|| format!("{plus}{digits}"))
}
