//! A task as a tree: who handed what to whom, what each did, and why something was refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;
use writ_common::{
    digest::Digest,
    ids::TaskId,
    record::{
        DecisionId, Outcome, Record, RecordBody, RecordedDecision, RecordedFinding, RecordedReason,
        Verdicted, What, Who,
    },
};

use super::{Colour, colour, records};
use crate::operator::Recorded;

/// One task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The task.
    pub task: String,
    /// Its kind.
    pub kind: Option<String>,
    /// On whose authority.
    pub user: Option<String>,
    /// The capability and how often it was issued.
    pub capability: Option<String>,
    /// What the broker did.
    pub broker: Vec<Entry>,
    /// The agent it was given to, and everything below.
    pub root: Agent,
    /// How many calls were allowed.
    pub allowed: u64,
    /// How many of those would be denied if nothing were in observe mode.
    pub only_observed: u64,
    /// How many were denied.
    pub denied: u64,
    /// How many were held for people.
    pub held: u64,
    /// Records that are not what they claim.
    pub faults: Vec<String>,
}

/// An agent in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Its name.
    pub agent: String,
    /// What the one before it kept back.
    pub kept_back: Vec<String>,
    /// Whether nothing was handed to it: it came with a capability of the one above.
    pub is_outsider: bool,
    /// What it did, in the order of the stream.
    pub entries: Vec<Entry>,
    /// Whom it handed parts to.
    pub delegates: Vec<Agent>,
}

/// One verdict, with how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Stream sequence.
    pub sequence: u64,
    /// The record.
    pub id: String,
    /// When.
    pub at: String,
    /// `allow`, `deny`, `hold`.
    pub verdict: &'static str,
    /// What was to be done.
    pub target: String,
    /// The approval it waits for or was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// Who gave it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approved_by: Vec<String>,
    /// What the policy in the shadow would have answered, if it is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// How it ended, for what was allowed.
    pub outcome: Option<String>,
    /// Digests of the pieces of content the result was made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifest: Vec<Digest>,
    /// What inspectors found, in arguments and result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
    /// Why not.
    pub reasons: Vec<Why>,
    /// What would have denied it if it were not in observe mode.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub would_deny: Vec<Why>,
    /// The rules that decided.
    pub rules: Vec<String>,
    /// What to do about it.
    pub help: Option<String>,
}

/// A cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Why {
    /// Its code.
    pub code: String,
    /// What the caller was told.
    pub told: String,
    /// What only the record says.
    pub noted: Option<String>,
}

impl From<&RecordedReason> for Why {
    fn from(reason: &RecordedReason) -> Self {
        Self { code: reason.code.to_string(), told: reason.told.clone(), noted: reason.noted.clone() }
    }
}

/// The task something happened in last, for `writ audit chain last`.
#[must_use]
pub fn latest_task(records: &[Recorded]) -> Option<TaskId> {
    let issued: BTreeSet<&TaskId> = records
        .iter()
        .filter_map(|recorded| match &recorded.record.as_ref()?.body {
            RecordBody::Verdict(verdicted) if verdicted.granted.is_some() => verdicted.who.task.as_ref(),
            _ => None,
        })
        .collect();
    let named = records.iter().rev().filter_map(|recorded| recorded.record.as_ref()?.task());
    named.into_iter().find(|task| issued.contains(task)).cloned()
}

