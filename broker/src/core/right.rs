//! Rights that tasks ask for beyond what they hold: people are asked, and one capability comes of it.
//!
//! Only the agent a task was given to asks, with the key it was given to. A capability issued to anybody else would
//! not know the chain it came through: revoking somebody in between would not reach it, and rules about hops would
//! not see them. What a delegated agent lacks, the one above it asks for and does.
//!
//! The order is that of a held call at a node. The hold is journalled before people are asked. Once enough of them
//! said yes, the approval is claimed by compare-and-set, the issue is recorded, the claim is marked used by another
//! compare-and-set, and only then the capability leaves. Whoever asks again with the same nonce finds the same
//! approval, and the same capability as long as this run of the broker remembers it.

use std::collections::{BTreeMap, BTreeSet};

use writ_bus::{Fence, Store, StoreError, Stored};
use writ_common::{
    approval::{
        ApprovalClaim, ApprovalRequest, ApprovalTerms, Approved, ApprovedCall, AskedRight, ClaimState, Need,
        Standing, in_words,
    },
    capability::{Grant, Narrowing, Right},
    codec::encode,
    decide::{ASK, Evidence, ask_arguments, bound_values, decide, without_policy},
    digest::Digest,
    entropy::draw,
    epoch::Epoch,
    ids::{Action, ApprovalId, NodeId, PartId, Resource, ResourceKind, TaskId, UserId},
    keys::PublicKey,
    label::Label,
    reason::{Reason, ReasonCode},
    record::{
        Basis, Outcome, OutcomeStatus, Record, RecordBody, RecordedApproval, RecordedDecision,
        RecordedReason, RecordedRight, Verdicted, What, Who,
    },
    recorder::Prepared,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    verdict::{Decision, Verdict},
    wire::{IssueAnswer, RightWanted, ToldReason, WHY_BYTES_MAX, right_digest, right_id},
};

use super::{
    Broker, CallRef, Effect, Pending, TaskEntry,
    control::what_of,
    issue::{Asking, Back, trace_ref},
    told,
};

/// Most capabilities that are remembered for whoever lost the answer.
const HANDED_MAX: usize = 4_096;

/// What this run knows of rights on their way.
#[derive(Default)]
pub(super) struct Rights {
    /// Approvals something is being done about.
    under_way: BTreeSet<ApprovalId>,
    /// Those of them whose request is on its way to the stream.
    asking: BTreeMap<ApprovalId, (TaskId, UserId)>,
    /// What was handed out.
    handed: BTreeMap<ApprovalId, Handed>,
}

/// A capability that left, for whoever asks again with the same nonce.
struct Handed {
    call: Digest,
    expires: Timestamp,
    capability: Vec<u8>,
}

impl Rights {
    /// Forgets what has ended.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.handed.retain(|_, handed| handed.expires > now);
    }
}

/// A right that was asked for, and how far that has got.
pub(super) struct Way {
    wanting: Wanting,
    step: Step,
}

/// Who wants what, checked.
struct Wanting {
    back: Back,
    entry: TaskEntry,
    holder: PublicKey,
    right: Right,
    arguments: Arguments,
    why: String,
    id: ApprovalId,
    who: Who,
    what: What,
}

enum Step {
    /// The hold is being written, then the request published.
    Asking { hold: Box<Prepared>, store: Store, needs: Vec<Need>, expires: Timestamp },
    /// The claim is being published.
    Claiming { claim: ApprovalClaim, approved: Approved, verdict: Box<Verdict>, epoch: Epoch, life: Millis },
    /// The issue is being recorded.
    Issuing(Box<Issuing>),
    /// The use of the claim is being published.
    Using { issuing: Box<Issuing>, store: Store, is_again: bool },
}

struct Issuing {
    claim: ApprovalClaim,
    /// Stream sequence of the claim.
    sequence: u64,
    verdicted: Verdicted,
    prepared: Prepared,
    expires: Timestamp,
}

