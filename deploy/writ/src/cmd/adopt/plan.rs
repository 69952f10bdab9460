//! What adopting a configuration comes to: every server asked for its tools, every text made, nothing written.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use writ_bus::{SystemClock, keyfile};
use writ_common::{
    diagnostic::Diagnostics,
    ids::{AgentId, Resource, RoleId},
    policy::{PolicyBundle, PolicySet},
    time::Millis,
};
use writ_node::{
    config::NodeConfig,
    tools::{McpSettings, ToolKind},
};
use writ_upstream::{ProposeOptions, Remark, list, propose};

use super::{Adopt, DEVELOPMENT_ROLE, DEVELOPMENT_USER, NodeFiles, Setting, inventory, left_json};
use crate::{
    adopt::{
        manifest::{Adopted, Manifest, digest},
        rules,
        texts::{self, Secrets},
    },
    cmd::{Common, policy_folder::PolicyFolder, tools::TOOL_APPROVER},
    mcp_clients::{ClientConfig, Connection, Entry, Surroundings},
};

/// What is to be done.
pub(super) struct Plan {
    pub(super) manifest: Manifest,
    pub(super) rewritten: String,
    pub(super) servers: Vec<Server>,
    /// Files of the policy folder.
    pub(super) changes: BTreeMap<String, Option<String>>,
    /// Servers that stay as they were, and why.
    pub(super) left: Vec<(String, String)>,
    until: String,
    already: usize,
}

/// One server that is adopted.
pub(super) struct Server {
    pub(super) resource: Resource,
    pub(super) upstream: String,
    pub(super) secrets: Secrets,
    entry: Entry,
    adopted: Adopted,
    remarks: Vec<Remark>,
}

/// What all servers of one configuration have in common.
struct Context<'a> {
    adopt: &'a Adopt,
    setting: &'a Setting,
    around: Surroundings<'a>,
    others: &'a [Manifest],
    options: ProposeOptions,
    until: String,
    config: &'a ClientConfig,
}

impl Plan {
    pub(super) async fn make(
        adopt: &Adopt,
        common: &Common,
        setting: &Setting,
        config: &ClientConfig,
        folder: &PolicyFolder,
    ) -> Result<Self> {
        let others: Vec<Manifest> =
            setting.manifests.all()?.into_iter().filter(|other| other.file != config.file).collect();
        let home = std::env::var_os("HOME").map(PathBuf::from).context("`HOME` is not set")?;
        let variable = |name: &str| std::env::var(name).ok();
        let read = |file: &Path| {
            std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
        };
        let until = SystemClock::new().now().wall.after(Millis::from_secs(adopt.days * 86_400)).to_string();
        let context = Context {
            adopt,
            setting,
            around: Surroundings {
                folder: Surroundings::folder_of(&config.file, config.client, &home),
                home,
                variable: &variable,
                read: &read,
            },
            others: &others,
            options: ProposeOptions {
                approver: approver(adopt.approver.as_ref(), &folder.policy),
                ..ProposeOptions::default()
            },
            // Observing ends at a whole second.
            until: format!("{}Z", until.split('.').next().unwrap_or_default().trim_end_matches('Z')),
            config,
        };
        let agent = match &adopt.agent {
            Some(agent) => agent.clone(),
            None => AgentId::parse(config.client.agent())?,
        };
        let role = role(adopt, setting, &folder.policy)?;
        let writ = std::env::current_exe().context("this program cannot say where it is")?;
        let mut bundle = folder.bundle.clone();
        let (mut servers, mut left, mut already): (Vec<Server>, Vec<_>, usize) = (Vec::new(), Vec::new(), 0);
        for entry in &config.entries {
            if entry.is_governed(&writ) {
                already += 1;
                continue;
            }
            if common.is_for_people() {
                // Nobody waits in the dark: a server may have to be fetched first.
                drop(writeln!(std::io::stderr(), "asking `{}` for its tools …", entry.name));
            }
            match context.server(entry, &bundle, &servers).await {
                Ok((server, with)) => {
                    bundle = with;
                    servers.push(server);
                }
                Err(why) => left.push((entry.name.clone(), why)),
            }
        }
        let in_others = |one: &Manifest| one.agent == agent && !one.knows_agent;
        let mut manifest = Manifest {
            version: 1,
            file: config.file.clone(),
            before: digest(config.text()),
            after: String::new(),
            program: config.client.name().to_owned(),
            knows_agent: folder.policy.inventory().agents.contains_key(&agent)
                && !others.iter().any(in_others),
            made_identity: !setting.identity_folder(&agent)?.exists()
                || others.iter().any(|other| other.agent == agent && other.made_identity),
            agent,
            role,
            servers: servers.iter().map(|server| server.adopted.clone()).collect(),
        };
        let changed: Vec<(Entry, Vec<String>)> = servers
            .iter()
            .map(|server| (server.entry.clone(), arguments(adopt, setting, &manifest, &server.resource)))
            .collect();
        let rewritten = config.rewritten(&writ.display().to_string(), &changed)?;
        manifest.after = digest(&rewritten);
        let mut all = others.clone();
        all.push(manifest.clone());
        let mut changes = differences(&folder.bundle, &bundle);
        changes.extend(inventory(&folder.bundle, &all, &manifest.agent));
        if !servers.is_empty() {
            folder.check(&folder.with(&changes))?;
        }
        Ok(Self { manifest, rewritten, servers, changes, left, until: context.until, already })
    }

