//! Private keys and tokens, by the formats their issuers publish, and values that stand beside a word for a secret and
//! look random.
//!
//! Text is read word by word, a word being a run of letters, digits, `_` and `-`; each is looked at once, so that the
//! time taken grows with the text and not with how it is arranged.

use std::{collections::BTreeMap, ops::Range};

use super::fold::Folded;
use crate::{capability::UnverifiedCapability, json::Value};

/// Longest header of a JWT that is decoded, in characters.
const JWT_HEADER_MAX: usize = 4_096;
/// Shortest text a capability could be, in characters.
const CAPABILITY_CHARS_MIN: usize = 180;
/// Longest text of a capability (16 KiB, as hex), in characters.
const CAPABILITY_CHARS_MAX: usize = 33_000;

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// What follows a prefix.
#[derive(Clone, Copy)]
enum Body {
    /// Letters and digits.
    Alphanumeric,
    /// Capital letters and the digits 2 to 7 (RFC 4648 section 6).
    Base32,
    /// Letters, digits, `_` and `-`.
    Any,
}

impl Body {
    fn admits(self, byte: u8) -> bool {
        match self {
            Self::Alphanumeric => byte.is_ascii_alphanumeric(),
            Self::Base32 => matches!(byte, b'A'..=b'Z' | b'2'..=b'7'),
            Self::Any => is_token(byte),
        }
    }
}

/// A token that is one word: detector, prefix, what follows and how much of it.
type Prefixed = (&'static str, &'static [u8], Body, std::ops::RangeInclusive<usize>);

const PREFIXED: &[Prefixed] = &[
    // Written in two, since a whole one would look like a leaked key to others.
    ("aws", concat!("AK", "IA").as_bytes(), Body::Base32, 16..=16),
    ("aws", concat!("AS", "IA").as_bytes(), Body::Base32, 16..=16),
    ("github", b"ghp_", Body::Alphanumeric, 36..=255),
    ("github", b"gho_", Body::Alphanumeric, 36..=255),
    ("github", b"ghu_", Body::Alphanumeric, 36..=255),
    ("github", b"ghs_", Body::Alphanumeric, 36..=255),
    ("github", b"ghr_", Body::Alphanumeric, 36..=255),
    ("github", b"github_pat_", Body::Any, 40..=255),
    ("gitlab", b"glpat-", Body::Any, 20..=255),
    ("google", b"AIza", Body::Any, 35..=35),
    ("google", b"GOCSPX-", Body::Any, 28..=28),
    ("npm", b"npm_", Body::Alphanumeric, 36..=36),
    ("pypi", b"pypi-AgE", Body::Any, 50..=512),
    ("slack", b"xoxa-", Body::Any, 10..=255),
    ("slack", b"xoxb-", Body::Any, 10..=255),
    ("slack", b"xoxe-", Body::Any, 10..=255),
    ("slack", b"xoxp-", Body::Any, 10..=255),
    ("slack", b"xoxr-", Body::Any, 10..=255),
    ("slack", b"xoxs-", Body::Any, 10..=255),
    ("slack", b"xapp-", Body::Any, 20..=255),
    ("stripe", b"sk_live_", Body::Alphanumeric, 16..=255),
    ("stripe", b"rk_live_", Body::Alphanumeric, 16..=255),
    ("stripe", b"sk_test_", Body::Alphanumeric, 16..=255),
    ("stripe", b"whsec_", Body::Alphanumeric, 24..=255),
];

