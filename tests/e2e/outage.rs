//! The bus away, killed, restored from a copy, under load: afterwards the stream is whole. Every run is numbered without
//! holes and every record names the one before it, an outcome comes after its intent, and no call was let through twice.
//!
//! `WRIT_LONG=1` has outages of 30 s instead of 4.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};
use writ::{dev::DevStack, operator::Recorded};
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::{BootId, PartId},
    reason::ReasonCode,
    record::{Origin, Record, RecordBody, RecordKind},
    signed::Signed,
    subjects::{Subject, part_stream},
};
use writ_sdk::{NewTask, Task};
use writ_tests::{
    KIND, Seen, World, WorldOptions, WritProcess, eventually, is_whole, leader, read, run, small_disk,
};

use crate::{
    WRIT,
    faults::{copy, node},
};

fn outage() -> Duration {
    Duration::from_secs(if std::env::var_os("WRIT_LONG").is_some() { 30 } else { 4 })
}

/// A message of the audit stream.
pub(crate) struct Message {
    sequence: u64,
    subject: Subject,
    pub(crate) bytes: Vec<u8>,
    record: Record,
    digest: Digest,
}

/// The audit stream, as evidence.
pub(crate) struct Evidence {
    pub(crate) messages: Vec<Message>,
}

impl Evidence {
    pub(crate) async fn read(stack: &DevStack) -> Result<Self> {
        let operator = stack.operator().await?;
        let control = operator.control().await?;
        let mut messages = Vec::new();
        let tail = operator.audit_tail(&PartId::first(), None, 1).await?;
        tail.try_drain::<anyhow::Error>(|message| {
            let recorded = Recorded::open(message.sequence, &message.payload, &control);
            ensure!(recorded.fault.is_none(), "{}: {:?}", message.sequence, recorded.fault);
            messages.push(Message {
                sequence: message.sequence,
                subject: Subject::parse(&message.subject)?.1,
                digest: decode::<Signed<Record>>(&message.payload)?.digest(),
                bytes: message.payload.to_vec(),
                record: recorded.record.context("a record")?,
            });
            Ok(())
        })
        .await?;
        operator.close().await;
        Ok(Self { messages })
    }

    /// What is wrong with it; nothing if it is whole.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut runs: BTreeMap<(&Origin, &BootId), BTreeMap<u64, &Message>> = BTreeMap::new();
        for message in &self.messages {
            let id = &message.record.id;
            let run = runs.entry((&id.origin, &id.boot)).or_default();
            // Of what was published twice the first counts; anything but the same bytes is no copy.
            match run.get(&id.seq) {
                Some(first) if first.bytes == message.bytes => {}
                Some(_) => faults.push(format!("{id}: two different records")),
                None => drop(run.insert(id.seq, message)),
            }
        }
        let (mut intents, mut ends) = (BTreeMap::new(), BTreeMap::<_, usize>::new());
        for ((origin, boot), run) in &runs {
            let mut before: Option<Digest> = None;
            for (expected, (seq, message)) in (0..).zip(run) {
                let id = &message.record.id;
                if *seq != expected {
                    faults.push(format!("{origin}/{boot}: {expected} is missing"));
                    break;
                }
                if before.is_some_and(|before| before != message.record.prev) {
                    faults.push(format!("{id}: does not name the record before it"));
                }
                // A void stands for what was prepared in its place.
                before = Some(match &message.record.body {
                    RecordBody::Void(void) => void.prepared,
                    _ => message.digest,
                });
                if let RecordBody::Verdict(verdict) = &message.record.body
                    && message.record.kind() == RecordKind::Allow
                    && matches!(origin, Origin::Node(_))
                    && let Some(call) = verdict.what.call_id
                    && let Some(other) = intents.insert(call, (*message, id.clone()))
                {
                    faults.push(format!("{id} and {}: one call let through twice", other.1));
                }
            }
        }
        for message in runs.values().flat_map(BTreeMap::values) {
            let RecordBody::Outcome(outcome) = &message.record.body else { continue };
            *ends.entry(outcome.call_id).or_default() += 1;
            match intents.get(&outcome.call_id) {
                Some((intent, _)) if intent.sequence < message.sequence => {}
                Some(_) => faults.push(format!("{}: comes before its intent", message.record.id)),
                None if matches!(message.record.id.origin, Origin::Node(_)) => {
                    faults.push(format!("{}: an outcome without an intent", message.record.id));
                }
                None => {}
            }
        }
        for (call, (_, id)) in &intents {
            let count = ends.get(call).copied().unwrap_or(0);
            if count != 1 {
                faults.push(format!("{id}: {count} outcomes"));
            }
        }
        let allowed = self
            .messages
            .iter()
            .filter(|message| matches!(&message.subject, Subject::Audit { kind: RecordKind::Allow, .. }));
        let mut seen = BTreeSet::new();
        faults.extend(
            allowed
                .filter(|one| !seen.insert(&one.bytes))
                .map(|one| format!("{}: ALLOW twice", one.record.id)),
        );
        faults
    }

    fn count(&self, kind: RecordKind) -> usize {
        self.messages.iter().filter(|message| message.record.kind() == kind).count()
    }

    /// What was put back, in stream order.
    fn restored(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|message| matches!(message.subject, Subject::Restored { .. }))
    }
}

