//! `writ mcp`: an MCP server for an agent.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_bus::{SystemEntropy, keyfile};
use writ_common::{entropy::draw, ids::Resource};
use writ_mcp::{Bearer, Gateway, GatewayOptions, HttpGateway, HttpOptions, RemoteOptions};
use writ_sdk::{Agent, Identity, NewTask, Task, UnverifiedCapability};
use writ_telemetry::LogFormat;

use super::{Common, server::until_asked_to_end};
use crate::exit::Exit;

/// An MCP server for an agent: offers the tools its task allows, and signs every call onto the bus
///
/// On standard input and output, or over HTTP with `--http`. Every call is decided, recorded and labelled by a node
/// before it is done; what a model is told of a refusal is the node's reason.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Mcp {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The agent, by the name of its folder among those the profile names
    #[arg(long, conflicts_with = "identity")]
    agent: Option<String>,
    /// The agent, by the folder of its identity
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Another agent whose key is here and who may be handed a part of the task
    #[arg(long = "with", value_name = "AGENT")]
    with: Vec<String>,
    #[command(flatten)]
    authority: Authority,
    /// The kind of task to start, as the policy names it
    #[arg(long, default_value = "mcp")]
    kind: String,
    /// What the user asks for, in their words: what stands in it may be trusted in arguments
    #[arg(long, default_value = "")]
    instruction: String,
    /// Offer this resource only, for example `tool.github`; the rest is given up
    #[arg(long, value_name = "RESOURCE")]
    only: Vec<Resource>,
    /// How many seconds a held call waits for people before it is answered as held
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    wait_approval: u64,
    /// Keep the nodes' receipts at the end of this file, for `writ audit verify --receipts`
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,
    /// Listen on this address of the machine instead, for example `127.0.0.1:0`
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// The file with the secret that clients have to show; made if it is not there
    #[arg(long, requires = "http", conflicts_with = "open")]
    bearer_file: Option<PathBuf>,
    /// Ask clients for no secret: whoever reaches the port acts as the agent
    #[arg(long, requires = "http")]
    open: bool,
    /// Serve users who bring tokens of their own (OAuth 2.1), each in a task of their own, under this URL
    #[arg(long, requires_all = ["http", "issuer"], conflicts_with_all = ["user", "token_file", "login", "capability", "open", "bearer_file"], value_name = "URL")]
    remote: Option<String>,
    /// An issuer whose tokens the broker takes
    #[arg(long, requires = "remote", value_name = "URL")]
    issuer: Vec<String>,
}

#[derive(Subcommand)]
enum Verb {
    /// Put Writ in front of every MCP server a program is configured with, observing at first
    Adopt(Box<super::adopt::Adopt>),
}

/// On whose authority a task is started, or which one is gone on with.
#[derive(Args)]
struct Authority {
    /// A user of the development identity provider
    #[arg(long)]
    user: Option<String>,
    /// File with the user's token
    #[arg(long, conflicts_with = "user")]
    token_file: Option<PathBuf>,
    /// The user who is logged in by `writ login`
    #[arg(long, conflicts_with_all = ["user", "token_file"])]
    login: bool,
    /// File with a capability of a task that runs already
    #[arg(long, conflicts_with_all = ["user", "token_file", "login"])]
    capability: Option<PathBuf>,
}

impl Mcp {
    pub(super) async fn run(mut self, common: &Common) -> Result<Exit> {
        if let Some(Verb::Adopt(adopt)) = self.verb.take() {
            return adopt.run(common).await;
        }
        let telemetry = writ_telemetry::init("writ-mcp", LogFormat::Lines)?;
        let served = self.serve(common).await;
        telemetry.shutdown();
        served.map(|()| Exit::Ok)
    }

