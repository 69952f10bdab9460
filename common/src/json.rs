//! Arguments and results as JSON, strictly read and canonically written.
//!
//! What is checked must be what runs, byte for byte, and what a human approved. So there is exactly one text
//! for a value: object keys in byte order and without duplicates, no white space, shortest escapes, and
//! numbers as exact decimal text (never through a float, so 98.7 stays 98.7 and 2^64+1 is refused rather than
//! rounded). It is the canonical form of RFC 8785 with two differences: keys sort by UTF-8 bytes instead of
//! UTF-16 units, and numbers keep their decimal digits.

use std::{collections::BTreeMap, fmt};

/// Deepest nesting of arrays and objects.
pub const DEPTH_MAX: usize = 32;

/// Longest number, in characters.
pub const NUMBER_CHARS_MAX: usize = 40;

/// A JSON value (RFC 8259) whose numbers are exact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `null`; in facts the same as absent.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as canonical decimal text.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object; keys are unique by construction.
    Object(BTreeMap<String, Value>),
}

/// A number in its one canonical spelling: no exponent, no leading or trailing zeros, no `-0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(String);

/// Why a text is not acceptable JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {at}")]
pub struct JsonError {
    /// Byte offset in the text.
    pub at: usize,
    /// What is wrong there.
    pub fault: JsonFault,
}

/// The ways in which JSON text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// An object names the same key twice.
    #[error("an object has the same key twice")]
    DuplicateKey,
    /// A string holds a broken escape, a lone surrogate or a raw control character.
    #[error("a string is malformed")]
    Encoding,
    /// The value is valid, but not written in the one canonical way.
    #[error("the text is not in canonical form")]
    NotCanonical,
    /// A number cannot be kept exactly, or is no JSON number.
    #[error("a number is malformed, out of range or too long")]
    Number,
    /// Anything else RFC 8259 does not allow.
    #[error("the text is not JSON")]
    Syntax,
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("arrays and objects are nested deeper than 32")]
    TooDeep,
}

impl Number {
    /// Reads a JSON number exactly and brings it to canonical form: `1.50e1` becomes `15`, `-0` is refused.
    ///
    /// # Errors
    /// [`JsonFault::Number`] if it is no JSON number, longer than [`NUMBER_CHARS_MAX`], an integer outside
    /// `i64`, or minus zero.
    pub fn parse(text: &str) -> Result<Self, JsonFault> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if !(1..=3).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(JsonFault::Number);
                }
                (mantissa, exponent.parse::<i32>().map_err(|_| JsonFault::Number)?)
            }
            None => (digits, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(JsonFault::Number),
            None => (mantissa, ""),
        };
        let all_digits = whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
        if !all_digits || whole.is_empty() || (whole.len() > 1 && whole.starts_with('0')) {
            return Err(JsonFault::Number);
        }
        let limit = i32::try_from(NUMBER_CHARS_MAX).unwrap_or(i32::MAX);
        if text.len() > NUMBER_CHARS_MAX || exponent.abs() > limit {
            return Err(JsonFault::Number);
        }
        let shifted = shift_point(whole, fraction, exponent);
        let (whole, fraction) = (shifted.0.trim_start_matches('0'), shifted.1.trim_end_matches('0'));
        let whole = if whole.is_empty() { "0" } else { whole };
        if negative && whole == "0" && fraction.is_empty() && !crate::red::off("A10") {
            return Err(JsonFault::Number);
        }
        let sign = if negative { "-" } else { "" };
        let canonical =
            if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
        let is_outside = fraction.is_empty() && canonical.parse::<i64>().is_err();
        if canonical.len() > NUMBER_CHARS_MAX || (is_outside && !crate::red::off("A10")) {
            return Err(JsonFault::Number);
        }
        Ok(Self(canonical))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number as an integer, if it is one.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        self.0.parse().ok()
    }

    /// The number times `10^scale` as an integer: 98.7 with scale 2 is 9870.
    ///
    /// `None` if it has more decimals than `scale` or leaves the range of `i64`; nothing is ever rounded.
    #[must_use]
    pub fn scaled(&self, scale: u8) -> Option<i64> {
        let (whole, fraction) = self.0.split_once('.').unwrap_or((&self.0, ""));
        let scale = usize::from(scale);
        if fraction.len() > scale {
            return None;
        }
        format!("{whole}{fraction:0<scale$}").parse().ok()
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self(value.to_string())
    }
}

