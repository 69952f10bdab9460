//! What the storage tests write: every piece can be told by its number.

use std::collections::BTreeMap;

use writ_broker::{
    core::TaskEntry,
    store::{PartPosition, Position},
};
use writ_common::{
    digest::Digest,
    epoch::Epoch,
    ids::{AgentId, BootId, CapabilityId, FlowDomain, KeyId, PartId, TaskId, TaskKind, UserId},
    record::RecordKind,
    time::{Millis, Timestamp},
};
use writ_journal::{Entry, JournalLimits};
use writ_node::guard::{PartPin, StreamPin, StreamPins};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 2_000;

/// The run.
#[must_use]
#[expect(clippy::expect_used, reason = "a literal in the grammar")]
pub fn boot() -> BootId {
    BootId::parse("b-1").expect("a name")
}

/// Small segments, so that a short run has several.
#[must_use]
pub fn limits() -> JournalLimits {
    JournalLimits { bytes_max: 1024 * 1024, keep: Millis::from_secs(3_600) }
}

/// A denial at this position.
#[must_use]
pub fn prepared(seq: u64) -> Entry {
    let mut record = seq.to_le_bytes().to_vec();
    record.resize(RECORD_BYTES, u8::try_from(seq % 251).unwrap_or_default());
    Entry::Prepared {
        seq,
        kind: RecordKind::Deny,
        subject: "writ.v1.acme.audit.p0.deny._.n1".to_owned(),
        message_id: format!("m{seq}"),
        ends: None,
        record,
    }
}

/// A task of this number.
#[must_use]
#[expect(clippy::expect_used, reason = "literals in their grammars")]
pub fn task(number: u64) -> TaskEntry {
    let task = TaskId::parse(format!("t-{number}")).expect("a name");
    TaskEntry {
        kind: TaskKind::parse("k").expect("a name"),
        user: UserId::parse("i", "s").expect("a name"),
        roles: Vec::new(),
        agent: AgentId::parse("a").expect("a name"),
        key: KeyId::parse("0a").expect("a name"),
        capability: CapabilityId::parse("c-1").expect("a name"),
        serial: number,
        domain: FlowDomain::parse("p0.t-1").expect("a name"),
        rights: Vec::new(),
        max_depth: 0,
        deadline: Timestamp::from_secs(number),
        started: Epoch::default(),
        instruction: Digest::plain(b""),
        idempotency: Digest::plain(task.as_str().as_bytes()),
        asked: Digest::plain(b""),
        task,
    }
}

/// How far the index has got with this task.
#[must_use]
pub fn position(number: u64) -> Position {
    let part = PartPosition { created: "1".to_owned(), sequence: number };
    Position { parts: BTreeMap::from([(PartId::first(), part)]), ..Position::default() }
}

/// Pins of this number.
#[must_use]
pub fn pins(number: u64) -> StreamPins {
    let audit = StreamPin { created: "1700000000000000002".to_owned(), sequence: number * 3 };
    StreamPins {
        control: StreamPin { created: "1700000000000000001".to_owned(), sequence: number },
        parts: BTreeMap::from([(PartId::first(), PartPin { stream: audit, floor: 0 })]),
        is_accepted: false,
    }
}
