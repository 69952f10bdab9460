//! What counts as an answer.
//!
//! It is read as strictly as a call: one JSON text, no key twice, none that is not in the interface (what is not
//! understood might be a restriction), the id of the question, places within the texts that were sent. Anything else is
//! no answer, and no answer denies.

use std::{collections::BTreeMap, fmt};

use super::{Batch, Finding, Overall, Question, Severity, span};
use crate::{
    ids::{DetectorId, FindingKind, InspectorId},
    json::{Number, Value},
    label::Tag,
};

/// Longest answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Most findings of one answer.
const FINDINGS_MAX: usize = 1_000;
/// Most labels of one answer.
const LABELS_MAX: usize = 64;
/// Longest name or version of an inspector, and longest text about a finding, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;

/// One answer that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was found.
    pub findings: Vec<Finding>,
    /// Tags the data gets.
    pub add_tags: std::collections::BTreeSet<Tag>,
    /// The version that answered, as it calls itself.
    pub version: String,
}

/// An inspector's own opinion. Only [`Judgement::Error`] changes what happens; the others are findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It would not let it through.
    Block,
    /// It failed.
    Error,
    /// It found something.
    Flag,
    /// It would change the text.
    Modified,
    /// It found nothing to object to.
    Pass,
}

/// Why a text is no answer. Says where, and repeats nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAnswer(String);

impl fmt::Display for InvalidAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its answer is not one: {}", self.0)
    }
}

impl std::error::Error for InvalidAnswer {}

pub(super) fn invalid(why: impl fmt::Display) -> InvalidAnswer {
    InvalidAnswer(why.to_string())
}

/// An object whose members are taken one by one; what is left over is not known here.
struct Members<'v>(BTreeMap<&'v str, &'v Value>);

impl<'v> Members<'v> {
    fn of(value: &'v Value, what: &str) -> Result<Self, InvalidAnswer> {
        match value {
            Value::Object(members) => {
                Ok(Self(members.iter().map(|(key, value)| (key.as_str(), value)).collect()))
            }
            _ => Err(invalid(format_args!("{what} is no object"))),
        }
    }

    fn optional(&mut self, key: &str) -> Option<&'v Value> {
        self.0.remove(key).filter(|value| **value != Value::Null)
    }

    fn required(&mut self, key: &str) -> Result<&'v Value, InvalidAnswer> {
        self.optional(key).ok_or_else(|| invalid(format_args!("`{key}` is missing")))
    }

    fn text(&mut self, key: &str) -> Result<&'v str, InvalidAnswer> {
        let text = self.required(key)?.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX);
        text.ok_or_else(|| invalid(format_args!("`{key}` is no text of at most {TEXT_BYTES_MAX} bytes")))
    }

    fn list(&mut self, key: &str, most: usize) -> Result<&'v [Value], InvalidAnswer> {
        match self.optional(key) {
            None => Ok(&[]),
            Some(Value::Array(items)) if items.len() <= most => Ok(items),
            Some(_) => Err(invalid(format_args!("`{key}` is no list of at most {most}"))),
        }
    }

    fn finish(self, what: &str) -> Result<(), InvalidAnswer> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(invalid(format_args!("{what} has members that are not in the interface")))
    }
}

impl Answer {
    /// Reads the answer to a question of the generic interface.
    ///
    /// # Errors
    /// [`InvalidAnswer`]. An inspector that says it failed is `Ok(None)`.
    pub fn read(
        bytes: &[u8],
        inspector: &InspectorId,
        question: &Question<'_>,
    ) -> Result<Option<Self>, InvalidAnswer> {
        let value = read_json(bytes)?;
        let mut members = Members::of(&value, "it")?;
        if !matches!(members.required("v")?, Value::Number(version) if version.as_i64() == Some(1)) {
            return Err(invalid("`v` is not 1"));
        }
        if members.text("id")? != question.id && !crate::red::off("M04-answer") {
            return Err(invalid("`id` is of another question"));
        }
        let judgement = match members.text("verdict")? {
            "block" => Judgement::Block,
            "error" => Judgement::Error,
            "flag" => Judgement::Flag,
            "modified" => Judgement::Modified,
            "pass" => Judgement::Pass,
            _ => return Err(invalid("`verdict` is none of pass, flag, block, modified, error")),
        };
        let findings = members.list("findings", FINDINGS_MAX)?;
        let findings = findings.iter().map(|finding| read_finding(finding, inspector, question.batch));
        let findings = findings.collect::<Result<Vec<_>, _>>()?;
        let tags = members.list("add_labels", LABELS_MAX)?.iter().map(|tag| {
            let tag = tag.as_str().and_then(|text| Tag::parse(text).ok());
            tag.ok_or_else(|| invalid("`add_labels` holds something that is no tag"))
        });
        let add_tags = tags.collect::<Result<_, _>>()?;
        // What it would rather have sent is not used: arguments run as they were signed.
        members.list("parts", question.batch.len())?;
        let mut who = Members::of(members.required("inspector")?, "`inspector`")?;
        who.text("name")?;
        let version = who.text("version")?.to_owned();
        who.finish("`inspector`")?;
        if !matches!(members.optional("took_ms"), None | Some(Value::Number(_))) {
            return Err(invalid("`took_ms` is no number"));
        }
        members.finish("it")?;
        if judgement == Judgement::Error {
            return Ok(None);
        }
        Ok(Some(Self { findings, add_tags, version }.judged(inspector, judgement)))
    }

