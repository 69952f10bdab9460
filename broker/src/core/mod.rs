//! The broker without I/O: requests, stream messages and time go in, what to do comes out.
//!
//! Three rules order everything. A task exists once its record is acknowledged by the stream and its index entry is
//! flushed; only then is a capability handed out. Control state changes only by an event that was fenced on the
//! event before it, so several brokers write as one. And every verdict is a record, refusals included.

mod admin;
mod control;
mod event;
mod fresh;
mod issue;
mod log;
mod offer;
mod part;
mod policy;
mod right;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use event::{Arrival, CallRef, Effect, Event, Ticket};

use control::ControlWrite;
use fresh::Freshness;
use writ_bus::{Fence, Store, StoreError, Stored};
use writ_common::{
    admission::{Admission, quota_of},
    approval::Approvals,
    codec::encode,
    control::{ControlFault, ControlState, claims_policy},
    digest::Digest,
    entropy::Entropy,
    epoch::Epoch,
    ids::{
        AgentId, BootId, BrokerId, CapabilityId, FlowDomain, KeyId, NodeId, OperatorId, PartId, RoleId,
        TaskId, TaskKind, TenantId, UserId,
    },
    keys::{PrivateKey, PublicKey},
    keyset::KeysetDocument,
    part::Parts,
    policy::{PolicyBundle, PolicySet},
    reason::{Reason, ReasonCode},
    record::{
        Basis, Origin, Record, RecordBody, RecordKind, RecordedDecision, RecordedReason, Verdicted, Who,
    },
    recorder::{Prepared, Recorder},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    tlog::LogId,
    verdict::Verdict,
    wire::{EnrollReply, ToldReason},
};
use writ_journal::{Entry, Room, Unsettled};

use crate::jwt::IdentityProvider;

/// How a broker is set up.
pub struct BrokerSetup {
    /// The tenant.
    pub tenant: TenantId,
    /// The broker's name.
    pub broker: BrokerId,
    /// This run.
    pub boot: BootId,
    /// The offline root's public key.
    pub root: PublicKey,
    /// The keyset the offline root signed.
    pub keyset: Signed<KeysetDocument>,
    /// The online key that signs capabilities and control events.
    pub key: PrivateKey,
    /// The key that signs this broker's records.
    pub record_key: PrivateKey,
    /// The policy to be in force.
    pub policy: PolicyBundle,
    /// The nodes to be enrolled: their record keys and NATS users.
    pub nodes: BTreeMap<NodeId, (PublicKey, String)>,
    /// The operators and their keys.
    pub operators: BTreeMap<OperatorId, PublicKey>,
    /// The approvers and their keys.
    pub approvers: BTreeMap<OperatorId, PublicKey>,
    /// How old a signed request may be.
    pub request_age_max: Millis,
    /// How far clocks may be apart.
    pub skew: Millis,
    /// The longest staleness any node may be set to.
    pub staleness_max: Millis,
    /// Whether an operator said to go on from the streams as they are.
    pub is_recovered: bool,
    /// The parts of the audit stream, as the control stream told them before the start.
    pub parts: Parts,
}

/// A task as the broker keeps it. All of it stands in the task's records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEntry {
    /// The task.
    pub task: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// On whose authority.
    pub user: UserId,
    /// The user's roles when it was started.
    pub roles: Vec<RoleId>,
    /// The agent it was given to.
    pub agent: AgentId,
    /// The key it was given to.
    pub key: KeyId,
    /// Its capability.
    pub capability: CapabilityId,
    /// How often that was issued.
    pub serial: u64,
    /// Its flow domain.
    pub domain: FlowDomain,
    /// The rights granted.
    pub rights: Vec<writ_common::capability::Right>,
    /// How deep it may be delegated.
    pub max_depth: u8,
    /// When it ends.
    pub deadline: Timestamp,
    /// Control state when it was started.
    pub started: Epoch,
    /// Plain SHA-256 of the user's instruction.
    pub instruction: Digest,
    /// Digest of user, agent and idempotency key.
    pub idempotency: Digest,
    /// Digest of what was asked for.
    pub asked: Digest,
}

