//! Calls that people have to approve: asked once, answered by those who may, done once.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use writ::{
    dev::{
        Layout,
        nats_server::{self, NatsServer},
    },
    operator::Operator,
};
use writ_bus::{Fence, Store, SystemClock, SystemEntropy};
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision, WAITING_PER_TASK_MAX},
    codec::encode,
    control::RevocationTarget,
    entropy::draw,
    ids::{ApprovalId, OperatorId, PartId},
    keys::PrivateKey,
    reason::ReasonCode,
    record::RecordKind,
    signed::Signed,
    subjects::Subject,
    time::Millis,
};
use writ_sdk::{Error, Held, Task, Value, json};
use writ_tests::{
    Answered, RawCall, Seen, World, WorldOptions, WritProcess, eventually, letter, only, read, run,
};

use crate::{
    WRIT,
    cli::writ,
    faults::{copy, node},
    health::until_sample,
};

/// The mailer with a task of alice's, handed on from planner to researcher to it.
async fn mailer(world: &World) -> Result<Task> {
    let (_planner, task) = world.task().await?;
    let (researcher, mailer) = (world.agent("researcher").await?, world.agent("mailer").await?);
    let rights = || only(["tool.mail:draft", "tool.mail:send", "tool.crm:read"]);
    let first = task.delegate("researcher", rights()?).await?.capability().await?;
    let second = Task::resume(&researcher, first)?.delegate("mailer", rights()?).await?.capability().await?;
    Ok(Task::resume(&mailer, second)?)
}

async fn send(task: &Task) -> Result<Held> {
    match task.call("tool.mail", "send", letter()).await {
        Err(Error::Held(held)) => Ok(*held),
        other => anyhow::bail!("not held: {other:?}"),
    }
}

async fn answer(world: &World, who: &str, held: &Held, decision: ApprovalDecision) -> Result<()> {
    answer_for(world, who, &held.approval, decision, Millis::from_secs(600)).await
}

pub(crate) async fn answer_for(
    world: &World,
    who: &str,
    id: &ApprovalId,
    decision: ApprovalDecision,
    life: Millis,
) -> Result<()> {
    let approver = world.approver(who).await?;
    let approvals = approver.approvals().await?;
    let approval = approvals.get(id).context("the request is in the stream")?;
    let expires = SystemClock::new().now().wall.after(life);
    approver.answer_approval(approval, decision, "as discussed", expires).await?;
    approver.close().await;
    Ok(())
}

fn outbox(world: &World) -> Result<usize> {
    let folder = world.layout.outbox().join("new");
    Ok(if folder.exists() { std::fs::read_dir(folder)?.count() } else { 0 })
}

async fn wait(task: &Task, held: &Held) -> Result<Value, Error> {
    task.wait_for_approval(held.clone(), Duration::from_secs(20)).await
}

/// Asks how a hold stands until the answer is on its way through, and returns why an answer does not count.
async fn unusable(task: &Task, held: &Held) -> Result<ReasonCode> {
    for _ in 0..50 {
        match task.proceed(held).await {
            Err(Error::Held(held)) if held.unusable.is_empty() => {}
            Err(Error::Held(held)) => return Ok(held.unusable[0].code),
            other => anyhow::bail!("not held: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("every answer counts")
}

#[test]
fn a14_a_mail_waits_for_bob_and_is_sent_once() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        assert_eq!(outbox(&world)?, 0);
        assert_eq!(held.missing[0].to_string(), "1 approval by `mail-approver`");
        // Asking how it stands is no second request, and no second record.
        assert!(matches!(task.proceed(&held).await, Err(Error::Held(_))));
        assert_eq!(Seen::read(&world, Some(task.id())).await?.count(RecordKind::Hold), 1);
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        // It can be written down and taken up again.
        let held = Held::from_bytes(&held.to_bytes())?;
        let sent = wait(&task, &held).await?;
        assert!(sent.get("sent").is_some(), "{sent}");
        assert_eq!(outbox(&world)?, 1);
        let again = task.proceed(&held).await.unwrap_err();
        assert!(matches!(again, Error::Replayed { .. }), "{again}");
        assert_eq!(outbox(&world)?, 1);
        let seen = Seen::read(&world, Some(task.id())).await?;
        let approval =
            seen.verdicts().filter_map(|(_, one)| one.approval.as_deref()).find(|one| !one.by.is_empty());
        let approval = approval.context("the record says who approved")?;
        assert_eq!((approval.id.clone(), approval.by[0].as_str()), (held.approval.clone(), "bob"));
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        let node = world.node_http("node-1").context("node")?;
        until_sample(node, "writ_approval_wait_seconds_count", 1.0).await?;
        until_sample(node, "writ_approvals_unanswered_total", 0.0).await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn h01_an_approval_is_used_up_by_one_call() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        wait(&task, &held).await?;
        let before = outbox(&world)?;
        let bus = world.bus_of("mailer").await?;
        let capability = task.capability().await?;
        let another = RawCall::new(task.agent(), &capability, "tool.mail", "send", letter())?;
        let answered = another.under(&held.approval).send(&bus).await?;
        assert_eq!(answered, Answered::Denied(ReasonCode::ApprovalConsumed));
        assert_eq!(outbox(&world)?, before);
        world.close().await;
        Ok(())
    })
}

