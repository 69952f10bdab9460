//! Calls and processes of one set-up, measured in one run so that the figures may be compared.

pub mod baseline;
mod domains;
mod governed;
mod labels;
pub mod mcp;
mod measure;
mod process;
pub mod record;
mod report;
mod setup;
mod swaps;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use baseline::RequestReply;
use labels::Labels;
use process::{Footprint, Running};
pub use report::Report;
use report::{Cpu, Flow, Level, Parts};
use writ::dev::{DevStack, idp};
use writ_bus::Bus;
use writ_common::wire::AdminWanted;
use writ_sdk::{Agent, Identity, NewTask, Task};

/// Requests under way at the same time.
const IN_FLIGHT: [usize; 3] = [1, 16, 64];
/// How often a process is started for its time to ready.
const STARTS: usize = 3;
/// Servers that keep the streams together, where there are several.
const SERVERS: usize = 3;

/// Measures everything; `during` is the time under load per figure.
///
/// # Errors
/// If the set-up does not come up or a request fails.
pub async fn run(during: Duration) -> Result<Report> {
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let mut bench = Bench::start(temporary.path().join(".writ"), 1).await?;
    let footprints = vec![bench.footprint_of_broker().await?];
    let task = bench.task().await?;
    let (sizes, node) = bench.footprint_of_node(&task).await?;
    let footprints = [footprints, vec![node]].concat();

    let _responder = Running::responder(&bench.folder, sizes.reply)?;
    let subject = setup::echo_subject(&bench.identity()?, task.id())?;
    let raw = RequestReply::new(setup::agent_client(&bench.identity()?).await?, subject, sizes.call);
    let since = std::time::Instant::now();
    measure::until_done(since, process::PATIENCE, || raw.once()).await?;
    let mut levels = Vec::new();
    for in_flight in IN_FLIGHT {
        let raw = raw.load(in_flight, during).await?;
        let before = bench.cpu();
        let governed = governed::load(&task, in_flight, during).await?;
        let cpu = bench.cpu().since(&before, governed.completed);
        levels.push(Level::new(in_flight, raw, governed, cpu));
    }
    let swaps = swaps::measure(&bench.stack, &task, during).await?;
    let (sign_us, verify_us) = baseline::signatures();
    let publish_ack = baseline::publish_ack(&bench.folder, during).await?;
    let request_reply_us = levels.first().map_or(0.0, |level| level.raw.p50_us);
    let parts = Parts { request_reply_us, sign_us, verify_us, publish_ack_us: publish_ack.p50_us };
    let mut labels = labels::measure(&mut bench, 1).await?;
    let domains = domains::measure(&mut bench).await?;
    bench.stop()?;
    labels.extend(labels_on_several(&temporary.path().join("several")).await?);
    let flow = Flow { labels, domains };
    Ok(Report::new(parts, levels, footprints, Some(swaps), Some(flow)))
}

/// What labels cost where several servers keep the streams together.
async fn labels_on_several(folder: &Path) -> Result<Vec<Labels>> {
    let mut bench = Bench::start(folder.join(".writ"), SERVERS).await?;
    let broker = Running::writ("broker", &bench.stack.layout.broker_config())?;
    broker_answers(&bench.stack, &broker).await?;
    bench.broker = Some(broker);
    bench.restart_node().await?;
    let figures = labels::measure(&mut bench, SERVERS).await?;
    bench.stop()?;
    Ok(figures)
}

/// The set-up with what runs in it.
struct Bench {
    folder: PathBuf,
    stack: DevStack,
    agent: Option<Agent>,
    broker: Option<Running>,
    node: Option<Running>,
}

impl Bench {
    /// Server, identity provider and an enrolled agent.
    async fn start(folder: PathBuf, servers: usize) -> Result<Self> {
        let mut stack = setup::start(&folder, servers).await?;
        let broker = Running::writ("broker", &stack.layout.broker_config())?;
        broker_answers(&stack, &broker).await?;
        stack.enroll_missing().await?;
        broker.stop()?;
        Ok(Self { folder, stack, agent: None, broker: None, node: None })
    }

