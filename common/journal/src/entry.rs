//! What the journal holds, and what follows from it after a crash.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use writ_common::{
    codec::{CodecError, Message},
    digest::Digest,
    ids::PartId,
    record::RecordKind,
    tlog::{Witnessed, leaf_hash},
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
        /// The part that sequence is of, if it is not the record's own: that was sealed before it came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<PartId>,
    },
    /// A later run recorded how the intent at this position ended.
    Ended {
        /// The intent's position in the run.
        seq: u64,
    },
    /// A witness has cosigned so much of the run's log. Written now and then, so that the log can be taken up although
    /// its first records have made room.
    Witnessed(Witnessed),
    /// Nothing follows in this segment, so that a segment that was cut short shows.
    Closed {
        /// The segment the run goes on in; absent if it is over, and everything it left open is settled.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u32>,
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
    /// What a witness is known to have seen of the run's log.
    pub witnessed: Witnessed,
    /// The leaves of the log from there on by position, and whether the stream has them.
    pub leaves: BTreeMap<u64, (Digest, bool)>,
}

impl Unsettled {
    /// Whether anything is left to settle.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.unpublished.is_empty() || !self.without_outcome.is_empty()
    }
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

/// Folds the entries of a run, one after the other, into what it left open. Holds no more than that.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    unpublished: BTreeMap<u64, Unpublished>,
    without_outcome: BTreeMap<u64, Vec<u8>>,
    /// Intents that ended before the journal says that they were acknowledged.
    ended_early: BTreeSet<u64>,
    pub(crate) leaves: Leaves,
    entries: u64,
}

/// The part of the fold that is about the log alone. It holds 32 bytes of a record, so that it can go over everything a
/// run has left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaves {
    witnessed: Witnessed,
    leaves: BTreeMap<u64, (Digest, bool)>,
    /// The first and the last position of the records that were new.
    new: Option<(u64, u64)>,
}

impl Leaves {
    /// Takes the next entry.
    pub(crate) fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Prepared { seq, kind, record, .. } => {
                self.leaves.insert(*seq, (leaf_hash(record), false));
                if *kind != RecordKind::Void {
                    self.prepared(*seq);
                }
            }
            Entry::Committed { seq, .. } => {
                if let Some((_, is_committed)) = self.leaves.get_mut(seq) {
                    *is_committed = true;
                }
            }
            Entry::Witnessed(witnessed) => {
                self.leaves = self.leaves.split_off(&witnessed.tree.size());
                self.witnessed = witnessed.clone();
            }
            Entry::Ended { .. } | Entry::Closed { .. } => {}
        }
    }

    /// New records come position after position. One that is prepared again can be anywhere below them, so what stands
    /// before a gap was not new.
    fn prepared(&mut self, seq: u64) {
        self.new = match self.new {
            Some((first, last)) if seq <= last => Some((first, last)),
            Some((first, last)) if seq == last + 1 => Some((first, seq)),
            _ => Some((seq, seq)),
        };
    }

    /// Whether every leaf that is not witnessed was among the entries, which may have begun in the middle of the run. A
    /// single record proves nothing: it may have been prepared again.
    pub(crate) fn is_whole(&self) -> bool {
        self.new.is_some_and(|(first, last)| first < last && first <= self.witnessed.tree.size())
    }
}

impl Fold {
    /// Takes the next entry.
    ///
    /// The last record prepared at a position counts: a void replaces what it voids. An ALLOW in `unpublished` must
    /// never be published again, only voided.
    pub fn take(&mut self, entry: Entry) {
        self.entries += 1;
        self.leaves.take(&entry);
        match entry {
            Entry::Prepared { seq, kind, subject, message_id, ends, record } => {
                self.without_outcome.remove(&seq);
                if let Some(intent) = ends {
                    self.end(intent);
                }
                self.unpublished.insert(seq, Unpublished { seq, kind, subject, message_id, record });
            }
            Entry::Committed { seq, .. } => {
                if let Some(Unpublished { kind: RecordKind::Allow, record, .. }) =
                    self.unpublished.remove(&seq)
                    && !self.ended_early.remove(&seq)
                {
                    self.without_outcome.insert(seq, record);
                }
            }
            Entry::Ended { seq } => self.end(seq),
            Entry::Witnessed(_) | Entry::Closed { .. } => {}
        }
    }

    fn end(&mut self, intent: u64) {
        if self.without_outcome.remove(&intent).is_none() {
            self.ended_early.insert(intent);
        }
    }

    /// How many entries there were.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What is open after the last entry.
    #[must_use]
    pub fn finish(self) -> Unsettled {
        Unsettled {
            unpublished: self.unpublished.into_values().collect(),
            without_outcome: self.without_outcome.into_iter().collect(),
            witnessed: self.leaves.witnessed,
            leaves: self.leaves.leaves,
        }
    }
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
        Entry::Committed { seq, stream: seq + 100, part: None }
    }

    fn unsettled(entries: impl IntoIterator<Item = Entry>) -> Unsettled {
        let mut fold = Fold::default();
        entries.into_iter().for_each(|entry| fold.take(entry));
        fold.finish()
    }

    #[test]
    fn what_a_run_left_open() {
        use RecordKind::{Allow, Deny, Outcome, Void};
        let open = unsettled([
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

    #[test]
    fn what_a_later_run_completed_is_not_open() {
        use RecordKind::{Allow, Deny, Outcome, Void};
        let open = unsettled([
            prepared(0, Allow, None),
            committed(0),
            prepared(1, Deny, None),
            prepared(2, Allow, None),
            // The next run: an outcome elsewhere, the denial published, the intent voided.
            Entry::Ended { seq: 0 },
            committed(1),
            prepared(2, Void, None),
            committed(2),
            Entry::Closed { next: None },
        ]);
        assert!(!open.is_open());
        // The mark that an intent was acknowledged can be lost while its outcome is there.
        let open = unsettled([prepared(0, Allow, None), prepared(1, Outcome, Some(0)), committed(0)]);
        assert_eq!(open.without_outcome, []);
    }
}
