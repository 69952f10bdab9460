//! `writ capability …`

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use writ_bus::{SystemClock, SystemEntropy, keyfile};
use writ_common::{
    capability::{Link, Narrowing, Right, UnverifiedCapability},
    control::RevocationTarget,
    entropy::draw,
    ids::{AgentId, CapabilityId, KeyId, TaskId, UserId},
    keys::PublicKey,
    time::{Millis, Timestamp},
};

use super::Common;
use crate::{
    exit::{Denied, Exit},
    view::{Colour, colour},
};

/// Look at, narrow and delegate capabilities
#[derive(Subcommand)]
pub enum Capability {
    /// Chain, rights, conditions and expiry, as a tree
    Inspect(Inspect),
    /// Give something up and keep the capability; works offline
    Narrow(Narrow),
    /// Hand the capability to another agent's key; works offline
    Delegate(Delegate),
    /// Revoke a capability, a task, an agent, a user, a key or a hop
    Revoke(Revoke),
}

#[derive(Args)]
pub struct Inspect {
    /// The capability's file; `-` for standard input
    file: PathBuf,
}

#[derive(Args)]
pub struct Narrow {
    /// The capability's file
    file: PathBuf,
    /// The holder's key file
    #[arg(long)]
    key: PathBuf,
    #[command(flatten)]
    less: Less,
    /// Where the result goes; standard output by default
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub struct Delegate {
    /// The capability's file
    file: PathBuf,
    /// The holder's key file
    #[arg(long)]
    key: PathBuf,
    /// The agent it is handed to
    #[arg(long)]
    to: AgentId,
    /// That agent's public key
    #[arg(long, value_parser = |text: &str| PublicKey::parse(text))]
    to_key: PublicKey,
    #[command(flatten)]
    less: Less,
    /// Where the result goes; standard output by default
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is given up.
#[derive(Args)]
pub struct Less {
    /// Keep this right and no others; may be given several times
    #[arg(long = "only", value_parser = Right::parse)]
    only: Vec<Right>,
    /// End it this many minutes from now
    #[arg(long)]
    minutes: Option<u64>,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct Revoke {
    /// A capability by its id, with all renewals and delegations
    #[arg(long, group = "target")]
    capability: Option<CapabilityId>,
    /// A task with all its descendants
    #[arg(long, group = "target")]
    task: Option<TaskId>,
    /// Everything an agent holds or handed on until now
    #[arg(long, group = "target")]
    agent: Option<AgentId>,
    /// Every chain a key is part of
    #[arg(long, group = "target")]
    holder: Option<KeyId>,
    /// Everything issued on a user's authority until now: issuer and subject
    #[arg(long, group = "target", num_args = 2, value_names = ["ISSUER", "SUBJECT"])]
    user: Option<Vec<String>>,
    /// What one key handed to another: capability, delegator and delegatee
    #[arg(long, group = "target", num_args = 3, value_names = ["CAPABILITY", "FROM_KEY", "TO_KEY"])]
    hop: Option<Vec<String>>,
    /// Return only once no node can act under it any more
    #[arg(long)]
    wait: bool,
}

fn read_capability(file: &Path) -> Result<UnverifiedCapability> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    }
    let bytes = hex::decode(text.trim()).with_context(|| format!("{} is not hex", file.display()))?;
    UnverifiedCapability::parse(&bytes).map_err(|reason| Denied(reason.to_string()).into())
}

fn write_capability(common: &Common, out: Option<&Path>, capability: &UnverifiedCapability) -> Result<Exit> {
    let text = hex::encode(capability.as_bytes());
    if let Some(out) = out {
        keyfile::write_secret(out, &format!("{text}\n"))?;
        let rights: Vec<String> = capability.rights().iter().map(ToString::to_string).collect();
        let said = format!(
            "{}: held by `{}`, rights {}",
            out.display(),
            capability.chain().caller(),
            rights.join(", ")
        );
        common.say(said, &to_json(capability))?;
    } else {
        common.say(&text, &json!({"capability": text}))?;
    }
    Ok(Exit::Ok)
}

impl Less {
    fn narrowing(self) -> Narrowing {
        let mut narrowing = Narrowing::new();
        if !self.only.is_empty() {
            narrowing = narrowing.only(self.only);
        }
        if let Some(minutes) = self.minutes {
            narrowing = narrowing.until(now().after(Millis::from_secs(minutes.saturating_mul(60))));
        }
        narrowing
    }
}

fn now() -> Timestamp {
    SystemClock::new().now().wall
}

impl Capability {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Inspect(inspect) => {
                let capability = read_capability(&inspect.file)?;
                common.say(tree(&capability, common.colour()), &to_json(&capability))?;
                Ok(Exit::Ok)
            }
            Self::Narrow(narrow) => {
                let key = keyfile::read_key(&narrow.key)?;
                let capability = read_capability(&narrow.file)?;
                let narrowed =
                    capability.narrow(&key, &narrow.less.narrowing(), &draw(&mut SystemEntropy))?;
                write_capability(common, narrow.out.as_deref(), &narrowed)
            }
            Self::Delegate(delegate) => {
                let key = keyfile::read_key(&delegate.key)?;
                let capability = read_capability(&delegate.file)?;
                let (narrowing, next) = (delegate.less.narrowing(), draw(&mut SystemEntropy));
                let delegated =
                    capability.delegate(&key, &delegate.to, &delegate.to_key, &narrowing, &next)?;
                write_capability(common, delegate.out.as_deref(), &delegated)
            }
            Self::Revoke(revoke) => revoke.run(common).await,
        }
    }
}

