//! `writ policy test`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use writ_common::cases::{Outcome, without_case};

use super::{super::Common, CASES, load, read_cases};
use crate::exit::Exit;

#[derive(Args)]
pub struct Test {
    /// The folder of the policy
    folder: PathBuf,
    /// The file of cases, if it is not the folder's own
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Only cases whose name holds this text; then rules without a case are not reported
    #[arg(long)]
    only: Option<String>,
    /// Fail also if a rule has no case
    #[arg(long)]
    strict: bool,
}

impl Test {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let (policy, _) = load(&self.folder)?;
        let file = self.cases.unwrap_or_else(|| self.folder.join(CASES));
        let mut cases = read_cases(&file)?;
        if let Some(only) = &self.only {
            cases.retain(|case| case.name.contains(only.as_str()));
            anyhow::ensure!(!cases.is_empty(), "no case of {} has `{only}` in its name", file.display());
        }
        let outcomes: Vec<Outcome> = cases.iter().map(|case| case.run(&policy)).collect();
        let without = if self.only.is_some() { Vec::new() } else { without_case(&policy, &outcomes) };
        let failed = outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count();
        let mut text = String::new();
        for (case, outcome) in cases.iter().zip(&outcomes) {
            let verdict = if outcome.faults.is_empty() { "ok  " } else { "FAIL" };
            text += &format!("{verdict} {}\n", case.name);
            outcome.faults.iter().for_each(|fault| text += &format!("       {fault}\n"));
        }
        if !without.is_empty() {
            text += "\nno case fired:\n";
            without
                .iter()
                .for_each(|rule| text += &format!("  {}  {}\n", rule.place(), first_line(&rule.text)));
        }
        text += &format!("\n{} cases, {failed} failed, {} rules without a case", cases.len(), without.len());
        let listed: Vec<_> = cases
            .iter()
            .zip(&outcomes)
            .map(|(case, outcome)| {
                json!({"name": case.name, "answer": outcome.answer, "rules": outcome.rules, "faults": outcome.faults})
            })
            .collect();
        let places: Vec<String> = without.iter().map(|rule| rule.place()).collect();
        common.say(text, &json!({"cases": listed, "failed": failed, "rules_without_case": places}))?;
        let is_short = self.strict && !without.is_empty();
        Ok(if failed > 0 || is_short { Exit::Failure } else { Exit::Ok })
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Every policy that comes with Writ keeps what its cases promise, and every rule has a case.
    #[test]
    fn the_policies_in_the_repository_hold_their_cases() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
        let examples = fs::read_dir(root.join("examples")).unwrap().map(|item| item.unwrap().path());
        let mut seen = 0;
        for folder in examples.filter(|path| path.is_dir()).chain([root.clone()]) {
            let (policy, warnings) = load(&folder).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(warnings.to_string(), "", "{}", folder.display());
            let cases = read_cases(&folder.join(CASES)).unwrap_or_else(|error| panic!("{error}"));
            let outcomes: Vec<Outcome> = cases.iter().map(|case| case.run(&policy)).collect();
            for (case, outcome) in cases.iter().zip(&outcomes) {
                assert!(
                    outcome.faults.is_empty(),
                    "{}: {}: {:?}",
                    folder.display(),
                    case.name,
                    outcome.faults
                );
                seen += 1;
            }
            let without: Vec<String> =
                without_case(&policy, &outcomes).iter().map(|rule| rule.place()).collect();
            assert_eq!(without, Vec::<String>::new(), "rules without a case in {}", folder.display());
        }
        assert!(seen > 40, "{seen}");
    }
}
