//! `writ policy …`

pub(super) mod activate;
mod check;
mod diff;
mod explain;
mod fmt;
mod shadow;
mod show;
mod suggest;
mod test;

use std::{fs, path::Path};

use anyhow::Result;
use clap::Subcommand;
use writ_broker::config::read_policies;
use writ_common::{
    cases::Case,
    datalog::Span,
    diagnostic::{Diagnostic, Diagnostics},
    policy::PolicySet,
    time::Timestamp,
};

use super::Common;
use crate::exit::{Exit, Invalid};

/// The file of cases beside a policy.
const CASES: &str = "cases.yaml";

/// Policies
#[derive(Subcommand)]
pub enum Policy {
    /// Put a policy in force everywhere, without a restart
    Activate(activate::Activate),
    /// Check a policy folder: every finding with file, line and column
    Check(check::Check),
    /// Put an earlier revision in force again
    Rollback(activate::Rollback),
    /// Have another policy asked beside the one in force, and its answers recorded
    Shadow(shadow::Shadow),
    /// The policy in force, since when, by whom, on which nodes, and what there was before
    Show(show::Show),
    /// Why a request is answered as it is: rules, where their facts come from, the nearest rule that allows
    Explain(explain::Explain),
    /// Write the rules of a policy folder the one way
    Fmt(fmt::Fmt),
    /// What another policy would have answered to what was asked
    Diff(diff::Diff),
    /// Make a policy from what was done; it is written to a new folder and not activated
    Suggest(suggest::Suggest),
    /// Decide the cases in `cases.yaml` and say which rules no case fired
    Test(test::Test),
}

impl Policy {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Activate(activate) => activate.run(common).await,
            Self::Check(check) => check.run(common),
            Self::Rollback(rollback) => rollback.run(common).await,
            Self::Shadow(shadow) => shadow.run(common).await,
            Self::Show(show) => show.run(common).await,
            Self::Explain(explain) => explain.run(common).await,
            Self::Fmt(fmt) => fmt.run(common),
            Self::Diff(diff) => diff.run(common).await,
            Self::Suggest(suggest) => suggest.run(common).await,
            Self::Test(test) => test.run(common),
        }
    }
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).ok_or_else(|| "write it as 2026-01-31T12:00:00Z, in UTC".to_owned())
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
    // One case need not stand in a list.
    let starts_list =
        text.lines().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    let is_list = starts_list.is_none_or(|line| line.trim_start().starts_with(['-', '[']));
    let read = if is_list {
        serde_saphyr::from_str::<Vec<Case>>(&text)
    } else {
        serde_saphyr::from_str::<Case>(&text).map(|case| vec![case])
    };
    let cases = read.map_err(|error| unreadable(file, &text, &error))?;
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