#[test]
fn h02_an_approval_is_for_exactly_what_was_shown() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        let bus = world.bus_of("mailer").await?;
        let capability = task.capability().await?;
        let arguments = json::object([
            ("to", json::list(["eve@example.com"])),
            ("subject", "Your order".into()),
            ("body", "On its way.".into()),
        ]);
        let before = outbox(&world)?;
        let other = RawCall::new(task.agent(), &capability, "tool.mail", "send", arguments)?;
        let answered = other.under(&held.approval).send(&bus).await?;
        assert_eq!(answered, Answered::Denied(ReasonCode::ApprovalBinding));
        // The same letter, in another task of the same user through the same agents.
        let second = mailer(&world).await?;
        let capability = second.capability().await?;
        let other = RawCall::new(second.agent(), &capability, "tool.mail", "send", letter())?;
        let answered = other.under(&held.approval).send(&bus).await?;
        assert_eq!(answered, Answered::Denied(ReasonCode::ApprovalBinding));
        assert_eq!(outbox(&world)?, before);
        let unknown = RawCall::new(task.agent(), &task.capability().await?, "tool.mail", "send", letter())?;
        let answered = unknown.under(&ApprovalId::parse("ap-none")?).send(&bus).await?;
        assert_eq!(answered, Answered::Denied(ReasonCode::ApprovalUnknown));
        world.close().await;
        Ok(())
    })
}

/// In this world bob is alice by another name, and two people have to say yes.
fn bob_is_alice(layout: &Layout) -> Result<()> {
    World::edit(
        &layout.policies().join("approvers.toml"),
        "users = [\"bob\"]",
        "users = [\"bob\", \"alice\"]",
    )
}

#[test]
fn h03_nobody_approves_what_is_done_on_their_own_authority() -> Result<()> {
    run(async {
        let world = World::with(WorldOptions { edit: Some(bob_is_alice), ..Default::default() }).await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        assert_eq!(unusable(&task, &held).await?, ReasonCode::ApprovalSelf);
        assert_eq!(outbox(&world)?, 0);
        answer(&world, "carol", &held, ApprovalDecision::Granted).await?;
        wait(&task, &held).await?;
        assert_eq!(outbox(&world)?, 1);
        world.close().await;
        Ok(())
    })
}

fn two_people(layout: &Layout) -> Result<()> {
    let rules = layout.policies().join("planes/20-action.datalog");
    World::edit(&rules, "needs_approval(\"mail-approver\", 1)", "needs_approval(\"mail-approver\", 2)")
}

#[test]
fn h04_the_role_counts_when_the_approval_is_used() -> Result<()> {
    run(async {
        let world = World::with(WorldOptions { edit: Some(two_people), ..Default::default() }).await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        // Bob's own second answer is no second person.
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        assert!(matches!(task.proceed(&held).await, Err(Error::Held(_))));
        // Carol joins, and bob leaves: his yes is worth nothing any more.
        let approvers = world.layout.policies().join("approvers.toml");
        let third = "\n[[approver]]\nname = \"dave\"\nroles = [\"mail-approver\"]\nusers = [\"dave\"]\n";
        let text = std::fs::read_to_string(&approvers)?.replacen("mail-approver", "visitor", 1) + third;
        std::fs::write(&approvers, text)?;
        let changed = writ(&world, &["policy", "activate", ".writ/policies", "--no-test"]).await?;
        assert_eq!(changed.code, 0, "{}", changed.err);
        answer(&world, "carol", &held, ApprovalDecision::Granted).await?;
        assert_eq!(unusable(&task, &held).await?, ReasonCode::ApprovalRole);
        assert_eq!(outbox(&world)?, 0);
        world.close().await;
        Ok(())
    })
}