/// Puts a task's records together. Redelivered copies of a record count once.
#[must_use]
pub fn build(task: &TaskId, recorded: &[Recorded]) -> Chain {
    let mut chain = Chain { task: task.to_string(), ..Chain::default() };
    let mut outcomes: BTreeMap<DecisionId, &Outcome> = BTreeMap::new();
    let mut seen: BTreeSet<(DecisionId, bool)> = BTreeSet::new();
    let ours: Vec<(&Recorded, &Record)> = recorded
        .iter()
        .filter_map(|recorded| Some((recorded, recorded.record.as_ref()?)))
        .filter(|(_, record)| record.task() == Some(task))
        .collect();
    for (_, record) in &ours {
        if let RecordBody::Outcome(outcome) = &record.body {
            outcomes.insert(outcome.intent.clone(), outcome.as_ref());
        }
    }
    for (recorded, record) in ours {
        if let Some(fault) = &recorded.fault {
            chain.faults.push(format!("#{}: {fault}", recorded.sequence));
            continue;
        }
        let is_outcome = matches!(record.body, RecordBody::Outcome(_));
        if is_outcome || !seen.insert((record.id.clone(), is_outcome)) {
            continue;
        }
        match &record.body {
            RecordBody::Verdict(verdicted) => {
                let entry = verdict_entry(recorded, record, verdicted, outcomes.get(&record.id).copied());
                if verdicted.granted.is_some() || is_about_issue(&verdicted.what) {
                    if verdicted.right.is_none() {
                        chain.learn(verdicted);
                    }
                    chain.broker.push(entry);
                } else {
                    chain.count(&entry);
                    place(&mut chain.root, &verdicted.who, entry);
                }
            }
            RecordBody::Void(void) => {
                let entry = Entry {
                    verdict: "deny",
                    target: records::target(&void.what),
                    reasons: vec![Why::from(&void.cause)],
                    help: Some(help(&void.cause)),
                    ..entry_of(recorded, record)
                };
                chain.count(&entry);
                place(&mut chain.root, &void.who, entry);
            }
            RecordBody::Outcome(_) => {}
        }
    }
    chain
}

fn is_about_issue(what: &What) -> bool {
    what.action.as_ref().is_some_and(|action| matches!(action.as_str(), "issue" | "renew" | "revoke" | "ask"))
}

impl Chain {
    fn learn(&mut self, verdicted: &Verdicted) {
        if let Some(granted) = &verdicted.granted {
            self.kind = Some(granted.kind.to_string());
        }
        if let Some(user) = &verdicted.who.user {
            self.user = Some(user.to_string());
        }
        if let Some(agent) = &verdicted.who.agent {
            self.root.agent = agent.to_string();
        }
        if let (Some(capability), Some(serial)) = (&verdicted.who.capability, verdicted.who.serial) {
            self.capability = Some(format!("{capability} #{serial}"));
        }
    }

    fn count(&mut self, entry: &Entry) {
        match entry.verdict {
            "allow" => {
                self.allowed += 1;
                self.only_observed += u64::from(!entry.would_deny.is_empty());
            }
            "deny" => self.denied += 1,
            "hold" => self.held += 1,
            _ => {}
        }
    }
}

fn entry_of(recorded: &Recorded, record: &Record) -> Entry {
    Entry {
        sequence: recorded.sequence,
        id: record.id.to_string(),
        at: record.at.to_string(),
        ..Entry::default()
    }
}

fn verdict_entry(
    recorded: &Recorded,
    record: &Record,
    verdicted: &Verdicted,
    outcome: Option<&Outcome>,
) -> Entry {
    let verdict = match verdicted.decision {
        RecordedDecision::Allow => "allow",
        RecordedDecision::Deny => "deny",
        RecordedDecision::Hold => "hold",
    };
    let ended = outcome.map(|outcome| {
        let reason = outcome.reason.as_ref().map(|why| format!(" {}: {}", why.code, why.told));
        let elapsed = outcome.elapsed.map(|elapsed| format!(", {elapsed}"));
        let label = outcome.label.as_ref().map(|label| format!(", {label}")).unwrap_or_default();
        format!(
            "{}{}{}{label}",
            outcome.status.as_str(),
            reason.unwrap_or_default(),
            elapsed.unwrap_or_default()
        )
    });
    Entry {
        verdict,
        target: records::target_of(verdicted),
        approval: verdicted.approval.as_ref().map(|approval| approval.id.to_string()),
        approved_by: verdicted
            .approval
            .iter()
            .flat_map(|approval| approval.by.iter().map(ToString::to_string))
            .collect(),
        shadow: verdicted
            .shadow
            .as_ref()
            .filter(|shadow| shadow.differs)
            .map(|shadow| records::in_the_shadow(shadow)),
        outcome: ended,
        manifest: outcome.map(|outcome| outcome.manifest.clone()).unwrap_or_default(),
        found: found("arguments", &verdicted.found)
            .chain(outcome.into_iter().flat_map(|outcome| found("result", &outcome.found)))
            .collect(),
        reasons: verdicted.reasons.iter().map(Why::from).collect(),
        would_deny: verdicted.would_deny.iter().map(Why::from).collect(),
        rules: verdicted.basis.rules.clone(),
        help: verdicted.reasons.first().or(verdicted.would_deny.first()).map(help),
        ..entry_of(recorded, record)
    }
}

