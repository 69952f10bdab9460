//! One call, from its bytes to a verdict.

use std::sync::Arc;

use bytes::Bytes;
use writ_bus::Attested;
use writ_common::{
    admission::quota_of,
    budget::Charges,
    capability::Capability,
    codec::{Message as _, decode, encode},
    contract::Effect as ToolEffect,
    decide::{Evidence, FlowEvidence, decide, without_policy},
    digest::Digest,
    epoch::Epoch,
    ids::{AgentId, ApprovalId, FlowDomain, PartId, Resource, ResourceKind, TaskId},
    inspect::Inspection,
    json::Value,
    label::DomainLabel,
    part::Parts,
    reason::{Reason, ReasonCode},
    record::{
        Basis, OutcomeStatus, RecordBody, RecordedDecision, RecordedReason, Shadowed, TraceRef, Verdicted,
        What, Who,
    },
    recorder::Prepared,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    trace::{SpanKind, SpanRecord, TraceContext, span, verdict_attributes},
    verdict::{Decision, Permit, Verdict},
    wire::{Answer, Call, CallProof, CallReply, FetchRequest, ToldReason, call_digest, call_id},
};

use super::{
    Arrival, CallRef, Effect, Guard, Pending, Purpose,
    approval::Held,
    inspect::{Looked, found_in_arguments, seen_in_arguments},
    release::Flowing,
};

/// How long a call may wait for control state it names to arrive.
const EPOCH_WAIT: Millis = Millis(200);
/// How often a call is decided again because the label moved under it.
pub(super) const LABEL_ATTEMPTS_MAX: u32 = 12;

/// A request while it is here.
pub(super) struct InFlight {
    pub(super) trace: Option<TraceContext>,
    pub(super) arrived: Now,
    /// What the record will say about it, as far as it was read.
    pub(super) who: Who,
    pub(super) what: What,
    /// What is left to do once the record that ends it is written.
    pub(super) reply: Option<CallReply>,
    pub(super) known: Option<Box<Known>>,
    /// What the policy in the shadow would have answered.
    pub(super) shadow: Option<Box<Shadowed>>,
    /// How its wait for control state ends.
    waits_until: Option<Now>,
}

/// A call whose caller, chain and arguments are known.
pub(super) struct Known {
    pub(super) capability: Arc<Capability>,
    pub(super) handover: Option<Arc<Capability>>,
    pub(super) request: Request,
    pub(super) call_id: Digest,
    pub(super) domain: FlowDomain,
    /// When the caller signed it.
    issued_at: Timestamp,
    pub(super) is_read: bool,
    /// The control state the call and its capability name.
    pub(super) min_epoch: Epoch,
    pub(super) label_attempts: u32,
    /// Whether the label was asked for, and has not come since.
    label_asked: bool,
    pub(super) busy_attempts: u32,
    /// The intent, once it is prepared.
    pub(super) intent: Option<Box<Prepared>>,
    /// The fence it was decided on.
    pub(super) label_revision: u64,
    pub(super) permit: Option<Permit>,
    pub(super) began: Option<Now>,
    /// The call digest.
    pub(super) call: Digest,
    /// The approval the caller names.
    pub(super) approval: Option<ApprovalId>,
    /// The claim on an approval this call holds.
    pub(super) held: Option<Held>,
    /// What it took out of budgets.
    pub(super) charged: Charges,
    /// Whether everything was read that might vouch for its arguments.
    pub(super) sources_read: bool,
    /// What inspectors said of its arguments.
    pub(super) inspected: Option<Box<Inspection>>,
    /// What becomes of its result.
    pub(super) flowing: Flowing,
}

impl Known {
    /// The part the task lives in: claims and budgets stand there for all its agents, whatever they remember.
    pub(super) fn task_part(&self) -> &PartId {
        &self.capability.grant().domain.part
    }

    /// The agents of the chain, the one that was given the task first.
    pub(super) fn agents(&self) -> Vec<AgentId> {
        let hops = self.capability.chain().hops().map(|hop| hop.to.clone());
        std::iter::once(self.capability.grant().agent.clone()).chain(hops).collect()
    }
}