/// Tokens: detector and place.
pub(super) fn scan_tokens(text: &Folded, found: &mut Vec<(&'static str, Range<usize>)>) {
    for word in text.runs(is_token) {
        if let Some(one) = prefixed(text, &word) {
            found.push(one);
        } else if let Some(end) = jwt(text, &word) {
            found.push(("jwt", word.start..end));
        } else if is_capability(text.slice(word.clone())) {
            found.push(("capability", word));
        } else if let Some(end) = slack_hook(text, &word) {
            found.push(("slack", word.start..end));
        }
    }
}

fn prefixed(text: &Folded, word: &Range<usize>) -> Option<(&'static str, Range<usize>)> {
    let (detector, ..) = PREFIXED.iter().find(|(_, prefix, body, lengths)| {
        let body_start = word.start + prefix.len();
        text.has_at(word.start, prefix)
            && lengths.contains(&word.end.saturating_sub(body_start))
            && text.slice(body_start..word.end).iter().all(|byte| body.admits(*byte))
    })?;
    Some((detector, word.clone()))
}

/// The end of a JSON Web Token (RFC 7519): a header that says an algorithm, a payload, a signature that may be empty.
fn jwt(text: &Folded, header: &Range<usize>) -> Option<usize> {
    if !text.has_at(header.start, b"eyJ") || header.len() > JWT_HEADER_MAX || text.at(header.end) != b'.' {
        return None;
    }
    let payload = header.end + 1..text.run_end(header.end + 1, is_token);
    if payload.is_empty() || text.at(payload.end) != b'.' {
        return None;
    }
    let decoded = String::from_utf8(base64url(text.slice(header.clone()))?).ok()?;
    let is_header = Value::parse(&decoded).ok()?.get("alg").is_some_and(|alg| alg.as_str().is_some());
    is_header.then(|| text.run_end(payload.end + 1, is_token))
}

/// `https://hooks.slack.com/services/T…/B…/…`: whoever has the address may post.
fn slack_hook(text: &Folded, word: &Range<usize>) -> Option<usize> {
    const PATH: &[u8] = b"hooks.slack.com/services/T";
    if !text.has_at(word.start, PATH) {
        return None;
    }
    let end = text.run_end_within(word.start, 128, |byte| is_token(byte) || matches!(byte, b'.' | b'/'));
    let parts = text.slice(word.start + PATH.len()..end).split(|byte| *byte == b'/').count();
    (parts >= 3).then_some(end)
}

/// A capability of Writ's own, in base64 (RFC 4648 section 5) or hex.
fn is_capability(word: &[u8]) -> bool {
    if !(CAPABILITY_CHARS_MIN..=CAPABILITY_CHARS_MAX).contains(&word.len()) {
        return false;
    }
    let is = |bytes: Option<Vec<u8>>| bytes.is_some_and(|bytes| UnverifiedCapability::parse(&bytes).is_ok());
    // The first byte is a field of the outermost message: 0x12, or 0x08 before it.
    let is_hex = (word.starts_with(b"12") || word.starts_with(b"08")) && word.len().is_multiple_of(2);
    (word.starts_with(b"E") || word.starts_with(b"C")) && is(base64url(word))
        || is_hex && is(hex::decode(word).ok())
}

/// Base64 for addresses (RFC 4648 section 5), without padding.
fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in text {
        bits = (bits << 6 | u32::from(value(*byte)?)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    (text.len() % 4 != 1).then_some(bytes)
}

/// Private keys: detector and place.
pub(super) fn scan_keys(text: &Folded, found: &mut Vec<(&'static str, Range<usize>)>) {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const OURS: &[u8] = b"ed25519-private:";
    const AGE: &[u8] = b"AGE-SECRET-KEY-1";
    for at in 0..text.len() {
        match text.at(at) {
            b'-' if text.has_at(at, BEGIN) => found.extend(pem(text, at).map(|end| ("pem", at..end))),
            b'e' if text.has_at(at, OURS) => {
                let end = text.run_end_within(at + OURS.len(), 65, |byte| byte.is_ascii_hexdigit());
                if end - at - OURS.len() == 64 {
                    found.push(("ed25519", at..end));
                }
            }
            _ => {}
        }
    }
    for word in text.runs(is_token) {
        if text.has_at(word.start, AGE) && word.len() == AGE.len() + 58 {
            found.push(("age", word));
        } else if is_nkey_seed(text.slice(word.clone())) {
            found.push(("nkey", word));
        }
    }
}

/// The end of the first line of a private key (RFC 7468): what kind of key stands there.
fn pem(text: &Folded, begin: usize) -> Option<usize> {
    let label = begin + 11..text.run_end_within(begin + 11, 65, |byte| {
        byte.is_ascii_uppercase() || matches!(byte, b' ' | b'0'..=b'9')
    });
    let words = text.slice(label.clone());
    let is_private = words.ends_with(b"PRIVATE KEY") || words.ends_with(b"PRIVATE KEY BLOCK");
    (is_private && label.len() <= 64 && text.has_at(label.end, b"-----")).then_some(label.end + 5)
}

/// The seed of a NATS key: two bytes that say so, 32 of seed, and a CRC-16 (XMODEM) of both, in base 32.
fn is_nkey_seed(word: &[u8]) -> bool {
    if word.len() != 58 || !word.starts_with(b"S") {
        return false;
    }
    let mut bytes = Vec::with_capacity(36);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in word {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'2'..=b'7' => byte - b'2' + 26,
            _ => return false,
        };
        bits = (bits << 5 | u32::from(value)) & 0xffff;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.extend(u8::try_from(bits >> count & 0xff));
        }
    }
    let Some((content, [low, high])) = bytes.split_last_chunk::<2>() else { return false };
    crc16(content) == u16::from_le_bytes([*low, *high])
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 },
        )
    })
}

