//! The broker's event loop: the core, the journal and the index are touched by it alone.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use writ_bus::{
    Bus, BusError, ConnectionState, Endpoint, Incoming, Keeps, News, PutBackError, Service, StreamFacts,
    StreamSpec, SystemClock, SystemEntropy, follow, follow_approvals,
};
use writ_common::{
    entropy::draw,
    ids::{BootId, BrokerId, NodeId, OperatorId, PartId, TenantId},
    keys::{PrivateKey, PublicKey},
    keyset::KeysetDocument,
    part::Parts,
    policy::PolicyBundle,
    signed::Signed,
    subjects::{Subject, audit_part, control_stream, filter, heads_stream, part_stream},
    time::Millis,
};
use writ_journal::{Journal, JournalDir, JournalError, JournalLimits, Room, Settles, Sync, ask_restore};
use writ_telemetry::{HttpError, HttpHandle, RecordLogs, Spans, serve_http};

use crate::{
    catch_up::{open_records, put_back, read_missed},
    core::{Arrival, Broker, BrokerSetup, CallRef, Effect, Event, TaskEntry, Ticket},
    jwt::IdentityProvider,
    meter::{Around, Meter},
    shared::move_shared,
    store::{PartPosition, Position, StoreError, TaskStore},
};

const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what is under way may take once an end is asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(100);
const ROUND_EVENTS_MAX: usize = 256;
const QUEUE_EVENTS_MAX: usize = 16_384;
/// How often the audit stream is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the journal is put in order.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long streams remember message ids: call age 30 s, skew 5 s, staleness 60 s, and room.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Most bytes of the heads stream: some hundred thousand runs.
const HEADS_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long the end of a run waits for its last checkpoint to be stored; if not then, the next run sees to it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a record that could not be read is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Most bytes of the control stream.
const CONTROL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Everything a broker needs to run.
pub struct ServeSetup {
    /// The tenant.
    pub tenant: TenantId,
    /// The broker's name.
    pub broker: BrokerId,
    /// The offline root's public key.
    pub root: PublicKey,
    /// The signed keyset.
    pub keyset: Signed<KeysetDocument>,
    /// The online key.
    pub key: PrivateKey,
    /// The key that signs records.
    pub record_key: PrivateKey,
    /// The policy to be in force.
    pub policy: PolicyBundle,
    /// The nodes to be enrolled.
    pub nodes: BTreeMap<NodeId, (PublicKey, String)>,
    /// The operators.
    pub operators: BTreeMap<OperatorId, PublicKey>,
    /// The approvers.
    pub approvers: BTreeMap<OperatorId, PublicKey>,
    /// Who verifies users.
    pub identity: Box<dyn IdentityProvider>,
    /// The connection.
    pub bus: Bus,
    /// Folder of the index and the journal.
    pub state: PathBuf,
    /// When a journal write counts as written.
    pub sync: Sync,
    /// Bounds of the journal.
    pub journal_limits: JournalLimits,
    /// Most bytes of the audit stream.
    pub stream_bytes_max: u64,
    /// On how many servers streams live.
    pub replicas: usize,
    /// Longest staleness any node may be set to.
    pub staleness_max: Millis,
    /// Where it answers probes and shows its numbers, if anywhere.
    pub http: Option<SocketAddr>,
    /// Whether an operator said to go on from the streams as they are; see [`forget_index`].
    pub is_recovered: bool,
}

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The listener for probes.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What the stream lost cannot be put back.
    #[error("{0}; start again to go on from there, see deploy/README.md, section recovery")]
    Restore(#[from] PutBackError<JournalError>),
    /// A stream is not the one it was.
    #[error("{0}")]
    Rollback(String),
    /// The index.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running broker.
pub struct BrokerHandle {
    stop: watch::Sender<bool>,
    ready: watch::Receiver<bool>,
    done: tokio::task::JoinHandle<()>,
    http: Option<HttpHandle>,
}

impl BrokerHandle {
    /// Where it answers probes and shows its numbers, if anywhere.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(HttpHandle::address)
    }

    /// Waits until the broker has read the control stream and written what its configuration adds.
    pub async fn ready(&mut self) {
        drop(self.ready.wait_for(|ready| *ready).await);
    }

    /// Takes no new requests, finishes those under way, and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        drop(self.done.await);
    }
}