impl Broker {
    /// Takes a message about approvals.
    pub(super) fn approval_event(&mut self, sequence: u64, subject: &str, payload: &[u8], now: Now) {
        if let Err(fault) = self.approvals.take(sequence, subject, payload, now.wall) {
            self.alarm(fault.to_string());
        }
    }

    pub(super) fn want_right(&mut self, asking: &Asking, wanted: RightWanted, now: Now) {
        let call_id = right_id(&asking.holder, &wanted.nonce);
        let who = Who {
            task: Some(wanted.task.clone()),
            caller: Some(asking.agent.clone()),
            holder: Some(asking.holder.fingerprint()),
            connection: asking.connection.clone(),
            ..Who::default()
        };
        let what = What { call_id: Some(call_id), ..what_of(ASK) };
        let right = RecordedRight { right: wanted.right.clone(), key: asking.holder.id(), expires: None };
        let (entry, arguments) = match self.check_wanted(asking, &wanted, now) {
            Ok(checked) => checked,
            Err(reason) => {
                let verdict = Verdict::deny(reason, None);
                return self.refuse_right(asking.back, &verdict, (who, what, right), now);
            }
        };
        let contract = self.policy.as_ref().and_then(|policy| policy.contract(&wanted.right.resource));
        let wanting = Wanting {
            back: asking.back,
            holder: asking.holder,
            id: ApprovalId::of_call(&call_id),
            who: Who {
                user: Some(entry.user.clone()),
                agent: Some(entry.agent.clone()),
                domain: Some(entry.domain.clone()),
                ..who
            },
            what: What {
                resource: Some(Resource::task(&entry.kind)),
                arguments: Some(arguments.digest()),
                contract: contract.map(|contract| contract.digest),
                ..what
            },
            right: wanted.right,
            arguments,
            why: wanted.why,
            entry,
        };
        self.judge_right(wanting, now);
    }

    /// Whether this agent may ask at all, and for something that could be issued.
    fn check_wanted(
        &self,
        asking: &Asking,
        wanted: &RightWanted,
        now: Now,
    ) -> Result<(TaskEntry, Arguments), Reason> {
        let refused = |why: std::fmt::Arguments<'_>| Reason::new(ReasonCode::RightNotRequestable).told(why);
        let is_anothers = self
            .tasks
            .get(&wanted.task)
            .is_some_and(|entry| entry.agent != asking.agent || entry.key != asking.holder.id());
        if is_anothers {
            return Err(refused(format_args!(
                "only the agent the task was given to asks, with the key it was given to"
            )));
        }
        let entry = self.check_renewal(asking, &wanted.task, now)?;
        if wanted.right.resource.kind() != ResourceKind::Tool {
            return Err(refused(format_args!("`{}` is on no tool", wanted.right)));
        }
        if entry.rights.contains(&wanted.right) {
            return Err(refused(format_args!("the task holds `{}`", wanted.right)));
        }
        if wanted.why.trim().is_empty() || wanted.why.len() > WHY_BYTES_MAX {
            return Err(Reason::new(ReasonCode::ArgInvalid)
                .told(format_args!("say why, in 1 to {WHY_BYTES_MAX} bytes")));
        }
        bound_values(&wanted.arguments)?;
        Ok((entry, Arguments::parse(&wanted.arguments)?))
    }

    /// What policy says of it now.
    fn decide_right(&self, entry: &TaskEntry, right: &Right, now: Now) -> Verdict {
        let Some(policy) = &self.policy else { return without_policy() };
        let Ok(action) = Action::parse(ASK) else { return without_policy() };
        let request = Request {
            principal: Principal::User {
                user: entry.user.clone(),
                roles: entry.roles.clone(),
                agent: entry.agent.clone(),
            },
            action,
            resource: Resource::task(&entry.kind),
            arguments: ask_arguments(right),
            environment: Environment {
                tenant: self.setup.tenant.clone(),
                task: Some(entry.task.clone()),
                task_kind: Some(entry.kind.clone()),
            },
        };
        // A broker does not read task labels, and what is not known counts as the highest there is.
        let label = Label::top();
        decide(&request, &Evidence::new(&self.control, &label), policy, now.wall)
    }