impl Guard {
    pub(super) fn arrived(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        let subject = Subject::parse(&arrival.subject);
        let sender = match (&arrival.attested, &subject) {
            (Attested::Agent { user, .. }, _) => user.clone(),
            (Attested::Core, Ok((_, Subject::Call { agent, .. }))) => agent.to_string(),
            (Attested::Core, _) => "_".to_owned(),
        };
        let quota = quota_of(&self.control, self.policy.as_deref(), &sender);
        let is_full = self.calls.len() >= self.config.calls_max;
        let is_admitted = self.admission.admit(&sender, quota, now.monotonic);
        if is_admitted && is_full {
            self.admission.refuse(&sender);
        }
        if is_full || !is_admitted {
            return self.reply_unrecorded(call, &ReasonCode::RequestQuota.into());
        }
        if self.unacknowledged.len() >= self.config.unacknowledged_max && !writ_common::red::off("B09") {
            return self.reply_unrecorded(call, &ReasonCode::AuditUnavailable.into());
        }
        if self.streams.cannot_record() {
            return self.reply_unrecorded(call, &ReasonCode::AuditFull.into());
        }
        let connection = match &arrival.attested {
            Attested::Agent { user, .. } => Some(user.clone()),
            Attested::Core => None,
        };
        let mut flight = InFlight {
            trace: arrival.trace,
            arrived: now,
            who: Who { connection, ..Who::default() },
            what: What::default(),
            reply: None,
            known: None,
            shadow: None,
            waits_until: None,
        };
        let read = match subject {
            Ok((tenant, _)) if tenant != self.config.tenant => Err(ReasonCode::TenantMismatch.into()),
            Ok((_, Subject::Call { agent, task, resource })) => {
                flight.who.caller = Some(agent.clone());
                flight.who.task = Some(task.clone());
                flight.what.resource = Some(resource.clone());
                if resource.kind() == ResourceKind::Node {
                    return self.fetch(call, &arrival.payload, &task, now);
                }
                self.read_call(&mut flight, arrival, &agent, &task, &resource, now)
            }
            Ok(_) => Err(Reason::new(ReasonCode::IdSyntax).told("the subject is no call")),
            Err(error) => Err(Reason::new(ReasonCode::IdSyntax).told(error)),
        };
        match read {
            Ok(known) => {
                flight.who = Who::of_capability(&known.capability, flight.who.connection.as_deref());
                flight.known = Some(Box::new(known));
                self.calls.insert(call, flight);
                self.decide_call(call, now);
            }
            Err(reason) => {
                self.calls.insert(call, flight);
                self.deny(call, &Verdict::deny(reason, None), Basis::default(), now);
            }
        }
    }