impl TaskEntry {
    /// The task a record of ours speaks about, if it issued or renewed one.
    #[must_use]
    pub fn of_record(record: &Record) -> Option<Self> {
        let RecordBody::Verdict(verdicted) = &record.body else { return None };
        let granted = verdicted.granted.as_ref()?;
        let who = &verdicted.who;
        Some(Self {
            task: who.task.clone()?,
            kind: granted.kind.clone(),
            user: who.user.clone()?,
            roles: granted.roles.iter().filter_map(|role| RoleId::parse(role.as_str()).ok()).collect(),
            agent: who.agent.clone()?,
            key: granted.key.clone(),
            capability: who.capability.clone()?,
            serial: who.serial?,
            domain: who.domain.clone()?,
            rights: granted.rights.clone(),
            max_depth: granted.max_depth,
            deadline: granted.deadline,
            started: granted.started,
            instruction: granted.instruction,
            idempotency: granted.idempotency,
            asked: granted.asked,
        })
    }
}

/// The control plane's brain.
pub struct Broker {
    setup: BrokerSetup,
    recorder: Recorder,
    control: ControlState,
    policy: Option<Arc<PolicySet>>,
    delegations: BTreeSet<(AgentId, AgentId)>,
    identity: Box<dyn IdentityProvider>,
    entropy: Box<dyn Entropy>,
    tasks: BTreeMap<TaskId, TaskEntry>,
    by_idempotency: BTreeMap<Digest, TaskId>,
    /// Starts under way, so that the same idempotency key cannot start two.
    starting: BTreeSet<Digest>,
    /// Starts that wait for the next keys of the user's issuer.
    awaiting_keys: Vec<issue::AwaitingKeys>,
    freshness: Freshness,
    admission: Admission,
    control_read: bool,
    control_queue: VecDeque<ControlWrite>,
    control_in_flight: Option<(Ticket, control::InFlight)>,
    /// Requests of operators whose nonce was seen, and when it can be forgotten.
    nonces: BTreeMap<[u8; 16], Timestamp>,
    waiting_revocations: Vec<fresh::WaitingRevocation>,
    /// Requests for rights, people's answers, and what came of them.
    approvals: Approvals,
    /// Whether all of them that were there at the start have been read.
    approvals_read: bool,
    rights: right::Rights,
    pending: BTreeMap<Ticket, Pending>,
    unacknowledged: BTreeMap<Ticket, (Box<Prepared>, Store)>,
    /// Earlier runs, with how many of their records the stream does not have yet.
    recovering: BTreeMap<BootId, usize>,
    logs: log::Logs,
    /// Whether the run is ending, so that nothing more may be recorded.
    is_closing: bool,
    parts: part::PartWork,
    /// How much room the journal has.
    journal_room: Room,
    next_ticket: u64,
    effects: VecDeque<Effect>,
}

/// What a ticket is for.
enum Pending {
    /// The initial label of a new task is being published.
    LabelPublished(Box<issue::Issuing>),
    /// The record of an issue or renewal is being written.
    IssueWritten(Box<issue::Issuing>),
    /// It is being published.
    IssuePublished(Box<issue::Issuing>),
    /// Its task is being indexed.
    IssueIndexed(Box<issue::Issuing>),
    /// A right that was asked for, on its way.
    Right(Box<right::Way>),
    /// A record is being written; then it is published and, if there is one, the answer sent.
    RecordWritten(Box<Prepared>, Option<(CallRef, Vec<u8>)>),
    /// A tick is being published.
    TickPublished,
    /// A log's head is being published.
    Head(Box<log::HeadOnItsWay>),
    /// What is stored under a void's id, at this sequence, is being read.
    ReadBack(Box<Prepared>, u64),
}

impl Pending {
    /// Whether a task is being started or renewed, or a right issued, by it.
    fn is_issue(&self) -> bool {
        matches!(
            self,
            Self::LabelPublished(_)
                | Self::IssueWritten(_)
                | Self::IssuePublished(_)
                | Self::IssueIndexed(_)
                | Self::Right(_)
        )
    }
}

/// Pause before a record is published again.
const REPUBLISH_AFTER: Millis = Millis(500);
/// When the stream has certainly forgotten a message id it was given: its duplicate window, and room.
const ID_FORGOTTEN_AFTER: Millis = Millis(150_000);

