//! The one canonical form of a value of an entity type.

use super::{address, calendar, quantity, text};
use crate::{ids::EntityType, json::Value};

/// Longest value that can have a trusted source, in bytes.
pub const VALUE_BYTES_MAX: usize = 2_048;

/// How values of an entity type are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// A number in decimal text: `amount`, `number`.
    Amount,
    /// A calendar day, with a time of day if one is given.
    Date,
    /// A mailbox (RFC 5321).
    Email,
    /// Compared exactly, letter by letter: ids, paths, secrets, and every type not named here.
    Exact,
    /// As [`Form::Exact`], but a record's id: a bare number counts only beside a word that says what it numbers.
    ExactId,
    /// A host name or address.
    Host,
    /// An account number (ISO 13616), or else the name of a payee.
    Iban,
    /// Words whose case does not matter: names and titles.
    Name,
    /// A telephone number.
    Phone,
    /// A URL (RFC 3986).
    Url,
}

impl Form {
    pub(super) fn of(entity: &EntityType) -> Self {
        match entity.as_str() {
            "amount" | "number" => Self::Amount,
            "date" => Self::Date,
            "email" => Self::Email,
            "host" => Self::Host,
            "iban" => Self::Iban,
            "name" | "title" => Self::Name,
            "phone" => Self::Phone,
            "url" => Self::Url,
            "id" => Self::ExactId,
            other if other.ends_with("_id") || other.ends_with("-id") => Self::ExactId,
            _ => Self::Exact,
        }
    }
}

/// The one text that stands for `value` as an entity of this type.
///
/// | type | canonical form |
/// |---|---|
/// | `email` | both parts in lower case, host as below. RFC 5321 (section 2.4) leaves the case of the local part to the host, but none that people use tells `Bob@` from `bob@`, and agents rewrite it. No quoting, comments or display name |
/// | `host` | lower case, Punycode (UTS 46), no trailing dot; IP addresses only in their usual form |
/// | `url` | scheme and host in lower case, default port left out, `/` for an empty path, the rest kept exactly. No user part. Without a scheme: `https` |
/// | `iban` | capitals without spaces and dashes; what has not the shape of one is a payee's name, compared exactly |
/// | `phone` | digits, with a leading `+` if there is one (`00` counts as `+`) |
/// | `amount`, `number` | exact decimal text without trailing zeros, thousands separators and currency sign |
/// | `date` | `2026-05-15`, with `T10:00` if there is a time |
/// | `name`, `title` | lower case |
/// | any other | exactly as it is |
///
/// `None` if it is not of the type or cannot be compared safely: longer than [`VALUE_BYTES_MAX`], empty, not in Unicode
/// NFC, with compatibility forms (full-width letters, ligatures), invisible characters, or a word of mixed alphabets.
/// Such a value has no trusted source, ever.
#[must_use]
pub fn canonical(entity: &EntityType, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => canonical_text(entity, text),
        Value::Number(number) => canonical_text(entity, number.as_str()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// As [`canonical`], of a text.
#[must_use]
pub fn canonical_text(entity: &EntityType, value: &str) -> Option<String> {
    if value.is_empty() || value.len() > VALUE_BYTES_MAX || !text::is_plain(value) {
        return None;
    }
    match Form::of(entity) {
        Form::Amount => quantity::amount(value),
        Form::Date => calendar::date(value),
        Form::Email => address::email(value),
        Form::Exact if entity.as_str() == "path" => path(value),
        Form::Exact | Form::ExactId => trimmed(value),
        Form::Host => address::host(value),
        Form::Iban => quantity::iban(value).or_else(|| trimmed(value)),
        Form::Name => trimmed(value).map(|name| name.to_lowercase()),
        Form::Phone => quantity::phone(value),
        Form::Url => address::url(value),
    }
}

/// A value that tools may trim is one they may take for another.
fn trimmed(value: &str) -> Option<String> {
    (value.trim() == value).then(|| value.to_owned())
}

/// A path that says where it leads: no `.` and `..`, no empty parts, no backslashes.
fn path(value: &str) -> Option<String> {
    let relative = value.strip_prefix('/').unwrap_or(value);
    let parts = relative.strip_suffix('/').unwrap_or(relative).split('/');
    let clear = parts.into_iter().all(|part| !matches!(part, "" | "." | ".." | "~"));
    if value.contains('\\') || !clear { None } else { trimmed(value) }
}