    /// From bytes to a call with a verified capability and a proven holder.
    fn read_call(
        &mut self,
        flight: &mut InFlight,
        arrival: &Arrival,
        agent: &AgentId,
        task: &TaskId,
        resource: &Resource,
        now: Now,
    ) -> Result<Known, Reason> {
        let call: Call = decode(&arrival.payload).map_err(|error| Reason::new(error.code()).told(error))?;
        flight.what.action = Some(call.action.clone());
        let arguments = Arguments::parse(&call.arguments)?;
        flight.what.arguments = Some(arguments.digest());
        if call.resource != *resource && !writ_common::red::off("T03") {
            return Err(Reason::new(ReasonCode::TokenAudience)
                .told(format_args!("signed for `{}`, sent to `{resource}`", call.resource)));
        }
        if call.task != *task && !writ_common::red::off("T23") {
            return Err(ReasonCode::TaskMismatch.into());
        }
        if call.capability.is_empty() {
            return Err(ReasonCode::TokenMissing.into());
        }
        let keyset = self.control.keyset().ok_or(ReasonCode::KeysetExpired)?;
        let capability = self.chains.verify(&call.capability, keyset, now.wall)?;
        let handover = match &call.handover {
            Some(bytes) => Some(self.chains.verify(bytes, keyset, now.wall)?),
            None => None,
        };
        flight.who = Who {
            // Until possession is proved, the caller is who sent it, not whom the capability was handed to.
            caller: Some(agent.clone()),
            holder: None,
            ..Who::of_capability(&capability, flight.who.connection.as_deref())
        };
        let digest = call_digest(&call.resource, &call.action, arguments.canonical(), &call.task);
        let holder = *capability.chain().holder();
        let id = call_id(&holder, &call.nonce);
        flight.what.call = Some(digest);
        flight.what.call_id = Some(id);
        flight.what.handover = handover.as_ref().map(|handover| handover.chain_id());
        let proof = CallProof {
            tenant: &capability.grant().tenant,
            capability: &capability.grant().capability,
            chain: capability.chain_id(),
            holder,
            audience: &call.resource,
            nonce: call.nonce,
            issued_at: call.issued_at,
            min_epoch: call.min_epoch,
            call: digest,
        };
        if proof.check(&call.proof).is_err() && !writ_common::red::off("T01") {
            return Err(ReasonCode::TokenHolderMismatch.into());
        }
        self.check_age(call.issued_at, now.wall)?;
        self.check_connection(&arrival.attested, agent)?;
        let min_epoch = call.min_epoch.max(capability.grant().min_epoch);
        let behind = self.control.epoch() < min_epoch;
        flight.waits_until =
            behind.then(|| Now { monotonic: now.monotonic.after(EPOCH_WAIT), wall: now.wall });
        Ok(Known {
            domain: self.domain_of(agent, &capability.grant().domain),
            issued_at: call.issued_at,
            capability,
            handover,
            request: Request {
                principal: Principal::Agent(agent.clone()),
                action: call.action,
                resource: call.resource,
                arguments,
                environment: Environment {
                    tenant: self.config.tenant.clone(),
                    task: Some(task.clone()),
                    task_kind: None,
                },
            },
            call_id: id,
            is_read: false,
            min_epoch,
            label_attempts: 0,
            label_asked: false,
            busy_attempts: 0,
            intent: None,
            label_revision: 0,
            permit: None,
            began: None,
            call: digest,
            approval: call.approval,
            held: None,
            charged: Charges::new(),
            sources_read: false,
            inspected: None,
            flowing: Flowing::default(),
        })
    }

    fn check_age(&self, issued_at: Timestamp, now: Timestamp) -> Result<(), Reason> {
        let skew = self.config.fresh.skew;
        let too_old = now.since(issued_at).0 > self.config.call_age_max.0 + skew.0;
        let from_the_future = issued_at.since(now) > skew;
        if (too_old || from_the_future) && !writ_common::red::off("B10") {
            return Err(Reason::new(ReasonCode::RequestStale).told(format_args!("signed at {issued_at}")));
        }
        Ok(())
    }

    /// The connection must be one that was enrolled for the agent it calls as.
    fn check_connection(&self, attested: &Attested, agent: &AgentId) -> Result<(), Reason> {
        let enrolled = match attested {
            Attested::Agent { user, .. } => self.control.agent_of_connection(user),
            Attested::Core => None,
        };
        match enrolled {
            Some((owner, _)) if owner == agent => Ok(()),
            _ if writ_common::red::off("B12") => Ok(()),
            Some((owner, _)) => Err(Reason::new(ReasonCode::ConnectionMismatch)
                .noted(format_args!("the connection belongs to `{owner}`"))),
            None => Err(Reason::new(ReasonCode::ConnectionMismatch).noted("the connection is not enrolled")),
        }
    }

    /// Goes on with calls that waited for control state, and ends those that waited too long.
    pub(super) fn retry_waiting(&mut self, now: Now) {
        let waiting: Vec<CallRef> = self
            .calls
            .iter()
            .filter(|(_, flight)| flight.waits_until.is_some())
            .map(|(call, _)| *call)
            .collect();
        for call in waiting {
            self.decide_call(call, now);
        }
    }

