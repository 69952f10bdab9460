//! The node's event loop: one guard, one loop, everything that can wake it in one list.
//!
//! The loop alone touches guard and journal. Requests, acknowledgements, answers and ticks arrive as events; what
//! the guard wants done beyond the journal runs in tasks of its own and reports back as an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use writ_bus::{
    Bus, BusError, ConnectionState, Endpoint, Incoming, News, PutBackError, Service, SystemClock,
    SystemEntropy, follow_approvals,
};
use writ_common::{
    decide::Gate,
    epoch::Epoch,
    fresh::FreshBounds,
    ids::{BootId, FlowDomain, NodeId, PartId, Resource, TaskId, TenantId},
    json::Value,
    keys::{PrivateKey, PublicKey},
    mcp::UpstreamTool,
    reason::{Reason, ReasonCode},
    record::{Origin, OutcomeStatus},
    subjects::{Subject, audit_part, control_stream, filter, part_stream},
};
use writ_journal::{Journal, JournalDir, JournalError, JournalLimits, Room, Settles, Sync};
use writ_telemetry::{HttpError, HttpHandle, RecordLogs, Spans, serve_http};

use crate::{
    guard::{Arrival, CallRef, Effect, Event, FoundSources, Guard, GuardConfig, Output, ToolFailure},
    inspect::Panel,
    meter::{Around, Meter},
    pin_file::{self, PinError},
    tools::Tool,
};

/// How long an acknowledgement of the stream is waited for.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a record that could not be read is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long the broker may take to cosign a checkpoint.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end of a run waits for its last checkpoint to be cosigned; if not then, the next run sees to it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the guard is told that time has passed.
const TICK: Duration = Duration::from_millis(100);
/// How often the streams are compared with what was known of them.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the journal is put in order.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long what is under way may take once an end is asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Most events taken into one round.
const ROUND_EVENTS_MAX: usize = 256;
/// Most events waiting for the loop.
const QUEUE_EVENTS_MAX: usize = 16_384;

/// Everything a node needs to run.
pub struct NodeSetup {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name.
    pub node: NodeId,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The key that signs records and receipts.
    pub key: PrivateKey,
    /// The connection.
    pub bus: Bus,
    /// The journal's folder.
    pub journal: PathBuf,
    /// When a journal write counts as written.
    pub sync: Sync,
    /// Bounds of the journal.
    pub journal_limits: JournalLimits,
    /// Bounds on staleness and clocks.
    pub fresh: FreshBounds,
    /// What it serves.
    pub tools: BTreeMap<Resource, Arc<dyn Tool>>,
    /// Who looks at texts on the way.
    pub panel: Panel,
    /// Where it answers probes and shows its numbers, if anywhere.
    pub http: Option<SocketAddr>,
}

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The listener for probes.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The pins of the streams.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// What the stream lost cannot be put back.
    #[error("{0}; start again to go on from there, see deploy/README.md, section recovery")]
    Restore(#[from] PutBackError<JournalError>),
}

/// A running node.
pub struct NodeHandle {
    stop: watch::Sender<bool>,
    ready: watch::Receiver<bool>,
    done: tokio::task::JoinHandle<()>,
    boot: BootId,
    http: Option<HttpHandle>,
}

impl NodeHandle {
    /// This run.
    #[must_use]
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Where it answers probes and shows its numbers, if anywhere.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpHandle::address)
    }

    /// Waits until the node can decide: it has a policy and has heard from the broker.
    pub async fn ready(&mut self) {
        // The loop ends before it was ready only when it is stopped.
        drop(self.ready.wait_for(|ready| *ready).await);
    }

    /// Takes no new calls, finishes those under way, and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        drop(self.done.await);
    }
}

