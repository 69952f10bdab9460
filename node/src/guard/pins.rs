//! How far each stream had got when it was last looked at, kept across restarts. A stream that is behind that, or
//! was made anew, has lost revocations, labels or records: nothing is decided on it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use writ_bus::StreamFacts;
use writ_common::{
    codec::Message,
    ids::PartId,
    part::Parts,
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

/// What is known of the stream of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartPin {
    /// The stream.
    pub stream: StreamPin,
    /// Labels at this sequence and before count as top: a stream that went back may have lost raises, and somebody
    /// accepted it as it is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub floor: u64,
}

/// What a node knows of its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPins {
    /// The control stream.
    pub control: StreamPin,
    /// The parts of the audit stream that are not put away.
    pub parts: BTreeMap<PartId, PartPin>,
    /// Whether somebody accepted the streams as they are, and they were not all looked at since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_accepted: bool,
}

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
    /// Parts that had a stream and have none: they were put away, or lost.
    missing: BTreeSet<PartId>,
    is_accepted: bool,
    /// The highest sequence a record of ours was acknowledged at; it may be ahead of the last look.
    acknowledged: BTreeMap<PartId, u64>,
    /// How much room the journal has.
    journal: Room,
    /// The parts when they were last looked at, and the bytes this node has added since.
    seen: BTreeMap<PartId, (StreamFacts, u64)>,
}

impl Streams {
    pub(super) fn new(known: StreamPins) -> Self {
        Self { is_accepted: known.is_accepted, known, ..Self::default() }
    }

    /// The parts that had a stream.
    pub(super) fn known_parts(&self) -> impl Iterator<Item = &PartId> {
        self.known.parts.keys()
    }

    /// Takes in what the streams are; `state` is what is known of the parts, and is as new as it can be if it
    /// `is_current`. Returns the pins if they moved, or what is wrong if that was not known yet.
    pub(super) fn take(
        &mut self,
        control: &StreamFacts,
        parts: &BTreeMap<PartId, Option<StreamFacts>>,
        state: &Parts,
        is_current: bool,
    ) -> Result<Option<StreamPins>, String> {
        let there = || parts.iter().filter_map(|(part, facts)| Some((part, facts.as_ref()?)));
        self.seen.extend(there().map(|(part, facts)| (part.clone(), (*facts, 0))));
        let is_red = writ_common::red::off("R07") || writ_common::red::off("H08");
        if self.went_back.is_some() || is_red {
            return Ok(None);
        }
        let mut next = self.known.clone();
        let taken = next.control.take("control", control).and_then(|()| {
            there().try_for_each(|(part, facts)| {
                let is_new = !next.parts.contains_key(part);
                let pin = next.parts.entry(part.clone()).or_default();
                // What was not looked at since somebody accepted the streams may have gone back too.
                if is_new && self.is_accepted {
                    pin.floor = facts.last_sequence;
                }
                pin.stream.take(&format!("audit ({part})"), facts)
            })
        });
        if let Err(why) = taken {
            self.went_back = Some(why.clone());
            return Err(why);
        }
        if is_current && state.live().all(|part| next.parts.contains_key(part)) {
            next.is_accepted = false;
        }
        let has_moved = next != self.known;
        self.known = next;
        self.missing = (self.known.parts.keys())
            .filter(|part| parts.get(*part) == Some(&None) && !state.archived().contains_key(*part))
            .cloned()
            .collect();
        let mut kept = self.known.clone();
        for (part, pin) in &mut kept.parts {
            pin.stream.sequence =
                pin.stream.sequence.max(self.acknowledged.get(part).copied().unwrap_or_default());
        }
        Ok(has_moved.then_some(kept))
    }

