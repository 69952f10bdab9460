//! Keys of a broker are replaced while its agents go on.

use anyhow::Result;
use writ_bus::keyfile;
use writ_common::{capability::UnverifiedCapability, keys::PrivateKey, reason::ReasonCode};
use writ_sdk::{Task, json};
use writ_tests::{Answered, RawCall, World, eventually, read, run};

use crate::cli::writ;

/// Has the offline root sign the next keyset, and starts the broker again, with another key if one is named.
async fn rotate(world: &mut World, keys: &[&PrivateKey], withdrawn: Option<&PrivateKey>) -> Result<()> {
    let mut arguments: Vec<String> = "key sign-keyset --root .writ/keys/root.key --tenant acme --replaces \
        .writ/keyset.writ --out .writ/keyset.writ"
        .split(' ')
        .map(str::to_owned)
        .collect();
    for key in keys {
        arguments.extend(["--key".to_owned(), key.public().to_string()]);
    }
    if let Some(key) = withdrawn {
        arguments.extend(["--withdrawn".to_owned(), key.public().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = writ(world, &arguments).await?;
    assert_eq!(said.code, 0, "{}", said.err);
    world.stop_broker().await;
    world.start_broker().await
}

async fn code(task: &Task) -> Option<ReasonCode> {
    read(task, "SELECT 1").await.err().and_then(|error| error.code())
}

/// K02: while two keys overlap both count; once the old one is withdrawn, nothing it signed opens anything, not even
/// at a node that had verified it before.
#[test]
fn k02_an_old_key_counts_until_it_is_withdrawn() -> Result<()> {
    run(async {
        let mut world = World::new().await?;
        let (planner, before) = world.task().await?;
        read(&before, "SELECT 1").await?;
        let old = keyfile::read_key(&world.state().join("keys/broker.key"))?;
        let made = writ(&world, &["key", "new", ".writ/keys/broker-2.key"]).await?;
        assert_eq!(made.code, 0, "{}", made.err);
        let new = keyfile::read_key(&world.state().join("keys/broker-2.key"))?;

        // Every node knows both keys before anything is signed by the new one.
        rotate(&mut world, &[&old, &new], None).await?;
        World::edit(&world.layout.broker_config(), "keys/broker.key", "keys/broker-2.key")?;
        world.stop_broker().await;
        world.start_broker().await?;
        let after = world.task_of(&planner, "alice").await?;
        read(&after, "SELECT 1").await?;
        read(&before, "SELECT 1").await?;

        rotate(&mut world, &[&new], Some(&old)).await?;
        eventually("the old key counts no more", async || {
            Ok(code(&before).await == Some(ReasonCode::TokenUnknownRoot))
        })
        .await?;
        read(&after, "SELECT 1").await?;
        // Whoever has the old key cannot issue with it either.
        let mut grant = after.capability().await?.grant().clone();
        grant.serial += 1;
        let forged: UnverifiedCapability = grant.issue(&old, &[7; 32])?;
        let arguments = json::object([("sql", "SELECT 1".into())]);
        let call = RawCall::new(&planner, &forged, "tool.crm", "read", arguments)?;
        let bus = world.bus_of("planner").await?;
        assert_eq!(call.send(&bus).await?, Answered::Denied(ReasonCode::TokenUnknownRoot));

        // A node that starts now reads the whole history of keys and comes to the same.
        world.stop_node("node-1").await;
        world.start_node("node-1").await?;
        eventually("the node serves", async || Ok(read(&after, "SELECT 1").await.is_ok())).await?;
        assert_eq!(code(&before).await, Some(ReasonCode::TokenUnknownRoot));
        world.close().await;
        Ok(())
    })
}
