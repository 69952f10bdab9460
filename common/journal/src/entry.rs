//! What the journal holds, and what follows from it after a crash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use writ_common::{
    codec::{CodecError, Message},
    digest::Digest,
    record::RecordKind,
    tlog::leaf_hash,
};

/// One journal entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A record was prepared; it is published under `message_id`.
    Prepared {
        /// Its position in the run.
        seq: u64,
        /// Its class.
        kind: RecordKind,
        /// Where it is published.
        subject: String,
        /// The message id it is published under.
        message_id: String,
        /// For an outcome: the position of the intent it ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends: Option<u64>,
        /// The signed envelope.
        #[serde(with = "serde_bytes")]
        record: Vec<u8>,
    },
    /// The stream has the record prepared last at this position.
    Committed {
        /// Its position in the run.
        seq: u64,
        /// Its stream sequence.
        stream: u64,
    },
}

impl Message for Entry {
    const KIND: &'static str = "journal";
}

impl Entry {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        writ_common::codec::decode(payload)
    }
}

/// What a finished run left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Records the stream may not have, in order: (seq, kind, subject, message id, envelope).
    pub unpublished: Vec<Unpublished>,
    /// Acknowledged intents without an outcome, in order: (seq, envelope).
    pub without_outcome: Vec<(u64, Vec<u8>)>,
    /// The leaf of the run's log at each position, and whether the stream has it.
    pub leaves: BTreeMap<u64, (Digest, bool)>,
}

/// A record of which the journal does not know that the stream has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// Its position in the run.
    pub seq: u64,
    /// Its class.
    pub kind: RecordKind,
    /// Where it is published.
    pub subject: String,
    /// The message id it is published under.
    pub message_id: String,
    /// The signed envelope.
    pub record: Vec<u8>,
}

/// Folds the entries of a run into what it left open.
///
/// The last record prepared at a position counts: a void replaces what it voids. An ALLOW in `unpublished` must
/// never be published again, only voided.
#[must_use]
pub fn unsettled(entries: &[Entry]) -> Unsettled {
    let mut last: BTreeMap<u64, &Entry> = BTreeMap::new();
    let mut committed: BTreeMap<u64, bool> = BTreeMap::new();
    let mut ended: BTreeMap<u64, ()> = BTreeMap::new();
    let mut open = Unsettled::default();
    for entry in entries {
        match entry {
            Entry::Prepared { seq, ends, record, .. } => {
                last.insert(*seq, entry);
                open.leaves.insert(*seq, (leaf_hash(record), false));
                committed.insert(*seq, false);
                if let Some(intent) = ends {
                    ended.insert(*intent, ());
                }
            }
            Entry::Committed { seq, .. } => {
                committed.insert(*seq, true);
                if let Some((_, is_committed)) = open.leaves.get_mut(seq) {
                    *is_committed = true;
                }
            }
        }
    }
    for (seq, entry) in last {
        let Entry::Prepared { kind, subject, message_id, record, .. } = entry else { continue };
        if !committed.get(&seq).copied().unwrap_or(false) {
            open.unpublished.push(Unpublished {
                seq,
                kind: *kind,
                subject: subject.clone(),
                message_id: message_id.clone(),
                record: record.clone(),
            });
        } else if *kind == RecordKind::Allow && !ended.contains_key(&seq) {
            open.without_outcome.push((seq, record.clone()));
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(seq: u64, kind: RecordKind, ends: Option<u64>) -> Entry {
        Entry::Prepared {
            seq,
            kind,
            subject: "s".into(),
            message_id: format!("m{seq}"),
            ends,
            record: vec![u8::try_from(seq).unwrap()],
        }
    }

    fn committed(seq: u64) -> Entry {
        Entry::Committed { seq, stream: seq + 100 }
    }

    #[test]
    fn what_a_run_left_open() {
        use RecordKind::{Allow, Deny, Outcome, Void};
        let open = unsettled(&[
            prepared(0, Allow, None),
            committed(0),
            prepared(1, Outcome, Some(0)),
            committed(1),
            prepared(2, Deny, None),
            prepared(3, Allow, None),
            committed(3),
            prepared(4, Allow, None),
            prepared(5, Allow, None),
            prepared(5, Void, None),
            committed(5),
            prepared(6, Allow, None),
            committed(6),
            prepared(7, Outcome, Some(6)),
        ]);
        let unpublished: Vec<(u64, RecordKind)> = open.unpublished.iter().map(|u| (u.seq, u.kind)).collect();
        assert_eq!(unpublished, [(2, Deny), (4, Allow), (7, Outcome)]);
        assert_eq!(open.without_outcome, [(3, vec![3])]);
    }
}
