//! Whether the people a verdict names said yes, and to what was done.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::finding::{Code, Finding};
use crate::{
    act::LabelAct,
    approval::{ApprovalAnswer, ApprovalDecision, ApprovalRequest, SKEW},
    codec::decode,
    control::{ControlEvent, ControlState},
    digest::Digest,
    ids::{ApprovalId, OperatorId, PartId, TaskId, TenantId, UserId},
    keys::PublicKey,
    record::{
        DecisionId, Record, RecordBody, RecordedAct, RecordedApproval, RecordedDecision, RecordedRight, What,
    },
    signed::{Signable, Signed},
    time::Timestamp,
};

/// What a verdict that allowed something says of the people who let it pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LetPass {
    record: DecisionId,
    at: Timestamp,
    /// Where the record stands, and where its task lives.
    parts: BTreeSet<PartId>,
    task: Option<TaskId>,
    user: Option<UserId>,
    what: What,
    /// The right that was issued, if it is no call.
    right: Option<RecordedRight>,
    approval: Option<RecordedApproval>,
    acts: Vec<RecordedAct>,
}

impl LetPass {
    /// Of a record; none if nobody had to let it pass.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let RecordBody::Verdict(verdicted) = &record.body else { return None };
        let approval = verdicted.approval.as_deref().filter(|approval| !approval.by.is_empty());
        if verdicted.decision != RecordedDecision::Allow || (approval.is_none() && verdicted.acts.is_empty())
        {
            return None;
        }
        Some(Self {
            record: record.id.clone(),
            at: record.at,
            parts: verdicted
                .who
                .domain
                .iter()
                .map(|domain| &domain.part)
                .chain([&record.part])
                .cloned()
                .collect(),
            task: verdicted.who.task.clone(),
            user: verdicted.who.user.clone(),
            what: verdicted.what.clone(),
            right: verdicted.right.as_deref().cloned(),
            approval: approval.cloned(),
            acts: verdicted.acts.clone(),
        })
    }

    /// Whether a request shows what was done.
    fn is_shown_by(&self, request: &ApprovalRequest) -> bool {
        let is_it = match (&request.right, &self.right) {
            (None, None) => self.what.call == Some(request.call),
            (Some(asked), Some(right)) => {
                (&right.right.resource, &right.right.action) == (&request.resource, &request.action)
                    && right.key == asked.holder.id()
                    && self.what.arguments == Some(Digest::plain(request.arguments.as_bytes()))
            }
            _ => false,
        };
        is_it && request.shown() == request.call
    }
}

/// What people were asked and said, and which keys were ever theirs.
#[derive(Debug, Default)]
pub(super) struct Approvals {
    keys: BTreeMap<OperatorId, BTreeSet<PublicKey>>,
    requests: BTreeMap<Digest, ApprovalRequest>,
    answers: BTreeMap<ApprovalId, Vec<Said<ApprovalAnswer>>>,
    acts: BTreeMap<ApprovalId, Vec<Said<LabelAct>>>,
}

/// What somebody claims to have said.
#[derive(Debug)]
struct Said<T> {
    signed: Signed<T>,
    said: T,
}

/// How one of several words that could be meant fails.
enum Fails {
    Missing,
    Signature,
    Binding,
}

impl Approvals {
    /// A control event: it may enroll somebody's key.
    pub(super) fn control_event(&mut self, event: &ControlEvent) {
        if let ControlEvent::ApproverKey { approver, key: Some(key) } = event {
            self.keys.entry(approver.clone()).or_default().insert(*key);
        }
    }

    /// A request, an answer or an act. What is none of these counts for nothing.
    pub(super) fn take(&mut self, envelope: &[u8]) {
        if let Ok(signed) = decode::<Signed<ApprovalRequest>>(envelope) {
            self.requests.extend(signed.peek().ok().map(|request| (signed.digest(), request)));
        } else if let Some(said) = said::<ApprovalAnswer>(envelope) {
            self.answers.entry(said.said.approval.clone()).or_default().push(said);
        } else if let Some(said) = said::<LabelAct>(envelope) {
            self.acts.entry(said.said.id.clone()).or_default().push(said);
        }
    }

