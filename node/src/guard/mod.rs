//! The guard: every call goes through it, and nothing runs that it did not let through.
//!
//! A state machine without I/O: [`Guard::handle`] takes what happened and the time, and returns what to do. The
//! same guard runs on a node's event loop and under a simulated bus, disk and clock.
//!
//! A call passes, from cheap to dear: quota, bounds, canonical envelope, capability, proof, freshness and
//! revocation, right, contract and arguments, the tool's gate, policy. What passes is journalled, published as an
//! intent fenced on the task label, acknowledged, checked once more against time and revocation, and only then
//! run. Whatever happens on the way is one record.

mod acts;
mod approval;
mod budget;
mod call;
mod chains;
mod event;
mod inspect;
mod intent;
mod kept;
mod labels;
mod log;
mod pins;
mod recovery;
mod release;
mod sources;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

pub use budget::BudgetKey;
pub use event::{Arrival, CallRef, Effect, Event, Output, Ticket, ToolFailure};
pub use inspect::Inspect;
pub use pins::{PartPin, StreamPin, StreamPins};
pub use sources::FoundSources;

use budget::Budgets;
use call::InFlight;
use chains::Chains;
use kept::KeptResults;
use labels::Labels;
use log::Logs;
use sources::KnownSources;
use writ_bus::{Store, StoreError, Stored, StreamFacts};
use writ_common::{
    act::Acts,
    admission::Admission,
    approval::Approvals,
    codec::{Message, decode, encode},
    control::{ControlEvent, ControlFault, ControlState, claims_policy},
    decide::Gate,
    entropy::{Entropy, draw},
    fresh::{FreshAnswer, FreshBounds, FreshQuestion, Freshness},
    ids::{AgentId, BootId, FlowDomain, NodeId, PartId, Resource, TaskId, TenantId, UserId},
    inspect::Inspector,
    keys::{PrivateKey, PublicKey},
    label::DomainLabel,
    part::{PartStage, Parts},
    policy::{PolicyBundle, PolicySet},
    reason::ReasonCode,
    record::{Origin, RecordKind},
    recorder::{Prepared, Recorder},
    signed::{Signable, Signed},
    source::ResultSources,
    subjects::Subject,
    time::{Millis, Now, Timestamp},
    tlog::LogId,
};
use writ_journal::Entry;

/// How a guard is set up.
pub struct GuardConfig {
    /// The tenant it serves.
    pub tenant: TenantId,
    /// The node's name.
    pub node: NodeId,
    /// This run.
    pub boot: BootId,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The key that signs records and receipts.
    pub key: PrivateKey,
    /// Bounds on staleness and clocks.
    pub fresh: FreshBounds,
    /// What earlier runs knew of the streams.
    pub pins: StreamPins,
    /// The parts of the audit stream, as the control stream told them before the start.
    pub parts: Parts,
    /// How old a call may be.
    pub call_age_max: Millis,
    /// Longest wait for an agent's answer.
    pub relay_timeout: Millis,
    /// Who looks at texts on the way.
    pub inspectors: Vec<Inspector>,
    /// Most calls at once.
    pub calls_max: usize,
    /// Most records the stream has not acknowledged; beyond, nothing more is decided.
    pub unacknowledged_max: usize,
}

impl GuardConfig {
    /// Defaults for everything that has one.
    #[must_use]
    pub fn new(tenant: TenantId, node: NodeId, boot: BootId, root: PublicKey, key: PrivateKey) -> Self {
        Self {
            tenant,
            node,
            boot,
            root,
            key,
            fresh: FreshBounds::default(),
            pins: StreamPins::default(),
            parts: Parts::default(),
            call_age_max: Millis::from_secs(30),
            relay_timeout: Millis::from_secs(600),
            inspectors: Vec::new(),
            calls_max: 4_096,
            unacknowledged_max: 8_192,
        }
    }
}

/// How often the guard asks for freshness.
const ASK_EVERY: Millis = Millis(1_000);
/// How long the stream surely remembers a message id: its window of 120 s less some seconds on the way.
const DUPLICATE_WINDOW_SURE: Millis = Millis(100_000);
/// Pause before a record is published again.
const REPUBLISH_AFTER: Millis = Millis(500);

