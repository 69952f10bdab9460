//! Answers to auditors' questions, as tables and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use writ_common::{
    approval::ApprovalRequest, capability::Right, digest::Digest, record::OutcomeStatus, time::Timestamp,
};

use super::table::Table;
use crate::index::{
    questions::{Holder, Holding, Rise, WhoCan, part_in_flow},
    row::{Cause, Ended, Row, RowKind},
};

fn text<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// `planner > researcher`, or whoever asked.
fn path(row: &Row) -> String {
    let chain: Vec<String> = row.chain().map(ToString::to_string).collect();
    if !chain.is_empty() {
        return chain.join(" > ");
    }
    row.operator.clone().unwrap_or_else(|| text(row.caller.as_ref()))
}

fn causes(causes: &[Cause]) -> String {
    causes.iter().map(|cause| format!("{}: {}", cause.code, cause.told)).collect::<Vec<_>>().join("; ")
}

fn how_it_ended(row: &Row) -> String {
    match &row.ended {
        Some(ended) => match ended.code {
            Some(code) => format!("{} ({code})", ended.word()),
            None => ended.word().to_owned(),
        },
        None if row.is_open() => "no outcome on record".to_owned(),
        None => String::new(),
    }
}

fn count(row: &Row) -> String {
    if row.count > 1 { format!("{} x{}", row.kind.as_str(), row.count) } else { row.kind.as_str().to_owned() }
}

/// What was done on somebody's authority.
#[must_use]
pub fn done(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "time", "number", "verdict", "agents", "action", "outcome", "why", "rules", "task", "user", "record",
    ]);
    for row in rows {
        table.push([
            row.at.to_string(),
            row.place.to_string(),
            count(row),
            path(row),
            row.target(),
            how_it_ended(row),
            causes(&row.causes),
            row.rules.join(" "),
            text(row.task.as_ref()),
            text(row.user.as_ref()),
            text(row.id.as_ref()),
        ]);
    }
    table
}

/// Where data came in and where it went.
#[must_use]
pub fn touched(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "time", "number", "data", "action", "agents", "label", "verdict", "outcome", "task", "user",
    ]);
    for row in rows {
        let status = row.outcome.as_ref().map(|(_, status)| OutcomeStatus::as_str(*status).to_owned());
        table.push([
            row.at.to_string(),
            row.place.to_string(),
            part_in_flow(row).to_owned(),
            row.target(),
            path(row),
            text(row.label.as_ref()),
            row.kind.as_str().to_owned(),
            status.unwrap_or_else(|| how_it_ended(row)),
            text(row.task.as_ref()),
            text(row.user.as_ref()),
        ]);
    }
    table
}

/// Calls that only ran because they are observed.
#[must_use]
pub fn observed(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "time",
        "number",
        "verdict",
        "agents",
        "action",
        "would deny",
        "outcome",
        "task",
        "user",
    ]);
    for row in rows {
        table.push([
            row.at.to_string(),
            row.place.to_string(),
            count(row),
            path(row),
            row.target(),
            causes(&row.would_deny),
            how_it_ended(row),
            text(row.task.as_ref()),
            text(row.user.as_ref()),
        ]);
    }
    table
}

/// What people said, and about what.
pub struct Answered<'a> {
    row: &'a Row,
    /// The call that was asked about.
    call: Option<Row>,
    /// The arguments that were shown, if they are still there.
    shown: Option<String>,
}

impl<'a> Answered<'a> {
    /// What a row says, with the call it is about and what was shown of it.
    #[must_use]
    pub fn of(row: &'a Row, call: Option<Row>, requests: &BTreeMap<Digest, ApprovalRequest>) -> Self {
        let request = row.approval.as_ref().and_then(|approval| requests.get(&approval.request));
        Self { row, call, shown: request.map(|request| request.arguments.clone()) }
    }

    fn what(&self) -> &'static str {
        match self.row.kind {
            RowKind::Granted => "granted",
            RowKind::Refused => "refused",
            RowKind::Hold => "asked",
            RowKind::Allow if self.row.acts.is_empty() => "used",
            RowKind::Allow => "let pass",
            RowKind::Deny | RowKind::Void | RowKind::Outcome => "not done",
        }
    }

    fn by(&self) -> String {
        let approvers = self.row.approval.iter().flat_map(|approval| &approval.by);
        let acts = self.row.acts.iter().map(|act| &act.by);
        approvers.chain(acts).map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn why(&self) -> String {
        let comment = self.row.approval.iter().map(|approval| approval.comment.clone());
        let acts = self.row.acts.iter().map(|act| act.what.clone());
        let said = comment.chain(acts).filter(|text| !text.is_empty());
        said.chain(Some(causes(&self.row.causes)).filter(|text| !text.is_empty()))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "what": self.what(), "row": row_json(self.row), "call": self.call.as_ref().map(row_json),
            "shown": self.shown,
        })
    }
}

