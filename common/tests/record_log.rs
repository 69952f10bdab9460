//! Records as log entries: what is said, under which names, and as which OCSF events.
//!
//! `UPDATE_GOLDEN=1` writes golden/ocsf.json anew. Collectors rely on it: a change belongs into CHANGELOG.md.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed test may panic; tests read files"
)]

mod support;

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Value as Json, json};
use support::{NODE, NOW, delegated, key, keyset};
use writ_common::{
    digest::Digest,
    ids::{Action, BootId, FindingKind, NodeId, PartId, Resource},
    label::Label,
    policy::PolicyRevision,
    reason::{Reason, ReasonCode},
    record::{
        Basis, Origin, Outcome, OutcomeStatus, RecordBody, RecordedDecision, RecordedFinding, RecordedReason,
        TraceRef, Verdicted, What, Who,
    },
    record_log::{LogBody, LogSeverity, RecordLog},
    recorder::{Prepared, Recorder},
    time::Millis,
    trace::AttributeValue,
    verdict::Verdict,
};

/// Stands in what only the record says: it must not leave.
const CANARY: &str = "canary-4c81";

fn verdicted(decision: RecordedDecision, code: Option<ReasonCode>, who: Who, what: What) -> Verdicted {
    let verdict = Verdict::deny(code.unwrap_or(ReasonCode::RightMissing), None);
    let mut verdicted = Verdicted::new(decision, &verdict, who, what, Basis::default());
    let reason = |code| RecordedReason::from(&Reason::new(code).told("not granted").noted(CANARY));
    verdicted.reasons = code.map(reason).into_iter().collect();
    verdicted.basis.policy = Some(PolicyRevision(Digest::plain(b"policy")));
    verdicted.basis.rules = vec!["planes/20-actions.datalog:7".to_owned()];
    verdicted.trace = Some(TraceRef {
        trace: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        span: "00f067aa0ba902b7".to_owned(),
    });
    verdicted
}

/// One record of every kind there is, by a name.
fn prepared() -> Vec<(&'static str, Prepared)> {
    let capability = delegated().verify(&keyset(), NOW).unwrap();
    let boot = BootId::generate(NOW, [1; 10]);
    let origin = Origin::Node(NodeId::parse("node-1").unwrap());
    let mut recorder = Recorder::new(support::tenant(), origin, boot, key(NODE));
    let who = Who::of_capability(&capability, Some("UMAILER"));
    let what = |resource: &str, action: &str| What {
        resource: Some(Resource::parse(resource).unwrap()),
        action: Some(Action::parse(action).unwrap()),
        arguments: Some(Digest::plain(b"{}")),
        call_id: Some(Digest::plain(b"call")),
        ..What::default()
    };
    let mut prepare = |body| recorder.prepare(PartId::first(), body, NOW);
    let mut record = |verdicted: Verdicted| prepare(RecordBody::Verdict(Box::new(verdicted)));
    let read = what("tool.crm", "read");
    let allow = record(verdicted(RecordedDecision::Allow, None, who.clone(), read.clone()));
    let mut denied = verdicted(
        RecordedDecision::Deny,
        Some(ReasonCode::RightMissing),
        who.clone(),
        what("tool.mail", "send"),
    );
    denied.found = vec![RecordedFinding {
        kind: FindingKind::parse("injection").unwrap(),
        detector: "builtin.injection".to_owned(),
        severity: 80,
        places: 1,
    }];
    let deny = record(denied);
    let stale = Some(ReasonCode::StateStale);
    let undecided = record(verdicted(RecordedDecision::Deny, stale, who.clone(), read.clone()));
    let hold = record(verdicted(RecordedDecision::Hold, None, who.clone(), what("tool.mail", "send")));
    let sender = Who { connection: Some("UPLANNER".to_owned()), ..Who::default() };
    let mut quota =
        verdicted(RecordedDecision::Deny, Some(ReasonCode::RequestQuota), sender, What::default());
    (quota.count, quota.trace, quota.basis) = (41, None, Basis::default());
    let quota = record(quota);
    let operator = Who { operator: Some("ops".to_owned()), ..Who::default() };
    let halt = What { action: Some(Action::parse("halt").unwrap()), ..What::default() };
    let operator = record(verdicted(RecordedDecision::Allow, None, operator, halt));
    let ended = |status, reason: Option<RecordedReason>| {
        RecordBody::Outcome(Box::new(Outcome {
            intent: allow.id.clone(),
            call_id: Digest::plain(b"call"),
            task: who.task.clone(),
            status,
            reason,
            result: Some(Digest::plain(b"{}")),
            result_bytes: Some(2),
            label: Some(Label::bottom()),
            found: Vec::new(),
            elapsed: Some(Millis(3)),
            manifest: Vec::new(),
        }))
    };
    let timeout = RecordedReason::from(&Reason::new(ReasonCode::ToolTimeout).noted(CANARY));
    let done = recorder.prepare(PartId::first(), ended(OutcomeStatus::Done, None), NOW);
    let failed = recorder.prepare(PartId::first(), ended(OutcomeStatus::Failed, Some(timeout.clone())), NOW);
    let unknown =
        recorder.prepare(PartId::first(), ended(OutcomeStatus::UnknownOutcome, Some(timeout.clone())), NOW);
    let void = recorder.void(&allow, timeout, who.clone(), read, NOW);
    vec![
        ("allow", allow),
        ("deny", deny),
        ("could_not_decide", undecided),
        ("hold", hold),
        ("over_quota", quota),
        ("operator", operator),
        ("done", done),
        ("failed", failed),
        ("unknown_outcome", unknown),
        ("void", void),
    ]
}