/// Starts a broker and returns once it listens.
///
/// # Errors
/// [`BrokerError`]: another process has its state, the state or a stream went backwards, the bus refuses.
pub async fn start(setup: ServeSetup) -> Result<BrokerHandle, BrokerError> {
    let clock = SystemClock::new();
    let mut entropy = SystemEntropy;
    let boot = BootId::generate(clock.now().wall, draw(&mut entropy));
    let folder = setup.state.join("journal");
    if setup.is_recovered {
        ask_restore(&folder)?;
    }
    let mut dir = JournalDir::open(&folder, setup.journal_limits)?;
    let control_facts = ensure_control(&setup).await?;
    // Of those parts the broker of that time made the streams, and the control stream says which there are.
    let control = setup.bus.control_state(&setup.tenant, setup.root).await?;
    let part_facts = ensure_parts(&setup, control.parts()).await?;

    let (mut store, tasks) = TaskStore::open(&setup.state)?;
    check_streams(store.position(), &control_facts, &part_facts)?;
    // Before the index is built, which is made of what is in the stream, and before anything open is published, so that
    // each run comes back in its order.
    let open = open_records(&mut dir, &setup.bus, &setup.tenant, control.parts()).await?;
    if dir.is_restore_asked() {
        put_back(&setup, control.parts(), &dir).await?;
        dir.restored()?;
    }
    let mut tasks: BTreeMap<_, TaskEntry> = tasks.into_iter().map(|task| (task.task.clone(), task)).collect();
    let mut caught_up = BTreeMap::new();
    let mut read = BTreeMap::new();
    for (part, facts) in &part_facts {
        let known = store.position().parts.get(part).map_or(0, |known| known.sequence);
        let sequence = read_missed(&setup, &control, part, known, &mut caught_up).await?;
        read.insert(part.clone(), PartPosition { created: facts.created_ns.to_string(), sequence });
    }
    let position = Position {
        control_created: control_facts.created_ns.to_string(),
        parts: read,
        ..store.position().clone()
    };
    let caught_up = caught_up.into_values();
    // A record that was put back may be older than what is known already.
    let is_newer = |task: &TaskEntry| tasks.get(&task.task).is_none_or(|known| known.serial <= task.serial);
    let caught_up: Vec<TaskEntry> = caught_up.filter(is_newer).collect();
    store.write(&caught_up, position)?;
    tasks.extend(caught_up.into_iter().map(|task| (task.task.clone(), task)));

    let journal = dir.create(&boot, setup.sync, Settles::OnCommit)?;

    let service = Service::start(
        &setup.bus,
        "writ-broker",
        "Issues and renews capabilities, keeps control state",
        setup.broker.as_str(),
    )
    .await?;
    let tenant = &setup.tenant;
    let subjects = [
        ("issue", filter::issues(tenant)),
        ("enroll", Subject::Enroll.of(tenant)),
        ("fresh", Subject::Fresh.of(tenant)),
        ("admin", Subject::Admin.of(tenant)),
        ("witness", filter::witness(tenant)),
    ];
    let mut endpoints = Vec::new();
    for (name, subject) in subjects {
        endpoints.push(service.endpoint(name, &subject, "writ-broker").await?);
    }
    let (events, queue) = mpsc::channel::<Wake>(QUEUE_EVENTS_MAX);
    let (stop, stopping) = watch::channel(false);
    let (ready_sender, ready) = watch::channel(false);
    let mut workers = tokio::task::JoinSet::new();
    for endpoint in endpoints {
        workers.spawn(receive(endpoint, events.clone(), stopping.clone()));
    }
    let (parts, parts_seen) = watch::channel(control.parts().live().cloned().collect());
    let ticks = Subject::Tick.of(&setup.tenant);
    let control_news = move |news| {
        Wake::Event(match news {
            News::Message(message) if message.subject == ticks => Event::Ticked { payload: message.payload },
            News::Message(message) => Event::Control { sequence: message.sequence, payload: message.payload },
            News::Read => Event::ControlRead,
        })
    };
    let (stream, subjects) = (control_stream(&setup.tenant), filter::control(&setup.tenant));
    workers.spawn(follow(setup.bus.clone(), stream, subjects, events.clone(), control_news));
    let approval_news = |news| {
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
    workers.spawn(follow_approvals(bus, tenant, parts_seen.clone(), events.clone(), approval_news));
    let head_news = |news| {
        Wake::Event(match news {
            News::Message(message) => Event::Head { sequence: message.sequence, payload: message.payload },
            News::Read => Event::HeadsRead,
        })
    };
    let (stream, subjects) = (heads_stream(&setup.tenant), filter::heads(&setup.tenant));
    workers.spawn(follow(setup.bus.clone(), stream, subjects, events.clone(), head_news));
    workers.spawn(watch_parts(setup.bus.clone(), setup.tenant.clone(), parts_seen, events.clone()));

    let (tenant, key) = (setup.tenant.clone(), setup.key.clone());
    let part_specs = Box::new(part_specs(&setup));
    let core = BrokerSetup {
        tenant: setup.tenant,
        broker: setup.broker,
        boot,
        root: setup.root,
        keyset: setup.keyset,
        key: setup.key,
        record_key: setup.record_key,
        policy: setup.policy,
        nodes: setup.nodes,
        operators: setup.operators,
        approvers: setup.approvers,
        request_age_max: Millis::from_secs(30),
        skew: Millis::from_secs(5),
        staleness_max: setup.staleness_max,
        is_recovered: setup.is_recovered,
        parts: control.parts().clone(),
    };
    let mut broker =
        Broker::new(core, setup.identity, Box::new(entropy), tasks.into_values().collect(), clock.now());
    let (http, snapshots) = match setup.http {
        Some(address) => serve_http(address).await.map(|(http, snapshots)| (Some(http), Some(snapshots)))?,
        None => (None, None),
    };
    let mut driver = Driver {
        meter: Meter::new(snapshots, clock.now().wall),
        connection: setup.bus.state(),
        index_fault: None,
        bus: setup.bus,
        tenant,
        key,
        part_specs,
        parts,
        spans: Spans::new(),
        record_logs: RecordLogs::installed(),
        events: events.clone(),
        waiting: BTreeMap::new(),
        next_call: 0,
        journal,
        room: Room::Enough,
        next_refresh: Instant::now(),
        acknowledged: BTreeMap::new(),
        store,
        control_sequence: 0,
        on_their_way: BTreeMap::new(),
        clock,
    };
    for (run, unsettled, records) in open {
        for effect in broker.recover(run, &unsettled, &records, clock.now()) {
            driver.perform(effect);
        }
    }
    let done = tokio::spawn(async move {
        driver.run(broker, queue, stopping, ready_sender).await;
        workers.shutdown().await;
        drop(service);
    });
    Ok(BrokerHandle { stop, ready, done, http })
}

fn spec(setup: &ServeSetup, name: String, subjects: Vec<String>, bytes_max: u64) -> StreamSpec {
    StreamSpec {
        name,
        subjects,
        bytes_max,
        duplicate_window: DUPLICATE_WINDOW,
        replicas: setup.replicas,
        keeps: Keeps::All,
    }
}

/// The stream of each part as it is to be.
fn part_specs(setup: &ServeSetup) -> impl Fn(&PartId) -> StreamSpec + Send + 'static {
    let any = spec(setup, String::new(), Vec::new(), setup.stream_bytes_max);
    let tenant = setup.tenant.clone();
    move |part| StreamSpec {
        name: part_stream(&tenant, part),
        subjects: filter::part(&tenant, part),
        ..any.clone()
    }
}

