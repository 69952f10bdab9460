//! What probes and metrics of a running broker and node say, over their own listeners.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use writ::dev::nats_server::{self, NatsServer};
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