fn short(layout: &Layout) -> Result<()> {
    World::edit(
        &layout.policies().join("planes/20-action.datalog"),
        "approval_seconds(900)",
        "approval_seconds(3)",
    )
}

#[test]
fn h05_requests_and_answers_end() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer_for(&world, "bob", &held.approval, ApprovalDecision::Granted, Millis(1)).await?;
        assert_eq!(unusable(&task, &held).await?, ReasonCode::ApprovalExpired);
        world.close().await;
        let world = World::with(WorldOptions { edit: Some(short), ..Default::default() }).await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        // A second one nobody answers.
        let unanswered = mailer(&world).await?;
        send(&unanswered).await?;
        tokio::time::sleep(Duration::from_millis(3_200)).await;
        let node = world.node_http("node-1").context("node")?;
        until_sample(node, "writ_approvals_unanswered_total", 1.0).await?;
        until_sample(node, "writ_approval_wait_seconds_count", 1.0).await?;
        assert_eq!(task.proceed(&held).await.unwrap_err().code(), Some(ReasonCode::ApprovalExpired));
        assert_eq!(outbox(&world)?, 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_refusal_is_final_and_says_why() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let task = mailer(world).await?;
        let held = send(&task).await?;
        answer(world, "carol", &held, ApprovalDecision::Refused).await?;
        let error = wait(&task, &held).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ApprovalRefused));
        assert!(error.to_string().contains("`carol`: as discussed"), "{error}");
        Ok(())
    })
}

#[test]
fn h09_two_nodes_and_one_approval_make_one_mail() -> Result<()> {
    run(async {
        let world =
            World::with(WorldOptions { nodes: vec!["node-1", "node-2"], ..Default::default() }).await?;
        let task = mailer(&world).await?;
        let bus = world.bus_of("mailer").await?;
        for round in 1..=5 {
            let held = send(&task).await?;
            answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
            let capability = task.capability().await?;
            // Both nodes have heard of the answer, and nobody has claimed yet.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let calls = (0..6).map(|_| {
                let call = RawCall::new(task.agent(), &capability, "tool.mail", "send", letter());
                let (bus, approval) = (bus.clone(), held.approval.clone());
                tokio::spawn(async move { call?.under(&approval).send(&bus).await })
            });
            let mut done = 0;
            for call in calls.collect::<Vec<_>>() {
                match call.await?? {
                    Answered::Done(_) => done += 1,
                    Answered::Denied(ReasonCode::ApprovalConsumed) => {}
                    other => anyhow::bail!("{other:?}"),
                }
            }
            assert_eq!((done, outbox(&world)?), (1, round));
        }
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        world.close().await;
        Ok(())
    })
}

#[test]
fn h10_people_are_not_asked_without_end() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        for _ in 0..WAITING_PER_TASK_MAX {
            send(&task).await?;
        }
        let error = task.call("tool.mail", "send", letter()).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::ApprovalQuota));
        world.close().await;
        Ok(())
    })
}

/// Publishes an answer signed by any key, over an approver's connection.
async fn forge(by: &Operator, held: &Held, name: &str, key: &PrivateKey) -> Result<bool> {
    let approvals = by.approvals().await?;
    let approval = approvals.get(&held.approval).context("the request is there")?;
    let now = SystemClock::new().now().wall;
    let approver = OperatorId::parse(name)?;
    let forged = ApprovalAnswer {
        tenant: by.tenant().clone(),
        approval: held.approval.clone(),
        request: approval.digest(),
        approver: approver.clone(),
        at: now,
        expires: now.after(Millis::from_secs(60)),
        decision: ApprovalDecision::Granted,
        comment: String::new(),
    };
    let subject =
        Subject::ApprovalAnswer { part: PartId::first(), approval: held.approval.clone(), approver };
    let store = Store {
        subject: subject.of(by.tenant()),
        payload: encode(&Signed::new(&forged, key)),
        message_id: None,
        fence: Fence::None,
        ttl_secs: None,
    };
    Ok(by.bus().store(&store, Duration::from_secs(2)).await.is_ok())
}