fn shift_point(whole: &str, fraction: &str, exponent: i32) -> (String, String) {
    let digits: String = [whole, fraction].concat();
    let point = i32::try_from(whole.len()).unwrap_or(i32::MAX).saturating_add(exponent);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if point <= 0 {
        return ("0".to_owned(), zeros(-point) + &digits);
    }
    let length = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    if point >= length {
        return (digits + &zeros(point - length), String::new());
    }
    let (left, right) = digits.split_at(usize::try_from(point).unwrap_or(0));
    (left.to_owned(), right.to_owned())
}

impl Value {
    /// Reads JSON text strictly, whatever its spacing and spelling.
    ///
    /// # Errors
    /// [`JsonError`] with the byte offset and the kind of fault.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut reader = Reader { text, at: 0 };
        reader.skip_space();
        let value = reader.value(0)?;
        reader.skip_space();
        if reader.at != text.len() {
            return Err(reader.fail(JsonFault::Syntax));
        }
        Ok(value)
    }

    /// Reads JSON text that must already be canonical.
    ///
    /// # Errors
    /// As [`Value::parse`], and [`JsonFault::NotCanonical`] at the first byte that differs.
    pub fn parse_canonical(text: &str) -> Result<Self, JsonError> {
        let value = Self::parse(text)?;
        let canonical = value.to_string();
        if canonical != text {
            let at = canonical.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            return Err(JsonError { at, fault: JsonFault::NotCanonical });
        }
        Ok(value)
    }

    /// The member of an object, if this is an object that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.get(key),
            _ => None,
        }
    }

    /// The text of a string value.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Calls `visit` for every leaf with its JSON Pointer (RFC 6901), in canonical order; `null` is absent.
    pub fn for_each_leaf<'a>(&'a self, visit: &mut impl FnMut(&str, &'a Self)) {
        self.leaves(&mut String::new(), visit);
    }

    fn leaves<'a>(&'a self, path: &mut String, visit: &mut impl FnMut(&str, &'a Self)) {
        let length = path.len();
        match self {
            Self::Null => {}
            Self::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push('/');
                    path.push_str(&index.to_string());
                    item.leaves(path, visit);
                    path.truncate(length);
                }
            }
            Self::Object(members) => {
                for (key, member) in members {
                    path.push('/');
                    path.push_str(&key.replace('~', "~0").replace('/', "~1"));
                    member.leaves(path, visit);
                    path.truncate(length);
                }
            }
            Self::Bool(_) | Self::Number(_) | Self::String(_) => visit(path, self),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Number(Number::from(value))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Vec<Self>> for Value {
    fn from(items: Vec<Self>) -> Self {
        Self::Array(items)
    }
}

