//! JSON Pointers with a wildcard: which values of arguments or a result something is said about.
//!
//! RFC 6901, with one addition: a token that is `*` stands for any one member or element. A member that is really
//! called `*` cannot be named by itself.

use std::fmt;

use crate::json::Value;

/// Longest pattern, in tokens.
const TOKENS_MAX: usize = 16;

/// `/to/*`, `/rows/*/email`; the empty pattern is the whole value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Token {
    Any,
    Named(String),
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {why}")]
pub struct InvalidPattern {
    text: String,
    why: &'static str,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`InvalidPattern`] if it does not begin with `/`, has a `~` that is neither `~0` nor `~1`, or is too long.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| InvalidPattern { text: text.chars().take(80).collect(), why };
        if !text.is_empty() && !text.starts_with('/') {
            return Err(invalid("is no JSON Pointer: it begins with `/`, like `/to/*`"));
        }
        let tokens: Vec<Token> = text
            .split('/')
            .skip(1)
            .map(|token| match token {
                "*" => Ok(Token::Any),
                token if is_escaped(token) => Ok(Token::Named(token.replace("~1", "/").replace("~0", "~"))),
                _ => Err(invalid("has a `~` that is neither `~0` nor `~1`")),
            })
            .collect::<Result<_, _>>()?;
        if tokens.len() > TOKENS_MAX {
            return Err(invalid("has more than 16 tokens"));
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// The text it was read from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Every place of a value it names, with its plain pointer, in order.
    #[must_use]
    pub fn find<'v>(&self, value: &'v Value) -> Vec<(String, &'v Value)> {
        let mut found = vec![(String::new(), value)];
        for token in &self.tokens {
            found = found.into_iter().flat_map(|(path, value)| step(&path, value, token)).collect();
        }
        found
    }

    /// Whether a plain pointer is one of the places it names, or lies below one.
    #[must_use]
    pub fn covers(&self, pointer: &str) -> bool {
        let mut rest = pointer.split('/').skip(1);
        self.tokens.iter().all(|token| match (token, rest.next()) {
            (_, None) => false,
            (Token::Any, Some(_)) => true,
            (Token::Named(name), Some(found)) => escape(name) == found,
        })
    }

    /// Whether a plain pointer is one of the places it names.
    #[must_use]
    pub fn names(&self, pointer: &str) -> bool {
        self.covers(pointer) && pointer.split('/').skip(1).count() == self.tokens.len()
    }
}

fn is_escaped(token: &str) -> bool {
    token.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']))
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn step<'v>(path: &str, value: &'v Value, token: &Token) -> Vec<(String, &'v Value)> {
    match (value, token) {
        (Value::Array(items), Token::Any) => {
            items.iter().enumerate().map(|(index, item)| (format!("{path}/{index}"), item)).collect()
        }
        (Value::Object(members), Token::Any) => {
            members.iter().map(|(key, member)| (format!("{path}/{}", escape(key)), member)).collect()
        }
        (Value::Array(items), Token::Named(name)) => {
            let index = name.parse::<usize>().ok().filter(|index| index.to_string() == *name);
            let item = index.and_then(|index| items.get(index));
            item.map(|item| (format!("{path}/{name}"), item)).into_iter().collect()
        }
        (Value::Object(members), Token::Named(name)) => {
            let member = members.get(name);
            member.map(|member| (format!("{path}/{}", escape(name)), member)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Pattern {
    type Err = InvalidPattern;
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(pattern: &str, json: &str) -> Vec<String> {
        let value = Value::parse(json).unwrap();
        Pattern::parse(pattern).unwrap().find(&value).into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_plain_pointer_is_named_or_lies_below() {
        let pattern = Pattern::parse("/rows/*/price").unwrap();
        assert!(pattern.names("/rows/3/price") && pattern.covers("/rows/3/price/cents"));
        for other in ["/rows/3", "/rows/3/price/cents", "/rows/price", ""] {
            assert!(!pattern.names(other), "{other}");
        }
    }

    #[test]
    fn a_star_is_any_one_member_or_element() {
        let rows = r#"{"rows":[{"email":"a"},{"name":"b"},{"email":"c"}],"to":["x","y"],"a/b":1}"#;
        assert_eq!(paths("/rows/*/email", rows), ["/rows/0/email", "/rows/2/email"]);
        assert_eq!(paths("/to/*", rows), ["/to/0", "/to/1"]);
        assert_eq!(paths("/to/1", rows), ["/to/1"]);
        assert_eq!(paths("/to/01", rows), [""; 0]);
        assert_eq!(paths("/a~1b", rows), ["/a~1b"]);
        assert_eq!(paths("", rows), [""]);
        assert_eq!(paths("/to/*/*", rows), [""; 0]);
    }

    #[test]
    fn what_lies_below_a_place_is_covered_by_it() {
        let pattern = Pattern::parse("/rows/*/a~1b").unwrap();
        assert!(pattern.covers("/rows/7/a~1b") && pattern.covers("/rows/7/a~1b/c"));
        assert!(!pattern.covers("/rows/7") && !pattern.covers("/rows/7/a"));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for (text, why) in [("to", "begins with"), ("/a~2", "neither"), (&"/a".repeat(17), "16 tokens")] {
            assert!(Pattern::parse(text).unwrap_err().to_string().contains(why), "{text}");
        }
    }
}
