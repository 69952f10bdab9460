//! `cargo run --release -p writ-simulations -- agentdojo <file>`: recorded tasks and attacks, decided as a node would.
//!
//! A file of traces says which tools a suite has, what its users ask for, which calls solve it, and which calls an
//! obedient model makes once an outsider's text is among what it reads. Every one of them is decided here for real:
//! capabilities are issued and handed from the user's orchestrator to one agent per group of tools, contracts and
//! directories are made from the file, and the task label is raised as results come back. What is counted is what the
//! policy layer lets through; how often a model obeys is another question.

mod bus;
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
mod traces;
mod world;

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result};
use writ_common::policy::PolicyBundle;

pub use self::mint::Mint;
use self::{
    replay::Replay,
    report::{Report, SuiteReport},
    trace::{Suite, Suites},
};

/// Where calls are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process, by the same functions.
    InProcess,
    /// By a broker and a node, over a bus.
    Bus,
}

/// Replays every suite of a file.
///
/// # Errors
/// If the file or the policy cannot be read, or the set-up does not come up.
pub async fn run(file: &Path, policy: Option<&Path>, mint: Mint, place: Place) -> Result<Report> {
    let started = Instant::now();
    let suites = trace::read(file)?;
    let read = started.elapsed();
    let mut report = replay_all(&suites, &replay::rules(policy, mint)?, mint, place).await?;
    report.read_ms = read.as_millis();
    Ok(report)
}

async fn replay_all(suites: &Suites, rules: &PolicyBundle, mint: Mint, place: Place) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report::new(mint, place);
    for (name, suite) in suites {
        let replayed = replay_suite(suite, rules, mint, place).await;
        report.suites.insert(name.clone(), replayed.with_context(|| format!("suite `{name}`"))?);
    }
    report.replay_ms = started.elapsed().as_millis();
    Ok(report)
}

async fn replay_suite(suite: &Suite, rules: &PolicyBundle, mint: Mint, place: Place) -> Result<SuiteReport> {
    let replay = Replay::new(suite, rules, mint)?;
    let traces = traces::of(suite);
    let answers = match place {
        Place::InProcess => replay.run(&traces)?,
        Place::Bus => bus::run(&replay, &traces).await?,
    };
    let mut report = SuiteReport::default();
    for (trace, answers) in traces.iter().zip(&answers) {
        report.count(trace, answers);
    }
    Ok(report)
}
