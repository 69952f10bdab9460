//! Calls that people have to approve: asked once, held, claimed once, and only then allowed.
//!
//! The hold is journalled before the request is published, so that no request is open without a record. The claim
//! is made before the intent, by compare-and-set on the bus, and marked used right before the tool runs: whoever
//! lost the claim in between, to another node or to a later attempt, cannot act.

use writ_bus::{Fence, Store, StoreError, Stored};
use writ_common::{
    approval::{
        ApprovalClaim, ApprovalRequest, ApprovalTerms, Approved, ApprovedCall, ClaimState, Need, Standing,
        in_words,
    },
    codec::encode,
    digest::Digest,
    ids::{ApprovalId, PartId},
    reason::{Reason, ReasonCode},
    record::{
        Basis, OutcomeStatus, RecordBody, RecordedApproval, RecordedDecision, RecordedSource, Verdicted,
    },
    recorder::Prepared,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    verdict::{Permit, Verdict},
    wire::{Answer, CallReply, ToldReason},
};

use super::{
    CallRef, Effect, Guard, Pending, ToolFailure,
    call::{recorded, trace_ref},
    inspect::found_in_arguments,
};

/// A request on its way to the stream, and what follows once it is there.
pub(super) struct Asking {
    hold: Box<Prepared>,
    store: Store,
    needs: Vec<Need>,
    id: ApprovalId,
    expires: Timestamp,
}

/// A claim on its way to the stream, and what follows once it is there.
pub(super) struct Claiming {
    claim: ApprovalClaim,
    approved: Approved,
    verdict: Verdict,
    basis: Basis,
}

/// A claim this node holds for a call.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) claim: ApprovalClaim,
    pub(super) part: PartId,
    pub(super) sequence: u64,
    pub(super) approval: RecordedApproval,
    pub(super) terms: ApprovalTerms,
}

/// The use of a claim, on its way to the stream.
#[derive(Clone, Debug)]
pub(super) struct Using {
    claim: ApprovalClaim,
    store: Store,
    is_again: bool,
}

impl Guard {
    /// Takes a message about approvals.
    pub(super) fn approval_event(&mut self, sequence: u64, subject: &str, payload: &[u8], now: Now) {
        if let Err(fault) = self.approvals.take(sequence, subject, payload, now.wall) {
            self.alarm(fault.to_string());
        }
        if let Err(why) = self.acts.take(subject, payload, now.wall) {
            self.alarm(format!("{subject}: {why}"));
        }
    }