    fn identity(&self) -> Result<Identity> {
        Ok(Identity::load(self.stack.layout.agent(setup::AGENT))?)
    }

    /// Starts the broker some times and keeps the last one.
    async fn footprint_of_broker(&mut self) -> Result<Footprint> {
        let mut ready = Vec::new();
        for _ in 0..STARTS {
            if let Some(earlier) = self.broker.take() {
                earlier.stop()?;
            }
            let broker = Running::writ("broker", &self.stack.layout.broker_config())?;
            ready.push(broker_answers(&self.stack, &broker).await?);
            self.broker = Some(broker);
        }
        let idle_mib = idle(self.broker.as_ref()).await;
        Ok(Footprint { name: "broker", ready_ms: measure::percentile(&mut ready, 50), idle_mib })
    }

    async fn task(&mut self) -> Result<Task> {
        self.starting().await?.await
    }

    /// A task that is started when it is waited for.
    async fn starting(&mut self) -> Result<impl Future<Output = Result<Task>> + Send + 'static> {
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => self.agent.insert(self.stack.agent(setup::AGENT).await?).clone(),
        };
        let [(user, _), ..] = idp::USERS;
        let task = NewTask::new("customer-answer", self.stack.tokens.token_for(user)?, "benchmark");
        Ok(async move { Ok(agent.start_task(task).await?) })
    }

    /// Another process for the node, ready for calls.
    async fn restart_node(&mut self) -> Result<()> {
        if let Some(earlier) = self.node.take() {
            earlier.stop()?;
        }
        let node = Running::writ("node", &self.stack.layout.node_config(setup::NODE))?;
        let (identity, task) = (self.identity()?, self.task().await?);
        let bus = Bus::connect(identity.bus_config()).await?;
        measure::until_done(node.since, process::PATIENCE, || async {
            governed::probe(&bus, &identity, &task).await.map(drop)
        })
        .await?;
        bus.close().await;
        self.node = Some(node);
        Ok(())
    }

    /// Starts the node some times and keeps the last one; says how large a call and its answer are.
    async fn footprint_of_node(&mut self, task: &Task) -> Result<(governed::Sizes, Footprint)> {
        let identity = self.identity()?;
        let bus = Bus::connect(identity.bus_config()).await?;
        let mut ready = Vec::new();
        for _ in 0..STARTS {
            if let Some(earlier) = self.node.take() {
                earlier.stop()?;
            }
            let node = Running::writ("node", &self.stack.layout.node_config(setup::NODE))?;
            let answered = measure::until_done(node.since, process::PATIENCE, || async {
                governed::probe(&bus, &identity, task).await.map(drop)
            });
            ready.push(answered.await?);
            self.node = Some(node);
        }
        let idle_mib = idle(self.node.as_ref()).await;
        let sizes = governed::probe(&bus, &identity, task).await?;
        bus.close().await;
        Ok((sizes, Footprint { name: "node", ready_ms: measure::percentile(&mut ready, 50), idle_mib }))
    }

    /// What agent, server and node have computed so far.
    fn cpu(&self) -> Cpu {
        let server = self.stack.nats.pid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        Cpu {
            agent_us: process::cpu_us(std::process::id()),
            server_us: server.and_then(process::cpu_us),
            node_us: self.node.as_ref().map(Running::id).and_then(process::cpu_us),
        }
    }

    fn stop(self) -> Result<()> {
        [self.node, self.broker].into_iter().flatten().try_for_each(Running::stop)
    }
}

/// Milliseconds until a broker answers an operator.
async fn broker_answers(stack: &DevStack, broker: &Running) -> Result<f64> {
    let operator = stack.operator().await?;
    let ready = measure::until_done(broker.since, process::PATIENCE, || async {
        operator.ask(AdminWanted::Status).await.map(drop)
    });
    let ready = ready.await?;
    operator.close().await;
    Ok(ready)
}

async fn idle(process: Option<&Running>) -> Option<f64> {
    tokio::time::sleep(process::SETTLE).await;
    process.and_then(Running::resident_mib)
}