fn found<'f>(what: &'f str, found: &'f [RecordedFinding]) -> impl Iterator<Item = String> + 'f {
    found.iter().map(move |one| {
        let times = if one.places > 1 { format!(", in {} places", one.places) } else { String::new() };
        format!("{} in the {what} ({}, {}){times}", one.kind, one.detector, one.severity)
    })
}

fn help(reason: &RecordedReason) -> String {
    format!("{} (writ explain {})", reason.code.page().next, reason.code)
}

/// Hangs an entry below the last agent of its chain.
fn place(root: &mut Agent, who: &Who, entry: Entry) {
    if root.agent.is_empty()
        && let Some(agent) = who.agent.as_ref().or(who.caller.as_ref())
    {
        root.agent = agent.to_string();
    }
    let mut at = root;
    for hop in &who.hops {
        at = child(at, hop.to.as_str(), hop.gave_up.iter().map(ToString::to_string).collect());
    }
    // Somebody who was not handed what they came with, or whose capability could not be read.
    if let Some(caller) = &who.caller
        && at.agent != caller.as_str()
    {
        at = outsider(at, caller.as_str());
    }
    at.entries.push(entry);
}

/// The delegate of that name, made if need be. A renewal gives a hop a new id; for a reader it is still the same
/// hand-over.
fn child<'a>(parent: &'a mut Agent, name: &str, kept_back: Vec<String>) -> &'a mut Agent {
    let known = parent.delegates.iter().position(|agent| !agent.is_outsider && agent.agent == name);
    let position = known.unwrap_or_else(|| {
        parent.delegates.push(Agent { agent: name.to_owned(), kept_back, ..Agent::default() });
        parent.delegates.len() - 1
    });
    #[expect(clippy::indexing_slicing, reason = "the position was found or made just above")]
    &mut parent.delegates[position]
}

/// The one of that name who is not in the chain, made if need be.
fn outsider<'a>(parent: &'a mut Agent, name: &str) -> &'a mut Agent {
    let known = parent.delegates.iter().position(|agent| agent.is_outsider && agent.agent == name);
    let position = known.unwrap_or_else(|| {
        parent.delegates.push(Agent { agent: name.to_owned(), is_outsider: true, ..Agent::default() });
        parent.delegates.len() - 1
    });
    #[expect(clippy::indexing_slicing, reason = "the position was found or made just above")]
    &mut parent.delegates[position]
}

/// Most digests of a manifest in the tree; `-o json` has them all, whole.
const MANIFEST_SHOWN: usize = 4;