    /// Asks people, tells how it stands, or goes on to issue it.
    fn judge_right(&mut self, mut wanting: Wanting, now: Now) {
        let verdict = self.decide_right(&wanting.entry, &wanting.right, now);
        let terms = verdict.approval().cloned();
        let life = verdict.grant_bounds().map(|bounds| bounds.capability_life);
        let (Decision::Allow, Some(terms), Some(life)) = (verdict.decision(), terms, life) else {
            return self.refuse_wanting(&wanting, &verdict, now);
        };
        let denied = |reason: Reason| Verdict::deny(reason, verdict.policy_revision());
        if !self.approvals_read {
            let reason = Reason::new(ReasonCode::ApprovalUnavailable).noted("approvals are still being read");
            return self.refuse_wanting(&wanting, &denied(reason), now);
        }
        // Asked for shorter since: the approval stands, and the capability ends sooner.
        let known = self.approvals.get(&wanting.id).and_then(|known| known.request().right.as_ref());
        let shown = known.map_or(life, |asked| asked.life);
        wanting.what.call = Some(wanting.call(shown));
        if let Some(handed) = self.rights.handed.get(&wanting.id)
            && handed.expires > now.wall
            && Some(handed.call) == wanting.what.call
        {
            // It was lost on the way: handing the same to the same key again decides nothing.
            let (approval, capability) = (wanting.id.clone(), handed.capability.clone());
            return self.answer(wanting.back, IssueAnswer::Right { approval, capability });
        }
        if self.rights.under_way.contains(&wanting.id) {
            let answer = wanting.held(now.wall.after(terms.life), terms.needs, &[]);
            return self.answer(wanting.back, answer);
        }
        if self.approvals.has_ended(&wanting.id) {
            return self.refuse_wanting(&wanting, &denied(ReasonCode::ApprovalExpired.into()), now);
        }
        if self.approvals.get(&wanting.id).is_none() {
            return self.ask_for_right(wanting, &verdict, &terms, life, now);
        }
        match self.weigh_right(&wanting, &terms, now) {
            Ok(Standing::Granted(approved)) => {
                self.claim_right(wanting, approved, verdict, life.min(shown), now);
            }
            Ok(Standing::Waiting { missing, unusable }) => {
                // The hold is on record already; asking how it stands is no other verdict.
                let ends = self.approvals.get(&wanting.id).map(|known| known.request().expires);
                let answer = wanting.held(ends.unwrap_or(now.wall), missing, &unusable);
                self.answer(wanting.back, answer);
            }
            Err(reason) => self.refuse_wanting(&wanting, &denied(reason), now),
        }
    }

    fn weigh_right(&self, wanting: &Wanting, terms: &ApprovalTerms, now: Now) -> Result<Standing, Reason> {
        let policy = self.policy.as_ref().ok_or(ReasonCode::PolicyUnavailable)?;
        let contract = policy.contract(&wanting.right.resource).map(|contract| contract.digest);
        let asks = ApprovedCall {
            user: &wanting.entry.user,
            task: &wanting.entry.task,
            chain: std::slice::from_ref(&wanting.entry.agent),
            call: wanting.what.call.unwrap_or(Digest::from_bytes([0; 32])),
            contract,
        };
        self.approvals.weigh(&wanting.id, &asks, terms, &self.control, policy, now.wall)
    }

