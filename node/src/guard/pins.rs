//! How far each stream had got when it was last looked at, kept across restarts. A stream that is behind that, or
//! was made anew, has lost revocations, labels or records: nothing is decided on it.

use serde::{Deserialize, Serialize};
use writ_bus::StreamFacts;
use writ_common::{
    codec::Message,
    reason::{Reason, ReasonCode},
};
use writ_journal::Room;

/// What a stored message takes beyond its payload: subject, headers, and what the store adds.
const MESSAGE_OVERHEAD: u64 = 256;

/// What is known of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPin {
    /// When it was created, in nanoseconds since the epoch, as text; empty if it was never seen.
    pub created: String,
    /// The highest sequence seen.
    pub sequence: u64,
}

/// What a node knows of its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPins {
    /// The control stream.
    pub control: StreamPin,
    /// The audit stream.
    pub audit: StreamPin,
    /// Labels at this sequence and before count as top: a stream that went back may have lost raises, and somebody
    /// accepted it as it is. [`FLOOR_UNKNOWN`] until the stream was looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub floor: u64,
}

/// A floor that is wherever the audit stream ends when it is looked at next.
pub const FLOOR_UNKNOWN: u64 = u64::MAX;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(floor: &u64) -> bool {
    *floor == 0
}

impl Message for StreamPins {
    const KIND: &'static str = "pins";
}

impl StreamPin {
    /// Takes in what the stream is now; says what is wrong if that is less than what it was.
    fn take(&mut self, name: &str, now: &StreamFacts) -> Result<(), String> {
        let created = now.created_ns.to_string();
        if !self.created.is_empty() && self.created != created {
            return Err(format!("the {name} stream was made anew"));
        }
        if now.last_sequence < self.sequence {
            return Err(format!(
                "the {name} stream ends at {} and ended at {} before",
                now.last_sequence, self.sequence
            ));
        }
        *self = Self { created, sequence: now.last_sequence };
        Ok(())
    }
}

/// What is known of the streams, and what became of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    known: StreamPins,
    went_back: Option<String>,
    is_accepted: bool,
    /// The highest sequence a record of ours was acknowledged at; it may be ahead of the last look.
    acknowledged: u64,
    /// How much room the journal has.
    journal: Room,
    /// The audit stream when it was last looked at, and the bytes this node has added since.
    audit: Option<(StreamFacts, u64)>,
}

impl Streams {
    pub(super) fn new(known: StreamPins) -> Self {
        let is_accepted = known.floor == FLOOR_UNKNOWN;
        Self { known, went_back: None, is_accepted, acknowledged: 0, journal: Room::Enough, audit: None }
    }

    /// Takes in both streams. Returns the pins if they moved, or what is wrong if that was not known yet.
    pub(super) fn take(
        &mut self,
        control: &StreamFacts,
        audit: &StreamFacts,
    ) -> Result<Option<StreamPins>, String> {
        self.audit = Some((*audit, 0));
        let is_red = writ_common::red::off("R07") || writ_common::red::off("H08");
        if self.went_back.is_some() || is_red {
            return Ok(None);
        }
        let mut next = self.known.clone();
        let taken = next.control.take("control", control).and_then(|()| next.audit.take("audit", audit));
        if let Err(why) = taken {
            self.went_back = Some(why.clone());
            return Err(why);
        }
        if next.floor == FLOOR_UNKNOWN {
            next.floor = audit.last_sequence;
        }
        let has_moved = next != self.known;
        self.known = next;
        let mut kept = self.known.clone();
        kept.audit.sequence = kept.audit.sequence.max(self.acknowledged);
        Ok(has_moved.then_some(kept))
    }

