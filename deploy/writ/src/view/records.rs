//! One record, one line.

use serde_json::{Value, json};
use writ_common::{
    reason::ReasonCode,
    record::{Record, RecordBody, RecordedDecision, RecordedReason, Shadowed, Verdicted, What, Who},
};

use super::{Colour, colour};
use crate::operator::Recorded;

/// The word for what a record says, and its colour.
#[must_use]
pub fn word(record: &Record) -> (&'static str, u8) {
    match &record.body {
        RecordBody::Outcome(_) => ("outcome", colour::DIM),
        RecordBody::Verdict(verdicted) => match verdicted.decision {
            RecordedDecision::Allow => ("ALLOW", colour::GREEN),
            RecordedDecision::Deny => ("DENY", colour::RED),
            RecordedDecision::Hold => ("HOLD", colour::YELLOW),
        },
        RecordBody::Void(_) => ("VOID", colour::RED),
    }
}

/// `tool.crm:read`, as far as it is known.
#[must_use]
pub fn target(what: &What) -> String {
    let resource = what.resource.as_ref().map(ToString::to_string);
    let action = what.action.as_ref().map(ToString::to_string);
    match (resource, action) {
        (Some(resource), Some(action)) => format!("{resource}:{action}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "?".to_owned(),
    }
}

/// The target of a verdict; for a right that was asked for, the right.
#[must_use]
pub fn target_of(verdicted: &Verdicted) -> String {
    match &verdicted.right {
        None => target(&verdicted.what),
        Some(asked) => {
            let until = asked.expires.map(|expires| format!(" until {expires}"));
            format!("the right {}{}", asked.right, until.unwrap_or_default())
        }
    }
}

/// `planner > researcher`, or whoever asked.
#[must_use]
pub fn path(who: &Who) -> String {
    let agents: Vec<String> = who
        .agent
        .iter()
        .map(ToString::to_string)
        .chain(who.hops.iter().map(|hop| hop.to.to_string()))
        .collect();
    if agents.is_empty() {
        let asker = who.operator.clone().or_else(|| who.caller.as_ref().map(ToString::to_string));
        return asker.unwrap_or_else(|| "?".to_owned());
    }
    agents.join(" > ")
}

fn reasons(reasons: &[RecordedReason]) -> String {
    reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.told)).collect::<Vec<_>>().join("; ")
}

/// What the policy in the shadow would have answered.
#[must_use]
pub fn in_the_shadow(shadow: &Shadowed) -> String {
    let word = match shadow.decision {
        RecordedDecision::Allow => "ALLOW",
        RecordedDecision::Deny => "DENY",
        RecordedDecision::Hold => "HOLD",
    };
    let codes: Vec<String> = shadow.reasons.iter().map(ToString::to_string).collect();
    let codes = if codes.is_empty() { String::new() } else { format!(" {}", codes.join(", ")) };
    format!("shadow {}: {word}{codes} [{}]", shadow.policy.0.short(), shadow.rules.join(", "))
}

/// The code of the first cause, for voids the cause.
#[must_use]
pub fn code(record: &Record) -> Option<ReasonCode> {
    match &record.body {
        RecordBody::Outcome(outcome) => outcome.reason.as_ref().map(|reason| reason.code),
        RecordBody::Verdict(verdicted) => verdicted.reasons.first().map(|reason| reason.code),
        RecordBody::Void(void) => Some(void.cause.code),
    }
}

/// A line for `writ audit tail`.
#[must_use]
pub fn line(recorded: &Recorded, colour: Colour) -> String {
    let Some(record) = &recorded.record else {
        let fault = recorded.fault.as_deref().unwrap_or("unreadable");
        return format!("#{:<6} {}", recorded.sequence, colour.paint(colour::RED, fault));
    };
    let (word, code) = word(record);
    let (who, rest) = match &record.body {
        RecordBody::Outcome(outcome) => {
            let reason =
                outcome.reason.as_ref().map(|reason| format!(" {}", reason.code)).unwrap_or_default();
            let elapsed = outcome.elapsed.map(|elapsed| format!(" after {elapsed}")).unwrap_or_default();
            (String::new(), format!("{}{reason}{elapsed} of {}", outcome.status.as_str(), outcome.intent))
        }
        RecordBody::Verdict(verdicted) => {
            let count = if verdicted.count > 1 { format!(" x{}", verdicted.count) } else { String::new() };
            let mut why = reasons(&verdicted.reasons);
            if !verdicted.would_deny.is_empty() {
                why = format!("WOULD DENY {}", reasons(&verdicted.would_deny));
            }
            if let Some(shadow) = verdicted.shadow.as_ref().filter(|shadow| shadow.differs) {
                why = format!("{why}  {}", in_the_shadow(shadow)).trim_start().to_owned();
            }
            (path(&verdicted.who), format!("{}{count}  {why}", target_of(verdicted)))
        }
        RecordBody::Void(void) => {
            (path(&void.who), format!("{}  {}: {}", target(&void.what), void.cause.code, void.cause.told))
        }
    };
    let fault = recorded.fault.as_ref().map(|fault| colour.paint(colour::RED, &format!("  !! {fault}")));
    let text = format!(
        "{} #{:<6} {} {}{}{}{}",
        colour.paint(colour::DIM, &record.at.to_string()),
        recorded.sequence,
        colour.paint(code, &format!("{word:<7}")),
        who,
        if who.is_empty() { "" } else { "  " },
        rest.trim_end(),
        fault.unwrap_or_default()
    );
    text.trim_end().to_owned()
}

/// A record as JSON: every field under its own name, digests and keys in hex.
#[must_use]
pub fn to_json(recorded: &Recorded) -> Value {
    let record = recorded.record.as_ref().and_then(|record| serde_json::to_value(record).ok());
    json!({"sequence": recorded.sequence, "record": record, "fault": recorded.fault})
}
