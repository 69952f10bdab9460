//! The audit stream as evidence: what a test claims about a call has to be on record.

use anyhow::Result;
use writ::{dev::DevStack, operator::Recorded, view::gaps};
use writ_common::{
    ids::TaskId,
    reason::ReasonCode,
    record::{
        Outcome, Record, RecordBody, RecordKind, RecordedDecision, RecordedReason, Verdicted, What, Who,
    },
};

/// A refusal on record.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// The record.
    pub record: &'a Record,
    /// On whose authority.
    pub who: &'a Who,
    /// What was to be done.
    pub what: &'a What,
    /// The first cause.
    pub reason: &'a RecordedReason,
}

/// What the stream holds about a task, or about everything.
pub struct Seen {
    /// Every record, in stream order.
    pub recorded: Vec<Recorded>,
}

impl Seen {
    /// Reads the stream; of one task or of all.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn read(stack: &DevStack, task: Option<&TaskId>) -> Result<Self> {
        let operator = stack.operator().await?;
        let recorded = operator.records(task).await?;
        operator.close().await;
        Ok(Self { recorded })
    }

    /// The records whose signatures hold.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.recorded.iter().filter(|one| one.fault.is_none()).filter_map(|one| one.record.as_ref())
    }

    /// How many there are of a kind.
    #[must_use]
    pub fn count(&self, kind: RecordKind) -> usize {
        self.records().filter(|record| record.kind() == kind).count()
    }

    /// Every verdict.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Record, &Verdicted)> {
        self.records().filter_map(|record| match &record.body {
            RecordBody::Verdict(verdicted) => Some((record, verdicted.as_ref())),
            RecordBody::Outcome(_) | RecordBody::Void(_) => None,
        })
    }

    /// Every outcome.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.records().filter_map(|record| match &record.body {
            RecordBody::Outcome(outcome) => Some(outcome.as_ref()),
            RecordBody::Verdict(_) | RecordBody::Void(_) => None,
        })
    }

    /// Every refusal: a verdict, or an intent that was voided before it ran.
    pub fn refusals(&self) -> impl Iterator<Item = Refusal<'_>> {
        self.records().filter_map(|record| match &record.body {
            RecordBody::Verdict(verdicted) if verdicted.decision == RecordedDecision::Deny => {
                let reason = verdicted.reasons.first()?;
                Some(Refusal { record, who: &verdicted.who, what: &verdicted.what, reason })
            }
            RecordBody::Void(void) => {
                Some(Refusal { record, who: &void.who, what: &void.what, reason: &void.cause })
            }
            RecordBody::Verdict(_) | RecordBody::Outcome(_) => None,
        })
    }

    /// The first code of every refusal, in stream order.
    #[must_use]
    pub fn codes(&self) -> Vec<ReasonCode> {
        self.refusals().map(|refusal| refusal.reason.code).collect()
    }

    /// How many records should be there and are not.
    #[must_use]
    pub fn missing(&self) -> u64 {
        gaps::find(self.records()).iter().map(|gap| gap.to - gap.from + 1).sum()
    }
}
