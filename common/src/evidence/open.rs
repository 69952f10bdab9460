//! One record by itself: whose it is, and what the rules between records need of it. The dear part of verifying, and
//! independent of every other record, so that a caller can spread it over threads.

use std::fmt::Display;

use super::{
    approval::LetPass,
    finding::{Code, Finding},
};
use crate::{
    codec::decode,
    control::ControlState,
    digest::Digest,
    epoch::Epoch,
    ids::{PartId, ResourceKind, TaskId},
    policy::PolicyRevision,
    record::{DecisionId, Origin, OutcomeStatus, Record, RecordBody, RecordedDecision},
    signed::{OpenError, Signed},
    subjects::Subject,
    time::Timestamp,
    tlog::{LogId, leaf_hash},
    visible::visible,
};

/// What is kept of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub(super) log: LogId,
    pub(super) seq: u64,
    pub(super) at: Timestamp,
    pub(super) leaf: Digest,
    pub(super) digest: Digest,
    pub(super) prev: Digest,
    /// Digest of the record that was prepared at this position: its own, or what it voids.
    pub(super) prepared: Digest,
    pub(super) is_void: bool,
    pub(super) task: Option<TaskId>,
    pub(super) role: Role,
    pub(super) policy: Option<PolicyRevision>,
    pub(super) epoch: Option<Epoch>,
    /// Whether the record itself says that a later policy was not taken.
    pub(super) has_policy_fault: bool,
    /// Who let it pass, if it was allowed and somebody had to.
    pub(super) let_pass: Option<Box<LetPass>>,
    /// The subject it was found under, if that is not its own.
    pub(super) strange_subject: Option<String>,
}

/// What a record is to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A call that a node let through, its id and part: there has to be an outcome, in that part.
    Intent(Option<Digest>, PartId),
    /// Anything else that was allowed, and its call id: an outcome may say that it came to nothing.
    Allowed(Option<Digest>),
    /// What let it through, the id of that call, and how it ended.
    Outcome { intent: DecisionId, call_id: Digest, status: OutcomeStatus },
    /// Neither.
    Other,
}

impl Opened {
    /// The record's name.
    #[must_use]
    pub fn id(&self) -> DecisionId {
        DecisionId { origin: self.log.origin.clone(), boot: self.log.boot.clone(), seq: self.seq }
    }
}

/// Opens one record against the keys of the control stream; `subject` is where it stood, if it stood in a stream.
///
/// # Errors
/// The finding, if it is no record of this tenant or not its recorder's word.
pub fn open(
    control: &ControlState,
    sequence: u64,
    subject: Option<&str>,
    envelope: &[u8],
) -> Result<(Opened, Record), Finding> {
    let place = format!("record at sequence {sequence}");
    let malformed =
        |why: &dyn Display| Finding::fault(Code::RecordMalformed, &place, visible(&why.to_string()));
    let signed: Signed<Record> = decode(envelope).map_err(|error| malformed(&error))?;
    let claimed = signed.peek();
    // Only a key enrolled for the very name it bears makes it that one's word; a payload that says no name is held
    // to all of them, so that what was changed is told from what never was a record.
    let accepts = |key: &_| match &claimed {
        Ok(record) => control.is_record_key(&record.id.origin, key) && record.tenant == *control.tenant(),
        Err(_) => control.has_record_key(key),
    };
    let place = match &claimed {
        Ok(record) => format!("{} (sequence {sequence})", record.id),
        Err(_) => place.clone(),
    };
    let record = signed.open(accepts).map_err(|error| {
        let code = match error {
            OpenError::WrongKey(_) => Code::RecordForged,
            OpenError::BadSignature(_) => Code::RecordChanged,
            OpenError::Codec(_) => Code::RecordMalformed,
        };
        Finding::fault(code, &place, visible(&error.to_string()))
    })?;
    let strange_subject = subject.filter(|subject| !is_its_subject(&record, subject)).map(visible);
    Ok((facts(&record, signed.digest(), leaf_hash(envelope), strange_subject), record))
}

/// Whether a record may stand under this subject: its own, or the one of what was put back after a stream lost it. That
/// may stand in any part, since its own may have been put away.
#[must_use]
pub fn is_its_subject(record: &Record, subject: &str) -> bool {
    let Ok((tenant, parsed)) = Subject::parse(subject) else { return false };
    let (task, origin) = match parsed {
        Subject::Audit { part, kind, task, origin } if kind == record.kind() && part == record.part => {
            (task, origin)
        }
        Subject::Restored { part: _, task, origin } => (task, origin),
        _ => return false,
    };
    tenant == record.tenant && task.as_ref() == record.task() && origin == record.id.origin.name()
}

fn facts(record: &Record, digest: Digest, leaf: Digest, strange_subject: Option<String>) -> Opened {
    let mut opened = Opened {
        log: LogId::of(&record.tenant, &record.id),
        seq: record.id.seq,
        at: record.at,
        leaf,
        digest,
        prev: record.prev,
        prepared: digest,
        is_void: false,
        task: record.task().cloned(),
        role: Role::Other,
        policy: None,
        epoch: None,
        has_policy_fault: false,
        let_pass: LetPass::of(record).map(Box::new),
        strange_subject,
    };
    match &record.body {
        RecordBody::Void(void) => (opened.prepared, opened.is_void) = (void.prepared, true),
        RecordBody::Outcome(outcome) => {
            opened.role = Role::Outcome {
                intent: outcome.intent.clone(),
                call_id: outcome.call_id,
                status: outcome.status,
            };
        }
        RecordBody::Verdict(verdicted) => {
            let is_nodes = matches!(record.id.origin, Origin::Node(_));
            let kind = verdicted.what.resource.as_ref().map(crate::ids::Resource::kind);
            let is_act = matches!(kind, Some(ResourceKind::Tool | ResourceKind::Agent));
            let call_id = verdicted.what.call_id;
            if verdicted.decision == RecordedDecision::Allow {
                let is_intent = is_nodes && is_act;
                opened.role = if is_intent {
                    Role::Intent(call_id, record.part.clone())
                } else {
                    Role::Allowed(call_id)
                };
            }
            opened.policy = verdicted.basis.policy;
            opened.epoch = verdicted.basis.epoch;
            opened.has_policy_fault = verdicted.basis.policy_fault.is_some();
        }
    }
    opened
}
