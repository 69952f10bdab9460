//! `writ mcp adopt`

mod node;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use writ_bus::{NatsUser, keyfile};
use writ_common::{
    ids::{AgentId, Resource, RoleId},
    policy::PolicyBundle,
    time::Millis,
    wire::AdminWanted,
};
use writ_sdk::Identity;

use super::{Common, policy_folder::PolicyFolder};
use crate::{
    adopt::{
        manifest::{Manifest, Manifests, backup_of, digest, replace},
        texts,
    },
    exit::Exit,
    mcp_clients::ClientConfig,
    operator::{Operator, OperatorProfile},
};
use node::NodeFiles;
use plan::Plan;

/// The user of `writ dev` an adopted program works for, unless somebody says otherwise.
const DEVELOPMENT_USER: &str = "alice";
/// Their role.
const DEVELOPMENT_ROLE: &str = "analyst";
/// How long a new agent may take to be let in: its key is enrolled, and the server has to have read its entry.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a connection for enrolling is tried.
const ENROLL_ATTEMPTS: u32 = 5;

/// Put Writ in front of every MCP server a program is configured with, observing at first
///
/// Takes the configuration of Claude, Cursor, VS Code, Windsurf, Zed, or any file with `mcpServers`. Each server moves
/// behind a node, with a contract in observe mode; its entry runs `writ mcp` instead, under the same name and with the
/// same tools. The original is kept beside the file, and `--undo` puts it back.
#[derive(Args)]
pub struct Adopt {
    /// The configuration, for example `.mcp.json`
    file: PathBuf,
    /// Put the file back as it was, and take servers, contracts and rights out again
    #[arg(long, conflicts_with_all = ["agent", "user", "login", "role", "days", "approver", "drop_refused"])]
    undo: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Undo even if the file was changed since; what was changed is lost
    #[arg(long, requires = "undo")]
    force: bool,
    /// The agent that stands for the program; `claude`, `cursor`, … by default
    #[arg(long)]
    agent: Option<AgentId>,
    /// The user of the development identity provider it works for
    #[arg(long, conflicts_with = "login")]
    user: Option<String>,
    /// It works for whoever is logged in by `writ login`
    #[arg(long)]
    login: bool,
    /// The role whose users may have it work
    #[arg(long)]
    role: Option<RoleId>,
    /// How many days to observe
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..=90))]
    days: u64,
    /// The role that approves calls once they are enforced
    #[arg(long)]
    approver: Option<RoleId>,
    /// Adopt a server also if some of its tools cannot be offered; the program then misses those
    #[arg(long)]
    drop_refused: bool,
    /// The policy folder; `policies` beside the profile if absent
    #[arg(long)]
    policies: Option<PathBuf>,
    /// The writ.toml of the node the servers go behind; that of `writ dev` if absent
    #[arg(long)]
    node_config: Option<PathBuf>,
    /// Seed of the tenant's bootstrap user, by which the agent's key is enrolled; that of `writ dev` if absent
    #[arg(long)]
    bootstrap_file: Option<PathBuf>,
}

/// Where everything is.
struct Setting {
    profile_file: PathBuf,
    profile: OperatorProfile,
    policies: PathBuf,
    node: NodeFiles,
    bootstrap_file: PathBuf,
    manifests: Manifests,
}

impl Setting {
    fn new(adopt: &Adopt, common: &Common) -> Result<Self> {
        let profile = common.profile()?;
        let profile_file = fs::canonicalize(&common.profile)?;
        let root = profile_file.parent().unwrap_or(Path::new("/")).to_owned();
        let node = match &adopt.node_config {
            Some(file) => NodeFiles::File(
                fs::canonicalize(file).with_context(|| format!("{} cannot be read", file.display()))?,
            ),
            None if profile.idp_url.is_some() => NodeFiles::Development(root.clone()),
            None => bail!(
                "{} is not the profile of `writ dev`: name the writ.toml of the node with `--node-config`",
                common.profile.display()
            ),
        };
        let policies = adopt.policies.clone().unwrap_or_else(|| root.join("policies"));
        let bootstrap_file =
            adopt.bootstrap_file.clone().unwrap_or_else(|| root.join("keys").join("bootstrap.nkey"));
        let manifests = Manifests::beside(&profile_file);
        Ok(Self { profile_file, profile, policies, node, bootstrap_file, manifests })
    }