    /// Something else shows that this node is not where it was: as if a stream went back.
    pub(super) fn distrust(&mut self, why: &str) {
        if !writ_common::red::off("R07") {
            self.went_back.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Whether somebody said to go on from the state as it was found.
    pub(super) fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// Whether a label that stands at this sequence may lack raises that were lost.
    pub(super) fn is_distrusted(&self, sequence: u64) -> bool {
        sequence <= self.known.floor && !writ_common::red::off("B07")
    }

    /// A record of ours was acknowledged at this sequence.
    pub(super) fn acknowledged(&mut self, sequence: u64) {
        self.acknowledged = sequence.max(self.acknowledged);
    }

    /// The journal's room changed.
    pub(super) fn journal_has(&mut self, room: Room) {
        self.journal = room;
    }

    /// Whether nothing can be recorded here any more.
    pub(super) fn cannot_record(&self) -> bool {
        self.journal == Room::None
    }

    /// A record of ours is on its way.
    pub(super) fn sent(&mut self, bytes: usize) {
        if let Some((_, since)) = &mut self.audit {
            *since += bytes as u64 + MESSAGE_OVERHEAD;
        }
    }

    /// Refuses to begin anything once audit stream or journal is nearly full: outcomes and voids have to fit.
    pub(super) fn check_room(&self) -> Result<(), Reason> {
        match &self.audit {
            _ if self.journal != Room::Enough && !writ_common::red::off("R10") => {
                Err(Reason::new(ReasonCode::AuditFull).noted("the journal, or its disk, has no room"))
            }
            Some((facts, since)) if facts.is_nearly_full(*since) => {
                Err(Reason::new(ReasonCode::AuditFull).noted(format_args!("{} bytes", facts.bytes_max)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses everything once a stream went back.
    pub(super) fn check(&self) -> Result<(), Reason> {
        match &self.went_back {
            None => Ok(()),
            Some(why) => Err(Reason::new(ReasonCode::StateRollback).noted(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(created_ns: i128, last_sequence: u64) -> StreamFacts {
        StreamFacts { created_ns, last_sequence, bytes: 0, bytes_max: 0 }
    }

    #[test]
    fn r07_a_stream_that_went_back_is_refused_for_good() {
        let mut pins = Streams::default();
        assert!(pins.take(&facts(1, 5), &facts(2, 9)).unwrap().is_some());
        assert!(pins.take(&facts(1, 5), &facts(2, 9)).unwrap().is_none(), "nothing moved");
        let known = pins.take(&facts(1, 6), &facts(2, 9)).unwrap().unwrap();
        assert_eq!((known.control.sequence, known.audit.sequence), (6, 9));
        pins.take(&facts(1, 6), &facts(2, 8)).unwrap_err();
        assert_eq!(pins.check().unwrap_err().code(), ReasonCode::StateRollback);
        assert!(pins.take(&facts(1, 9), &facts(2, 9)).unwrap().is_none());
        pins.check().unwrap_err();
    }

    #[test]
    fn b07_labels_of_a_stream_that_was_accepted_as_it_is_are_not_believed() {
        let accepted = StreamPins { floor: FLOOR_UNKNOWN, ..StreamPins::default() };
        let mut pins = Streams::new(accepted);
        assert!(pins.is_distrusted(1), "nobody has looked yet");
        let known = pins.take(&facts(1, 5), &facts(2, 9)).unwrap().unwrap();
        assert_eq!(known.floor, 9);
        assert!(pins.is_distrusted(9));
        assert!(!pins.is_distrusted(10));
        // The next run knows it from the file.
        assert!(Streams::new(known).is_distrusted(9));
        assert!(!Streams::default().is_distrusted(1));
    }

    #[test]
    fn r07_a_stream_made_anew_is_refused_however_long_it_is() {
        let known = StreamPins {
            control: StreamPin { created: "1".into(), sequence: 5 },
            audit: StreamPin { created: "2".into(), sequence: 5 },
            floor: 0,
        };
        let mut pins = Streams::new(known);
        pins.take(&facts(7, 50), &facts(2, 5)).unwrap_err();
        pins.check().unwrap_err();
    }
}