/// What people said, and what they saw.
#[must_use]
pub fn answered(lines: &[Answered<'_>]) -> Table {
    let mut table = Table::new(&[
        "time",
        "number",
        "said",
        "by",
        "action",
        "agents",
        "user",
        "waited",
        "why",
        "saw",
        "arguments",
        "request",
        "approval",
        "task",
    ]);
    for line in lines {
        let (row, approval) = (line.row, line.row.approval.as_ref());
        let call = line.call.as_ref().unwrap_or(row);
        let arguments = call.arguments.or(row.arguments);
        let saw = match (&line.shown, approval) {
            (Some(shown), _) => shown.clone(),
            (None, Some(_)) => "no longer in the stream".to_owned(),
            (None, None) => String::new(),
        };
        table.push([
            row.at.to_string(),
            row.place.to_string(),
            line.what().to_owned(),
            line.by(),
            call.target(),
            path(call),
            text(call.user.as_ref()),
            approval
                .and_then(|approval| approval.waited)
                .map(|waited| waited.to_string())
                .unwrap_or_default(),
            line.why(),
            saw,
            text(arguments.as_ref()),
            text(approval.map(|approval| &approval.request)),
            text(approval.map(|approval| &approval.id)),
            text(call.task.as_ref()),
        ]);
    }
    table
}

/// Who held a right.
#[must_use]
pub fn who_can(answer: &WhoCan) -> Table {
    let mut table = Table::new(&[
        "agent",
        "from",
        "ended by",
        "granted",
        "ends",
        "user",
        "roles",
        "approved by",
        "first seen",
        "last seen",
        "task",
        "capability",
        "key",
        "policy",
        "rules",
        "record",
    ]);
    for Holding { grant, holders } in &answer.holdings {
        let granted = grant.granted.as_ref();
        let approved = grant.approval.iter().flat_map(|approval| &approval.by).map(ToString::to_string);
        let approved = approved.collect::<Vec<_>>().join(" ");
        for holder in holders {
            table.push([
                holder.agent.to_string(),
                holder.from.as_ref().map_or_else(|| "the broker".to_owned(), ToString::to_string),
                holder.ended_by.clone().unwrap_or_default(),
                grant.at.to_string(),
                granted.map(|granted| granted.expires.to_string()).unwrap_or_default(),
                text(grant.user.as_ref()),
                granted.map(|granted| granted.roles.join(" ")).unwrap_or_default(),
                approved.clone(),
                holder.first_seen.to_string(),
                holder.last_seen.to_string(),
                text(grant.task.as_ref()),
                capability(grant),
                holder.key.to_string(),
                text(grant.policy.as_ref()),
                grant.rules.join(" "),
                text(grant.id.as_ref()),
            ]);
        }
    }
    table
}

fn capability(grant: &Row) -> String {
    match (&grant.capability, grant.serial) {
        (Some(capability), Some(serial)) => format!("{capability} #{serial}"),
        (capability, _) => text(capability.as_ref()),
    }
}

/// What stands below who held a right: the policy, and who may be granted it.
#[must_use]
pub fn who_can_notes(right: &Right, at: Timestamp, answer: &WhoCan) -> Vec<String> {
    let holds = |holder: &&Holder| holder.ended_by.is_none();
    let held = answer.holdings.iter().flat_map(|holding| &holding.holders).filter(holds).count();
    let mut notes = vec![format!(
        "{right} at {at}: {held} {} it; a hand-over shows once a call was made through it",
        if held == 1 { "agent held" } else { "agents held" }
    )];
    if let Some(halted) = &answer.halted_by {
        notes.push(format!("nobody could use it: everything was stopped {halted}"));
    }
    match &answer.policy {
        Some(policy) => notes.push(format!(
            "policy {} was in force, put there {} by {} (control event #{})",
            policy.revision.0.short(),
            policy.at,
            policy.by,
            policy.sequence
        )),
        None => notes.push("no policy was in force".to_owned()),
    }
    for allowed in &answer.allowed {
        notes.push(format!(
            "  role `{}` may have it in a task `{}` given to {}",
            allowed.role,
            allowed.kind,
            if allowed.agents.is_empty() { "nobody".to_owned() } else { allowed.agents.join(", ") }
        ));
    }
    if answer.policy.is_some() && answer.allowed.is_empty() {
        notes.push("  none of its roles may have it".to_owned());
    }
    notes
}

/// The same for programs.
#[must_use]
pub fn who_can_json(right: &Right, at: Timestamp, answer: &WhoCan) -> Value {
    let holder = |holder: &Holder| {
        json!({
            "agent": holder.agent, "key": holder.key, "from": holder.from, "ended_by": holder.ended_by,
            "first_seen": holder.first_seen.to_string(), "last_seen": holder.last_seen.to_string(),
        })
    };
    let holdings = answer.holdings.iter().map(|holding| {
        json!({
            "grant": row_json(&holding.grant),
            "holders": holding.holders.iter().map(holder).collect::<Vec<_>>(),
        })
    });
    json!({
        "right": right, "at": at.to_string(), "holdings": holdings.collect::<Vec<_>>(),
        "halted_by": answer.halted_by,
        "policy": answer.policy.as_ref().map(|policy| json!({
            "revision": policy.revision, "at": policy.at.to_string(), "by": policy.by, "sequence": policy.sequence,
        })),
        "allowed": answer.allowed,
    })
}

/// What was refused more often.
#[must_use]
pub fn denials(rises: &[Rise]) -> Table {
    let mut table = Table::new(&["code", "action", "agent", "now", "before", "more by"]);
    for rise in rises {
        table.push([
            rise.refusal.code.clone(),
            rise.refusal.target.clone(),
            rise.refusal.caller.clone(),
            rise.now.to_string(),
            rise.before.to_string(),
            rise.by().to_string(),
        ]);
    }
    table
}

fn day(number: u64) -> String {
    let text = Timestamp::from_secs(number.saturating_mul(86_400)).to_string();
    text.get(..10).unwrap_or_default().to_owned()
}

/// Per code, what it came to; and what was compared with what.
#[must_use]
pub fn denials_note(last: u64, days: u64, name: &str, rises: &[Rise]) -> String {
    let mut codes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for rise in rises {
        let code = codes.entry(&rise.refusal.code).or_default();
        code.0 += rise.now;
        code.1 += rise.before;
    }
    let mut codes: Vec<_> = codes.into_iter().collect();
    codes.sort_by_key(|(code, (now, before))| (i128::from(*before) - i128::from(*now), *code));
    let codes: Vec<String> =
        codes.iter().map(|(code, (now, before))| format!("{code} {now} (before {before})")).collect();
    format!(
        "the {name} {} to {} (UTC) against the {name} before: {}",
        day((last + 1).saturating_sub(days)),
        day(last),
        if codes.is_empty() { "nothing was refused".to_owned() } else { codes.join(", ") }
    )
}

/// The same for programs.
#[must_use]
pub fn denials_json(last: u64, days: u64, rises: &[Rise], all: usize) -> Value {
    json!({"from": day((last + 1).saturating_sub(days)), "to": day(last), "days": days, "rows": rises, "of": all})
}

/// A row as JSON: times in RFC 3339, digests and keys in hex.
#[must_use]
pub fn row_json(row: &Row) -> Value {
    let ended = |ended: &Ended| {
        json!({
            "part": ended.place.part, "sequence": ended.place.sequence, "at": ended.at.to_string(), "status": ended.word(), "code": ended.code,
            "label": ended.label,
        })
    };
    let hops = row.hops.iter().map(|hop| json!({"to": hop.to, "key": hop.key, "kept_back": hop.kept_back}));
    json!({
        "part": row.place.part,
        "sequence": row.place.sequence,
        "at": row.at.to_string(),
        "kind": row.kind,
        "record": row.id.as_ref().map(ToString::to_string),
        "task": row.task,
        "user": row.user.as_ref().map(|user| json!({"iss": user.issuer(), "sub": user.subject()})),
        "agent": row.agent,
        "hops": hops.collect::<Vec<_>>(),
        "caller": row.caller,
        "operator": row.operator,
        "capability": row.capability,
        "serial": row.serial,
        "resource": row.resource,
        "action": row.action,
        "arguments": row.arguments,
        "reasons": row.causes,
        "would_deny": row.would_deny,
        "label": row.label.as_ref().map(|label| json!({
            "tags": label.names(), "integrity": label.integrity,
        })),
        "policy": row.policy,
        "rules": row.rules,
        "granted": row.granted.as_ref().map(|granted| json!({
            "kind": granted.kind, "rights": granted.rights, "expires": granted.expires.to_string(),
            "deadline": granted.deadline.map(|deadline| deadline.to_string()), "roles": granted.roles,
            "key": granted.key, "instruction": granted.instruction,
        })),
        "approval": row.approval.as_ref().map(|approval| json!({
            "id": approval.id, "request": approval.request, "by": approval.by, "comment": approval.comment,
            "needs": approval.needs.iter().map(|(role, count)| json!({"role": role, "count": count})).collect::<Vec<_>>(),
            "waited_ms": approval.waited,
        })),
        "acts": row.acts,
        "count": row.count,
        "ended": row.ended.as_ref().map(ended),
        "outcome": row.outcome.as_ref().map(|(intent, status)| json!({
            "of": intent.to_string(), "status": status,
        })),
        "no_outcome": row.is_open(),
    })
}
