//! What probes and metrics of a running broker and node say, over their own listeners.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use writ::dev::nats_server::{self, NatsServer};
use writ_bus::SystemClock;
use writ_common::{control::RevocationTarget, ids::PartId, subjects::part_stream, wire::AdminWanted};
use writ_sdk::Error;
use writ_tests::{World, eventually, read, run};

/// Status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

async fn until(address: SocketAddr, path: &str, wanted: (u16, &str)) -> Result<()> {
    eventually(&format!("{path} of {address} says {wanted:?}"), async || {
        let (status, body) = get(address, path).await?;
        Ok(status == wanted.0 && body.contains(wanted.1))
    })
    .await
}

/// Waits until one sample has this value; numbers are published a moment after what they count.
pub(crate) async fn until_sample(address: SocketAddr, start: &str, wanted: f64) -> Result<()> {
    let mut last = None;
    let said = eventually(start, async || {
        last = sample(&get(address, "/metrics").await?.1, start);
        Ok(last == Some(wanted))
    });
    said.await.with_context(|| format!("it says {last:?}, and not {wanted}"))
}

/// The value of one sample, by the beginning of its line.
pub(crate) fn sample(text: &str, start: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
}

#[test]
fn ready_follows_the_bus_and_alive_does_not() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (broker, node) =
            (world.broker_http().context("broker")?, world.node_http("node-1").context("node")?);
        for address in [broker, node] {
            until(address, "/readyz", (200, "ready")).await?;
            until(address, "/healthz", (200, "ok")).await?;
        }
        world.nats.signal(Signal::TERM)?;
        for address in [broker, node] {
            until(address, "/readyz", (503, "bus: not connected")).await?;
            until(address, "/healthz", (200, "ok")).await?;
        }
        // It hears from nobody any more, and says so once its lease for effects is over.
        until(node, "/readyz", (503, "freshness: last heard from the broker")).await?;
        let config = world.state().join("nats/server.conf");
        let port = world.nats.port();
        let mut again = None;
        eventually("the port is free again", async || {
            again = NatsServer::start(&nats_server::find()?, &config, port).ok();
            Ok(again.is_some())
        })
        .await?;
        for address in [broker, node] {
            until(address, "/readyz", (200, "ready")).await?;
        }
        world.close().await;
        drop(again);
        Ok(())
    })
}

#[test]
fn metrics_count_what_is_on_record_and_name_nobody() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (broker, node) =
            (world.broker_http().context("broker")?, world.node_http("node-1").context("node")?);
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        for _ in 0..3 {
            let refused = read(&task, "DELETE FROM customers").await;
            assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
        }
        let denied =
            r#"writ_decisions_total{verdict="deny",plane="action",reason="sql.not_read_only",error_type=""}"#;
        let allowed = r#"writ_decisions_total{verdict="allow",plane="",reason="",error_type=""}"#;
        eventually("the node counted", async || {
            let (_, text) = get(node, "/metrics").await?;
            Ok(sample(&text, denied) == Some(3.0)
                && sample(&text, allowed) == Some(1.0)
                && sample(&text, "writ_audit_records_total{kind=\"outcome\"}") == Some(1.0)
                && sample(&text, "writ_audit_unacked") == Some(0.0))
        })
        .await?;
        let (_, text) = get(node, "/metrics").await?;
        assert_eq!(sample(&text, "writ_decision_duration_seconds_count"), Some(4.0));
        assert!(sample(&text, "writ_decision_duration_seconds_bucket{le=\"0.00001\"}").unwrap() < 4.0);
        assert_eq!(sample(&text, "writ_chain_depth_bucket{le=\"0\"}"), Some(4.0));
        assert!(sample(&text, "writ_revocation_staleness_seconds").unwrap() < 5.0);
        assert!(sample(&text, "writ_policy_generation").unwrap() >= 1.0);
        let (_, of_broker) = get(broker, "/metrics").await?;
        // What is published follows what was done, a moment later.
        eventually("the broker counts the task", async || {
            let (_, text) = get(broker, "/metrics").await?;
            Ok(sample(&text, "writ_tokens_issued_total{kind=\"issue\"}") == Some(1.0))
        })
        .await?;
        for name in ["alice", "planner", task.id().as_str()] {
            assert!(!text.contains(name) && !of_broker.contains(name), "{name} is in the numbers");
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn metrics_say_what_will_run_out_what_is_stopped_and_how_calls_ended() -> Result<()> {
    run(async {
        let world = World::new().await?;
        let (broker, node) =
            (world.broker_http().context("broker")?, world.node_http("node-1").context("node")?);
        let (_planner, task) = world.task().await?;
        read(&task, "SELECT 1").await?;
        read(&task, "SELECT * FROM nowhere").await.unwrap_err();
        until_sample(node, "writ_outcomes_total{status=\"done\"}", 1.0).await?;
        until_sample(node, "writ_outcomes_total{status=\"failed\"}", 1.0).await?;
        until_sample(node, "writ_outcomes_total{status=\"unknown_outcome\"}", 0.0).await?;
        let operator = world.operator().await?;
        let part = part_stream(operator.tenant(), &PartId::first());
        let facts = operator.bus().stream_facts(&part).await?.context("the stream")?;
        #[expect(clippy::cast_precision_loss, reason = "a test stream is small")]
        let (bytes, bytes_max) = (facts.bytes as f64, facts.bytes_max as f64);
        let now = SystemClock::new().now().wall.as_secs();
        for address in [broker, node] {
            // As the server says it; the stream is looked at every five seconds.
            until_sample(address, "writ_stream_bytes{stream=\"part\"}", bytes).await?;
            until_sample(address, "writ_stream_bytes_max{stream=\"part\"}", bytes_max).await?;
            let (_, text) = get(address, "/metrics").await?;
            let journal = sample(&text, "writ_journal_bytes ").unwrap();
            assert!(journal > 0.0 && journal < sample(&text, "writ_journal_bytes_max").unwrap(), "{journal}");
            let year = sample(&text, "writ_keyset_expires_timestamp_seconds").unwrap()
                - f64::from(u32::try_from(now)?);
            assert!((364.0..366.0).contains(&(year / 86_400.0)), "{year}");
            let run =
                f64::from(u32::try_from(now)?) - sample(&text, "writ_run_start_timestamp_seconds").unwrap();
            assert!((-1.0..60.0).contains(&run), "{run}");
        }
        let (_, text) = get(node, "/metrics").await?;
        assert!(sample(&text, "writ_stream_bytes{stream=\"control\"}").unwrap() > 0.0);
        // What is taken back, and what stands still.
        operator.revoke(RevocationTarget::Task(task.id().clone()), true).await?;
        until_sample(node, "writ_revocations_applied_total{target=\"task\"}", 1.0).await?;
        until_sample(node, "writ_revocations_applied_total{target=\"user\"}", 0.0).await?;
        let agent = task.agent().name().clone();
        operator.ask(AdminWanted::Quarantine { agent: agent.clone(), on: true }).await?;
        operator.ask(AdminWanted::HaltAll { on: true }).await?;
        for address in [broker, node] {
            until_sample(address, "writ_halted", 1.0).await?;
            until_sample(address, "writ_agents_quarantined", 1.0).await?;
        }
        operator.ask(AdminWanted::HaltAll { on: false }).await?;
        operator.ask(AdminWanted::Quarantine { agent, on: false }).await?;
        for address in [broker, node] {
            until_sample(address, "writ_halted", 0.0).await?;
            until_sample(address, "writ_agents_quarantined", 0.0).await?;
        }
        operator.close().await;
        world.close().await;
        Ok(())
    })
}