/// Starts a node and returns once it listens; it decides once [`NodeHandle::ready`].
///
/// # Errors
/// [`NodeError`]: the journal belongs to another process or is corrupt, the bus refuses.
pub async fn start(setup: NodeSetup) -> Result<NodeHandle, NodeError> {
    let clock = SystemClock::new();
    let mut entropy = SystemEntropy;
    let boot = BootId::generate(clock.now().wall, writ_common::entropy::draw(&mut entropy));
    let mut dir = JournalDir::open(&setup.journal, setup.journal_limits)?;
    let pins = pin_file::read(&setup.journal)?;
    let mut recovered = Vec::new();
    for run in dir.runs() {
        let (unsettled, lost) = dir.unsettled(&run)?;
        if let Some(lost) = lost {
            tracing::error!("{lost}");
        }
        recovered.push(Event::Recovered { boot: run, unsettled });
    }
    // Before anything open is published, so that each run comes back in its order.
    if dir.is_restore_asked() {
        put_back(&setup, &dir).await?;
        dir.restored()?;
    }
    let journal = dir.create(&boot, setup.sync, Settles::OnOutcome)?;

    let mut config =
        GuardConfig::new(setup.tenant.clone(), setup.node.clone(), boot.clone(), setup.root, setup.key);
    config.fresh = setup.fresh;
    config.pins = pins;
    // Who answers before it has read the control stream records what it refuses, and not in a part of long ago.
    if setup.bus.stream_facts(&control_stream(&setup.tenant)).await?.is_some() {
        config.parts = setup.bus.control_state(&setup.tenant, setup.root).await?.parts().clone();
    }
    config.inspectors = setup.panel.inspectors();
    let gates = setup.tools.iter().map(|(resource, tool)| {
        let gate: Arc<dyn Gate + Send + std::marker::Sync> = Arc::new(ToolGate(Arc::clone(tool)));
        (resource.clone(), gate)
    });
    let guard = Guard::new(config, gates.collect(), Box::new(entropy));

    let (events, queue) = mpsc::channel::<Wake>(QUEUE_EVENTS_MAX);
    let service = Service::start(
        &setup.bus,
        "writ-node",
        "Verifies, decides and records calls on tools and agents",
        setup.node.as_str(),
    )
    .await?;
    let mut endpoints = Vec::new();
    for resource in setup.tools.keys() {
        let name = format!("call-{}", resource.as_str().replace('.', "-"));
        let subject = filter::calls_on(&setup.tenant, resource);
        endpoints.push(service.endpoint(&name, &subject, "writ-node").await?);
    }
    let agents = filter::agent_calls(&setup.tenant);
    endpoints.push(service.endpoint("call-agents", &agents, "writ-node").await?);
    let own = filter::calls_on(&setup.tenant, &Resource::node(&setup.node));
    endpoints.push(service.endpoint("kept-results", &own, setup.node.as_str()).await?);

    let (stop, stopping) = watch::channel(false);
    let (ready_sender, ready) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    for endpoint in endpoints {
        tasks.spawn(receive(endpoint, events.clone(), stopping.clone()));
    }
    let (parts, parts_known) = watch::channel(guard.parts());
    let (live_parts, live_parts_known) = watch::channel(Vec::new());
    let (bus, tenant) = (setup.bus.clone(), setup.tenant.clone());
    tasks.spawn(follow_control(bus, tenant, parts_known, events.clone()));
    let news = |news| {
        Wake::Event(match news {
            News::Message(message) => Event::Approval {
                sequence: message.sequence,
                subject: message.subject,
                payload: message.payload,
            },
            News::Read => Event::ApprovalsRead,
        })
    };
    let (bus, tenant) = (setup.bus.clone(), setup.tenant.clone());
    tasks.spawn(follow_approvals(bus, tenant, live_parts_known, events.clone(), news));
    let (http, snapshots) = match setup.http {
        Some(address) => serve_http(address).await.map(|(http, snapshots)| (Some(http), Some(snapshots)))?,
        None => (None, None),
    };
    let running: Vec<Arc<dyn Tool>> = setup.tools.values().cloned().collect();
    let driver = Driver {
        meter: Meter::new(snapshots, clock.now().wall),
        connection: setup.bus.state(),
        bus: setup.bus,
        tenant: setup.tenant,
        node: setup.node,
        tools: setup.tools,
        panel: setup.panel,
        spans: Spans::new(),
        record_logs: RecordLogs::installed(),
        events: events.clone(),
        waiting: BTreeMap::new(),
        next_call: 0,
        folder: setup.journal,
        journal,
        room: Room::Enough,
        next_refresh: Instant::now(),
        parts,
        live_parts,
        told_parts: None,
        clock,
    };
    let done = tokio::spawn(async move {
        driver.run(guard, queue, recovered, stopping, ready_sender).await;
        tasks.shutdown().await;
        join_all(running.iter().map(|tool| tool.close())).await;
        drop(service);
    });
    Ok(NodeHandle { stop, ready, done, boot, http })
}

