//! Trace context and the names used in traces, all in one place.
//!
//! A trace is navigation: a caller can claim any. The evidence is the audit stream; the two share trace id and
//! audit sequence. Names follow OpenTelemetry's `gen_ai` conventions and `OpenInference` where they have one, and
//! are `writ.*` otherwise; agents, nodes and brokers take them from here.

use std::fmt;

use crate::{
    record::{DecisionId, RecordedDecision, Verdicted},
    time::Timestamp,
};

/// W3C trace context (Trace Context Level 2, section 3.2): where the caller's trace stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes, not all zero.
    pub trace: [u8; 16],
    /// 8 bytes, not all zero.
    pub span: [u8; 8],
    /// Whether the caller records the trace.
    pub sampled: bool,
}

/// The header's name; NATS headers keep their case.
pub const TRACEPARENT: &str = "traceparent";

impl TraceContext {
    /// Reads a `traceparent` of version 00; anything else is no context.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if version != "00" || parts.next().is_some() || ![trace, span, flags].into_iter().all(lower) {
            return None;
        }
        let trace: [u8; 16] = hex::decode(trace).ok()?.try_into().ok()?;
        let span: [u8; 8] = hex::decode(span).ok()?.try_into().ok()?;
        let flags: [u8; 1] = hex::decode(flags).ok()?.try_into().ok()?;
        let [flags] = flags;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// Writes the `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", hex::encode(self.trace), hex::encode(self.span))
    }
}

/// Attribute names.
pub mod attribute {
    /// Joins traces into a session: the task id. Phoenix reads it.
    pub const SESSION_ID: &str = "session.id";
    /// The user.
    pub const USER_ID: &str = "user.id";
    /// The task id, under the name `gen_ai` has for it.
    pub const CONVERSATION_ID: &str = "gen_ai.conversation.id";
    /// `invoke_agent`, `execute_tool`, `run_guardrail`.
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// The agent's id.
    pub const AGENT_ID: &str = "gen_ai.agent.id";
    /// The agent's name.
    pub const AGENT_NAME: &str = "gen_ai.agent.name";
    /// The tool's name.
    pub const TOOL_NAME: &str = "gen_ai.tool.name";
    /// The kind of tool.
    pub const TOOL_TYPE: &str = "gen_ai.tool.type";
    /// The call id.
    pub const TOOL_CALL_ID: &str = "gen_ai.tool.call.id";
    /// The guardrail's name.
    pub const GUARDRAIL_COMPONENT: &str = "gen_ai.guardrail.component.name";
    /// What the guardrail looked at.
    pub const GUARDRAIL_TARGET: &str = "gen_ai.guardrail.target.type";
    /// What sort of input it was.
    pub const GUARDRAIL_SUBTYPE: &str = "gen_ai.guardrail.target.subtype";
    /// `allow`, `deny`, `escalate`.
    pub const GUARDRAIL_VERDICT: &str = "gen_ai.guardrail.verdict.type";
    /// Why.
    pub const GUARDRAIL_REASON: &str = "gen_ai.guardrail.verdict.reason";
    /// `allow`, `block`.
    pub const GUARDRAIL_ACTION: &str = "gen_ai.guardrail.action.type";
    /// The policy.
    pub const SECURITY_POLICY: &str = "gen_ai.security.policy.id";
    /// The rule.
    pub const SECURITY_RULE: &str = "gen_ai.security.policy.rule.id";
    /// `AGENT`, `CHAIN`, `GUARDRAIL`, `TOOL`: how `OpenInference` readers draw the span.
    pub const OPENINFERENCE_KIND: &str = "openinference.span.kind";
    /// Node of the agent graph.
    pub const GRAPH_NODE: &str = "graph.node.id";
    /// Its parent.
    pub const GRAPH_PARENT: &str = "graph.node.parent_id";
    /// Human-readable input.
    pub const INPUT: &str = "input.value";
    /// Human-readable output.
    pub const OUTPUT: &str = "output.value";
    /// Small JSON that Phoenix can filter by.
    pub const METADATA: &str = "metadata";
    /// Set on errors.
    pub const ERROR_TYPE: &str = "error.type";
    /// The messaging system of a span that crosses the bus.
    pub const MESSAGING_SYSTEM: &str = "messaging.system";
    /// The subject.
    pub const MESSAGING_DESTINATION: &str = "messaging.destination.name";

