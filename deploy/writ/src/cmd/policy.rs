//! `writ policy …`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use writ_broker::config::read_policies;
use writ_common::{
    cases::{Case, Outcome, without_case},
    datalog::Span,
    diagnostic::{Diagnostic, Diagnostics},
    policy::PolicySet,
};

use super::Common;
use crate::exit::{Exit, Invalid};

/// The file of cases beside a policy.
const CASES: &str = "cases.yaml";

/// Policies
#[derive(Subcommand)]
pub enum Policy {
    /// Check a policy folder: every finding with file, line and column
    Check(Check),
    /// Decide the cases in `cases.yaml` and say which rules no case fired
    Test(Test),
}

#[derive(Args)]
pub struct Check {
    /// The folder
    folder: PathBuf,
}

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

impl Policy {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Check(check) => check.run(common),
            Self::Test(test) => test.run(common),
        }
    }
}

impl Check {
    fn run(self, common: &Common) -> Result<Exit> {
        let (policy, warnings) = load(&self.folder)?;
        let text = format!(
            "{warnings}{}{}: {} rules, {} agents, {} tools, revision {}",
            if warnings.0.is_empty() { "" } else { "\n" },
            self.folder.display(),
            policy.rules().len(),
            policy.inventory().agents.len(),
            policy.contracts().count(),
            policy.revision()
        );
        let findings: Vec<String> = warnings.0.iter().map(ToString::to_string).collect();
        common.say(
            text,
            &json!({"revision": policy.revision(), "rules": policy.rules().len(), "warnings": findings}),
        )?;
        Ok(Exit::Ok)
    }
}

impl Test {
    fn run(self, common: &Common) -> Result<Exit> {
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

fn load(folder: &Path) -> Result<(PolicySet, Diagnostics), Invalid> {
    PolicySet::load(&read_policies(folder).map_err(Invalid)?).map_err(Invalid)
}

fn read_cases(file: &Path) -> Result<Vec<Case>, Invalid> {
    let fault = |message: String, help: &str| {
        let finding = Diagnostic::in_file(&file.display().to_string(), message);
        Invalid(Diagnostics(vec![finding.help(help)]))
    };
    let text = fs::read_to_string(file).map_err(|error| {
        fault(error.to_string(), "cases stand in a list in `cases.yaml`; see policies/README.md, \"Cases\"")
    })?;
    let cases: Vec<Case> = serde_saphyr::from_str(&text).map_err(|error| unreadable(file, &text, &error))?;
    if cases.is_empty() {
        return Err(fault("there is no case in it".to_owned(), "a case is an entry of the list"));
    }
    Ok(cases)
}

/// The YAML reader's fault, in the form of every other finding.
fn unreadable(file: &Path, text: &str, error: &serde_saphyr::Error) -> Invalid {
    let place = error.location().and_then(|location| {
        let (line, column) =
            (usize::try_from(location.line()).ok()?, usize::try_from(location.column()).ok()?);
        let before: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
        let start = before
            + text.get(before..)?.chars().take(column.checked_sub(1)?).map(char::len_utf8).sum::<usize>();
        let width = text.get(start..)?.find([':', '\n', ' ']).unwrap_or(1).max(1);
        Some(Span { start, end: start + width })
    });
    let message = error.without_snippet().to_string();
    // The place stands in front already.
    let message = message
        .split_once(": ")
        .filter(|(head, _)| head.contains("line "))
        .map_or(&*message, |(_, rest)| rest);
    let name = file.display().to_string();
    let finding = match place {
        Some(span) => Diagnostic::at(&name, text, span, message),
        None => Diagnostic::in_file(&name, message),
    };
    Invalid(Diagnostics(vec![finding.help("policies/README.md, \"Cases\", lists what a case may say")]))
}

#[cfg(test)]
mod tests {
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
