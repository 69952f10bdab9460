//! `writ policy activate` and `writ policy rollback`

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use writ_broker::config::read_policies;
use writ_bus::SystemClock;
use writ_common::{
    control::Activation,
    epoch::Epoch,
    policy::{PolicyBundle, PolicyRevision, PolicySet},
    wire::{AdminReply, AdminWanted, NodeInfo},
};

use super::{super::Common, CASES, read_cases, show::find};
use crate::{
    exit::{Exit, Invalid},
    operator::Operator,
};

#[derive(Args)]
pub struct Activate {
    /// The folder of the policy
    folder: PathBuf,
    /// Only if this revision is in force until then; its first digits will do
    #[arg(long, value_name = "REVISION")]
    expect: Option<String>,
    /// Do not decide the cases in `cases.yaml` first
    #[arg(long)]
    no_test: bool,
}

#[derive(Args)]
pub struct Rollback {
    /// The revision, by its first digits or as `#<number>`; the one before the present one if absent
    revision: Option<String>,
    /// Only if this revision is in force until then; its first digits will do
    #[arg(long, value_name = "REVISION")]
    expect: Option<String>,
}

/// How often, and at most how many times, nodes are asked whether they have it. Each reports once a second.
const ASK_EVERY: Duration = Duration::from_millis(500);
const ASKS_MAX: u32 = 10;

impl Activate {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let bundle = read_policies(&self.folder).map_err(Invalid)?;
        let (policy, warnings) = PolicySet::load(&bundle).map_err(Invalid)?;
        let observed = policy.check_observed(SystemClock::new().now().wall);
        if observed.has_errors() {
            return Err(Invalid(observed).into());
        }
        if !self.no_test {
            check_cases(&self.folder, &policy)?;
        }
        let operator = common.operator().await?;
        let (_, policies) = operator.policies().await?;
        let expect = expected(&policies, self.expect.as_deref())?;
        let warnings: Vec<String> = warnings.0.iter().chain(&observed.0).map(ToString::to_string).collect();
        put_in_force(common, &operator, &policies, warnings, AdminWanted::ActivatePolicy { bundle, expect })
            .await
    }
}

/// What the policy promises about itself has to hold before anybody relies on it.
pub(in crate::cmd) fn check_cases(folder: &Path, policy: &PolicySet) -> Result<()> {
    let file = folder.join(CASES);
    if !file.exists() {
        return Ok(());
    }
    let cases = read_cases(&file)?;
    let failed: Vec<String> = cases
        .iter()
        .map(|case| (case, case.run(policy)))
        .filter(|(_, outcome)| !outcome.faults.is_empty())
        .map(|(case, outcome)| format!("\n  FAIL {}: {}", case.name, outcome.faults.join("; ")))
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {} cases of {} fail, so nothing was put in force (`--no-test` leaves them out){}",
        failed.len(),
        cases.len(),
        file.display(),
        failed.concat()
    );
    Ok(())
}

/// Puts a policy in force in place of another, and waits until the nodes have said what they make of it.
pub(in crate::cmd) async fn replace(
    operator: &Operator,
    bundle: PolicyBundle,
    present: PolicyRevision,
) -> Result<Vec<NodeInfo>> {
    let revision = bundle.revision();
    let wanted = AdminWanted::ActivatePolicy { bundle, expect: Some(present) };
    let AdminReply::Done { epoch } = operator.ask(wanted).await? else {
        bail!("an answer to another question");
    };
    let nodes = heard(operator, revision, epoch).await?;
    match nodes.iter().find_map(|node| Some((&node.node, node.policy_fault?))) {
        Some((node, fault)) => bail!("{node} did not take the policy: {fault}; `writ explain {fault}`"),
        None => Ok(nodes),
    }
}