/// Waits until the stream is whole, and says what is wrong if it does not get there.
pub(crate) async fn whole(stack: &DevStack) -> Result<Evidence> {
    let mut faults = Vec::new();
    for _ in 0..120 {
        match Evidence::read(stack).await {
            Ok(evidence) => {
                faults = evidence.faults();
                if faults.is_empty() {
                    return Ok(evidence);
                }
            }
            Err(error) => faults = vec![format!("{error:#}")],
        }
        sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("the stream is not whole: {}", faults.join("; "))
}

/// Reads and refused writes, without a pause, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<()>,
}

impl Load {
    fn start(task: &Task) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut callers = JoinSet::new();
        for caller in 0..8 {
            let (task, stop, done) = (task.clone(), Arc::clone(&stop), Arc::clone(&done));
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let sql =
                        if caller % 4 == 0 { "DELETE FROM customers" } else { "SELECT name FROM customers" };
                    let answer = tokio::time::timeout(Duration::from_secs(5), read(&task, sql)).await;
                    done.fetch_add(usize::from(matches!(answer, Ok(Ok(_)))), Ordering::Relaxed);
                    sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self { stop, done, callers }
    }

    /// Waits until so many more calls were answered.
    async fn answers(&self, more: usize) -> Result<()> {
        let before = self.done.load(Ordering::Relaxed);
        eventually("calls are answered", async || Ok(self.done.load(Ordering::Relaxed) >= before + more))
            .await
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
    }
}

/// Calls are not refused for their number: the load is the point.
fn unbounded(layout: &writ::dev::Layout) -> Result<()> {
    World::edit(
        &layout.policies().join("agents.toml"),
        "name = \"planner\"",
        "name = \"planner\"\nquota = { per_second = 1000000, burst = 1000000 }",
    )
}

fn options() -> WorldOptions {
    WorldOptions { edit: Some(unbounded), ..Default::default() }
}

#[test]
fn b09_a_bus_that_is_away_under_load_leaves_a_whole_stream() -> Result<()> {
    run(async {
        let world = World::with(options()).await?;
        let (_planner, task) = world.task().await?;
        let load = Load::start(&task);
        load.answers(50).await?;
        world.nats.signal(Signal::STOP)?;
        sleep(outage()).await;
        world.nats.signal(Signal::CONT)?;
        load.answers(50).await?;
        load.stop().await;
        let evidence = whole(&world).await?;
        assert!(evidence.count(RecordKind::Outcome) >= 100 && evidence.count(RecordKind::Deny) > 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn b09_a_bus_that_is_killed_under_load_leaves_a_whole_stream() -> Result<()> {
    run(async {
        let mut world = World::with(options()).await?;
        let (_planner, task) = world.task().await?;
        let load = Load::start(&task);
        load.answers(50).await?;
        world.nats.signal(Signal::KILL)?;
        sleep(outage()).await;
        world.restart_server(1)?;
        load.answers(50).await?;
        load.stop().await;
        let evidence = whole(&world).await?;
        assert!(evidence.count(RecordKind::Outcome) >= 100);
        world.close().await;
        Ok(())
    })
}

#[test]
fn a18_a_node_killed_under_load_leaves_a_whole_stream() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..options() }).await?;
        world.start_broker().await?;
        let first = node(&world, "node-1")?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let load = Load::start(&task);
        load.answers(50).await?;
        first.kill()?;
        let second = node(&world, "node-1")?;
        load.answers(50).await?;
        second.kill()?;
        let _third = node(&world, "node-1")?;
        load.answers(20).await?;
        load.stop().await;
        let evidence = whole(&world).await?;
        assert!(evidence.count(RecordKind::Outcome) >= 100);
        world.close().await;
        Ok(())
    })
}

