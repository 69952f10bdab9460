//! `writ enforce`

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use writ_common::{
    ids::{Resource, ResourceKind},
    policy::PolicySet,
    record::RecordBody,
};

use super::{Common, policy_folder::PolicyFolder};
use crate::{
    adopt::rules,
    exit::Exit,
    operator::{Operator, Recorded},
    view::colour,
};

/// End observing: rules about these tools are obeyed from now on
///
/// Shows which of the calls that were observed would have been denied, takes `observe` out of the tools' contracts in
/// the policy folder, and puts that in force.
#[derive(Args)]
pub struct Enforce {
    /// The tools, for example `tool.time`
    #[arg(required_unless_present = "all")]
    tools: Vec<Resource>,
    /// Every tool that is observed
    #[arg(long, conflicts_with = "tools")]
    all: bool,
    /// The policy folder; `policies` beside the profile if absent
    #[arg(long)]
    policies: Option<PathBuf>,
    /// Only show what would be denied
    #[arg(long)]
    dry_run: bool,
}

/// Observed calls that would have been denied alike.
type Denials = BTreeMap<(String, String, String), u64>;

impl Enforce {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let folder = self.policies.clone().unwrap_or_else(|| common.profile.with_file_name("policies"));
        let folder = PolicyFolder::open(&folder, &operator).await?;
        let tools = self.tools(&folder.policy)?;
        let changes = changes(&folder, &tools)?;
        folder.check(&folder.with(&changes))?;
        let (calls, denials) = observed(&operator, &tools).await?;
        let names: Vec<&str> = tools.iter().map(Resource::as_str).collect();
        let names = names.join(", ");
        let mut text = format!("{calls} calls of {names} were allowed until now; ");
        text += &match denials.values().sum::<u64>() {
            0 => "none of them would have been denied\n".to_owned(),
            count => format!("{count} of them only because they were observed:\n"),
        };
        for ((agent, right, why), count) in &denials {
            let would = common.colour().paint(colour::YELLOW, "WOULD DENY");
            text += &format!("  {count:>5} x {agent} {right}  {would} {why}\n");
        }
        let listed: Vec<_> = denials
            .iter()
            .map(|((agent, right, why), count)| json!({"agent": agent, "right": right, "why": why, "count": count}))
            .collect();
        let changed: Vec<&String> = changes.keys().collect();
        if self.dry_run {
            text += "nothing was changed";
            common
                .say(text, &json!({"tools": tools, "allowed": calls, "would_deny": listed, "changed": []}))?;
            return Ok(Exit::Ok);
        }
        let path = folder.path.clone();
        let revision = folder.put_in_force(&operator, &changes).await?;
        let files: Vec<String> = changed.iter().map(|file| path.join(file).display().to_string()).collect();
        text += &format!(
            "policy {} is in force: {names} enforced ({})\nwhere people are asked now: writ approval list; back: writ policy rollback",
            revision.0.short(),
            files.join(", ")
        );
        common.say(
            text,
            &json!({"tools": tools, "allowed": calls, "would_deny": listed, "changed": files, "revision": revision}),
        )?;
        Ok(Exit::Ok)
    }

    fn tools(&self, policy: &PolicySet) -> Result<BTreeSet<Resource>> {
        let observed: BTreeSet<Resource> = policy.observed().map(|(resource, _)| resource).collect();
        if self.all {
            let tools: BTreeSet<Resource> =
                observed.into_iter().filter(|one| one.kind() == ResourceKind::Tool).collect();
            ensure!(!tools.is_empty(), "no tool is observed");
            return Ok(tools);
        }
        for tool in &self.tools {
            if tool.kind() != ResourceKind::Tool {
                bail!(
                    "`{tool}` is no tool; an agent is observed by its entry in agents.toml: take `observe` out there"
                );
            }
            if policy.contract(tool).is_none() {
                let known: Vec<&str> = policy.contracts().map(|known| known.resource.as_str()).collect();
                bail!("there is no tool `{tool}`; there are {}", known.join(", "));
            }
            if !observed.contains(tool) {
                let known: Vec<&str> = observed.iter().map(Resource::as_str).collect();
                let known = if known.is_empty() { "nothing is".to_owned() } else { known.join(", ") };
                bail!("`{tool}` is not observed, so it is enforced already; observed: {known}");
            }
        }
        Ok(self.tools.iter().cloned().collect())
    }
}

/// The contracts without `observe`, and the rules that were softened for observing as they are meant.
fn changes(folder: &PolicyFolder, tools: &BTreeSet<Resource>) -> Result<BTreeMap<String, Option<String>>> {
    let mut changes = BTreeMap::new();
    for tool in tools {
        let declares = |text: &str| {
            text.lines().any(|line| {
                let value = line.trim().strip_prefix("resource").map(str::trim_start);
                let value = value
                    .and_then(|rest| rest.strip_prefix('='))
                    .map(|rest| rest.trim().trim_matches(['"', '\'']));
                value == Some(tool.as_str())
            })
        };
        let (path, text) = folder
            .bundle
            .0
            .iter()
            .find(|(path, text)| path.ends_with(".toml") && path.contains("tools/") && declares(text))
            .with_context(|| {
                format!("the contract of `{tool}` was not found in {}", folder.path.display())
            })?;
        let without = rules::without_observe(text).with_context(|| {
            format!(
                "{path} says `observe` in a form that is not known here; take it out and activate the folder"
            )
        })?;
        changes.insert(path.clone(), Some(without));
        let permission = format!("may_observe(\"{tool}\") <- request(\"call\");");
        for (path, text) in &folder.bundle.0 {
            if path.ends_with(".datalog") && text.contains(&permission) {
                let before = match changes.get(path) {
                    Some(Some(changed)) => changed.clone(),
                    _ => text.clone(),
                };
                changes.insert(path.clone(), Some(rules::enforced(tool, &before)));
            }
        }
    }
    let policy = folder.check(&folder.with(&changes))?;
    let left: Vec<String> =
        policy.observed().filter(|(one, _)| tools.contains(one)).map(|(one, _)| one.to_string()).collect();
    ensure!(left.is_empty(), "{} would still be observed; take `observe` out by hand", left.join(", "));
    Ok(changes)
}

/// How many calls of these tools were allowed, and which of them because they were observed.
async fn observed(operator: &Operator, tools: &BTreeSet<Resource>) -> Result<(u64, Denials)> {
    let records: Vec<Recorded> = operator.records(None).await?;
    let mut calls = 0;
    let mut denials = Denials::new();
    for record in records.iter().filter(|one| one.fault.is_none()).filter_map(|one| one.record.as_ref()) {
        let RecordBody::Verdict(verdicted) = &record.body else { continue };
        let Some(resource) = verdicted.what.resource.as_ref().filter(|one| tools.contains(one)) else {
            continue;
        };
        if verdicted.what.call.is_none() || !verdicted.reasons.is_empty() {
            continue;
        }
        calls += 1;
        let Some(reason) = verdicted.would_deny.first() else { continue };
        let agent = verdicted.who.caller.as_ref().map(ToString::to_string).unwrap_or_default();
        let action = verdicted.what.action.as_ref().map(ToString::to_string).unwrap_or_default();
        let why = format!("{}: {}", reason.code, reason.told);
        *denials.entry((agent, format!("{resource}:{action}"), why)).or_default() += 1;
    }
    Ok((calls, denials))
}