    fn identity_folder(&self, agent: &AgentId) -> Result<PathBuf> {
        self.profile.agent_folder(agent.as_str())
    }
}

impl Adopt {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let shown = self.file.display();
        let file = fs::canonicalize(&self.file).with_context(|| format!("{shown} cannot be read"))?;
        let text = fs::read_to_string(&file).with_context(|| format!("{shown} cannot be read"))?;
        let setting = Setting::new(&self, common)?;
        let operator = Operator::connect(&setting.profile)
            .await
            .context("the bus (is `writ dev` running, or the set-up whose profile this is?)")?;
        let known = setting.manifests.all()?.into_iter().find(|manifest| manifest.file == file);
        if self.undo {
            return self.undo(common, &setting, &operator, &file, &text, known).await;
        }
        if let Some(manifest) = &known {
            if digest(&text) != manifest.before {
                return self.already(common, manifest, &file, &text);
            }
            // An adoption that did not come to its end: what it left is taken out, and it begins again.
            if !self.dry_run {
                take_out(&setting, &operator, manifest).await?;
            }
        }
        let config = ClientConfig::read(&file, &text)?;
        let backup = backup_of(&file);
        if fs::read_to_string(&backup).is_ok_and(|kept| kept != text) {
            bail!(
                "{} is there already and holds something else, so it is not overwritten; move it away first",
                backup.display()
            );
        }
        let folder = PolicyFolder::open(&setting.policies, &operator).await?;
        let plan = Plan::make(&self, common, &setting, &config, &folder).await?;
        let Some(plan) = plan.ready() else {
            let (text, json) = plan.nothing();
            common.say(text, &json)?;
            return Ok(if plan.left.is_empty() { Exit::Ok } else { Exit::Failure });
        };
        if self.dry_run {
            let (text, json) = plan.shown(&self.file, "would be adopted");
            common.say(format!("{text}\nnothing was changed"), &json)?;
            return Ok(Exit::Ok);
        }
        keep(&backup, &file, &text)?;
        if let Err(error) = carry_out(&setting, &operator, folder, plan).await {
            let undone = take_out(&setting, &operator, &plan.manifest).await;
            drop(fs::remove_file(&backup));
            return Err(match undone {
                Ok(()) => error.context(format!("{shown} is as it was, and nothing else is left")),
                Err(fault) => error.context(format!(
                    "{shown} is as it was; what was set up for it could not be taken out: {fault:#}; \
                     `writ mcp adopt {shown} --undo` tries again"
                )),
            });
        }
        let (text, json) = plan.shown(&self.file, "adopted");
        let text = format!("{text}\n{}", plan.next(&self.file, &backup, &setting.node));
        common.say(text, &json)?;
        Ok(Exit::Ok)
    }

    /// A file that was adopted before.
    fn already(&self, common: &Common, manifest: &Manifest, file: &Path, text: &str) -> Result<Exit> {
        let config = ClientConfig::read(file, text)?;
        let writ = std::env::current_exe().unwrap_or_default();
        let fresh: Vec<&str> = config
            .entries
            .iter()
            .filter(|entry| !entry.is_governed(&writ))
            .map(|entry| entry.name.as_str())
            .collect();
        if digest(text) != manifest.after && !fresh.is_empty() {
            bail!(
                "{0} was adopted and has changed since, and {1} is not governed: put those entries aside, run \
                 `writ mcp adopt {0} --undo`, put them in, and adopt again",
                self.file.display(),
                fresh.join(", ")
            );
        }
        let names: Vec<&str> = manifest.servers.iter().map(|server| server.resource.as_str()).collect();
        common.say(
            format!(
                "{} is adopted already, as agent `{}` with {}; `--undo` takes that back",
                self.file.display(),
                manifest.agent,
                names.join(", ")
            ),
            &json!({"agent": manifest.agent, "adopted": names, "changed": false}),
        )?;
        Ok(Exit::Ok)
    }

    async fn undo(
        &self,
        common: &Common,
        setting: &Setting,
        operator: &Operator,
        file: &Path,
        text: &str,
        known: Option<Manifest>,
    ) -> Result<Exit> {
        let (shown, backup) = (self.file.display(), backup_of(file));
        let manifest = known.with_context(|| {
            format!("{shown} was not adopted with the profile {}", setting.profile_file.display())
        })?;
        let is_original = digest(text) == manifest.before;
        if !is_original {
            ensure!(
                digest(text) == manifest.after || self.force,
                "{shown} was changed since it was adopted; `--force` puts the original back and loses that change"
            );
            let kept = fs::read_to_string(&backup)
                .with_context(|| format!("{} cannot be read, and it is the original", backup.display()))?;
            ensure!(
                digest(&kept) == manifest.before,
                "{} is not the original that was kept; put the original there",
                backup.display()
            );
        }
        let names: Vec<&str> = manifest.servers.iter().map(|server| server.resource.as_str()).collect();
        let json =
            json!({"file": file, "agent": manifest.agent, "taken_out": names, "changed": !self.dry_run});
        if self.dry_run {
            common.say(format!("{shown} would be put back, and {} taken out", names.join(", ")), &json)?;
            return Ok(Exit::Ok);
        }
        // First the file: from here on the program reaches its servers by itself again.
        if is_original {
            drop(fs::remove_file(&backup));
        } else {
            fs::rename(&backup, file).with_context(|| format!("{shown} cannot be written"))?;
        }
        take_out(setting, operator, &manifest).await.with_context(|| {
            format!("{shown} is as it was; `writ mcp adopt {shown} --undo` goes on with the rest")
        })?;
        common.say(format!("{shown} is as it was; {} is taken out", names.join(", ")), &json)?;
        Ok(Exit::Ok)
    }
}