/// The tree as text.
#[must_use]
pub fn render(chain: &Chain, colour: Colour) -> String {
    let mut text = String::new();
    let bold = |text: &str| colour.paint(colour::BOLD, text);
    let _ = writeln!(
        text,
        "{} {} {}",
        bold("task"),
        chain.task,
        colour.paint(
            colour::DIM,
            &[chain.kind.as_deref(), chain.capability.as_deref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("  ")
        )
    );
    if let Some(user) = &chain.user {
        let _ = writeln!(text, "{} {user}", bold("user"));
    }
    for entry in &chain.broker {
        render_entry(&mut text, entry, "", colour);
    }
    render_agent(&mut text, &chain.root, "", "", colour);
    let held = if chain.held > 0 { format!(", {} held", chain.held) } else { String::new() };
    let observed = match chain.only_observed {
        0 => String::new(),
        count => format!(" ({count} only because they are observed)"),
    };
    let _ = writeln!(text, "{} allowed{observed}{held}, {} denied", chain.allowed, chain.denied);
    for fault in &chain.faults {
        let _ = writeln!(text, "{}", colour.paint(colour::RED, fault));
    }
    text
}

fn render_agent(text: &mut String, agent: &Agent, first: &str, indent: &str, colour: Colour) {
    let kept_back = if agent.is_outsider {
        colour.paint(colour::RED, "  not in this chain")
    } else if agent.kept_back.is_empty() {
        String::new()
    } else {
        colour.paint(colour::DIM, &format!("  without {}", agent.kept_back.join(", ")))
    };
    let _ = writeln!(text, "{first}{}{kept_back}", colour.paint(colour::BOLD, &agent.agent));
    let bar = if agent.delegates.is_empty() { "   " } else { "│  " };
    for entry in &agent.entries {
        render_entry(text, entry, &format!("{indent}{bar}"), colour);
    }
    for (index, delegate) in agent.delegates.iter().enumerate() {
        let is_last = index + 1 == agent.delegates.len();
        let (branch, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        render_agent(text, delegate, &format!("{indent}{branch}"), &format!("{indent}{below}"), colour);
    }
}

fn render_entry(text: &mut String, entry: &Entry, indent: &str, colour: Colour) {
    let code = match entry.verdict {
        "allow" => colour::GREEN,
        "deny" => colour::RED,
        _ => colour::YELLOW,
    };
    let verdict = colour.paint(code, &format!("{:<5}", entry.verdict.to_uppercase()));
    let time = entry.at.get(11..23).unwrap_or(&entry.at);
    let outcome = entry.outcome.as_ref().map(|outcome| format!("  {outcome}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "{indent}{} {verdict} {}{outcome}  {}",
        colour.paint(colour::DIM, time),
        entry.target,
        colour.paint(colour::DIM, &format!("#{}", entry.sequence))
    );
    if !entry.manifest.is_empty() {
        let shown: Vec<String> = entry.manifest.iter().take(MANIFEST_SHOWN).map(Digest::short).collect();
        let more = if entry.manifest.len() > shown.len() { " …" } else { "" };
        let _ = writeln!(text, "{indent}      made of {}: {}{more}", entry.manifest.len(), shown.join(" "));
    }
    if !entry.found.is_empty() {
        let _ = writeln!(text, "{indent}      found {}", entry.found.join("; "));
    }
    if let Some(approval) = &entry.approval {
        let by = entry.approved_by.join(", ");
        let by = if by.is_empty() { String::new() } else { format!(" by {by}") };
        let _ = writeln!(text, "{indent}      approval {approval}{by}");
    }
    for why in &entry.reasons {
        let noted = why.noted.as_ref().map(|noted| format!(" [{noted}]")).unwrap_or_default();
        let _ = writeln!(text, "{indent}      {}: {}{noted}", colour.paint(code, &why.code), why.told);
    }
    for why in &entry.would_deny {
        let told = format!("{}: {}", colour.paint(colour::YELLOW, &why.code), why.told);
        let would = colour.paint(colour::YELLOW, "WOULD DENY");
        let _ = writeln!(text, "{indent}      {would} {told}");
    }
    if let Some(shadow) = &entry.shadow {
        let _ = writeln!(text, "{indent}      {}", colour.paint(colour::YELLOW, shadow));
    }
    if let Some(help) = &entry.help {
        let _ = writeln!(text, "{indent}      help: {help}");
    }
}