    /// Journals the hold, then has the request published.
    fn ask_for_right(
        &mut self,
        wanting: Wanting,
        verdict: &Verdict,
        terms: &ApprovalTerms,
        life: Millis,
        now: Now,
    ) {
        let entry = &wanting.entry;
        let room = if self.is_short_of_room(&entry.domain.part) {
            Err(ReasonCode::AuditFull.into())
        } else {
            let asking = self.rights.asking.values();
            self.approvals.check_quota(&entry.task, &entry.user, asking, now.wall)
        };
        if let Err(reason) = room {
            return self.refuse_wanting(&wanting, &Verdict::deny(reason, verdict.policy_revision()), now);
        }
        let Some(policy) = verdict.policy_revision() else { return };
        let request = ApprovalRequest {
            tenant: self.setup.tenant.clone(),
            id: wanting.id.clone(),
            node: NodeId::of_broker(&self.setup.broker),
            at: now.wall,
            expires: now.wall.after(terms.life),
            user: entry.user.clone(),
            task: entry.task.clone(),
            chain: vec![entry.agent.clone()],
            resource: wanting.right.resource.clone(),
            action: wanting.right.action.clone(),
            arguments: wanting.arguments.canonical().to_owned(),
            call: wanting.call(life),
            contract: wanting.what.contract,
            policy,
            rules: verdict.rules().to_vec(),
            label: Label::top(),
            origins: Default::default(),
            sources: Vec::new(),
            needs: terms.needs.clone(),
            trace: trace_ref(wanting.back.trace),
            right: Some(AskedRight { holder: wanting.holder, life, why: wanting.why.clone() }),
        };
        let signed = Signed::new(&request, &self.setup.key);
        let subject =
            Subject::ApprovalRequest { part: entry.domain.part.clone(), approval: wanting.id.clone() }
                .of(&self.setup.tenant);
        // Whoever asks first has asked: what people see cannot be exchanged afterwards.
        let store = Store::fenced(subject, 0, encode(&signed));
        let mut hold = self.verdicted(RecordedDecision::Hold, verdict, &wanting);
        let needed = Reason::new(ReasonCode::ApprovalNeeded).told(in_words(&terms.needs));
        hold.reasons = vec![RecordedReason::from(&needed)];
        hold.approval = Some(Box::new(RecordedApproval {
            id: wanting.id.clone(),
            request: signed.digest(),
            needs: terms.needs.clone(),
            by: Vec::new(),
            waited: None,
        }));
        self.span(&hold, &entry.agent, wanting.back, now);
        let part = self.control.parts().for_record(&entry.domain.part);
        let hold = Box::new(self.recorder.prepare(part, RecordBody::Verdict(Box::new(hold)), now.wall));
        self.rights.under_way.insert(wanting.id.clone());
        self.rights.asking.insert(wanting.id.clone(), (entry.task.clone(), entry.user.clone()));
        let ticket = self.journal(&hold);
        let step = Step::Asking { hold, store, needs: terms.needs.clone(), expires: request.expires };
        self.pending.insert(ticket, Pending::Right(Box::new(Way { wanting, step })));
    }

    /// What had to be in the journal first is there.
    pub(super) fn right_written(&mut self, way: Box<Way>) {
        let store = match &way.step {
            Step::Asking { store, .. } => store.clone(),
            Step::Issuing(issuing) => Self::store_of(&issuing.prepared),
            Step::Claiming { .. } | Step::Using { .. } => return,
        };
        self.publish_step(way, store);
    }

    fn publish_step(&mut self, way: Box<Way>, store: Store) {
        let ticket = self.fresh_ticket();
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        self.pending.insert(ticket, Pending::Right(way));
    }

    /// Nothing can be written down, so nothing is done.
    pub(super) fn right_unwritten(&mut self, way: &Way) {
        self.settle(&way.wanting.id);
        let reasons = told(&[ReasonCode::AuditFull.into()]);
        self.answer(way.wanting.back, IssueAnswer::Refused { reasons });
    }