    /// Decides a call, or has its label read first.
    pub(super) fn decide_call(&mut self, call: CallRef, now: Now) {
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let Some(known) = &mut flight.known else { return };
        let applied = self.control.epoch();
        let min_epoch = known.min_epoch;
        if let Some(until) = flight.waits_until {
            if applied < min_epoch && now.monotonic < until.monotonic {
                return;
            }
            flight.waits_until = None;
        }
        // Another policy may have come while it waited; contract, effect and rules are all of the same one.
        if known.domain.domain.is_agents() {
            known.domain.part = self.control.parts().shared().clone();
        }
        let contract = self.policy.as_ref().and_then(|policy| policy.contract(&known.request.resource));
        flight.what.contract = contract.map(|contract| contract.digest);
        let action = contract.and_then(|contract| contract.action(&known.request.action));
        known.is_read = action.is_some_and(|action| action.effect == ToolEffect::Read);
        let mut basis =
            Basis { epoch: Some(applied), age: self.freshness.age(now.monotonic), ..Basis::default() };
        basis.policy_fault = self.policy_fault;
        if let Some(kept) = self.kept.get(&known.call_id) {
            let answer = Answer::Replayed { first: kept.decision.clone(), outcome: kept.status };
            flight.reply = Some(CallReply { receipt: None, answer });
            return self.deny(call, &Verdict::deny(ReasonCode::RequestReplayed, None), basis, now);
        }
        if applied < min_epoch && !writ_common::red::off("R02") {
            let reason = Reason::new(ReasonCode::StateStale)
                .noted(format_args!("the capability needs epoch {min_epoch}, {applied} is applied"));
            return self.deny(call, &Verdict::deny(reason, None), basis, now);
        }
        let current =
            self.streams.check().and_then(|()| self.freshness.check(applied, known.is_read, now.monotonic));
        if let Err(reason) = current {
            return self.deny(call, &Verdict::deny(reason, None), basis, now);
        }
        let domain = known.domain.clone();
        let caller = known.capability.chain().caller();
        let changed = self.memory_changed.get(caller).copied();
        let signed = (known.issued_at, self.config.fresh.skew);
        if let Err(reason) = check_part(self.control.parts(), &domain, known.task_part(), changed, signed) {
            return self.deny(call, &Verdict::deny(reason, None), basis, now);
        }
        let Some((revision, standing)) = self.labels.get(&domain).cloned() else {
            // Read once per call; if it is still not there afterwards, there is none.
            return if !std::mem::replace(&mut known.label_asked, true) {
                self.wait_for_label(call, &domain);
            } else {
                self.deny(call, &Verdict::deny(ReasonCode::LabelMissing, None), basis, now);
            };
        };
        known.label_asked = false;
        if standing.moved_to.is_some() {
            // Where it went will be known in a moment.
            self.labels.forget(&domain);
            let reason =
                Reason::new(ReasonCode::StateStale).noted(format_args!("the label of {domain} has moved"));
            return self.deny(call, &Verdict::deny(reason, None), basis, now);
        }
        basis.label_revision = Some(revision);
        basis.label = Some(standing.label.clone());
        match self.inspect_arguments(call, &standing, now) {
            Looked::Asked => return,
            Looked::Failed(verdict) => return self.deny(call, &verdict, basis, now),
            Looked::Known => {}
        }
        let Some(verdict) = self.ask_policy(call, &standing, now.wall) else { return };
        // Looked for only where nothing else vouches for an argument, and once.
        if verdict.flow().unsourced().next().is_some() && !self.has_read_sources(call) {
            return self.read_sources(call);
        }
        if verdict.decision() == Decision::Allow
            && let Err(reason) = self.streams.check_room(&domain.part)
        {
            return self.deny(call, &Verdict::deny(reason, None), basis, now);
        }
        match verdict.decision() {
            Decision::Allow if let Some(terms) = verdict.approval().cloned() => {
                self.seek_approval(call, verdict, &terms, basis, now);
            }
            Decision::Allow => self.go_on(call, verdict, basis, now),
            Decision::Deny => self.deny(call, &verdict, basis, now),
        }
    }

    /// An allowed call whose approval, if it takes one, is at hand: charge what it costs, then record the intent.
    pub(super) fn go_on(&mut self, call: CallRef, verdict: Verdict, basis: Basis, now: Now) {
        if let Some(acts) = verdict.acts().cloned() {
            return self.use_acts(call, verdict, &acts, basis, now);
        }
        match verdict.charges().cloned() {
            Some(charges) => self.charge(call, verdict, &charges, basis, now),
            None => self.prepare_intent(call, verdict, basis, now),
        }
    }