/// The enforcement point.
pub struct Guard {
    config: GuardConfig,
    recorder: Recorder,
    control: ControlState,
    policy: Option<Arc<PolicySet>>,
    /// Asked beside it; nothing is done by its answers.
    shadow: Option<Arc<PolicySet>>,

    /// When a policy last had an agent remember something else than before.
    memory_changed: BTreeMap<AgentId, Timestamp>,
    /// Why a later policy was not taken; the one in force is the last good one.
    policy_fault: Option<ReasonCode>,
    gates: BTreeMap<Resource, Arc<dyn Gate + Send + Sync>>,
    entropy: Box<dyn Entropy>,
    freshness: Freshness,
    admission: Admission,
    chains: Chains,
    labels: Labels,
    sources: KnownSources,
    kept: KeptResults,
    streams: pins::Streams,
    approvals: Approvals,
    /// What people let pass although the task's label is against it.
    acts: Acts,

    /// Requests that are on their way to the stream: of which task and user.
    asking: BTreeMap<CallRef, (TaskId, UserId)>,
    budgets: Budgets,
    /// Whether everything about approvals was read that was in the stream when this run began.
    approvals_read: bool,
    calls: BTreeMap<CallRef, InFlight>,

    pending: BTreeMap<Ticket, Pending>,
    next_ticket: u64,
    /// Records whose publish is under way or has to be tried again.
    unacknowledged: BTreeMap<Ticket, Unacknowledged>,
    recovering: BTreeMap<BootId, usize>,
    logs: Logs,
    /// Whether the run is ending, so that nothing more may be recorded.
    is_closing: bool,
    last_asked: Option<Now>,
    effects: VecDeque<Effect>,
}

/// What a ticket is for.
enum Pending {
    /// The intent of a call is being written.
    IntentWritten(CallRef),
    /// The intent of a call is being published.
    IntentPublished(CallRef),
    /// A denial or void that ends a call is being written; then it is published and the call answered.
    FinalWritten(CallRef, Box<Prepared>),
    /// The outcome of a call is being written.
    OutcomeWritten(CallRef, Box<Prepared>),
    /// The hold of a call is being written.
    HoldWritten(CallRef, Box<approval::Asking>),
    /// A request for approval is being published.
    Asked(CallRef, Box<approval::Asking>),
    /// A claim is being published.
    Claimed(CallRef, Box<approval::Claiming>),
    /// A change of a budget is being published: what is spent with it.
    Charged(BudgetKey, u64),
    /// The use of what a person let pass is being published.
    ActUsed(CallRef, Box<acts::Acting>),
    /// A raised label is being published.
    Raised(FlowDomain, Box<(DomainLabel, Store)>),
    /// What results vouch for is being published.
    Remembered(FlowDomain, Box<ResultSources>),
    /// The use of an approval is being published.
    Used(CallRef, Box<approval::Using>),
    /// What is stored under the id of an earlier run's void is being read, at this sequence of this part.
    ReadBack(Box<Prepared>, PartId, u64),
    /// An intent of unknown fate is being looked for, or its void.
    Search(recovery::Sought, Box<recovery::OldIntent>),
}

/// A record on its way to the stream.
struct Unacknowledged {
    prepared: Box<Prepared>,
    store: Store,
    purpose: Purpose,
}

/// What has to happen once a record is acknowledged.
enum Purpose {
    /// Nothing more.
    Record,
    /// It voids an intent of unknown fate, under that intent's own id.
    VoidUnknown(Box<recovery::OldIntent>),
    /// It settles something an earlier run left open.
    Settle(BootId),
}

