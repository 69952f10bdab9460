//! `writ policy suggest`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::{
    cases::Case,
    control::ControlState,
    ids::{AgentId, TaskId},
    reason::ReasonCode,
    replay::{
        History, Past,
        suggest::{Suggestion, suggest},
    },
    time::Timestamp,
};

use super::{super::Common, CASES, diff::loaded, parse_time};
use crate::exit::Exit;

#[derive(Args)]
pub struct Suggest {
    /// The folder to write; it must not be there, or be empty
    #[arg(long)]
    out: PathBuf,
    /// Only what was done in this task
    #[arg(long)]
    task: Option<TaskId>,
    /// Only what this agent did
    #[arg(long)]
    agent: Option<AgentId>,
    /// Only what was done since then, in UTC, as 2026-01-31T12:00:00Z
    #[arg(long, value_parser = parse_time)]
    since: Option<Timestamp>,
}

impl Suggest {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        check_free(&self.out)?;
        let operator = common.operator().await?;
        let control = operator.control().await?;
        let recorded = operator.records(None).await?;
        operator.close().await;
        let in_force = control.policy().and_then(|(_, bundle)| loaded(bundle));
        let believed = recorded.iter().filter(|one| one.fault.is_none());
        let history = History::new(believed.filter_map(|one| one.record.as_ref()));
        let mut suggestion = suggest(&history, in_force.as_ref(), &|past| self.leave_out(past, &control));
        let faults = recorded.iter().filter(|one| one.fault.is_some()).count();
        if faults > 0 {
            let faults = u64::try_from(faults).unwrap_or(u64::MAX);
            suggestion.left_out.insert("flagged: its signature does not hold".to_owned(), faults);
        }
        if suggestion.files.is_empty() {
            bail!("there is no call to suggest a policy from{}", left_out(&suggestion));
        }
        let cases = suggestion.files.get(CASES).map(String::as_str).unwrap_or_default();
        let cases: Vec<Case> = serde_saphyr::from_str(cases).context("the suggested cases")?;
        // It has to hold what it promises before anybody reads it.
        suggestion.check(&cases).map_err(|fault| {
            anyhow::anyhow!("what would be suggested does not hold, and is not written: {fault}")
        })?;
        for (path, text) in &suggestion.files {
            write(&self.out.join(path), text)?;
        }
        say(common, &self.out, &suggestion, cases.len())
    }

    fn leave_out(&self, past: &Past<'_>, control: &ControlState) -> Option<String> {
        let who = &past.verdicted.who;
        if self.since.is_some_and(|since| past.record.at < since) {
            return Some("before `--since`".to_owned());
        }
        if self.task.as_ref().is_some_and(|task| who.task.as_ref() != Some(task)) {
            return Some("of another task".to_owned());
        }
        if self.agent.as_ref().is_some_and(|agent| who.caller.as_ref() != Some(agent)) {
            return Some("of another agent".to_owned());
        }
        let agents = who.agent.iter().chain(who.hops.iter().map(|hop| &hop.to)).chain(&who.caller);
        let quarantined = agents.into_iter().find(|agent| control.is_quarantined(agent));
        if let Some(agent) = quarantined {
            return Some(format!("flagged: `{agent}` is quarantined"));
        }
        let granted = past.granted?;
        let (Some(capability), Some(task), Some(user), Some(agent)) =
            (&who.capability, &who.task, &who.user, &who.agent)
        else {
            return None;
        };
        let checked = control.check_task(capability, task, user, agent, granted.started);
        // That everything is halted says nothing about this one.
        let against = checked.err().filter(|reason| reason.code() != ReasonCode::HaltAll);
        against.map(|reason| format!("flagged: {}", reason.code()))
    }
}

fn check_free(out: &Path) -> Result<()> {
    let is_empty = match fs::read_dir(out) {
        Ok(mut items) => items.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| out.display().to_string()),
    };
    if !is_empty {
        bail!("{} is not empty; a suggestion goes into a folder of its own", out.display());
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    let cannot = || format!("{} cannot be written", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(cannot)?;
    }
    let mut new = fs::OpenOptions::new().write(true).create_new(true).open(file).with_context(cannot)?;
    std::io::Write::write_all(&mut new, text.as_bytes()).with_context(cannot)
}

fn left_out(suggestion: &Suggestion) -> String {
    if suggestion.left_out.is_empty() {
        return String::new();
    }
    let lines = suggestion.left_out.iter().map(|(why, count)| format!("  {count:>5} x {why}"));
    format!("\nleft out:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn say(common: &Common, out: &Path, suggestion: &Suggestion, cases: usize) -> Result<Exit> {
    let folder = out.display();
    let mut text = format!("{folder}: from {} calls, {cases} cases; nothing is activated", suggestion.calls);
    text += &left_out(suggestion);
    text += "\nbefore you use it:\n";
    suggestion.notes.iter().for_each(|note| text += &format!("  {note}\n"));
    text += &format!("  then `writ policy test --strict {folder}` and `writ policy diff {folder}`");
    let files: Vec<&String> = suggestion.files.keys().collect();
    common.say(
        text,
        &json!({
            "folder": out, "files": files, "calls": suggestion.calls, "cases": cases,
            "left_out": suggestion.left_out, "notes": suggestion.notes,
        }),
    )?;
    Ok(Exit::Ok)
}