/// Makes control and heads streams if there are none.
async fn ensure_control(setup: &ServeSetup) -> Result<StreamFacts, BusError> {
    let tenant = &setup.tenant;
    let heads = spec(setup, heads_stream(tenant), vec![filter::heads(tenant)], HEADS_BYTES_MAX);
    setup.bus.ensure_stream(&StreamSpec { keeps: Keeps::Last, ..heads }).await?;
    let control = spec(setup, control_stream(tenant), vec![filter::control(tenant)], CONTROL_BYTES_MAX);
    setup.bus.ensure_stream(&control).await
}

/// What the streams of all parts are that are not put away; one that is lost is made anew, and shows by that.
async fn ensure_parts(setup: &ServeSetup, parts: &Parts) -> Result<BTreeMap<PartId, StreamFacts>, BusError> {
    let part_spec = part_specs(setup);
    let mut found = BTreeMap::new();
    for part in parts.live() {
        found.insert(part.clone(), setup.bus.ensure_stream(&part_spec(part)).await?);
    }
    Ok(found)
}

/// A stream that is younger than the index, or shorter, is not the stream the index was made from.
fn check_streams(
    position: &Position,
    control: &StreamFacts,
    parts: &BTreeMap<PartId, StreamFacts>,
) -> Result<(), BrokerError> {
    if writ_common::red::off("R07") {
        return Ok(());
    }
    let known_parts = parts.iter().filter_map(|(part, facts)| {
        let known = position.parts.get(part)?;
        Some((format!("audit ({part})"), &known.created, known.sequence, facts))
    });
    let control = ("control".to_owned(), &position.control_created, position.control_sequence, control);
    for (what, created, sequence, facts) in known_parts.chain([control]) {
        let recreated = !created.is_empty() && *created != facts.created_ns.to_string();
        if recreated || facts.last_sequence < sequence {
            return Err(BrokerError::Rollback(format!(
                "the {what} stream ends at {} and this broker has seen {sequence}: it was restored or made anew \
                 (state.rollback); see deploy/README.md, section recovery",
                facts.last_sequence
            )));
        }
    }
    Ok(())
}

