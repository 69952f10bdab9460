//! Starting tasks, issuing and renewing capabilities.

use std::collections::BTreeSet;

use writ_bus::{Attested, Fence, Store, StoreError, Stored};
use writ_common::{
    capability::{Grant, Pins, Right},
    codec::{decode, encode},
    decide::{Evidence, decide, without_policy},
    digest::Digest,
    entropy::draw,
    ids::{Action, AgentId, CapabilityId, DomainId, FlowDomain, Resource, RoleId, TaskId, UserId},
    json::Value,
    keys::PublicKey,
    label::{DomainLabel, Label, Origins},
    reason::{Reason, ReasonCode},
    record::{Basis, Granted, RecordBody, RecordedDecision, RecordedReason, TraceRef, Verdicted, What, Who},
    recorder::Prepared,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    trace::{SpanKind, SpanRecord, TraceContext, attribute, span, verdict_attributes},
    verdict::{Decision, GrantBounds, Obligation, Verdict},
    wire::{
        DelegateKey, IssueAnswer, IssueReply, IssueRequest, Issued, IssuedTask, KnownKeys, NewTask, NodeKey,
        Wanted,
    },
};

use crate::{
    jwks::KeySet,
    jwt::{IssuerRef, Unverified, VerifiedUser},
};

use super::{Arrival, Broker, CallRef, Effect, Pending, TaskEntry, control::connection_of, told};

/// An issue or renewal on its way.
pub(super) struct Issuing {
    back: Back,
    entry: TaskEntry,
    holder: PublicKey,
    expires: Timestamp,
    verdicted: Verdicted,
    /// The calls that some of the rights are for, as the policy pins them now.
    pins: Pins,
    /// What the user asked for, until it is published.
    instruction: Option<String>,
    prepared: Option<Box<Prepared>>,
}

/// Where an answer goes.
#[derive(Clone, Copy)]
pub(super) struct Back {
    pub(super) call: CallRef,
    pub(super) nonce: [u8; 16],
    pub(super) trace: Option<TraceContext>,
    pub(super) arrived: Now,
}

/// Most starts that wait for keys; further ones are refused at once.
const AWAITING_KEYS_MAX: usize = 256;

/// A start that waits for the next keys of the user's issuer.
pub(super) struct AwaitingKeys {
    issuer: IssuerRef,
    asking: Asking,
    new: NewTask,
}

/// Whether a start may wait for keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It has waited.
    None,
    /// It may.
    Some,
}

/// A request of an agent whose signature and key are sound.
pub(super) struct Asking {
    pub(super) back: Back,
    pub(super) agent: AgentId,
    pub(super) holder: PublicKey,
    pub(super) connection: Option<String>,
}

impl Broker {
    pub(super) fn issue(&mut self, call: CallRef, arrival: &Arrival, agent: &AgentId, now: Now) {
        let opened = self.open_issue(call, arrival, agent, now);
        match opened {
            Ok((asking, Wanted::Keys)) => {
                let answer = IssueAnswer::Keys(self.known_keys(&asking.agent));
                self.answer(asking.back, answer);
            }
            Ok((asking, Wanted::Renewal { task })) => self.renew(&asking, &task, now),
            Ok((asking, Wanted::Right(wanted))) => self.want_right(&asking, wanted, now),
            Ok((asking, Wanted::Task(new))) => self.start(asking, new, Patience::Some, now),
            Ok((asking, Wanted::Tools(wanted))) => self.offer_tools(&asking, &wanted, now),
            Err((nonce, reason)) => {
                let who =
                    Who { caller: Some(agent.clone()), connection: connection_of(arrival), ..Who::default() };
                let verdict = Verdict::deny(reason, None);
                self.refuse(
                    Back { call, nonce, trace: arrival.trace, arrived: now },
                    &verdict,
                    who,
                    What::default(),
                    now,
                );
            }
        }
    }