    fn has_read_sources(&self, call: CallRef) -> bool {
        self.calls.get(&call).and_then(|flight| flight.known.as_ref()).is_some_and(|known| known.sources_read)
    }

    fn ask_policy(&mut self, call: CallRef, standing: &DomainLabel, now: Timestamp) -> Option<Verdict> {
        let flight = self.calls.get_mut(&call)?;
        let known = flight.known.as_mut()?;
        let Some(policy) = &self.policy else { return Some(without_policy()) };
        let instruction = self.sources.instruction(&known.capability.grant().instruction);
        let results = self.sources.results(&known.capability.grant().domain);
        let (label, findings) = seen_in_arguments(known.inspected.as_deref(), &standing.label);
        let acts = self.acts.of(&known.capability.grant().task, &known.call_id, now);
        let evidence = Evidence {
            capability: Some(&known.capability),
            handover: known.handover.as_deref(),
            control: &self.control,
            gate: self.gates.get(&known.request.resource).map(|gate| gate.as_ref() as _),
            label: &label,
            flow: FlowEvidence {
                findings: &findings,
                acts: &acts,
                call: Some(known.call),
                instruction: instruction.as_deref(),
                origins: Some(&standing.origins),
                results: results.as_deref(),
            },
        };
        let verdict = decide(&known.request, &evidence, policy, now);
        let contract = policy.contract(&known.request.resource);
        let contract = contract.and_then(|contract| contract.action(&known.request.action));
        let flowing = Flowing::of(&verdict, contract.map(|action| action.flow.clone()));
        let shadow = self.shadow.as_ref().map(|shadow| decide(&known.request, &evidence, shadow, now));
        known.flowing = flowing;
        flight.shadow = shadow.and_then(|shadow| Shadowed::of(&shadow, &verdict)).map(Box::new);
        Some(verdict)
    }

    /// Records a denial and answers with it.
    pub(super) fn deny(&mut self, call: CallRef, verdict: &Verdict, basis: Basis, now: Now) {
        self.give_back(call, now);
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let mut recorded =
            Verdicted::new(RecordedDecision::Deny, verdict, flight.who.clone(), flight.what.clone(), basis);
        recorded.trace = trace_ref(flight.trace);
        recorded.shadow = flight.shadow.take();
        recorded.found = found_in_arguments(flight);
        if flight.reply.is_none() {
            flight.reply = Some(denied(verdict.reasons()));
        }
        let (trace, arrived) = (flight.trace, flight.arrived);
        self.span_of_verdict(&recorded, trace, arrived, now);
        let part = self.part_of(call);
        let prepared =
            Box::new(self.recorder.prepare(part, RecordBody::Verdict(Box::new(recorded)), now.wall));
        self.write_final(call, prepared, None);
    }

    /// Writes the record that ends a call; `message_id` is given where it is not the record's own.
    pub(super) fn write_final(&mut self, call: CallRef, prepared: Box<Prepared>, message_id: Option<&str>) {
        let message_id = message_id.unwrap_or(&prepared.message_id).to_owned();
        let ticket = self.fresh_ticket();
        self.journal(Some(ticket), &prepared, &message_id, None);
        self.pending.insert(ticket, Pending::FinalWritten(call, prepared));
    }

    /// The record that ends a call is written: publish it and answer.
    pub(super) fn final_written(&mut self, call: CallRef, prepared: Box<Prepared>) {
        let flight = self.calls.remove(&call);
        if let Some(InFlight { reply: Some(reply), what, .. }) = flight {
            let receipt = self.recorder.receipt(&prepared, &what, &reply.answer);
            self.reply(call, &CallReply { receipt: Some(receipt), ..reply });
        }
        let message_id = prepared.message_id.clone();
        self.publish_record(prepared, message_id, Purpose::Record, Millis(0));
    }

    /// An intent cannot be written: nothing is done, and the caller is told so. Its place is filled by a void.
    pub(super) fn unrecordable(&mut self, call: CallRef, now: Now) {
        self.give_back(call, now);
        if let Some(void) = self.void_of(call, &ReasonCode::AuditFull.into(), now) {
            let message_id = void.message_id.clone();
            self.publish_record(void, message_id, Purpose::Record, Millis(0));
        }
        if let Some(known) = self.calls.remove(&call).and_then(|flight| flight.known) {
            self.kept.forget(&known.call_id);
        }
        self.reply_unrecorded(call, &ReasonCode::AuditFull.into());
    }

