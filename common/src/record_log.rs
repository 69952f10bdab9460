//! A record as one log entry, for systems that collect logs (SIEM).
//!
//! Made of what the record holds and nothing else: digests of arguments and results, never their content. It is not
//! evidence: logs can be lost on the way and are not signed. `writ.record.id` and `writ.record.digest` lead to the
//! record in the audit stream, which is.

use crate::{
    digest::Digest,
    ids::ResourceKind,
    ocsf,
    reason::ReasonCode,
    record::{
        Outcome, OutcomeStatus, Record, RecordBody, RecordedDecision, RecordedFinding, RecordedReason,
        TraceRef, Verdicted, Void, What, Who,
    },
    time::Timestamp,
    trace::{AttributeValue, attribute, verdict_attributes},
};

/// What the body of a log entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBody {
    /// One line for people.
    Text,
    /// An OCSF event as JSON; see [`ocsf`].
    Ocsf,
}

impl LogBody {
    /// Reads the word of a setting.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "text" => Some(Self::Text),
            "ocsf" => Some(Self::Ocsf),
            _ => None,
        }
    }
}

/// How much an entry asks for attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogSeverity {
    /// As it should be: allowed, waiting for people, done.
    Info,
    /// Refused, or it did not end well.
    Warn,
    /// Somebody has to find out what happened.
    Error,
}

/// One log entry as data: made here, exported by telemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLog {
    /// The event's name: `writ.verdict`, `writ.outcome`, `writ.void`.
    pub name: &'static str,
    /// When the record was prepared, by the recorder's wall clock.
    pub at: Timestamp,
    /// How much it asks for attention.
    pub severity: LogSeverity,
    /// Where the trace continues, if the record says so.
    pub trace: Option<TraceRef>,
    /// One line, or an OCSF event.
    pub body: String,
    /// Under the names spans have.
    pub attributes: Vec<(&'static str, AttributeValue)>,
}

impl RecordLog {
    /// The entry of a record; `digest` is the record's.
    #[must_use]
    pub fn of(record: &Record, digest: &Digest, body: LogBody) -> Self {
        let attributes = attributes(record, digest);
        Self {
            name: name(record),
            at: record.at,
            severity: severity(record),
            trace: match &record.body {
                RecordBody::Verdict(verdicted) => verdicted.trace.clone(),
                RecordBody::Outcome(_) | RecordBody::Void(_) => None,
            },
            body: match body {
                LogBody::Text => in_words(record),
                LogBody::Ocsf => ocsf::event(record, &attributes).to_string(),
            },
            attributes,
        }
    }
}

/// The event's name.
pub(crate) fn name(record: &Record) -> &'static str {
    match &record.body {
        RecordBody::Outcome(_) => "writ.outcome",
        RecordBody::Verdict(_) => "writ.verdict",
        RecordBody::Void(_) => "writ.void",
    }
}

pub(crate) fn severity(record: &Record) -> LogSeverity {
    match &record.body {
        RecordBody::Verdict(verdicted) => match verdicted.decision {
            RecordedDecision::Allow | RecordedDecision::Hold => LogSeverity::Info,
            RecordedDecision::Deny => LogSeverity::Warn,
        },
        RecordBody::Outcome(outcome) => match outcome.status {
            OutcomeStatus::Done => LogSeverity::Info,
            OutcomeStatus::Failed | OutcomeStatus::NotRun => LogSeverity::Warn,
            OutcomeStatus::UnknownOutcome => LogSeverity::Error,
        },
        RecordBody::Void(_) => LogSeverity::Warn,
    }
}

/// The first cause a record names.
pub(crate) fn cause(record: &Record) -> Option<&RecordedReason> {
    match &record.body {
        RecordBody::Outcome(outcome) => outcome.reason.as_ref(),
        RecordBody::Verdict(verdicted) => verdicted.reasons.first(),
        RecordBody::Void(void) => Some(&void.cause),
    }
}

/// Whom and what a record is about; outcomes name neither.
pub(crate) fn about(record: &Record) -> Option<(&Who, &What)> {
    match &record.body {
        RecordBody::Outcome(_) => None,
        RecordBody::Verdict(verdicted) => Some((&verdicted.who, &verdicted.what)),
        RecordBody::Void(void) => Some((&void.who, &void.what)),
    }
}

/// The record in one line.
pub(crate) fn in_words(record: &Record) -> String {
    let because = cause(record).map(|cause| format!(": {}: {}", cause.code, cause.told)).unwrap_or_default();
    match &record.body {
        RecordBody::Verdict(verdicted) => {
            let Verdicted { decision, who, what, count, .. } = &**verdicted;
            let word = match decision {
                RecordedDecision::Allow => "allowed",
                RecordedDecision::Deny => "denied",
                RecordedDecision::Hold => "held for approval",
            };
            let times = if *count > 1 { format!(", {count} times") } else { String::new() };
            format!("{word}: {}, from {}{times}{because}", asked(what), asker(who))
        }
        RecordBody::Outcome(outcome) => {
            let Outcome { status, intent, .. } = &**outcome;
            let word = match status {
                OutcomeStatus::Done => "done",
                OutcomeStatus::Failed => "failed",
                OutcomeStatus::NotRun => "not run",
                OutcomeStatus::UnknownOutcome => "nobody knows whether it ran",
            };
            format!("{word}: what {intent} allowed{because}")
        }
        RecordBody::Void(void) => {
            let Void { who, what, .. } = &**void;
            format!("void: {}, from {}, came to nothing{because}", asked(what), asker(who))
        }
    }
}

