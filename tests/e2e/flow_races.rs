//! Reading and telling at the same moment, on whichever node, and while the servers of the bus are killed and paused:
//! no sink gets what its task label does not let it have, and whoever asks is answered.
//!
//! The claim is about the stream, so the stream is what is looked at: it is replayed, and at the position of every
//! ALLOW the label is the one that stands there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};
use writ::dev::Layout;
use writ_common::{
    codec::decode,
    ids::{FlowDomain, PartId, Resource},
    label::{DomainLabel, Label},
    reason::ReasonCode,
    record::{DecisionId, Record, RecordBody, RecordedDecision},
    signed::Signed,
    subjects::{Subject, part_stream},
};
use writ_sdk::{Agent, Error, NewTask, Task};
use writ_tests::{KIND, World, WorldOptions, eventually, is_whole, leader, letter, read, run};

/// Pairs of a read and a letter per test; `WRIT_RACES=10000` asks for more.
const PAIRS: usize = 300;
/// Pairs under way at the same time.
const AT_ONCE: usize = 24;

fn pairs() -> Result<usize> {
    std::env::var("WRIT_RACES").map_or(Ok(PAIRS), |text| text.parse().context("WRIT_RACES is a number"))
}

/// The planner may read customers and write drafts; a draft is for everybody, and what it read is not.
fn racing(layout: &Layout) -> Result<()> {
    let edit = |file: &str, from: &str, to: &str| World::edit(&layout.policies().join(file), from, to);
    edit(
        "agents.toml",
        "name = \"planner\"",
        "name = \"planner\"\nquota = { per_second = 1000000, burst = 1000000 }",
    )?;
    edit("tools/mail.toml", "effect = \"internal\"", "effect = \"internal\"\naccepts = []")?;
    let rules = layout.policies().join("planes/20-action.datalog");
    let text = fs::read_to_string(&rules)?;
    let kept: Vec<&str> = text.lines().filter(|line| !line.contains("\"mailer\"")).collect();
    Ok(fs::write(rules, kept.join("\n"))?)
}

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Done,
    Sink,
    /// Refused since nobody could say, or begun with an end nobody knows: an answer all the same.
    Undecided(&'static str),
}

fn said(result: Result<writ_sdk::Value, Error>) -> Result<Said> {
    match result {
        Ok(_) => Ok(Said::Done),
        Err(error) if error.code() == Some(ReasonCode::FlowSink) => Ok(Said::Sink),
        Err(Error::CouldNotDecide(denial)) => {
            Ok(Said::Undecided(denial.code().map_or("", ReasonCode::as_str)))
        }
        Err(Error::Failed { reason, .. }) => Ok(Said::Undecided(reason.code.as_str())),
        Err(Error::Replayed { .. }) => Ok(Said::Undecided("replayed")),
        Err(error) => anyhow::bail!("{error}"),
    }
}