#[test]
fn h11_an_answer_counts_by_the_key_of_the_approver() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        let stranger = PrivateKey::from_seed(&draw(&mut SystemEntropy));
        let carol = world.approver("carol").await?;
        // The server keeps everybody to their own name, and agents off altogether.
        assert!(!forge(&carol, &held, "bob", &stranger).await?);
        let agent = world.bus_of("mailer").await?;
        let subject = format!("writ.v1.acme.approval.p0.{}.answer.bob", held.approval);
        assert!(agent.request(subject, Vec::new(), None, Duration::from_millis(500)).await.is_err());
        assert!(forge(&carol, &held, "carol", &stranger).await?);
        assert_eq!(unusable(&task, &held).await?, ReasonCode::ApprovalSignature);
        assert_eq!(outbox(&world)?, 0);
        carol.close().await;
        world.close().await;
        Ok(())
    })
}

#[test]
fn h12_without_the_stream_nobody_is_asked_and_nothing_is_sent() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        world.nats.signal(Signal::STOP)?;
        let calling = tokio::spawn({
            let (task, held) = (task.clone(), held.clone());
            async move { task.wait_for_approval(held, Duration::from_secs(30)).await }
        });
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(outbox(&world)?, 0);
        world.nats.signal(Signal::CONT)?;
        calling.await??;
        assert_eq!(outbox(&world)?, 1);
        world.close().await;
        Ok(())
    })
}

fn everybody_mails_briefly(layout: &Layout) -> Result<()> {
    let rules = layout.policies().join("planes/20-action.datalog");
    World::edit(&rules, "$agent !== \"mailer\"", "$agent === \"researcher\"")?;
    let identity = layout.policies().join("planes/10-identity.datalog");
    World::edit(
        &identity,
        "capability_seconds(300) <- request(\"issue\")",
        "capability_seconds(3) <- request(\"issue\")",
    )
}

#[test]
fn an_approval_that_comes_after_the_capability_ended_is_used_with_a_renewed_one() -> Result<()> {
    run(async {
        let edit: fn(&Layout) -> Result<()> = everybody_mails_briefly;
        let world = World::with(WorldOptions { edit: Some(edit), ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        let held = send(&task).await?;
        let first = task.capability().await?;
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert!(first.expires() < SystemClock::new().now().wall);
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        wait(&task, &held).await?;
        assert_eq!(outbox(&world)?, 1);
        world.close().await;
        Ok(())
    })
}

#[test]
fn r04_a_task_that_is_halted_while_it_waits_sends_nothing() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        let operator = world.operator().await?;
        operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        operator.close().await;
        assert_eq!(task.proceed(&held).await.unwrap_err().code(), Some(ReasonCode::RevokedTask));
        assert_eq!(outbox(&world)?, 0);
        world.close().await;
        Ok(())
    })
}