    /// What the stream said about a step.
    pub(super) fn right_published(&mut self, way: Box<Way>, result: Result<Stored, StoreError>, now: Now) {
        let Way { wanting, step } = *way;
        match step {
            Step::Asking { hold, store, needs, expires } => {
                self.right_asked(&wanting, hold, &store, (needs, expires), result, now);
            }
            Step::Claiming { claim, approved, verdict, epoch, life } => match result {
                Ok(stored) => {
                    let decided = (*verdict, epoch, life);
                    self.right_claimed(wanting, (claim, stored.sequence), &approved, decided, now);
                }
                Err(error) => {
                    self.settle(&wanting.id);
                    let verdict = Verdict::deny(claim_lost(&error), verdict.policy_revision());
                    self.refuse_wanting(&wanting, &verdict, now);
                }
            },
            Step::Issuing(issuing) => self.right_recorded(wanting, issuing, result, now),
            Step::Using { issuing, store, is_again } => match result {
                Ok(stored) => self.right_used(&wanting, &issuing, stored.sequence, now),
                Err(StoreError::Unknown(_)) if !is_again => {
                    let step = Step::Using { issuing, store: store.clone(), is_again: true };
                    self.publish_step(Box::new(Way { wanting, step }), store);
                }
                Err(error) => self.not_handed_out(&wanting, &issuing, &claim_lost(&error), now),
            },
        }
    }

    fn right_asked(
        &mut self,
        wanting: &Wanting,
        hold: Box<Prepared>,
        store: &Store,
        (needs, expires): (Vec<Need>, Timestamp),
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        self.settle(&wanting.id);
        let error = match result {
            Ok(stored) => {
                self.approval_event(stored.sequence, &store.subject, &store.payload, now);
                self.publish_record(hold);
                let answer = wanting.held(expires, needs, &[]);
                return self.answer(wanting.back, answer);
            }
            Err(error) => error,
        };
        // The very same was asked for just before, of another broker: whoever asks waits for that.
        let answer = match error {
            StoreError::Fenced => wanting.held(expires, needs, &[]),
            _ => IssueAnswer::Refused { reasons: told(&[ReasonCode::ApprovalUnavailable.into()]) },
        };
        let reason = Reason::new(ReasonCode::ApprovalUnavailable).noted(error);
        self.void_right(wanting, &hold, &reason, now);
        self.answer(wanting.back, answer);
    }

    fn void_right(&mut self, wanting: &Wanting, prepared: &Prepared, reason: &Reason, now: Now) {
        let (who, what) = (wanting.who.clone(), wanting.what.clone());
        let void = self.recorder.void(prepared, RecordedReason::from(reason), who, what, now.wall);
        let _written = self.journal(&void);
        self.publish_record(Box::new(void));
    }

    /// Enough people said yes: take the approval.
    fn claim_right(
        &mut self,
        wanting: Wanting,
        approved: Approved,
        verdict: Verdict,
        life: Millis,
        now: Now,
    ) {
        let claim = ApprovalClaim {
            tenant: self.setup.tenant.clone(),
            approval: wanting.id.clone(),
            call_id: wanting.what.call_id.unwrap_or(Digest::from_bytes([0; 32])),
            node: NodeId::of_broker(&self.setup.broker),
            boot: self.setup.boot.clone(),
            at: now.wall,
            state: ClaimState::Claimed,
        };
        match self.approvals.claimable(&claim.approval, &claim.call_id, now.wall) {
            Ok(sequence) => {
                let store = self.claim_store(&claim, &wanting.entry.domain.part, sequence);
                self.rights.under_way.insert(wanting.id.clone());
                let epoch = self.control.epoch();
                let step = Step::Claiming { claim, approved, verdict: Box::new(verdict), epoch, life };
                self.publish_step(Box::new(Way { wanting, step }), store);
            }
            Err(reason) => {
                let verdict = Verdict::deny(reason, verdict.policy_revision());
                self.refuse_wanting(&wanting, &verdict, now);
            }
        }
    }

    fn claim_store(&self, claim: &ApprovalClaim, part: &PartId, sequence: u64) -> Store {
        let subject = Subject::ApprovalClaim { part: part.clone(), approval: claim.approval.clone() }
            .of(&self.setup.tenant);
        let mut store = Store::fenced(subject, sequence, encode(&Signed::new(claim, &self.setup.key)));
        if writ_common::red::off("H09-right") {
            store.fence = Fence::None;
        }
        store
    }