    /// The agent, its key and its connection have to belong together.
    fn open_issue(
        &self,
        call: CallRef,
        arrival: &Arrival,
        agent: &AgentId,
        now: Now,
    ) -> Result<(Asking, Wanted), ([u8; 16], Reason)> {
        let unreadable =
            |error: &dyn std::fmt::Display| ([0; 16], Reason::new(ReasonCode::CodecFormat).told(error));
        let signed: Signed<IssueRequest> = decode(&arrival.payload).map_err(|error| unreadable(&error))?;
        let nonce = signed.peek().map_err(|error| unreadable(&error))?.nonce;
        let failed = |reason: Reason| (nonce, reason);
        let holder = *signed.claimed_key();
        let request = signed
            .open(|_| true)
            .map_err(|error| failed(Reason::new(ReasonCode::TokenHolderMismatch).noted(error)))?;
        if request.tenant != self.setup.tenant {
            return Err(failed(ReasonCode::TenantMismatch.into()));
        }
        if request.agent != *agent {
            return Err(failed(ReasonCode::AgentMismatch.into()));
        }
        self.check_age(request.at, now.wall).map_err(failed)?;
        let keys = self.control.agent_keys(agent);
        if keys.is_none_or(|keys| !keys.contains_key(&holder.id())) {
            let reason = Reason::new(ReasonCode::AgentKeyUnknown).told(format_args!("agent `{agent}`"));
            return Err(failed(reason));
        }
        let connected = match &arrival.attested {
            Attested::Agent { user, .. } => self.control.agent_of_connection(user),
            Attested::Core => None,
        };
        if connected.is_none_or(|(owner, _)| owner != agent) {
            return Err(failed(ReasonCode::ConnectionMismatch.into()));
        }
        if self.control.is_quarantined(agent) {
            return Err(failed(ReasonCode::AgentQuarantined.into()));
        }
        let asking = Asking {
            back: Back { call, nonce, trace: arrival.trace, arrived: now },
            agent: agent.clone(),
            holder,
            connection: connection_of(arrival),
        };
        Ok((asking, request.wanted))
    }

    /// Has the issuers asked whose keys are due.
    pub(super) fn fetch_keys(&mut self, now: Now) {
        for (issuer, source) in self.identity.due(now) {
            self.push(Effect::FetchKeys(issuer, source));
        }
    }

    /// Keys came or did not; either way nobody waits for them any longer.
    pub(super) fn keys_fetched(&mut self, issuer: IssuerRef, keys: Result<KeySet, String>, now: Now) {
        if let Err(why) = &keys {
            self.alarm(format!("the keys of an issuer of users could not be fetched: {why}"));
        }
        self.identity.fetched(issuer, keys.ok());
        let (waited, others) =
            std::mem::take(&mut self.awaiting_keys).into_iter().partition(|one| one.issuer == issuer);
        self.awaiting_keys = others;
        let waited: Vec<AwaitingKeys> = waited;
        for AwaitingKeys { asking, new, .. } in waited {
            self.start(asking, new, Patience::None, now);
        }
    }

    fn start(&mut self, asking: Asking, new: NewTask, patience: Patience, now: Now) {
        let verified = self.identity.verify(&new.user_token, now);
        // Right after a rotation the first token with the new key would be refused otherwise.
        if let Err(Unverified { awaits: Some(issuer), .. }) = verified
            && patience == Patience::Some
            && self.awaiting_keys.len() < AWAITING_KEYS_MAX
        {
            self.awaiting_keys.push(AwaitingKeys { issuer, asking, new });
            return self.fetch_keys(now);
        }
        self.start_verified(&asking, &new, verified, now);
    }

