//! What came of a replay, as a table and as JSON.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{
    Mint, Place,
    replay::Answer,
    trace::Call,
    traces::{Trace, What},
};

/// What came of a file.
pub struct Report {
    mint: Mint,
    place: Place,
    /// By suite.
    pub suites: BTreeMap<String, SuiteReport>,
    /// Milliseconds that reading the file took.
    pub read_ms: u128,
    /// Milliseconds that replaying took.
    pub replay_ms: u128,
}

/// What came of a suite.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SuiteReport {
    pub benign: Counts,
    holds: usize,
    pub attacks: Counts,
    pub undecidable: usize,
    pub silent: Vec<String>,
    /// Attackers of our own, by what they do.
    pub launderers: BTreeMap<&'static str, (Counts, Vec<String>)>,
    /// How many calls were decided.
    pub decisions: usize,
    pub notes: Vec<String>,
}

/// How many came to what.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Done, with no human asked.
    pub allowed: usize,
    /// A human was asked.
    pub held: usize,
    /// Refused.
    pub denied: usize,
}

/// What an attack comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A call it needs was refused.
    Denied,
    /// A call it needs waits for a human.
    Held,
    /// Every call it needs was made, and nobody was asked.
    Silent,
    /// It needs no call: what a model says to its user is not decided here.
    Undecidable,
}

impl Fate {
    /// What an attack comes to by its critical calls.
    pub fn of(calls: &[Call], answers: &[Answer]) -> Self {
        let critical = calls.iter().zip(answers).filter(|(call, _)| call.critical).map(|(_, answer)| answer);
        match critical.max() {
            None => Self::Undecidable,
            Some(Answer::Allowed) => Self::Silent,
            Some(Answer::Held(_)) => Self::Held,
            Some(Answer::Denied(_)) => Self::Denied,
        }
    }
}

impl SuiteReport {
    /// Counts a trace by what its calls came to.
    pub fn count(&mut self, trace: &Trace<'_>, answers: &[Vec<Answer>]) {
        let (Some(leg), Some(judged)) = (trace.legs.last(), answers.last()) else { return };
        let decisions: usize = answers.iter().map(Vec::len).sum();
        match trace.what {
            What::Benign(name) => {
                self.decisions += decisions;
                self.benign(name, &leg.calls, judged);
            }
            What::Attack(id) => {
                self.decisions += decisions;
                self.attack(id, Fate::of(&leg.calls, judged));
            }
            What::Launderer(kind, id) => self.launderer(kind, id, Fate::of(&leg.calls, judged)),
        }
    }

    /// Counts a benign task.
    fn benign(&mut self, name: &str, calls: &[Call], answers: &[Answer]) {
        let held = answers.iter().filter(|answer| matches!(answer, Answer::Held(_))).count();
        self.holds += held;
        match answers.iter().max() {
            None | Some(Answer::Allowed) => self.benign.allowed += 1,
            Some(Answer::Held(_)) => self.benign.held += 1,
            Some(Answer::Denied(_)) => self.benign.denied += 1,
        }
        for (call, answer) in calls.iter().zip(answers) {
            let note = match answer {
                Answer::Allowed => continue,
                Answer::Held(why) => format!("held    {name} {}: {why}", call.tool),
                Answer::Denied(why) => format!("denied  {name} {}: {why}", call.tool),
            };
            self.notes.push(note);
        }
    }

    /// Counts an attack of the file.
    fn attack(&mut self, id: &str, fate: Fate) {
        match fate {
            Fate::Undecidable => self.undecidable += 1,
            Fate::Silent => self.silent.push(id.to_owned()),
            Fate::Denied | Fate::Held => {}
        }
        self.attacks.count(fate);
    }

    /// Counts an attack of one of our attackers.
    fn launderer(&mut self, kind: &'static str, id: &str, fate: Fate) {
        let (counts, silent) = self.launderers.entry(kind).or_default();
        counts.count(fate);
        if fate == Fate::Silent {
            silent.push(id.to_owned());
        }
    }

