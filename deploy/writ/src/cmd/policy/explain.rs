//! `writ policy explain`

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    cases::Case,
    json::Value,
    policy::{PolicySet, explain::Explanation},
    record::Record,
    replay::{History, Past},
    request::Arguments,
};

use super::{super::Common, CASES, load, read_cases};
use crate::{
    exit::Exit,
    operator::Recorded,
    view::{explain, records},
};

/// Where the policy is if nobody says.
const POLICIES: &str = "policies";

#[derive(Args)]
pub struct Explain {
    /// A recorded decision: its id or its number in the stream, as `writ audit tail` shows it
    #[arg(required_unless_present_any = ["case", "cases"], conflicts_with_all = ["case", "cases"])]
    decision: Option<String>,
    /// A file with one case
    #[arg(long, conflicts_with = "cases")]
    case: Option<PathBuf>,
    /// A file of cases; `--only` says which of them
    #[arg(long, requires = "only")]
    cases: Option<PathBuf>,
    /// The case with this text in its name
    #[arg(long)]
    only: Option<String>,
    /// The folder of the policy; that of `--cases` if absent, or else `policies`
    #[arg(long)]
    policy: Option<PathBuf>,
    /// The arguments of the recorded call as JSON, which records do not hold
    #[arg(long, requires = "decision")]
    arguments: Option<PathBuf>,
}

impl Explain {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let beside = self.cases.as_deref().and_then(Path::parent).map(Path::to_path_buf);
        let folder = self.policy.clone().or(beside).unwrap_or_else(|| PathBuf::from(POLICIES));
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        let (policy, _) = load(&folder)?;
        match &self.decision {
            Some(decision) => self.explain_decision(decision, &folder, &policy, common).await,
            None => self.explain_case(&policy, common),
        }
    }

    fn explain_case(&self, policy: &PolicySet, common: &Common) -> Result<Exit> {
        let file = self.case.as_ref().or(self.cases.as_ref());
        let file = file.cloned().unwrap_or_else(|| PathBuf::from(CASES));
        let cases = read_cases(&file)?;
        let case = one_case(&cases, self.only.as_deref(), &file)?;
        let told = case.explain(policy).map_err(|fault| anyhow::anyhow!("{}: {fault}", case.name))?;
        say(common, &case.name, &told)
    }

    async fn explain_decision(
        &self,
        decision: &str,
        folder: &Path,
        policy: &PolicySet,
        common: &Common,
    ) -> Result<Exit> {
        let arguments = self.arguments.as_deref().map(read_arguments).transpose()?;
        let operator = common.operator().await?;
        let recorded = operator.records(None).await?;
        operator.close().await;
        let one = find(&recorded, decision)?;
        let history = History::new(recorded.iter().filter_map(|one| one.record.as_ref()));
        let past = history.decisions().find(|past| past.record.id == one.id).with_context(|| {
            format!("{decision} is no verdict, or it was voided; `writ audit tail` shows it")
        })?;
        if let Some(arguments) = &arguments {
            past.check_arguments(arguments).map_err(anyhow::Error::msg)?;
        }
        let told = past
            .explain(policy, arguments.as_ref())
            .map_err(|fault| anyhow::anyhow!("{}: {fault}", folder.display()))?;
        say(common, &title(&past), &told)?;
        let hangs_on_arguments = told.unknown.iter().any(|unknown| unknown.predicate == "arg");
        if hangs_on_arguments && common.is_for_people() {
            common.say(
                "help: give the call's arguments with `--arguments <file>`; they are checked against the record's digest",
                &serde_json::Value::Null,
            )?;
        }
        Ok(Exit::Ok)
    }
}

fn title(past: &Past<'_>) -> String {
    let (who, what) = (&past.verdicted.who, &past.verdicted.what);
    format!("{} by {}  {}", records::target(what), records::path(who), past.record.id)
}

fn say(common: &Common, title: &str, told: &Explanation) -> Result<Exit> {
    common
        .say(explain::render(title, told, common.colour()), &json!({"asked": title, "explanation": told}))?;
    Ok(Exit::Ok)
}

fn one_case<'c>(cases: &'c [Case], only: Option<&str>, file: &Path) -> Result<&'c Case> {
    let only = only.unwrap_or_default();
    let named: Vec<&Case> = cases.iter().filter(|case| case.name.contains(only)).collect();
    let exact = named.iter().find(|case| case.name == only);
    match (named.as_slice(), exact) {
        (_, Some(one)) | ([one], _) => Ok(one),
        ([], _) => bail!("no case of {} has `{only}` in its name", file.display()),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|case| format!("`{}`", case.name)).collect();
            bail!("which case of {}? `--only` one of {}", file.display(), names.join(", "))
        }
    }
}

fn read_arguments(file: &Path) -> Result<Arguments> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("{name} cannot be read"))?;
    let value = Value::parse(text.trim()).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    Ok(Arguments::new(value))
}

/// The record with this id, or with this number in the stream.
fn find<'r>(recorded: &'r [Recorded], decision: &str) -> Result<&'r Record> {
    let number: Option<u64> = decision.strip_prefix('#').unwrap_or(decision).parse().ok();
    let found = recorded.iter().find(|one| match number {
        Some(number) => one.sequence == number,
        None => one.record.as_ref().is_some_and(|record| record.id.to_string() == decision),
    });
    let found = found.with_context(|| {
        format!("there is no record `{decision}`; `writ audit tail --no-follow` lists them by number")
    })?;
    if let Some(fault) = &found.fault {
        bail!("record `{decision}` is not to be believed: {fault}");
    }
    found.record.as_ref().with_context(|| format!("record `{decision}` cannot be read"))
}