    /// The task id.
    pub const TASK: &str = "writ.task.id";
    /// The verdict: `allow`, `deny`, `hold`.
    pub const VERDICT: &str = "writ.verdict";
    /// The plane of the first reason.
    pub const PLANE: &str = "writ.plane";
    /// The policy revision.
    pub const POLICY: &str = "writ.policy.sha256";
    /// The code of the first reason.
    pub const DENY_REASON: &str = "writ.deny.reason";
    /// Codes that would have denied it if it were not in observe mode.
    pub const WOULD_DENY: &str = "writ.would_deny";
    /// The agents of the chain, in order.
    pub const CHAIN: &str = "writ.chain";
    /// How many hops.
    pub const CHAIN_DEPTH: &str = "writ.chain.depth";
    /// Stable ids of the capability's blocks.
    pub const BLOCK_IDS: &str = "writ.capability.block_ids";
    /// Who recorded it.
    pub const AUDIT_ORIGIN: &str = "writ.audit.origin";
    /// The record's position in its run.
    pub const AUDIT_SEQ: &str = "writ.audit.seq";
    /// The record's name, `origin/boot/seq`.
    pub const RECORD_ID: &str = "writ.record.id";
    /// The record's digest, as receipts and the log have it.
    pub const RECORD_DIGEST: &str = "writ.record.digest";
    /// The class of a record: `allow`, `deny`, `hold`, `outcome`, `void`.
    pub const RECORD_KIND: &str = "writ.record.kind";
    /// The record that allowed what ended, as `origin/boot/seq`.
    pub const RECORD_INTENT: &str = "writ.record.intent";
    /// How many alike verdicts a record stands for.
    pub const RECORD_COUNT: &str = "writ.record.count";
    /// The tenant.
    pub const TENANT: &str = "writ.tenant";
    /// The resource.
    pub const RESOURCE: &str = "writ.resource";
    /// The action.
    pub const ACTION: &str = "writ.action";
    /// The operator who asked something of the control plane.
    pub const OPERATOR: &str = "writ.operator";
    /// The NATS user a request came over.
    pub const CONNECTION: &str = "writ.connection";
    /// The rules that decided, as `file:line`.
    pub const RULES: &str = "writ.policy.rules";
    /// Kinds of what inspectors found.
    pub const FINDINGS: &str = "writ.findings";
    /// Size of a result, in bytes.
    pub const RESULT_BYTES: &str = "writ.result.bytes";
    /// How long a call ran, in milliseconds.
    pub const ELAPSED: &str = "writ.elapsed_ms";
    /// Labels a result carried.
    pub const LABELS_OUT: &str = "writ.labels.out";
    /// Labels that came in.
    pub const LABELS_IN: &str = "writ.labels.in";
    /// The agent that delegated.
    pub const DELEGATION_FROM: &str = "writ.delegation.from";
    /// The agent it delegated to.
    pub const DELEGATION_TO: &str = "writ.delegation.to";
    /// That no broker was asked.
    pub const DELEGATION_OFFLINE: &str = "writ.delegation.offline";
    /// The conditions added.
    pub const DELEGATION_CHECKS: &str = "writ.delegation.checks";
    /// The outcome's status.
    pub const OUTCOME: &str = "writ.outcome";
    /// The approval a call waits for or was given.
    pub const APPROVAL_ID: &str = "writ.approval.id";
    /// Who gave it.
    pub const APPROVAL_BY: &str = "writ.approval.by";
    /// How long the call had waited, in seconds.
    pub const APPROVAL_WAITED: &str = "writ.approval.waited_s";
    /// The trace a resumed call was held in.
    pub const RESUMES_TRACE: &str = "writ.resumes.trace_id";
    /// What a link is about.
    pub const LINK_KIND: &str = "writ.link.kind";
}

/// Span names.
pub mod span {
    /// A held call taken up again.
    #[must_use]
    pub fn resume(what: &str) -> String {
        format!("resume {what}")
    }

    /// The user's task, at the agent that starts it.
    #[must_use]
    pub fn task(kind: &str) -> String {
        format!("task {kind}")
    }
    /// The broker's verdict on a request for a capability.
    #[must_use]
    pub fn issue(agent: &str) -> String {
        format!("issue {agent}")
    }
    /// An agent at work.
    #[must_use]
    pub fn invoke_agent(agent: &str) -> String {
        format!("invoke_agent {agent}")
    }
    /// A hand-over.
    #[must_use]
    pub fn delegate(agent: &str) -> String {
        format!("delegate {agent}")
    }
    /// A call, at the agent that makes it.
    #[must_use]
    pub fn execute_tool(tool: &str) -> String {
        format!("execute_tool {tool}")
    }
    /// A verdict, first word first.
    #[must_use]
    pub fn verdict(verdict: &str, target: &str) -> String {
        format!("{verdict} {target}")
    }
    /// The tool at work.
    #[must_use]
    pub fn run(tool: &str) -> String {
        format!("run {tool}")
    }
}