/// Keeps the original, with its mode, and makes sure that it is on the disk.
fn keep(backup: &Path, file: &Path, text: &str) -> Result<()> {
    let cannot = || format!("{} cannot be written", backup.display());
    if backup.exists() {
        return Ok(());
    }
    let mut kept = fs::OpenOptions::new().write(true).create_new(true).open(backup).with_context(cannot)?;
    kept.set_permissions(fs::metadata(file)?.permissions()).with_context(cannot)?;
    kept.write_all(text.as_bytes()).and_then(|()| kept.sync_all()).with_context(cannot)
}

/// Everything but the backup; the file itself comes last, so that a program that starts meanwhile finds the old entries
/// or new ones that work.
async fn carry_out(setting: &Setting, operator: &Operator, folder: PolicyFolder, plan: &Plan) -> Result<()> {
    setting.manifests.save(&plan.manifest)?;
    for server in &plan.servers {
        setting.node.put(&server.resource, &server.upstream, &server.secrets)?;
    }
    let resources: Vec<&Resource> = plan.servers.iter().map(|server| &server.resource).collect();
    setting.node.wait(&resources).await?;
    folder.put_in_force(operator, &plan.changes).await?;
    enroll(setting, operator, &plan.manifest.agent).await?;
    replace(&plan.manifest.file, plan.rewritten.as_bytes())
}