#[test]
fn b09_three_servers_whose_leader_is_killed_under_load_leave_a_whole_stream() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { servers: 3, ..options() }).await?;
        let operator = world.operator().await?;
        eventually("all three servers have everything", async || is_whole(&operator, 3).await).await?;
        let (_planner, task) = world.task().await?;
        let load = Load::start(&task);
        load.answers(50).await?;
        let mut found = None;
        eventually("the stream has a leader", async || {
            found = leader(&operator).await?;
            Ok(found.is_some())
        })
        .await?;
        let killed = found.context("a leader")?;
        world.server(killed).context("the leader")?.signal(Signal::KILL)?;
        load.answers(50).await?;
        world.restart_server(killed)?;
        load.answers(50).await?;
        eventually("all three servers have everything", async || is_whole(&operator, 3).await).await?;
        // Another one comes back with an empty disk.
        let emptied = killed % 3 + 1;
        world.server(emptied).context("another server")?.signal(Signal::KILL)?;
        let nats = world.state().join("nats");
        let home = if emptied == 1 { nats } else { nats.join(emptied.to_string()) };
        load.answers(20).await?;
        fs::remove_dir_all(home.join("jetstream"))?;
        world.restart_server(emptied)?;
        load.answers(20).await?;
        load.stop().await;
        eventually("all three servers have everything", async || is_whole(&operator, 3).await).await?;
        operator.close().await;
        let evidence = whole(&world).await?;
        assert!(evidence.count(RecordKind::Outcome) >= 190);
        world.close().await;
        Ok(())
    })
}

/// A set-up in this process and its streams as they were after a first task; what is decided behind that is lost when
/// they are restored.
struct Lost {
    folder: tempfile::TempDir,
    before: Evidence,
}

impl Lost {
    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join(".writ")
    }

    async fn make(calls: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join(".writ");
        let stack = DevStack::start(writ::dev::DevOptions::new(&root)).await?;
        some_calls(&stack, 3).await?;
        stack.stop().await;
        copy(&root.join("nats/jetstream"), &folder.path().join("backup"))?;
        let stack = DevStack::start(writ::dev::DevOptions::new(&root)).await?;
        some_calls(&stack, calls).await?;
        let before = whole(&stack).await?;
        stack.stop().await;
        Ok(Self { folder, before })
    }

    /// The bus alone, with the streams of the backup, or with none.
    async fn restore(&self, backup: Option<&Path>) -> Result<DevStack> {
        let streams = self.root().join("nats/jetstream");
        fs::remove_dir_all(&streams)?;
        if let Some(backup) = backup {
            copy(backup, &streams)?;
        }
        let mut quiet = writ::dev::DevOptions::new(self.root());
        quiet.start_core = false;
        DevStack::start(quiet).await
    }

    fn start(&self, arguments: &[&str], log: &str) -> Result<WritProcess> {
        WritProcess::start_in(WRIT, arguments, &self.root(), log, &[("WRIT_LOG", "info")])
    }

    /// Everything that was ever acknowledged is there once, in its order, and what was put back is only evidence.
    async fn is_complete(&self, stack: &DevStack) -> Result<Vec<String>> {
        let now = Evidence::read(stack).await?;
        let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
        for message in &now.messages {
            *counts.entry(&message.bytes).or_default() += 1;
        }
        let mut faults = now.faults();
        for message in &self.before.messages {
            let count = counts.get(message.bytes.as_slice()).copied().unwrap_or(0);
            if count != 1 {
                faults.push(format!("{} is there {count} times", message.record.id));
            }
        }
        let mut last: BTreeMap<(String, String), u64> = BTreeMap::new();
        for message in now.restored() {
            let id = &message.record.id;
            let run = (id.origin.to_string(), id.boot.to_string());
            if last.insert(run, id.seq).is_some_and(|before| before >= id.seq) {
                faults.push(format!("{id} was put back out of order"));
            }
        }
        Ok(faults)
    }
}

