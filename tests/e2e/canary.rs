//! Secrets and content stand in nothing that leaves: records, journals, exports, reports, receipts, the auditors' index,
//! logs at every level, log entries and spans. Looked for in every form they could have there.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, extract::State, routing::post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::Signal;
use tokio::net::TcpListener;
use writ_tests::{World, WorldOptions, WritProcess, eventually, read, run};

use crate::{WRIT, cli::writ};

/// Stands in arguments and results, and nowhere else.
const CANARY: &str = "canary-7f3a91";

type Sent = Arc<Mutex<Vec<Bytes>>>;

/// A collector of everything, and what it was sent.
async fn collector() -> Result<(Sent, String)> {
    let sent = Sent::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let take = |State(sent): State<Sent>, body: Bytes| async move { sent.lock().unwrap().push(body) };
    let routes = Router::new()
        .route("/v1/logs", post(take))
        .route("/v1/traces", post(take))
        .with_state(Arc::clone(&sent));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok((sent, endpoint))
}

/// Everything that leaves, by where it was found.
#[derive(Default)]
struct Haystacks(BTreeMap<String, Vec<u8>>);

impl Haystacks {
    fn file(&mut self, path: &Path) -> Result<()> {
        self.0.insert(path.display().to_string(), fs::read(path)?);
        Ok(())
    }

