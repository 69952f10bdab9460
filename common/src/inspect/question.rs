//! What an inspector is asked, as JSON: one body over HTTP and over the bus.

use super::{Batch, Direction};
use crate::{
    digest::Digest,
    ids::{AgentId, InspectorId, Resource, TaskId, UserId},
    json::Value,
    time::Millis,
};

/// On whose behalf.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'q> {
    /// The user.
    pub user: &'q UserId,
    /// The agent that calls.
    pub agent: &'q AgentId,
    /// The task.
    pub task: &'q TaskId,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question<'q> {
    /// Names it; the answer has to repeat it. Nobody can guess it.
    pub id: &'q str,
    /// Which way the texts go.
    pub direction: Direction,
    /// On whose behalf.
    pub subject: Subject<'q>,
    /// On what.
    pub resource: &'q Resource,
    /// Names of the tags the data has so far (`public` for none, `top` for all).
    pub labels: &'q [String],
    /// What is looked for: `pii`, `injection`, `secrets`, `policy`.
    pub want: &'q [String],
    /// The texts.
    pub batch: &'q Batch<'q>,
    /// How long the answer is waited for.
    pub deadline: Millis,
    /// Where the trace stands (W3C Trace Context).
    pub traceparent: Option<&'q str>,
}

impl Question<'_> {
    /// The body of the request.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut members = self.constant();
        members.push(("id", self.id.into()));
        members.push(("deadline_ms", number(self.deadline.0)));
        members.extend(self.traceparent.map(|trace| ("traceparent", trace.into())));
        members.into_iter().collect::<Value>().to_string()
    }

    /// What an answer may depend on: all of it but the id, the deadline and the trace.
    #[must_use]
    pub fn digest(&self, inspector: &InspectorId, version: &str, configuration: &Digest) -> Digest {
        let content = self.constant().into_iter().collect::<Value>().to_string();
        digest(inspector, version, configuration, content.as_bytes())
    }

    fn constant(&self) -> Vec<(&'static str, Value)> {
        let texts = |texts: &[String]| Value::Array(texts.iter().map(|text| text.as_str().into()).collect());
        let parts = self.batch.iter().map(|piece| {
            let part: [(_, Value); 3] =
                [("mime", "text/plain".into()), ("path", piece.path.into()), ("text", piece.text.into())];
            part.into_iter().collect()
        });
        let user = format!("{} {}", self.subject.user.issuer(), self.subject.user.subject());
        let subject: [(_, Value); 3] = [
            ("agent", self.subject.agent.as_str().into()),
            ("task", self.subject.task.as_str().into()),
            ("user", user.into()),
        ];
        let role = match self.direction {
            Direction::Message | Direction::ToolArguments => "assistant",
            Direction::ToolResult => "tool",
        };
        vec![
            ("direction", self.direction.as_str().into()),
            ("labels", texts(self.labels)),
            ("parts", Value::Array(parts.collect())),
            ("role", role.into()),
            ("subject", subject.into_iter().collect()),
            ("tool", self.resource.as_str().into()),
            ("v", 1.into()),
            ("want", texts(self.want)),
        ]
    }
}

fn number(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// The key under which an answer is remembered.
pub(super) fn digest(
    inspector: &InspectorId,
    version: &str,
    configuration: &Digest,
    content: &[u8],
) -> Digest {
    let parts = [inspector.as_str().as_bytes(), version.as_bytes(), configuration.as_bytes(), content];
    Digest::of("writ/v1/inspect", &parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Piece;

    #[test]
    fn the_body_is_the_one_that_is_documented_and_its_digest_leaves_out_what_changes() {
        let (user, agent) = (UserId::parse("https://idp", "kim").unwrap(), AgentId::parse("mailer").unwrap());
        let (task, resource) = (TaskId::parse("t-1").unwrap(), Resource::parse("tool.mail").unwrap());
        let batch = vec![Piece { path: "/to", start: 0, text: "a\"b" }];
        let question = |id, deadline, task| Question {
            id,
            direction: Direction::ToolArguments,
            subject: Subject { user: &user, agent: &agent, task },
            resource: &resource,
            labels: &[],
            want: &[],
            batch: &batch,
            deadline,
            traceparent: None,
        };
        assert_eq!(
            question("i", Millis(50), &task).to_json(),
            r#"{"deadline_ms":50,"direction":"tool_args","id":"i","labels":[],"parts":[{"mime":"text/plain","path":"/to","text":"a\"b"}],"role":"assistant","subject":{"agent":"mailer","task":"t-1","user":"https://idp kim"},"tool":"tool.mail","v":1,"want":[]}"#
        );
        let inspector = InspectorId::parse("dlp").unwrap();
        let key = |id, deadline, task, version: &str| {
            question(id, deadline, task).digest(&inspector, version, &Digest::plain(b"c"))
        };
        let one = key("i", Millis(50), &task, "1");
        assert_eq!(one, key("j", Millis(60), &task, "1"));
        assert_ne!(one, key("i", Millis(50), &task, "2"));
        assert_ne!(one, key("i", Millis(50), &TaskId::parse("t-2").unwrap(), "1"));
    }
}