    fn start_verified(
        &mut self,
        asking: &Asking,
        new: &NewTask,
        verified: Result<VerifiedUser, Unverified>,
        now: Now,
    ) {
        let mut who = Who {
            agent: Some(asking.agent.clone()),
            caller: Some(asking.agent.clone()),
            holder: Some(asking.holder.fingerprint()),
            connection: asking.connection.clone(),
            ..Who::default()
        };
        let resource = Resource::task(&new.kind);
        let what = What { resource: Some(resource), ..super::control::what_of("issue") };
        let verified = match verified {
            Ok(verified) => verified,
            Err(Unverified { reason, .. }) => {
                let verdict = Verdict::deny(reason, None);
                return self.refuse(asking.back, &verdict, who, what, now);
            }
        };
        who.user = Some(verified.user.clone());
        let token_ends = verified.expires;
        let idempotency = Digest::of(
            "writ/v1/idempotency",
            &[
                verified.user.issuer().as_bytes(),
                verified.user.subject().as_bytes(),
                asking.agent.as_str().as_bytes(),
                new.idempotency_key.as_bytes(),
            ],
        );
        let asked = asked_digest(new);
        if let Some(task) = self.by_idempotency.get(&idempotency).cloned() {
            return self.repeat(asking, &task, asked, who, what, now);
        }
        if !self.starting.insert(idempotency) {
            let reason = Reason::new(ReasonCode::JwtReplayed).told("this task is being started already");
            let verdict = Verdict::deny(reason, None);
            return self.refuse(asking.back, &verdict, who, what, now);
        }
        if self.is_short_of_room(self.control.parts().current()) {
            self.starting.remove(&idempotency);
            let verdict = Verdict::deny(ReasonCode::AuditFull, None);
            return self.refuse(asking.back, &verdict, who, what, now);
        }
        let (verdict, bounds) =
            self.decide_grant("issue", &verified.user, &verified.roles, &asking.agent, new, now);
        let Some(bounds) = bounds else {
            self.starting.remove(&idempotency);
            return self.refuse(asking.back, &verdict, who, what, now);
        };
        let task = TaskId::generate(now.wall, draw(self.entropy.as_mut()));
        let asked_rights: Option<BTreeSet<Right>> =
            new.rights.as_ref().map(|rights| rights.iter().cloned().collect());
        let rights: BTreeSet<Right> = match asked_rights {
            Some(asked) => asked.intersection(&bounds.rights).cloned().collect(),
            None => bounds.rights.clone(),
        };
        let entry = TaskEntry {
            kind: new.kind.clone(),
            user: verified.user,
            roles: verified.roles,
            key: asking.holder.id(),
            capability: CapabilityId::generate(now.wall, draw(self.entropy.as_mut())),
            serial: 1,
            domain: FlowDomain {
                part: self.control.parts().current().clone(),
                domain: DomainId::of_task(&task),
            },
            rights: rights.into_iter().collect(),
            max_depth: bounds.max_depth,
            deadline: now.wall.after(bounds.task_life),
            started: self.control.epoch(),
            instruction: Digest::plain(new.instruction.as_bytes()),
            idempotency,
            asked,
            agent: asking.agent.clone(),
            task,
        };
        let verdicted = Verdicted::new(RecordedDecision::Allow, &verdict, who, what, Basis::default());
        // The user vouches for no longer than the token says (J20); what comes after is up to renewal.
        let end = token_ends.min(now.wall.after(bounds.capability_life));
        let mut issuing = self.issuing(asking, entry, end, verdicted, bounds.pins);
        // The label comes first: a capability whose domain has none is denied everything.
        issuing.instruction = Some(new.instruction.clone());
        self.publish_label(issuing, now);
    }

    /// The same idempotency key again: the same task, if the same was asked for.
    fn repeat(&mut self, asking: &Asking, task: &TaskId, asked: Digest, who: Who, what: What, now: Now) {
        let same = self.tasks.get(task).is_some_and(|entry| entry.asked == asked);
        if !same && !writ_common::red::off("J19") {
            let verdict = Verdict::deny(ReasonCode::JwtReplayed, None);
            return self.refuse(asking.back, &verdict, who, what, now);
        }
        self.renew(asking, task, now);
    }

