//! `writ tools …`

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use writ_broker::config::read_policies;
use writ_common::{
    contract::{ActionContract, ToolContract},
    ids::{Action, Resource, RoleId},
    label::Tag,
    policy::{PolicyBundle, PolicySet},
};
use writ_upstream::{Listing, Proposal, ProposeOptions, Remark, ToolChange, accept, list, propose};

use super::Common;
use crate::{
    exit::{Exit, Invalid},
    run::read_mcp_settings,
};

/// The role that approves tools of MCP servers, where a policy has it.
pub(super) const TOOL_APPROVER: &str = "tool-approver";

/// Tools and their contracts, as the policy in force declares them
#[derive(Subcommand)]
pub enum Tools {
    /// Every tool with its actions
    List,
    /// One tool with the schema of every action
    Show(Which),
    /// Propose a contract for the tools of an MCP server, and rules that have people approve them
    Import(Import),
    /// Take changed tools of an MCP server into use again, after showing what changed
    Accept(Accept),
}

#[derive(Args)]
pub struct Which {
    /// The tool, for example `tool.crm`
    tool: Resource,
}

/// Which MCP server, and which policy.
#[derive(Args)]
struct Server {
    /// The MCP server, for example `tool.github`
    upstream: Resource,
    /// The writ.toml of a node that serves it
    #[arg(long, default_value = ".writ/node-1.toml")]
    node: PathBuf,
    /// The policy folder
    #[arg(long, default_value = ".writ/policies")]
    policies: PathBuf,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    server: Server,
    /// Another name for a tool's action, as `tool=action`; may be repeated
    #[arg(long, value_name = "TOOL=ACTION")]
    rename: Vec<String>,
    /// The role whose approval every call takes, until a rule of yours says otherwise
    #[arg(long)]
    approver: Option<RoleId>,
    /// A tag that every result carries; may be repeated
    #[arg(long, value_name = "TAG", value_parser = |text: &str| Tag::parse(text))]
    tag: Vec<Tag>,
}

#[derive(Args)]
pub struct Accept {
    #[command(flatten)]
    server: Server,
    /// The actions; all that changed if none is named
    action: Vec<Action>,
}

impl Server {
    /// What the server lists now, asked as the node asks.
    async fn list(&self) -> Result<Listing> {
        let settings = read_mcp_settings(&self.node, &self.upstream)?;
        list(&self.upstream, &settings)
            .await
            .with_context(|| format!("the MCP server of `{}` is not there", self.upstream))
    }

    fn bundle(&self) -> Result<PolicyBundle> {
        Ok(read_policies(&self.policies).map_err(Invalid)?)
    }

    fn write(&self, path: &str, text: &str) -> Result<String> {
        let file = self.policies.join(path);
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file.display().to_string())
    }

    fn activation(&self) -> String {
        format!("`writ policy activate {}` puts it in force", self.policies.display())
    }
}

/// Who approves what is imported: the role that was named, the one meant for it, or the only one there is.
fn approver_of(named: Option<RoleId>, policy: &PolicySet) -> Result<Option<RoleId>> {
    let roles: BTreeSet<&RoleId> =
        policy.inventory().approvers.values().flat_map(|entry| &entry.roles).collect();
    if named.is_some() {
        return Ok(named);
    }
    let meant = roles.iter().find(|role| role.as_str() == TOOL_APPROVER);
    match (meant.or(roles.first()), meant.is_some() || roles.len() < 2) {
        (chosen, true) => Ok(chosen.map(|role| (*role).clone())),
        (_, false) => {
            let all: Vec<&str> = roles.into_iter().map(RoleId::as_str).collect();
            let all = all.join(", ");
            bail!("say whose approval calls of these tools take, with `--approver <role>`: there are {all}")
        }
    }
}

fn told(remark: &Remark) -> String {
    let mark = if remark.is_refused { '!' } else { '?' };
    let help = remark.help.as_ref().map(|help| format!("\n      help: {help}")).unwrap_or_default();
    format!("  {mark} `{}` {}{help}", remark.tool, remark.text)
}