/// What wakes the loop.
enum Wake {
    Arrived(Incoming),
    Event(Event),
}

struct Driver {
    meter: Meter,
    connection: watch::Receiver<ConnectionState>,
    /// Why the index could not be written the last time, if it could not.
    index_fault: Option<String>,
    bus: Bus,
    tenant: TenantId,
    /// The online key, for labels that are carried over.
    key: PrivateKey,
    part_specs: Box<dyn Fn(&PartId) -> StreamSpec + Send>,
    /// The parts that have a stream.
    parts: watch::Sender<Vec<PartId>>,
    spans: Spans,
    record_logs: RecordLogs,
    events: mpsc::Sender<Wake>,
    waiting: BTreeMap<CallRef, Incoming>,
    next_call: u64,
    journal: Journal,
    /// The room the core was told of.
    room: Room,
    /// When the journal is put in order next.
    next_refresh: Instant,
    store: TaskStore,
    control_sequence: u64,
    /// Highest sequence of ours that each part has acknowledged.
    acknowledged: BTreeMap<PartId, u64>,
    /// Records on their way to a part, each with the sequence it will certainly be behind. What the index says it
    /// holds of the part must stay below all of them, or a kill between two of them would lose the slower.
    on_their_way: BTreeMap<Ticket, (PartId, u64)>,
    clock: SystemClock,
}