    fn renew(&mut self, asking: &Asking, task: &TaskId, now: Now) {
        let mut who = Who {
            task: Some(task.clone()),
            caller: Some(asking.agent.clone()),
            holder: Some(asking.holder.fingerprint()),
            connection: asking.connection.clone(),
            ..Who::default()
        };
        let mut what = super::control::what_of("renew");
        let checked = self.check_renewal(asking, task, now);
        let entry = match checked {
            Ok(entry) => entry,
            Err(reason) => {
                let verdict = Verdict::deny(reason, None);
                return self.refuse(asking.back, &verdict, who, what, now);
            }
        };
        who.user = Some(entry.user.clone());
        who.agent = Some(entry.agent.clone());
        what.resource = Some(Resource::task(&entry.kind));
        let wanted = NewTask {
            user_token: String::new(),
            kind: entry.kind.clone(),
            instruction: String::new(),
            rights: None,
            idempotency_key: String::new(),
        };
        let (verdict, bounds) =
            self.decide_grant("renew", &entry.user, &entry.roles, &entry.agent, &wanted, now);
        let Some(bounds) = bounds else {
            return self.refuse(asking.back, &verdict, who, what, now);
        };
        // Policy may have become narrower since; it never becomes wider than what was granted.
        let mut entry = entry;
        entry.rights.retain(|right| bounds.rights.contains(right));
        entry.max_depth = entry.max_depth.min(bounds.max_depth);
        entry.serial += 1;
        let verdicted = Verdicted::new(RecordedDecision::Allow, &verdict, who, what, Basis::default());
        let end = now.wall.after(bounds.capability_life);
        let issuing = self.issuing(asking, entry, end, verdicted, bounds.pins);
        self.write_issue(issuing, now);
    }

    pub(super) fn check_renewal(
        &self,
        asking: &Asking,
        task: &TaskId,
        now: Now,
    ) -> Result<TaskEntry, Reason> {
        let entry = self.tasks.get(task).ok_or(ReasonCode::TaskUnknown)?;
        if entry.agent != asking.agent || entry.key != asking.holder.id() {
            return Err(ReasonCode::TokenHolderMismatch.into());
        }
        if now.wall >= entry.deadline {
            return Err(Reason::new(ReasonCode::TaskDeadline).told(format_args!("it was {}", entry.deadline)));
        }
        self.control.check_task(&entry.capability, &entry.task, &entry.user, &entry.agent, entry.started)?;
        Ok(entry.clone())
    }

    fn decide_grant(
        &self,
        action: &str,
        user: &UserId,
        roles: &[RoleId],
        agent: &AgentId,
        new: &NewTask,
        now: Now,
    ) -> (Verdict, Option<GrantBounds>) {
        let Some(policy) = &self.policy else { return (without_policy(), None) };
        let Ok(action) = Action::parse(action) else { return (without_policy(), None) };
        let rights = new.rights.as_ref().map(|rights| {
            let texts = rights.iter().map(|right| Value::from(right.to_string())).collect();
            ("rights", Value::Array(texts))
        });
        let request = Request {
            principal: Principal::User { user: user.clone(), roles: roles.to_vec(), agent: agent.clone() },
            action,
            resource: Resource::task(&new.kind),
            arguments: Arguments::new(rights.into_iter().collect()),
            environment: Environment {
                tenant: self.setup.tenant.clone(),
                task: None,
                task_kind: Some(new.kind.clone()),
            },
        };
        let label = Label::bottom();
        let verdict = decide(&request, &Evidence::new(&self.control, &label), policy, now.wall);
        let bounds = match (verdict.decision(), verdict.obligations()) {
            (Decision::Allow, [Obligation::GrantWithin(bounds)]) => Some(bounds.clone()),
            _ => None,
        };
        (verdict, bounds)
    }

