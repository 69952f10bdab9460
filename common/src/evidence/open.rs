//! One record by itself: whose it is, and what the rules between records need of it. The dear part of verifying, and
//! independent of every other record, so that a caller can spread it over threads.

use super::finding::{Code, Finding};
use crate::{
    codec::decode,
    control::ControlState,
    digest::Digest,
    policy::PolicyRevision,
    record::{DecisionId, Origin, Record, RecordBody, RecordedDecision},
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
    pub(super) role: Role,
    pub(super) basis: Option<Decided>,
}

/// What a record is to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Something a node let through: there has to be an outcome.
    Intent,
    /// How one ended.
    Outcome(DecisionId),
    /// Neither.
    Other,
}

/// By which policy, at which control state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) policy: PolicyRevision,
    pub(super) control: u64,
    /// Whether the record itself says that a later policy was not taken.
    pub(super) has_fault: bool,
}

impl Opened {
    /// The record's name.
    #[must_use]
    pub fn id(&self) -> DecisionId {
        DecisionId { origin: self.log.origin.clone(), boot: self.log.boot.clone(), seq: self.seq }
    }
}

/// Opens one message of the audit stream against the keys of the control stream.
///
/// # Errors
/// The finding, if it is no record of this tenant or not its recorder's.
pub fn open(
    control: &ControlState,
    sequence: u64,
    subject: &str,
    envelope: &[u8],
) -> Result<(Opened, Record), Finding> {
    let place = format!("record at sequence {sequence}");
    let malformed = |why: &dyn std::fmt::Display| {
        Finding::fault(Code::RecordMalformed, &place, visible(&why.to_string()))
    };
    let signed: Signed<Record> = decode(envelope).map_err(|error| malformed(&error))?;
    let claimed = signed.peek().map_err(|error| malformed(&error))?;
    let place = format!("{} (sequence {sequence})", claimed.id);
    let record = signed.open(|key| control.is_record_key(&claimed.id.origin, key)).map_err(|error| {
        let code = match error {
            OpenError::WrongKey(_) => Code::RecordForged,
            OpenError::BadSignature(_) | OpenError::Codec(_) => Code::RecordChanged,
        };
        Finding::fault(code, &place, error)
    })?;
    if record.tenant != *control.tenant() {
        return Err(Finding::fault(Code::RecordForged, &place, format!("of tenant {}", record.tenant)));
    }
    check_subject(&record, subject).map_err(|why| Finding::fault(Code::RecordSubject, &place, why))?;
    Ok((facts(&record, signed.digest(), leaf_hash(envelope)), record))
}

fn check_subject(record: &Record, subject: &str) -> Result<(), String> {
    let parsed = Subject::parse(subject);
    let Ok((tenant, Subject::Audit { part, kind, task, origin })) = parsed else {
        return Err(format!("`{}` is no subject of records", visible(subject)));
    };
    let is_own = tenant == record.tenant
        && part == record.part
        && kind == record.kind()
        && task.as_ref() == record.task()
        && origin == record.id.origin.name();
    if is_own { Ok(()) } else { Err(format!("it is under `{subject}`")) }
}

fn facts(record: &Record, digest: Digest, leaf: Digest) -> Opened {
    let (mut prepared, mut role, mut basis) = (digest, Role::Other, None);
    let mut is_void = false;
    match &record.body {
        RecordBody::Void(void) => (prepared, is_void) = (void.prepared, true),
        RecordBody::Outcome(outcome) => role = Role::Outcome(outcome.intent.clone()),
        RecordBody::Verdict(verdicted) => {
            let is_nodes = matches!(record.id.origin, Origin::Node(_));
            if is_nodes && verdicted.decision == RecordedDecision::Allow {
                role = Role::Intent;
            }
            let (policy, epoch) = (verdicted.basis.policy, verdicted.basis.epoch);
            basis = policy.zip(epoch).map(|(policy, epoch)| Decided {
                policy,
                control: epoch.sequence,
                has_fault: verdicted.basis.policy_fault.is_some(),
            });
        }
    }
    Opened {
        log: LogId {
            tenant: record.tenant.clone(),
            origin: record.id.origin.clone(),
            boot: record.id.boot.clone(),
        },
        seq: record.id.seq,
        at: record.at,
        leaf,
        digest,
        prev: record.prev,
        prepared,
        is_void,
        role,
        basis,
    }
}