    pub fn json(&self) -> Value {
        let tasks = self.benign.allowed + self.benign.held + self.benign.denied;
        json!({
            "benign": {"allowed": self.benign.allowed, "held": self.benign.held, "denied": self.benign.denied},
            "attacks": {"denied": self.attacks.denied, "held": self.attacks.held, "silent": self.attacks.allowed},
            "holds_per_benign": ratio(self.holds, tasks),
            "silent": self.silent,
        })
    }
}

impl Counts {
    fn count(&mut self, fate: Fate) {
        match fate {
            Fate::Denied => self.denied += 1,
            Fate::Held => self.held += 1,
            Fate::Silent => self.allowed += 1,
            Fate::Undecidable => {}
        }
    }
}

/// Rounded to three decimals.
fn ratio(part: usize, whole: usize) -> f64 {
    let thousandths = (part * 1_000 + whole / 2).checked_div(whole).unwrap_or(0);
    f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 1_000.0
}

impl Report {
    /// Nothing replayed yet.
    pub fn new(mint: Mint, place: Place) -> Self {
        Self { mint, place, suites: BTreeMap::new(), read_ms: 0, replay_ms: 0 }
    }

    /// One object: suites by name, and nothing else.
    pub fn json(&self) -> Value {
        self.suites.iter().map(|(name, suite)| (name.clone(), suite.json())).collect()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "capabilities minted by: {}; decided {}\n\n{:<24} {:>8} {:>6} {:>7} {:>10}   {:>7} {:>6} {:>7}\n",
            self.mint.as_str(),
            match self.place {
                Place::InProcess => "in this process",
                Place::Bus => "by a broker and a node",
            },
            "",
            "allowed",
            "held",
            "denied",
            "holds/task",
            "denied",
            "held",
            "silent"
        );
        for (name, suite) in &self.suites {
            let (benign, attacks) = (suite.benign, suite.attacks);
            let tasks = benign.allowed + benign.held + benign.denied;
            line(
                &mut text,
                format_args!(
                    "{name:<24} {:>8} {:>6} {:>7} {:>10.3}   {:>7} {:>6} {:>7}",
                    benign.allowed,
                    benign.held,
                    benign.denied,
                    ratio(suite.holds, tasks),
                    attacks.denied,
                    attacks.held,
                    attacks.allowed
                ),
            );
            for (kind, (counts, _)) in &suite.launderers {
                line(
                    &mut text,
                    format_args!(
                        "{:<24} {:>8} {:>6} {:>7} {:>10}   {:>7} {:>6} {:>7}",
                        format!("  {kind}"),
                        "",
                        "",
                        "",
                        "",
                        counts.denied,
                        counts.held,
                        counts.allowed
                    ),
                );
            }
            if suite.undecidable > 0 {
                line(
                    &mut text,
                    format_args!("  {} attacks need no call and are not counted", suite.undecidable),
                );
            }
        }
        for (name, suite) in &self.suites {
            let launderers = suite
                .launderers
                .iter()
                .flat_map(|(kind, (_, silent))| silent.iter().map(move |id| (*kind, id)));
            let silent = suite.silent.iter().map(|id| ("", id)).chain(launderers);
            for (kind, id) in silent {
                line(&mut text, format_args!("\nsilent  {name} {kind} {id}"));
            }
            if !suite.notes.is_empty() {
                line(
                    &mut text,
                    format_args!(
                        "\n{name}, benign tasks that did not just run:\n  {}",
                        suite.notes.join("\n  ")
                    ),
                );
            }
        }
        let decisions: usize = self.suites.values().map(|suite| suite.decisions).sum();
        line(
            &mut text,
            format_args!(
                "\n{decisions} calls decided in {} ms, after {} ms of reading the file",
                self.replay_ms, self.read_ms
            ),
        );
        text
    }
}

fn line(text: &mut String, what: fmt::Arguments<'_>) {
    text.push_str(&what.to_string());
    text.push('\n');
}
