//! Presidio's analyzer, as its REST service speaks: `POST /analyze` with one text, answered with a list of places.
//!
//! Version 2.2. Places are in characters, scores from 0 to 1. The texts of a batch are sent as one, with blank lines
//! between them. What the service says beyond type, place, score and recognizer is not read.

use std::ops::Range;

use super::{Answer, Batch, Finding, Severity, answer, span};
use crate::{
    digest::Digest,
    ids::{DetectorId, FindingKind, InspectorId},
    json::Value,
};
use answer::{InvalidAnswer, bytes_of, invalid, severity_of};

/// Stands between two texts.
const BETWEEN: &str = "\n\n";
/// Most findings of one answer.
const FINDINGS_MAX: usize = 1_000;

/// How the service is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The language of the texts, `en`.
    pub language: String,
    /// Types that are looked for, as `CREDIT_CARD`; all if none is named.
    pub entities: Vec<String>,
    /// Least score that is told.
    pub score_min: Severity,
}

impl Settings {
    /// What the body of a request depends on.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of("writ/v1/inspect-presidio", &[format!("{self:?}").as_bytes()])
    }

    /// The body of a request about a batch, which is also what its answer depends on.
    #[must_use]
    pub fn request(&self, batch: &Batch<'_>) -> String {
        let mut members: Vec<(&str, Value)> =
            vec![("language", self.language.as_str().into()), ("text", joined(batch).into())];
        if !self.entities.is_empty() {
            let entities = self.entities.iter().map(|entity| entity.as_str().into()).collect();
            members.push(("entities", Value::Array(entities)));
        }
        members.into_iter().collect::<Value>().to_string()
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// [`InvalidAnswer`].
    pub fn read(
        &self,
        bytes: &[u8],
        inspector: &InspectorId,
        batch: &Batch<'_>,
    ) -> Result<Answer, InvalidAnswer> {
        let Value::Array(items) = answer::read_json(bytes)? else { return Err(invalid("it is no list")) };
        if items.len() > FINDINGS_MAX {
            return Err(invalid(format_args!("it has more than {FINDINGS_MAX} findings")));
        }
        let text = joined(batch);
        let found = items.iter().map(|item| read_item(item, inspector, batch, &text));
        let mut findings = found.collect::<Result<Vec<_>, _>>()?;
        findings.retain(|finding| finding.severity >= self.score_min);
        Ok(Answer { findings, add_tags: std::collections::BTreeSet::new(), version: String::new() })
    }
}

fn joined(batch: &Batch<'_>) -> String {
    batch.iter().map(|piece| piece.text).collect::<Vec<_>>().join(BETWEEN)
}

fn read_item(
    item: &Value,
    inspector: &InspectorId,
    batch: &Batch<'_>,
    text: &str,
) -> Result<Finding, InvalidAnswer> {
    let number = |key: &str| match item.get(key) {
        Some(Value::Number(number)) => Ok(number),
        _ => Err(invalid(format_args!("`{key}` is no number"))),
    };
    let place = |key: &str| {
        let place = number(key)?.as_i64().and_then(|number| usize::try_from(number).ok());
        place.ok_or_else(|| invalid(format_args!("`{key}` is no place")))
    };
    let entity =
        item.get("entity_type").and_then(Value::as_str).ok_or_else(|| invalid("`entity_type` is no text"))?;
    let severity =
        severity_of(number("score")?).ok_or_else(|| invalid("`score` is no number from 0 to 1"))?;
    let range = bytes_of(text, place("start")?, place("end")?)
        .ok_or_else(|| invalid("a place is outside of the text"))?;
    let recognizer = item.get("recognition_metadata").and_then(|more| more.get("recognizer_name"));
    let detector = recognizer.and_then(Value::as_str).map_or_else(|| "presidio".to_owned(), slug);
    let (path, span) = piece_of(batch, &range);
    Ok(Finding {
        path,
        kind: kind_of(entity)?,
        inspector: inspector.clone(),
        detector: DetectorId::parse(detector).map_err(|error| invalid(error.why))?,
        severity,
        span,
    })
}