fn events() -> BTreeMap<&'static str, Json> {
    let event = |prepared: &Prepared| {
        let log = RecordLog::of(&prepared.record, &prepared.digest, LogBody::Ocsf);
        serde_json::from_str(&log.body).unwrap()
    };
    prepared().iter().map(|(name, prepared)| (*name, event(prepared))).collect()
}

/// What OCSF 1.6.0 says of a field that is used here.
enum Field {
    Text,
    Number(&'static [u64]),
    Any,
    Object(&'static [(&'static str, bool, Field)]),
    Objects(&'static [(&'static str, bool, Field)]),
}

const ENTITY: Field = Field::Object(&[("name", false, Field::Text), ("uid", false, Field::Text)]);

/// API Activity of OCSF 1.6.0 with the profiles `security_control` and trace: the fields that may be used here, and
/// whether the class demands them.
const API_ACTIVITY: &[(&str, bool, Field)] = &[
    ("activity_id", true, Field::Number(&[0, 1, 2, 3, 4, 99])),
    ("activity_name", false, Field::Text),
    ("category_uid", true, Field::Number(&[6])),
    ("category_name", false, Field::Text),
    ("class_uid", true, Field::Number(&[6003])),
    ("class_name", false, Field::Text),
    ("type_uid", true, Field::Number(&[600_300, 600_301, 600_302, 600_303, 600_304, 600_399])),
    ("type_name", false, Field::Text),
    ("severity_id", true, Field::Number(&[0, 1, 2, 3, 4, 5, 6, 99])),
    ("severity", false, Field::Text),
    ("status_id", false, Field::Number(&[0, 1, 2, 99])),
    ("status", false, Field::Text),
    ("status_code", false, Field::Text),
    ("status_detail", false, Field::Text),
    ("action_id", false, Field::Number(&[0, 1, 2, 3, 4, 99])),
    ("action", false, Field::Text),
    ("disposition_id", false, Field::Number(&[1, 2, 14, 17, 27])),
    ("disposition", false, Field::Text),
    ("count", false, Field::Number(&[])),
    ("duration", false, Field::Number(&[])),
    ("time", true, Field::Number(&[])),
    ("message", false, Field::Text),
    (
        "policy",
        false,
        Field::Object(&[
            ("name", false, Field::Text),
            ("uid", false, Field::Text),
            ("is_applied", false, Field::Any),
        ]),
    ),
    ("trace", false, Field::Object(&[("uid", true, Field::Text)])),
    ("unmapped", false, Field::Any),
    ("src_endpoint", true, Field::Object(&[("name", true, Field::Text)])),
    (
        "api",
        true,
        Field::Object(&[
            ("operation", true, Field::Text),
            ("request", false, Field::Object(&[("uid", true, Field::Text)])),
            ("service", false, ENTITY),
        ]),
    ),
    (
        "actor",
        true,
        Field::Object(&[
            ("app_name", false, Field::Text),
            ("session", false, Field::Object(&[("uid", false, Field::Text)])),
            (
                "user",
                false,
                Field::Object(&[
                    ("uid", false, Field::Text),
                    ("name", false, Field::Text),
                    ("domain", false, Field::Text),
                    ("type_id", false, Field::Number(&[0, 1, 2, 3, 4, 99])),
                    ("type", false, Field::Text),
                ]),
            ),
        ]),
    ),
    (
        "resources",
        false,
        Field::Objects(&[
            ("name", false, Field::Text),
            ("uid", false, Field::Text),
            ("type", false, Field::Text),
        ]),
    ),
    (
        "metadata",
        true,
        Field::Object(&[
            ("version", true, Field::Text),
            (
                "product",
                true,
                Field::Object(&[
                    ("name", true, Field::Text),
                    ("vendor_name", false, Field::Text),
                    ("version", false, Field::Text),
                ]),
            ),
            ("profiles", false, Field::Any),
            ("uid", false, Field::Text),
            ("event_code", false, Field::Text),
            ("sequence", false, Field::Number(&[])),
            ("tenant_uid", false, Field::Text),
            ("log_name", false, Field::Text),
            ("log_provider", false, Field::Text),
            ("correlation_uid", false, Field::Text),
        ]),
    ),
];