/// Puts back into the audit stream what it lost of this node's records.
async fn put_back(setup: &NodeSetup, dir: &JournalDir) -> Result<(), NodeError> {
    let origin = Origin::Node(setup.node.clone());
    let control = loop {
        if setup.bus.stream_facts(&control_stream(&setup.tenant)).await?.is_some() {
            let control = setup.bus.control_state(&setup.tenant, setup.root).await?;
            let current = part_stream(&setup.tenant, control.parts().current());
            if setup.bus.stream_facts(&current).await?.is_some() {
                break control;
            }
        }
        tracing::info!("waiting for the broker to make the audit stream");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let say = |far| tracing::info!("completing the audit stream: {far}");
    let done = setup.bus.put_back(&setup.tenant, control.parts(), &origin, dir.kept(), say).await?;
    tracing::warn!("the audit stream is complete: {done}");
    Ok(())
}

/// What wakes the loop.
enum Wake {
    Arrived(Incoming),
    Event(Event),
    /// A relayed call came back; its bytes are judged by the guard.
    Answered(CallRef, Result<bytes::Bytes, BusError>),
}

struct Driver {
    meter: Meter,
    connection: watch::Receiver<ConnectionState>,
    bus: Bus,
    tenant: TenantId,
    node: NodeId,
    tools: BTreeMap<Resource, Arc<dyn Tool>>,
    panel: Panel,
    spans: Spans,
    record_logs: RecordLogs,
    events: mpsc::Sender<Wake>,
    waiting: BTreeMap<CallRef, Incoming>,
    next_call: u64,
    folder: PathBuf,
    journal: Journal,
    /// The room the guard was told of.
    room: Room,
    /// When the journal is put in order next.
    next_refresh: Instant,
    /// The parts of the audit stream that are looked at.
    parts: watch::Sender<BTreeSet<PartId>>,
    /// Those that have a stream, once that is known.
    live_parts: watch::Sender<Vec<PartId>>,
    /// At which control state they were told, and whether the node was ready.
    told_parts: Option<(Epoch, bool)>,
    clock: SystemClock,
}

impl Driver {
    async fn run(
        mut self,
        mut guard: Guard,
        mut queue: mpsc::Receiver<Wake>,
        recovered: Vec<Event>,
        mut stopping: watch::Receiver<bool>,
        ready: watch::Sender<bool>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        self.round(&mut guard, recovered.into_iter().map(Wake::Event).collect());
        let mut batch = Vec::new();
        let (mut asked_to_stop, mut closing) = (None, None);
        loop {
            tokio::select! {
                taken = queue.recv_many(&mut batch, ROUND_EVENTS_MAX) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = ticks.tick() => batch.push(Wake::Event(Event::Tick)),
                _ = stopping.changed() => {}
            }
            self.refresh_journal(&mut batch);
            self.round(&mut guard, std::mem::take(&mut batch));
            ready.send_if_modified(|ready| {
                let is_ready = guard.is_ready(self.clock.now());
                std::mem::replace(ready, is_ready) != is_ready
            });
            self.tell_parts(&guard, *ready.borrow());
            let connection = *self.connection.borrow();
            let around = Around {
                bus: connection,
                tools: &self.tools,
                panel: &self.panel,
                journal: &self.journal,
                lost: self.record_logs.losses(),
            };
            self.meter.publish(&guard, &around, self.clock.now());
            let drained = guard.calls_in_flight() == 0 && guard.unacknowledged() == 0;
            // What a stream that cannot be reached did not take is in the journal, for the next run.
            let has_waited = *stopping.borrow()
                && *asked_to_stop.get_or_insert_with(Instant::now) + STOP_TIMEOUT < Instant::now();
            if has_waited {
                return;
            }
            if *stopping.borrow() && drained && queue.is_empty() {
                // Nothing more will be recorded: the last checkpoint says so.
                let closing_since = *closing.get_or_insert_with(Instant::now);
                for effect in guard.close_log(self.clock.now()) {
                    self.perform(effect);
                }
                if guard.is_log_done() || closing_since + CLOSE_TIMEOUT < Instant::now() {
                    return;
                }
            }
        }
    }

    /// Says which parts there are to those who read them.
    fn tell_parts(&mut self, guard: &Guard, is_ready: bool) {
        // They change with control state, and this is asked after every round.
        let now = (guard.control().epoch(), is_ready);
        if self.told_parts.replace(now) == Some(now) {
            return;
        }
        self.parts.send_if_modified(|known| {
            let now = guard.parts();
            let has_changed = *known != now;
            *known = now;
            has_changed
        });
        // Before control state is as new as the broker's, a part may seem to be there that was put away long ago.
        let is_known = is_ready || !self.live_parts.borrow().is_empty();
        self.live_parts.send_if_modified(|known| {
            let live = guard.control().parts().live();
            let has_changed = is_known && !live.clone().eq(known.iter());
            if has_changed {
                *known = live.cloned().collect();
            }
            has_changed
        });
    }

    /// Handles events, and the journal writes they lead to, until nothing more follows at once.
    fn round(&mut self, guard: &mut Guard, wakes: Vec<Wake>) {
        let mut events: Vec<Event> = Vec::new();
        for wake in wakes {
            match wake {
                Wake::Event(event) => events.push(event),
                Wake::Arrived(incoming) => events.push(self.admit(incoming)),
                Wake::Answered(call, answer) => {
                    events.push(Event::Finished(call, answered(guard, call, answer).map(Output::from)));
                }
            }
        }
        while !events.is_empty() {
            let mut entries = Vec::new();
            let mut tickets = Vec::new();
            let mut others = Vec::new();
            for event in events.drain(..) {
                for effect in self.handle(guard, event) {
                    match effect {
                        Effect::Journal(ticket, entry) => {
                            entries.push(entry);
                            tickets.extend(ticket);
                        }
                        other => others.push(other),
                    }
                }
            }
            // One write for all, before anything that relies on it is done.
            if !entries.is_empty() {
                events.extend(match self.journal.append(&entries) {
                    Ok(()) => tickets.into_iter().map(Event::Journalled).collect::<Vec<_>>(),
                    Err(error) => {
                        let why = error.to_string();
                        tracing::error!("{why}");
                        tickets.into_iter().map(|ticket| Event::JournalFailed(ticket, why.clone())).collect()
                    }
                });
                events.extend(self.room_changed());
            }
            for effect in others {
                // Much may have been decided and written since the effect was asked for.
                if let Effect::RunTool(call, _) | Effect::Relay { call, .. } = &effect
                    && let Err(failure) = guard.last_look(*call, self.clock.now())
                {
                    events.push(Event::Finished(*call, Err(failure)));
                    continue;
                }
                self.perform(effect);
            }
        }
    }

    /// Removes what is too old, and tells the guard what room there is.
    fn refresh_journal(&mut self, batch: &mut Vec<Wake>) {
        if Instant::now() >= self.next_refresh {
            self.next_refresh = Instant::now() + REFRESH_EVERY;
            if let Err(error) = self.journal.refresh(self.clock.now().wall) {
                tracing::warn!("{error}");
            }
        }
        batch.extend(self.room_changed().map(Wake::Event));
    }

    fn room_changed(&mut self) -> Option<Event> {
        let room = self.journal.room();
        (std::mem::replace(&mut self.room, room) != room).then_some(Event::JournalRoom(room))
    }

    /// Hands an event to the guard, and counts what comes of it.
    fn handle(&mut self, guard: &mut Guard, event: Event) -> Vec<Effect> {
        let revocation = match &event {
            Event::Control { payload, .. } => Some((payload.clone(), guard.control().epoch())),
            _ => None,
        };
        self.meter.saw(&event);
        let begun = Instant::now();
        let effects = guard.handle(event, self.clock.now());
        self.meter.handled(&effects, begun.elapsed());
        if let Some((payload, before)) = revocation
            && guard.control().epoch() > before
        {
            self.meter.control_event(&payload, self.clock.now());
        }
        effects
    }

    fn admit(&mut self, incoming: Incoming) -> Event {
        self.next_call += 1;
        let call = CallRef(self.next_call);
        let arrival = Arrival {
            subject: incoming.subject().to_owned(),
            attested: incoming.attested(),
            payload: incoming.payload().clone(),
            trace: incoming.trace(),
        };
        self.waiting.insert(call, incoming);
        Event::Arrived(call, arrival)
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Alarm(text) => tracing::warn!("{text}"),
            Effect::Span(span) => self.spans.emit(*span),
            Effect::Recorded(record, digest) => self.record_logs.emit(&record, &digest),
            Effect::Journal(..) => {}
            Effect::Forget(boot) => {
                if let Err(error) = self.journal.settle(&boot) {
                    tracing::warn!("{error}");
                }
            }
            Effect::Resolve(boot, entries) => {
                if let Err(error) = self.journal.resolve(&boot, &entries) {
                    tracing::warn!("{error}");
                }
            }
            Effect::Reply(call, payload) => {
                if let Some(incoming) = self.waiting.remove(&call) {
                    tokio::spawn(async move {
                        if let Err(error) = incoming.respond(payload, None).await {
                            tracing::warn!("{error}");
                        }
                    });
                }
            }
            Effect::AskFresh(payload) => self.ask_fresh(payload),
            Effect::ReadRecord { ticket, part, sequence } => {
                let bus = self.bus.clone();
                let stream = part_stream(&self.tenant, &part);
                self.report(async move {
                    let found = bus.message_at(&stream, sequence).await.ok().flatten();
                    if found.is_none() {
                        tokio::time::sleep(READ_AGAIN_AFTER).await;
                    }
                    Wake::Event(Event::RecordRead(ticket, found.map(|message| message.payload)))
                });
            }
            Effect::Witness(boot, payload) => {
                let bus = self.bus.clone();
                let subject = Subject::Witness(self.node.clone()).of(&self.tenant);
                self.report(async move {
                    let answer = bus.request(subject, payload, None, WITNESS_TIMEOUT).await;
                    Wake::Event(Event::Witnessed(boot, answer.ok().map(|reply| reply.payload)))
                });
            }
            Effect::Pin(pins) => {
                if let Err(error) = pin_file::write(&self.folder, &pins) {
                    tracing::warn!("{error}");
                }
            }
            Effect::Publish { ticket, store, delay } => {
                let bus = self.bus.clone();
                self.report(async move {
                    if delay.0 > 0 {
                        tokio::time::sleep(delay.to_duration()).await;
                    }
                    Wake::Event(Event::Published(ticket, bus.store(&store, ACK_TIMEOUT).await))
                });
            }
            Effect::Inspect(call, inspect) => {
                let said = self.panel.inspect(self.bus.clone(), self.tenant.clone(), *inspect);
                self.report(async move { Wake::Event(Event::Inspected(call, Box::new(said.await))) });
            }
            Effect::ReadLabel(domain) => self.read_label(domain),
            Effect::ReadSources(domain, task) => self.read_sources(domain, task),
            Effect::ReadBudget(key) => {
                let bus = self.bus.clone();
                let stream = part_stream(&self.tenant, &key.part);
                let subject = Subject::Budget {
                    part: key.part.clone(),
                    task: key.task.clone(),
                    budget: key.budget.clone(),
                };
                let subject = subject.of(&self.tenant);
                self.report(async move {
                    let found = bus.last_on(&stream, &subject).await;
                    let found = found.map(|found| found.map(|message| (message.sequence, message.payload)));
                    Wake::Event(Event::BudgetRead(key, found.map_err(|error| error.to_string())))
                });
            }
            Effect::ReadFirst(call, part, sequence) => {
                let bus = self.bus.clone();
                let stream = part_stream(&self.tenant, &part);
                self.report(async move {
                    let found = bus.message_at(&stream, sequence).await;
                    let found = found.map(|found| found.map(|message| message.payload));
                    Wake::Event(Event::FirstRead(call, found.map_err(|error| error.to_string())))
                });
            }
            Effect::RunTool(call, permit) => match self.tools.get(permit.resource()) {
                Some(tool) => {
                    let tool = Arc::clone(tool);
                    self.report(async move {
                        let result = tool.call(permit).await.map(Output::from);
                        Wake::Event(Event::Finished(call, result))
                    });
                }
                None => {
                    let failure = ToolFailure {
                        reason: Reason::new(ReasonCode::ToolUnknown).told("not served by this node"),
                        status: OutcomeStatus::NotRun,
                    };
                    self.report(async move { Wake::Event(Event::Finished(call, Err(failure))) });
                }
            },
            Effect::Relay { call, subject, payload, trace, timeout } => {
                let bus = self.bus.clone();
                self.report(async move {
                    let answer = bus.request(subject, payload, trace.as_ref(), timeout.to_duration()).await;
                    Wake::Answered(call, answer.map(|reply| reply.payload))
                });
            }
            Effect::Search { ticket, subject, record } => {
                let bus = self.bus.clone();
                let part = audit_part(&subject).unwrap_or(PartId::first());
                let stream = part_stream(&self.tenant, &part);
                self.report(async move {
                    let found = bus.find(&stream, &subject, &record).await;
                    if found.is_err() {
                        tokio::time::sleep(READ_AGAIN_AFTER).await;
                    }
                    Wake::Event(Event::Searched(ticket, found.map_err(|error| error.to_string())))
                });
            }
        }
    }

    /// Runs something in a task of its own and hands what comes of it to the loop.
    fn report(&self, work: impl Future<Output = Wake> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            // The loop is gone only when the node ends.
            drop(events.send(work.await).await);
        });
    }

    fn ask_fresh(&self, payload: Vec<u8>) {
        let bus = self.bus.clone();
        let subject = Subject::Fresh.of(&self.tenant);
        let events = self.events.clone();
        tokio::spawn(async move {
            // No answer is an answer: the lease runs out.
            if let Ok(reply) = bus.request(subject, payload, None, Duration::from_secs(3)).await {
                drop(events.send(Wake::Event(Event::Fresh(reply.payload))).await);
            }
        });
    }

    fn read_sources(&self, domain: FlowDomain, task: TaskId) {
        let bus = self.bus.clone();
        let stream = part_stream(&self.tenant, &domain.part);
        let results = Subject::Sources(domain.clone()).of(&self.tenant);
        let instruction = Subject::Instruction { part: domain.part.clone(), task: task.clone() };
        let instruction = instruction.of(&self.tenant);
        self.report(async move {
            let read = tokio::try_join!(bus.last_on(&stream, &results), bus.last_on(&stream, &instruction));
            let found = read.map(|(results, instruction)| FoundSources {
                instruction: instruction.map(|message| message.payload),
                results: results.map(|message| (message.sequence, message.payload)),
            });
            Wake::Event(Event::SourcesRead(domain, task, found.map_err(|error| error.to_string())))
        });
    }

    fn read_label(&self, domain: FlowDomain) {
        let bus = self.bus.clone();
        let stream = part_stream(&self.tenant, &domain.part);
        let subject = Subject::Label(domain.clone()).of(&self.tenant);
        self.report(async move {
            let found = bus.last_on(&stream, &subject).await;
            let found = found.map(|found| found.map(|message| (message.sequence, message.payload)));
            Wake::Event(Event::LabelRead(domain, found.map_err(|error| error.to_string())))
        });
    }
}