    /// The approval is taken: record the issue.
    fn right_claimed(
        &mut self,
        mut wanting: Wanting,
        (claim, sequence): (ApprovalClaim, u64),
        approved: &Approved,
        (verdict, epoch, life): (Verdict, Epoch, Millis),
        now: Now,
    ) {
        let asked = self.approvals.get(&wanting.id).map(|known| known.request().at);
        let recorded = RecordedApproval {
            id: wanting.id.clone(),
            request: approved.request(),
            needs: approved.terms().needs.clone(),
            by: approved.by().to_vec(),
            waited: asked.map(|asked| now.wall.since(asked)),
        };
        self.approvals.claimed(sequence, claim.clone());
        let capability = match wanting.entry.capability.extra(&wanting.id) {
            Ok(capability) => capability,
            Err(error) => {
                self.settle(&wanting.id);
                let reason = Reason::new(ReasonCode::IdSyntax).told(error);
                return self.refuse_wanting(&wanting, &Verdict::deny(reason, None), now);
            }
        };
        wanting.who.capability = Some(capability);
        wanting.who.serial = Some(1);
        wanting.who.issuer = Some(self.setup.key.public().fingerprint());
        // Capabilities count in whole seconds.
        let end = now.wall.after(life).min(wanting.entry.deadline);
        let expires = Timestamp::from_secs(end.as_secs());
        let verdict = verdict.discharged(approved);
        let mut verdicted = self.verdicted(RecordedDecision::Allow, &verdict, &wanting);
        // What policy and people said, they said at that state.
        verdicted.basis.epoch = Some(epoch);
        verdicted.approval = Some(Box::new(recorded));
        if let Some(right) = &mut verdicted.right {
            right.expires = Some(expires);
        }
        self.span(&verdicted, &wanting.entry.agent, wanting.back, now);
        let body = RecordBody::Verdict(Box::new(verdicted.clone()));
        let part = self.control.parts().for_record(&wanting.entry.domain.part);
        let prepared = self.recorder.prepare(part, body, now.wall);
        let ticket = self.journal(&prepared);
        let step = Step::Issuing(Box::new(Issuing { claim, sequence, verdicted, prepared, expires }));
        self.pending.insert(ticket, Pending::Right(Box::new(Way { wanting, step })));
    }

    /// The issue is on record: look once more, then mark the approval used.
    fn right_recorded(
        &mut self,
        wanting: Wanting,
        issuing: Box<Issuing>,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let stored = match result {
            Ok(stored) => stored,
            Err(error) => {
                self.alarm(format!("the record of {} was not taken: {error}", wanting.id));
                self.settle(&wanting.id);
                // Under its own id: if it was stored after all, the void is dropped, and nobody holds the right.
                let reason = Reason::new(ReasonCode::AuditUnavailable).noted(error);
                self.void_right(&wanting, &issuing.prepared, &reason, now);
                let reasons = told(&[ReasonCode::AuditUnavailable.into()]);
                return self.answer(wanting.back, IssueAnswer::Refused { reasons });
            }
        };
        self.committed(&issuing.prepared, &issuing.prepared.subject, stored.sequence);
        // Answers may have ended, and roles, keys and policy changed, since it was claimed.
        if let Err(reason) = self.still_granted(&wanting, now) {
            return self.not_handed_out(&wanting, &issuing, &reason, now);
        }
        let claim = ApprovalClaim { at: now.wall, state: ClaimState::Used, ..issuing.claim.clone() };
        let mut store = self.claim_store(&claim, &wanting.entry.domain.part, issuing.sequence);
        // Sent again after a lost acknowledgement, the stream says that it was ours. Ours alone: another broker may have
        // taken the claim over for the very same request, and what it used must not pass for what we did.
        let (by, run) = (&claim.node, &claim.boot);
        store.message_id = Some(format!("used-{}-{by}-{run}-{}", claim.approval, issuing.sequence));
        let step = Step::Using { issuing, store: store.clone(), is_again: false };
        self.publish_step(Box::new(Way { wanting, step }), store);
    }