    /// A part was put away: that its stream is gone says nothing.
    pub(super) fn put_away(&mut self, part: &PartId) {
        self.known.parts.remove(part);
        self.missing.remove(part);
        self.seen.remove(part);
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

    /// Whether a label that stands at this sequence of a part may lack raises that were lost.
    pub(super) fn is_distrusted(&self, part: &PartId, sequence: u64) -> bool {
        let is_below = match self.known.parts.get(part) {
            Some(pin) => sequence <= pin.floor,
            // Nobody has looked yet.
            None => self.is_accepted,
        };
        is_below && !writ_common::red::off("B07")
    }

    /// Something of ours was acknowledged at this sequence of a part.
    pub(super) fn acknowledged(&mut self, part: &PartId, sequence: u64) {
        let known = self.acknowledged.entry(part.clone()).or_default();
        *known = sequence.max(*known);
    }

    /// The journal's room changed.
    pub(super) fn journal_has(&mut self, room: Room) {
        self.journal = room;
    }

    /// Whether nothing can be recorded here any more.
    pub(super) fn cannot_record(&self) -> bool {
        self.journal == Room::None
    }

    /// Something of ours is on its way to a part.
    pub(super) fn sent(&mut self, part: &PartId, bytes: usize) {
        if let Some((_, since)) = self.seen.get_mut(part) {
            *since += bytes as u64 + MESSAGE_OVERHEAD;
        }
    }

    /// Refuses to begin anything once the part or the journal is nearly full: outcomes and voids have to fit.
    pub(super) fn check_room(&self, part: &PartId) -> Result<(), Reason> {
        match self.seen.get(part) {
            _ if self.journal != Room::Enough && !writ_common::red::off("R10") => {
                Err(Reason::new(ReasonCode::AuditFull).noted("the journal, or its disk, has no room"))
            }
            Some((facts, since)) if facts.is_nearly_full(*since) => Err(Reason::new(ReasonCode::AuditFull)
                .told(format_args!("part {part}"))
                .noted(format_args!("{} bytes", facts.bytes_max))),
            _ => Ok(()),
        }
    }

    /// Refuses everything once a stream went back.
    pub(super) fn check(&self) -> Result<(), Reason> {
        match (&self.went_back, self.missing.first()) {
            (Some(why), _) => Err(Reason::new(ReasonCode::StateRollback).noted(why)),
            (None, Some(part)) => {
                let why = format_args!("part {part} of the audit stream is gone and was not put away");
                Err(Reason::new(ReasonCode::StateRollback).noted(why))
            }
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use writ_common::part::{Archived, PartStage};

    use super::*;

    fn facts(created_ns: i128, last_sequence: u64) -> StreamFacts {
        StreamFacts { created_ns, last_sequence, bytes: 0, bytes_max: 0 }
    }

    fn p0() -> PartId {
        PartId::first()
    }

    fn one(facts: StreamFacts) -> BTreeMap<PartId, Option<StreamFacts>> {
        BTreeMap::from([(p0(), Some(facts))])
    }

    fn take(
        pins: &mut Streams,
        control: StreamFacts,
        audit: StreamFacts,
    ) -> Result<Option<StreamPins>, String> {
        pins.take(&control, &one(audit), &Parts::default(), true)
    }

    #[test]
    fn r07_a_stream_that_went_back_is_refused_for_good() {
        let mut pins = Streams::default();
        assert!(take(&mut pins, facts(1, 5), facts(2, 9)).unwrap().is_some());
        assert!(take(&mut pins, facts(1, 5), facts(2, 9)).unwrap().is_none(), "nothing moved");
        let known = take(&mut pins, facts(1, 6), facts(2, 9)).unwrap().unwrap();
        assert_eq!((known.control.sequence, known.parts[&p0()].stream.sequence), (6, 9));
        take(&mut pins, facts(1, 6), facts(2, 8)).unwrap_err();
        assert_eq!(pins.check().unwrap_err().code(), ReasonCode::StateRollback);
        assert!(take(&mut pins, facts(1, 9), facts(2, 9)).unwrap().is_none());
        pins.check().unwrap_err();
    }

    #[test]
    fn b07_labels_of_a_stream_that_was_accepted_as_it_is_are_not_believed() {
        let accepted = StreamPins { is_accepted: true, ..StreamPins::default() };
        let mut pins = Streams::new(accepted);
        assert!(pins.is_distrusted(&p0(), 1), "nobody has looked yet");
        let known = take(&mut pins, facts(1, 5), facts(2, 9)).unwrap().unwrap();
        assert_eq!((known.parts[&p0()].floor, known.is_accepted), (9, false));
        assert!(pins.is_distrusted(&p0(), 9));
        assert!(!pins.is_distrusted(&p0(), 10));
        // The next run knows it from the file.
        assert!(Streams::new(known).is_distrusted(&p0(), 9));
        assert!(!Streams::default().is_distrusted(&p0(), 1));
    }

    #[test]
    fn b07_that_streams_were_accepted_is_known_until_every_part_was_looked_at() {
        let mut state = Parts::default();
        let p1 = state.next();
        state.apply(p1.clone(), PartStage::Current, writ_common::time::Timestamp::from_secs(1));
        let mut pins = Streams::new(StreamPins { is_accepted: true, ..StreamPins::default() });
        // Which parts there are is not known before the control stream was read.
        let known = pins.take(&facts(1, 5), &one(facts(2, 9)), &Parts::default(), false).unwrap().unwrap();
        assert!(known.is_accepted);
        let mut next = Streams::new(known);
        let both = BTreeMap::from([(p0(), Some(facts(2, 9))), (p1.clone(), Some(facts(3, 4)))]);
        let known = next.take(&facts(1, 5), &both, &state, true).unwrap().unwrap();
        assert!(!known.is_accepted && next.is_distrusted(&p1, 4) && next.is_distrusted(&p0(), 9));
    }

    #[test]
    fn r07_a_stream_made_anew_is_refused_however_long_it_is() {
        let pin = |created: &str| StreamPin { created: created.into(), sequence: 5 };
        let known = StreamPins {
            control: pin("1"),
            parts: BTreeMap::from([(p0(), PartPin { stream: pin("2"), floor: 0 })]),
            is_accepted: false,
        };
        let mut pins = Streams::new(known);
        take(&mut pins, facts(7, 50), facts(2, 5)).unwrap_err();
        pins.check().unwrap_err();
    }

    #[test]
    fn b08_a_part_that_is_gone_is_refused_unless_it_was_put_away() {
        let at = writ_common::time::Timestamp::from_secs(1);
        let mut state = Parts::default();
        let p1 = state.next();
        state.apply(p1.clone(), PartStage::Current, at);
        state.apply(p1.clone(), PartStage::Shared, at);
        state.apply(p0(), PartStage::Sealed, at);
        let both = |first| BTreeMap::from([(p0(), first), (p1.clone(), Some(facts(3, 4)))]);
        let mut pins = Streams::default();
        pins.take(&facts(1, 5), &both(Some(facts(2, 9))), &state, true).unwrap();
        pins.take(&facts(1, 5), &both(None), &state, true).unwrap();
        assert_eq!(pins.check().unwrap_err().code(), ReasonCode::StateRollback);
        let away = Archived { manifest: writ_common::digest::Digest::plain(b""), last: 9 };
        state.apply(p0(), PartStage::Archived(away), at);
        pins.put_away(&p0());
        pins.check().unwrap();
        let known = pins.take(&facts(1, 6), &both(None), &state, true).unwrap().unwrap();
        pins.check().unwrap();
        assert!(!known.parts.contains_key(&p0()));
    }
}
