//! Whether the people a verdict names said yes, and to what was done.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Code, Finding};
use crate::{
    act::LabelAct,
    approval::{ApprovalAnswer, ApprovalDecision, ApprovalRequest, Need, SKEW},
    codec::decode,
    control::{ControlEvent, ControlState},
    digest::Digest,
    epoch::Epoch,
    ids::{Action, AgentId, ApprovalId, KeyId, OperatorId, PartId, Resource, TaskId, TenantId, UserId},
    keys::PublicKey,
    record::{
        DecisionId, Record, RecordBody, RecordedAct, RecordedApproval, RecordedDecision, RecordedRight, What,
    },
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
};

/// What a verdict that allowed something says of the people who let it pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LetPass {
    record: DecisionId,
    at: Timestamp,
    epoch: Option<Epoch>,
    /// Where the record stands, and where its task lives.
    parts: BTreeSet<PartId>,
    task: Option<TaskId>,
    user: Option<UserId>,
    /// The agents, the one that was given the task first.
    chain: Vec<AgentId>,
    what: What,
    /// The right that was issued, if it is no call.
    right: Option<RecordedRight>,
    approval: Option<RecordedApproval>,
    acts: Vec<RecordedAct>,
}

impl LetPass {
    /// Of a record; none if it says nothing of the kind.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let RecordBody::Verdict(verdicted) = &record.body else { return None };
        let (approval, right) = (verdicted.approval.as_deref(), verdicted.right.as_deref());
        let is_let_pass = approval.is_some() || right.is_some() || !verdicted.acts.is_empty();
        if verdicted.decision != RecordedDecision::Allow || !is_let_pass {
            return None;
        }
        let who = &verdicted.who;
        Some(Self {
            record: record.id.clone(),
            at: record.at,
            epoch: verdicted.basis.epoch,
            parts: who.domain.iter().map(|domain| &domain.part).chain([&record.part]).cloned().collect(),
            task: who.task.clone(),
            user: who.user.clone(),
            chain: who.agent.iter().chain(who.hops.iter().map(|hop| &hop.to)).cloned().collect(),
            what: verdicted.what.clone(),
            right: right.cloned(),
            approval: approval.cloned(),
            acts: verdicted.acts.clone(),
        })
    }

    /// The approval by which it was let pass, and whether that was one of a right.
    pub(super) fn approval(&self) -> Option<(&ApprovalId, bool)> {
        self.approval.as_ref().map(|approval| (&approval.id, self.right.is_some()))
    }

    /// The acts by which it was let pass.
    pub(super) fn acts(&self) -> impl Iterator<Item = &ApprovalId> {
        self.acts.iter().map(|act| &act.id)
    }

    /// Whether a request shows what was done, and was open then.
    fn is_shown_by(&self, asked: &Asked) -> bool {
        let is_it = match (&asked.right, &self.right) {
            (None, None) => {
                let what = (self.what.resource.as_ref(), self.what.action.as_ref(), self.what.contract);
                what == (Some(&asked.resource), Some(&asked.action), asked.contract)
            }
            (Some((holder, life)), Some(right)) => {
                let ends_in_time = right.expires.is_some_and(|expires| expires <= self.at.after(*life));
                (&right.right.resource, &right.right.action) == (&asked.resource, &asked.action)
                    && right.key == *holder
                    && ends_in_time
            }
            _ => false,
        };
        is_it
            && asked.shows_itself
            && self.what.call == Some(asked.call)
            && self.what.arguments == Some(asked.arguments)
            && self.chain == asked.chain
            && self.at < asked.expires.after(SKEW)
    }
}

/// A request, without the arguments it shows.
#[derive(Debug)]
struct Asked {
    tenant: TenantId,
    id: ApprovalId,
    task: TaskId,
    user: UserId,
    chain: Vec<AgentId>,
    resource: Resource,
    action: Action,
    contract: Option<Digest>,
    arguments: Digest,
    call: Digest,
    /// Whether that is the digest of what it shows.
    shows_itself: bool,
    needs: Vec<Need>,
    expires: Timestamp,
    /// Of a right: the key that would hold it, and for how long.
    right: Option<(KeyId, Millis)>,
}

impl From<ApprovalRequest> for Asked {
    fn from(request: ApprovalRequest) -> Self {
        Self {
            shows_itself: request.shown() == request.call,
            arguments: Digest::plain(request.arguments.as_bytes()),
            right: request.right.map(|right| (right.holder.id(), right.life)),
            tenant: request.tenant,
            id: request.id,
            task: request.task,
            user: request.user,
            chain: request.chain,
            resource: request.resource,
            action: request.action,
            contract: request.contract,
            call: request.call,
            needs: request.needs,
            expires: request.expires,
        }
    }
}