    async fn serve(self, common: &Common) -> Result<()> {
        let identity = self.identity(common)?;
        let name = identity.agent.clone();
        let others = self.with.iter().map(|name| common.profile()?.identity(name)).collect::<Result<_>>()?;
        let options = GatewayOptions {
            only: self.only.iter().cloned().collect(),
            others,
            patience: Duration::from_secs(self.wait_approval),
        };
        let agent = Agent::connect(identity).await?;
        if let Some(file) = &self.receipts {
            agent.keep_receipts(file).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        if let (Some(resource), Some(address)) = (&self.remote, self.http) {
            let remote = RemoteOptions {
                address,
                resource: resource.clone(),
                issuers: self.issuer.clone(),
                kind: self.kind.clone(),
                gateway: options,
            };
            let listening = writ_mcp::serve_remote(agent, remote).await?;
            say(common, &format!("{resource}, behind {}", listening.url()), &listening, None)?;
            return until_stopped(listening).await;
        }
        let task = self.task(common, &agent).await?;
        tracing::info!("task {} as {name}", task.id());
        let gateway = Gateway::new(task, options).await?;
        let Some(address) = self.http else {
            return tokio::select! {
                served = writ_mcp::serve_stdio(gateway) => Ok(served?),
                asked = until_asked_to_end() => asked,
            };
        };
        let (bearer, file) = match (self.open, self.bearer_file) {
            (true, _) => (Bearer::Open, None),
            (false, file) => {
                let file =
                    file.unwrap_or_else(|| common.profile.with_file_name(format!("mcp-{name}.bearer")));
                (Bearer::Secret(secret_at(&file)?), Some(file))
            }
        };
        let listening = writ_mcp::serve_http(gateway, HttpOptions { address, bearer }).await?;
        let shown = match &file {
            Some(file) => format!("{} with the secret in {}", listening.url(), file.display()),
            None => format!("{} for whoever reaches it", listening.url()),
        };
        say(common, &shown, &listening, file.as_deref())?;
        until_stopped(listening).await
    }

    fn identity(&self, common: &Common) -> Result<Identity> {
        match (&self.identity, &self.agent) {
            (Some(folder), _) => Ok(Identity::load(folder)?),
            (None, Some(name)) => common.profile()?.identity(name),
            (None, None) => bail!("name the agent: `--agent <name>` or `--identity <folder>`"),
        }
    }

    async fn task(&self, common: &Common, agent: &Agent) -> Result<Task> {
        let token = match &self.authority {
            Authority { capability: Some(file), .. } => {
                return Ok(Task::resume(agent, read_capability(file)?)?);
            }
            Authority { token_file: Some(file), .. } => keyfile::read_secret(file)?.trim().to_owned(),
            Authority { login: true, .. } => crate::login::token(&common.profile).await?,
            Authority { user: Some(user), .. } => {
                super::task::development_token(common, &common.profile()?.idp_url, user)?
            }
            _ => bail!(
                "nobody is named on whose authority this is: `--login` after `writ login`, `--token-file <file>`, \
                 `--user <name>` of the development identity provider, or `--capability <file>` of a task that runs"
            ),
        };
        Ok(agent.start_task(NewTask::new(&self.kind, token, &self.instruction)).await?)
    }
}

/// A capability as `writ task start` writes it, in hex, or as `writ_delegate` returns it, in base64url.
fn read_capability(file: &Path) -> Result<UnverifiedCapability> {
    let text = keyfile::read_secret(file)?;
    let text = text.trim();
    let bytes = hex::decode(text).ok().or_else(|| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
    let bytes = bytes.with_context(|| format!("{} holds no capability", file.display()))?;
    UnverifiedCapability::parse(&bytes).map_err(|reason| anyhow::anyhow!("{}: {reason}", file.display()))
}

fn secret_at(file: &Path) -> Result<String> {
    if !file.exists() {
        keyfile::write_secret(file, &hex::encode(draw::<32>(&mut SystemEntropy)))?;
    }
    let secret = keyfile::read_secret(file)?.trim().to_owned();
    if secret.len() < 32 {
        bail!("{} holds fewer than 32 characters, which can be guessed", file.display());
    }
    Ok(secret)
}

/// Where it listens goes to standard error, as everything a program beside an agent has to say.
fn say(common: &Common, text: &str, listening: &HttpGateway, file: Option<&Path>) -> Result<()> {
    let mut err = std::io::stderr().lock();
    if common.is_for_people() {
        writeln!(err, "writ mcp: {text}")?;
    } else {
        writeln!(err, "{}", json!({"url": listening.url(), "bearer_file": file}))?;
    }
    Ok(())
}

async fn until_stopped(listening: HttpGateway) -> Result<()> {
    until_asked_to_end().await?;
    listening.stop().await;
    Ok(())
}
