//! Writing control events: one at a time, each fenced on the one before it.

use std::collections::VecDeque;

use writ_bus::{Attested, Store, StoreError, Stored};
use writ_common::{
    codec::{decode, encode},
    control::{ControlDocument, ControlEvent},
    reason::{Reason, ReasonCode},
    record::{Basis, RecordBody, RecordedDecision, Verdicted, What, Who},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now},
    verdict::Verdict,
    wire::{EnrollReply, EnrollRequest, ToldReason, join_token_digest},
};

use super::{Arrival, Broker, CallRef, Effect, admin::Operation, encode_signed};

/// Something that shall become a control event. It is judged again when its turn comes.
pub(super) enum ControlWrite {
    /// An operator's change, allowed and on record.
    Admin(CallRef, Box<Operation>),
    /// An agent's enrollment.
    Enroll(CallRef, Box<EnrollRequest>),
    /// Something of our own.
    Own(Box<ControlEvent>),
}

/// The write whose acknowledgement is waited for.
pub(super) struct InFlight {
    write: ControlWrite,
    event: ControlEvent,
    payload: Vec<u8>,
    attempts: u32,
    /// The last message of the stream when it was sent first.
    after: u64,
}

/// How often a write is tried again after it lost the race for its place or got no answer.
const ATTEMPTS_MAX: u32 = 20;

impl Broker {
    /// The stream has been read: add what configuration demands and the stream lacks.
    pub(super) fn control_was_read(&mut self, now: Now) {
        if std::mem::replace(&mut self.control_read, true) {
            return;
        }
        let mut wanted = VecDeque::new();
        let configured = self.setup.keyset.peek().map(|document| document.version).unwrap_or(0);
        let in_force = self.control.keyset().map(|keyset| keyset.document().version);
        if in_force.is_none_or(|version| configured > version) {
            wanted.push_back(ControlEvent::Keyset(self.setup.keyset.clone()));
        }
        if self.setup.is_recovered {
            // Whatever was issued before the recovery names an older state than anything from now on.
            let seconds = u32::try_from(now.wall.as_secs()).unwrap_or(u32::MAX);
            let number = seconds.max(self.control.epoch().incarnation.saturating_add(1));
            wanted.push_back(ControlEvent::Incarnation { number });
        }
        wanted.push_back(ControlEvent::BrokerBoot {
            broker: self.setup.broker.clone(),
            boot: self.setup.boot.clone(),
            key: self.setup.record_key.public(),
        });
        for (node, (key, connection)) in &self.setup.nodes {
            let known = self.control.nodes().get(node);
            if known.is_none_or(|known| known.key != *key || known.connection != *connection) {
                let connection = connection.clone();
                wanted.push_back(ControlEvent::NodeKey { node: node.clone(), key: *key, connection });
            }
        }
        wanted.extend(self.approver_changes());
        wanted.extend(self.first_policy());
        self.control_queue.extend(wanted.into_iter().map(|event| ControlWrite::Own(Box::new(event))));
        self.next_control_write(now);
    }

    /// The configuration says who approves by which key; whoever is not in it any more does not.
    fn approver_changes(&self) -> Vec<ControlEvent> {
        let (configured, known) = (&self.setup.approvers, self.control.approvers());
        let added = configured.iter().filter(|(name, key)| known.get(*name) != Some(key));
        let gone = known.keys().filter(|name| !configured.contains_key(*name));
        added
            .map(|(name, key)| ControlEvent::ApproverKey { approver: name.clone(), key: Some(*key) })
            .chain(gone.map(|name| ControlEvent::ApproverKey { approver: name.clone(), key: None }))
            .collect()
    }

    pub(super) fn queue_control(&mut self, write: ControlWrite, now: Now) {
        self.control_queue.push_back(write);
        self.next_control_write(now);
    }

    /// Takes the next write whose turn it is, and judges it against control state as it is now.
    pub(super) fn next_control_write(&mut self, now: Now) {
        while self.control_in_flight.is_none() && self.control_read {
            let Some(write) = self.control_queue.pop_front() else { return };
            if matches!(&write, ControlWrite::Own(event) if self.is_moot(event)) {
                continue;
            }
            match self.judge_write(&write, now) {
                Ok(event) => {
                    let after = self.control.last_seen();
                    self.send_control(write, event, (0, after), Millis(0), now);
                }
                Err(reason) => self.refuse_write(&write, reason, now),
            }
        }
    }

    /// The write whose acknowledgement is waited for.
    pub(super) fn write_in_flight(&self) -> Option<&ControlWrite> {
        self.control_in_flight.as_ref().map(|(_, in_flight)| &in_flight.write)
    }

