//! Policy text to tokens, each with its place.

use crate::datalog::Span;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// `deny`, `resource`, `true`
    Word(String),
    /// `$name`
    Variable(String),
    /// `"text"`, unescaped
    Text(String),
    /// Digits with an optional minus
    Integer(i64),
    /// RFC 3339, as seconds since the epoch
    Date(u64),
    /// `hex:0a0b`
    Bytes(Vec<u8>),
    /// `/// text`
    Doc(String),
    /// Punctuation and operators
    Sign(&'static str),
}

impl Token {
    /// How the token is called in a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Variable(name) => format!("`${name}`"),
            Self::Text(_) => "a text".to_owned(),
            Self::Integer(value) => format!("`{value}`"),
            Self::Date(_) => "a date".to_owned(),
            Self::Bytes(_) => "a byte string".to_owned(),
            Self::Doc(_) => "a `///` comment".to_owned(),
            Self::Sign(sign) => format!("`{sign}`"),
        }
    }
}

/// What stopped the lexer.
pub(crate) struct LexError {
    pub(crate) span: Span,
    pub(crate) message: &'static str,
}

/// Longest first, so that `===` is not read as `==` and `=`.
const SIGNS: [&str; 25] = [
    "===", "!==", "<-", "<=", ">=", "==", "!=", "&&", "||", "(", ")", "{", "}", "[", "]", ",", ";", ".", "<",
    ">", "!", "+", "-", "*", "/",
];

pub(crate) fn tokens(text: &str) -> Result<Vec<(Token, Span)>, LexError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn fail<T>(&self, start: usize, message: &'static str) -> Result<T, LexError> {
        Err(LexError { span: Span { start, end: self.at.max(start + 1) }, message })
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|character| !accept(character)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or("")
    }

    fn next(&mut self) -> Result<Option<(Token, Span)>, LexError> {
        loop {
            self.take_while(char::is_whitespace);
            let rest = self.rest();
            if rest.starts_with("///") {
                break;
            } else if rest.starts_with("//") {
                self.take_while(|character| character != '\n');
            } else if rest.starts_with("/*") {
                match rest.find("*/") {
                    Some(end) => self.at += end + 2,
                    None => return self.fail(self.at, "this comment never ends; close it with `*/`"),
                }
            } else {
                break;
            }
        }
        let start = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let token = match first {
            '"' => self.string(start)?,
            '$' => {
                self.at += 1;
                match self.take_while(is_word) {
                    "" => return self.fail(start, "a variable needs a name after `$`"),
                    name => Token::Variable(name.to_owned()),
                }
            }
            '0'..='9' => self.number(start)?,
            _ if self.rest().starts_with("///") => {
                self.at += 3;
                Token::Doc(self.take_while(|character| character != '\n').trim().to_owned())
            }
            _ if self.rest().starts_with("hex:") => {
                self.at += 4;
                match hex::decode(self.take_while(|character| character.is_ascii_alphanumeric())) {
                    Ok(bytes) => Token::Bytes(bytes),
                    Err(_) => return self.fail(start, "`hex:` needs an even number of hex digits"),
                }
            }
            _ if first.is_ascii_alphabetic() || first == '_' => {
                Token::Word(self.take_while(is_word).to_owned())
            }
            _ => match SIGNS.iter().find(|sign| self.rest().starts_with(**sign)) {
                Some(sign) => {
                    self.at += sign.len();
                    Token::Sign(sign)
                }
                None => {
                    self.at += first.len_utf8();
                    return self.fail(start, "this character has no meaning here");
                }
            },
        };
        Ok(Some((token, Span { start, end: self.at })))
    }

    fn string(&mut self, start: usize) -> Result<Token, LexError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(character) = self.rest().chars().next() else {
                return self.fail(start, "this text never ends; close it with `\"`");
            };
            self.at += character.len_utf8();
            match character {
                '"' => return Ok(Token::Text(text)),
                '\n' => return self.fail(start, "a text may not run over the end of the line; write `\\n`"),
                '\\' => text.push(self.escape(start)?),
                other => text.push(other),
            }
        }
    }

    fn escape(&mut self, start: usize) -> Result<char, LexError> {
        let character = self.rest().chars().next().unwrap_or('\0');
        self.at += character.len_utf8();
        match character {
            '"' | '\\' => Ok(character),
            'n' => Ok('\n'),
            't' => Ok('\t'),
            'u' => {
                let digits = self.rest().strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let code = digits.and_then(|(digits, _)| u32::from_str_radix(digits, 16).ok());
                let Some((digits, decoded)) =
                    digits.zip(code.and_then(char::from_u32)).map(|((digits, _), c)| (digits, c))
                else {
                    return self.fail(start, "`\\u` needs a code point in braces, as in `\\u{e9}`");
                };
                self.at += digits.len() + 2;
                Ok(decoded)
            }
            _ => self.fail(start, "unknown escape; there are `\\\"`, `\\\\`, `\\n`, `\\t` and `\\u{…}`"),
        }
    }

    /// An integer or, if it looks like one, a date.
    fn number(&mut self, start: usize) -> Result<Token, LexError> {
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '_'));
        if text.contains('T') {
            return match crate::time::Timestamp::parse(text).map(crate::time::Timestamp::as_secs) {
                Some(secs) => Ok(Token::Date(secs)),
                None => self.fail(start, "not a date; write it as 2026-01-31T12:00:00Z"),
            };
        }
        // `1-$x` is a subtraction: give back everything after the digits.
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        self.at = start + digits;
        match text.get(..digits).unwrap_or("").parse() {
            Ok(value) => Ok(Token::Integer(value)),
            Err(_) => self.fail(start, "this number does not fit into 64 bits"),
        }
    }
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}