impl Guard {
    /// A guard that knows nothing yet: it denies everything until it has heard from the broker.
    #[must_use]
    pub fn new(
        config: GuardConfig,
        gates: BTreeMap<Resource, Arc<dyn Gate + Send + Sync>>,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        let origin = Origin::Node(config.node.clone());
        let recorder = Recorder::new(config.tenant.clone(), origin, config.boot.clone(), config.key.clone());
        let log = LogId::of(&config.tenant, &recorder.next_id());
        Self {
            recorder,
            control: ControlState::new(config.tenant.clone(), config.root).with_parts(config.parts.clone()),
            policy: None,
            shadow: None,

            memory_changed: BTreeMap::new(),
            policy_fault: None,
            gates,
            entropy,
            freshness: Freshness::new(config.fresh),
            admission: Admission::default(),
            chains: Chains::default(),
            labels: Labels::default(),
            sources: KnownSources::default(),
            kept: KeptResults::default(),
            streams: pins::Streams::new(config.pins.clone()),
            approvals: Approvals::default(),
            acts: Acts::default(),
            asking: BTreeMap::new(),
            budgets: Budgets::default(),
            approvals_read: false,
            calls: BTreeMap::new(),

            pending: BTreeMap::new(),
            next_ticket: 0,
            unacknowledged: BTreeMap::new(),
            recovering: BTreeMap::new(),
            logs: Logs::new(log),
            is_closing: false,
            last_asked: None,
            effects: VecDeque::new(),
            config,
        }
    }

    /// Control state as applied so far.
    #[must_use]
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// Whether the guard could decide now: it has a policy and has heard from the broker recently.
    #[must_use]
    pub fn is_ready(&self, now: Now) -> bool {
        self.policy.is_some()
            && self.streams.check().is_ok()
            && self.freshness.check(self.control.epoch(), false, now.monotonic).is_ok()
    }

