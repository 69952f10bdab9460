//! Capabilities in the wrong hands, and calls made twice.

use anyhow::Result;
use writ_common::{ids::AgentId, reason::ReasonCode, record::RecordKind};
use writ_sdk::{Task, json};
use writ_tests::{Answered, RawCall, Seen, World, WorldOptions, letter, run};

fn select() -> writ_sdk::Value {
    json::object([("sql", "SELECT name FROM customers".into())])
}

/// What was refused did not run, and is on record exactly once.
async fn nothing_ran(world: &World, task: &Task, code: ReasonCode) -> Result<()> {
    let seen = Seen::read(world, Some(task.id())).await?;
    assert_eq!(seen.codes(), [code]);
    assert_eq!(seen.count(RecordKind::Outcome), 0, "nothing was run");
    Ok(())
}

#[test]
fn t01_a_stolen_capability_is_worth_nothing_without_its_key() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let thief = world.agent("mailer").await?;
        let bus = world.bus_of("mailer").await?;
        let call = RawCall::new(&thief, &task.capability().await?, "tool.crm", "read", select())?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        nothing_ran(world, &task, ReasonCode::TokenHolderMismatch).await
    })
}

#[test]
fn t01_k05_a_stolen_holder_key_is_bound_to_its_connection() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("mailer").await?;
        // The thief has capability and key, and only its own connection, which may publish under its own name.
        let mailer = AgentId::parse("mailer")?;
        let holder = &planner.identity().holder;
        let capability = task.capability().await?;
        let call = RawCall::signed_by(holder, &mailer, &capability, "tool.crm", "read", select())?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::AgentMismatch));
        nothing_ran(world, &task, ReasonCode::AgentMismatch).await?;
        let other = RawCall::new(&planner, &capability, "tool.crm", "read", select())?;
        let error = other.send(&bus).await.unwrap_err().to_string();
        assert!(error.contains("allow"), "the server refuses another agent's subject: {error}");
        Ok(())
    })
}

#[test]
fn t02_a_replayed_call_runs_once_whichever_node_gets_it() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", select())?;
        assert!(matches!(call.send(&bus).await?, Answered::Done(_)));
        for _ in 0..12 {
            assert!(matches!(call.send(&bus).await?, Answered::Replayed(_)));
        }
        let seen = Seen::read(world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), 1);
        assert_eq!(seen.codes(), [ReasonCode::RequestReplayed; 12]);
        assert!(seen.refusals().all(|refusal| refusal.what.call_id == Some(call.id())));
        Ok(())
    })
}

#[test]
fn t02_the_same_call_many_times_at_once_runs_once() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", select())?;
        let mut attempts = tokio::task::JoinSet::new();
        for _ in 0..24 {
            let (call, bus) = (call.clone(), bus.clone());
            attempts.spawn(async move { call.send(&bus).await });
        }
        let mut done = 0;
        while let Some(answer) = attempts.join_next().await {
            match answer?? {
                Answered::Done(_) => done += 1,
                Answered::Replayed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(done, 1);
        let seen = Seen::read(world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), 1);
        Ok(())
    })
}

/// A16: an act that is done once is done once, however often it is submitted at the same moment, on whichever node.
#[test]
fn a16_one_letter_submitted_many_times_at_once_is_written_once() -> Result<()> {
    run(async {
        let world =
            World::with(WorldOptions { nodes: vec!["node-1", "node-2"], ..Default::default() }).await?;
        let (_planner, task) = world.task().await?;
        let (researcher, mailer) = (world.agent("researcher").await?, world.agent("mailer").await?);
        let rights = || writ_tests::only(["tool.mail:draft"]);
        let handed = task.delegate("researcher", rights()?).await?.capability().await?;
        let handed = Task::resume(&researcher, handed)?.delegate("mailer", rights()?).await?;
        let bus = world.bus_of("mailer").await?;
        let call = RawCall::new(&mailer, &handed.capability().await?, "tool.mail", "draft", letter())?;
        let attempts = (0..24).map(|_| {
            let (call, bus) = (call.clone(), bus.clone());
            tokio::spawn(async move { call.send(&bus).await })
        });
        let mut done = 0;
        for attempt in attempts.collect::<Vec<_>>() {
            match attempt.await?? {
                Answered::Done(_) => done += 1,
                Answered::Replayed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((done, world.drafts()?), (1, 1));
        let seen = Seen::read(&world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), 1);
        assert_eq!(seen.codes(), [ReasonCode::RequestReplayed; 23]);
        world.close().await;
        Ok(())
    })
}

#[test]
fn t03_a_call_signed_for_one_resource_opens_no_other() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let mut call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", select())?;
        call.resource = writ_common::ids::Resource::parse("tool.mail")?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenAudience));
        nothing_ran(world, &task, ReasonCode::TokenAudience).await?;
        // Changing the message as well breaks the signature.
        call.call.resource = call.resource.clone();
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        Ok(())
    })
}