/// A new task; while the servers look for a leader none can be started.
async fn start(planner: &Agent, token: &str) -> Result<Task> {
    let mut last = None;
    for _ in 0..120 {
        match planner.start_task(NewTask::new(KIND, token.to_owned(), "race")).await {
            Ok(task) => return Ok(task),
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("no task is started for a minute: {last:?}")
}

/// A read and a letter of one task at the same moment, the one a little before the other, and a letter after both.
async fn pair(planner: Agent, token: String, number: usize) -> Result<[Said; 3]> {
    let task = start(&planner, &token).await?;
    let ahead = Duration::from_micros(u64::try_from(number % 23)? * 900);
    let (reads_late, tells_late) =
        if number.is_multiple_of(3) { (ahead, Duration::ZERO) } else { (Duration::ZERO, ahead) };
    let reading = async {
        sleep(reads_late).await;
        read(&task, "SELECT name FROM customers").await
    };
    let telling = async {
        sleep(tells_late).await;
        task.call("tool.mail", "draft", letter()).await
    };
    let (reading, telling) = tokio::join!(reading, telling);
    let after = task.call("tool.mail", "draft", letter()).await;
    Ok([said(reading)?, said(telling)?, said(after)?])
}

/// What a stream says about labels and those who relied on them.
#[derive(Default)]
struct Replay {
    labels: BTreeMap<FlowDomain, Label>,
    /// Letters that were allowed although the label did not flow, unless they were voided.
    leaks: BTreeMap<DecisionId, String>,
    /// Results that were released before the label covered them.
    early: Vec<String>,
    letters: usize,
    reads: BTreeSet<FlowDomain>,
    domains: BTreeMap<DecisionId, FlowDomain>,
}

impl Replay {
    async fn of(world: &World) -> Result<Self> {
        let operator = world.operator().await?;
        let stream = part_stream(operator.tenant(), &PartId::first());
        let mut replay = Self::default();
        let tail = operator.bus().tail(&stream, "writ.v1.acme.>", 1).await?;
        tail.try_drain::<anyhow::Error>(|message| {
            let (_, subject) = Subject::parse(&message.subject)?;
            replay.take(message.sequence, &subject, &message.payload)
        })
        .await?;
        operator.close().await;
        Ok(replay)
    }

    fn take(&mut self, sequence: u64, subject: &Subject, payload: &[u8]) -> Result<()> {
        match subject {
            Subject::Label(domain) => {
                let label = decode::<Signed<DomainLabel>>(payload)?.peek()?.label;
                let before = self.labels.insert(domain.clone(), label.clone());
                anyhow::ensure!(
                    before.is_none_or(|before| before.flows_to(&label)),
                    "the label of {domain} went down at {sequence}"
                );
            }
            Subject::Audit { .. } => self.record(sequence, &decode::<Signed<Record>>(payload)?.peek()?),
            _ => {}
        }
        Ok(())
    }

    fn record(&mut self, sequence: u64, record: &Record) {
        let public = Label::bottom();
        match &record.body {
            RecordBody::Verdict(verdicted) if verdicted.decision == RecordedDecision::Allow => {
                let Some(domain) = &verdicted.who.domain else { return };
                self.domains.insert(record.id.clone(), domain.clone());
                let resource = verdicted.what.resource.as_ref().map(Resource::as_str);
                if resource != Some("tool.mail") {
                    return;
                }
                self.letters += 1;
                let label = self.labels.get(domain).cloned().unwrap_or_else(Label::top);
                if !label.confidentiality.flows_to(&public.confidentiality) {
                    let text = format!("a letter of {domain} at {sequence}, under {label:?}");
                    self.leaks.insert(record.id.clone(), text);
                }
            }
            RecordBody::Void(_) => drop(self.leaks.remove(&record.id)),
            RecordBody::Outcome(outcome) => {
                let (Some(carried), Some(domain)) = (&outcome.label, self.domains.get(&outcome.intent))
                else {
                    return;
                };
                if !carried.confidentiality.flows_to(&public.confidentiality) {
                    self.reads.insert(domain.clone());
                }
                let label = self.labels.get(domain).cloned().unwrap_or_else(Label::top);
                if !carried.flows_to(&label) {
                    self.early
                        .push(format!("a result of {domain} at {sequence}: {carried:?} under {label:?}"));
                }
            }
            RecordBody::Verdict(_) => {}
        }
    }
}

/// Every pair has its answers, both kinds of answer were given, and the stream holds no violation.
async fn race(world: &mut World, pairs: usize, disturb: bool) -> Result<()> {
    let planner = world.agent("planner").await?;
    let token = world.tokens.token_for("alice")?;
    let (room, done) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(AtomicUsize::new(0)));
    let mut running = JoinSet::new();
    for number in 0..pairs {
        let (planner, token) = (planner.clone(), token.clone());
        let (room, done) = (Arc::clone(&room), Arc::clone(&done));
        running.spawn(async move {
            let _room = room.acquire().await?;
            let said = Box::pin(pair(planner, token, number)).await;
            done.fetch_add(1, Ordering::Relaxed);
            said
        });
    }
    let mut answers: [BTreeMap<Said, usize>; 3] = Default::default();
    let mut told_after = 0;
    let counting = async {
        while let Some(said) = running.join_next().await {
            let said = said??;
            told_after += usize::from(said[0] == Said::Done && said[2] == Said::Done);
            for (answers, said) in answers.iter_mut().zip(said) {
                *answers.entry(said).or_default() += 1;
            }
        }
        anyhow::Ok(())
    };
    if disturb {
        let (counted, disturbed) = tokio::join!(counting, disturbances(world, &done, pairs));
        counted?;
        disturbed?;
    } else {
        counting.await?;
    }
    let replay = Replay::of(world).await?;
    assert!(replay.leaks.is_empty(), "{} of {}: {:?}", replay.leaks.len(), replay.letters, replay.leaks);
    assert!(replay.early.is_empty(), "{}: {:?}", replay.early.len(), replay.early);
    let [_, telling, after] = &answers;
    let of = |answers: &BTreeMap<Said, usize>, said| answers.get(&said).copied().unwrap_or(0);
    assert!(of(telling, Said::Done) > 0, "no letter was written: {answers:?}");
    assert!(of(telling, Said::Sink) + of(after, Said::Sink) > 0, "no letter was refused: {answers:?}");
    if !disturb {
        // On a machine that has no time for the node, what it knows gets too old. Nothing else keeps it from deciding.
        let is_decided = |said: &Said| !matches!(said, Said::Undecided(code) if *code != "state.stale");
        assert!(answers.iter().flat_map(BTreeMap::keys).all(is_decided), "{answers:?}");
    }
    assert_eq!(told_after, 0, "whoever has read writes no letter any more");
    // What was looked at is what happened: letters and reads of this very run.
    assert!(replay.letters >= of(telling, Said::Done) && !replay.reads.is_empty());
    Ok(())
}

/// The leader of the stream is killed and started again, and the next one is paused, each with calls under way.
async fn disturbances(world: &mut World, done: &AtomicUsize, pairs: usize) -> Result<()> {
    let reached = async |part: usize| {
        while done.load(Ordering::Relaxed) < pairs * part / 8 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    reached(1).await;
    let first = the_leader(world).await?;
    world.server(first).context("the leader")?.signal(Signal::KILL)?;
    reached(2).await;
    world.restart_server(first)?;
    whole(world).await?;
    reached(4).await;
    let second = the_leader(world).await?;
    world.server(second).context("the leader")?.signal(Signal::STOP)?;
    sleep(Duration::from_secs(6)).await;
    world.server(second).context("the leader")?.signal(Signal::CONT)?;
    whole(world).await
}

async fn the_leader(world: &World) -> Result<usize> {
    let operator = world.operator().await?;
    let mut found = None;
    eventually("the stream has a leader", async || {
        found = leader(&operator).await?;
        Ok(found.is_some())
    })
    .await?;
    operator.close().await;
    found.context("a leader")
}

async fn whole(world: &World) -> Result<()> {
    let operator = world.operator().await?;
    eventually("all three servers have everything", async || is_whole(&operator, 3).await).await?;
    operator.close().await;
    Ok(())
}

fn options(servers: usize) -> WorldOptions {
    WorldOptions { servers, nodes: vec!["node-1", "node-2"], edit: Some(racing), ..Default::default() }
}

/// F11: the label is raised and relied on by two nodes at the same moment.
#[test]
fn f11_fence_no_letter_is_let_through_under_a_label_that_moved() -> Result<()> {
    run(async {
        let mut world = World::with(options(1)).await?;
        race(&mut world, pairs()?, false).await?;
        world.close().await;
        Ok(())
    })
}

/// The same on three servers, whose leader is killed and paused meanwhile.
#[test]
fn f11_fence_three_servers_lose_their_leader_and_let_nothing_through() -> Result<()> {
    run(async {
        let mut world = World::with(options(3)).await?;
        whole(&world).await?;
        race(&mut world, pairs()?, true).await?;
        world.close().await;
        Ok(())
    })
}