/// What people were asked and said, which keys were theirs when, and when parts were sealed.
#[derive(Debug, Default)]
pub(super) struct Approvals {
    keys: BTreeMap<OperatorId, Vec<Enrolled>>,
    /// The sequence of the event by which a part was sealed.
    sealed: BTreeMap<PartId, u64>,
    requests: BTreeMap<Digest, Asked>,
    answers: BTreeMap<ApprovalId, Vec<Said<ApprovalAnswer>>>,
    acts: BTreeMap<ApprovalId, Vec<Said<LabelAct>>>,
}

/// A key of an approver.
#[derive(Debug)]
struct Enrolled {
    key: PublicKey,
    /// The sequence of its event.
    from: u64,
    /// That of the event that withdrew or replaced it, and when.
    until: Option<(u64, Timestamp)>,
}

/// What somebody claims to have said.
#[derive(Debug)]
pub struct Said<T> {
    /// As it was signed.
    pub signed: Signed<T>,
    /// What that says, whoever signed it.
    pub said: T,
}

/// A message between whoever asks and approvers.
#[derive(Debug)]
pub enum Word {
    /// What was asked.
    Request(Box<Said<ApprovalRequest>>),
    /// An answer to that.
    Answer(Said<ApprovalAnswer>),
    /// A declassification or an endorsement.
    Act(Said<LabelAct>),
}

impl Word {
    /// Reads an envelope; none if it is nothing of the kind.
    #[must_use]
    pub fn read(envelope: &[u8]) -> Option<Self> {
        said(envelope)
            .map(|said| Self::Request(Box::new(said)))
            .or_else(|| said(envelope).map(Self::Answer))
            .or_else(|| said(envelope).map(Self::Act))
    }

    /// The task it names; an answer names only the request.
    #[must_use]
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Self::Request(request) => Some(&request.said.task),
            Self::Answer(_) => None,
            Self::Act(act) => Some(&act.said.task),
        }
    }
}

/// How what should be there fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fails {
    Missing,
    Signature,
    Binding,
}

impl Approvals {
    /// A control event that counts, and the state after it.
    pub(super) fn control_event(
        &mut self,
        sequence: u64,
        event: &ControlEvent,
        at: Timestamp,
        control: &ControlState,
    ) {
        match event {
            ControlEvent::ApproverKey { approver, key } => {
                let keys = self.keys.entry(approver.clone()).or_default();
                for enrolled in keys.iter_mut().filter(|enrolled| enrolled.until.is_none()) {
                    enrolled.until = Some((sequence, at));
                }
                keys.extend(key.map(|key| Enrolled { key, from: sequence, until: None }));
            }
            ControlEvent::Part { part, .. } if control.parts().is_sealed(part) => {
                self.sealed.entry(part.clone()).or_insert(sequence);
            }
            _ => {}
        }
    }

    /// A request, an answer or an act. What is none of these counts for nothing.
    pub(super) fn take(&mut self, envelope: &[u8]) {
        match Word::read(envelope) {
            Some(Word::Request(request)) => {
                self.requests.insert(request.signed.digest(), request.said.into());
            }
            Some(Word::Answer(answer)) => {
                self.answers.entry(answer.said.approval.clone()).or_default().push(answer);
            }
            Some(Word::Act(act)) => self.acts.entry(act.said.id.clone()).or_default().push(act),
            None => {}
        }
    }

    /// What does not fit.
    pub(super) fn check(&self, control: &ControlState, passed: &LetPass, findings: &mut Vec<Finding>) {
        let tenant = control.tenant();
        let away = self.away(control, passed);
        let mut add = |fails: Fails, is_digest: bool, text: String| {
            let code = match fails {
                Fails::Missing => Code::ApprovalMissing,
                Fails::Signature => Code::ApprovalSignature,
                Fails::Binding => Code::ApprovalBinding,
            };
            findings.push(match away {
                // What is left of several words proves nothing about the one that is not.
                Some(part) if fails == Fails::Missing || !is_digest => {
                    let text = format!("{text}; part {part} was put away");
                    Finding::warning(Code::ApprovalMissing, &passed.record, text)
                }
                _ => Finding::fault(code, &passed.record, text),
            });
        };
        match &passed.approval {
            Some(approval) => {
                if let Err(fails) = self.check_request(tenant, passed, approval) {
                    let why = why(fails, "shows something else than was done, or asked for other people");
                    add(fails, true, format!("the request {} by which it was allowed {why}", approval.id));
                }
                for who in &approval.by {
                    let answers = self.answers.get(&approval.id).map(Vec::as_slice).unwrap_or_default();
                    let fits = |answer: &ApprovalAnswer| {
                        answer.tenant == *tenant
                            && answer.request == approval.request
                            && answer.decision == ApprovalDecision::Granted
                            && answer.at <= passed.at.after(SKEW)
                            && passed.at < answer.expires.after(SKEW)
                    };
                    let is_it = |answer: &ApprovalAnswer| answer.approver == *who;
                    if let Err(fails) = self.one_of(who, passed, answers, is_it, fits) {
                        let why = why(fails, "is no yes to this, or counted at another time");
                        add(fails, false, format!("the answer of `{who}` to {} {why}", approval.id));
                    }
                }
            }
            // No right is issued without people.
            None if passed.right.is_some() => {
                add(
                    Fails::Binding,
                    true,
                    "a right was issued, and nobody is named who approved it".to_owned(),
                );
            }
            None => {}
        }
        for recorded in &passed.acts {
            let acts = self.acts.get(&recorded.id).map(Vec::as_slice).unwrap_or_default();
            let fits = |act: &LabelAct| {
                act.tenant == *tenant
                    && Some(&act.task) == passed.task.as_ref()
                    && Some(&act.resource) == passed.what.resource.as_ref()
                    && Some(&act.action) == passed.what.action.as_ref()
                    && Some(act.call) == passed.what.call
                    && act.kind.to_string() == recorded.what
                    && passed.at < act.expires.after(SKEW)
            };
            let is_it = |act: &LabelAct| act.by == recorded.by;
            if let Err(fails) = self.one_of(&recorded.by, passed, acts, is_it, fits) {
                let why = why(fails, "is about something else, or counted at another time");
                let (by, id, what) = (&recorded.by, &recorded.id, &recorded.what);
                add(fails, false, format!("the word of `{by}` ({id}, {what}) {why}"));
            }
        }
    }