fn remark_json(remark: &Remark) -> Value {
    json!({"tool": remark.tool, "refused": remark.is_refused, "text": remark.text, "help": remark.help})
}

impl Import {
    async fn run(self, common: &Common) -> Result<Exit> {
        let bundle = self.server.bundle()?;
        let (policy, _) = PolicySet::load(&bundle).map_err(Invalid)?;
        let approver = approver_of(self.approver, &policy)?;
        let renames: Option<BTreeMap<String, String>> = self
            .rename
            .iter()
            .map(|text| text.rsplit_once('=').map(|(tool, action)| (tool.to_owned(), action.to_owned())))
            .collect();
        let renames = renames.context("`--rename` takes `tool=action`")?;
        let listing = self.server.list().await?;
        let options = ProposeOptions { renames, approver, tags: self.tag };
        let resource = &self.server.upstream;
        let proposal = propose(resource, &listing, &bundle, &options).map_err(Invalid)?;
        // Nothing is written that could not be put in force.
        PolicySet::load(&proposal.applied_to(&bundle)).map_err(Invalid)?;
        let mut lines = vec![format!(
            "{resource}: {} tools listed, {} new as actions",
            listing.tools().len(),
            proposal.added.len()
        )];
        let approval = match &options.approver {
            Some(role) => format!("egress, approved by `{role}`"),
            None => "egress, denied: nobody can approve yet".to_owned(),
        };
        lines.extend(proposal.added.iter().map(|action| format!("  + {resource}:{action}  {approval}")));
        lines.extend(proposal.remarks.iter().map(told));
        let mut written = Vec::new();
        if self.server.dry_run {
            lines.push(format!("\n# {}\n{}", proposal.contract_path, proposal.contract));
            lines.push(format!("# {}\n{}", proposal.rules_path, proposal.rules));
        } else if !proposal.added.is_empty() {
            written.push(self.server.write(&proposal.contract_path, &proposal.contract)?);
            written.push(self.server.write(&proposal.rules_path, &proposal.rules)?);
            lines.push(format!("written: {}", written.join(", ")));
            lines.push(next_steps(&proposal, resource, &options));
            lines.push(self.server.activation());
        }
        let json = json!({
            "resource": resource, "listed": listing.tools().len(), "added": proposal.added, "written": written,
            "remarks": proposal.remarks.iter().map(remark_json).collect::<Vec<_>>(),
            "contract": proposal.contract, "rules": proposal.rules,
        });
        common.say(lines.join("\n"), &json)?;
        Ok(Exit::Ok)
    }
}

/// What an operator has to look at before these tools are of use.
fn next_steps(proposal: &Proposal, resource: &Resource, options: &ProposeOptions) -> String {
    let rights: Vec<String> =
        proposal.added.iter().map(|action| format!("\"{resource}:{action}\"")).collect();
    let mut steps = vec![
        "review: what each tool says it does, its `effect`, what it `accepts`, and which arguments to `guard`"
            .to_owned(),
        format!("give the rights to roles in roles.toml: {}", rights.join(", ")),
    ];
    if options.tags.is_empty() {
        let text =
            "results count as untrusted and for anybody to see; if they hold more, add tags to `returns`";
        steps.insert(1, text.to_owned());
    }
    steps.join("\n")
}