/// H07: nodes and broker are killed at every step of an approval; at most one mail, and in the end one.
#[test]
fn h07_an_approval_outlives_kills_and_is_used_once() -> Result<()> {
    run(async {
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let root = world.state();
        let node = |log: &str| WritProcess::start(WRIT, &["node", "--config", "node-1.toml"], &root, log);
        let broker = |log: &str| WritProcess::start(WRIT, &["broker", "--config", "broker.toml"], &root, log);
        let (mut one, mut two) = (node("n.log")?, broker("b.log")?);
        eventually("agents are enrolled", async || Ok(world.enroll_missing().await.is_ok())).await?;
        let mut sent = 0;
        for round in 0..6u64 {
            let task = mailer(&world).await?;
            eventually("the node serves", async || {
                Ok(read(&task, "SELECT 1").await.is_err_and(|e| e.code() == Some(ReasonCode::PolicyDenied))
                    || read(&task, "SELECT 1").await.is_ok())
            })
            .await?;
            let held = send(&task).await?;
            one.kill()?;
            one = node("n.log")?;
            two.kill()?;
            two = broker("b.log")?;
            answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
            // Killed at some point between the claim, the intent, the use and the mail.
            let calling = tokio::spawn({
                let (task, held) = (task.clone(), held.clone());
                async move { task.wait_for_approval(held, Duration::from_secs(60)).await }
            });
            eventually("the claim is made", async || {
                let operator = world.approver("bob").await?;
                let approvals = operator.approvals().await?;
                operator.close().await;
                Ok(approvals.get(&held.approval).is_some_and(|one| one.claim().is_some()))
            })
            .await?;
            tokio::time::sleep(Duration::from_millis(2 * round)).await;
            one.kill()?;
            one = node("n.log")?;
            let result = calling.await?;
            let now = outbox(&world)?;
            assert!(now - sent <= 1, "round {round}: {} mails under one approval", now - sent);
            match result {
                // It ran before the kill, or after it.
                Ok(_) | Err(Error::Replayed { .. } | Error::TimedOut) => {}
                Err(error) if error.code() == Some(ReasonCode::ApprovalConsumed) => {}
                Err(other) => anyhow::bail!("round {round}: {other}"),
            }
            sent = now;
        }
        assert!(sent >= 1, "nothing was ever sent");
        drop((one, two));
        world.close().await;
        Ok(())
    })
}

/// H08: approvals live in the stream, so going back to a backup of it would make a used one unused. Whoever has seen
/// more of the stream than there is refuses everything.
#[test]
fn h08_a_used_approval_is_not_unused_by_a_restored_backup() -> Result<()> {
    run(async {
        let mut world = World::new().await?;
        let task = mailer(&world).await?;
        let held = send(&task).await?;
        answer(&world, "bob", &held, ApprovalDecision::Granted).await?;
        let (streams, backup) = (world.state().join("nats/jetstream"), world.folder().join("backup"));
        let binary = nats_server::find()?;
        let (config, port) = (world.state().join("nats/server.conf"), world.nats.port());
        let server = async || {
            let mut started = None;
            eventually("the port is free again", async || {
                started = NatsServer::start(&binary, &config, port).ok();
                Ok(started.is_some())
            })
            .await?;
            started.context("a server")
        };
        world.stop_node("node-1").await;
        world.stop_broker().await;
        world.nats.signal(Signal::TERM)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        copy(&streams, &backup)?;

        let first = server().await?;
        world.start_broker().await?;
        world.start_node("node-1").await?;
        eventually("the mail is sent", async || {
            drop(task.proceed(&held).await);
            Ok(outbox(&world)? == 1)
        })
        .await?;
        // The node looks at its streams every few seconds.
        tokio::time::sleep(Duration::from_secs(6)).await;
        world.stop_node("node-1").await;
        world.stop_broker().await;
        first.signal(Signal::TERM)?;
        drop(first);
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::remove_dir_all(&streams)?;
        copy(&backup, &streams)?;

        let second = server().await?;
        let refused = format!("{:#}", world.start_broker().await.unwrap_err());
        assert!(refused.contains("state.rollback"), "{refused}");
        let _node = node(&world, "node-1")?;
        let bus = world.bus_of("mailer").await?;
        let again = RawCall::new(task.agent(), &task.capability().await?, "tool.mail", "send", letter())?;
        let again = again.under(&held.approval);
        let mut last = None;
        for _ in 0..50 {
            last = again.send(&bus).await.ok();
            if last == Some(Answered::Denied(ReasonCode::StateRollback)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(last, Some(Answered::Denied(ReasonCode::StateRollback)));
        assert_eq!(outbox(&world)?, 1);
        world.close().await;
        drop(second);
        Ok(())
    })
}

#[test]
fn approvals_are_listed_shown_and_answered_on_the_command_line() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let empty = writ(&world, &["approval", "list"]).await?;
        assert_eq!((empty.code, empty.out.trim()), (0, "nothing waits for approval"));
        let task = mailer(&world).await?;
        // The subject hides a right-to-left override, the address a Cyrillic letter... were it allowed one.
        let arguments = json::object([
            ("to", json::list(["ada@example.com"])),
            ("subject", "Invoice p\u{200d}df".into()),
            ("body", "Your p\u{0430}ssword".into()),
        ]);
        let held = match task.call("tool.mail", "send", arguments).await {
            Err(Error::Held(held)) => *held,
            other => anyhow::bail!("not held: {other:?}"),
        };
        let id = held.approval.as_str();
        let listed = writ(&world, &["approval", "list"]).await?;
        assert!(listed.out.contains(id) && listed.out.contains("waiting"), "{}", listed.out);
        let shown = writ(&world, &["approval", "show", id]).await?;
        for expected in [
            "would run  tool.mail:send",
            "planner > researcher > mailer",
            "\"ada@example.com\"",
            "Invoice p\\u{200d}df",
            "BEWARE     /subject has characters that are not seen: U+200D",
            "BEWARE     /body `p\u{0430}ssword` mixes alphabets: U+0430",
            "1 approval by `mail-approver`",
        ] {
            assert!(shown.out.contains(expected), "{expected}:\n{}", shown.out);
        }
        assert!(!shown.out.contains('\u{200d}'));
        // An operator is no approver, and nobody answers unseen.
        let refused = writ(&world, &["approval", "grant", id, "--yes"]).await?;
        assert!(refused.code == 1 && refused.err.contains("an operator's profile"), "{}", refused.err);
        let bob = ["--profile", ".writ/bob.toml"];
        let unseen = writ(&world, &["approval", "grant", id, bob[0], bob[1]]).await?;
        assert!(unseen.code == 1 && unseen.err.contains("--yes"), "{}", unseen.err);
        let wrong =
            writ(&world, &["approval", "grant", id, "--yes", "--digest", "00", bob[0], bob[1]]).await?;
        assert!(wrong.code == 2 && wrong.err.contains("digest"), "{}", wrong.err);
        let granted =
            writ(&world, &["approval", "grant", id, "--yes", "--comment", "fine", bob[0], bob[1]]).await?;
        assert_eq!((granted.code, granted.out.trim()), (0, format!("{id} granted by bob").as_str()));
        wait(&task, &held).await?;
        let shown = writ(&world, &["approval", "show", id, "-o", "json"]).await?;
        let shown: serde_json::Value = serde_json::from_str(&shown.out)?;
        assert_eq!(
            (shown["state"].as_str(), shown["answers"][0]["comment"].as_str()),
            (Some("used"), Some("fine"))
        );
        let late = writ(&world, &["approval", "refuse", id, "--yes", bob[0], bob[1]]).await?;
        assert!(late.code == 2 && late.err.contains("is used"), "{}", late.err);
        let none = writ(&world, &["approval", "show", "ap-none"]).await?;
        assert!(none.code == 1 && none.err.contains("writ approval list --all"), "{}", none.err);
        world.close().await;
        Ok(())
    })
}

