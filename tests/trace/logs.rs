//! Records as logs, over the wire: broker and node as processes of their own, with a collector behind them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use otlp_prost::Message as _;
use rustix::process::Signal;
use tokio::net::TcpListener;
use writ_common::{
    codec::decode,
    digest::Digest,
    record::{Record, RecordBody},
    signed::Signed,
    trace::TraceContext,
};
use writ_sdk::json;
use writ_tests::{RawCall, World, WorldOptions, WritProcess, eventually, read, run};

use crate::otlp::{hex, text};

const WRIT: &str = env!("CARGO_BIN_EXE_writ-under-test");
/// Stands in arguments and results, and nowhere else.
const CANARY: &str = "canary-93d2f0";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A log entry as the collector got it.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    severity: String,
    trace: String,
    body: String,
    service: String,
    attributes: BTreeMap<String, String>,
}

#[derive(Clone, Default)]
struct Collector {
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Every body it was sent, to search.
    raw: Arc<Mutex<Vec<Bytes>>>,
}

async fn take(State(collector): State<Collector>, body: Bytes) -> StatusCode {
    collector.raw.lock().unwrap().push(body.clone());
    let Ok(request) = ExportLogsServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut entries = collector.entries.lock().unwrap();
    for resource in request.resource_logs {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = attributes.iter().find(|attribute| attribute.key == "service.name");
        let service = text(service.and_then(|attribute| attribute.value.as_ref()));
        for log in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            entries.push(Entry {
                name: log.event_name,
                severity: log.severity_text,
                trace: hex(&log.trace_id),
                body: text(log.body.as_ref()),
                service: service.clone(),
                attributes: log
                    .attributes
                    .iter()
                    .map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref())))
                    .collect(),
            });
        }
    }
    StatusCode::OK
}

/// A collector of logs only: whoever sends spans is answered 404.
async fn collector() -> Result<(Collector, String)> {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let app = Router::new().route("/v1/logs", post(take)).with_state(collector.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok((collector, endpoint))
}

/// The audit stream: every record with its digest.
async fn on_record(world: &World) -> Result<Vec<(Record, Digest)>> {
    let operator = world.operator().await?;
    let mut records = Vec::new();
    let tail = operator.audit_tail(&writ_common::ids::PartId::first(), None, 1).await?;
    tail.try_drain::<anyhow::Error>(|message| {
        let signed = decode::<Signed<Record>>(&message.payload)?;
        records.push((signed.peek()?, signed.digest()));
        Ok(())
    })
    .await?;
    operator.close().await;
    Ok(records)
}

fn start(world: &World, role: &str, config: &str, variables: &[(&str, &str)]) -> Result<WritProcess> {
    let (config, log) = (format!("{config}.toml"), format!("{config}.log"));
    WritProcess::start_in(WRIT, &[role, "--config", &config], &world.state(), &log, variables)
}

fn end(mut process: WritProcess) -> Result<()> {
    process.signal(Signal::TERM)?;
    anyhow::ensure!(process.wait()? == 0, "{}", process.said());
    Ok(())
}

#[test]
fn b15_every_record_leaves_once_and_nothing_but_the_record() -> Result<()> {
    run(async {
        let (collector, endpoint) = collector().await?;
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        // Each in one of the two ways there are.
        let logs_endpoint = format!("{endpoint}/v1/logs");
        let broker =
            start(&world, "broker", "broker", &[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &logs_endpoint)])?;
        let node = start(
            &world,
            "node",
            "node-1",
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_TRACES_EXPORTER", "none"),
                ("WRIT_LOGS_FORMAT", "ocsf"),
            ],
        )?;
        eventually("the broker enrolls", async || Ok(world.enroll_missing().await.is_ok())).await?;
        let (planner, task) = world.task().await?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let answer = read(&task, &format!("SELECT '{CANARY}' AS found")).await?;
        assert!(answer.to_string().contains(CANARY));
        // A refusal within a trace of the caller's choice.
        let sql = format!("DELETE FROM customers WHERE name = '{CANARY}'");
        let arguments = json::object([("sql", sql.into())]);
        let call = RawCall::new(&planner, &task.capability().await?, "tool.crm", "read", arguments)?;
        let trace = TraceContext::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01")).context("a trace")?;
        let bus = world.bus_of("planner").await?;
        bus.request(call.subject(), call.payload(), Some(&trace), Duration::from_secs(10)).await?;
        let capability = task.capability().await?.as_bytes().to_vec();
        let denied = call.id();
        drop((task, planner));
        tokio::task::block_in_place(|| end(node).and_then(|()| end(broker)))?;

        let records = on_record(&world).await?;
        assert!(records.len() >= 6, "{}", records.len());
        let entries = collector.entries.lock().unwrap().clone();
        let mut left: Vec<(&str, &str)> = entries
            .iter()
            .map(|entry| {
                let attribute = |name: &str| entry.attributes[name].as_str();
                (attribute("writ.record.id"), attribute("writ.record.digest"))
            })
            .collect();
        left.sort_unstable();
        let known: Vec<(String, String)> =
            records.iter().map(|(record, digest)| (record.id.to_string(), digest.to_string())).collect();
        let mut known: Vec<(&str, &str)> =
            known.iter().map(|(id, digest)| (id.as_str(), digest.as_str())).collect();
        known.sort_unstable();
        assert_eq!(left, known, "each record of the stream, once");

        let of = |record: &Record| {
            let id = record.id.to_string();
            entries.iter().find(|entry| entry.attributes["writ.record.id"] == id).unwrap()
        };
        let refusal = records.iter().map(|(record, _)| record).find(|record| {
            matches!(&record.body, RecordBody::Verdict(verdicted) if verdicted.what.call_id == Some(denied))
        });
        let entry = of(refusal.context("the refusal is on record")?);
        assert_eq!((entry.name.as_str(), entry.severity.as_str()), ("writ.verdict", "WARN"));
        assert_eq!((entry.trace.as_str(), entry.service.as_str()), (TRACE, "writ-node"));
        assert_eq!(entry.attributes["writ.deny.reason"], "sql.not_read_only");
        for (record, _) in &records {
            let entry = of(record);
            if entry.service == "writ-node" {
                let event: serde_json::Value = serde_json::from_str(&entry.body)?;
                assert_eq!(event["class_uid"], 6003, "{event}");
                assert_eq!(event["metadata"]["uid"], record.id.to_string());
                assert_eq!(event["time"], record.at.as_millis());
            } else {
                assert_eq!(entry.service, "writ-broker");
                assert!(!entry.body.starts_with('{') && !entry.body.is_empty(), "{}", entry.body);
            }
        }
        assert!(entries.iter().any(|entry| entry.name == "writ.outcome"));

        let tail = &capability[capability.len() - 48..];
        let token = world.tokens.token_for("alice")?;
        let signature = token.rsplit('.').next().context("a signature")?;
        for body in collector.raw.lock().unwrap().iter() {
            for needle in [CANARY.as_bytes(), signature.as_bytes(), tail] {
                assert!(!body.windows(needle.len()).any(|window| window == needle));
            }
        }
        world.close().await;
        Ok(())
    })
}