/// The value of a span attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for AttributeValue {
    fn from(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<Vec<String>> for AttributeValue {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

/// Which side of a message a span stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Takes a message off the bus.
    Consumer,
    /// Within one process.
    Internal,
}

/// A finished span as data: the decision cores make it, telemetry exports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanRecord {
    /// Its name.
    pub name: String,
    /// Its side.
    pub kind: SpanKind,
    /// Where the caller's trace stood; a root if absent.
    pub parent: Option<TraceContext>,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its attributes.
    pub attributes: Vec<(&'static str, AttributeValue)>,
    /// What went wrong, if something did: turns the span red in a viewer.
    pub error: Option<String>,
}

/// Verdict spans: `writ.*` and its mirror in `gen_ai.*` and `OpenInference`, made in one place.
#[must_use]
pub fn verdict_attributes(verdict: &Verdicted, id: &DecisionId) -> Vec<(&'static str, AttributeValue)> {
    let (word, mirror, action) = match verdict.decision {
        RecordedDecision::Allow => ("allow", "allow", "allow"),
        RecordedDecision::Deny => ("deny", "deny", "block"),
        RecordedDecision::Hold => ("hold", "escalate", "block"),
    };
    let reason = verdict.reasons.first();
    let chain: Vec<String> = verdict
        .who
        .agent
        .iter()
        .map(ToString::to_string)
        .chain(verdict.who.hops.iter().map(|hop| hop.to.to_string()))
        .collect();
    let task = verdict.who.task.as_ref().map(ToString::to_string).unwrap_or_default();
    let target = match &verdict.right {
        Some(asked) => format!("the right {}", asked.right),
        None => verdict.what.resource.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let mut attributes: Vec<(&'static str, AttributeValue)> = vec![
        (attribute::VERDICT, word.into()),
        (attribute::AUDIT_ORIGIN, format!("{}/{}", id.origin, id.boot).into()),
        (attribute::AUDIT_SEQ, id.seq.into()),
        (attribute::CHAIN_DEPTH, (verdict.who.hops.len() as u64).into()),
        (attribute::OPERATION_NAME, "run_guardrail".into()),
        (attribute::OPENINFERENCE_KIND, "GUARDRAIL".into()),
        (attribute::GUARDRAIL_COMPONENT, "writ".into()),
        (attribute::GUARDRAIL_TARGET, "input".into()),
        (attribute::GUARDRAIL_SUBTYPE, "tool_call".into()),
        (attribute::GUARDRAIL_VERDICT, mirror.into()),
        (attribute::GUARDRAIL_ACTION, action.into()),
        (attribute::MESSAGING_SYSTEM, "nats".into()),
        (attribute::INPUT, format!("{}\n{target}", chain.join(" -> ")).into()),
        (attribute::METADATA, format!(r#"{{"verdict":"{word}","task":"{task}"}}"#).into()),
    ];
    if !task.is_empty() {
        attributes.extend(
            [attribute::SESSION_ID, attribute::CONVERSATION_ID, attribute::TASK]
                .map(|name| (name, task.as_str().into())),
        );
    }
    if let Some(user) = &verdict.who.user {
        attributes.push((attribute::USER_ID, user.subject().into()));
    }
    if !chain.is_empty() {
        attributes.push((attribute::CHAIN, chain.into()));
    }
    if !verdict.who.hops.is_empty() {
        let ids: Vec<String> = verdict.who.hops.iter().map(|hop| hop.id.short()).collect();
        attributes.push((attribute::BLOCK_IDS, ids.into()));
    }
    if let Some(policy) = verdict.basis.policy {
        attributes.push((attribute::POLICY, policy.to_string().into()));
        attributes.push((attribute::SECURITY_POLICY, policy.0.short().into()));
    }
    if !verdict.would_deny.is_empty() {
        let codes: Vec<String> = verdict.would_deny.iter().map(|reason| reason.code.to_string()).collect();
        attributes.push((attribute::WOULD_DENY, codes.into()));
    }
    if let Some(rule) = verdict.basis.rules.first() {
        attributes.push((attribute::SECURITY_RULE, rule.as_str().into()));
    }
    if let Some(approval) = &verdict.approval {
        attributes.push((attribute::APPROVAL_ID, approval.id.to_string().into()));
        if !approval.by.is_empty() {
            let by: Vec<String> = approval.by.iter().map(ToString::to_string).collect();
            attributes.push((attribute::APPROVAL_BY, by.into()));
        }
        if let Some(waited) = approval.waited {
            attributes.push((attribute::APPROVAL_WAITED, (waited.0 / 1_000).into()));
        }
    }
    if let Some(label) = &verdict.basis.label {
        let names: Vec<String> = label.names().into_iter().map(str::to_owned).collect();
        attributes.push((attribute::LABELS_IN, names.into()));
    }
    let told = match reason {
        Some(reason) => {
            attributes.push((attribute::PLANE, reason.code.plane().as_str().into()));
            attributes.push((attribute::DENY_REASON, reason.code.as_str().into()));
            attributes.push((attribute::GUARDRAIL_REASON, reason.code.as_str().into()));
            format!("\n{}: {}", reason.code, reason.told)
        }
        None => String::new(),
    };
    attributes.push((attribute::OUTPUT, format!("{word}{told}\naudit #{}", id.seq).into()));
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_round_trips_and_nothing_else_is_one() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceContext::parse(text).unwrap().to_string(), text);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}