    fn issuing(
        &self,
        asking: &Asking,
        entry: TaskEntry,
        end: Timestamp,
        mut verdicted: Verdicted,
        pins: Pins,
    ) -> Box<Issuing> {
        // Capabilities count in whole seconds.
        let expires = Timestamp::from_secs(end.min(entry.deadline).as_secs());
        verdicted.who.task = Some(entry.task.clone());
        verdicted.who.capability = Some(entry.capability.clone());
        verdicted.who.serial = Some(entry.serial);
        verdicted.who.domain = Some(entry.domain.clone());
        verdicted.who.issuer = Some(self.setup.key.public().fingerprint());
        verdicted.basis.epoch = Some(self.control.epoch());
        verdicted.trace = trace_ref(asking.back.trace);
        verdicted.granted = Some(Box::new(Granted {
            kind: entry.kind.clone(),
            rights: entry.rights.clone(),
            max_depth: entry.max_depth,
            expires,
            deadline: entry.deadline,
            key: entry.key.clone(),
            instruction: entry.instruction,
            idempotency: entry.idempotency,
            asked: entry.asked,
            roles: entry.roles.iter().map(ToString::to_string).collect(),
            started: entry.started,
        }));
        Box::new(Issuing {
            back: asking.back,
            entry,
            holder: asking.holder,
            expires,
            verdicted,
            pins,
            instruction: None,
            prepared: None,
        })
    }

    /// The label a flow domain begins with. Fenced on there being none: a second one would wash it clean.
    pub(super) fn first_label(&self, domain: &FlowDomain) -> Store {
        let label = DomainLabel {
            tenant: self.setup.tenant.clone(),
            domain: domain.clone(),
            label: Label::bottom(),
            origins: Origins::new(),
            moved_to: None,
        };
        let subject = Subject::Label(domain.clone()).of(&self.setup.tenant);
        Store::fenced(subject, 0, encode(&Signed::new(&label, &self.setup.key)))
    }

    fn publish_label(&mut self, mut issuing: Box<Issuing>, now: Now) {
        // Nodes believe the text by its digest, and go without if it does not arrive: fewer arguments are vouched for.
        if let Some(store) = self.instruction_of(&mut issuing, now) {
            let ticket = self.fresh_ticket();
            self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        }
        let store = self.first_label(&issuing.entry.domain);
        let ticket = self.fresh_ticket();
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        self.pending.insert(ticket, Pending::LabelPublished(issuing));
    }

    /// What the user asked for, in their words, for as long as the task can live.
    fn instruction_of(&self, issuing: &mut Issuing, now: Now) -> Option<Store> {
        let text = issuing.instruction.take().filter(|text| !text.is_empty())?;
        let (part, task) = (issuing.entry.domain.part.clone(), issuing.entry.task.clone());
        Some(Store {
            subject: Subject::Instruction { part, task }.of(&self.setup.tenant),
            payload: text.into_bytes(),
            message_id: None,
            fence: Fence::None,
            ttl_secs: Some(issuing.entry.deadline.since(now.wall).0 / 1_000 + 60),
        })
    }

    pub(super) fn label_published(
        &mut self,
        issuing: Box<Issuing>,
        result: &Result<Stored, StoreError>,
        now: Now,
    ) {
        match result {
            Ok(_) => self.write_issue(issuing, now),
            Err(error) => {
                self.alarm(format!("the first label of {} was not taken: {error}", issuing.entry.task));
                self.issue_failed(&issuing, ReasonCode::AuditUnavailable);
            }
        }
    }

    fn write_issue(&mut self, mut issuing: Box<Issuing>, now: Now) {
        let body = RecordBody::Verdict(Box::new(issuing.verdicted.clone()));
        let part = self.control.parts().for_record(&issuing.entry.domain.part);
        let prepared = Box::new(self.recorder.prepare(part, body, now.wall));
        let ticket = self.journal(&prepared);
        issuing.prepared = Some(prepared);
        self.pending.insert(ticket, Pending::IssueWritten(issuing));
    }

    pub(super) fn issue_written(&mut self, issuing: Box<Issuing>) {
        let Some(prepared) = &issuing.prepared else { return };
        let (ticket, store) = (self.fresh_ticket(), Self::store_of(prepared));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        self.pending.insert(ticket, Pending::IssuePublished(issuing));
    }