    fn judge_write(&mut self, write: &ControlWrite, now: Now) -> Result<ControlEvent, Reason> {
        match write {
            ControlWrite::Own(event) => Ok(event.as_ref().clone()),
            ControlWrite::Admin(_, operation) => {
                self.check_turn(operation, now)?;
                Ok(operation.event.clone())
            }
            ControlWrite::Enroll(_, request) => self.judge_enrollment(request, now),
        }
    }

    fn send_control(
        &mut self,
        write: ControlWrite,
        event: ControlEvent,
        (attempts, after): (u32, u64),
        delay: Millis,
        now: Now,
    ) {
        let by = match &write {
            ControlWrite::Admin(_, operation) => format!("operator {}", operation.operator),
            ControlWrite::Enroll(_, request) => format!("agent {}", request.agent),
            ControlWrite::Own(_) => format!("broker {}", self.setup.broker),
        };
        let document = ControlDocument {
            tenant: self.setup.tenant.clone(),
            at: now.wall,
            by,
            follows: self.control.epoch(),
            event: event.clone(),
        };
        let payload = encode_signed(&document, &self.setup.key);
        let subject = Subject::Control.of(&self.setup.tenant);
        let store = Store::fenced(subject, self.control.last_seen(), payload.clone());
        let ticket = self.fresh_ticket();
        self.push(Effect::Publish { ticket, store, delay });
        self.control_in_flight = Some((ticket, InFlight { write, event, payload, attempts, after }));
    }

    pub(super) fn control_written(&mut self, result: Result<Stored, StoreError>, now: Now) {
        let Some((_, in_flight)) = self.control_in_flight.take() else { return };
        let InFlight { write, event, payload, attempts, after } = in_flight;
        match result {
            Ok(stored) => {
                self.control_event(stored.sequence, &payload);
                self.write_done(write, now);
            }
            // Another broker wrote first, or the fate is unknown; the stream's tail brings what we miss, and a
            // write that did get through is found there.
            Err(_) if self.is_in_force(&event, after) => self.write_done(write, now),
            Err(_) if attempts < ATTEMPTS_MAX => match self.judge_write(&write, now) {
                Ok(event) => {
                    let delay = Millis(20 * u64::from(attempts + 1));
                    return self.send_control(write, event, (attempts + 1, after), delay, now);
                }
                Err(reason) => self.refuse_write(&write, reason, now),
            },
            Err(error) => {
                let reason = Reason::new(ReasonCode::ControlUnavailable).noted(error);
                self.refuse_write(&write, reason, now);
            }
        }
        self.next_control_write(now);
    }

    /// Whether an event whose acknowledgement was lost shows in control state.
    fn is_in_force(&self, event: &ControlEvent, after: u64) -> bool {
        match event {
            ControlEvent::AgentKey { agent, holder, .. } => {
                self.control.agent_keys(agent).is_some_and(|keys| keys.contains_key(&holder.id()))
            }
            ControlEvent::JoinToken { token, .. } => self.control.join_token(token).is_some(),
            ControlEvent::HaltAll { on } => self.control.is_halted() == *on,
            // Written twice it could undo what somebody else put in force in between.
            ControlEvent::Policy(bundle) => {
                let mut since = self.control.activations().iter().filter(|one| one.sequence > after);
                since.next_back().is_some_and(|one| one.revision == bundle.revision())
            }
            ControlEvent::Quarantine { agent, on } => self.control.is_quarantined(agent) == *on,
            ControlEvent::LegalHold { id, hold } => self.control.holds().get(id) == hold.as_ref(),
            // The others can be written twice without harm.
            _ => false,
        }
    }

    fn write_done(&mut self, write: ControlWrite, now: Now) {
        match write {
            ControlWrite::Own(_) => {}
            ControlWrite::Admin(call, operation) => self.operation_done(call, &operation, now),
            ControlWrite::Enroll(call, request) => {
                let reply = EnrollReply::Enrolled { key: request.holder.id(), epoch: self.control.epoch() };
                self.record_enrollment(call, &request, Ok(()), &reply, now);
            }
        }
    }

    fn refuse_write(&mut self, write: &ControlWrite, reason: Reason, now: Now) {
        match write {
            ControlWrite::Own(event) => {
                let event = event.as_ref().clone();
                self.alarm(format!("a control event could not be written: {}", reason.for_operator()));
                // What configuration demands stays wanted.
                self.control_queue.push_back(ControlWrite::Own(Box::new(event)));
            }
            ControlWrite::Admin(call, _) => self.operation_failed(*call, &reason),
            ControlWrite::Enroll(call, request) => {
                let reply = EnrollReply::Refused { reason: ToldReason::from(&reason) };
                self.record_enrollment(*call, request, Err(reason), &reply, now);
            }
        }
    }