    /// The plan, if there is something to do.
    pub(super) fn ready(&self) -> Option<&Self> {
        (!self.servers.is_empty()).then_some(self)
    }

    /// Why there is nothing to do.
    pub(super) fn nothing(&self) -> (String, Value) {
        let file = self.manifest.file.display();
        let mut text = match (self.left.is_empty(), self.already) {
            (true, 0) => format!("{file} has no MCP server"),
            (true, count) => format!("{file}: {count} MCP servers, all of them governed"),
            (false, _) => format!("{file} is as it was: none of its servers could be adopted"),
        };
        text += &self.left_lines();
        (
            text,
            json!({"file": self.manifest.file, "adopted": [], "left": left_json(&self.left), "changed": false}),
        )
    }

    fn left_lines(&self) -> String {
        self.left.iter().map(|(name, why)| format!("\n  ! {name:<16} left as it was: {why}")).collect()
    }

    /// The plan for people and for programs.
    pub(super) fn shown(&self, as_named: &Path, verb: &str) -> (String, Value) {
        let Manifest { file, program, agent, .. } = &self.manifest;
        let mut text = format!(
            "{} ({program}): {} of {} servers {verb} as agent `{agent}`, observed until {}",
            as_named.display(),
            self.servers.len(),
            self.servers.len() + self.left.len(),
            self.until
        );
        for server in &self.servers {
            let tools: Vec<&str> =
                server.adopted.rights.iter().filter_map(|right| Some(right.rsplit_once(':')?.1)).collect();
            text += &format!("\n  + {:<16} {}: {}", server.entry.name, server.resource, tools.join(", "));
            for remark in &server.remarks {
                let mark = if remark.is_refused { '!' } else { '?' };
                text += &format!("\n      {mark} `{}` {}", remark.tool, remark.text);
            }
        }
        text += &self.left_lines();
        let adopted: Vec<Value> = self
            .servers
            .iter()
            .map(|server| json!({"name": server.entry.name, "resource": server.resource, "rights": server.adopted.rights}))
            .collect();
        let json = json!({
            "file": file, "agent": agent, "observed_until": self.until, "adopted": adopted,
            "left": left_json(&self.left), "policy_files": self.changes.keys().collect::<Vec<_>>(), "changed": verb == "adopted",
        });
        (text, json)
    }

