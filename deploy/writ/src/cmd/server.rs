//! `writ dev`, `writ broker`, `writ node`: what stays running.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use writ_telemetry::LogFormat;

use super::Common;
use crate::{
    dev::{DevOptions, DevStack},
    exit::Exit,
    run,
};

/// Start everything on this machine
#[derive(Args)]
pub struct Dev {
    /// Where keys, data and state go
    #[arg(long, default_value = ".writ")]
    dir: PathBuf,
    /// Port of the bus; a free one by default, the same at every start
    #[arg(long)]
    port: Option<u16>,
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
}

/// Run a broker
#[derive(Args)]
pub struct Broker {
    /// Its writ.toml
    #[arg(long, default_value = "writ.toml")]
    config: PathBuf,
    /// Throw the index away and build it again from the stream
    #[arg(long)]
    rebuild: bool,
}

/// Run a node
#[derive(Args)]
pub struct Node {
    /// Its writ.toml
    #[arg(long, default_value = "writ.toml")]
    config: PathBuf,
    /// Forget what earlier runs knew of the streams, and trust them as they are now
    #[arg(long)]
    accept_streams: bool,
}

/// How often `writ dev` looks for what changed in its folder.
const REFRESH_EVERY: Duration = Duration::from_millis(500);

/// Waits until somebody wants us to end.
pub(super) async fn until_asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be watched")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("signals cannot be watched"),
        _ = terminate.recv() => Ok(()),
    }
}

/// A port of 0 in the configuration is one of the system's choice.
fn say_where(http: Option<SocketAddr>) {
    if let Some(address) = http {
        tracing::info!("probes and metrics on http://{address}");
    }
}

impl Dev {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let telemetry = writ_telemetry::init("writ-dev", LogFormat::Lines)?;
        let nodes = (1..=self.nodes).map(|number| format!("node-{number}")).collect();
        let options =
            DevOptions { folder: self.dir.clone(), port: self.port, servers: 1, nodes, start_core: true };
        let mut stack = DevStack::start(options).await?;
        let (dir, url, idp) = (self.dir.display().to_string(), stack.nats.url(), stack.idp.url());
        let probes = |address: Option<SocketAddr>| {
            address.map_or_else(|| "nowhere".to_owned(), |address| format!("http://{address}"))
        };
        let broker_http = probes(stack.broker_http());
        let node_names = (1..=self.nodes).map(|number| format!("node-{number}"));
        let node_http: Vec<String> = node_names.map(|name| probes(stack.node_http(&name))).collect();
        let profile = if dir == ".writ" { String::new() } else { format!(" --profile {dir}/operator.toml") };
        let text = format!(
            "writ dev: everything is running on this machine, on loopback only\n\n\
             bus        {url}\n\
             broker     broker-1   (config {dir}/broker.toml)\n\
             node       {nodes}   (config {dir}/node-1.toml)\n\
             tools      tool.crm:read on {dir}/data/crm.db, tool.mail:draft into {dir}/data/drafts,\n           \
             tool.mail:send into {dir}/data/outbox once an approver has said yes\n\
             metrics    {broker_http} (broker), {nodes_http} (nodes); /metrics, /healthz, /readyz\n\
             identity   {idp}      users alice (analyst), bob (approver)\n\
             agents     planner, researcher, mailer   (keys in {dir}/agents)\n\
             policies   {dir}/policies\n\
             approvers  bob, carol   (profiles {dir}/bob.toml, {dir}/carol.toml)\n\n\
             In another terminal:\n  \
             writ task start customer-answer --user alice --agent planner{profile}\n  \
             writ capability inspect {dir}/task.cap\n  \
             writ audit tail{profile}\n  \
             writ approval list{profile}\n\n\
             Ctrl-C stops everything; `rm -r {dir}` forgets it.",
            nodes_http = node_http.join(", "),
            nodes = (1..=self.nodes).map(|number| format!("node-{number}")).collect::<Vec<_>>().join(", "),
        );
        let answer =
            json!({"bus": url, "idp": idp, "dir": dir, "http": {"broker": broker_http, "nodes": node_http}});
        common.say(text, &answer)?;
        let ended = until_asked_to_end();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => break ended?,
                () = tokio::time::sleep(REFRESH_EVERY) => {}
            }
            // Not within the choice: whoever wants an end waits until nodes are up or down.
            if let Err(error) = stack.refresh().await {
                tracing::error!("{error:#}");
            }
        }
        stack.stop().await;
        telemetry.shutdown();
        Ok(Exit::Ok)
    }
}

impl Broker {
    pub(super) async fn run(self) -> Result<Exit> {
        let telemetry = writ_telemetry::init("writ-broker", LogFormat::Lines)?;
        let mut broker = run::start_broker(&self.config, self.rebuild).await?;
        say_where(broker.http_address());
        broker.ready().await;
        tracing::info!("ready");
        until_asked_to_end().await?;
        broker.stop().await;
        telemetry.shutdown();
        Ok(Exit::Ok)
    }
}

impl Node {
    pub(super) async fn run(self) -> Result<Exit> {
        let telemetry = writ_telemetry::init("writ-node", LogFormat::Lines)?;
        let mut node = run::start_node(&self.config, self.accept_streams).await?;
        say_where(node.http_address());
        // A node without a broker serves denials; that is no reason not to be stopped.
        tokio::select! {
            () = node.ready() => tracing::info!("ready"),
            ended = until_asked_to_end() => {
                ended?;
                node.stop().await;
                return Ok(Exit::Ok);
            }
        }
        until_asked_to_end().await?;
        node.stop().await;
        telemetry.shutdown();
        Ok(Exit::Ok)
    }
}