    fn folder(&mut self, folder: &Path) -> Result<()> {
        for item in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = item?.path();
            if path.is_dir() {
                self.folder(&path)?;
            } else if !path.ends_with("reserve") {
                // That one is zeros.
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Where something stands, as it is, in hexadecimal or in base64.
    fn holding(&self, needle: &[u8]) -> Vec<&str> {
        let forms = forms(needle);
        let holds = |hay: &[u8]| {
            forms.iter().any(|form| hay.windows(form.len()).any(|window| window.eq_ignore_ascii_case(form)))
        };
        self.0.iter().filter(|(_, hay)| holds(hay)).map(|(name, _)| name.as_str()).collect()
    }
}

/// The forms in which bytes could stand in a text. In base64 that depends on where they begin, and what is beside them has a
/// share in the first and the last character.
fn forms(needle: &[u8]) -> Vec<Vec<u8>> {
    let hex = needle.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes();
    let mut forms = vec![needle.to_vec(), hex];
    for before in 0..3 {
        let text = STANDARD.encode([&[0; 2][..before], needle].concat());
        let first = (before * 8).div_ceil(6);
        let end = (before + needle.len()) * 8 / 6;
        forms.push(text.as_bytes()[first..end].to_vec());
    }
    forms
}

/// Private keys, as they are in their files and as bytes.
fn private_keys(folder: &Path, found: &mut Vec<Vec<u8>>) -> Result<()> {
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        if path.is_dir() {
            private_keys(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "key" || kind == "nkey") {
            let text = fs::read_to_string(&path)?;
            let secret = text.trim().rsplit(':').next().unwrap();
            found.push(secret.as_bytes().to_vec());
            let bytes =
                (0..secret.len()).step_by(2).map(|at| u8::from_str_radix(secret.get(at..at + 2)?, 16).ok());
            found.extend(bytes.collect::<Option<Vec<u8>>>());
        }
    }
    Ok(())
}

fn start(world: &World, role: &str, name: &str, endpoint: &str) -> Result<WritProcess> {
    let (config, log) = (format!("{name}.toml"), format!("{name}.log"));
    // Everything that can be said is said.
    let variables = [("WRIT_LOG", "trace"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
    WritProcess::start_in(WRIT, &[role, "--config", &config], &world.state(), &log, &variables)
}

#[test]
fn b15_k12_no_secret_and_no_content_leaves() -> Result<()> {
    run(async {
        let (sent, endpoint) = collector().await?;
        let mut world = World::with(WorldOptions { start_core: false, ..Default::default() }).await?;
        let broker = start(&world, "broker", "broker", &endpoint)?;
        let node = start(&world, "node", "node-1", &endpoint)?;
        eventually("the broker enrolls", async || Ok(world.enroll_missing().await.is_ok())).await?;
        let receipts = world.folder().join("receipts");
        let (planner, task) = world.task().await?;
        planner.keep_receipts(&receipts)?;
        eventually("the node serves", async || Ok(read(&task, "SELECT 1").await.is_ok())).await?;
        // In arguments and a result; in arguments that are refused; in a call that fails.
        let answer = read(&task, &format!("SELECT '{CANARY}' AS found")).await?;
        assert!(answer.to_string().contains(CANARY));
        read(&task, &format!("DELETE FROM customers WHERE name = '{CANARY}'")).await.unwrap_err();
        read(&task, &format!("SELECT \"{CANARY}\" FROM nowhere")).await.unwrap_err();

        let id = task.id().to_string();
        let mut haystacks = Haystacks::default();
        for (name, arguments) in [
            ("chain", &["audit", "chain", &id][..]),
            ("tail", &["audit", "tail", "-n", "1000", "--no-follow", "-o", "json"]),
            ("everything", &["audit", "export", "--out", "everything"]),
            ("one task", &["audit", "export", "--task", &id, "--out", "one-task"]),
            ("report", &["audit", "report", &id, "--out", "report.html"]),
            ("index", &["audit", "user", "alice"]),
        ] {
            let said = writ(&world, arguments).await?;
            assert_eq!(said.code, 0, "{name}: {}", said.err);
            haystacks.0.insert(format!("writ: {name}"), [said.out, said.err].concat().into_bytes());
        }
        let operator = world.operator().await?;
        operator
            .audit_tail(&writ_common::ids::PartId::first(), None, 1)
            .await?
            .drain(|message| {
                haystacks.0.insert(format!("record {}", message.sequence), message.payload.to_vec());
            })
            .await?;
        operator.close().await;
        let (token, capability) = (world.tokens.token_for("alice")?, task.capability().await?);
        drop((task, planner));
        for mut process in [node, broker] {
            process.signal(Signal::TERM)?;
            assert_eq!(tokio::task::block_in_place(|| process.wait())?, 0, "{}", process.said());
        }
        let (folder, state) = (world.folder().to_owned(), world.state());
        for name in ["everything", "one-task"] {
            haystacks.folder(&folder.join(name))?;
        }
        for name in ["node-1", "broker/journal", "audit-index"] {
            haystacks.folder(&state.join(name))?;
        }
        for path in [receipts, folder.join("report.html")] {
            haystacks.file(&path)?;
        }
        for name in ["nats/nats.log", "broker.log", "node-1.log"] {
            haystacks.file(&state.join(name))?;
        }
        for (number, body) in sent.lock().unwrap().iter().enumerate() {
            haystacks.0.insert(format!("sent {number}"), body.to_vec());
        }

        // Whoever looks finds what is there: the task is in everything that is told of it.
        let told = haystacks.holding(id.as_bytes());
        for place in [
            "writ: chain",
            "writ: tail",
            "record ",
            "everything/",
            "one-task/",
            "report.html",
            "node-1/",
            "sent ",
        ] {
            assert!(told.iter().any(|name| name.contains(place)), "{place} is not among {told:?}");
        }
        assert!(haystacks.0.keys().any(|name| name.contains("audit-index/")));
        assert!(haystacks.0.iter().any(|(name, hay)| name.ends_with("receipts") && !hay.is_empty()));

        let mut needles = vec![CANARY.as_bytes().to_vec()];
        needles.push(token.rsplit('.').next().unwrap().as_bytes().to_vec());
        needles.push(capability.as_bytes()[capability.as_bytes().len() - 48..].to_vec());
        private_keys(&state, &mut needles)?;
        assert!(needles.len() > 20, "{}", needles.len());
        for (number, needle) in needles.iter().enumerate() {
            assert_eq!(haystacks.holding(needle), [] as [&str; 0], "secret {number}");
        }
        world.close().await;
        Ok(())
    })
}