impl Driver {
    async fn run(
        mut self,
        mut broker: Broker,
        mut queue: mpsc::Receiver<Wake>,
        mut stopping: watch::Receiver<bool>,
        ready: watch::Sender<bool>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
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
            self.round(&mut broker, std::mem::take(&mut batch));
            self.anchor_control(&broker);
            self.parts.send_if_modified(|known| {
                let live = broker.control().parts().live();
                // Until the stream was read again, what was read before the start is more than what is known here.
                let has_changed = broker.is_control_read() && !live.clone().eq(known.iter());
                if has_changed {
                    *known = live.cloned().collect();
                }
                has_changed
            });
            let connection = *self.connection.borrow();
            let around = Around {
                bus: connection,
                index_fault: self.index_fault.as_deref(),
                journal: &self.journal,
                lost: self.record_logs.losses(),
            };
            self.meter.publish(&broker, &around, self.clock.now());
            ready.send_if_modified(|ready| std::mem::replace(ready, broker.is_ready()) != broker.is_ready());
            // What a stream that cannot be reached did not take is in the journal, for the next run.
            let has_waited = *stopping.borrow()
                && *asked_to_stop.get_or_insert_with(Instant::now) + STOP_TIMEOUT < Instant::now();
            if has_waited {
                return;
            }
            if *stopping.borrow() && (closing.is_some() || broker.is_idle()) && queue.is_empty() {
                // Nothing more will be recorded: the last checkpoint says so.
                let closing_since = *closing.get_or_insert_with(Instant::now);
                for effect in broker.close_log(self.clock.now()) {
                    self.perform(effect);
                }
                if broker.is_log_closed() || closing_since + CLOSE_TIMEOUT < Instant::now() {
                    return;
                }
            }
        }
    }

    fn round(&mut self, broker: &mut Broker, wakes: Vec<Wake>) {
        let mut events: Vec<Event> = Vec::new();
        for wake in wakes {
            events.push(match wake {
                Wake::Event(event) => event,
                Wake::Arrived(incoming) => self.admit(incoming),
            });
        }
        while !events.is_empty() {
            let (mut entries, mut tickets, mut others) = (Vec::new(), Vec::new(), Vec::new());
            let mut settled = Vec::new();
            for event in events.drain(..) {
                if let Event::Published(ticket, _) = &event {
                    settled.push(*ticket);
                }
                self.meter.saw(&event);
                let begun = Instant::now();
                let effects = broker.handle(event, self.clock.now());
                self.meter.handled(&effects, begun.elapsed());
                for effect in effects {
                    match effect {
                        Effect::Journal(ticket, entry) => {
                            entries.push(entry);
                            tickets.extend(ticket);
                        }
                        other => others.push(other),
                    }
                }
            }
            if !entries.is_empty() {
                match self.journal.append(&entries) {
                    Ok(()) => events.extend(tickets.into_iter().map(Event::Journalled)),
                    Err(error) => {
                        let why = error.to_string();
                        let failed =
                            tickets.into_iter().map(|ticket| Event::JournalFailed(ticket, why.clone()));
                        events.extend(failed);
                    }
                }
                events.extend(self.room_changed());
            }
            for effect in others {
                events.extend(self.perform(effect));
            }
            for ticket in settled {
                self.on_their_way.remove(&ticket);
            }
        }
    }

    /// Removes what is too old, and tells the core what room there is.
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

    /// Keeps what was seen of the control stream, so that an older one is noticed at the next start.
    fn anchor_control(&mut self, broker: &Broker) {
        let sequence = broker.control().epoch().sequence;
        if sequence > self.control_sequence {
            self.control_sequence = sequence;
            let position = Position { control_sequence: sequence, ..self.store.position().clone() };
            if let Err(why) = self.write_index(&[], position) {
                tracing::error!("{why}");
            }
        }
    }

    /// How far the index has got once it holds what stands at this sequence of a part.
    fn indexed_to(&mut self, part: &PartId, sequence: u64) -> Position {
        let acknowledged = self.acknowledged.entry(part.clone()).or_default();
        *acknowledged = sequence.max(*acknowledged);
        let slowest =
            self.on_their_way.values().filter(|(of, _)| of == part).map(|(_, behind)| *behind).min();
        let mut position = self.store.position().clone();
        let known = position.parts.entry(part.clone()).or_default();
        known.sequence = slowest.unwrap_or(*acknowledged).max(known.sequence);
        position
    }

    fn write_index(&mut self, tasks: &[TaskEntry], position: Position) -> Result<(), String> {
        let written = self.store.write(tasks, position).map_err(|error| error.to_string());
        self.index_fault = written.clone().err();
        written
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

    /// Does what an effect says; writing the index is done at once and comes back as an event.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Alarm(text) => tracing::warn!("{text}"),
            Effect::Span(span) => self.spans.emit(*span),
            Effect::Recorded(record, digest) => self.record_logs.emit(&record, &digest),
            Effect::Journal(_, entry) => {
                if let Err(error) = self.journal.append(&[entry]) {
                    tracing::error!("{error}");
                }
            }
            Effect::FetchKeys(issuer, source) => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    let fetched = source.fetch().await.map_err(|error| error.to_string());
                    drop(events.send(Wake::Event(Event::KeysFetched(issuer, fetched))).await);
                });
            }
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
            Effect::Index { ticket, task, part, sequence } => {
                let position = self.indexed_to(&part, sequence);
                let written = self.write_index(std::slice::from_ref(&*task), position);
                if written.is_ok() {
                    self.meter.issued(task.serial);
                }
                return Some(Event::Indexed(ticket, written));
            }
            Effect::MakePart(part) => {
                let (bus, events, spec) = (self.bus.clone(), self.events.clone(), (self.part_specs)(&part));
                tokio::spawn(async move {
                    let made = bus.ensure_stream(&spec).await.map(drop).map_err(|error| error.to_string());
                    drop(events.send(Wake::Event(Event::PartMade(part, made))).await);
                });
            }
            Effect::MoveShared { from, to, control } => {
                let (bus, events, key) = (self.bus.clone(), self.events.clone(), self.key.clone());
                tokio::spawn(async move {
                    let moved = move_shared(&bus, &control, &key, &from, &to).await;
                    let moved = moved.map_err(|error| error.to_string());
                    drop(events.send(Wake::Event(Event::SharedMoved(to, moved))).await);
                });
            }
            Effect::ReadRecord { ticket, part, sequence } => {
                let (bus, events) = (self.bus.clone(), self.events.clone());
                let stream = part_stream(&self.tenant, &part);
                tokio::spawn(async move {
                    let found = bus.message_at(&stream, sequence).await.ok().flatten();
                    if found.is_none() {
                        tokio::time::sleep(READ_AGAIN_AFTER).await;
                    }
                    let found = found.map(|message| message.payload);
                    drop(events.send(Wake::Event(Event::RecordRead(ticket, found))).await);
                });
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
            Effect::Publish { ticket, store, delay } => {
                if let Some(part) = audit_part(&store.subject) {
                    let behind = self.acknowledged.get(&part).copied().unwrap_or_default();
                    self.on_their_way.insert(ticket, (part, behind));
                }
                let (bus, events) = (self.bus.clone(), self.events.clone());
                tokio::spawn(async move {
                    if delay.0 > 0 {
                        tokio::time::sleep(delay.to_duration()).await;
                    }
                    let result = bus.store(&store, ACK_TIMEOUT).await;
                    drop(events.send(Wake::Event(Event::Published(ticket, result))).await);
                });
            }
        }
        None
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

/// Tells the core every so often how full the parts are.
async fn watch_parts(
    bus: Bus,
    tenant: TenantId,
    parts: watch::Receiver<Vec<PartId>>,
    events: mpsc::Sender<Wake>,
) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let live = parts.borrow().clone();
        for part in live {
            if let Ok(Some(facts)) = bus.stream_facts(&part_stream(&tenant, &part)).await
                && events.send(Wake::Event(Event::AuditStream(part, facts))).await.is_err()
            {
                return;
            }
        }
    }
}

/// Removes the index, so that the next start rebuilds it from the stream.
///
/// # Errors
/// [`StoreError`].
pub fn forget_index(state: &Path) -> Result<(), StoreError> {
    TaskStore::remove(state)
}
