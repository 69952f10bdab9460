//! `cargo run --release -p writ-simulations -- agentdojo <file>`: recorded tasks and attacks, decided as a node would.
//!
//! A file of traces says which tools a suite has, what its users ask for, which calls solve it, and which calls an
//! obedient model makes once an outsider's text is among what it reads. Every one of them is decided here for real:
//! capabilities are issued and handed from the user's orchestrator to one agent per group of tools, contracts and
//! directories are made from the file, and the task label is raised as results come back. What is counted is what the
//! policy layer lets through; how often a model obeys is another question.

mod contracts;
mod directories;
mod entities;
mod laundering;
mod mint;
mod replay;
mod report;
#[cfg(test)]
mod tests;
mod trace;
mod world;

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use writ_common::policy::PolicyBundle;

pub use self::mint::Mint;
use self::{
    replay::{Replay, State},
    report::{Fate, Report, SuiteReport},
    trace::{Suite, Suites},
};

/// Replays every suite of a file.
///
/// # Errors
/// If the file or the policy cannot be read.
pub fn run(file: &Path, policy: Option<&Path>, mint: Mint) -> Result<Report> {
    let started = Instant::now();
    let suites = trace::read(file)?;
    let read = started.elapsed();
    let mut report = replay_all(&suites, &replay::rules(policy, mint)?, mint)?;
    report.read_ms = read.as_millis();
    Ok(report)
}

fn replay_all(suites: &Suites, rules: &PolicyBundle, mint: Mint) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report::new(mint);
    for (name, suite) in suites {
        let replayed = replay_suite(suite, rules, mint).with_context(|| format!("suite `{name}`"))?;
        report.suites.insert(name.clone(), replayed);
    }
    report.replay_ms = started.elapsed().as_millis();
    Ok(report)
}

fn replay_suite(suite: &Suite, rules: &PolicyBundle, mint: Mint) -> Result<SuiteReport> {
    let mut files = contracts::files(suite)?;
    files.0.extend(rules.0.clone());
    let replay = Replay::new(suite, &files, mint)?;
    let mut report = SuiteReport::default();
    let mut sessions = BTreeMap::new();
    for (name, task) in &suite.tasks {
        let session = replay.start(name, task)?;
        let answers = session.run(&task.calls, None, &mut State::new());
        report.decisions += answers.len();
        report.benign(name, &task.calls, &answers);
        sessions.insert(name.as_str(), session);
    }
    for attack in &suite.attacks {
        let (Some(session), Some(task)) = (sessions.get(attack.user.as_str()), suite.tasks.get(&attack.user))
        else {
            continue;
        };
        let mut state = State::new();
        let prefix = task.calls.get(..attack.prefix).unwrap_or(&task.calls);
        let before = session.run(prefix, Some(attack), &mut state);
        let answers = session.run(&attack.calls, Some(attack), &mut state);
        report.decisions += before.len() + answers.len();
        report.attack(&attack.id, Fate::of(&attack.calls, &answers));
    }
    laundering::replay(suite, &sessions, &mut report);
    Ok(report)
}