impl Broker {
    /// A broker that has yet to read the control stream. `tasks` come from the index.
    #[must_use]
    pub fn new(
        setup: BrokerSetup,
        identity: Box<dyn IdentityProvider>,
        entropy: Box<dyn Entropy>,
        tasks: Vec<TaskEntry>,
        now: Now,
    ) -> Self {
        let recorder = Recorder::new(
            setup.tenant.clone(),
            Origin::Broker(setup.broker.clone()),
            setup.boot.clone(),
            setup.record_key.clone(),
        );
        let log = LogId::of(&setup.tenant, &recorder.next_id());
        let mut broker = Self {
            recorder,
            control: ControlState::new(setup.tenant.clone(), setup.root).with_parts(setup.parts.clone()),
            policy: None,
            delegations: BTreeSet::new(),
            identity,
            entropy,
            tasks: BTreeMap::new(),
            by_idempotency: BTreeMap::new(),
            starting: BTreeSet::new(),
            awaiting_keys: Vec::new(),
            freshness: Freshness::new(now),
            admission: Admission::default(),
            control_read: false,
            control_queue: VecDeque::new(),
            control_in_flight: None,
            nonces: BTreeMap::new(),
            waiting_revocations: Vec::new(),
            approvals: Approvals::default(),
            approvals_read: false,
            rights: right::Rights::default(),
            pending: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            recovering: BTreeMap::new(),
            logs: log::Logs::new(log),
            is_closing: false,
            parts: part::PartWork::default(),
            journal_room: Room::Enough,
            next_ticket: 0,
            effects: VecDeque::new(),
            setup,
        };
        tasks.into_iter().for_each(|task| broker.know_task(task));
        broker
    }

    /// Control state as applied so far.
    #[must_use]
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// Whether it has read the control stream to where it ended when it was opened.
    #[must_use]
    pub fn is_control_read(&self) -> bool {
        self.control_read
    }