/// Faults of a value, by the fields it may have.
fn faults(at: &str, value: &Json, fields: &[(&str, bool, Field)]) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![format!("{at}: not an object")] };
    let known = |name: &String| fields.iter().any(|(field, ..)| field == name);
    let mut found: Vec<String> = object
        .keys()
        .filter(|name| !known(name))
        .map(|name| format!("{at}.{name}: not of the class"))
        .collect();
    for (name, is_required, field) in fields {
        let at = format!("{at}.{name}");
        match (object.get(*name), field) {
            (None, _) if *is_required => found.push(format!("{at}: missing")),
            (None, _) | (Some(_), Field::Any) => {}
            (Some(value), Field::Text) if value.as_str().is_some_and(|text| !text.is_empty()) => {}
            (Some(_), Field::Text) => found.push(format!("{at}: no text")),
            (Some(value), Field::Number(of)) => match value.as_u64() {
                Some(number) if of.is_empty() || of.contains(&number) => {}
                _ => found.push(format!("{at}: {value} is none of {of:?}")),
            },
            (Some(value), Field::Object(of)) => found.extend(faults(&at, value, of)),
            (Some(value), Field::Objects(of)) => {
                found.extend(value.as_array().unwrap().iter().flat_map(|one| faults(&at, one, of)));
            }
        }
    }
    found
}

#[test]
fn events_are_what_collectors_were_told() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ocsf.json");
    let current = json!(events());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&current).unwrap())).unwrap();
    }
    let file: Json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (name, event) in current.as_object().unwrap() {
        assert_eq!(*event, file[name], "{name}: the mapping has changed");
    }
    assert_eq!(current.as_object().unwrap().len(), file.as_object().unwrap().len());
}

#[test]
fn every_event_keeps_the_rules_of_its_class() {
    for (name, event) in events() {
        assert_eq!(faults(name, &event, API_ACTIVITY), Vec::<String>::new());
        let number = |field: &str| event[field].as_u64().unwrap();
        assert_eq!(number("type_uid"), number("class_uid") * 100 + number("activity_id"), "{name}");
        // What the schema does not name is named beside its number.
        for (id, caption) in
            [("activity_id", "activity_name"), ("action_id", "action"), ("status_id", "status")]
        {
            assert!(number(id) != 99 || event[caption] != "Other", "{name}: {caption}");
        }
        assert_ne!(event["actor"], json!({}), "{name}: the schema demands one of several");
    }
}

#[test]
fn the_rules_notice_what_is_missing_unknown_or_out_of_range() {
    let whole = &events()["deny"];
    let broken = |change: fn(&mut Json)| {
        let mut event = whole.clone();
        change(&mut event);
        faults("event", &event, API_ACTIVITY)
    };
    let missing = broken(|event| drop(event.as_object_mut().unwrap().remove("actor")));
    assert_eq!(missing, ["event.actor: missing"]);
    let nested = broken(|event| drop(event["metadata"].as_object_mut().unwrap().remove("product")));
    assert_eq!(nested, ["event.metadata.product: missing"]);
    assert_eq!(broken(|event| event["arguments"] = json!({})), ["event.arguments: not of the class"]);
    assert_eq!(broken(|event| event["time"] = json!("now")), ["event.time: \"now\" is none of []"]);
}

