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
    ApprovalNews, Bus, BusError, ConnectionState, Endpoint, Incoming, Keeps, PutBackError, Service,
    StreamFacts, StreamSpec, SystemClock, SystemEntropy, follow_approvals,
};
use writ_common::{
    entropy::draw,
    ids::{BootId, BrokerId, NodeId, OperatorId, PartId, TenantId},
    keys::{PrivateKey, PublicKey},
    keyset::KeysetDocument,
    policy::PolicyBundle,
    signed::Signed,
    subjects::{Subject, control_stream, filter, heads_stream, part_stream},
    time::Millis,
};
use writ_journal::{Journal, JournalDir, JournalError, JournalLimits, Room, Settles, Sync, ask_restore};
use writ_telemetry::{HttpError, HttpHandle, RecordLogs, Spans, serve_http};

use crate::{
    catch_up::{open_records, put_back, read_missed},
    core::{Arrival, Broker, BrokerSetup, CallRef, Effect, Event, TaskEntry, Ticket},
    jwt::IdentityProvider,
    meter::{Around, Meter},
    store::{Position, StoreError, TaskStore},
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
    let part = PartId::first();
    let (control_facts, part_facts) = ensure_streams(&setup, &part).await?;

    let (mut store, tasks) = TaskStore::open(&setup.state)?;
    check_streams(store.position(), &control_facts, &part_facts)?;
    // Before the index is built, which is made of what is in the stream, and before anything open is published, so that
    // each run comes back in its order.
    let open = open_records(&mut dir, &setup.bus, &setup.tenant, &part).await?;
    if dir.is_restore_asked() {
        put_back(&setup, &part, &dir).await?;
        dir.restored()?;
    }
    let mut tasks: BTreeMap<_, TaskEntry> = tasks.into_iter().map(|task| (task.task.clone(), task)).collect();
    let missed = read_missed(&setup, &part, store.position().sequence).await?;
    let position = Position {
        stream_created: part_facts.created_ns.to_string(),
        control_created: control_facts.created_ns.to_string(),
        sequence: missed.last_sequence,
        ..store.position().clone()
    };
    let caught_up = missed.tasks.into_values();
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
    workers.spawn(follow_control(setup.bus.clone(), setup.tenant.clone(), events.clone()));
    let news = |news| {
        Wake::Event(match news {
            ApprovalNews::Message(message) => Event::Approval {
                sequence: message.sequence,
                subject: message.subject,
                payload: message.payload,
            },
            ApprovalNews::Read => Event::ApprovalsRead,
        })
    };
    workers.spawn(follow_approvals(setup.bus.clone(), setup.tenant.clone(), events.clone(), news));
    workers.spawn(follow_heads(setup.bus.clone(), setup.tenant.clone(), events.clone()));
    workers.spawn(watch_audit_stream(setup.bus.clone(), part_stream(&setup.tenant, &part), events.clone()));

    let stream = part_stream(&setup.tenant, &part);
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
        stream,
        spans: Spans::new(),
        record_logs: RecordLogs::installed(),
        events: events.clone(),
        waiting: BTreeMap::new(),
        next_call: 0,
        journal,
        room: Room::Enough,
        next_refresh: Instant::now(),
        acknowledged: store.position().sequence,
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

async fn ensure_streams(setup: &ServeSetup, part: &PartId) -> Result<(StreamFacts, StreamFacts), BusError> {
    let spec = |name: String, subjects: Vec<String>, bytes_max: u64| StreamSpec {
        name,
        subjects,
        bytes_max,
        duplicate_window: DUPLICATE_WINDOW,
        replicas: setup.replicas,
        keeps: Keeps::All,
    };
    let heads = spec(heads_stream(&setup.tenant), vec![filter::heads(&setup.tenant)], HEADS_BYTES_MAX);
    setup.bus.ensure_stream(&StreamSpec { keeps: Keeps::Last, ..heads }).await?;
    let control =
        spec(control_stream(&setup.tenant), vec![filter::control(&setup.tenant)], CONTROL_BYTES_MAX);
    let audit =
        spec(part_stream(&setup.tenant, part), filter::part(&setup.tenant, part), setup.stream_bytes_max);
    Ok((setup.bus.ensure_stream(&control).await?, setup.bus.ensure_stream(&audit).await?))
}

/// A stream that is younger than the index, or shorter, is not the stream the index was made from.
fn check_streams(position: &Position, control: &StreamFacts, part: &StreamFacts) -> Result<(), BrokerError> {
    if writ_common::red::off("R07") {
        return Ok(());
    }
    let known = [
        ("audit", &position.stream_created, position.sequence, part),
        ("control", &position.control_created, position.control_sequence, control),
    ];
    for (what, created, sequence, facts) in known {
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
    /// The audit stream's name.
    stream: String,
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
    /// Highest sequence of ours the stream has acknowledged.
    acknowledged: u64,
    /// Records on their way to the stream, each with the sequence it will certainly be behind. What the index says
    /// it holds must stay below all of them, or a kill between two of them would lose the slower.
    on_their_way: BTreeMap<Ticket, u64>,
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
            Effect::Index { ticket, task, sequence } => {
                self.acknowledged = self.acknowledged.max(sequence);
                let slowest = self.on_their_way.values().min().copied();
                let sequence = slowest.unwrap_or(self.acknowledged).max(self.store.position().sequence);
                let position = Position { sequence, ..self.store.position().clone() };
                let written = self.write_index(std::slice::from_ref(&*task), position);
                if written.is_ok() {
                    self.meter.issued(task.serial);
                }
                return Some(Event::Indexed(ticket, written));
            }
            Effect::ReadRecord { ticket, sequence } => {
                let (bus, events, stream) = (self.bus.clone(), self.events.clone(), self.stream.clone());
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
                self.on_their_way.insert(ticket, self.acknowledged);
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

/// Follows the control stream for good, events and ticks in their order.
async fn follow_control(bus: Bus, tenant: TenantId, events: mpsc::Sender<Wake>) {
    let (stream, subjects) = (control_stream(&tenant), filter::control(&tenant));
    let event_subject = Subject::Control.of(&tenant);
    let mut next = 1;
    loop {
        if let Ok(mut tail) = bus.tail(&stream, &subjects, next).await {
            let mut pending = tail.pending;
            loop {
                if pending == 0 && events.send(Wake::Event(Event::ControlRead)).await.is_err() {
                    return;
                }
                let Ok(message) = tail.next().await else { break };
                next = message.sequence + 1;
                pending = message.pending;
                let event = if message.subject == event_subject {
                    Event::Control { sequence: message.sequence, payload: message.payload }
                } else {
                    Event::Ticked { payload: message.payload }
                };
                if events.send(Wake::Event(event)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Follows the heads stream for good.
async fn follow_heads(bus: Bus, tenant: TenantId, events: mpsc::Sender<Wake>) {
    let (stream, subjects) = (heads_stream(&tenant), filter::heads(&tenant));
    let mut next = 1;
    loop {
        if let Ok(mut tail) = bus.tail(&stream, &subjects, next).await {
            let mut pending = tail.pending;
            loop {
                if pending == 0 && events.send(Wake::Event(Event::HeadsRead)).await.is_err() {
                    return;
                }
                let Ok(message) = tail.next().await else { break };
                next = message.sequence + 1;
                pending = message.pending;
                let event = Event::Head { sequence: message.sequence, payload: message.payload };
                if events.send(Wake::Event(event)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Tells the core every so often how full the audit stream is.
async fn watch_audit_stream(bus: Bus, stream: String, events: mpsc::Sender<Wake>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if let Ok(Some(facts)) = bus.stream_facts(&stream).await
            && events.send(Wake::Event(Event::AuditStream(facts))).await.is_err()
        {
            return;
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