    pub(super) fn reply(&mut self, call: CallRef, reply: &CallReply) {
        self.push(Effect::Reply(call, encode(reply)));
    }

    pub(super) fn reply_unrecorded(&mut self, call: CallRef, reason: &Reason) {
        self.reply(call, &denied(std::slice::from_ref(reason)));
    }

    /// One record per sender for all it sent over its quota.
    pub(super) fn record_refused(&mut self, now: Now) {
        for (sender, count) in self.admission.take_refused(now.monotonic) {
            let caller = self.control.agent_of_connection(&sender).map(|(agent, _)| agent.clone());
            let who = Who { caller, connection: Some(sender), ..Who::default() };
            let verdict = Verdict::deny(ReasonCode::RequestQuota, None);
            let mut recorded =
                Verdicted::new(RecordedDecision::Deny, &verdict, who, What::default(), Basis::default());
            recorded.count = count;
            let part = self.control.parts().current().clone();
            let prepared =
                Box::new(self.recorder.prepare(part, RecordBody::Verdict(Box::new(recorded)), now.wall));
            let message_id = prepared.message_id.clone();
            self.journal(None, &prepared, &message_id, None);
            self.publish_record(prepared, message_id, Purpose::Record, Millis(0));
        }
    }

    pub(super) fn span_of_verdict(
        &mut self,
        verdict: &Verdicted,
        parent: Option<TraceContext>,
        start: Now,
        end: Now,
    ) {
        let word = match verdict.decision {
            RecordedDecision::Allow => "ALLOW",
            RecordedDecision::Deny => "DENY",
            RecordedDecision::Hold => "HOLD",
        };
        let target = verdict.what.resource.as_ref().map_or("call", Resource::name);
        let error = match (verdict.decision, verdict.reasons.first()) {
            (RecordedDecision::Deny, Some(reason)) => Some(reason.code.to_string()),
            _ => None,
        };
        let record = SpanRecord {
            name: span::verdict(word, target),
            kind: SpanKind::Consumer,
            parent,
            start: start.wall,
            end: end.wall,
            attributes: verdict_attributes(verdict, &self.recorder.next_id()),
            error,
        };
        self.push(Effect::Span(Box::new(record)));
    }

    /// Hands out a kept result, to nobody but the holder who made the call.
    fn fetch(&mut self, call: CallRef, payload: &Bytes, task: &TaskId, now: Now) {
        let refused = || CallReply {
            receipt: None,
            answer: Answer::Denied { reasons: vec![ToldReason::from(&Reason::new(ReasonCode::CallUnknown))] },
        };
        let found = decode::<Signed<FetchRequest>>(payload).ok().and_then(|signed| {
            let fetch = signed.peek().ok()?;
            let kept = self.kept.get(&fetch.call_id)?;
            // Only the key that made the call opens it, whatever key the request claims.
            let fetch = signed.open(|key| *key == kept.holder).ok()?;
            let is_meant = fetch.tenant == self.config.tenant
                && fetch.node == self.config.node
                && fetch.task == *task
                && kept.task == *task;
            let is_due = is_meant && self.check_age(fetch.at, now.wall).is_ok();
            is_due.then(|| (fetch.call_id, kept.clone()))
        });
        if let Some((call_id, _)) = found.as_ref().filter(|(_, kept)| kept.withheld.is_some()) {
            let call_id = *call_id;
            return self.ask_again(call, &call_id, now);
        }
        let reply = match found {
            None => refused(),
            Some((_, kept)) => kept.reply.unwrap_or(CallReply {
                receipt: None,
                answer: Answer::Replayed { first: kept.decision, outcome: kept.status },
            }),
        };
        self.reply(call, &reply);
    }
}