    /// An opinion is one finding more; "flag" only where it would otherwise have none.
    pub(super) fn judged(mut self, inspector: &InspectorId, judgement: Judgement) -> Self {
        let overall = match judgement {
            Judgement::Block => Some(Overall::Block),
            Judgement::Flag if self.findings.is_empty() => Some(Overall::Flag),
            Judgement::Modified => Some(Overall::Modified),
            Judgement::Error | Judgement::Flag | Judgement::Pass => None,
        };
        self.findings.extend(overall.map(|kind| Finding::overall(inspector, kind)));
        self
    }
}

pub(super) fn read_json(bytes: &[u8]) -> Result<Value, InvalidAnswer> {
    if bytes.len() > ANSWER_BYTES_MAX {
        return Err(invalid(format_args!("it has more than {ANSWER_BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("it is no UTF-8"))?;
    Value::parse(text).map_err(invalid)
}

fn read_finding(value: &Value, inspector: &InspectorId, batch: &Batch<'_>) -> Result<Finding, InvalidAnswer> {
    let mut members = Members::of(value, "a finding")?;
    let kind = FindingKind::parse(members.text("kind")?).map_err(|error| invalid(error.why))?;
    let detector = DetectorId::parse(members.text("detector")?).map_err(|error| invalid(error.why))?;
    let severity = match members.required("severity")? {
        Value::Number(number) => severity_of(number),
        _ => None,
    };
    let severity = severity.ok_or_else(|| invalid("`severity` is no number from 0 to 1"))?;
    let path = members.text("path")?;
    let piece = batch.iter().find(|piece| piece.path == path);
    if piece.is_none() && !path.is_empty() {
        return Err(invalid("a `path` is of nothing that was sent"));
    }
    let place = (offset(members.optional("start"))?, offset(members.optional("end"))?);
    let span = match (place, piece) {
        ((None, None), _) => None,
        ((Some(start), Some(end)), Some(piece)) => {
            let range =
                bytes_of(piece.text, start, end).ok_or_else(|| invalid("a place is outside of its text"))?;
            Some(span(&(piece.start + range.start..piece.start + range.end)))
        }
        _ => return Err(invalid("`start` and `end` go together, in a text that was sent")),
    };
    // It may quote what was found.
    if members.0.contains_key("reason") {
        members.text("reason")?;
    }
    members.finish("a finding")?;
    Ok(Finding { path: path.to_owned(), kind, inspector: inspector.clone(), detector, severity, span })
}

/// From 0 to 1, in hundredths, upwards.
pub(super) fn severity_of(number: &Number) -> Option<Severity> {
    let (whole, fraction) = number.as_str().split_once('.').unwrap_or((number.as_str(), ""));
    let hundredths: u8 = match (whole, fraction) {
        ("1", "") => 100,
        ("0", fraction) => {
            let digits: String = fraction.chars().chain("00".chars()).take(2).collect();
            let is_more = fraction.bytes().skip(2).any(|byte| byte != b'0');
            digits.parse::<u8>().ok()? + u8::from(is_more)
        }
        _ => return None,
    };
    Some(Severity::new(hundredths))
}

fn offset(value: Option<&Value>) -> Result<Option<usize>, InvalidAnswer> {
    let Some(value) = value else { return Ok(None) };
    let offset = match value {
        Value::Number(number) => number.as_i64().and_then(|number| usize::try_from(number).ok()),
        _ => None,
    };
    offset.map(Some).ok_or_else(|| invalid("a place is no whole number"))
}

/// Characters (Unicode scalar values) to bytes.
pub(super) fn bytes_of(text: &str, start: usize, end: usize) -> Option<std::ops::Range<usize>> {
    let at = |index: usize| {
        let mut starts = text.char_indices().map(|(offset, _)| offset).chain([text.len()]);
        starts.nth(index)
    };
    (start <= end).then_some(())?;
    Some(at(start)?..at(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{AgentId, Resource, TaskId, UserId},
        inspect::{Direction, Piece, Subject},
        time::Millis,
    };

    fn read(text: &str) -> Result<Option<Answer>, InvalidAnswer> {
        let (user, agent) = (UserId::parse("i", "kim").unwrap(), AgentId::parse("mailer").unwrap());
        let (task, resource) = (TaskId::parse("t-1").unwrap(), Resource::parse("tool.mail").unwrap());
        let batch = vec![
            Piece { path: "/body", start: 100, text: "é 4111" },
            Piece { path: "/to/0", start: 0, text: "kim" },
        ];
        let question = Question {
            id: "q1",
            direction: Direction::ToolArguments,
            subject: Subject { user: &user, agent: &agent, task: &task },
            resource: &resource,
            labels: &[],
            want: &[],
            batch: &batch,
            deadline: Millis(50),
            traceparent: None,
        };
        Answer::read(text.as_bytes(), &InspectorId::parse("dlp").unwrap(), &question)
    }

    /// An answer with these members beside those that have to be there.
    fn with(verdict: &str, more: &str) -> String {
        format!(r#"{{"v":1,"id":"q1","verdict":"{verdict}","inspector":{{"name":"x","version":"7"}}{more}}}"#)
    }

    const FOUND: &str = r#","findings":[{"kind":"card","detector":"luhn","severity":0.855,"path":"/body","start":2,"end":6,"reason":"4111"}]"#;

    #[test]
    fn a_whole_answer() {
        let answer =
            read(&with("flag", &format!(r#"{FOUND},"add_labels":["pci"],"took_ms":3"#))).unwrap().unwrap();
        assert_eq!(answer.findings.len(), 1);
        let finding = &answer.findings[0];
        assert_eq!(finding.fact().to_string(), r#"finding("/body", "card", "dlp.luhn", 86)"#);
        // The place is in bytes of the part, beyond the two bytes of the letter and the piece's own start.
        assert_eq!(finding.span, Some((103, 107)));
        assert!(!format!("{answer:?}").contains("4111"), "the reason is not kept");
        assert_eq!((answer.version.as_str(), answer.add_tags.len()), ("7", 1));
    }

    #[test]
    fn verdicts_are_findings_and_nothing_else() {
        let kinds = |text: &str| -> Vec<String> {
            let answer = read(text).unwrap().unwrap();
            answer.findings.iter().map(|finding| finding.kind.to_string()).collect()
        };
        assert_eq!(kinds(&with("pass", "")), [""; 0]);
        assert_eq!(kinds(&with("pass", FOUND)), ["card"]);
        assert_eq!(kinds(&with("flag", "")), ["flag"]);
        assert_eq!(kinds(&with("block", FOUND)), ["card", "block"]);
        assert_eq!(kinds(&with("modified", r#","parts":[{"path":"/body","text":"x"}]"#)), ["modified"]);
        assert_eq!(read(&with("error", "")), Ok(None));
    }

    #[test]
    fn m04_what_is_not_exactly_an_answer_is_none() {
        let found = |from: &str, to: &str| with("flag", &FOUND.replace(from, to));
        for (text, why) in [
            (String::new(), "not JSON"),
            ("ok".to_owned(), "not JSON"),
            ("[]".to_owned(), "no object"),
            ("{}".to_owned(), "`v` is missing"),
            (with("pass", "").replace("\"v\":1", "\"v\":2"), "`v` is not 1"),
            (with("pass", "").replace("q1", "q2"), "another question"),
            (with("pass", r#","id":"q1""#), "same key twice"),
            (with("fine", ""), "`verdict`"),
            (with("pass", r#","allow":true"#), "not in the interface"),
            (with("pass", r#","remove_labels":["pci"]"#), "not in the interface"),
            (with("pass", r#","add_labels":["Top Secret"]"#), "no tag"),
            (with("pass", r#","findings":{}"#), "no list"),
            (with("pass", "").replace("\"version\":\"7\"", "\"version\":7"), "`version`"),
            (found("card", "Card Number"), "may only hold"),
            (found("0.855", "1.1"), "`severity`"),
            (found("0.855", "-0.1"), "`severity`"),
            (found("/body", "/elsewhere"), "nothing that was sent"),
            (found("\"end\":6", "\"end\":7"), "outside of its text"),
            (found("\"end\":6", "\"end\":1"), "outside of its text"),
            (found(",\"end\":6", ""), "go together"),
            (found("\"reason\":", "\"match\":"), "not in the interface"),
            (" ".repeat(ANSWER_BYTES_MAX + 1), "more than"),
        ] {
            let said = read(&text).expect_err(&text).to_string();
            assert!(said.contains(why) && !said.contains("4111"), "{text}: {said}");
        }
    }

    #[test]
    fn severities_are_hundredths_upwards() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(100)),
            ("1.0", Some(100)),
            ("0.4", Some(40)),
            ("0.401", Some(41)),
            ("1e-5", Some(1)),
            ("2", None),
        ] {
            let found = severity_of(&Number::parse(text).unwrap()).map(Severity::hundredths);
            assert_eq!(found, expected, "{text}");
        }
    }
}
