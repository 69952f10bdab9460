//! `NeMo` Guardrails, as its server speaks since 0.24: `POST /v1/checks`, answered with a status.
//!
//! The kind of rails is always named: without it the server runs none where it finds no message of a role it knows, and
//! says `passed`; with it, it says so if there are none (422). What a rail would have written instead is not used. The
//! server tells no place, so a finding has one only if a single text was sent.

use super::{Answer, Batch, Direction, Finding, Judgement, answer, presidio::slug};
use crate::{
    digest::Digest,
    ids::{DetectorId, InspectorId},
    json::Value,
};
use answer::{InvalidAnswer, invalid};

/// How the server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The configuration of the server that holds the rails.
    pub config_id: String,
}

impl Settings {
    /// What the body of a request depends on.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of("writ/v1/inspect-nemo", &[self.config_id.as_bytes()])
    }

    /// The body of a request, which is also what its answer depends on. What an agent wrote goes through the output
    /// rails, what it is given through the input rails.
    #[must_use]
    pub fn request(&self, direction: Direction, batch: &Batch<'_>) -> String {
        let (role, rails) = match direction {
            Direction::Message | Direction::ToolArguments => ("assistant", "output"),
            Direction::ToolResult => ("user", "input"),
        };
        let text = batch.iter().map(|piece| piece.text).collect::<Vec<_>>().join("\n\n");
        let message: [(_, Value); 2] = [("content", text.into()), ("role", role.into())];
        let guardrails: [(_, Value); 2] =
            [("config_id", self.config_id.as_str().into()), ("rail_types", Value::Array(vec![rails.into()]))];
        let members: [(_, Value); 3] = [
            ("guardrails", guardrails.into_iter().collect()),
            ("messages", Value::Array(vec![message.into_iter().collect()])),
            ("model", "".into()),
        ];
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
        let value = answer::read_json(bytes)?;
        let status = value.get("status").and_then(Value::as_str);
        let judgement = match status {
            Some("blocked") => Judgement::Block,
            Some("modified") => Judgement::Modified,
            Some("passed") => Judgement::Pass,
            _ => return Err(invalid("`status` is none of passed, modified, blocked")),
        };
        let nothing = Answer {
            findings: Vec::new(),
            add_tags: std::collections::BTreeSet::new(),
            version: String::new(),
        };
        let mut answer = nothing.judged(inspector, judgement);
        let rail = value.get("rail").and_then(Value::as_str).map(|rail| DetectorId::parse(slug(rail)));
        for finding in &mut answer.findings {
            if let Some(Ok(rail)) = &rail {
                finding.detector = rail.clone();
            }
            if let [piece] = batch.as_slice() {
                *finding = Finding { path: piece.path.to_owned(), ..finding.clone() };
            }
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Piece;

    fn read(text: &str, batch: &Batch<'_>) -> Option<Vec<String>> {
        let settings = Settings { config_id: "dlp".into() };
        let answer = settings.read(text.as_bytes(), &InspectorId::parse("rails").unwrap(), batch).ok()?;
        Some(answer.findings.iter().map(|finding| finding.fact().to_string()).collect())
    }

    #[test]
    fn a_status_is_a_finding_or_none() {
        let one = vec![Piece { path: "/body", start: 0, text: "x" }];
        let two = vec![one[0], Piece { path: "/to", start: 0, text: "y" }];
        // As nemoguardrails 0.24.1 writes them.
        let blocked = r#"{"status":"blocked","content":"I'm sorry, I can't respond to that.","rail":"regex check output"}"#;
        assert_eq!(
            read(blocked, &one).unwrap(),
            [r#"finding("/body", "block", "rails.regex-check-output", 100)"#]
        );
        assert_eq!(
            read(blocked, &two).unwrap(),
            [r#"finding("", "block", "rails.regex-check-output", 100)"#]
        );
        assert_eq!(read(r#"{"status":"passed","content":"fine"}"#, &one).unwrap(), [""; 0]);
        assert_eq!(
            read(r#"{"status":"modified","content":"z"}"#, &one).unwrap(),
            [r#"finding("/body", "modified", "rails.verdict", 100)"#]
        );
        for text in
            ["", "{}", r#"{"status":"ok"}"#, r#"{"status":true}"#, r#"{"error":{"message":"passed"}}"#]
        {
            assert_eq!(read(text, &one), None, "{text}");
        }
    }

    #[test]
    fn the_rails_are_named_by_the_way_the_text_goes() {
        let batch = vec![Piece { path: "/body", start: 0, text: "x" }];
        let settings = Settings { config_id: "dlp".into() };
        assert_eq!(
            settings.request(Direction::ToolResult, &batch),
            r#"{"guardrails":{"config_id":"dlp","rail_types":["input"]},"messages":[{"content":"x","role":"user"}],"model":""}"#
        );
        assert!(settings.request(Direction::ToolArguments, &batch).contains(r#"["output"]"#));
    }
}
