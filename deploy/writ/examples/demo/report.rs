//! What the audit stream says about the run: nothing here is counted by the agents themselves.

use std::{collections::BTreeMap, io::Write as _, path::Path, time::Duration};

use anyhow::Result;
use serde::Serialize;
use writ::{
    dev::DevStack,
    evidence::{
        read::{Against, verify},
        write::export,
    },
    operator::OperatorProfile,
    view::{chain, gaps},
};
use writ_common::record::{RecordBody, RecordedDecision};
use writ_sdk::TaskId;

use crate::story::Voice;

/// The end of the run in numbers, and the task as a tree.
#[derive(Serialize)]
pub struct Report {
    /// Verdicts that allowed something, enrollments and tasks included.
    allowed: u64,
    /// Verdicts that refused something.
    denied: u64,
    /// Verdicts that wait, or waited, for people.
    held: u64,
    /// How often each reason was the first one of a refusal.
    reasons: BTreeMap<String, u64>,
    /// Records in the stream.
    audit_records: u64,
    /// Records that should be there and are not, or are not what they claim.
    audit_gaps: u64,
    /// Records of the task that were exported and verified with nothing but the root's key.
    verified_records: u64,
    /// What contradicts them.
    verification_faults: usize,
    /// Set-up and story, in milliseconds.
    elapsed_ms: u128,
    #[serde(skip)]
    tree: chain::Chain,
}

impl Report {
    /// Reads the audit stream as an auditor would, and has the evidence of the task written into a new folder.
    pub async fn read(stack: &DevStack, task: &TaskId, evidence: &Path, elapsed: Duration) -> Result<Self> {
        let operator = stack.operator().await?;
        let recorded = operator.records(None).await?;
        let root = OperatorProfile::load(&stack.layout.operator())?.root;
        export(&operator, root, Some(task), None, evidence).await?;
        operator.close().await;
        let (_, verified) = verify(evidence, &Against { root: Some(root), ..Against::default() })?;
        let records =
            || recorded.iter().filter(|one| one.fault.is_none()).filter_map(|one| one.record.as_ref());
        let mut report = Self {
            allowed: 0,
            denied: 0,
            held: 0,
            reasons: BTreeMap::new(),
            audit_records: u64::try_from(recorded.len())?,
            audit_gaps: gaps::find(records()).iter().map(|gap| gap.to - gap.from + 1).sum(),
            verified_records: verified.records,
            verification_faults: verified.faults,
            elapsed_ms: elapsed.as_millis(),
            tree: chain::build(task, &recorded),
        };
        report.audit_gaps += u64::try_from(recorded.len() - records().count())?;
        for record in records() {
            let first = match &record.body {
                RecordBody::Verdict(verdicted) if verdicted.decision == RecordedDecision::Allow => {
                    report.allowed += 1;
                    continue;
                }
                RecordBody::Verdict(verdicted) if verdicted.decision == RecordedDecision::Hold => {
                    report.held += 1;
                    continue;
                }
                RecordBody::Verdict(verdicted) => verdicted.reasons.first().map(|reason| reason.code),
                RecordBody::Void(void) => {
                    report.allowed = report.allowed.saturating_sub(1);
                    Some(void.cause.code)
                }
                RecordBody::Outcome(_) => continue,
            };
            report.denied += 1;
            if let Some(code) = first {
                *report.reasons.entry(code.to_string()).or_default() += 1;
            }
        }
        Ok(report)
    }

    /// One JSON object.
    pub fn print_json(&self) -> Result<()> {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(self)?)?;
        Ok(())
    }

    /// For people: tree, counts, what to do next.
    pub fn print(&self, voice: Voice, is_kept: bool) -> Result<()> {
        voice.say(format_args!(
            "\nWhat the audit stream says about it:\n\n{}",
            chain::render(&self.tree, voice.colour)
        ))?;
        let reasons: Vec<String> =
            self.reasons.iter().map(|(code, count)| format!("{code} {count}")).collect();
        voice.say(format_args!(
            "In all {} allowed, {} held, {} denied ({}); {} records, {} missing; {}.{} s",
            self.allowed,
            self.held,
            self.denied,
            reasons.join(", "),
            self.audit_records,
            self.audit_gaps,
            self.elapsed_ms / 1_000,
            self.elapsed_ms % 1_000 / 100
        ))?;
        voice.say(format_args!(
            "{} records of the task, exported and verified with nothing but the root's key: {}",
            self.verified_records,
            match self.verification_faults {
                0 => "nothing contradicts them".to_owned(),
                count => format!("{count} faults"),
            }
        ))?;
        if is_kept {
            voice.say(format_args!(
                "\nEverything goes on running. In another terminal:\n  \
                 cargo run -qp writ -- audit chain last --profile .writ-demo/operator.toml\n  \
                 cargo run -qp writ -- audit tail --profile .writ-demo/operator.toml\n  \
                 cargo run -qp writ -- explain delegation.widening\nCtrl-C stops it."
            ))
        } else {
            voice.say(format_args!(
                "\nNext:\n  \
                 cargo run -qp writ -- explain delegation.widening   what a reason means and what to do about it\n  \
                 cargo demo -- --keep                                the same, left running, to look around in\n  \
                 cargo run -qp writ -- dev                           a set-up of your own, in ./.writ"
            ))
        }
    }
}
