//! Killed, paused, full, restored: what is acknowledged stays, what is unknown is said to be, nothing runs twice.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::Result;
use rustix::process::Signal;
use writ_common::{
    control::RevocationTarget,
    reason::ReasonCode,
    record::{DecisionId, Origin, OutcomeStatus, RecordKind},
    wire::{AdminReply, AdminWanted},
};
use writ_sdk::{Error, NewTask, Task, json};
use writ_tests::{
    Answered, KIND, RawCall, Seen, World, WorldOptions, WritProcess, eventually, letter, read, run,
};

use crate::WRIT;

/// Takes seconds and is nothing but a read.
const SLOW: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 60000000) SELECT max(x) FROM c";

pub(crate) fn node(world: &World, name: &str) -> Result<WritProcess> {
    let config = format!("{name}.toml");
    WritProcess::start(WRIT, &["node", "--config", &config], &world.state(), &format!("{name}.log"))
}

pub(crate) fn broker(world: &World) -> Result<WritProcess> {
    WritProcess::start(WRIT, &["broker", "--config", "broker.toml"], &world.state(), "broker.log")
}

/// A set-up whose nodes are processes of their own.
async fn processes(nodes: Vec<&'static str>) -> Result<(World, Vec<WritProcess>)> {
    let mut world =
        World::with(WorldOptions { nodes: nodes.clone(), start_core: false, ..Default::default() }).await?;
    world.start_broker().await?;
    let started = nodes.iter().map(|name| node(&world, name)).collect::<Result<_>>()?;
    world.enroll_missing().await?;
    Ok((world, started))
}

async fn until_served(task: &Task) -> Result<()> {
    eventually("a node serves", async || Ok(read(task, "SELECT 1").await.is_ok())).await
}

pub(crate) async fn until_broker_answers(world: &World) -> Result<()> {
    eventually("the broker answers", async || match world.operator().await {
        Ok(operator) => Ok(operator.ask(AdminWanted::Agents).await.is_ok()),
        Err(_) => Ok(false),
    })
    .await
}