    /// What does not fit. What is not here may have been put away with its part.
    pub(super) fn check(&self, control: &ControlState, passed: &LetPass, findings: &mut Vec<Finding>) {
        let tenant = control.tenant();
        let away = passed.parts.iter().find(|part| control.parts().archived().contains_key(*part));
        let mut add = |fails: Fails, text: String| {
            let code = match &fails {
                Fails::Missing => Code::ApprovalMissing,
                Fails::Signature => Code::ApprovalSignature,
                Fails::Binding => Code::ApprovalBinding,
            };
            findings.push(match (fails, away) {
                (Fails::Missing, Some(part)) => {
                    Finding::note(code, &passed.record, format!("{text}; part {part} was put away"))
                }
                _ => Finding::fault(code, &passed.record, text),
            });
        };
        if let Some(approval) = &passed.approval {
            if let Err(fails) = self.check_request(tenant, passed, approval) {
                let why = why(&fails, "shows something else than was done");
                add(fails, format!("the request {} by which it was allowed {why}", approval.id));
            }
            for who in &approval.by {
                let answers = self.answers.get(&approval.id).map(Vec::as_slice).unwrap_or_default();
                let is_it = |answer: &ApprovalAnswer| answer.approver == *who;
                let fits = |answer: &ApprovalAnswer| {
                    answer.tenant == *tenant
                        && answer.request == approval.request
                        && answer.decision == ApprovalDecision::Granted
                        && counts_at(passed.at, answer.at, answer.expires)
                };
                if let Err(fails) = self.one_of(who, answers, is_it, fits) {
                    let why = why(&fails, "is no yes to this, or counted at another time");
                    add(fails, format!("the answer of `{who}` to {} {why}", approval.id));
                }
            }
        }
        for recorded in &passed.acts {
            let acts = self.acts.get(&recorded.id).map(Vec::as_slice).unwrap_or_default();
            let is_it = |act: &LabelAct| act.by == recorded.by;
            let fits = |act: &LabelAct| {
                act.tenant == *tenant
                    && Some(&act.task) == passed.task.as_ref()
                    && Some(act.call) == passed.what.call
                    && act.kind.to_string() == recorded.what
                    && counts_at(passed.at, act.at, act.expires)
            };
            if let Err(fails) = self.one_of(&recorded.by, acts, is_it, fits) {
                let why = why(&fails, "is about something else, or counted at another time");
                add(
                    fails,
                    format!("the word of `{}` ({}, {}) {why}", recorded.by, recorded.id, recorded.what),
                );
            }
        }
    }

    /// The request is the very one the verdict names, whoever signed it: its digest stands in the record.
    fn check_request(
        &self,
        tenant: &TenantId,
        passed: &LetPass,
        approval: &RecordedApproval,
    ) -> Result<(), Fails> {
        let request = self.requests.get(&approval.request).ok_or(Fails::Missing)?;
        let is_its = request.tenant == *tenant
            && request.id == approval.id
            && Some(&request.task) == passed.task.as_ref()
            && Some(&request.user) == passed.user.as_ref()
            && passed.is_shown_by(request);
        is_its.then_some(()).ok_or(Fails::Binding)
    }

    /// Whether one of the words of a person that could be meant is theirs, and is what it should be.
    fn one_of<T: Signable + fmt::Debug>(
        &self,
        who: &OperatorId,
        all: &[Said<T>],
        is_it: impl Fn(&T) -> bool,
        fits: impl Fn(&T) -> bool,
    ) -> Result<(), Fails> {
        let mut fails = Fails::Missing;
        for one in all.iter().filter(|one| is_it(&one.said)) {
            let is_theirs =
                one.signed.open(|key| self.keys.get(who).is_some_and(|keys| keys.contains(key))).is_ok();
            match is_theirs {
                true if fits(&one.said) => return Ok(()),
                true => fails = Fails::Binding,
                false if matches!(fails, Fails::Missing) => fails = Fails::Signature,
                false => {}
            }
        }
        Err(fails)
    }
}

/// Whether something that was said counted when it was relied on, with clocks apart as far as they may be.
fn counts_at(at: Timestamp, said: Timestamp, expires: Timestamp) -> bool {
    said <= at.after(SKEW) && at < expires.after(SKEW)
}

fn why(fails: &Fails, binding: &str) -> String {
    match fails {
        Fails::Missing => "is not here".to_owned(),
        Fails::Signature => "is not signed by a key of theirs".to_owned(),
        Fails::Binding => binding.to_owned(),
    }
}

fn said<T>(envelope: &[u8]) -> Option<Said<T>>
where
    T: Signable,
    Signed<T>: crate::codec::Message,
{
    let signed = decode::<Signed<T>>(envelope).ok()?;
    let said = signed.peek().ok()?;
    Some(Said { signed, said })
}