impl Rollback {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let (_, policies) = operator.policies().await?;
        let (present, _) = policies.last().context("no policy was ever in force")?;
        let (_, bundle) = match &self.revision {
            Some(text) => find(&policies, text)?,
            None => policies
                .iter()
                .rev()
                .find(|(activation, _)| activation.revision != present.revision)
                .context(
                    "there is no other revision to go back to; `writ policy show` lists what there was",
                )?,
        };
        // Back from what is in force as we saw it, and from nothing else.
        let expect = expected(&policies, self.expect.as_deref())?.or(Some(present.revision));
        let wanted = AdminWanted::RollbackPolicy { bundle: bundle.clone(), expect };
        put_in_force(common, &operator, &policies, Vec::new(), wanted).await
    }
}

type Policies = [(Activation, PolicyBundle)];

fn expected(policies: &Policies, text: Option<&str>) -> Result<Option<PolicyRevision>> {
    text.map(|text| Ok(find(policies, text)?.0.revision)).transpose()
}

async fn put_in_force(
    common: &Common,
    operator: &Operator,
    before: &Policies,
    warnings: Vec<String>,
    wanted: AdminWanted,
) -> Result<Exit> {
    let (AdminWanted::ActivatePolicy { bundle, .. } | AdminWanted::RollbackPolicy { bundle, .. }) = &wanted
    else {
        bail!("this puts no policy in force");
    };
    let revision = bundle.revision();
    let previous = before.last().map(|(activation, _)| activation.revision);
    let AdminReply::Done { epoch } = operator.ask(wanted).await? else {
        bail!("an answer to another question");
    };
    let nodes = heard(operator, revision, epoch).await?;
    let short = revision.0.short();
    let was = match previous {
        Some(previous) if previous == revision => " already; nothing changed".to_owned(),
        Some(previous) => format!(" as of epoch {epoch}; before it was {}", previous.0.short()),
        None => format!(" as of epoch {epoch}"),
    };
    let mut text: String = warnings.iter().map(|warning| format!("{warning}\n")).collect();
    text += &format!("policy {short} is in force{was}\n");
    nodes
        .iter()
        .for_each(|node| text += &format!("  {:<16} {}\n", node.node.as_str(), state(node, revision)));
    let refused = nodes.iter().any(|node| node.policy_fault.is_some());
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            json!({"node": node.node, "policy": node.policy, "has_it": node.policy == Some(revision), "fault": node.policy_fault})
        })
        .collect();
    common.say(
        text,
        &json!({"revision": revision, "epoch": epoch, "previous": previous, "nodes": nodes, "warnings": warnings}),
    )?;
    Ok(if refused { Exit::Failure } else { Exit::Ok })
}

/// Every node, once all have said what they make of it, or have had time to.
async fn heard(operator: &Operator, revision: PolicyRevision, epoch: Epoch) -> Result<Vec<NodeInfo>> {
    let mut asked = 0;
    loop {
        let nodes = operator.status().await?.nodes;
        asked += 1;
        let knows = |node: &NodeInfo| {
            node.applied.is_some_and(|applied| applied >= epoch)
                && (node.policy == Some(revision) || node.policy_fault.is_some())
        };
        if nodes.iter().all(knows) || asked >= ASKS_MAX {
            return Ok(nodes);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What a node makes of a revision.
pub(super) fn state(node: &NodeInfo, revision: PolicyRevision) -> String {
    let heard = node
        .heard
        .map_or("not heard since the broker started".to_owned(), |heard| format!("heard {heard} ago"));
    match (node.policy, node.policy_fault) {
        (Some(policy), _) if policy == revision => format!("has it ({heard})"),
        (Some(policy), Some(fault)) => {
            format!(
                "did not take it and goes on with {}: {fault}, writ explain {fault} ({heard})",
                policy.0.short()
            )
        }
        (Some(policy), None) => format!("still decides by {} ({heard})", policy.0.short()),
        (None, Some(fault)) => {
            format!("did not take it and decides nothing: {fault}, writ explain {fault} ({heard})")
        }
        (None, None) => heard,
    }
}