/// Takes one HTTP request and answers it.
fn one_request(listener: &TcpListener) -> Result<String> {
    let (mut stream, _) = listener.accept()?;
    let (mut text, mut bytes) = (String::new(), [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut bytes)?;
        text.push_str(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()));
        let head_end = text.find("\r\n\r\n");
        let length = text.to_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length: ").and_then(|length| length.trim().parse::<usize>().ok())
        });
        if read == 0 || head_end.zip(length).is_some_and(|(head, body)| text.len() >= head + 4 + body) {
            break;
        }
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")?;
    Ok(text)
}

#[test]
fn a_webhook_is_told_of_a_request() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let arguments = ["approval", "watch", "--once", "--webhook", &url, "--profile", "bob.toml"];
        let mut watching = WritProcess::start(WRIT, &arguments, &world.state(), "watch.log")?;
        let told = tokio::task::spawn_blocking(move || one_request(&listener));
        let task = mailer(&world).await?;
        // It may still be on its way to the stream: whoever follows sees what comes after.
        let mut held = send(&task).await?;
        for _ in 0..3 {
            if told.is_finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            if !told.is_finished() {
                held = send(&task).await?;
            }
        }
        let told = told.await??;
        assert!(told.starts_with("POST /hook") && told.contains("\"resource\":\"tool.mail\""), "{told}");
        assert!(told.contains("ap-"), "{told}");
        assert_eq!(watching.wait()?, 0, "{}", watching.said());
        assert!(watching.said().contains("tool.mail:send"), "{}", watching.said());
        drop(held);
        world.close().await;
        Ok(())
    })
}
