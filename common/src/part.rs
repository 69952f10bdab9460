//! The parts a tenant's audit stream comes in.
//!
//! A stream forgets nothing, so it is full some day. Then the next part is begun: new tasks live there, those under way
//! end where they began, and a part in which nothing lives any more is sealed, put away in an archive, and its stream
//! deleted. Every step is an event of the control stream, so that all agree which part is which, and an auditor can tell
//! a part that was put away from one that was lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, ids::PartId, time::Timestamp};

/// How far a part has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PartStage {
    /// What begins now lives in it.
    Current,
    /// The flow domains of agents that remember from one task to the next live in it from now on; their labels were
    /// carried over before.
    Shared,
    /// Nothing is published to it any more.
    Sealed,
    /// All of it is in the archive, and its stream may be deleted.
    Archived(Archived),
}

/// Where a part that was put away is described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archived {
    /// SHA-256 of the archive's manifest of it.
    pub manifest: Digest,
    /// Sequence of its stream's last message.
    pub last: u64,
}

/// The parts as the control stream tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Every part that was ever begun, in that order.
    begun: Vec<PartId>,
    shared: PartId,
    /// When that began.
    shared_since: Option<Timestamp>,
    sealed: BTreeSet<PartId>,
    archived: BTreeMap<PartId, Archived>,
}

impl Default for Parts {
    fn default() -> Self {
        let first = PartId::first();
        Self {
            begun: vec![first.clone()],
            shared: first,
            shared_since: None,
            sealed: BTreeSet::new(),
            archived: BTreeMap::new(),
        }
    }
}

impl Parts {
    /// Takes in an event. One that makes no sense changes nothing: a part goes through its stages once, and the one in
    /// use is not sealed.
    pub fn apply(&mut self, part: PartId, stage: PartStage, at: Timestamp) {
        match stage {
            PartStage::Current if part == self.next() => self.begun.push(part),
            PartStage::Shared if self.takes(&part) && self.is_later(&part, &self.shared) => {
                (self.shared, self.shared_since) = (part, Some(at));
            }
            PartStage::Sealed if self.may_be_sealed(&part) => {
                self.sealed.insert(part);
            }
            PartStage::Archived(archived) if self.sealed.contains(&part) => {
                self.archived.entry(part).or_insert(archived);
            }
            _ => {}
        }
    }

    /// Whether a part was begun after another.
    fn is_later(&self, part: &PartId, than: &PartId) -> bool {
        let at = |part: &PartId| self.begun.iter().position(|begun| begun == part);
        at(part) > at(than)
    }

    /// The part in which what begins now lives.
    #[must_use]
    pub fn current(&self) -> &PartId {
        // It begins with one, and none is ever taken out.
        self.begun.last().unwrap_or(&self.shared)
    }

    /// The part in which the flow domains live that outlive a task.
    #[must_use]
    pub fn shared(&self) -> &PartId {
        &self.shared
    }

    /// When the flow domains that outlive a task came to the part they are in; none if they always were.
    #[must_use]
    pub fn shared_since(&self) -> Option<Timestamp> {
        self.shared_since
    }

    /// The part that is begun next.
    #[must_use]
    pub fn next(&self) -> PartId {
        PartId::numbered(self.begun.len())
    }

    /// Whether anything may be published to a part.
    #[must_use]
    pub fn takes(&self, part: &PartId) -> bool {
        self.begun.contains(part) && !self.sealed.contains(part)
    }

    /// Where a record goes that belongs to a part: there, or, once that is sealed, to the one in use.
    #[must_use]
    pub fn for_record(&self, part: &PartId) -> PartId {
        if self.is_sealed(part) { self.current().clone() } else { part.clone() }
    }

    /// The parts that have a stream, the oldest first.
    pub fn live(&self) -> impl Iterator<Item = &PartId> + Clone {
        self.begun.iter().filter(|part| !self.archived.contains_key(*part))
    }

    /// Every part, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &PartId> {
        self.begun.iter()
    }

    /// Whether a part takes nothing any more.
    #[must_use]
    pub fn is_sealed(&self, part: &PartId) -> bool {
        self.sealed.contains(part)
    }

    /// Whether nothing in use keeps a part open; who lives in it is for the broker to know.
    fn may_be_sealed(&self, part: &PartId) -> bool {
        self.takes(part) && part != self.current() && *part != self.shared
    }

    /// What was put away.
    #[must_use]
    pub fn archived(&self) -> &BTreeMap<PartId, Archived> {
        &self.archived
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Timestamp = Timestamp::from_secs(7);

    fn archived() -> PartStage {
        PartStage::Archived(Archived { manifest: Digest::from_bytes([7; 32]), last: 9 })
    }

    #[test]
    fn a_part_goes_through_its_stages_once() {
        let (p0, p1) = (PartId::first(), PartId::numbered(1));
        let mut parts = Parts::default();
        assert_eq!((parts.current(), parts.shared(), parts.next()), (&p0, &p0, p1.clone()));
        parts.apply(p0.clone(), PartStage::Sealed, AT);
        parts.apply(p0.clone(), archived(), AT);
        assert!(parts.takes(&p0), "the part in use is not sealed");
        parts.apply(p1.clone(), PartStage::Current, AT);
        parts.apply(p0.clone(), PartStage::Sealed, AT);
        assert!(parts.takes(&p0), "agents that remember still live there");
        parts.apply(p1.clone(), PartStage::Shared, AT);
        parts.apply(p0.clone(), archived(), AT);
        assert!(parts.archived().is_empty(), "what is not sealed may still grow");
        parts.apply(p0.clone(), PartStage::Sealed, AT);
        assert!(!parts.takes(&p0) && parts.live().eq([&p0, &p1]));
        assert_eq!(parts.for_record(&p0), p1);
        parts.apply(p0.clone(), archived(), AT);
        assert!(parts.live().eq([&p1]) && parts.all().eq([&p0, &p1]));
        for stage in [PartStage::Current, PartStage::Shared] {
            parts.apply(p0.clone(), stage, AT);
        }
        assert_eq!((parts.current(), parts.shared()), (&p1, &p1), "what is put away stays away");
        assert_eq!(parts.next(), PartId::numbered(2));
    }

    proptest! {
        #[test]
        fn whatever_is_said_there_is_a_part_to_record_in(events in proptest::collection::vec((0_usize..4, 0_u8..4), 0..30)) {
            let mut parts = Parts::default();
            for (part, stage) in events {
                let stage = match stage {
                    0 => PartStage::Current,
                    1 => PartStage::Shared,
                    2 => PartStage::Sealed,
                    _ => archived(),
                };
                parts.apply(PartId::numbered(part), stage, AT);
                prop_assert!(parts.takes(parts.current()) && parts.takes(parts.shared()));
                prop_assert!(!parts.all().any(|part| *part == parts.next()));
                let all: Vec<_> = parts.all().cloned().collect();
                prop_assert!(all.iter().all(|part| parts.takes(&parts.for_record(part))));
            }
        }
    }
}