#[test]
fn a_form_of_logs_nobody_knows_is_said_and_none_leave_where_the_standard_says_so() -> Result<()> {
    run(async {
        let (collector, endpoint) = collector().await?;
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let mut wrong = start(&world, "broker", "broker", &[("WRIT_LOGS_FORMAT", "cef")])?;
        assert_eq!(tokio::task::block_in_place(|| wrong.wait())?, 1);
        assert!(wrong.said().contains("WRIT_LOGS_FORMAT is `cef`; say `text` or `ocsf`"), "{}", wrong.said());
        let off = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_LOGS_EXPORTER", "none")];
        let broker = start(&world, "broker", "broker", &off)?;
        eventually("the broker enrolls", async || Ok(world.enroll_missing().await.is_ok())).await?;
        tokio::task::block_in_place(|| end(broker))?;
        assert!(!on_record(&world).await?.is_empty());
        assert!(collector.entries.lock().unwrap().is_empty());
        world.close().await;
        Ok(())
    })
}

#[test]
fn what_a_killed_node_could_not_publish_leaves_when_its_next_run_has_published_it() -> Result<()> {
    const ENDLESS: &str =
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c";
    run(async {
        let (collector, endpoint) = collector().await?;
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let config = world.layout.node_config("node-1");
        World::edit(&config, "file = \"data/crm.db\"\n", "file = \"data/crm.db\"\ntimeout_seconds = 2\n")?;
        world.start_broker().await?;
        let to = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_TRACES_EXPORTER", "none")];
        let first = start(&world, "node", "node-1", &to)?;
        world.enroll_missing().await?;
        let (_planner, task) = world.task().await?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        let count = |name: &str| {
            let entries = collector.entries.lock().unwrap();
            entries.iter().filter(|entry| entry.name == name).count()
        };
        eventually("its records leave", async || Ok(count("writ.outcome") >= 1)).await?;
        let (verdicts, outcomes) = (count("writ.verdict"), count("writ.outcome"));
        let caller = task.clone();
        let asking = tokio::spawn(async move { read(&caller, ENDLESS).await });
        eventually("the intent leaves", async || Ok(count("writ.verdict") > verdicts)).await?;
        // The bus is away when the call ends: how, only the journal knows.
        world.nats.signal(Signal::STOP)?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        first.kill()?;
        world.nats.signal(Signal::CONT)?;
        assert_eq!(count("writ.outcome"), outcomes, "it was not on record");
        asking.abort();
        let second = start(&world, "node", "node-1", &to)?;
        eventually("the outcome leaves", async || Ok(count("writ.outcome") > outcomes)).await?;
        tokio::task::block_in_place(|| end(second))?;
        let records = on_record(&world).await?;
        let entries = collector.entries.lock().unwrap().clone();
        let mut ended = records.iter().filter(|(record, _)| matches!(record.body, RecordBody::Outcome(_)));
        let (last, digest) = ended.next_back().context("an outcome")?;
        let left: Vec<&Entry> = entries
            .iter()
            .filter(|entry| entry.attributes["writ.record.id"] == last.id.to_string())
            .collect();
        assert_eq!(left.len(), 1, "{left:#?}");
        assert_eq!(left[0].attributes["writ.record.digest"], digest.to_string());
        assert_eq!(left[0].attributes["error.type"], "tool.timeout");
        let intent = &left[0].attributes["writ.record.intent"];
        assert!(
            intent.starts_with(&format!("node-1/{}/", last.id.boot)),
            "of the run that was killed: {intent}"
        );
        world.close().await;
        Ok(())
    })
}