    /// What to do next.
    pub(super) fn next(&self, file: &Path, backup: &Path, node: &NodeFiles) -> String {
        let tool = self.servers.first().map_or("--all", |server| server.resource.as_str());
        let node = match node {
            NodeFiles::Development(_) => String::new(),
            NodeFiles::File(config) => format!(
                "first: restart the node of {}, and add the agent to the server's accounts (`writ agent show {}`)\n",
                config.display(),
                self.manifest.agent
            ),
        };
        format!(
            "the original is kept in {}\n\n{node}next: start {} again and use it as before; then\n  \
             writ audit chain last                what it did, and what would be denied\n  \
             writ enforce {tool:<23} rules are obeyed from then on\n  \
             writ mcp adopt {} --undo      everything as it was",
            backup.display(),
            self.manifest.program,
            file.display()
        )
    }
}

/// How the entry reaches Writ.
fn arguments(adopt: &Adopt, setting: &Setting, manifest: &Manifest, resource: &Resource) -> Vec<String> {
    let profile = setting.profile_file.display().to_string();
    let agent = manifest.agent.to_string();
    let mut arguments = vec!["mcp".to_owned(), "--profile".to_owned(), profile];
    arguments.extend(["--agent".to_owned(), agent.clone(), "--kind".to_owned(), agent]);
    if adopt.login || setting.profile.idp_url.is_none() {
        arguments.push("--login".to_owned());
    } else {
        let user = adopt.user.clone().unwrap_or_else(|| DEVELOPMENT_USER.to_owned());
        arguments.extend(["--user".to_owned(), user]);
    }
    arguments.extend(["--only".to_owned(), resource.to_string()]);
    arguments
}

fn differences(before: &PolicyBundle, after: &PolicyBundle) -> BTreeMap<String, Option<String>> {
    let is_new = |(path, text): &(&String, &String)| before.0.get(*path) != Some(text);
    after.0.iter().filter(is_new).map(|(path, text)| (path.clone(), Some(text.clone()))).collect()
}

/// Who approves calls once they are enforced: the role that was named, the one meant for it, or the one most people have.
fn approver(named: Option<&RoleId>, policy: &PolicySet) -> Option<RoleId> {
    let mut people: BTreeMap<&RoleId, usize> = BTreeMap::new();
    for role in policy.inventory().approvers.values().flat_map(|entry| &entry.roles) {
        *people.entry(role).or_default() += 1;
    }
    let meant = people.keys().find(|role| role.as_str() == TOOL_APPROVER).copied();
    let most = people.iter().max_by_key(|(_, count)| **count).map(|(role, _)| *role);
    named.or(meant).or(most).cloned()
}

fn role(adopt: &Adopt, setting: &Setting, policy: &PolicySet) -> Result<RoleId> {
    let roles = &policy.inventory().roles;
    let named = match (&adopt.role, &setting.profile.idp_url) {
        (Some(role), _) => role.clone(),
        (None, Some(_)) => RoleId::parse(DEVELOPMENT_ROLE)?,
        (None, None) => {
            let known: Vec<&str> = roles.keys().map(RoleId::as_str).collect();
            bail!("say whose users may have it work, with `--role`: there are {}", known.join(", "));
        }
    };
    if !roles.contains_key(&named) {
        let known: Vec<&str> = roles.keys().map(RoleId::as_str).collect();
        bail!("there is no role `{named}` in roles.toml; there are {}", known.join(", "));
    }
    Ok(named)
}

fn first_of(findings: &Diagnostics) -> String {
    findings.0.first().map_or_else(|| findings.to_string(), writ_common::diagnostic::Diagnostic::in_one_line)
}