/// The kinds our own detectors have names for have the same name here, so that rules need not know who looked.
fn kind_of(entity: &str) -> Result<FindingKind, InvalidAnswer> {
    let kind = match entity {
        "CREDIT_CARD" => "card".to_owned(),
        "EMAIL_ADDRESS" => "email".to_owned(),
        "IBAN_CODE" => "iban".to_owned(),
        "PHONE_NUMBER" => "phone".to_owned(),
        other => slug(other),
    };
    FindingKind::parse(kind).map_err(|error| invalid(error.why))
}

/// A name in the grammar of ids: `UK_NHS` as `uk_nhs`, `CreditCardRecognizer` as `creditcardrecognizer`.
pub(super) fn slug(name: &str) -> String {
    let plain = |character: char| match character.to_ascii_lowercase() {
        kept @ ('a'..='z' | '0'..='9' | '_' | '-') => kept,
        _ => '-',
    };
    name.chars().map(plain).take(crate::ids::ID_BYTES_MAX).collect()
}

/// Of which text a place in all of them is.
fn piece_of(batch: &Batch<'_>, range: &Range<usize>) -> (String, Option<(usize, usize)>) {
    let mut begin = 0;
    for piece in batch {
        let end = begin + piece.text.len();
        if range.start < end + BETWEEN.len() {
            let within = range.start.clamp(begin, end) - begin..range.end.clamp(begin, end) - begin;
            return (
                piece.path.to_owned(),
                Some(span(&(piece.start + within.start..piece.start + within.end))),
            );
        }
        begin = end + BETWEEN.len();
    }
    (String::new(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Piece;

    fn batch() -> Batch<'static> {
        vec![
            Piece { path: "/note", start: 0, text: "é" },
            Piece { path: "/body", start: 8, text: "card 4111 1111 1111 1111" },
        ]
    }

    fn settings() -> Settings {
        Settings { language: "en".into(), entities: Vec::new(), score_min: Severity::new(40) }
    }

    fn read(text: &str) -> Result<Vec<Finding>, InvalidAnswer> {
        let read = settings().read(text.as_bytes(), &InspectorId::parse("pii").unwrap(), &batch());
        read.map(|answer| answer.findings)
    }

    /// As presidio-analyzer 2.2.366 writes it.
    const ANSWER: &str = r#"[{"entity_type": "CREDIT_CARD", "start": 8, "end": 27, "score": 1.0, "analysis_explanation": null, "recognition_metadata": {"recognizer_name": "CreditCardRecognizer", "recognizer_identifier": "CreditCardRecognizer_140"}}, {"entity_type": "DATE_TIME", "start": 0, "end": 1, "score": 0.1}]"#;

    #[test]
    fn texts_go_as_one_and_places_come_back_to_their_own() {
        assert_eq!(
            settings().request(&batch()),
            r#"{"language":"en","text":"é\n\ncard 4111 1111 1111 1111"}"#
        );
        let findings = read(ANSWER).unwrap();
        assert_eq!(findings.len(), 1, "what has too low a score is left out");
        let fact = findings[0].fact().to_string();
        assert_eq!(fact, r#"finding("/body", "card", "pii.creditcardrecognizer", 100)"#);
        assert_eq!(findings[0].span, Some((13, 32)));
    }

    #[test]
    fn m04_what_is_not_presidios_is_no_answer() {
        for (from, to) in [
            ("[{", "{"),
            ("\"start\": 8", "\"start\": -8"),
            ("\"end\": 27", "\"end\": 2700"),
            ("\"score\": 1.0", "\"score\": 7"),
            ("\"score\": 1.0", "\"score\": \"high\""),
            ("\"entity_type\": \"CREDIT_CARD\"", "\"entity_type\": 5"),
            ("CREDIT_CARD", ""),
        ] {
            assert!(read(&ANSWER.replacen(from, to, 1)).is_err(), "{from} as {to}");
        }
        assert!(read(r#"{"error":"no"}"#).is_err());
        assert_eq!(read("[]"), Ok(vec![]));
    }
}