    pub(super) fn issue_published(
        &mut self,
        issuing: Box<Issuing>,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        match result {
            Ok(stored) => {
                if let Some(prepared) = &issuing.prepared {
                    self.committed(prepared, &prepared.subject, stored.sequence);
                }
                let ticket = self.fresh_ticket();
                let task = Box::new(issuing.entry.clone());
                let part = issuing.prepared.as_ref().map(|prepared| prepared.record.part.clone());
                let part = part.unwrap_or_else(|| issuing.entry.domain.part.clone());
                self.push(Effect::Index { ticket, task, part, sequence: stored.sequence });
                self.pending.insert(ticket, Pending::IssueIndexed(issuing));
            }
            Err(error) => {
                self.alarm(format!("the record of {} was not taken: {error}", issuing.entry.task));
                // Voided under its own id: if it was stored after all, the void is dropped, and the task is one that
                // nobody holds.
                if let Some(prepared) = &issuing.prepared {
                    let reason = Reason::new(ReasonCode::AuditUnavailable).noted(error);
                    let (who, what) = (issuing.verdicted.who.clone(), issuing.verdicted.what.clone());
                    let cause = RecordedReason::from(&reason);
                    let mut void = Box::new(self.recorder.void(prepared, cause, who, what, now.wall));
                    void.message_id.clone_from(&prepared.message_id);
                    let _written = self.journal(&void);
                    self.publish_record(void);
                }
                self.issue_failed(&issuing, ReasonCode::AuditUnavailable);
            }
        }
    }

    /// The task is on record and in the index: hand the capability out.
    pub(super) fn issue_indexed(&mut self, issuing: &Issuing, now: Now) {
        let entry = issuing.entry.clone();
        self.starting.remove(&entry.idempotency);
        self.know_task(entry.clone());
        let TaskEntry { capability, task, user, agent, .. } = &entry;
        let decided = issuing.verdicted.basis.epoch.unwrap_or_default();
        if let Err(reason) = self.control.check_task(capability, task, user, agent, decided) {
            return self.answer(issuing.back, IssueAnswer::Refused { reasons: told(&[reason]) });
        }
        let rights: BTreeSet<Right> = entry.rights.iter().cloned().collect();
        let grant = Grant {
            tenant: self.setup.tenant.clone(),
            user: entry.user.clone(),
            agent: entry.agent.clone(),
            task: entry.task.clone(),
            holder: issuing.holder,
            capability: entry.capability.clone(),
            serial: entry.serial,
            instruction: entry.instruction,
            domain: entry.domain.clone(),
            bounds: issuing.pins.bounds(&rights),
            rights,
            expires: issuing.expires,
            // What it was decided on: a revocation since then covers it.
            min_epoch: issuing.verdicted.basis.epoch.unwrap_or_default(),
            max_depth: entry.max_depth,
        };
        let answer = match grant.issue(&self.setup.key, &draw(self.entropy.as_mut())) {
            Ok(capability) => IssueAnswer::Task(Box::new(IssuedTask {
                task: entry.task.clone(),
                deadline: entry.deadline,
                capability: capability.as_bytes().to_vec(),
                keys: self.known_keys(&entry.agent),
            })),
            Err(error) => {
                self.alarm(format!("the capability for {} could not be made: {error}", entry.task));
                IssueAnswer::Refused { reasons: told(&[ReasonCode::TokenTooLarge.into()]) }
            }
        };
        self.span(&issuing.verdicted, &entry.agent, issuing.back, now);
        self.answer(issuing.back, answer);
    }

    pub(super) fn issue_failed(&mut self, issuing: &Issuing, code: ReasonCode) {
        self.starting.remove(&issuing.entry.idempotency);
        let answer = IssueAnswer::Refused { reasons: told(&[code.into()]) };
        self.answer(issuing.back, answer);
    }

    pub(super) fn refuse(&mut self, back: Back, verdict: &Verdict, who: Who, what: What, now: Now) {
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        let recorded = Verdicted::new(RecordedDecision::Deny, verdict, who, what, basis);
        self.refuse_recorded(back, verdict, recorded, now);
    }

