//! `writ agent …`

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_bus::keyfile;
use writ_common::{
    ids::{AgentId, KeyId, TenantId},
    keys::PublicKey,
    time::Millis,
    wire::{AdminReply, AdminWanted, AgentInfo},
};
use writ_sdk::Identity;

use super::Common;
use crate::{
    dev::nats_conf::{AgentUser, agent_stanza},
    exit::Exit,
    operator::Operator,
};

/// Agents and their keys
#[derive(Subcommand)]
pub enum Agent {
    /// Every agent of the inventory
    List,
    /// One agent with its keys
    Show(Name),
    /// Hand out a join token that enrolls one key of an agent, once
    Enroll(Enroll),
    /// Make keys on this machine and enroll them with a join token
    Join(Box<Join>),
    /// Isolate an agent: nothing it holds or handed on works
    Quarantine(Name),
    /// End a quarantine
    Release(Name),
    /// Withdraw a key of an agent
    WithdrawKey(WithdrawKey),
}

#[derive(Args)]
pub struct Name {
    /// The agent's name
    agent: AgentId,
}

#[derive(Args)]
pub struct Enroll {
    /// The agent's name
    agent: AgentId,
    /// How long the token is good for
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

#[derive(Args)]
pub struct Join {
    /// The agent's name
    agent: AgentId,
    /// The tenant
    #[arg(long)]
    tenant: TenantId,
    /// File that holds the join token
    #[arg(long)]
    token_file: PathBuf,
    /// Seed of the tenant's bootstrap user
    #[arg(long)]
    bootstrap_file: PathBuf,
    /// The offline root's public key
    #[arg(long, value_parser = parse_key)]
    root_key: PublicKey,
    /// Server address; may be given several times
    #[arg(long = "bus", required = true)]
    bus_urls: Vec<String>,
    /// Root certificate for TLS
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// New folder for the identity
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
pub struct WithdrawKey {
    /// The agent's name
    agent: AgentId,
    /// The key's id
    key: KeyId,
}

fn parse_key(text: &str) -> Result<PublicKey, writ_common::keys::InvalidKey> {
    PublicKey::parse(text)
}

async fn agents(operator: &Operator) -> Result<Vec<AgentInfo>> {
    match operator.ask(AdminWanted::Agents).await? {
        AdminReply::Agents(agents) => Ok(agents),
        other => bail!("an answer to another question: {other:?}"),
    }
}

fn describe(info: &AgentInfo) -> String {
    let delegates: Vec<&str> = info.delegates_to.iter().map(AgentId::as_str).collect();
    let mut lines = vec![
        format!("agent        {}{}", info.agent, if info.quarantined { "   QUARANTINED" } else { "" }),
        format!("owner        {}", info.owner),
        format!("purpose      {}", info.description),
        format!(
            "delegates to {}",
            if delegates.is_empty() { "nobody".to_owned() } else { delegates.join(", ") }
        ),
    ];
    lines.extend(
        info.keys.iter().map(|key| format!("key          {}   NATS user {}", key.key, key.connection)),
    );
    lines.join("\n")
}

impl Agent {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Join(join) => join.run(common).await,
            Self::Enroll(enroll) => enroll.run(common).await,
            Self::List => {
                let agents = agents(&common.operator().await?).await?;
                let lines: Vec<String> = agents
                    .iter()
                    .map(|info| {
                        let keys = match info.keys.len() {
                            1 => "1 key".to_owned(),
                            count => format!("{count} keys"),
                        };
                        let state = if info.quarantined { "quarantined" } else { "" };
                        format!("{:<20} {:<16} {}  {state}", info.agent.as_str(), info.owner, keys)
                    })
                    .collect();
                common.say(lines.join("\n"), &serde_json::to_value(&agents)?)?;
                Ok(Exit::Ok)
            }
            Self::Show(Name { agent }) => {
                let agents = agents(&common.operator().await?).await?;
                let info = agents.iter().find(|info| info.agent == agent);
                let info = info.with_context(|| {
                    let names: Vec<&str> = agents.iter().map(|info| info.agent.as_str()).collect();
                    format!("there is no agent `{agent}`; there are {}", names.join(", "))
                })?;
                common.say(describe(info), &serde_json::to_value(info)?)?;
                Ok(Exit::Ok)
            }
            Self::Quarantine(Name { agent }) => {
                change(
                    common,
                    AdminWanted::Quarantine { agent: agent.clone(), on: true },
                    format!("`{agent}` is quarantined"),
                )
                .await
            }
            Self::Release(Name { agent }) => {
                change(
                    common,
                    AdminWanted::Quarantine { agent: agent.clone(), on: false },
                    format!("`{agent}` is released"),
                )
                .await
            }
            Self::WithdrawKey(WithdrawKey { agent, key }) => {
                let done = format!("key {key} of `{agent}` is withdrawn");
                change(common, AdminWanted::WithdrawKey { agent, key }, done).await
            }
        }
    }
}

async fn change(common: &Common, wanted: AdminWanted, done: String) -> Result<Exit> {
    let AdminReply::Done { epoch } = common.operator().await?.ask(wanted).await? else {
        bail!("an answer to another question");
    };
    common.say(format!("{done} as of epoch {epoch}"), &json!({"epoch": epoch}))?;
    Ok(Exit::Ok)
}

impl Enroll {
    async fn run(self, common: &Common) -> Result<Exit> {
        let life = Millis::from_secs(self.minutes.saturating_mul(60));
        let operator = common.operator().await?;
        let token = operator.join_token(&self.agent, life).await?;
        let text = format!(
            "{token}\n\nThis token enrolls one key of `{0}`, once, within {1} minutes. Where the agent will run, put it\n\
             into a file and run\n  writ agent join {0} --tenant {2} --token-file <file> --bootstrap-file <seed> \\\n    \
             --root-key <key> --bus <url> --out <folder>\n\
             which prints the entry the server's accounts file then needs.",
            self.agent,
            self.minutes,
            operator.tenant()
        );
        common.say(text, &json!({"agent": self.agent, "token": token, "minutes": self.minutes}))?;
        Ok(Exit::Ok)
    }
}

impl Join {
    async fn run(self, common: &Common) -> Result<Exit> {
        let token = keyfile::read_secret(&self.token_file)?;
        let (tenant, agent) = (self.tenant.clone(), self.agent.clone());
        let identity = Identity::generate(tenant, agent, self.root_key, self.bus_urls, self.ca_file)?;
        if self.out.exists() {
            bail!("{} exists already; name a new folder", self.out.display());
        }
        let bootstrap = keyfile::read_user(&self.bootstrap_file)?;
        // Saved first: an enrolled key nobody has would be worth nothing and look like one that was lost.
        identity.save(&self.out)?;
        let key = match writ_sdk::enroll(&identity, token.trim(), bootstrap).await {
            Ok(key) => key,
            Err(error) => {
                std::fs::remove_dir_all(&self.out)?;
                return Err(error.into());
            }
        };
        let nkey = identity.user.public().to_owned();
        let stanza =
            agent_stanza(&self.tenant, &AgentUser { agent: self.agent.clone(), key: key.clone(), nkey });
        let text = format!(
            "key {key} of `{}` is enrolled; the identity is in {}\n\n\
             Add this user to AGENTS_{} in the server's accounts file and reload it (`nats-server --signal reload`):\n\n{stanza}",
            self.agent,
            self.out.display(),
            self.tenant
        );
        common.say(
            text,
            &json!({"agent": self.agent, "key": key, "folder": self.out, "accounts_entry": stanza}),
        )?;
        Ok(Exit::Ok)
    }
}