    /// Whether it has read the control stream and has written what its configuration adds to it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.control_read
            && self.policy.is_some()
            && self.control_queue.is_empty()
            && self.control_in_flight.is_none()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.unacknowledged.is_empty()
            && self.control_in_flight.is_none()
            && self.awaiting_keys.is_empty()
    }

    fn know_task(&mut self, task: TaskEntry) {
        self.by_idempotency.insert(task.idempotency, task.task.clone());
        self.tasks.insert(task.task.clone(), task);
    }

    /// Takes what happened and returns what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        match event {
            Event::Arrived(call, arrival) => self.arrived(call, &arrival, now),
            Event::Control { sequence, payload } => {
                self.control_event(sequence, &payload);
                self.check_heads();
            }
            Event::Approval { sequence, subject, payload } => {
                self.approval_event(sequence, &subject, &payload, now);
            }
            Event::ApprovalsRead => self.approvals_read = true,
            Event::ControlRead => {
                self.control_was_read(now);
                self.check_heads();
            }
            Event::Head { sequence, payload } => self.head(sequence, &payload),
            Event::HeadsRead => self.heads_were_read(),
            Event::RecordRead(ticket, found) => self.record_read(ticket, found.as_deref(), now),
            Event::Ticked { payload } => self.ticked(&payload, now),
            Event::KeysFetched(issuer, keys) => self.keys_fetched(issuer, keys, now),
            Event::AuditStream(part, facts) => self.part_seen(part, facts),
            Event::PartMade(part, made) => self.part_made(&part, made, now),
            Event::SharedMoved(to, moved) => self.shared_moved(to, moved, now),
            Event::JournalRoom(room) => self.journal_room = room,
            Event::Journalled(ticket) => self.journalled(ticket),
            Event::JournalFailed(ticket, why) => self.journal_failed(ticket, &why),
            Event::Published(ticket, result) => self.published(ticket, result, now),
            Event::Indexed(ticket, result) => self.indexed(ticket, result, now),
            Event::Tick => self.tick(now),
        }
        self.effects.drain(..).collect()
    }

    fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    fn alarm(&mut self, text: impl Into<String>) {
        self.push(Effect::Alarm(text.into()));
    }

    fn fresh_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn arrived(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        match Subject::parse(&arrival.subject) {
            Ok((tenant, subject)) if tenant == self.setup.tenant => match subject {
                Subject::Admin => self.admin(call, arrival, now),
                Subject::Enroll if !self.admit(arrival, now) => {
                    let reason = ToldReason::from(&Reason::from(ReasonCode::RequestQuota));
                    self.push(Effect::Reply(call, encode(&EnrollReply::Refused { reason })));
                }
                Subject::Enroll => self.enroll(call, arrival, now),
                Subject::Fresh => self.fresh_question(call, arrival, now),
                Subject::Witness(node) => self.witness(call, arrival, &node, now),
                Subject::Issue { .. } if !self.admit(arrival, now) => self.over_quota(call, arrival, now),
                Subject::Issue { agent } => self.issue(call, arrival, &agent, now),
                _ => self.alarm(format!("a request on `{}` is not for a broker", arrival.subject)),
            },
            _ => self.alarm("a request on a subject of no known form"),
        }
    }

    /// Takes a token of the sender's quota. Whoever has none left is answered without a record of its own: one a
    /// second says how many there were, so that nobody fills the audit stream with refusals.
    fn admit(&mut self, arrival: &Arrival, now: Now) -> bool {
        let connection = control::connection_of(arrival).unwrap_or_default();
        let quota = quota_of(&self.control, self.policy.as_deref(), &connection);
        self.admission.admit(&connection, quota, now.monotonic) || writ_common::red::off("B09")
    }

    fn record_refused(&mut self, now: Now) {
        for (connection, count) in self.admission.take_refused(now.monotonic) {
            let caller = self.control.agent_of_connection(&connection).map(|(agent, _)| agent.clone());
            let who = Who { caller, connection: Some(connection), ..Who::default() };
            let verdict = Verdict::deny(ReasonCode::RequestQuota, None);
            let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
            let mut recorded =
                Verdicted::new(RecordedDecision::Deny, &verdict, who, control::what_of("issue"), basis);
            recorded.count = count;
            self.record(RecordBody::Verdict(Box::new(recorded)), None, now);
        }
    }

    fn tick(&mut self, now: Now) {
        if !self.is_closing {
            self.record_refused(now);
        }
        self.publish_own_heads(now);
        self.nonces.retain(|_, until| *until > now.wall);
        self.approvals.prune(now.wall);
        self.rights.prune(now.wall);
        self.fetch_keys(now);
        self.fresh_tick(now);
        self.finish_revocations(now);
        self.tend_parts(now);
        self.next_control_write(now);
    }

    fn control_event(&mut self, sequence: u64, payload: &[u8]) {
        match self.control.apply(sequence, payload) {
            Ok(document) => self.applied(&document.event),
            // Our own writes are applied when they are acknowledged, and come round again.
            Err(ControlFault::Rollback { .. }) => {}
            Err(fault) if claims_policy(payload) => {
                let code = ReasonCode::PolicyRollback;
                self.alarm(format!("control stream: {code}: a policy that does not count: {fault}"));
            }
            Err(fault) => self.alarm(format!("control stream: {fault}")),
        }
    }

    /// Journals and publishes a record, and answers once it is written.
    fn record(&mut self, body: RecordBody, reply: Option<(CallRef, Vec<u8>)>, now: Now) {
        let part = self.control.parts().current().clone();
        self.record_in(part, body, reply, now);
    }

    fn record_in(&mut self, part: PartId, body: RecordBody, reply: Option<(CallRef, Vec<u8>)>, now: Now) {
        let prepared = Box::new(self.recorder.prepare(part, body, now.wall));
        let ticket = self.journal(&prepared);
        self.pending.insert(ticket, Pending::RecordWritten(prepared, reply));
    }

    fn journal(&mut self, prepared: &Prepared) -> Ticket {
        let ticket = self.fresh_ticket();
        self.logs.prepared(prepared);
        self.push(Effect::Journal(Some(ticket), Self::entry_of(prepared)));
        ticket
    }

    fn entry_of(prepared: &Prepared) -> Entry {
        Entry::Prepared {
            seq: prepared.id.seq,
            kind: prepared.kind,
            subject: prepared.subject.clone(),
            message_id: prepared.message_id.clone(),
            ends: None,
            record: prepared.bytes.clone(),
        }
    }

    fn store_of(prepared: &Prepared) -> Store {
        Store {
            subject: prepared.subject.clone(),
            payload: prepared.bytes.clone(),
            message_id: Some(prepared.message_id.clone()),
            fence: Fence::None,
            ttl_secs: None,
        }
    }

    /// Publishes a record nobody waits for, and keeps at it.
    fn publish_record(&mut self, prepared: Box<Prepared>) {
        self.publish_record_after(Millis(0), prepared);
    }

    fn publish_record_after(&mut self, delay: Millis, prepared: Box<Prepared>) {
        let (ticket, store) = (self.fresh_ticket(), Self::store_of(&prepared));
        self.push(Effect::Publish { ticket, store: store.clone(), delay });
        self.unacknowledged.insert(ticket, (prepared, store));
    }

    /// Completes what an earlier run prepared and the stream does not have.
    ///
    /// An allowance nobody was told of is voided, under its own id; everything else is published as it was.
    /// The run's journal is forgotten once the stream has all of it.
    pub fn recover(
        &mut self,
        boot: BootId,
        unsettled: &Unsettled,
        records: &[Vec<u8>],
        now: Now,
    ) -> Vec<Effect> {
        self.take_up_log(&boot, unsettled);
        let before = self.unacknowledged.len();
        let readable = records.iter().filter(|record| self.republish(record, now)).count();
        match self.unacknowledged.len() - before {
            // What cannot be read stays where somebody can look at it.
            _ if readable < records.len() => {}
            0 => self.run_settled(&boot),
            open => drop(self.recovering.insert(boot, open)),
        }
        self.effects.drain(..).collect()
    }

    fn republish(&mut self, bytes: &[u8], now: Now) -> bool {
        match self.recorder.reopen(bytes) {
            Ok((prepared, record)) => {
                let allowed = match record.body {
                    RecordBody::Verdict(verdicted) if verdicted.decision == RecordedDecision::Allow => {
                        Some((verdicted.who, verdicted.what))
                    }
                    _ => None,
                };
                let completed = match allowed {
                    Some((who, what)) => {
                        let reason = Reason::new(ReasonCode::AuditUnavailable)
                            .noted("the broker ended before it was acknowledged");
                        let cause = RecordedReason::from(&reason);
                        self.recorder.void(&prepared, cause, who, what, now.wall)
                    }
                    None => prepared,
                };
                self.publish_record(Box::new(completed));
                true
            }
            Err(error) => {
                self.alarm(format!("a record of an earlier run is not readable: {error}"));
                false
            }
        }
    }

    fn settled(&mut self, boot: &BootId) {
        let Some(open) = self.recovering.get_mut(boot) else { return };
        *open -= 1;
        if *open == 0 {
            self.recovering.remove(boot);
            self.run_settled(boot);
        }
    }

    fn journalled(&mut self, ticket: Ticket) {
        match self.pending.remove(&ticket) {
            Some(Pending::IssueWritten(issuing)) => self.issue_written(issuing),
            Some(Pending::Right(way)) => self.right_written(way),
            Some(Pending::RecordWritten(prepared, reply)) => {
                self.publish_record(prepared);
                if let Some((call, payload)) = reply {
                    self.push(Effect::Reply(call, payload));
                }
            }
            Some(other) => drop(self.pending.insert(ticket, other)),
            None => {}
        }
    }

    fn journal_failed(&mut self, ticket: Ticket, why: &str) {
        self.alarm(format!("the journal cannot be written: {why}"));
        match self.pending.remove(&ticket) {
            Some(Pending::IssueWritten(issuing)) => self.issue_failed(&issuing, ReasonCode::AuditFull),
            Some(Pending::Right(way)) => self.right_unwritten(&way),
            // A refusal is still a refusal; the record is published all the same.
            Some(Pending::RecordWritten(prepared, reply)) => {
                self.publish_record(prepared);
                if let Some((call, payload)) = reply {
                    self.push(Effect::Reply(call, payload));
                }
            }
            Some(other) => drop(self.pending.insert(ticket, other)),
            None => {}
        }
    }

    fn published(&mut self, ticket: Ticket, result: Result<Stored, StoreError>, now: Now) {
        if self.control_in_flight.as_ref().is_some_and(|(in_flight, _)| *in_flight == ticket) {
            return self.control_written(result, now);
        }
        match self.pending.remove(&ticket) {
            Some(Pending::LabelPublished(issuing)) => return self.label_published(issuing, &result, now),
            Some(Pending::IssuePublished(issuing)) => return self.issue_published(issuing, result, now),
            Some(Pending::Right(way)) => return self.right_published(way, result, now),
            Some(Pending::TickPublished) => return self.tick_published(&result),
            Some(Pending::Head(head)) => return self.head_published(*head, &result),
            Some(other) => drop(self.pending.insert(ticket, other)),
            None => {}
        }
        let Some((prepared, store)) = self.unacknowledged.remove(&ticket) else { return };
        match result {
            // It bears the id of what it voids: that may have been stored after all.
            Ok(stored) if stored.duplicate && prepared.kind == RecordKind::Void => {
                self.read_back(prepared, stored.sequence);
            }
            Ok(stored) => self.acknowledged(&prepared, &store.subject, stored.sequence),
            Err(_) => {
                let (ticket, mut store) = (self.fresh_ticket(), store);
                let elsewhere = prepared.elsewhere(self.control.parts());
                // A void under the id of what it voids stays with it.
                let is_free = store.message_id.as_ref() == Some(&prepared.message_id)
                    && prepared.kind != RecordKind::Void;
                if let Some((subject, id)) = elsewhere.filter(|_| is_free) {
                    (store.subject, store.message_id) = (subject, Some(id));
                }
                self.push(Effect::Publish { ticket, store: store.clone(), delay: REPUBLISH_AFTER });
                self.unacknowledged.insert(ticket, (prepared, store));
            }
        }
    }

    fn acknowledged(&mut self, prepared: &Prepared, subject: &str, stream: u64) {
        self.logs.displaced.remove(&(prepared.id.boot.clone(), prepared.id.seq));
        if prepared.id.boot == self.setup.boot {
            self.committed(prepared, subject, stream);
        } else {
            self.stands(prepared);
            // In that run's own journal, so that the run is whole there.
            let (seq, part) = (prepared.id.seq, prepared.part_elsewhere(subject));
            let entries = vec![Self::entry_of(prepared), Entry::Committed { seq, stream, part }];
            self.push(Effect::Resolve(prepared.id.boot.clone(), entries));
            self.settled(&prepared.id.boot);
        }
    }

    /// The stream has the record of this run that was prepared last at a position.
    fn committed(&mut self, prepared: &Prepared, subject: &str, stream: u64) {
        let seq = prepared.id.seq;
        self.logs.committed(&self.setup.boot, seq);
        self.push(Effect::Journal(
            None,
            Entry::Committed { seq, stream, part: prepared.part_elsewhere(subject) },
        ));
        self.push(Effect::recorded(prepared));
    }

    fn indexed(&mut self, ticket: Ticket, result: Result<(), String>, now: Now) {
        let Some(Pending::IssueIndexed(issuing)) = self.pending.remove(&ticket) else { return };
        match result {
            Ok(()) => self.issue_indexed(&issuing, now),
            Err(why) => {
                self.alarm(format!("the index cannot be written: {why}"));
                self.issue_failed(&issuing, ReasonCode::ControlUnavailable);
            }
        }
    }

    /// Whether something signed at `at` is recent enough to be answered.
    fn check_age(&self, at: Timestamp, now: Timestamp) -> Result<(), Reason> {
        let too_old = now.since(at).0 > self.setup.request_age_max.0 + self.setup.skew.0;
        if too_old || at.since(now) > self.setup.skew {
            return Err(Reason::new(ReasonCode::RequestStale).told(format_args!("signed at {at}")));
        }
        Ok(())
    }
}

fn told(reasons: &[Reason]) -> Vec<ToldReason> {
    reasons.iter().map(ToldReason::from).collect()
}

fn encode_signed<T>(value: &T, key: &PrivateKey) -> Vec<u8>
where
    T: writ_common::signed::Signable,
    Signed<T>: writ_common::codec::Message,
{
    encode(&Signed::new(value, key))
}