/// Makes the agent's keys and enrolls them, unless it has some.
async fn enroll(setting: &Setting, operator: &Operator, agent: &AgentId) -> Result<()> {
    let folder = setting.identity_folder(agent)?;
    if !folder.exists() {
        let bootstrap = keyfile::read_user(&setting.bootstrap_file).with_context(|| {
            format!("`{agent}` has no identity here, and the bootstrap user that would enroll it is not there (`--bootstrap-file`)")
        })?;
        let token = operator.join_token(agent, Millis::from_secs(600)).await?;
        let profile = &setting.profile;
        let identity = Identity::generate(
            profile.tenant.clone(),
            agent.clone(),
            profile.root,
            profile.bus_urls.clone(),
            profile.ca_file.clone(),
        )?;
        // Saved first: an enrolled key nobody has would be worth nothing and look like one that was lost. Not where
        // `writ dev` looks, though, which would have the server read its accounts again just now.
        let aside = setting.manifests.aside(agent.as_str());
        if aside.exists() {
            fs::remove_dir_all(&aside).with_context(|| aside.display().to_string())?;
        }
        identity.save(&aside)?;
        enroll_patiently(&identity, &token, &bootstrap).await?;
        keyfile::make_private_folder(folder.parent().unwrap_or(&folder))?;
        fs::rename(&aside, &folder).with_context(|| folder.display().to_string())?;
    }
    // In a set-up other than `writ dev` somebody has to add it to the server's accounts.
    if !matches!(setting.node, NodeFiles::Development(_)) {
        return Ok(());
    }
    let identity = Identity::load(&folder)?;
    let connected = tokio::time::timeout(ENTRY_TIMEOUT, async {
        loop {
            match writ_sdk::Agent::connect(identity.clone()).await {
                Ok(agent) => return agent.close().await,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    connected.await.with_context(|| {
        format!("`{agent}` is not let in after {} s; is `writ dev` still running?", ENTRY_TIMEOUT.as_secs())
    })
}

/// A server that is reading its accounts again turns connections away for a moment.
async fn enroll_patiently(identity: &Identity, token: &str, bootstrap: &NatsUser) -> Result<()> {
    let mut left = ENROLL_ATTEMPTS;
    loop {
        left -= 1;
        match writ_sdk::enroll(identity, token, bootstrap.clone()).await {
            Ok(_) => return Ok(()),
            Err(writ_sdk::Error::Bus(_)) if left > 0 => tokio::time::sleep(Duration::from_millis(300)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes out what was set up for a configuration, except for what another one shares.
async fn take_out(setting: &Setting, operator: &Operator, manifest: &Manifest) -> Result<()> {
    let others: Vec<Manifest> =
        setting.manifests.all()?.into_iter().filter(|other| other.file != manifest.file).collect();
    let shared: BTreeSet<&Resource> =
        others.iter().flat_map(|other| &other.servers).map(|server| &server.resource).collect();
    let gone: Vec<_> = manifest.servers.iter().filter(|server| !shared.contains(&server.resource)).collect();
    let is_last = !others.iter().any(|other| other.agent == manifest.agent);
    let identity = setting.identity_folder(&manifest.agent)?;
    if is_last && manifest.made_identity && identity.exists() {
        if let Ok(own) = Identity::load(&identity) {
            let wanted = AdminWanted::WithdrawKey { agent: own.agent.clone(), key: own.holder.public().id() };
            // A key that was never enrolled cannot be withdrawn.
            drop(operator.ask(wanted).await);
        }
        fs::remove_dir_all(&identity).with_context(|| format!("{} cannot be removed", identity.display()))?;
    }
    let folder = PolicyFolder::open(&setting.policies, operator).await?;
    let mut changes: BTreeMap<String, Option<String>> = BTreeMap::new();
    for server in &gone {
        changes.insert(server.contract.clone(), None);
        changes.insert(server.rules.clone(), None);
    }
    changes.extend(inventory(&folder.bundle, &others, &manifest.agent));
    folder.put_in_force(operator, &changes).await?;
    for server in &gone {
        setting.node.remove(&server.resource)?;
    }
    setting.manifests.forget(manifest)
}

/// An agent's entries in agents.toml and roles.toml, as these manifests have them.
fn inventory(
    bundle: &PolicyBundle,
    manifests: &[Manifest],
    agent: &AgentId,
) -> BTreeMap<String, Option<String>> {
    let ours: Vec<&Manifest> = manifests.iter().filter(|one| one.agent == *agent).collect();
    let entry = ours.iter().find(|one| !one.knows_agent).map(|one| texts::agent_entry(agent, &one.program));
    let mut roles: BTreeMap<&RoleId, BTreeSet<String>> = BTreeMap::new();
    for one in &ours {
        let rights = one.servers.iter().flat_map(|server| server.rights.iter().cloned());
        roles.entry(&one.role).or_default().extend(rights);
    }
    let rights: Vec<String> = roles
        .into_iter()
        .map(|(role, rights)| texts::role_entry(role, agent, &rights.into_iter().collect::<Vec<_>>()))
        .collect();
    let rights = (!rights.is_empty()).then(|| rights.join("\n"));
    let mut changes = BTreeMap::new();
    for (path, body) in [("agents.toml", entry), ("roles.toml", rights)] {
        let before = bundle.0.get(path).map(String::as_str).unwrap_or_default();
        let after = texts::with_block(before, agent.as_str(), body.as_deref());
        if after != before {
            changes.insert(path.to_owned(), (!after.is_empty()).then_some(after));
        }
    }
    changes
}

/// A server that was left as it was, and why.
fn left_json(left: &[(String, String)]) -> Value {
    left.iter().map(|(name, why)| json!({"name": name, "why": why})).collect()
}