    fn still_granted(&self, wanting: &Wanting, now: Now) -> Result<(), Reason> {
        self.check_alive(&wanting.entry, now)?;
        let verdict = self.decide_right(&wanting.entry, &wanting.right, now);
        let Some(terms) = verdict.approval() else {
            return Err(verdict.main_reason().cloned().unwrap_or(ReasonCode::RightNotRequestable.into()));
        };
        match self.weigh_right(wanting, terms, now)? {
            Standing::Granted(_) => Ok(()),
            Standing::Waiting { missing, unusable } => Err(unusable
                .into_iter()
                .next()
                .unwrap_or_else(|| Reason::new(ReasonCode::ApprovalNeeded).told(in_words(&missing)))),
        }
    }

    fn check_alive(&self, entry: &TaskEntry, now: Now) -> Result<(), Reason> {
        if now.wall >= entry.deadline {
            return Err(ReasonCode::TaskDeadline.into());
        }
        self.control.check_task(&entry.capability, &entry.task, &entry.user, &entry.agent, entry.started)
    }

    /// The approval is used up: only now the capability leaves.
    fn right_used(&mut self, wanting: &Wanting, issuing: &Issuing, sequence: u64, now: Now) {
        let used = ApprovalClaim { state: ClaimState::Used, ..issuing.claim.clone() };
        self.approvals.claimed(sequence, used);
        let issued = self.check_alive(&wanting.entry, now).and_then(|()| self.extra(wanting, issuing));
        let capability = match issued {
            Ok(capability) => capability,
            Err(reason) => return self.not_handed_out(wanting, issuing, &reason, now),
        };
        self.settle(&wanting.id);
        if let Some(call) = wanting.what.call
            && self.rights.handed.len() < HANDED_MAX
        {
            let handed = Handed { call, expires: issuing.expires, capability: capability.clone() };
            self.rights.handed.insert(wanting.id.clone(), handed);
        }
        self.answer(wanting.back, IssueAnswer::Right { approval: wanting.id.clone(), capability });
    }

    /// The capability: one right, for the key that asked, to be used and not handed on.
    fn extra(&mut self, wanting: &Wanting, issuing: &Issuing) -> Result<Vec<u8>, Reason> {
        let Wanting { entry, right, .. } = wanting;
        let values = bound_values(wanting.arguments.canonical())?;
        // One check for each: a single one holds no more than a few conditions.
        let bounds = values
            .into_iter()
            .flat_map(|value| Narrowing::new().only_where([(right.clone(), vec![value])]).checks().to_vec());
        let capability = issuing.verdicted.who.capability.clone();
        let grant = Grant {
            tenant: self.setup.tenant.clone(),
            user: entry.user.clone(),
            agent: entry.agent.clone(),
            task: entry.task.clone(),
            holder: wanting.holder,
            capability: capability.ok_or(ReasonCode::TokenFormat)?,
            serial: 1,
            instruction: entry.instruction,
            domain: entry.domain.clone(),
            rights: [right.clone()].into(),
            expires: issuing.expires,
            // What it was decided on: a revocation since then covers it.
            min_epoch: issuing.verdicted.basis.epoch.unwrap_or_default(),
            max_depth: u8::from(writ_common::red::off("D02-right")),
            bounds: bounds.collect(),
        };
        let issued = grant.issue(&self.setup.key, &draw(self.entropy.as_mut()));
        let issued = issued.map_err(|error| Reason::new(ReasonCode::TokenTooLarge).noted(error))?;
        Ok(issued.as_bytes().to_vec())
    }