    /// Records a refusal as it is put, and answers with it.
    pub(super) fn refuse_recorded(
        &mut self,
        back: Back,
        verdict: &Verdict,
        mut recorded: Verdicted,
        now: Now,
    ) {
        recorded.trace = trace_ref(back.trace);
        if let Some(agent) = recorded.who.caller.clone() {
            self.span(&recorded, &agent, back, now);
        }
        let answer = IssueAnswer::Refused { reasons: told(verdict.reasons()) };
        let payload = self.sealed(back.nonce, answer);
        self.record(RecordBody::Verdict(Box::new(recorded)), Some((back.call, payload)), now);
    }

    /// The answer to a request over the sender's quota, which gets no record of its own.
    pub(super) fn over_quota(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        let nonce = decode::<Signed<IssueRequest>>(&arrival.payload)
            .ok()
            .and_then(|signed| signed.peek().ok())
            .map_or([0; 16], |request| request.nonce);
        let reasons = told(&[ReasonCode::RequestQuota.into()]);
        let back = Back { call, nonce, trace: arrival.trace, arrived: now };
        self.answer(back, IssueAnswer::Refused { reasons });
    }

    pub(super) fn answer(&mut self, back: Back, answer: IssueAnswer) {
        let payload = self.sealed(back.nonce, answer);
        self.push(Effect::Reply(back.call, payload));
    }

    pub(super) fn sealed(&self, nonce: [u8; 16], answer: IssueAnswer) -> Vec<u8> {
        let issued = Issued { tenant: self.setup.tenant.clone(), nonce, answer };
        encode(&IssueReply {
            keyset: Some(self.setup.keyset.clone()),
            issued: Signed::new(&issued, &self.setup.key),
        })
    }

    fn known_keys(&self, agent: &AgentId) -> KnownKeys {
        let nodes = self.control.nodes().iter();
        let delegates = self.delegations.iter().filter(|(from, _)| from == agent).flat_map(|(_, to)| {
            let keys = self.control.agent_keys(to).into_iter().flatten();
            keys.map(|(_, key)| DelegateKey { agent: to.clone(), key: key.holder })
        });
        KnownKeys {
            epoch: self.control.epoch(),
            nodes: nodes.map(|(node, entry)| NodeKey { node: node.clone(), key: entry.key }).collect(),
            delegates: delegates.collect(),
        }
    }

    pub(super) fn span(&mut self, verdicted: &Verdicted, agent: &AgentId, back: Back, end: Now) {
        let mut attributes = verdict_attributes(verdicted, &self.recorder.next_id());
        // An issue is a link of the chain, not a guardrail in front of a tool.
        attributes.retain(|(name, _)| *name != attribute::OPENINFERENCE_KIND);
        attributes.push((attribute::OPENINFERENCE_KIND, "CHAIN".into()));
        attributes.push((attribute::AGENT_NAME, agent.as_str().into()));
        let error = verdicted.reasons.first().map(|reason| reason.code.to_string());
        self.push(Effect::Span(Box::new(SpanRecord {
            name: span::issue(agent.as_str()),
            kind: SpanKind::Consumer,
            parent: back.trace,
            start: back.arrived.wall,
            end: end.wall,
            attributes,
            error,
        })));
    }
}

/// The digest of what was asked for, without the token, which may differ between attempts.
fn asked_digest(new: &NewTask) -> Digest {
    let rights = match &new.rights {
        Some(rights) => rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        None => "*".to_owned(),
    };
    Digest::of(
        "writ/v1/asked",
        &[new.kind.as_str().as_bytes(), new.instruction.as_bytes(), rights.as_bytes()],
    )
}

pub(super) fn trace_ref(trace: Option<TraceContext>) -> Option<TraceRef> {
    trace.map(|trace| TraceRef { trace: hex::encode(trace.trace), span: hex::encode(trace.span) })
}