#[test]
fn an_entry_says_who_what_and_why_in_one_line_and_under_the_names_of_spans() {
    let logs: BTreeMap<&str, (Prepared, RecordLog)> = prepared()
        .into_iter()
        .map(|(name, prepared)| {
            let log = RecordLog::of(&prepared.record, &prepared.digest, LogBody::Text);
            (name, (prepared, log))
        })
        .collect();
    let said = |name: &str| logs[name].1.body.as_str();
    let mut lines = String::new();
    for name in logs.keys() {
        lines += &format!("{name}: {}\n", said(name));
    }
    expect_test::expect![[r#"
        allow: allowed: read on tool.crm, from agent planner -> researcher -> mailer for user alice
        could_not_decide: denied: read on tool.crm, from agent planner -> researcher -> mailer for user alice: state.stale: not granted
        deny: denied: send on tool.mail, from agent planner -> researcher -> mailer for user alice: right.missing: not granted
        done: done: what node-1/b-01mcc5rm00040g2081040g2081/0 allowed
        failed: failed: what node-1/b-01mcc5rm00040g2081040g2081/0 allowed: tool.timeout: The tool did not finish in time; whether it had an effect is unknown.
        hold: held for approval: send on tool.mail, from agent planner -> researcher -> mailer for user alice
        operator: allowed: halt, from operator ops
        over_quota: denied: a request that was not read, from connection UPLANNER, 41 times: request.quota: not granted
        unknown_outcome: nobody knows whether it ran: what node-1/b-01mcc5rm00040g2081040g2081/0 allowed: tool.timeout: The tool did not finish in time; whether it had an effect is unknown.
        void: void: read on tool.crm, from agent planner -> researcher -> mailer for user alice, came to nothing: tool.timeout: The tool did not finish in time; whether it had an effect is unknown.
    "#]].assert_eq(&lines);
    let severity = |name: &str| logs[name].1.severity;
    for (name, expected) in [
        ("allow", LogSeverity::Info),
        ("hold", LogSeverity::Info),
        ("done", LogSeverity::Info),
        ("deny", LogSeverity::Warn),
        ("failed", LogSeverity::Warn),
        ("void", LogSeverity::Warn),
        ("unknown_outcome", LogSeverity::Error),
    ] {
        assert_eq!(severity(name), expected, "{name}");
    }
    for (name, (prepared, log)) in &logs {
        let values: BTreeMap<&str, &AttributeValue> =
            log.attributes.iter().map(|(name, value)| (*name, value)).collect();
        assert_eq!(values.len(), log.attributes.len(), "{name}: an attribute twice");
        assert_eq!(values["writ.record.id"], &AttributeValue::from(prepared.id.to_string()));
        assert_eq!(values["writ.record.digest"], &AttributeValue::from(prepared.digest.to_string()));
        for attribute in values.keys() {
            let is_known = ["writ.", "gen_ai."].iter().any(|start| attribute.starts_with(start));
            assert!(is_known || ["user.id", "session.id", "error.type"].contains(attribute), "{attribute}");
        }
        // What was noted for the operator stays in the record.
        assert!(!format!("{log:?}").contains(CANARY), "{name}");
        let ocsf = RecordLog::of(&prepared.record, &prepared.digest, LogBody::Ocsf);
        assert!(!ocsf.body.contains(CANARY), "{name}");
        assert_eq!(ocsf.attributes, log.attributes);
    }
    let denied = &logs["deny"].1;
    let has = |name: &str, value: AttributeValue| denied.attributes.contains(&(name_of(name), value));
    assert!(has("writ.deny.reason", "right.missing".into()));
    assert!(has("gen_ai.tool.name", "mail".into()));
    assert!(has("writ.findings", vec!["injection".to_owned()].into()));
    assert_eq!(denied.trace.as_ref().unwrap().trace, "4bf92f3577b34da6a3ce929d0e0e4736");
}

/// The name as the attributes have it.
fn name_of(name: &str) -> &'static str {
    ["writ.deny.reason", "gen_ai.tool.name", "writ.findings"]
        .into_iter()
        .find(|known| *known == name)
        .unwrap()
}