    pub(super) fn enroll(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        let request = decode::<Signed<EnrollRequest>>(&arrival.payload)
            .map_err(|error| Reason::new(ReasonCode::CodecFormat).told(error))
            .and_then(|signed| {
                // The key that is being enrolled signs: nobody enrolls a key they do not hold.
                let claimed =
                    signed.peek().map_err(|error| Reason::new(ReasonCode::CodecFormat).told(error))?;
                signed
                    .open(|key| *key == claimed.holder)
                    .map_err(|error| Reason::new(ReasonCode::EnrollToken).noted(error))
            });
        match request {
            Ok(request) => self.queue_control(ControlWrite::Enroll(call, Box::new(request)), now),
            Err(reason) => {
                let reply = EnrollReply::Refused { reason: ToldReason::from(&reason) };
                let verdict = Verdict::deny(reason, None);
                let connection = connection_of(arrival);
                let who = Who { connection, ..Who::default() };
                self.record_verdict(call, &verdict, who, encode(&reply), now);
            }
        }
    }

    fn judge_enrollment(&self, request: &EnrollRequest, now: Now) -> Result<ControlEvent, Reason> {
        if request.tenant != self.setup.tenant {
            return Err(ReasonCode::TenantMismatch.into());
        }
        self.check_age(request.at, now.wall)?;
        let digest = join_token_digest(&request.token);
        let refused = |note: &str| Reason::new(ReasonCode::EnrollToken).noted(note);
        let token = self.control.join_token(&digest).ok_or_else(|| refused("unknown or used up"))?;
        if token.expires <= now.wall {
            return Err(refused("expired"));
        }
        if token.agent != request.agent {
            return Err(refused("for another agent"));
        }
        let known =
            self.policy.as_ref().is_some_and(|policy| policy.inventory().agents.contains_key(&request.agent));
        if !known {
            return Err(Reason::new(ReasonCode::AgentUnknown).told(format_args!("agent `{}`", request.agent)));
        }
        if self.control.agent_of_connection(&request.connection).is_some() {
            return Err(Reason::new(ReasonCode::ConnectionMismatch).told("the NATS user is enrolled already"));
        }
        if self.control.agents().any(|(_, keys)| keys.contains_key(&request.holder.id())) {
            return Err(Reason::new(ReasonCode::AgentKeyUnknown).told("the key is enrolled already"));
        }
        Ok(ControlEvent::AgentKey {
            agent: request.agent.clone(),
            holder: request.holder,
            connection: request.connection.clone(),
            token: digest,
        })
    }

    fn record_enrollment(
        &mut self,
        call: CallRef,
        request: &EnrollRequest,
        result: Result<(), Reason>,
        reply: &EnrollReply,
        now: Now,
    ) {
        let who = Who {
            caller: Some(request.agent.clone()),
            holder: Some(request.holder.fingerprint()),
            connection: Some(request.connection.clone()),
            ..Who::default()
        };
        let payload = encode(reply);
        match result {
            Err(reason) => self.record_verdict(call, &Verdict::deny(reason, None), who, payload, now),
            Ok(()) => {
                let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
                let recorded = Verdicted {
                    decision: RecordedDecision::Allow,
                    reasons: Vec::new(),
                    would_deny: Vec::new(),
                    who,
                    what: what_of("enroll"),
                    basis,
                    trace: None,
                    granted: None,
                    right: None,
                    approval: None,
                    sources: Vec::new(),
                    acts: Vec::new(),
                    found: Vec::new(),
                    shadow: None,
                    count: 1,
                };
                self.record(RecordBody::Verdict(Box::new(recorded)), Some((call, payload)), now);
            }
        }
    }

    /// Records a refusal that has no more to it, and answers with it.
    pub(super) fn record_verdict(
        &mut self,
        call: CallRef,
        verdict: &Verdict,
        who: Who,
        payload: Vec<u8>,
        now: Now,
    ) {
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        let recorded = Verdicted::new(RecordedDecision::Deny, verdict, who, What::default(), basis);
        self.record(RecordBody::Verdict(Box::new(recorded)), Some((call, payload)), now);
    }
}

pub(super) fn what_of(action: &str) -> What {
    What { action: writ_common::ids::Action::parse(action).ok(), ..What::default() }
}

pub(super) fn connection_of(arrival: &Arrival) -> Option<String> {
    match &arrival.attested {
        Attested::Agent { user, .. } => Some(user.clone()),
        Attested::Core => None,
    }
}