#[test]
fn t04_unsigned_bytes_do_not_make_a_replay_new() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", select())?;
        assert!(matches!(call.send(&bus).await?, Answered::Done(_)));
        let mut padded = call.clone();
        // An unknown protobuf field, number 15, varint 1.
        padded.call.capability.extend([0x78, 0x01]);
        assert!(!matches!(padded.send(&bus).await?, Answered::Done(_)));
        let seen = Seen::read(world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Outcome), 1);
        Ok(())
    })
}

#[test]
fn t22_a_broader_capability_from_a_message_cannot_be_used() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let handed = task.delegate("researcher", writ_tests::only(["tool.crm:read"])?).await?;
        let own = handed.capability().await?;
        let broader = task.capability().await?;
        let bus = world.bus_of("researcher").await?;
        let call = RawCall::new(&researcher, &own, "tool.crm", "read", select())?;
        assert!(matches!(call.send(&bus).await?, Answered::Done(_)));
        let mut swapped = RawCall::new(&researcher, &broader, "tool.crm", "read", select())?;
        assert_eq!(swapped.send(&bus).await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        swapped.resign(&researcher.identity().holder, &broader);
        assert_eq!(swapped.send(&bus).await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        drop(planner);
        Ok(())
    })
}

#[test]
fn t23_a_capability_of_one_task_is_not_one_of_another() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, one) = world.task().await?;
        let two = world.task_of(&planner, "alice").await?;
        let bus = world.bus_of("planner").await?;
        let capability = one.capability().await?;
        let mut call = RawCall::new(&planner, &capability, "tool.crm", "read", select())?;
        // Only the subject says so.
        call.task = two.id().clone();
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TaskMismatch));
        // Subject and message say so, signed by the rightful holder of both.
        call.call.task = two.id().clone();
        call.resign(&planner.identity().holder, &capability);
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TaskMismatch));
        let seen = Seen::read(world, None).await?;
        let ran = seen.outcomes().filter(|outcome| outcome.task.as_ref() == Some(two.id())).count();
        assert_eq!(ran, 0);
        Ok(())
    })
}

#[test]
fn a17_a_call_without_a_capability_is_refused() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let mut call = RawCall::new(&planner, &task.capability().await?, "tool.mail", "draft", letter())?;
        call.call.capability.clear();
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenMissing));
        nothing_ran(world, &task, ReasonCode::TokenMissing).await
    })
}

#[test]
fn b10_a_call_that_was_held_back_is_stale() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, task) = world.task().await?;
        let bus = world.bus_of("planner").await?;
        let capability = task.capability().await?;
        for shift in [-60_000_i64, 60_000] {
            let mut call = RawCall::new(&planner, &capability, "tool.crm", "read", select())?;
            let at = call.call.issued_at.as_millis().checked_add_signed(shift).unwrap();
            call.call.issued_at = writ_common::time::Timestamp::from_millis(at);
            call.resign(&planner.identity().holder, &capability);
            assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::RequestStale));
        }
        // Made younger on the way, it is not the holder's word.
        let mut call = RawCall::new(&planner, &capability, "tool.crm", "read", select())?;
        call.call.issued_at = writ_common::time::Timestamp::from_millis(call.call.issued_at.as_millis() + 1);
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenHolderMismatch));
        Ok(())
    })
}

#[test]
fn t24_one_users_task_cannot_hand_on_anothers_authority() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (planner, alices) = world.task().await?;
        let token = world.tokens.token("carol", &["analysts"])?;
        let carols = planner.start_task(writ_sdk::NewTask::new(writ_tests::KIND, token, "")).await?;
        let handover = carols.delegate("researcher", writ_sdk::Narrowing::new()).await?.capability().await?;
        let arguments = json::object([
            ("handover", handover.chain_id().to_string().into()),
            ("input", writ_sdk::Value::Null),
        ]);
        let capability = alices.capability().await?;
        let mut call = RawCall::new(&planner, &capability, "agent.researcher", "invoke", arguments)?;
        call.call.handover = Some(handover.as_bytes().to_vec());
        let bus = world.bus_of("planner").await?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::UserMismatch));
        nothing_ran(world, &alices, ReasonCode::UserMismatch).await
    })
}