#[test]
fn t02_a_replay_to_the_second_node_is_refused_also_after_kill_9_of_the_first() -> Result<()> {
    run(async {
        let (world, nodes) = processes(vec!["node-1", "node-2"]).await?;
        let (planner, task) = world.task().await?;
        until_served(&task).await?;
        let bus = world.bus_of("planner").await?;
        let capability = task.capability().await?;
        let mut calls = Vec::new();
        let mut nodes = nodes.into_iter();
        let (first, _second) = (nodes.next().unwrap(), nodes.next().unwrap());
        for _ in 0..8 {
            let arguments = json::object([("sql", "SELECT name FROM customers".into())]);
            let call = RawCall::new(&planner, &capability, "tool.crm", "read", arguments)?;
            // A node may still be starting.
            eventually("the call is answered", async || {
                Ok(matches!(call.send(&bus).await?, Answered::Done(_) | Answered::Replayed(_)))
            })
            .await?;
            calls.push(call);
        }
        let done = Seen::read(&world, Some(task.id())).await?.count(RecordKind::Outcome);
        first.kill()?;
        for call in &calls {
            eventually("the other node answers", async || match call.send(&bus).await {
                Ok(Answered::Replayed(_)) => Ok(true),
                // It may have just started, and not heard from the broker yet.
                Ok(Answered::Denied(ReasonCode::StateStale)) => Ok(false),
                Ok(other) => panic!("{other:?}"),
                // The server may still hand calls to the dead one.
                Err(_) => Ok(false),
            })
            .await?;
        }
        let seen = Seen::read(&world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), done, "nothing ran again");
        let served: std::collections::BTreeSet<String> =
            seen.verdicts().map(|(record, _)| record.id.origin.name().to_owned()).collect();
        assert!(served.contains("node-2"), "{served:?}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a18_a_node_killed_between_intent_and_outcome_says_unknown_and_never_runs_it_again() -> Result<()> {
    run(async {
        let (world, nodes) = processes(vec!["node-1"]).await?;
        let (planner, task) = world.task().await?;
        until_served(&task).await?;
        let bus = world.bus_of("planner").await?;
        let arguments = json::object([("sql", SLOW.into())]);
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", arguments)?;
        let sending = tokio::spawn({
            let (call, bus) = (call.clone(), bus.clone());
            async move { call.send(&bus).await }
        });
        eventually("the intent is on record", async || {
            let seen = Seen::read(&world, Some(task.id())).await?;
            Ok(seen.verdicts().any(|(_, one)| one.what.call_id == Some(call.id())))
        })
        .await?;
        for node in nodes {
            node.kill()?;
        }
        sending.abort();
        let _again = node(&world, "node-1")?;
        eventually("the outcome is on record", async || {
            let seen = Seen::read(&world, Some(task.id())).await?;
            Ok(seen.outcomes().any(|outcome| outcome.call_id == call.id()))
        })
        .await?;
        until_served(&task).await?;
        let answer = call.send(&bus).await?;
        assert!(matches!(answer, Answered::Replayed(_)), "{answer:?}");
        let seen = Seen::read(&world, None).await?;
        let outcomes: Vec<_> = seen.outcomes().filter(|outcome| outcome.call_id == call.id()).collect();
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0].status, OutcomeStatus::UnknownOutcome);
        assert_eq!(seen.missing(), 0, "recovery fills the holes of the dead run");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_node_killed_under_load_loses_no_record_and_acts_at_most_once() -> Result<()> {
    run(async {
        let (world, nodes) = processes(vec!["node-1"]).await?;
        let (_planner, task) = world.task().await?;
        until_served(&task).await?;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..40 {
            let task = task.clone();
            calls.spawn(async move {
                tokio::time::sleep(Duration::from_millis(number * 10)).await;
                read(&task, &format!("SELECT {number}")).await
            });
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        for node in nodes {
            node.kill()?;
        }
        let _again = node(&world, "node-1")?;
        let mut answered = 0;
        while let Some(result) = calls.join_next().await {
            match result? {
                Ok(_) => answered += 1,
                // What was under way when the node died: made, and its end not known, or given up.
                Err(
                    Error::Replayed { .. } | Error::TimedOut | Error::NoNode(_) | Error::CouldNotDecide(_),
                ) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert!(answered > 0);
        until_served(&task).await?;
        eventually("recovery is done", async || {
            let seen = Seen::read(&world, None).await?;
            let allowed: Vec<_> = seen
                .verdicts()
                .filter(|(record, one)| {
                    record.kind() == RecordKind::Allow
                        && matches!(record.id.origin, Origin::Node(_))
                        && one.what.call_id.is_some()
                })
                .map(|(record, _)| record.id.clone())
                .collect();
            let ended = |id: &DecisionId| seen.outcomes().filter(|outcome| outcome.intent == *id).count();
            assert!(allowed.iter().all(|id| ended(id) <= 1), "one end at most");
            Ok(seen.missing() == 0 && allowed.iter().all(|id| ended(id) == 1))
        })
        .await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_broker_killed_at_any_time_knows_every_task_it_answered_for() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let mut process = broker(&world)?;
        until_broker_answers(&world).await?;
        world.enroll_missing().await?;
        let planner = world.agent("planner").await?;
        let mut acknowledged = Vec::new();
        for round in 0..2 {
            let mut starting = tokio::task::JoinSet::new();
            for number in 0..12 {
                let (planner, token) = (planner.clone(), world.tokens.token_for("alice")?);
                let key = format!("{round}-{number}");
                starting.spawn(async move {
                    let new = NewTask::new(KIND, token, "kill").idempotency_key(key.clone());
                    (key, planner.start_task(new).await.map(|task| task.id().clone()))
                });
            }
            tokio::time::sleep(Duration::from_millis(10 + 30 * round)).await;
            process.kill()?;
            process = broker(&world)?;
            until_broker_answers(&world).await.map_err(|error| error.context(process.said()))?;
            while let Some(result) = starting.join_next().await {
                let (key, started) = result?;
                match started {
                    Ok(task) => acknowledged.push((key, task)),
                    // Asked while there was no broker for too long.
                    Err(Error::Bus(_) | Error::TimedOut | Error::CouldNotDecide(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
        assert!(!acknowledged.is_empty());
        until_broker_answers(&world).await?;
        let operator = world.operator().await?;
        for (key, task) in acknowledged {
            let reply = operator.ask(AdminWanted::Task { task: Some(task.clone()) }).await?;
            assert!(matches!(reply, AdminReply::Task(info) if info.task == task));
            let new = NewTask::new(KIND, world.tokens.token_for("alice")?, "kill").idempotency_key(key);
            assert_eq!(*planner.start_task(new).await?.id(), task, "the same key gives the same task");
        }
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        process.kill()?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn r04_a_paused_node_does_not_act_on_what_it_knew() -> Result<()> {
    run(async {
        let (world, nodes) = processes(vec!["node-1"]).await?;
        let (_planner, task) = world.task().await?;
        until_served(&task).await?;
        nodes[0].signal(Signal::STOP)?;
        let calling = tokio::spawn({
            let task = task.clone();
            async move { read(&task, "SELECT 1").await }
        });
        let operator = world.operator().await?;
        operator.revoke(RevocationTarget::Task(task.id().clone()), false).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        nodes[0].signal(Signal::CONT)?;
        // The call was waiting in the server: the node hears of both at once. Whatever it decides first, the
        // record says at which state.
        let result = calling.await?;
        eventually("the node has heard", async || {
            Ok(read(&task, "SELECT 1").await.err().and_then(|e| e.code()) == Some(ReasonCode::RevokedTask))
        })
        .await?;
        if let Err(error) = result {
            assert!(
                matches!(error.code(), Some(ReasonCode::RevokedTask | ReasonCode::StateStale)),
                "{error}"
            );
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn r07_r12_a_restored_backup_of_the_streams_is_refused_by_broker_and_node() -> Result<()> {
    run(async {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join(".writ");
        let options = || writ::dev::DevOptions::new(&root);
        let stack = writ::dev::DevStack::start(options()).await?;
        let streams = root.join("nats/jetstream");
        stack.stop().await;
        let backup = folder.path().join("backup");
        copy(&streams, &backup)?;

        let stack = writ::dev::DevStack::start(options()).await?;
        let planner = stack.agent("planner").await?;
        let task = planner.start_task(NewTask::new(KIND, stack.tokens.token_for("alice")?, "")).await?;
        stack.operator().await?.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        // The node looks at its streams every few seconds.
        tokio::time::sleep(Duration::from_secs(6)).await;
        planner.close().await;
        stack.stop().await;

        fs::remove_dir_all(&streams)?;
        copy(&backup, &streams)?;
        let mut quiet = options();
        quiet.start_core = false;
        let mut stack = writ::dev::DevStack::start(quiet).await?;
        let error = format!("{:#}", stack.start_broker().await.unwrap_err());
        assert!(error.contains("state.rollback") && error.contains("deploy/README.md"), "{error}");
        // Told to trust what is there, the broker goes on; the node has its own memory.
        let _broker =
            WritProcess::start(WRIT, &["broker", "--config", "broker.toml", "--rebuild"], &root, "b.log")?;
        eventually("the broker answers", async || Ok(stack.agent("planner").await.is_ok())).await?;
        let planner = stack.agent("planner").await?;
        let one = WritProcess::start(WRIT, &["node", "--config", "node-1.toml"], &root, "n.log")?;
        let task = planner.start_task(NewTask::new(KIND, stack.tokens.token_for("alice")?, "")).await?;
        let mut last = None;
        for _ in 0..50 {
            last = read(&task, "SELECT 1").await.unwrap_err().code();
            if last == Some(ReasonCode::StateRollback) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(last, Some(ReasonCode::StateRollback), "{}", one.said());
        one.kill()?;
        let arguments = ["node", "--config", "node-1.toml", "--accept-streams"];
        let _again = WritProcess::start(WRIT, &arguments, &root, "n.log")?;
        until_served(&task).await?;
        Ok(())
    })
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    anyhow::ensure!(copied.success(), "cp -a {} {}", from.display(), to.display());
    Ok(())
}

#[test]
fn k09_the_same_state_is_not_used_by_two_processes() -> Result<()> {
    run(async {
        let (world, _nodes) = processes(vec!["node-1"]).await?;
        let (_planner, task) = world.task().await?;
        until_served(&task).await?;
        let mut second =
            WritProcess::start(WRIT, &["node", "--config", "node-1.toml"], &world.state(), "2.log")?;
        assert_eq!(second.wait()?, 1);
        assert!(second.said().contains("another process"), "{}", second.said());
        let mut second =
            WritProcess::start(WRIT, &["broker", "--config", "broker.toml"], &world.state(), "3.log")?;
        assert_eq!(second.wait()?, 1);
        assert!(second.said().contains("another process"), "{}", second.said());
        read(&task, "SELECT 1").await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn b09_without_a_stream_nothing_runs_and_it_recovers() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        let mailbox = world.drafts()?;
        world.nats.signal(Signal::STOP)?;
        let calling = tokio::spawn({
            let task = task.clone();
            async move { task.call("tool.mail", "draft", letter()).await }
        });
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(world.drafts()?, mailbox);
        world.nats.signal(Signal::CONT)?;
        // The planner may not draft: what matters is that there is an answer and a record, once the bus is back.
        assert!(calling.await?.is_err());
        eventually("the node goes on", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_full_stream_stops_actions_and_still_takes_denials() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        World::edit(&world.layout.broker_config(), "[stream]\n", "[stream]\nmebibytes_max = 1\n")?;
        world.start_broker().await?;
        world.start_node("node-1").await?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        let mut refused = None;
        for _ in 0..2_000 {
            if let Err(error) = read(&task, "SELECT 1").await {
                refused = error.code();
                break;
            }
        }
        assert_eq!(refused, Some(ReasonCode::AuditFull));
        let error = read(&task, "DELETE FROM customers").await.unwrap_err();
        assert!(matches!(error.code(), Some(ReasonCode::SqlNotReadOnly | ReasonCode::AuditFull)), "{error}");
        let seen = Seen::read(&world, None).await?;
        assert_eq!(seen.missing(), 0, "the refusals are on record");
        assert!(seen.codes().contains(&ReasonCode::AuditFull));
        world.close().await;
        Ok(())
    })
}
