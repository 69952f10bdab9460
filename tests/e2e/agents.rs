//! Agents that call agents, and what the SDK takes off their hands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use writ_common::{reason::ReasonCode, record::RecordKind};
use writ_sdk::{Error, Narrowing, NewTask, Value, json};
use writ_tests::{KIND, Seen, World, only, read, run};

#[test]
fn a_call_on_an_agent_carries_authority_and_brings_an_answer() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let researcher = world.agent("researcher").await?;
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        let _server = researcher
            .serve(move |invocation| {
                counter.fetch_add(1, Ordering::Relaxed);
                async move {
                    assert_eq!(invocation.caller.as_str(), "planner");
                    let sql = invocation.input.get("sql").and_then(Value::as_str).unwrap_or_default();
                    read(&invocation.task, sql).await
                }
            })
            .await?;
        let delegation = task.delegate("researcher", only(["tool.crm:read"])?).await?;
        let answer =
            delegation.invoke(json::object([("sql", "SELECT count(*) FROM customers".into())])).await?;
        assert_eq!(answer.get("rows").unwrap().to_string(), "[[3]]");
        assert_eq!(served.load(Ordering::Relaxed), 1);
        // What the agent was refused comes back as its failure, with the reason in words.
        let error =
            delegation.invoke(json::object([("sql", "DELETE FROM customers".into())])).await.unwrap_err();
        assert!(error.to_string().contains("sql.not_read_only"), "{error}");
        assert_eq!(Seen::read(&world, None).await?.missing(), 0);
        let seen = Seen::read(&world, Some(task.id())).await?;
        assert_eq!(seen.count(RecordKind::Allow), 4, "issue, two invocations, one read");
        world.close().await;
        Ok(())
    })
}

#[test]
fn an_agent_that_does_not_listen_is_told_apart_from_a_refusal() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (_planner, task) = world.task().await?;
        let delegation = task.delegate("researcher", Narrowing::new()).await?;
        let error = delegation.invoke(json::object([])).await.unwrap_err();
        assert_eq!(error.code(), Some(ReasonCode::AgentUnreachable), "{error}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_task_renews_its_capability_by_itself_until_its_deadline() -> Result<()> {
    run(async {
        let world = World::with(writ_tests::WorldOptions {
            edit: Some(|layout| {
                let identity = layout.policies().join("planes/10-identity.datalog");
                World::edit(
                    &identity,
                    "capability_seconds(300) <- request(\"issue\")",
                    "capability_seconds(4) <- request(\"issue\")",
                )?;
                World::edit(
                    &identity,
                    "capability_seconds(300) <- request(\"renew\")",
                    "capability_seconds(4) <- request(\"renew\")",
                )?;
                World::edit(&identity, "task_seconds(3600)", "task_seconds(9)")
            }),
            ..Default::default()
        })
        .await?;
        let (_planner, task) = world.task().await?;
        let first = task.capability().await?;
        let narrowed = task.narrow(only(["tool.crm:read"])?);
        for _ in 0..12 {
            read(&narrowed, "SELECT 1").await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let later = task.capability().await?;
        assert_eq!(later.grant().capability, first.grant().capability, "renewal keeps the id");
        assert!(later.grant().serial > first.grant().serial);
        tokio::time::sleep(Duration::from_millis(4_000)).await;
        let error = read(&task, "SELECT 1").await.unwrap_err();
        assert!(matches!(error.code(), Some(ReasonCode::TaskDeadline | ReasonCode::TokenExpired)), "{error}");
        world.close().await;
        Ok(())
    })
}

#[test]
fn j19_the_same_request_gives_the_same_task_and_another_under_its_key_is_refused() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let planner = world.agent("planner").await?;
        let new = |instruction: &str| -> Result<NewTask> {
            Ok(NewTask::new(KIND, world.tokens.token_for("alice")?, instruction).idempotency_key("j19"))
        };
        let one = planner.start_task(new("the same")?).await?;
        let two = planner.start_task(new("the same")?).await?;
        assert_eq!(one.id(), two.id());
        let error = planner.start_task(new("another")?).await.err().unwrap();
        assert_eq!(error.code(), Some(ReasonCode::JwtReplayed));
        Ok(())
    })
}

#[test]
fn j20_a_capability_does_not_outlive_the_users_token() -> Result<()> {
    run(async {
        let world = World::shared().await?;
        let planner = world.agent("planner").await?;
        let now = writ_bus::SystemClock::new().now().wall.as_secs();
        let claims = serde_json::json!({
            "iss": world.idp.url(), "aud": writ::dev::idp::AUDIENCE, "sub": "alice", "groups": ["analysts"],
            "iat": now, "exp": now + 30,
        });
        let task = planner.start_task(NewTask::new(KIND, world.tokens.sign(&claims)?, "")).await?;
        assert!(task.capability().await?.expires().as_secs() <= now + 30);
        Ok(())
    })
}

#[test]
fn a_user_whose_role_may_not_gets_no_task_and_the_refusal_is_on_record() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let planner = world.agent("planner").await?;
        let for_bob = NewTask::new(KIND, world.tokens.token_for("bob")?, "");
        let error = planner.start_task(for_bob).await.err().unwrap();
        assert_eq!(error.code(), Some(ReasonCode::GrantNotAllowed));
        assert!(matches!(error, Error::Denied(_)));
        let mut new = NewTask::new("no-such-kind", world.tokens.token_for("alice")?, "");
        new = new.idempotency_key("x");
        assert_eq!(planner.start_task(new).await.err().unwrap().code(), Some(ReasonCode::GrantNotAllowed));
        let seen = Seen::read(&world, None).await?;
        assert_eq!(seen.codes(), [ReasonCode::GrantNotAllowed; 2]);
        let who = seen.refusals().next().unwrap().who;
        assert_eq!(who.user.as_ref().unwrap().subject(), "bob");
        world.close().await;
        Ok(())
    })
}

#[test]
fn one_agent_may_have_several_keys_and_lose_one() -> Result<()> {
    run(async {
        let mut world = World::new().await?;
        world.enroll("researcher", "researcher-2").await?;
        let (planner, task) = world.task().await?;
        planner.refresh_keys().await?;
        let keys = planner.delegate_keys(&"researcher".parse()?);
        assert_eq!(keys.len(), 2);
        let second = world.agent("researcher-2").await?;
        let to_key = second.identity().holder.public();
        let delegation = task.delegate_to_key("researcher".parse()?, to_key, Narrowing::new());
        let below = writ_sdk::Task::resume(&second, delegation.capability().await?)?;
        read(&below, "SELECT 1").await?;
        let operator = world.operator().await?;
        let agent = "researcher".parse()?;
        operator.ask(writ_common::wire::AdminWanted::WithdrawKey { agent, key: to_key.id() }).await?;
        writ_tests::eventually("the node hears of it", async || {
            Ok(read(&below, "SELECT 1").await.err().and_then(|e| e.code()).is_some())
        })
        .await?;
        world.close().await;
        Ok(())
    })
}