impl Revoke {
    fn target(&self) -> Result<RevocationTarget> {
        let texts = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        Ok(if let Some(capability) = &self.capability {
            RevocationTarget::Capability(capability.clone())
        } else if let Some(task) = &self.task {
            RevocationTarget::Task(task.clone())
        } else if let Some(agent) = &self.agent {
            RevocationTarget::Agent(agent.clone())
        } else if let Some(holder) = &self.holder {
            RevocationTarget::Holder(holder.clone())
        } else if let [issuer, subject] = texts(&self.user).as_slice() {
            RevocationTarget::User(UserId::parse(issuer.as_str(), subject.as_str())?)
        } else if let [capability, delegator, delegatee] = texts(&self.hop).as_slice() {
            RevocationTarget::Hop {
                capability: CapabilityId::parse(capability.as_str())?,
                delegator: KeyId::parse(delegator.as_str())?,
                delegatee: KeyId::parse(delegatee.as_str())?,
            }
        } else {
            anyhow::bail!("nothing to revoke")
        })
    }

    async fn run(self, common: &Common) -> Result<Exit> {
        let target = self.target()?;
        let epoch = common.operator().await?.revoke(target, self.wait).await?;
        let everywhere = if self.wait { ", and no node can act under it any more" } else { "" };
        common.say(
            format!("revoked as of epoch {epoch}{everywhere}"),
            &json!({"epoch": epoch, "everywhere": self.wait}),
        )?;
        Ok(Exit::Ok)
    }
}

fn to_json(capability: &UnverifiedCapability) -> Value {
    let (grant, chain) = (capability.grant(), capability.chain());
    let texts = |rights: &mut dyn Iterator<Item = &Right>| -> Vec<String> {
        rights.map(ToString::to_string).collect()
    };
    let links: Vec<Value> = chain
        .links()
        .iter()
        .map(|link| match link {
            Link::Delegated(hop) => json!({
                "delegated": {"from": hop.from, "to": hop.to, "depth": hop.depth, "key": hop.key.to_string()},
                "checks": hop.checks.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "gave_up": texts(&mut hop.gave_up.iter()), "id": hop.id,
            }),
            Link::Narrowed(narrowed) => json!({
                "narrowed": {"by": narrowed.by},
                "checks": narrowed.checks.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "gave_up": texts(&mut narrowed.gave_up.iter()), "id": narrowed.id,
            }),
        })
        .collect();
    json!({
        "capability": grant.capability, "serial": grant.serial, "tenant": grant.tenant, "task": grant.task,
        "user": {"issuer": grant.user.issuer(), "subject": grant.user.subject()},
        "agent": grant.agent, "holder": chain.holder().to_string(), "held_by": chain.caller(),
        "granted": texts(&mut grant.rights.iter()), "rights": texts(&mut capability.rights().iter()),
        "domain": grant.domain.to_string(), "max_depth": grant.max_depth, "min_epoch": grant.min_epoch,
        "expires": capability.expires().to_string(), "chain": links, "chain_id": capability.chain_id(),
        "bytes": capability.as_bytes().len(), "signatures_checked": false,
    })
}

fn tree(capability: &UnverifiedCapability, colour: Colour) -> String {
    let (grant, chain) = (capability.grant(), capability.chain());
    let bold = |text: &str| colour.paint(colour::BOLD, text);
    let dim = |text: &str| colour.paint(colour::DIM, text);
    let mut text = String::new();
    let left = capability.expires().since(now());
    let life = if left == Millis(0) { colour.paint(colour::RED, "expired") } else { format!("in {left}") };
    let _ = writeln!(text, "{} {} #{}", bold("capability"), grant.capability, grant.serial);
    let _ = writeln!(text, "  task     {}   domain {}", grant.task, grant.domain);
    let _ = writeln!(text, "  user     {}", grant.user);
    let _ = writeln!(text, "  expires  {}   {life}", capability.expires());
    let _ = writeln!(
        text,
        "  size     {} bytes, {} blocks; signatures are checked by nodes",
        capability.as_bytes().len(),
        chain.links().len() + 1
    );
    let _ = writeln!(
        text,
        "{}   {}",
        bold(grant.agent.as_str()),
        dim(&format!("key {}", chain.origin_key().id()))
    );
    for right in &grant.rights {
        let _ = writeln!(text, "  {} {right}", colour.paint(colour::GREEN, "may"));
    }
    for bound in &grant.bounds {
        let _ = writeln!(text, "  if  {bound}");
    }
    let mut indent = String::new();
    for link in chain.links() {
        let (line, checks, gave_up) = match link {
            Link::Delegated(hop) => {
                let line = format!(
                    "{indent}└─ {}   {}",
                    bold(hop.to.as_str()),
                    dim(&format!(
                        "from {}, hop {} of {}, key {}",
                        hop.from,
                        hop.depth,
                        grant.max_depth,
                        hop.key.id()
                    ))
                );
                (line, &hop.checks, &hop.gave_up)
            }
            Link::Narrowed(narrowed) => (
                format!("{indent}└─ {}", dim(&format!("narrowed by {}", narrowed.by))),
                &narrowed.checks,
                &narrowed.gave_up,
            ),
        };
        let _ = writeln!(text, "{line}");
        indent.push_str("   ");
        for right in gave_up {
            let _ = writeln!(text, "{indent}  {} {right}", colour.paint(colour::RED, "not"));
        }
        for check in checks {
            let _ = writeln!(text, "{indent}  if  {check}");
        }
    }
    let rights: Vec<String> = capability.rights().iter().map(ToString::to_string).collect();
    let _ = writeln!(
        text,
        "{} may still: {}",
        bold(chain.caller().as_str()),
        if rights.is_empty() { "nothing".to_owned() } else { rights.join(", ") }
    );
    text
}