/// Words that a secret stands beside.
const NAMES: [&[u8]; 9] = [
    b"accesskey",
    b"apikey",
    b"authtoken",
    b"credential",
    b"passphrase",
    b"passwd",
    b"password",
    b"privatekey",
    b"secret",
];
/// Shortest and longest value that is looked at, in characters.
const VALUE: std::ops::RangeInclusive<usize> = 16..=200;
/// Least entropy of the characters of a value, in hundredths of a bit for each.
const ENTROPY_MIN: u32 = 340;

/// `password = "…"` and the like. `name` is what the whole text is called, such as the member of an object it stands in.
pub(super) fn scan_secrets(name: &str, text: &Folded, found: &mut Vec<Range<usize>>) {
    if is_secret_name(name.as_bytes()) && is_random(text.slice(0..text.len())) {
        return found.push(0..text.len());
    }
    for at in 0..text.len() {
        if matches!(text.at(at), b'=' | b':') && !matches!(text.before(at), b'=' | b':') {
            found.extend(assigned(text, at));
        }
    }
}

fn assigned(text: &Folded, sign: usize) -> Option<Range<usize>> {
    /// Most characters between name, sign and value.
    const GAP_MAX: usize = 4;
    /// Longest name.
    const NAME_MAX: usize = 48;
    let is_gap = |byte: u8| matches!(byte, b' ' | b'"' | b'\'' | b'`' | b'>' | b'=' | b':');
    let mut name_end = sign;
    while sign - name_end < GAP_MAX && is_gap(text.before(name_end)) {
        name_end -= 1;
    }
    let mut name_start = name_end;
    while name_end - name_start < NAME_MAX && is_token(text.before(name_start)) {
        name_start -= 1;
    }
    if !is_secret_name(text.slice(name_start..name_end)) {
        return None;
    }
    let start = text.run_end_within(sign, 1 + GAP_MAX, is_gap);
    let value = start..text.run_end_within(start, VALUE.end() + 1, is_value);
    is_random(text.slice(value.clone())).then_some(value)
}

fn is_value(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'`' | b',' | b';' | b'<' | b'>' | b'(' | b')')
}

fn is_secret_name(name: &[u8]) -> bool {
    let plain: Vec<u8> =
        name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
    NAMES.iter().any(|needle| plain.windows(needle.len()).any(|part| part == *needle))
}

/// Letters and digits both, and hardly any twice (Shannon's entropy of the characters).
fn is_random(value: &[u8]) -> bool {
    let has = |is: fn(&u8) -> bool| value.iter().any(is);
    VALUE.contains(&value.len())
        && value.iter().all(|byte| is_value(*byte))
        && has(u8::is_ascii_alphabetic)
        && has(u8::is_ascii_digit)
        && entropy(value) >= ENTROPY_MIN
}

/// Hundredths of a bit for each character.
fn entropy(value: &[u8]) -> u32 {
    let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
    for byte in value {
        *counts.entry(*byte).or_default() += 1;
    }
    let total = f64::from(u32::try_from(value.len()).unwrap_or(u32::MAX));
    let bits: f64 =
        counts.values().map(|count| f64::from(*count) / total).map(|share| -share * share.log2()).sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 8 bits, times 100")]
    let hundredths = (bits * 100.0) as u32;
    hundredths
}