impl<K: Into<String>> FromIterator<(K, Self)> for Value {
    fn from_iter<I: IntoIterator<Item = (K, Self)>>(members: I) -> Self {
        Self::Object(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// Writes the canonical text.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => f.write_str(number.as_str()),
            Self::String(text) => write_string(f, text),
            Self::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                for (index, (key, member)) in members.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    write_string(f, key)?;
                    write!(f, ":{member}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    use fmt::Write as _;
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\u{8}' => f.write_str("\\b")?,
            '\t' => f.write_str("\\t")?,
            '\n' => f.write_str("\\n")?,
            '\u{c}' => f.write_str("\\f")?,
            '\r' => f.write_str("\\r")?,
            control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn fail(&self, fault: JsonFault) -> JsonError {
        JsonError { at: self.at, fault }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.eat(byte) { Ok(()) } else { Err(self.fail(JsonFault::Syntax)) }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > DEPTH_MAX {
            return Err(self.fail(JsonFault::TooDeep));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Value, JsonError> {
        for (word, value) in
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
        {
            if self.rest().starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.fail(JsonFault::Syntax))
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let length = self
            .rest()
            .bytes()
            .take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .count();
        let text = self.rest().get(..length).unwrap_or("");
        let number = Number::parse(text).map_err(|fault| self.fail(fault))?;
        self.at += length;
        Ok(Value::Number(number))
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.expect(b'[')?;
        let mut items = Vec::new();
        self.skip_space();
        if self.eat(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.eat(b']') {
                return Ok(Value::Array(items));
            }
            self.expect(b',')?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.expect(b'{')?;
        let mut members = BTreeMap::new();
        self.skip_space();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_space();
            let key_at = self.at;
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let member = self.value(depth + 1)?;
            if members.insert(key, member).is_some() && !crate::red::off("A06") {
                return Err(JsonError { at: key_at, fault: JsonFault::DuplicateKey });
            }
            self.skip_space();
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            self.expect(b',')?;
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.expect(b'"')?;
        let mut text = String::new();
        loop {
            let mut chars = self.rest().chars();
            match chars.next() {
                Some('"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some('\\') => {
                    self.at += 1;
                    text.push(self.escape()?);
                }
                Some(character) if character >= ' ' => {
                    self.at += character.len_utf8();
                    text.push(character);
                }
                _ => return Err(self.fail(JsonFault::Encoding)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let plain = match self.peek() {
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            _ => return Err(self.fail(JsonFault::Encoding)),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !(self.eat(b'\\') && self.eat(b'u')) {
                return Err(self.fail(JsonFault::Encoding));
            }
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.fail(JsonFault::Encoding));
            }
            0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.fail(JsonFault::Encoding))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.rest().get(..4).filter(|four| four.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = digits.and_then(|four| u32::from_str_radix(four, 16).ok());
        let code = code.ok_or_else(|| self.fail(JsonFault::Encoding))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, JsonFault> {
        Value::parse(text).map(|value| value.to_string()).map_err(|error| error.fault)
    }

    #[test]
    fn one_value_has_one_text() {
        for (text, expected) in [
            (" { \"b\" : 1 , \"a\" : [ ] } ", r#"{"a":[],"b":1}"#),
            (r#""\u0041\/\u00e9\ud83d\ude00\u001f""#, "\"A/é😀\\u001f\""),
            ("[null,true,false]", "[null,true,false]"),
            (r#"{"é":1,"z":2,"":3}"#, r#"{"":3,"z":2,"é":1}"#),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected));
            assert!(Value::parse_canonical(expected).is_ok());
        }
        assert_eq!(Value::parse_canonical("{\"a\": 1}").unwrap_err().at, 5);
    }

    #[test]
    fn a10_numbers_are_exact_or_refused() {
        for (text, expected) in [
            ("98.70", "98.7"),
            ("1.50e1", "15"),
            ("1e-3", "0.001"),
            ("1E+2", "100"),
            ("-1.0", "-1"),
            ("9223372036854775807", "9223372036854775807"),
            ("0.10", "0.1"),
            ("0e5", "0"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "9223372036854775808",
            "18446744073709551617",
            "1e400",
            "-0",
            "-0.0",
            "01",
            "1.",
            "+1",
            "1e",
            "1e1.5",
            "--1",
            "1e+-2",
            "0.00000000000000000000000000000000000000000000001",
        ] {
            assert!(canonical(text).is_err(), "{text} was taken");
        }
        for text in ["NaN", "Infinity", ".5"] {
            assert_eq!(canonical(text), Err(JsonFault::Syntax), "{text}");
        }
    }

    #[test]
    fn a10_scaling_never_rounds() {
        let number = |text| Number::parse(text).unwrap();
        assert_eq!(number("98.7").scaled(2), Some(9870));
        assert_eq!(number("-98.7").scaled(2), Some(-9870));
        assert_eq!(number("5").scaled(0), Some(5));
        assert_eq!(number("98.765").scaled(2), None);
        assert_eq!(number("9223372036854775807").scaled(1), None);
    }

    #[test]
    fn a06_duplicate_keys_and_other_tricks_are_refused() {
        assert_eq!(canonical(r#"{"a":1,"\u0061":2}"#), Err(JsonFault::DuplicateKey));
        assert_eq!(canonical(r#""\ud800""#), Err(JsonFault::Encoding));
        assert_eq!(canonical("\"a\nb\""), Err(JsonFault::Encoding));
        assert_eq!(canonical(r#"[1,]"#), Err(JsonFault::Syntax));
        assert_eq!(canonical(r#"{} {}"#), Err(JsonFault::Syntax));
        assert_eq!(canonical(&"[".repeat(100)), Err(JsonFault::TooDeep));
        assert_eq!(canonical(&"[".repeat(200_000)), Err(JsonFault::TooDeep));
    }

    #[test]
    fn leaves_are_addressed_by_json_pointer() {
        let value = Value::parse(r#"{"a/b":[1,{"c~":null,"d":true}],"e":"x"}"#).unwrap();
        let mut seen = Vec::new();
        value.for_each_leaf(&mut |path, leaf| seen.push(format!("{path}={leaf}")));
        assert_eq!(seen, ["/a~1b/0=1", "/a~1b/1/d=true", "/e=\"x\""]);
    }
}