pub(crate) async fn some_calls(stack: &DevStack, count: usize) -> Result<()> {
    let planner = stack.agent("planner").await?;
    let task = planner.start_task(NewTask::new(KIND, stack.tokens.token_for("alice")?, "")).await?;
    for number in 0..count {
        read(&task, &format!("SELECT {number}")).await?;
        if number % 3 == 0 {
            read(&task, "DELETE FROM customers").await.unwrap_err();
        }
    }
    planner.close().await;
    Ok(())
}

async fn until_ready(process: &WritProcess) -> Result<()> {
    eventually("it is ready", async || Ok(process.said().contains(" ready")))
        .await
        .map_err(|error| error.context(process.said()))
}

/// B07, B08: what a stream restored from a copy lacks is put back from the journals, by broker and node, byte for byte,
/// in order, once, and never as an ALLOW that stands to be acted on. Killed in the middle, it goes on at the next start.
#[test]
fn b07_b08_records_a_stream_lost_are_put_back_from_the_journals() -> Result<()> {
    run(async {
        let lost = Lost::make(100).await?;
        let stack = lost.restore(Some(&lost.folder.path().join("backup"))).await?;
        let old = Evidence::read(&stack).await?;
        let lacking = lost.before.messages.len() - old.messages.len();
        assert!(lacking > 80, "{lacking}");
        let broker = lost.start(&["broker", "--config", "broker.toml", "--rebuild"], "b.log")?;
        until_ready(&broker).await?;
        // Killed as soon as the first of them are back, and asked again only the first time.
        let operator = stack.operator().await?;
        let stream = part_stream(operator.tenant(), &PartId::first());
        let end = async || {
            anyhow::Ok(operator.bus().stream_facts(&stream).await?.context("the stream")?.last_sequence)
        };
        let marker = lost.root().join("node-1/restore.pending");
        for attempt in 0..4 {
            let all = ["node", "--config", "node-1.toml", "--accept-streams"];
            let before = end().await?;
            let node = lost.start(if attempt == 0 { &all[..] } else { &all[..3] }, "killed.log")?;
            eventually("it begins", async || Ok(marker.exists() || attempt > 0)).await?;
            while marker.exists() && end().await? == before {
                sleep(Duration::from_micros(200)).await;
            }
            node.kill()?;
        }
        operator.close().await;
        let node = lost.start(&["node", "--config", "node-1.toml"], "n.log")?;
        until_ready(&node).await?;
        assert_eq!(lost.is_complete(&stack).await?, [] as [&str; 0], "{}", node.said());
        let now = Evidence::read(&stack).await?;
        assert_eq!(now.restored().count(), lacking, "all that was lost, and nothing else");
        let kinds: BTreeSet<RecordKind> = now.restored().map(|message| message.record.kind()).collect();
        let all = [RecordKind::Allow, RecordKind::Deny, RecordKind::Outcome];
        assert!(all.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
        // Whoever reads tasks and gaps takes them as what they are.
        let task = now.restored().find_map(|message| message.record.task().cloned()).context("a task")?;
        assert_eq!(Seen::read(&stack, None).await?.missing(), 0);
        assert!(Seen::read(&stack, Some(&task)).await?.count(RecordKind::Allow) > 0);
        let operator = stack.operator().await?;
        let info = operator.ask(writ_common::wire::AdminWanted::Task { task: Some(task.clone()) }).await?;
        assert!(
            matches!(info, writ_common::wire::AdminReply::Task(info) if info.task == task),
            "the broker knows it"
        );
        // Once more from the start: everything is there already.
        node.kill()?;
        broker.kill()?;
        let broker = lost.start(&["broker", "--config", "broker.toml", "--rebuild"], "b.log")?;
        until_ready(&broker).await?;
        let node = lost.start(&["node", "--config", "node-1.toml", "--accept-streams"], "n.log")?;
        until_ready(&node).await?;
        assert_eq!(lost.is_complete(&stack).await?, [] as [&str; 0]);
        assert_eq!(Evidence::read(&stack).await?.restored().count(), lacking, "{}", node.said());
        Ok(())
    })
}

/// B07, B08: the same with a stream that was made anew.
#[test]
fn b07_b08_records_of_a_stream_made_anew_are_put_back_from_the_journals() -> Result<()> {
    run(async {
        let lost = Lost::make(10).await?;
        let stack = lost.restore(None).await?;
        let broker = lost.start(&["broker", "--config", "broker.toml", "--rebuild"], "b.log")?;
        until_ready(&broker).await?;
        let node = lost.start(&["node", "--config", "node-1.toml", "--accept-streams"], "n.log")?;
        until_ready(&node).await?;
        // The control stream is gone with its keys: everything is there, and nobody but the operator can say by whom
        // it was signed until the nodes are enrolled again, which the broker does from its configuration.
        assert_eq!(lost.is_complete(&stack).await?, [] as [&str; 0], "{}", node.said());
        Ok(())
    })
}

/// What a lost journal takes along is seen in the stream: an intent whose end nobody can say any more.
#[test]
fn b05_a_lost_journal_leaves_an_intent_without_outcome_that_shows() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..options() }).await?;
        world.start_broker().await?;
        let first = node(&world, "node-1")?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let slow = tokio::spawn({
            let task = task.clone();
            async move { read(&task, SLOW).await }
        });
        let mut open = Vec::new();
        eventually("the slow call is on record", async || {
            open = Evidence::read(&world).await?.faults();
            Ok(open.len() == 1)
        })
        .await?;
        first.kill()?;
        slow.abort();
        fs::remove_dir_all(world.state().join("node-1"))?;
        let _second = node(&world, "node-1")?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 2").await.is_ok())).await?;
        let faults = Evidence::read(&world).await?.faults();
        assert_eq!(faults, open, "{open:?}");
        assert!(faults[0].contains("0 outcomes"), "{faults:?}");
        world.close().await;
        Ok(())
    })
}