    /// The issue is on record, and then nothing was handed out: that goes on record as well.
    fn not_handed_out(&mut self, wanting: &Wanting, issuing: &Issuing, reason: &Reason, now: Now) {
        self.settle(&wanting.id);
        let answer = IssueAnswer::Refused { reasons: vec![ToldReason::from(reason)] };
        let reply = (wanting.back.call, self.sealed(wanting.back.nonce, answer));
        self.record_not_run((&issuing.prepared.record, &issuing.verdicted), reason, Some(reply), now);
    }

    /// The issue of a right is on record although its acknowledgement was lost, and nobody was given it.
    pub(super) fn right_came_to_nothing(&mut self, record: &Record, now: Now) {
        if let RecordBody::Verdict(verdicted) = &record.body
            && verdicted.decision == RecordedDecision::Allow
            && verdicted.right.is_some()
        {
            let reason = Reason::new(ReasonCode::AuditUnavailable).noted("its acknowledgement was lost");
            self.record_not_run((record, verdicted), &reason, None, now);
        }
    }

    /// Beside the record of the issue: who reads that has to find this as well.
    fn record_not_run(
        &mut self,
        (issued, verdicted): (&Record, &Verdicted),
        reason: &Reason,
        reply: Option<(CallRef, Vec<u8>)>,
        now: Now,
    ) {
        let call_id = verdicted.what.call_id.unwrap_or(Digest::from_bytes([0; 32]));
        let outcome = Outcome {
            reason: Some(RecordedReason::from(reason)),
            ..Outcome::of(issued.id.clone(), call_id, verdicted.who.task.clone(), OutcomeStatus::NotRun)
        };
        let part = self.control.parts().for_record(&issued.part);
        self.record_in(part, RecordBody::Outcome(Box::new(outcome)), reply, now);
    }

    /// Nothing more is being done about this approval.
    fn settle(&mut self, id: &ApprovalId) {
        self.rights.under_way.remove(id);
        self.rights.asking.remove(id);
    }

    fn verdicted(&self, decision: RecordedDecision, verdict: &Verdict, wanting: &Wanting) -> Verdicted {
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        let mut verdicted =
            Verdicted::new(decision, verdict, wanting.who.clone(), wanting.what.clone(), basis);
        verdicted.right = Some(Box::new(wanting.recorded()));
        verdicted.trace = trace_ref(wanting.back.trace);
        verdicted
    }

    fn refuse_wanting(&mut self, wanting: &Wanting, verdict: &Verdict, now: Now) {
        let about = (wanting.who.clone(), wanting.what.clone(), wanting.recorded());
        self.refuse_right(wanting.back, verdict, about, now);
    }

    fn refuse_right(
        &mut self,
        back: Back,
        verdict: &Verdict,
        (who, what, right): (Who, What, RecordedRight),
        now: Now,
    ) {
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        let mut recorded = Verdicted::new(RecordedDecision::Deny, verdict, who, what, basis);
        recorded.right = Some(Box::new(right));
        self.refuse_recorded(back, verdict, recorded, now);
    }
}

impl Wanting {
    /// The digest of the right, held for so long.
    fn call(&self, life: Millis) -> Digest {
        let arguments = self.arguments.canonical();
        right_digest(&self.right, arguments, &self.entry.task, &self.holder, life)
    }

    fn recorded(&self) -> RecordedRight {
        RecordedRight { right: self.right.clone(), key: self.holder.id(), expires: None }
    }

    fn held(&self, expires: Timestamp, missing: Vec<Need>, unusable: &[Reason]) -> IssueAnswer {
        let unusable = unusable.iter().map(ToldReason::from).collect();
        IssueAnswer::Held { approval: self.id.clone(), expires, missing, unusable }
    }
}

/// Why a claim did not come about.
fn claim_lost(error: &StoreError) -> Reason {
    match error {
        StoreError::Fenced => Reason::new(ReasonCode::ApprovalConsumed).told("another broker took it"),
        other => Reason::new(ReasonCode::ApprovalUnavailable).noted(other),
    }
}
