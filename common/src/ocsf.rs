//! Records as events of the Open Cybersecurity Schema Framework (OCSF, <https://schema.ocsf.io>).
//!
//! The class is API Activity (6003): an agent asks for an action on a resource, and what came of it. Authorize Session
//! (3003) is about privileges a user gets at a login and names neither an action nor a resource. The profile
//! `security_control` carries the decision, `trace` the trace. What has no place in the class stands in `unmapped`,
//! under the names spans and logs have.

use serde_json::{Map, Value, json};

use crate::{
    ids::{Action, UserId, UserKind},
    reason::Class,
    record::{OutcomeStatus, Record, RecordBody, RecordedDecision, What, Who},
    record_log::{LogSeverity, about, cause, in_words, name, severity},
    trace::AttributeValue,
};

/// The version of the schema.
pub const VERSION: &str = "1.6.0";
/// The category: Application Activity.
pub const CATEGORY_UID: u64 = 6;
/// The class: API Activity.
pub const CLASS_UID: u64 = 6003;

/// A number of the schema with its caption.
type Coded = (u64, &'static str);

/// What a control did, and how it ended.
struct Disposed {
    action: Coded,
    disposition: Coded,
    status: Coded,
}

/// The event of a record; `attributes` are those of its log entry.
#[must_use]
pub fn event(record: &Record, attributes: &[(&'static str, AttributeValue)]) -> Value {
    let (nobody, nothing) = (Who::default(), What::default());
    let (who, what) = about(record).unwrap_or((&nobody, &nothing));
    let (activity_id, activity) = activity(what.action.as_ref());
    let (severity_id, severity) = match severity(record) {
        LogSeverity::Info => (1, "Informational"),
        LogSeverity::Warn => (3, "Medium"),
        LogSeverity::Error => (4, "High"),
    };
    let Disposed { action, disposition, status } = disposed(record);
    let operation = what.action.as_ref().map_or_else(|| operation(record), Action::as_str);
    let mut event = json!({
        "activity_id": activity_id,
        "activity_name": activity.unwrap_or(operation),
        "category_uid": CATEGORY_UID,
        "category_name": "Application Activity",
        "class_uid": CLASS_UID,
        "class_name": "API Activity",
        "type_uid": CLASS_UID * 100 + activity_id,
        "type_name": format!("API Activity: {}", activity.unwrap_or("Other")),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status.0,
        "status": status.1,
        "action_id": action.0,
        "action": action.1,
        "disposition_id": disposition.0,
        "disposition": disposition.1,
        "time": record.at.as_millis(),
        "message": in_words(record),
        "metadata": metadata(record),
        "actor": actor(record, who),
        "api": api(record, what, operation),
        "src_endpoint": { "name": who.connection.as_deref().unwrap_or(record.id.origin.name()) },
        "unmapped": unmapped(record, attributes),
    });
    let Some(fields) = event.as_object_mut() else { return event };
    if let Some(cause) = cause(record) {
        fields.insert("status_code".to_owned(), cause.code.as_str().into());
        fields.insert("status_detail".to_owned(), cause.told.as_str().into());
    }
    if let Some(resource) = &what.resource {
        let resource = json!({
            "uid": resource.as_str(),
            "name": resource.name(),
            "type": resource.kind().as_str(),
        });
        fields.insert("resources".to_owned(), json!([resource]));
    }
    match &record.body {
        RecordBody::Verdict(verdicted) => {
            if let Some(policy) = verdicted.basis.policy {
                fields.insert(
                    "policy".to_owned(),
                    json!({ "uid": policy.to_string(), "name": "writ", "is_applied": true }),
                );
            }
            if verdicted.count > 1 {
                fields.insert("count".to_owned(), verdicted.count.into());
            }
            if let Some(trace) = &verdicted.trace {
                fields.insert("trace".to_owned(), json!({ "uid": trace.trace }));
            }
        }
        RecordBody::Outcome(outcome) => {
            if let Some(elapsed) = outcome.elapsed {
                fields.insert("duration".to_owned(), elapsed.0.into());
            }
        }
        RecordBody::Void(_) => {}
    }
    event
}

/// Actions that are called as the class calls them; what any other does, only its contract knows.
fn activity(action: Option<&Action>) -> (u64, Option<&'static str>) {
    match action.map(Action::as_str) {
        Some("create") => (1, Some("Create")),
        Some("read") => (2, Some("Read")),
        Some("update") => (3, Some("Update")),
        Some("delete") => (4, Some("Delete")),
        _ => (99, None),
    }
}

/// The operation of a record that names no action.
fn operation(record: &Record) -> &'static str {
    match &record.body {
        RecordBody::Outcome(_) => "outcome",
        RecordBody::Verdict(_) | RecordBody::Void(_) => "unknown",
    }
}

fn disposed(record: &Record) -> Disposed {
    const SUCCESS: Coded = (1, "Success");
    const FAILURE: Coded = (2, "Failure");
    let logged = |status| Disposed { action: (3, "Observed"), disposition: (17, "Logged"), status };
    match &record.body {
        RecordBody::Verdict(verdicted) => match verdicted.decision {
            RecordedDecision::Allow => {
                Disposed { action: (1, "Allowed"), disposition: (1, "Allowed"), status: SUCCESS }
            }
            RecordedDecision::Deny => {
                let class = verdicted.reasons.first().map(|reason| reason.code.class());
                let disposition = match class {
                    Some(Class::CouldNotDecide) => (27, "Error"),
                    Some(Class::Denied) | None => (2, "Blocked"),
                };
                Disposed { action: (2, "Denied"), disposition, status: FAILURE }
            }
            RecordedDecision::Hold => {
                Disposed { action: (99, "Held"), disposition: (14, "Delayed"), status: (99, "Held") }
            }
        },
        RecordBody::Outcome(outcome) => logged(match outcome.status {
            OutcomeStatus::Done => SUCCESS,
            OutcomeStatus::Failed | OutcomeStatus::NotRun => FAILURE,
            OutcomeStatus::UnknownOutcome => (0, "Unknown"),
        }),
        RecordBody::Void(_) => logged(FAILURE),
    }
}

fn metadata(record: &Record) -> Value {
    let mut metadata = json!({
        "version": VERSION,
        "profiles": ["security_control", "trace"],
        "product": { "name": "Writ", "vendor_name": "Writ", "version": env!("CARGO_PKG_VERSION") },
        "uid": record.id.to_string(),
        "event_code": name(record),
        "sequence": record.id.seq,
        "tenant_uid": record.tenant.as_str(),
        "log_name": "writ.audit",
        "log_provider": record.id.origin.name(),
    });
    if let (Some(task), Some(fields)) = (record.task(), metadata.as_object_mut()) {
        fields.insert("correlation_uid".to_owned(), task.as_str().into());
    }
    metadata
}

/// The user and, as the application that acts for the user, the agent. The schema demands one of them; where a record
/// knows neither, the recorder speaks for itself.
fn actor(record: &Record, who: &Who) -> Value {
    let mut actor = Map::new();
    if let Some(user) = &who.user {
        actor.insert("user".to_owned(), user_of(user));
    } else if let Some(operator) = &who.operator {
        actor.insert(
            "user".to_owned(),
            json!({ "uid": operator, "name": operator, "type_id": 2, "type": "Admin" }),
        );
    }
    if let Some(agent) = who.caller.as_ref().or(who.agent.as_ref()) {
        actor.insert("app_name".to_owned(), agent.as_str().into());
    }
    if let Some(task) = record.task() {
        actor.insert("session".to_owned(), json!({ "uid": task.as_str() }));
    }
    if actor.is_empty() {
        actor.insert("app_name".to_owned(), record.id.origin.name().into());
    }
    Value::Object(actor)
}

fn user_of(user: &UserId) -> Value {
    let (type_id, kind) = match user.kind() {
        UserKind::Human => (1, "User"),
        UserKind::Service => (4, "Service"),
    };
    json!({
        "uid": user.subject(),
        "name": user.subject(),
        "domain": user.issuer(),
        "type_id": type_id,
        "type": kind,
    })
}

fn api(record: &Record, what: &What, operation: &str) -> Value {
    let mut api = Map::from_iter([("operation".to_owned(), operation.into())]);
    let call_id = match &record.body {
        RecordBody::Outcome(outcome) => Some(outcome.call_id),
        RecordBody::Verdict(_) | RecordBody::Void(_) => what.call_id,
    };
    if let Some(call_id) = call_id {
        api.insert("request".to_owned(), json!({ "uid": call_id.to_string() }));
    }
    if let Some(resource) = &what.resource {
        api.insert("service".to_owned(), json!({ "name": resource.as_str() }));
    }
    Value::Object(api)
}

fn unmapped(record: &Record, attributes: &[(&'static str, AttributeValue)]) -> Value {
    let own = attributes.iter().filter(|(name, _)| name.starts_with("writ."));
    let mut fields: Map<String, Value> = own
        .map(|(name, value)| {
            let value = match value {
                AttributeValue::Integer(number) => (*number).into(),
                AttributeValue::Text(text) => text.as_str().into(),
                AttributeValue::Texts(texts) => texts.clone().into(),
            };
            ((*name).to_owned(), value)
        })
        .collect();
    // A span of the schema has a beginning and an end, which a record does not know.
    if let RecordBody::Verdict(verdicted) = &record.body
        && let Some(trace) = &verdicted.trace
    {
        fields.insert("span_id".to_owned(), trace.span.as_str().into());
    }
    Value::Object(fields)
}
