//! Users' tokens from an issuer that publishes its keys: discovery, rotation, withdrawal, floods, silence.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use writ::dev::{Layout, idp::Idp};
use writ_common::{
    ids::{UserId, UserKind},
    keys::PrivateKey,
    reason::ReasonCode,
    record::RecordedDecision,
};
use writ_sdk::{Agent, Error, NewTask};
use writ_tests::{KIND, Seen, World, WorldOptions, eventually, read, run};

/// The code a start is refused with.
async fn refused(planner: &Agent, token: &str) -> Result<Option<ReasonCode>> {
    match planner.start_task(NewTask::new(KIND, token, "test")).await {
        Ok(_) => Ok(None),
        Err(Error::Denied(denial) | Error::CouldNotDecide(denial)) => {
            Ok(Some(denial.reasons.first().context("no reason")?.code))
        }
        Err(other) => Err(other.into()),
    }
}

/// A set-up whose broker asks for keys every few seconds.
async fn world(refresh_secs: u64, age_secs_max: u64) -> Result<World> {
    let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
    let bounds =
        format!("discovery = true\nrefresh_seconds = {refresh_secs}\nkeys_seconds_max = {age_secs_max}");
    World::edit(&world.layout.broker_config(), "discovery = true", &bounds)?;
    world.start_broker().await?;
    world.start_node("node-1").await?;
    world.enroll_missing().await?;
    Ok(world)
}

#[test]
fn j17_a_rotated_key_works_at_once_and_a_withdrawn_one_not_for_long() -> Result<()> {
    run(async {
        let world = world(2, 60).await?;
        let planner = world.agent("planner").await?;
        let old = world.tokens.token_for("alice")?;
        assert_eq!(refused(&planner, &old).await?, None, "keys are where the issuer says they are");
        world.tokens.rotate("dev-2", &PrivateKey::from_seed(&[7; 32]));
        let new = world.tokens.token_for("alice")?;
        // A fetch may just have been made; it is made again within the gap.
        eventually("the new key is known", async || Ok(refused(&planner, &new).await?.is_none())).await?;
        assert_eq!(refused(&planner, &old).await?, None, "both are published");
        world.tokens.withdraw("dev-1");
        eventually("the old key is not taken any more", async || {
            Ok(refused(&planner, &old).await? == Some(ReasonCode::JwtUnknownKey))
        })
        .await?;
        assert_eq!(refused(&planner, &new).await?, None);
        world.close().await;
        Ok(())
    })
}

#[test]
fn j17_a_token_of_a_key_just_made_waits_for_it_and_a_flood_of_names_fetches_once() -> Result<()> {
    run(async {
        // The gap between two fetches is ten seconds here.
        let world = world(600, 3_600).await?;
        let planner = world.agent("planner").await?;
        assert_eq!(refused(&planner, &world.tokens.token_for("alice")?).await?, None);
        let before = world.tokens.fetches();
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(world.tokens.fetches(), before, "nobody asked for more");
        world.tokens.rotate("dev-2", &PrivateKey::from_seed(&[7; 32]));
        let new = world.tokens.token_for("alice")?;
        assert_eq!(refused(&planner, &new).await?, None, "the very first one");
        assert_eq!(world.tokens.fetches(), before + 1);
        let flood = Instant::now();
        for number in 0..40_u8 {
            let id = format!("made-up-{number}");
            world.tokens.rotate(&id, &PrivateKey::from_seed(&[number; 32]));
            world.tokens.withdraw(&id);
            let strange = world.tokens.token_for("alice")?;
            assert_eq!(refused(&planner, &strange).await?, Some(ReasonCode::JwtUnknownKey));
        }
        let (fetches, allowed) = (world.tokens.fetches() - before, 2 + flood.elapsed().as_secs() / 10);
        assert!(fetches as u64 <= allowed, "{fetches} fetches, {allowed} would be one in ten seconds");
        world.close().await;
        Ok(())
    })
}

#[test]
fn j17_a_silent_issuer_stops_new_tasks_once_its_keys_are_too_old_and_not_before() -> Result<()> {
    run(async {
        let mut world = world(1, 8).await?;
        let planner = world.agent("planner").await?;
        let token = world.tokens.token_for("alice")?;
        assert_eq!(refused(&planner, &token).await?, None);
        let (tokens, port) = (world.tokens.clone(), world.idp.port());
        world.idp.stop().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(refused(&planner, &token).await?, None, "the last keys are still young");
        eventually("they are too old", async || {
            Ok(refused(&planner, &token).await? == Some(ReasonCode::JwtKeysStale))
        })
        .await?;
        world.idp = Idp::start(tokens, port).await?;
        eventually("it is back", async || Ok(refused(&planner, &token).await?.is_none())).await?;
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_service_starts_tasks_as_itself_and_policy_can_tell() -> Result<()> {
    run(async {
        let forbid = |layout: &Layout| {
            let rule = "/// programs read nothing\ndeny if user_kind(\"service\"), resource(\"tool.crm\");\n";
            Ok(fs::write(layout.policies().join("services.datalog"), rule)?)
        };
        let world = World::with(WorldOptions { edit: Some(forbid), ..Default::default() }).await?;
        let planner = world.agent("planner").await?;
        let token = world.tokens.service_token("nightly-report")?;
        let task = planner.start_task(NewTask::new(KIND, token, "every night")).await?;
        let denied = read(&task, "SELECT 1").await;
        assert!(matches!(denied, Err(Error::Denied(_))), "{denied:?}");
        let seen = Seen::read(&world, Some(task.id())).await?;
        let service = UserId::service(world.idp.url(), "nightly-report")?;
        assert!(seen.verdicts().count() >= 2);
        for (_, verdict) in seen.verdicts() {
            assert_eq!(verdict.who.user.as_ref(), Some(&service), "in every record");
        }
        assert_eq!(service.kind(), UserKind::Service);
        let denied = seen.verdicts().find(|(_, one)| one.decision == RecordedDecision::Deny).unwrap().1;
        assert_eq!(denied.reasons[0].code, ReasonCode::PolicyDenied);
        // A client nobody listed speaks for nobody, and a person may still read.
        let stranger = world.tokens.service_token("somebody-elses")?;
        assert_eq!(refused(&planner, &stranger).await?, Some(ReasonCode::JwtService));
        let alice = world.task_of(&planner, "alice").await?;
        read(&alice, "SELECT 1").await?;
        world.close().await;
        Ok(())
    })
}