    /// Calls under way.
    #[must_use]
    pub fn calls_in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Records the stream has not acknowledged yet.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Takes what happened and returns what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.freshness.observe(now);
        match event {
            Event::Arrived(call, arrival) => self.arrived(call, &arrival, now),
            Event::Control { sequence, payload } => self.control_event(sequence, &payload, now),
            Event::Approval { sequence, subject, payload } => {
                self.approval_event(sequence, &subject, &payload, now);
            }
            Event::BudgetRead(key, found) => self.budget_read(&key, found, now),
            Event::ApprovalsRead => self.approvals_read = true,
            Event::Streams { control, parts } => self.streams_seen(&control, &parts, now),
            Event::JournalRoom(room) => self.streams.journal_has(room),
            Event::Recovered { boot, unsettled } => self.recover(&boot, unsettled, now),
            Event::Fresh(payload) => self.fresh(&payload, now),
            Event::Journalled(ticket) => self.journalled(ticket, Ok(()), now),
            Event::Inspected(call, inspection) => self.inspected(call, *inspection, now),
            Event::JournalFailed(ticket, why) => self.journalled(ticket, Err(&why), now),
            Event::LabelRead(domain, found) => self.label_read(&domain, found, now),
            Event::SourcesRead(domain, task, found) => self.sources_read(&domain, &task, found, now),
            Event::Published(ticket, result) => self.published(ticket, result, now),
            Event::Searched(ticket, found) => self.searched(ticket, found, now),
            Event::FirstRead(call, found) => self.first_read(call, found, now),
            Event::Finished(call, result) => self.finished(call, result, now),
            Event::RecordRead(ticket, found) => self.record_read(ticket, found.as_deref(), now),
            Event::Witnessed(boot, answer) => self.witnessed(&boot, answer.as_ref()),
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

    fn ticket(&mut self, pending: Pending) -> Ticket {
        let ticket = self.fresh_ticket();
        self.pending.insert(ticket, pending);
        ticket
    }

    fn fresh_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn tick(&mut self, now: Now) {
        if self.last_asked.is_none_or(|last| now.monotonic.since(last.monotonic) >= ASK_EVERY) {
            self.last_asked = Some(now);
            self.ask_fresh(now);
        }
        if !self.is_closing {
            self.record_refused(now);
        }
        self.retry_waiting(now);
        self.approvals.prune(now.wall);
        self.witness(now);
    }

    /// Why nothing is decided here, for the operator.
    fn fault(&self) -> Option<ReasonCode> {
        let readable = self.streams.check().and_then(|()| self.control.check_readable());
        let fault = readable.err().map(|reason| reason.code());
        fault.or_else(|| self.policy.is_none().then_some(ReasonCode::PolicyUnavailable))
    }

    fn ask_fresh(&mut self, now: Now) {
        let nonce = draw(self.entropy.as_mut());
        self.freshness.asked(nonce, now);
        let question = FreshQuestion {
            tenant: self.config.tenant.clone(),
            node: self.config.node.clone(),
            boot: self.config.boot.clone(),
            nonce,
            applied: self.control.epoch(),
            staleness: self.config.fresh.longest(),
            fault: self.fault(),
            policy: self.policy.as_ref().map(|policy| policy.revision()),
            policy_fault: self.policy_fault,
        };
        let payload = encode(&Signed::new(&question, &self.config.key));
        self.push(Effect::AskFresh(payload));
    }

    fn fresh(&mut self, payload: &[u8], now: Now) {
        let Some(keyset) = self.control.keyset() else { return };
        let answered =
            decode::<Signed<FreshAnswer>>(payload).map_err(|error| error.to_string()).and_then(|answer| {
                self.freshness
                    .answered(&answer, keyset, &self.config.tenant, now)
                    .map_err(|reason| format!("{}: {}", reason.code(), reason.for_operator()))
            });
        match answered {
            Ok(_) => self.retry_waiting(now),
            Err(why) => self.alarm(format!("freshness: {why}")),
        }
    }

    fn streams_seen(
        &mut self,
        control: &StreamFacts,
        parts: &BTreeMap<PartId, Option<StreamFacts>>,
        now: Now,
    ) {
        let is_fresh = self.freshness.check(self.control.epoch(), true, now.monotonic).is_ok();
        let is_current = self.policy.is_some() && is_fresh;
        match self.streams.take(control, parts, self.control.parts(), is_current) {
            Ok(None) => {}
            Ok(Some(pins)) => self.push(Effect::Pin(pins)),
            Err(why) => self.alarm(format!("{why}; nothing more is decided here (state.rollback)")),
        }
    }

    fn control_event(&mut self, sequence: u64, payload: &[u8], now: Now) {
        let document = match self.control.apply(sequence, payload) {
            Ok(document) => document,
            // What was applied is delivered again after a reconnect.
            Err(ControlFault::Rollback { .. }) => return,
            Err(fault) if claims_policy(payload) => {
                self.policy_fault = Some(ReasonCode::PolicyRollback);
                let code = ReasonCode::PolicyRollback;
                return self.alarm(format!("control stream: {code}: a policy that does not count: {fault}"));
            }
            Err(fault) => return self.alarm(format!("control stream: {fault}")),
        };
        match &document.event {
            ControlEvent::Policy(bundle) => self.take_policy(sequence, bundle, document.at),
            ControlEvent::Part { part, stage: PartStage::Archived(_) } => self.streams.put_away(part),
            _ => {}
        }
        if matches!(document.event, ControlEvent::Policy(_) | ControlEvent::ShadowPolicy(_)) {
            self.take_shadow();
        }
        self.retry_waiting(now);
    }

    /// Puts a policy in force between two requests; a broken one leaves the last good one there.
    fn take_policy(&mut self, sequence: u64, bundle: &PolicyBundle, at: Timestamp) {
        match PolicySet::load(bundle) {
            Ok((policy, _)) => {
                let before = self.policy.as_ref().map(|policy| &policy.inventory().agents);
                for (agent, entry) in &policy.inventory().agents {
                    let known = before.and_then(|agents| agents.get(agent));
                    if known.is_some_and(|known| known.memory != entry.memory) {
                        self.memory_changed.insert(agent.clone(), at);
                    }
                }
                self.policy = Some(Arc::new(policy));
                self.policy_fault = None;
            }
            Err(findings) => {
                self.policy_fault = Some(ReasonCode::PolicyInvalid);
                let kept = self.policy.as_ref().map(|policy| policy.revision());
                let kept =
                    kept.map_or("nothing is decided".to_owned(), |kept| format!("{kept} stays in force"));
                self.alarm(format!(
                    "policy {} (control event {sequence}) is broken, {kept} ({}): {findings}",
                    bundle.revision(),
                    ReasonCode::PolicyInvalid
                ));
            }
        }
    }

    /// A shadow that does not load is none: it was never in force, so nothing changes but what is compared.
    fn take_shadow(&mut self) {
        let loaded = self.control.shadow().map(PolicySet::load);
        let loaded = loaded.transpose().map_err(|findings| findings.to_string());
        match loaded {
            Ok(shadow) => self.shadow = shadow.map(|(policy, _)| Arc::new(policy)),
            Err(findings) => {
                self.shadow = None;
                self.alarm(format!("the policy in the shadow is broken and not asked: {findings}"));
            }
        }
    }

    /// Puts a record on its way to the stream and keeps at it until the stream has it.
    fn publish_record(
        &mut self,
        prepared: Box<Prepared>,
        message_id: String,
        purpose: Purpose,
        delay: Millis,
    ) {
        let store = Store {
            subject: prepared.subject.clone(),
            payload: prepared.bytes.clone(),
            message_id: Some(message_id),
            fence: writ_bus::Fence::None,
            ttl_secs: None,
        };
        let ticket = self.fresh_ticket();
        self.streams.sent(&prepared.record.part, store.payload.len());
        self.push(Effect::Publish { ticket, store: store.clone(), delay });
        self.unacknowledged.insert(ticket, Unacknowledged { prepared, store, purpose });
    }

    fn journal(&mut self, ticket: Option<Ticket>, prepared: &Prepared, message_id: &str, ends: Option<u64>) {
        self.logs.prepared(prepared);
        self.push(Effect::Journal(ticket, Self::entry_of(prepared, message_id, ends)));
    }

    fn entry_of(prepared: &Prepared, message_id: &str, ends: Option<u64>) -> Entry {
        Entry::Prepared {
            seq: prepared.id.seq,
            kind: prepared.kind,
            subject: prepared.subject.clone(),
            message_id: message_id.to_owned(),
            ends,
            record: prepared.bytes.clone(),
        }
    }

    fn committed(&mut self, prepared: &Prepared, subject: &str, stream: u64) {
        let seq = prepared.id.seq;
        let part = prepared.part_elsewhere(subject);
        self.streams.acknowledged(part.as_ref().unwrap_or(&prepared.record.part), stream);
        self.logs.committed(&self.config.boot, seq);
        self.push(Effect::Journal(None, Entry::Committed { seq, stream, part }));
        self.push(Effect::recorded(prepared));
    }

    /// The stream has this record of an earlier run.
    fn stands(&mut self, prepared: &Prepared) {
        self.logs.prepared(prepared);
        self.logs.committed(&prepared.id.boot, prepared.id.seq);
        self.push(Effect::recorded(prepared));
    }

    /// A message of this node that is stored if the last one on its subject has this sequence; it counts as sent.
    fn fenced<T: Signable>(&mut self, message: &T, subject: &Subject, sequence: u64) -> Store
    where
        Signed<T>: Message,
    {
        let payload = encode(&Signed::new(message, &self.config.key));
        if let Some(part) = subject.part() {
            self.streams.sent(part, payload.len());
        }
        Store::fenced(subject.of(&self.config.tenant), sequence, payload)
    }

    /// What was to be journalled is, or cannot be.
    fn journalled(&mut self, ticket: Ticket, result: Result<(), &str>, now: Now) {
        if let Err(why) = result {
            self.alarm(format!("the journal cannot be written: {why}"));
        }
        match self.pending.remove(&ticket) {
            Some(Pending::IntentWritten(call)) if result.is_ok() => self.publish_intent(call),
            Some(Pending::HoldWritten(call, asking)) if result.is_ok() => self.hold_written(call, asking),
            Some(Pending::IntentWritten(call) | Pending::HoldWritten(call, _)) => {
                self.asking.remove(&call);
                self.unrecordable(call, now);
            }
            // The stream may still take what the disk does not, and what ran is answered.
            Some(Pending::FinalWritten(call, prepared)) => self.final_written(call, prepared),
            Some(Pending::OutcomeWritten(call, prepared)) => self.outcome_written(call, prepared),
            Some(
                Pending::IntentPublished(_)
                | Pending::Search(..)
                | Pending::ReadBack(..)
                | Pending::Asked(..)
                | Pending::Charged(..)
                | Pending::Claimed(..)
                | Pending::ActUsed(..)
                | Pending::Raised(..)
                | Pending::Remembered(..)
                | Pending::Used(..),
            )
            | None => {}
        }
    }

    fn published(&mut self, ticket: Ticket, result: Result<Stored, StoreError>, now: Now) {
        match self.pending.remove(&ticket) {
            Some(Pending::IntentPublished(call)) => return self.intent_published(call, result, now),
            Some(Pending::Asked(call, asking)) => return self.asked(call, *asking, result, now),
            Some(Pending::Claimed(call, claiming)) => return self.claimed(call, *claiming, result, now),
            Some(Pending::Charged(key, total)) => return self.budget_charged(&key, total, result, now),
            Some(Pending::Used(call, claim)) => return self.used(call, *claim, result, now),
            Some(Pending::ActUsed(call, acting)) => return self.act_used(call, *acting, result, now),
            Some(Pending::Raised(domain, raise)) => return self.raised(&domain, raise, result, now),
            Some(Pending::Remembered(domain, results)) => {
                return self.remembered(&domain, *results, result, now);
            }
            _ => {}
        }
        let Some(unacknowledged) = self.unacknowledged.remove(&ticket) else { return };
        match result {
            Ok(stored) => self.acknowledged(unacknowledged, stored),
            Err(error) => {
                if self.unacknowledged.len() == self.config.unacknowledged_max {
                    self.alarm(format!("the audit stream takes no records: {error}"));
                }
                // Past the stream's duplicate window the id of an intent proves nothing: look first.
                if let Purpose::VoidUnknown(intent) = &unacknowledged.purpose
                    && now.monotonic.since(intent.since.monotonic) > DUPLICATE_WINDOW_SURE
                {
                    let intent = intent.as_ref().clone();
                    return self.search(intent);
                }
                let ticket = self.fresh_ticket();
                let mut unacknowledged = unacknowledged;
                if let Some((subject, id)) = unacknowledged.prepared.elsewhere(self.control.parts()) {
                    // What bears the id of an intent must not stand beside it under another: look first.
                    if let Purpose::VoidUnknown(intent) = &unacknowledged.purpose {
                        let intent = intent.as_ref().clone();
                        return self.search(intent);
                    }
                    unacknowledged.store.subject = subject;
                    unacknowledged.store.message_id = Some(id);
                }
                let store = unacknowledged.store.clone();
                self.push(Effect::Publish { ticket, store, delay: REPUBLISH_AFTER });
                self.unacknowledged.insert(ticket, unacknowledged);
            }
        }
    }

    /// Something was acknowledged on a subject of some part.
    fn acknowledged_at(&mut self, subject: &str, sequence: u64) {
        if let Ok((_, subject)) = Subject::parse(subject)
            && let Some(part) = subject.part()
        {
            self.streams.acknowledged(part, sequence);
        }
    }

    /// The part in which the records of a call stand: that of its flow domain, once it is known.
    fn part_of(&self, call: CallRef) -> PartId {
        let known = self.calls.get(&call).and_then(|flight| flight.known.as_ref());
        let parts = self.control.parts();
        known.map_or_else(|| parts.current().clone(), |known| parts.for_record(&known.domain.part))
    }

    /// Every part that has a stream, or had one.
    #[must_use]
    pub fn parts(&self) -> BTreeSet<PartId> {
        self.control.parts().live().chain(self.streams.known_parts()).cloned().collect()
    }

    fn acknowledged(&mut self, unacknowledged: Unacknowledged, stored: Stored) {
        let Unacknowledged { prepared, store, purpose } = unacknowledged;
        let is_own = prepared.id.boot == self.config.boot;
        match purpose {
            Purpose::Record => self.committed(&prepared, &store.subject, stored.sequence),
            // It bears the id of the intent it voids: that may be what is stored.
            Purpose::Settle(_)
                if stored.duplicate && store.message_id.as_ref() != Some(&prepared.message_id) =>
            {
                let part = prepared.part_elsewhere(&store.subject);
                let part = part.unwrap_or_else(|| prepared.record.part.clone());
                self.read_back(prepared, part, stored.sequence);
            }
            Purpose::Settle(boot) => {
                self.resolved(&prepared, &store.subject, stored.sequence);
                self.settled(&boot);
            }
            Purpose::VoidUnknown(intent) if stored.duplicate => {
                // Which of all that bear this id is there?
                self.search(recovery::OldIntent { contested: true, ..*intent });
            }
            Purpose::VoidUnknown(intent) => {
                if is_own {
                    self.committed(&prepared, &store.subject, stored.sequence);
                } else {
                    self.resolved(&prepared, &store.subject, stored.sequence);
                }
                self.settled(&intent.prepared.id.boot);
            }
        }
    }
}