impl Accept {
    async fn run(self, common: &Common) -> Result<Exit> {
        let bundle = self.server.bundle()?;
        let listing = self.server.list().await?;
        let actions: BTreeSet<Action> = self.action.into_iter().collect();
        let accepted = accept(&self.server.upstream, &listing, &bundle, &actions).map_err(Invalid)?;
        let mut changed = bundle.clone();
        changed.0.insert(accepted.contract_path.clone(), accepted.contract.clone());
        PolicySet::load(&changed).map_err(Invalid)?;
        let resource = &self.server.upstream;
        let mut lines: Vec<String> =
            accepted.changes.iter().flat_map(|change| change_lines(resource, change)).collect();
        let rewritten = accepted.changes.iter().any(|change| !change.is_gone);
        if accepted.changes.is_empty() {
            lines.push(format!("{resource}: every tool is as it was accepted"));
        } else if rewritten && !self.server.dry_run {
            let file = self.server.write(&accepted.contract_path, &accepted.contract)?;
            lines.push(format!("written: {file}"));
            lines.push(self.server.activation());
        }
        let changes: Vec<Value> = accepted
            .changes
            .iter()
            .map(|change| {
                json!({
                    "action": change.action, "gone": change.is_gone, "diff": change.diff,
                    "remarks": change.remarks,
                })
            })
            .collect();
        common.say(lines.join("\n"), &json!({"resource": resource, "changes": changes}))?;
        Ok(Exit::Ok)
    }
}

fn change_lines(resource: &Resource, change: &ToolChange) -> Vec<String> {
    let right = format!("{resource}:{}", change.action);
    if change.is_gone {
        return vec![format!("{right} is listed no longer; take it out of the contract")];
    }
    let mut lines = vec![format!("{right} changed")];
    lines.extend(change.diff.iter().map(|line| format!("  {line}")));
    lines.extend(change.remarks.iter().map(|remark| format!("  ? {remark}")));
    lines
}

/// Which tool of an MCP server an action is, for a list.
fn upstream_of(action: &ActionContract) -> String {
    action.mcp.as_ref().map(|tool| format!(" [mcp: {}]", tool.name)).unwrap_or_default()
}

fn to_json(contract: &ToolContract) -> Value {
    let actions: serde_json::Map<String, Value> = contract
        .actions
        .iter()
        .map(|(name, action)| {
            let schema: Value = serde_json::from_str(&action.schema.to_string()).unwrap_or_default();
            let mut value = json!({
                "effect": action.effect.as_str(), "description": action.description, "schema": schema,
            });
            if let (Some(tool), Some(members)) = (&action.mcp, value.as_object_mut()) {
                let pin = json!({"tool": tool.name.as_str(), "digest": tool.digest});
                members.insert("mcp".to_owned(), pin);
            }
            (name.to_string(), value)
        })
        .collect();
    json!({
        "resource": contract.resource, "description": contract.description,
        "digest": contract.digest, "actions": actions,
    })
}

impl Tools {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Import(import) => return import.run(common).await,
            Self::Accept(accept) => return accept.run(common).await,
            Self::List | Self::Show(_) => {}
        }
        let control = common.operator().await?.control().await?;
        let (_, bundle) = control.policy().context("no policy is in force")?;
        let (policy, _) = PolicySet::load(bundle).map_err(Invalid)?;
        match self {
            Self::List => {
                let lines: Vec<String> = policy
                    .contracts()
                    .flat_map(|contract| {
                        contract.actions.iter().map(|(name, action)| {
                            let right = format!("{}:{name}", contract.resource);
                            // One line each: descriptions of MCP servers have many.
                            let description = action.description.lines().next().unwrap_or_default();
                            let upstream = upstream_of(action);
                            format!("{right:<28} {:<9} {description}{upstream}", action.effect.as_str())
                        })
                    })
                    .collect();
                let all: Vec<Value> = policy.contracts().map(to_json).collect();
                common.say(lines.join("\n"), &all.into())?;
            }
            Self::Show(Which { tool }) => {
                let contract = policy.contract(&tool).with_context(|| {
                    let names: Vec<&str> = policy.contracts().map(|known| known.resource.as_str()).collect();
                    format!("there is no tool `{tool}`; there are {}", names.join(", "))
                })?;
                let shown = to_json(contract);
                common.say(serde_json::to_string_pretty(&shown)?, &shown)?;
            }
            Self::Import(_) | Self::Accept(_) => {}
        }
        Ok(Exit::Ok)
    }
}
