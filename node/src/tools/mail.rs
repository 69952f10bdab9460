//! Letters: from arguments to a message, and to the addresses it goes to, which policy sees one by one.
//!
//! An address is taken in its plain form only: what servers along the way might read as another address, route or
//! command (RFC 5321, appendix C; `%` and `!` of older times) is refused.

use lettre::{
    Message,
    message::{Mailbox, header::ContentType},
};
use writ_common::{
    datalog::{Predicate, Term},
    json::Value,
    reason::{Reason, ReasonCode},
    visible::is_invisible,
};

/// Most addresses of one letter, all kinds together.
pub(super) const RECIPIENTS_MAX: usize = 100;
/// Longest address, in bytes (RFC 5321, section 4.5.3.1.3, less the brackets).
const ADDRESS_BYTES_MAX: usize = 254;

/// A letter that can be sent or kept.
pub(super) struct Letter {
    /// The message, without its `Bcc`; the envelope names everybody.
    pub(super) message: Message,
    recipients: Vec<(&'static str, String)>,
}

impl Letter {
    /// Reads `to`, `cc`, `bcc`, `subject` and `body`.
    ///
    /// # Errors
    /// `arg.invalid`, naming the argument.
    pub(super) fn read(from: &Mailbox, arguments: &Value) -> Result<Self, Reason> {
        let subject = arguments.get("subject").and_then(Value::as_str).unwrap_or_default();
        if subject.contains(char::is_control) {
            return Err(invalid("`/subject` has a line break or another control character in it"));
        }
        let mut builder = Message::builder()
            .from(from.clone())
            .subject(subject)
            .header(ContentType::TEXT_PLAIN)
            .message_id(None);
        let mut recipients = Vec::new();
        for kind in ["to", "cc", "bcc"] {
            for (index, text) in texts(arguments, kind)?.into_iter().enumerate() {
                let mailbox =
                    mailbox(text).map_err(|why| invalid(format_args!("`/{kind}/{index}` {why}")))?;
                recipients.push((kind, mailbox.email.to_string()));
                builder = match kind {
                    "to" => builder.to(mailbox),
                    "cc" => builder.cc(mailbox),
                    _ => builder.bcc(mailbox),
                };
            }
        }
        if recipients.is_empty() {
            return Err(invalid("the letter is to nobody"));
        }
        if recipients.len() > RECIPIENTS_MAX {
            return Err(invalid(format_args!("the letter is to more than {RECIPIENTS_MAX} addresses")));
        }
        let body = arguments.get("body").and_then(Value::as_str).unwrap_or_default();
        let message = builder.body(body.to_owned()).map_err(invalid)?;
        Ok(Self { message, recipients })
    }

    /// `recipient(kind, address)` for every address (threat A14).
    pub(super) fn facts(&self) -> Vec<Predicate> {
        self.recipients
            .iter()
            .filter(|(kind, _)| *kind != "bcc" || !writ_common::red::off("A14"))
            .map(|(kind, address)| {
                Predicate::new("recipient", [Term::str(*kind), Term::str(address.as_str())])
            })
            .collect()
    }

    /// How many addresses it goes to.
    pub(super) fn recipients(&self) -> usize {
        self.recipients.len()
    }
}

fn invalid(why: impl std::fmt::Display) -> Reason {
    Reason::new(ReasonCode::ArgInvalid).told(why)
}

fn texts<'a>(arguments: &'a Value, key: &str) -> Result<Vec<&'a str>, Reason> {
    match arguments.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().ok_or_else(|| invalid(format_args!("`/{key}` holds something else"))))
            .collect(),
        Some(_) => Err(invalid(format_args!("`/{key}` is no list"))),
    }
}

