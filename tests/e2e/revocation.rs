//! Taking authority back.

use std::time::Duration;

use anyhow::Result;
use writ_common::{control::RevocationTarget, ids::UserId, reason::ReasonCode, wire::AdminWanted};
use writ_sdk::{Narrowing, Task};
use writ_tests::{Seen, World, eventually, letter, read, run};

#[test]
fn r01_r09_a_halted_task_stops_with_everything_below_on_every_node() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let below = task.delegate("researcher", Narrowing::new()).await?.capability().await?;
        let below = Task::resume(&researcher, below)?;
        read(&task, "SELECT 1").await?;
        read(&below, "SELECT 1").await?;
        let operator = world.operator().await?;
        let epoch = operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        // Once the broker has answered, no node may act for it: many calls, so that both nodes are met.
        for _ in 0..8 {
            for task in [&task, &below] {
                let error = read(task, "SELECT 1").await.unwrap_err();
                assert_eq!(error.code(), Some(ReasonCode::RevokedTask));
            }
        }
        let seen = Seen::read(world, Some(task.id())).await?;
        let late = seen.outcomes().count();
        assert_eq!(late, 2, "only what was called before");
        for refusal in seen.refusals() {
            let writ_common::record::RecordBody::Verdict(verdicted) = &refusal.record.body else { continue };
            assert!(verdicted.basis.epoch.unwrap() >= epoch, "the record says which state it was decided at");
        }
        // It cannot be renewed either.
        let new = writ_sdk::NewTask::new("customer-answer", world.tokens.token_for("alice")?, "");
        let planner = world.agent("planner").await?;
        planner.start_task(new).await?;
        Ok(())
    })
}

#[test]
fn r01_one_capability_one_user_one_agent_can_be_revoked() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (planner, task) = world.task().await?;
        let operator = world.operator().await?;
        let capability = task.capability().await?.grant().capability.clone();
        operator.revoke(RevocationTarget::Capability(capability), true).await?;
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::Revoked));

        let task = world.task_of(&planner, "alice").await?;
        read(&task, "SELECT 1").await?;
        let user = UserId::parse(world.idp.url(), "alice")?;
        operator.revoke(RevocationTarget::User(user), true).await?;
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::RevokedUser));

        // What is issued afterwards is good again.
        let task = world.task_of(&planner, "alice").await?;
        read(&task, "SELECT 1").await?;
        operator.revoke(RevocationTarget::Agent(planner.name().clone()), true).await?;
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::RevokedAgent));

        let task = world.task_of(&planner, "alice").await?;
        let key = planner.identity().holder.public().id();
        operator.revoke(RevocationTarget::Holder(key), true).await?;
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::RevokedHolder));
        world.close().await;
        Ok(())
    })
}

#[test]
fn the_kill_switch_stops_everything_and_can_be_lifted() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (planner, task) = world.task().await?;
        let operator = world.operator().await?;
        operator.ask(AdminWanted::HaltAll { on: true }).await?;
        eventually("the node hears of the halt", async || {
            Ok(read(&task, "SELECT 1").await.err().and_then(|error| error.code())
                == Some(ReasonCode::HaltAll))
        })
        .await?;
        let error = world.task_of(&planner, "alice").await.err().unwrap();
        assert!(error.to_string().contains("halt.all"), "{error}");
        operator.ask(AdminWanted::HaltAll { on: false }).await?;
        eventually("the node hears that it goes on", async || Ok(read(&task, "SELECT 1").await.is_ok()))
            .await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn r03_r11_without_a_broker_writing_stops_first_then_reading_and_both_come_back() -> Result<()> {
    run(async {
        let mut world =
            World::with(writ_tests::WorldOptions { start_core: false, ..Default::default() }).await?;
        let node = world.layout.node_config("node-1");
        World::edit(
            &node,
            "journal = \"node-1\"\n",
            "journal = \"node-1\"\n\n[node.freshness]\neffects_seconds = 4\nreads_seconds = 8\n",
        )?;
        world.start_broker().await?;
        world.start_node("node-1").await?;
        world.enroll_missing().await?;
        let (planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let mailer = world.agent("mailer").await?;
        let below = task.delegate("researcher", Narrowing::new()).await?.capability().await?;
        let below = Task::resume(&researcher, below)?.delegate("mailer", Narrowing::new()).await?;
        let mailing = Task::resume(&mailer, below.capability().await?)?;
        mailing.call("tool.mail", "draft", letter()).await?;

        world.stop_broker().await;
        read(&task, "SELECT 1").await?;
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        let error = mailing.call("tool.mail", "draft", letter()).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::StateStale));
        assert!(matches!(error, writ_sdk::Error::CouldNotDecide(_)), "told apart from a denial by a rule");
        read(&task, "SELECT 1").await?;
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        assert_eq!(read(&task, "SELECT 1").await.unwrap_err().code(), Some(ReasonCode::StateStale));

        assert!(planner.refresh_keys().await.is_err(), "no broker, nothing new");
        world.start_broker().await?;
        eventually("the node hears from the broker again", async || {
            Ok(read(&task, "SELECT 1").await.is_ok())
        })
        .await?;
        mailing.call("tool.mail", "draft", letter()).await?;
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        world.close().await;
        Ok(())
    })
}