    /// An allowed call that takes an approval: is there one, can there be one, or does it have to be asked for?
    pub(super) fn seek_approval(
        &mut self,
        call: CallRef,
        verdict: Verdict,
        terms: &ApprovalTerms,
        basis: Basis,
        now: Now,
    ) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let revision = verdict.policy_revision();
        let id = known.approval.clone().unwrap_or_else(|| ApprovalId::of_call(&known.call_id));
        let is_new = known.approval.is_none() && self.approvals.get(&id).is_none();
        if !self.approvals_read {
            let reason = Reason::new(ReasonCode::ApprovalUnavailable).noted("approvals are still being read");
            return self.deny(call, &Verdict::deny(reason, revision), basis, now);
        }
        if is_new {
            if self.approvals.has_ended(&id) {
                let reason = Reason::new(ReasonCode::ApprovalExpired);
                return self.deny(call, &Verdict::deny(reason, revision), basis, now);
            }
            return self.ask_people(call, id, &verdict, terms, basis, now);
        }
        // Whoever said yes before the task was told things by outsiders was not shown that nothing vouches for these.
        let shown = self.approvals.get(&id).map(|known| known.request().sources.clone()).unwrap_or_default();
        let is_shown = |path: &str| shown.iter().any(|source| source.source.is_none() && source.path == path);
        if let Some(unshown) = verdict.flow().unsourced().find(|argument| !is_shown(&argument.path)) {
            let told = format!("nothing vouches for `{}` any more, and that was not shown", unshown.path);
            let reason = Reason::new(ReasonCode::ApprovalBinding).told(told);
            return self.deny(call, &Verdict::deny(reason, revision), basis, now);
        }
        match self.weigh(call, &id, terms, now) {
            Ok(Standing::Granted(approved)) => self.claim(call, approved, verdict, basis, now),
            Ok(Standing::Waiting { missing, unusable }) => {
                self.give_back(call, now);
                // The hold is on record already; asking how it stands is no other verdict.
                let expires = self.approvals.get(&id).map_or(now.wall, |known| known.request().expires);
                let unusable = unusable.iter().map(ToldReason::from).collect();
                let answer = Answer::Held { approval: id, expires, missing, unusable };
                self.calls.remove(&call);
                self.reply(call, &CallReply { receipt: None, answer });
            }
            Err(reason) => self.deny(call, &Verdict::deny(reason, revision), basis, now),
        }
    }

    /// Journals the hold, then has the request published.
    fn ask_people(
        &mut self,
        call: CallRef,
        id: ApprovalId,
        verdict: &Verdict,
        terms: &ApprovalTerms,
        basis: Basis,
        now: Now,
    ) {
        let Some(flight) = self.calls.get(&call) else { return };
        let Some(known) = &flight.known else { return };
        let grant = known.capability.grant();
        let revision = verdict.policy_revision();
        let asks = (grant.task.clone(), grant.user.clone());
        let room = self.approvals.check_quota(&asks.0, &asks.1, self.asking.values(), now.wall);
        if let Err(reason) = room {
            return self.deny(call, &Verdict::deny(reason, revision), basis, now);
        }
        let Some(policy) = revision else { return };
        let request = ApprovalRequest {
            tenant: self.config.tenant.clone(),
            id: id.clone(),
            node: self.config.node.clone(),
            at: now.wall,
            expires: now.wall.after(terms.life),
            user: grant.user.clone(),
            task: grant.task.clone(),
            chain: known.agents(),
            resource: known.request.resource.clone(),
            action: known.request.action.clone(),
            arguments: known.request.arguments.canonical().to_owned(),
            call: known.call,
            contract: flight.what.contract,
            policy,
            rules: verdict.rules().to_vec(),
            label: basis.label.clone().unwrap_or_else(writ_common::label::Label::top),
            origins: self
                .labels
                .get(&known.domain)
                .map(|(_, label)| label.origins.clone())
                .unwrap_or_default(),
            sources: verdict.flow().arguments.iter().map(RecordedSource::from).collect(),
            needs: terms.needs.clone(),
            trace: trace_ref(flight.trace),
            right: None,
        };
        let signed = Signed::new(&request, &self.config.key);
        let subject = Subject::ApprovalRequest { part: grant.domain.part.clone(), approval: id.clone() }
            .of(&self.config.tenant);
        // Whoever asks first has asked: what people see cannot be exchanged afterwards.
        let store = Store::fenced(subject, 0, encode(&signed));
        let mut hold =
            Verdicted::new(RecordedDecision::Hold, verdict, flight.who.clone(), flight.what.clone(), basis);
        let needed = Reason::new(ReasonCode::ApprovalNeeded).told(in_words(&terms.needs));
        hold.reasons = vec![recorded(&needed)];
        hold.trace = trace_ref(flight.trace);
        hold.shadow.clone_from(&flight.shadow);
        hold.found = found_in_arguments(flight);
        hold.approval = Some(Box::new(RecordedApproval {
            id: id.clone(),
            request: signed.digest(),
            needs: terms.needs.clone(),
            by: Vec::new(),
            waited: None,
        }));
        let (trace, arrived) = (flight.trace, flight.arrived);
        self.span_of_verdict(&hold, trace, arrived, now);
        let part = self.part_of(call);
        let hold = Box::new(self.recorder.prepare(part, RecordBody::Verdict(Box::new(hold)), now.wall));
        let message_id = hold.message_id.clone();
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.intent = Some(hold.clone());
        }
        let asking =
            Asking { hold: hold.clone(), store, needs: terms.needs.clone(), id, expires: request.expires };
        self.give_back(call, now);
        self.asking.insert(call, asks);
        let ticket = self.ticket(Pending::HoldWritten(call, Box::new(asking)));
        self.journal(Some(ticket), &hold, &message_id, None);
    }

    /// The hold is in the journal: publish the request.
    pub(super) fn hold_written(&mut self, call: CallRef, asking: Box<Asking>) {
        let store = asking.store.clone();
        if let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) {
            self.streams.sent(known.task_part(), store.payload.len());
        }
        let ticket = self.ticket(Pending::Asked(call, asking));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// What the stream said about a request.
    pub(super) fn asked(
        &mut self,
        call: CallRef,
        asking: Asking,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let Asking { hold, store, needs, id, expires } = asking;
        self.asking.remove(&call);
        match result {
            Ok(stored) => {
                self.acknowledged_at(&store.subject, stored.sequence);
                self.approval_event(stored.sequence, &store.subject, &store.payload, now);
                if let Some(flight) = self.calls.get_mut(&call) {
                    let answer = Answer::Held { approval: id, expires, missing: needs, unusable: Vec::new() };
                    flight.reply = Some(CallReply { receipt: None, answer });
                }
                self.final_written(call, hold);
            }
            Err(error) => {
                let reason = Reason::new(ReasonCode::ApprovalUnavailable).noted(&error);
                // Another node asked for the very same call just before: the caller waits for that.
                if let Some(flight) = self.calls.get_mut(&call)
                    && error == StoreError::Fenced
                {
                    let answer = Answer::Held { approval: id, expires, missing: needs, unusable: Vec::new() };
                    flight.reply = Some(CallReply { receipt: None, answer });
                }
                self.abandon(call, &reason, now);
            }
        }
    }

    /// Enough people said yes: take the approval for this call.
    fn claim(&mut self, call: CallRef, approved: Approved, verdict: Verdict, basis: Basis, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        if let Some(held) = known.held.as_mut().filter(|held| held.claim.approval == *approved.id()) {
            // Decided once more, since the label moved under it; people may have answered since.
            held.approval.by = approved.by().to_vec();
            held.terms = approved.terms().clone();
            return self.go_on(call, verdict.discharged(&approved), basis, now);
        }
        let (call_id, part) = (known.call_id, known.task_part().clone());
        let claim = self.claim_of(approved.id().clone(), call_id, ClaimState::Claimed, now);
        match self.approvals.claimable(&claim.approval, &claim.call_id, now.wall) {
            Ok(sequence) => {
                let store = self.claim_store(&claim, &part, sequence);
                let claiming = Claiming { claim, approved, verdict, basis };
                let ticket = self.ticket(Pending::Claimed(call, Box::new(claiming)));
                self.push(Effect::Publish { ticket, store, delay: Millis(0) });
            }
            Err(reason) => {
                let verdict = Verdict::deny(reason, verdict.policy_revision());
                self.deny(call, &verdict, basis, now);
            }
        }
    }

    /// The claim of this node for a call.
    pub(super) fn claim_of(
        &self,
        approval: ApprovalId,
        call_id: Digest,
        state: ClaimState,
        now: Now,
    ) -> ApprovalClaim {
        ApprovalClaim {
            tenant: self.config.tenant.clone(),
            approval,
            call_id,
            node: self.config.node.clone(),
            boot: self.config.boot.clone(),
            at: now.wall,
            state,
        }
    }

    fn claim_store(&mut self, claim: &ApprovalClaim, part: &PartId, sequence: u64) -> Store {
        let subject = Subject::ApprovalClaim { part: part.clone(), approval: claim.approval.clone() };
        let mut store = self.fenced(claim, &subject, sequence);
        if writ_common::red::off("H09") {
            store.fence = Fence::None;
        }
        store
    }

    /// What the stream said about a claim.
    pub(super) fn claimed(
        &mut self,
        call: CallRef,
        claiming: Claiming,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let Claiming { claim, approved, verdict, basis } = claiming;
        let sequence = match result {
            Ok(stored) => stored.sequence,
            Err(error) => {
                let reason = claim_lost(&error);
                return self.deny(call, &Verdict::deny(reason, verdict.policy_revision()), basis, now);
            }
        };
        let asked = self.approvals.get(approved.id()).map(writ_common::approval::Approval::request);
        let approval = RecordedApproval {
            id: approved.id().clone(),
            request: approved.request(),
            needs: approved.terms().needs.clone(),
            by: approved.by().to_vec(),
            waited: asked.map(|request| now.wall.since(request.at)),
        };
        self.approvals.claimed(sequence, claim.clone());
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        let part = known.task_part().clone();
        self.streams.acknowledged(&part, sequence);
        known.held = Some(Held { claim, part, sequence, approval, terms: approved.terms().clone() });
        self.go_on(call, verdict.discharged(&approved), basis, now);
    }

    /// The intent is on record and the permit at hand: mark the approval used, if there is one. True if the call
    /// has to wait for that.
    pub(super) fn use_approval(&mut self, call: CallRef, permit: &mut Option<Permit>, now: Now) -> bool {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else {
            return false;
        };
        let Some(held) = known.held.clone() else { return false };
        known.permit = permit.take();
        // Answers may have ended, and roles and keys gone, since it was claimed.
        if let Err(reason) = self.still_approved(call, &held, now) {
            self.finished(call, Err(ToolFailure { reason, status: OutcomeStatus::NotRun }), now);
            return true;
        }
        let claim = ApprovalClaim { at: now.wall, state: ClaimState::Used, ..held.claim };
        let mut store = self.claim_store(&claim, &held.part, held.sequence);
        // Sent again after a lost acknowledgement, the stream says that it was ours.
        store.message_id = Some(format!("used-{}-{}", claim.approval, claim.call_id));
        self.publish_use(call, Using { claim, store, is_again: false });
        true
    }

    fn publish_use(&mut self, call: CallRef, using: Using) {
        let store = using.store.clone();
        let ticket = self.ticket(Pending::Used(call, Box::new(using)));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// How an approval of a call stands at this moment.
    fn weigh(
        &self,
        call: CallRef,
        id: &ApprovalId,
        terms: &ApprovalTerms,
        now: Now,
    ) -> Result<Standing, Reason> {
        let gone = || Reason::new(ReasonCode::ApprovalUnavailable).noted("the call is gone");
        let flight = self.calls.get(&call).ok_or_else(gone)?;
        let known = flight.known.as_ref().ok_or_else(gone)?;
        let policy = self.policy.as_ref().ok_or(ReasonCode::PolicyUnavailable)?;
        let grant = known.capability.grant();
        let chain = known.agents();
        let asks = ApprovedCall {
            user: &grant.user,
            task: &grant.task,
            chain: &chain,
            call: known.call,
            contract: flight.what.contract,
        };
        self.approvals.weigh(id, &asks, terms, &self.control, policy, now.wall)
    }

    fn still_approved(&self, call: CallRef, held: &Held, now: Now) -> Result<(), Reason> {
        match self.weigh(call, &held.claim.approval, &held.terms, now)? {
            Standing::Granted(_) => Ok(()),
            Standing::Waiting { missing, unusable } => Err(unusable
                .into_iter()
                .next()
                .unwrap_or_else(|| Reason::new(ReasonCode::ApprovalNeeded).told(in_words(&missing)))),
        }
    }

    /// What the stream said about the use of an approval: only now the call runs.
    pub(super) fn used(&mut self, call: CallRef, using: Using, result: Result<Stored, StoreError>, now: Now) {
        match result {
            Err(StoreError::Unknown(_)) if !using.is_again => {
                self.publish_use(call, Using { is_again: true, ..using });
            }
            Ok(stored) => {
                self.acknowledged_at(&using.store.subject, stored.sequence);
                self.approvals.claimed(stored.sequence, using.claim);
                if let Err(failure) = self.last_look(call, now) {
                    return self.finished(call, Err(failure), now);
                }
                self.run(call, now);
            }
            Err(error) => {
                let failure = ToolFailure { reason: claim_lost(&error), status: OutcomeStatus::NotRun };
                self.finished(call, Err(failure), now);
            }
        }
    }
}

/// Why a claim did not come about.
fn claim_lost(error: &StoreError) -> Reason {
    match error {
        StoreError::Fenced => Reason::new(ReasonCode::ApprovalConsumed).told("another call took it"),
        other => Reason::new(ReasonCode::ApprovalUnavailable).noted(other),
    }
}
