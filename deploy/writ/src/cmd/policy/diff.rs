//! `writ policy diff`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use writ_common::{
    cases::Case,
    policy::{PolicyBundle, PolicySet},
    replay::{
        History,
        diff::{Before, Change, Comparison, changed_rules, compare},
    },
    time::Timestamp,
};

use super::{super::Common, load, parse_time, read_cases};
use crate::{exit::Exit, view::Colour};

#[derive(Args)]
pub struct Diff {
    /// The folder to compare with and the new one; with one folder, what was recorded is compared with
    #[arg(num_args = 1..=2, required = true)]
    folders: Vec<PathBuf>,
    /// Only decisions since then, in UTC, as 2026-01-31T12:00:00Z
    #[arg(long, value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Decide these cases under both as well
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Leave the audit stream alone: only rules and cases
    #[arg(long, conflicts_with = "since")]
    offline: bool,
}

/// A case that is answered otherwise.
struct Moved {
    name: String,
    from: String,
    to: String,
}

impl Diff {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let folders: Vec<&Path> = self.folders.iter().map(PathBuf::as_path).collect();
        let (old, new) = match folders.as_slice() {
            [old, new] => (Some(load(old)?.0), load(new)?.0),
            [new] => (None, load(new)?.0),
            _ => anyhow::bail!("one folder or two"),
        };
        let cases = self.cases.as_deref().map(read_cases).transpose()?.unwrap_or_default();
        let (comparison, in_force) = if self.offline {
            (None, None)
        } else {
            let (comparison, in_force) = self.compare(old.as_ref(), &new, common).await?;
            (Some(comparison), in_force)
        };
        let before = old.as_ref().or(in_force.as_ref());
        anyhow::ensure!(
            before.is_some() || cases.is_empty(),
            "cases are decided under two policies: name the folder to compare with as well"
        );
        let moved = before.map(|before| moved(&cases, before, &new)).unwrap_or_default();
        let (gone, come) = before.map(|before| changed_rules(before, &new)).unwrap_or_default();
        let text = render(&gone, &come, comparison.as_ref(), (&cases, &moved), common.colour());
        let moved: Vec<_> =
            moved.iter().map(|one| json!({"case": one.name, "from": one.from, "to": one.to})).collect();
        common.say(
            text,
            &json!({
                "rules": {"only_before": gone, "only_after": come},
                "decisions": comparison, "cases": moved,
            }),
        )?;
        Ok(Exit::Ok)
    }

    async fn compare(
        &self,
        old: Option<&PolicySet>,
        new: &PolicySet,
        common: &Common,
    ) -> Result<(Comparison, Option<PolicySet>)> {
        let operator = common.operator().await.context("the audit stream (without it: `--offline`)")?;
        let control = operator.control().await?;
        let recorded = operator.records(None).await?;
        operator.close().await;
        let in_force = control.policy().and_then(|(_, bundle)| loaded(bundle));
        let believed = recorded.iter().filter(|one| one.fault.is_none());
        let history = History::new(believed.filter_map(|one| one.record.as_ref()));
        let before = match old {
            Some(old) => Before::Policy(old),
            None => Before::Recorded { in_force: in_force.as_ref() },
        };
        let mut comparison = compare(&history, before, new, self.since);
        let faults = recorded.iter().filter(|one| one.fault.is_some()).count();
        if faults > 0 {
            let faults = u64::try_from(faults).unwrap_or(u64::MAX);
            comparison.left_out.insert("not to be believed: `writ audit tail` says why".to_owned(), faults);
        }
        Ok((comparison, in_force))
    }
}

/// The policy of a bundle that a broker published, and so loaded itself.
pub(super) fn loaded(bundle: &PolicyBundle) -> Option<PolicySet> {
    PolicySet::load(bundle).ok().map(|(policy, _)| policy)
}

fn moved(cases: &[Case], before: &PolicySet, new: &PolicySet) -> Vec<Moved> {
    cases
        .iter()
        .filter_map(|case| {
            // Which rules say the same is of no interest here.
            let answer = |policy: &PolicySet| {
                let answer = case.run(policy).answer;
                answer.split(" [").next().unwrap_or_default().to_owned()
            };
            let (from, to) = (answer(before), answer(new));
            (from != to).then(|| Moved { name: case.name.clone(), from, to })
        })
        .collect()
}

fn render(
    gone: &[String],
    come: &[String],
    comparison: Option<&Comparison>,
    (cases, moved): (&[Case], &[Moved]),
    colour: Colour,
) -> String {
    use crate::view::colour::{BOLD, GREEN, RED, YELLOW};
    let mut text = String::new();
    if !gone.is_empty() || !come.is_empty() {
        text += &format!("{}\n", colour.paint(BOLD, "rules"));
        gone.iter().for_each(|rule| text += &format!("{} {rule}\n", colour.paint(RED, "-")));
        come.iter().for_each(|rule| text += &format!("{} {rule}\n", colour.paint(GREEN, "+")));
        text.push('\n');
    }
    if let Some(comparison) = comparison {
        let head =
            format!("{} decisions asked again, {} unchanged", comparison.compared, comparison.unchanged);
        text += &format!("{}\n", colour.paint(BOLD, &head));
        comparison.changes.iter().for_each(|change| text += &shown(change));
        if !comparison.depends.is_empty() {
            text += &format!("\n{}\n", colour.paint(YELLOW, "not to be said from records"));
            comparison.depends.iter().for_each(|change| text += &shown(change));
        }
        if !comparison.left_out.is_empty() {
            text += &format!("\n{}\n", colour.paint(BOLD, "not asked again"));
            comparison.left_out.iter().for_each(|(why, count)| text += &format!("  {count:>5} x {why}\n"));
        }
    }
    if !cases.is_empty() {
        text += &format!(
            "\n{}\n",
            colour.paint(BOLD, &format!("{} cases, {} answered otherwise", cases.len(), moved.len()))
        );
        moved.iter().for_each(|one| text += &format!("  {}: {} -> {}\n", one.name, one.from, one.to));
    }
    if text.is_empty() { "no rule differs".to_owned() } else { text }
}

fn shown(change: &Change) -> String {
    let Change { from, to, agent, right, rules, count, samples } = change;
    let rules = if rules.is_empty() { String::new() } else { format!("  by {}", rules.join(", ")) };
    format!(
        "  {count:>5} x {agent} {right}: {from} -> {to}{rules}\n          for example {}\n",
        samples.join(", ")
    )
}