/// Whether calls of a flow domain may be let through in its part. One that may have been let through in another, before
/// what the agent remembers came here, or by a policy that had it remember something else, is not known here by its id:
/// what is as old as that is refused.
fn check_part(
    parts: &Parts,
    domain: &FlowDomain,
    task: &PartId,
    changed: Option<Timestamp>,
    (issued_at, skew): (Timestamp, Millis),
) -> Result<(), Reason> {
    if !parts.takes(&domain.part) {
        let why = format_args!("part {} takes nothing", domain.part);
        return Err(Reason::new(ReasonCode::AuditUnavailable).noted(why));
    }
    let moved = parts.shared_since().filter(|_| domain.domain.is_agents());
    let changed = changed.filter(|_| parts.shared() != task);
    // The caller's, a node's and the broker's clock may each be apart.
    let is_before = |since: &Timestamp| issued_at <= since.after(skew).after(skew).after(skew);
    match moved.into_iter().chain(changed).find(is_before) {
        Some(since) if !writ_common::red::off("T02-part") => {
            let why = format_args!("signed at {issued_at}, and what the agent remembers moved at {since}");
            Err(Reason::new(ReasonCode::RequestStale).told(why))
        }
        _ => Ok(()),
    }
}

pub(super) fn denied(reasons: &[Reason]) -> CallReply {
    CallReply {
        receipt: None,
        answer: Answer::Denied { reasons: reasons.iter().map(ToldReason::from).collect() },
    }
}

pub(super) fn failed(reason: &Reason, status: OutcomeStatus) -> Answer {
    Answer::Failed { reason: ToldReason::from(reason), status }
}

pub(super) fn recorded(reason: &Reason) -> RecordedReason {
    RecordedReason::from(reason)
}

pub(super) fn trace_ref(trace: Option<TraceContext>) -> Option<TraceRef> {
    trace.map(|trace| TraceRef { trace: hex::encode(trace.trace), span: hex::encode(trace.span) })
}

/// The input an agent is given: the `input` member of the arguments.
pub(super) fn agent_input(arguments: &Arguments) -> String {
    arguments.value().get(writ_common::decide::AGENT_INPUT).unwrap_or(&Value::Null).to_string()
}

/// Longest reply that fits into one message of the bus.
pub(super) const REPLY_BYTES_MAX: usize = CallReply::BYTES_MAX - 8 * 1024;

#[cfg(test)]
mod tests {
    use writ_common::{ids::DomainId, part::PartStage};

    use super::*;

    #[test]
    fn t02_part_what_was_signed_before_its_domain_moved_is_refused() {
        let (at, skew) = (Timestamp::from_secs(1_000), Millis::from_secs(5));
        let p1 = PartId::numbered(1);
        let mut parts = Parts::default();
        let agent = AgentId::parse("researcher").unwrap();
        let shared = |part: &PartId| FlowDomain { part: part.clone(), domain: DomainId::of_agent(&agent) };
        let check = |parts: &Parts, domain: &FlowDomain, secs| {
            let signed = (Timestamp::from_secs(secs), skew);
            check_part(parts, domain, &domain.part, None, signed).map_err(|reason| reason.code())
        };
        assert_eq!(check(&parts, &shared(&PartId::first()), 1), Ok(()));
        parts.apply(p1.clone(), PartStage::Current, at);
        parts.apply(p1.clone(), PartStage::Shared, at);
        assert_eq!(check(&parts, &shared(&p1), 1_015), Err(ReasonCode::RequestStale));
        assert_eq!(check(&parts, &shared(&p1), 1_016), Ok(()));
        // A task does not move.
        let task = FlowDomain::parse("p0.t-1").unwrap();
        assert_eq!(check(&parts, &task, 1), Ok(()));
        // A policy may have had the agent of a task here remember in the other part.
        let changed = Some(Timestamp::from_secs(3_000));
        let check_changed = |secs| {
            let signed = (Timestamp::from_secs(secs), skew);
            check_part(&parts, &task, &task.part, changed, signed).map_err(|reason| reason.code())
        };
        assert_eq!((check_changed(3_015), check_changed(3_016)), (Err(ReasonCode::RequestStale), Ok(())));
        parts.apply(PartId::first(), PartStage::Sealed, at);
        assert_eq!(check(&parts, &task, 2_000), Err(ReasonCode::AuditUnavailable));
    }
}