fn asker(who: &Who) -> String {
    let mut agents: Vec<&str> = who.agent.iter().map(crate::ids::AgentId::as_str).collect();
    agents.extend(who.hops.iter().map(|hop| hop.to.as_str()));
    let who_asked = match (agents.is_empty(), &who.caller, &who.operator, &who.connection) {
        (false, ..) => format!("agent {}", agents.join(" -> ")),
        (_, Some(caller), ..) => format!("agent {caller}"),
        (_, None, Some(operator), _) => format!("operator {operator}"),
        (_, None, None, Some(connection)) => format!("connection {connection}"),
        _ => "somebody unknown".to_owned(),
    };
    match &who.user {
        Some(user) => format!("{who_asked} for user {}", user.subject()),
        None => who_asked,
    }
}

fn asked(what: &What) -> String {
    match (&what.action, &what.resource) {
        (Some(action), Some(resource)) => format!("{action} on {resource}"),
        (Some(action), None) => action.to_string(),
        (None, Some(resource)) => format!("a call on {resource}"),
        (None, None) => "a request that was not read".to_owned(),
    }
}

/// Attributes for readers of spans only: how a viewer draws them, and the bus.
fn is_for_spans_only(name: &str) -> bool {
    [
        attribute::OPENINFERENCE_KIND,
        attribute::INPUT,
        attribute::OUTPUT,
        attribute::METADATA,
        attribute::MESSAGING_SYSTEM,
    ]
    .contains(&name)
}

fn attributes(record: &Record, digest: &Digest) -> Vec<(&'static str, AttributeValue)> {
    let mut attributes: Vec<(&'static str, AttributeValue)> = vec![
        (attribute::RECORD_ID, record.id.to_string().into()),
        (attribute::RECORD_DIGEST, digest.to_string().into()),
        (attribute::RECORD_KIND, record.kind().as_str().into()),
        (attribute::TENANT, record.tenant.as_str().into()),
    ];
    if let Some((who, what)) = about(record) {
        name_who(&mut attributes, who);
        name_what(&mut attributes, what);
    }
    match &record.body {
        RecordBody::Verdict(verdicted) => {
            let shared = verdict_attributes(verdicted, &record.id);
            attributes.extend(shared.into_iter().filter(|(name, _)| !is_for_spans_only(name)));
            if !verdicted.basis.rules.is_empty() {
                attributes.push((attribute::RULES, verdicted.basis.rules.clone().into()));
            }
            if verdicted.count > 1 {
                attributes.push((attribute::RECORD_COUNT, verdicted.count.into()));
            }
            name_findings(&mut attributes, &verdicted.found);
        }
        RecordBody::Outcome(outcome) => {
            name_run(&mut attributes, record);
            attributes.push((attribute::OUTCOME, outcome.status.as_str().into()));
            attributes.push((attribute::RECORD_INTENT, outcome.intent.to_string().into()));
            attributes.push((attribute::TOOL_CALL_ID, outcome.call_id.to_string().into()));
            attributes.extend(outcome.result_bytes.map(|bytes| (attribute::RESULT_BYTES, bytes.into())));
            attributes.extend(outcome.elapsed.map(|elapsed| (attribute::ELAPSED, elapsed.0.into())));
            if let Some(label) = &outcome.label {
                let names: Vec<String> = label.names().into_iter().map(str::to_owned).collect();
                attributes.push((attribute::LABELS_OUT, names.into()));
            }
            attributes.extend(outcome.reason.as_ref().map(|reason| error_type(reason.code)));
            name_findings(&mut attributes, &outcome.found);
        }
        RecordBody::Void(void) => {
            name_run(&mut attributes, record);
            attributes.extend(void.who.user.iter().map(|user| (attribute::USER_ID, user.subject().into())));
            attributes.push(error_type(void.cause.code));
        }
    }
    attributes
}

fn error_type(code: ReasonCode) -> (&'static str, AttributeValue) {
    (attribute::ERROR_TYPE, code.as_str().into())
}

/// What verdicts have from spans, for records that have no span of their own.
fn name_run(attributes: &mut Vec<(&'static str, AttributeValue)>, record: &Record) {
    attributes.push((attribute::AUDIT_ORIGIN, format!("{}/{}", record.id.origin, record.id.boot).into()));
    attributes.push((attribute::AUDIT_SEQ, record.id.seq.into()));
    if let Some(task) = record.task() {
        attributes.extend(
            [attribute::SESSION_ID, attribute::CONVERSATION_ID, attribute::TASK]
                .map(|name| (name, task.as_str().into())),
        );
    }
}

fn name_who(attributes: &mut Vec<(&'static str, AttributeValue)>, who: &Who) {
    attributes.extend(who.caller.iter().map(|caller| (attribute::AGENT_NAME, caller.as_str().into())));
    attributes.extend(who.operator.iter().map(|operator| (attribute::OPERATOR, operator.as_str().into())));
    attributes
        .extend(who.connection.iter().map(|connection| (attribute::CONNECTION, connection.as_str().into())));
}

fn name_what(attributes: &mut Vec<(&'static str, AttributeValue)>, what: &What) {
    if let Some(resource) = &what.resource {
        attributes.push((attribute::RESOURCE, resource.as_str().into()));
        if resource.kind() == ResourceKind::Tool {
            attributes.push((attribute::TOOL_NAME, resource.name().into()));
        }
    }
    attributes.extend(what.action.iter().map(|action| (attribute::ACTION, action.as_str().into())));
    attributes.extend(what.call_id.map(|call_id| (attribute::TOOL_CALL_ID, call_id.to_string().into())));
}

fn name_findings(attributes: &mut Vec<(&'static str, AttributeValue)>, found: &[RecordedFinding]) {
    if !found.is_empty() {
        let kinds: Vec<String> = found.iter().map(|finding| finding.kind.to_string()).collect();
        attributes.push((attribute::FINDINGS, kinds.into()));
    }
}