fn answered(
    guard: &Guard,
    call: CallRef,
    answer: Result<bytes::Bytes, BusError>,
) -> Result<String, ToolFailure> {
    match answer {
        Ok(bytes) => guard.agent_answered(call, &bytes),
        // Nobody was there to take it: it did not run.
        Err(BusError::NoResponders(_) | BusError::Refused(_)) => {
            Err(ToolFailure { reason: ReasonCode::AgentUnreachable.into(), status: OutcomeStatus::NotRun })
        }
        Err(error) => Err(ToolFailure {
            reason: Reason::new(ReasonCode::ToolTimeout).told("the agent did not answer").noted(error),
            status: OutcomeStatus::UnknownOutcome,
        }),
    }
}

async fn receive(mut endpoint: Endpoint, events: mpsc::Sender<Wake>, mut stopping: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            incoming = endpoint.next() => match incoming {
                Some(incoming) => {
                    if events.send(Wake::Arrived(incoming)).await.is_err() {
                        return;
                    }
                }
                None => return,
            },
            _ = stopping.changed() => return,
        }
    }
}

/// Follows the control stream for good: through reconnects, from where it got to. Nothing of it is read before the
/// streams were compared with what was known of them, and they are compared again every so often.
async fn follow_control(
    bus: Bus,
    tenant: TenantId,
    parts: watch::Receiver<BTreeSet<PartId>>,
    events: mpsc::Sender<Wake>,
) {
    let stream = control_stream(&tenant);
    let subject = Subject::Control.of(&tenant);
    let mut next = 1;
    loop {
        if look_at_streams(&bus, &tenant, &parts, &events).await
            && let Ok(mut tail) = bus.tail(&stream, &subject, next).await
        {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            loop {
                let message = tokio::select! {
                    message = tail.next() => message,
                    _ = looks.tick() => {
                        look_at_streams(&bus, &tenant, &parts, &events).await;
                        continue;
                    }
                };
                let Ok(message) = message else { break };
                next = message.sequence + 1;
                let event = Event::Control { sequence: message.sequence, payload: message.payload };
                if events.send(Wake::Event(event)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Tells the guard what the streams are; false if they could not be looked at.
async fn look_at_streams(
    bus: &Bus,
    tenant: &TenantId,
    parts: &watch::Receiver<BTreeSet<PartId>>,
    events: &mpsc::Sender<Wake>,
) -> bool {
    let Ok(Some(control)) = bus.stream_facts(&control_stream(tenant)).await else { return false };
    let known = parts.borrow().clone();
    let mut parts = BTreeMap::new();
    for part in known {
        let Ok(facts) = bus.stream_facts(&part_stream(tenant, &part)).await else { return false };
        parts.insert(part, facts);
    }
    events.send(Wake::Event(Event::Streams { control, parts })).await.is_ok()
}

/// A tool seen as nothing but its gate.
struct ToolGate(Arc<dyn Tool>);

impl Gate for ToolGate {
    fn admit(
        &self,
        action: &writ_common::ids::Action,
        arguments: &Value,
    ) -> Result<Vec<writ_common::datalog::Predicate>, Reason> {
        self.0.admit(action, arguments)
    }

    fn pinned(&self, tool: Option<&UpstreamTool>) -> Result<(), Reason> {
        self.0.pinned(tool)
    }
}