    /// The part with which what was said may have been put away: it was not sealed yet when the verdict was given.
    fn away<'a>(&self, control: &ControlState, passed: &'a LetPass) -> Option<&'a PartId> {
        passed.parts.iter().find(|part| {
            let was_open = match (passed.epoch, self.sealed.get(*part)) {
                (Some(epoch), Some(sealed)) => epoch.sequence < *sealed,
                _ => true,
            };
            was_open && control.parts().archived().contains_key(*part)
        })
    }

    /// The request is the very one the verdict names, whoever signed it: its digest stands in the record.
    fn check_request(
        &self,
        tenant: &TenantId,
        passed: &LetPass,
        approval: &RecordedApproval,
    ) -> Result<(), Fails> {
        let people: BTreeSet<&OperatorId> = approval.by.iter().collect();
        let wanted: usize = approval.needs.iter().map(|need| usize::from(need.count)).sum();
        // One who says yes counts once.
        if people.len() < wanted.max(1) || people.len() < approval.by.len() {
            return Err(Fails::Binding);
        }
        let asked = self.requests.get(&approval.request).ok_or(Fails::Missing)?;
        let is_its = asked.tenant == *tenant
            && asked.id == approval.id
            && asked.needs == approval.needs
            && Some(&asked.task) == passed.task.as_ref()
            && Some(&asked.user) == passed.user.as_ref()
            && passed.is_shown_by(asked);
        is_its.then_some(()).ok_or(Fails::Binding)
    }

    /// Whether one of the words of a person that could be meant is theirs, and is what it should be.
    fn one_of<T: Signable>(
        &self,
        who: &OperatorId,
        passed: &LetPass,
        all: &[Said<T>],
        is_it: impl Fn(&T) -> bool,
        fits: impl Fn(&T) -> bool,
    ) -> Result<(), Fails> {
        let all = || all.iter().filter(|one| is_it(&one.said));
        let is_theirs = |one: &Said<T>| one.signed.open(|key| self.is_key_of(who, key, passed)).is_ok();
        // Signatures cost most, so what does not fit is not looked at unless nothing does.
        if all().any(|one| fits(&one.said) && is_theirs(one)) {
            return Ok(());
        }
        Err(match all().next() {
            None => Fails::Missing,
            Some(_) if all().any(is_theirs) => Fails::Binding,
            Some(_) => Fails::Signature,
        })
    }

    /// Whether a key was an approver's at the state a verdict was given at, or until right before: a broker takes note of that
    /// state when it has claimed the approval.
    fn is_key_of(&self, who: &OperatorId, key: &PublicKey, passed: &LetPass) -> bool {
        let Some(epoch) = passed.epoch else { return self.keys_of(who).any(|enrolled| enrolled.key == *key) };
        self.keys_of(who).any(|enrolled| {
            let is_over =
                |(sequence, at): (u64, Timestamp)| sequence <= epoch.sequence && at.after(SKEW) < passed.at;
            enrolled.key == *key && enrolled.from <= epoch.sequence && !enrolled.until.is_some_and(is_over)
        })
    }

    fn keys_of(&self, who: &OperatorId) -> impl Iterator<Item = &Enrolled> {
        self.keys.get(who).into_iter().flatten()
    }
}

fn why(fails: Fails, binding: &str) -> &str {
    match fails {
        Fails::Missing => "is not here",
        Fails::Signature => "is not signed by a key that was theirs then",
        Fails::Binding => binding,
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
