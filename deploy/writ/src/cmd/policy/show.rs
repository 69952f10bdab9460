//! `writ policy show`

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    control::Activation,
    policy::{PolicyBundle, PolicySet},
    wire::StatusInfo,
};

use super::{super::Common, activate::state};
use crate::exit::Exit;

#[derive(Args)]
pub struct Show {
    /// The revision, by its first digits or as `#<number>`; the one in force if absent
    revision: Option<String>,
    /// Print its files
    #[arg(long)]
    files: bool,
}

/// How much of the history is listed.
const HISTORY_LINES_MAX: usize = 20;
/// Fewer digits name too much by accident.
const PREFIX_DIGITS_MIN: usize = 4;

type Policies = [(Activation, PolicyBundle)];

/// The last activation that a text means.
pub(super) fn find<'a>(policies: &'a Policies, text: &str) -> Result<&'a (Activation, PolicyBundle)> {
    if let Some(number) = text.strip_prefix('#') {
        let number: u64 =
            number.parse().with_context(|| format!("`{text}` is no number of an activation"))?;
        let found = policies.iter().find(|(activation, _)| activation.sequence == number);
        return found
            .with_context(|| format!("no policy was put in force by control event {text}; {LISTED}"));
    }
    if text.len() < PREFIX_DIGITS_MIN {
        bail!("`{text}` is too short; give at least {PREFIX_DIGITS_MIN} digits of the revision");
    }
    let mut found: Option<&(Activation, PolicyBundle)> = None;
    for one in policies.iter().filter(|(activation, _)| activation.revision.to_string().starts_with(text)) {
        if found.is_some_and(|(other, _)| other.revision != one.0.revision) {
            bail!("more than one revision begins with `{text}`; give more digits");
        }
        found = Some(one);
    }
    found.with_context(|| format!("no revision that was ever in force begins with `{text}`; {LISTED}"))
}

const LISTED: &str = "`writ policy show` lists what there was";

impl Show {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let (control, policies) = operator.policies().await?;
        let (present, _) =
            policies.last().context("no policy was ever in force; a broker puts its own there first")?;
        let (activation, bundle) = match &self.revision {
            Some(text) => find(&policies, text)?,
            None => policies.last().context("no policy")?,
        };
        let is_present = activation.revision == present.revision;
        // The history stands in the stream; only what nodes do takes a broker to say.
        let status = operator.status().await;
        let mut text = head(activation, bundle, is_present, &control.epoch().to_string());
        let observed: Vec<(String, String)> = PolicySet::load(bundle)
            .map(|(policy, _)| {
                policy.observed().map(|(what, until)| (what.to_string(), until.to_string())).collect()
            })
            .unwrap_or_default();
        let shadow = control.shadow().map(PolicyBundle::revision);
        if let Some(shadow) = shadow {
            text += &format!("shadow      {shadow} is asked beside it\n");
        }
        observed.iter().for_each(|(what, until)| text += &format!("observed    {what} until {until}\n"));
        match &status {
            Ok(status) if is_present => text += &nodes(status, activation),
            Ok(_) => {}
            Err(error) => text += &format!("nodes       not known: {error:#}\n"),
        }
        if self.files {
            for (path, content) in &bundle.0 {
                text += &format!("\n==> {path} <==\n{content}");
            }
        } else {
            text += &history(&policies);
        }
        let files: serde_json::Value =
            if self.files { json!(bundle.0) } else { json!(bundle.0.keys().collect::<Vec<_>>()) };
        let listed: Vec<_> = policies.iter().map(|(activation, _)| to_json(activation)).collect();
        let answer = json!({
            "revision": activation.revision, "in_force": is_present, "activation": to_json(activation), "files": files,
            "observed": observed.iter().map(|(what, until)| json!({"resource": what, "until": until})).collect::<Vec<_>>(),
            "nodes": status.as_ref().ok().map(|status| &status.nodes),
            "configured": status.as_ref().ok().and_then(|status| status.configured),
                        "shadow": shadow,
            "history": listed,
        });
        common.say(text, &answer)?;
        Ok(Exit::Ok)
    }
}

fn head(activation: &Activation, bundle: &PolicyBundle, is_present: bool, epoch: &str) -> String {
    let since = if is_present { "in force    since" } else { "last put in force" };
    let bytes: usize = bundle.0.values().map(String::len).sum();
    format!(
        "revision    {}\n{since} {} by {} (control event #{}; epoch now {epoch})\nfiles       {}, {bytes} bytes\n",
        activation.revision,
        activation.at,
        activation.by,
        activation.sequence,
        bundle.0.len()
    )
}

fn nodes(status: &StatusInfo, activation: &Activation) -> String {
    let mut text = String::new();
    if let Some(decides_by) = status.policy.filter(|policy| *policy != activation.revision) {
        text += &format!("broker      decides by {}: it could not take this one\n", decides_by.0.short());
    }
    if let Some(configured) = status.configured.filter(|configured| *configured != activation.revision) {
        text += &format!("broker      its folder holds {}, which is not in force\n", configured.0.short());
    }
    for (index, node) in status.nodes.iter().enumerate() {
        let title = if index == 0 { "nodes" } else { "" };
        text += &format!("{title:<11} {} {}\n", node.node, state(node, activation.revision));
    }
    text
}

fn history(policies: &Policies) -> String {
    let mut text = String::new();
    for (index, (activation, _)) in policies.iter().rev().take(HISTORY_LINES_MAX).enumerate() {
        let title = if index == 0 { "history" } else { "" };
        // The same content again is how one goes back.
        let first = policies.iter().find(|(other, _)| other.revision == activation.revision);
        let again = first.filter(|(other, _)| other.sequence < activation.sequence);
        let again =
            again.map(|(other, _)| format!("  (again, as in #{})", other.sequence)).unwrap_or_default();
        text += &format!(
            "{title:<11} #{:<5} {}  {}  {}{again}\n",
            activation.sequence,
            activation.at,
            activation.revision.0.short(),
            activation.by
        );
    }
    text
}

fn to_json(activation: &Activation) -> serde_json::Value {
    json!({
        "sequence": activation.sequence, "at": activation.at.to_string(), "by": activation.by,
        "revision": activation.revision,
    })
}