impl Context<'_> {
    /// One server, and the policy with it.
    ///
    /// # Errors
    /// Why it stays as it is, in words.
    async fn server(
        &self,
        entry: &Entry,
        bundle: &PolicyBundle,
        before: &[Server],
    ) -> Result<(Server, PolicyBundle), String> {
        let connection = entry.connection(self.config.client, &self.around)?;
        let resource = texts::resource_of(&entry.name)?;
        let named = texts::connection_digest(&connection);
        let (upstream, secrets) = texts::upstream(&resource, &connection, &NodeFiles::secrets(&resource))?;
        let same = self.others.iter().flat_map(|other| &other.servers).find(|one| one.resource == resource);
        let here = before.iter().map(|server| &server.adopted).find(|one| one.resource == resource);
        if let Some(known) = same.or(here) {
            if known.connection != named {
                return Err(format!("`{resource}` is another server already; give the entry another name"));
            }
            let adopted = Adopted { entry: entry.name.clone(), ..known.clone() };
            let server =
                Server { resource, upstream, secrets, entry: entry.clone(), adopted, remarks: Vec::new() };
            return Ok((server, bundle.clone()));
        }
        let (policy, _) = PolicySet::load(bundle).map_err(|findings| first_of(&findings))?;
        if policy.contract(&resource).is_some() {
            return Err(format!("the policy has a tool `{resource}` already; give the entry another name"));
        }
        let settings = self.settings(&resource, &connection)?;
        let listing = list(&resource, &settings.0).await.map_err(|error| chain(&error))?;
        drop(settings);
        let proposal =
            propose(&resource, &listing, bundle, &self.options).map_err(|findings| first_of(&findings))?;
        let refused: Vec<&Remark> = proposal.remarks.iter().filter(|remark| remark.is_refused).collect();
        if let Some(first) = refused.first().filter(|_| !self.adopt.drop_refused) {
            return Err(format!(
                "{} of its tools cannot be offered: `{}` {}; `--drop-refused` adopts it without",
                refused.len(),
                first.tool,
                first.text
            ));
        }
        if proposal.added.is_empty() {
            return Err("it lists no tool that could be offered".to_owned());
        }
        let mut with = proposal.applied_to(bundle);
        with.0.insert(proposal.contract_path.clone(), rules::with_observe(&proposal.contract, &self.until));
        with.0.insert(proposal.rules_path.clone(), rules::observed(&resource, &proposal.rules));
        PolicySet::load(&with).map_err(|findings| first_of(&findings))?;
        let adopted = Adopted {
            entry: entry.name.clone(),
            connection: named,
            contract: proposal.contract_path.clone(),
            rules: proposal.rules_path.clone(),
            rights: proposal.added.iter().map(|action| format!("{resource}:{action}")).collect(),
            resource: resource.clone(),
        };
        let server =
            Server { resource, upstream, secrets, entry: entry.clone(), adopted, remarks: proposal.remarks };
        Ok((server, with))
    }

    /// The server as the node would reach it, with its secrets in a private folder that goes away.
    fn settings(
        &self,
        resource: &Resource,
        connection: &Connection,
    ) -> Result<(McpSettings, tempfile::TempDir), String> {
        let cannot = |error: &dyn std::fmt::Display| format!("its secrets cannot be put aside: {error}");
        let folder =
            tempfile::Builder::new().prefix("writ-adopt-").tempdir().map_err(|error| cannot(&error))?;
        let private = folder.path().join("secrets");
        keyfile::make_private_folder(&private).map_err(|error| cannot(&error))?;
        let (upstream, secrets) = texts::upstream(resource, connection, &private)?;
        for (name, value) in &secrets {
            keyfile::write_secret(&private.join(name), value).map_err(|error| cannot(&error))?;
        }
        let profile = &self.setting.profile;
        // A node in name only: what counts is how it reads the rest.
        let text = format!(
            "tenant = \"{}\"\n[node]\nname = \"adopt\"\nroot_key = \"{}\"\nkey_file = \"k\"\njournal = \"j\"\n\
             [bus]\nurls = [\"nats://127.0.0.1:4222\"]\nuser_file = \"u\"\n{upstream}",
            profile.tenant, profile.root
        );
        let config = NodeConfig::read(
            &self.config.file.display().to_string(),
            &text,
            Path::new("/"),
            &BTreeMap::new(),
        );
        let config = config.map_err(|findings| {
            let told: BTreeSet<&str> = findings.0.iter().map(|finding| finding.message.as_str()).collect();
            told.into_iter().collect::<Vec<_>>().join("; ")
        })?;
        match config.tools.get(resource) {
            Some(ToolKind::Mcp(settings)) => Ok((settings.clone(), folder)),
            _ => Err("it is no MCP server".to_owned()),
        }
    }
}

/// An error with what brought it about.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