/// R10: a node whose disk is full lets nothing new through, still says how what is under way ended, and goes on once
/// there is room.
#[test]
fn r10_a_node_on_a_full_disk_refuses_and_goes_on() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..options() }).await?;
        world.start_broker().await?;
        let journal = world.state().join("node-1");
        fs::create_dir_all(&journal)?;
        let Some(mut arguments) = small_disk(&journal, 24)? else {
            let why = "skipped: `unshare --user --map-root-user --mount` is not allowed here";
            return Ok(writeln!(std::io::stderr(), "{why}")?);
        };
        arguments.extend([WRIT, "node", "--config", "node-1.toml"].map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let node = WritProcess::start("unshare", &arguments, &world.state(), "node-1.log")?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let slow = tokio::spawn({
            let task = task.clone();
            async move { read(&task, SLOW).await }
        });
        eventually("the slow call is on record", async || {
            let seen = Seen::read(&world, Some(task.id())).await?;
            Ok(seen.count(RecordKind::Allow) > seen.count(RecordKind::Outcome) + 1)
        })
        .await?;
        let ballast = node.root()?.join(journal.strip_prefix("/")?).join("ballast");
        fill(&ballast)?;
        let mut refused = None;
        for _ in 0..200 {
            refused = read(&task, "SELECT 1").await.err().and_then(|error| error.code());
            if refused.is_some() {
                break;
            }
        }
        assert_eq!(refused, Some(ReasonCode::AuditFull), "{}", node.said());
        let denied = read(&task, "DELETE FROM customers").await.unwrap_err();
        assert_eq!(denied.code(), Some(ReasonCode::SqlNotReadOnly), "{}", node.said());
        slow.await?.context("the call that was under way")?;
        fs::remove_file(&ballast)?;
        eventually("there is room again", async || Ok(read(&task, "SELECT 2").await.is_ok())).await?;
        whole(&world).await?;
        world.close().await;
        Ok(())
    })
}

/// Takes some seconds and is nothing but a read.
const SLOW: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 20000000) SELECT max(x) FROM c";

fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
    Ok(())
}