/// `kim@example.com` or `Kim <kim@example.com>`, with the domain in small letters.
fn mailbox(text: &str) -> Result<Mailbox, String> {
    if text.contains(is_invisible) {
        return Err("has characters in it that do not show".to_owned());
    }
    let Mailbox { name, email } = text.parse().map_err(|error| format!("is no address: {error}"))?;
    let (user, domain) = (email.user(), email.domain());
    let is_atom = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-/=?^_`{|}~".contains(&byte);
    let is_plain = !user.contains('!')
        && user.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atom))
        && domain.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
    if !is_plain || user.len() + domain.len() >= ADDRESS_BYTES_MAX {
        return Err("is no plain address, as `kim@example.com`".to_owned());
    }
    let email = lettre::Address::new(user, domain.to_ascii_lowercase())
        .map_err(|error| format!("is no address: {error}"))?;
    Ok(Mailbox { name, email })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str) -> Result<Letter, String> {
        let from = "Support <support@acme.example>".parse().unwrap();
        Letter::read(&from, &Value::parse(arguments).unwrap()).map_err(|reason| reason.to_string())
    }

    #[test]
    fn a14_every_address_is_a_fact_and_blind_copies_are_no_header() {
        let letter = read(
            r#"{"to":["Kim <kim@Example.COM>"],"cc":["lee@example.com"],"bcc":["eve@evil.example"],"subject":"Größe","body":"x"}"#,
        )
        .unwrap();
        let facts: Vec<String> = letter.facts().iter().map(ToString::to_string).collect();
        assert_eq!(
            facts,
            [
                r#"recipient("to", "kim@example.com")"#,
                r#"recipient("cc", "lee@example.com")"#,
                r#"recipient("bcc", "eve@evil.example")"#
            ]
        );
        let envelope: Vec<String> = letter.message.envelope().to().iter().map(ToString::to_string).collect();
        assert_eq!(envelope, ["kim@example.com", "lee@example.com", "eve@evil.example"]);
        let text = String::from_utf8(letter.message.formatted()).unwrap();
        assert!(!text.to_lowercase().contains("bcc") && !text.contains("evil"), "{text}");
    }

    #[test]
    fn headers_cannot_be_smuggled_in() {
        for subject in ["hi\\r\\nBcc: eve@example.com", "hi\\nX: y", "hi\\rX", "a\\u0000b"] {
            let arguments = format!(r#"{{"to":["ada@example.com"],"subject":"{subject}","body":"b"}}"#);
            assert!(read(&arguments).is_err(), "{subject}");
        }
        let body = r#"{"to":["ada@example.com"],"subject":"s","body":"x\r\n.\r\nMAIL FROM:<a@b>\r\n"}"#;
        let letter = read(body).unwrap();
        let text = String::from_utf8(letter.message.formatted()).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.contains("MAIL FROM"), "{head}");
    }

    #[test]
    fn an_address_has_one_plain_form() {
        for to in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a@b, c@d",
            "ada@example.com\\r\\nBcc: eve@example.com",
            "ada@example.com\\u0000",
            "eve%evil.example@example.com",
            "evil.example!eve@example.com",
            "@relay.example:ada@example.com",
            "\\\"ada@example.com\\\"@evil.example",
            "\\\"a b\\\"@example.com",
            "ada@[127.0.0.1]",
            "ada..b@example.com",
            ".ada@example.com",
            "ada@example..com",
            "ada@-example.com",
            "ada@ex\u{430}mple.com",
            "\u{430}da@example.com",
            "ada@example.com\u{200b}",
            "ada@example.com>",
            "<ada@example.com> <eve@example.com>",
        ] {
            let arguments = format!(r#"{{"to":["{to}"],"subject":"s","body":"b"}}"#);
            assert!(read(&arguments).is_err_and(|text| text.starts_with("arg.invalid")), "{to}");
        }
        let many = vec![r#""ada@example.com""#; RECIPIENTS_MAX + 1].join(",");
        assert!(read(&format!(r#"{{"bcc":[{many}],"subject":"s","body":"b"}}"#)).is_err());
        assert!(read(r#"{"subject":"s","body":"b"}"#).is_err());
        assert!(read(r#"{"to":"ada@example.com","subject":"s","body":"b"}"#).is_err());
    }
}
