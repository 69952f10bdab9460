//! The witness's side: a broker cosigns a checkpoint if it follows from the one before it.
//!
//! The recorder sends the hashes of the leaves since then, so the witness computes the root itself. What it has
//! cosigned is the last message on the log's own subject, written by compare-and-set, so several brokers are one
//! witness; and a recorder keeps what was cosigned and shows it again, so a witness that lost its memory takes its
//! own word for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Frontier, LogId, SignedCheckpoint};
use crate::{codec::Message, digest::Digest};

/// A recorder's request to cosign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessRequest {
    /// The checkpoint as the recorder signed it.
    pub checkpoint: String,
    /// The tree the leaves are added to.
    pub from: Frontier,
    /// The cosigned checkpoint of that tree, unless it is the empty one or was not kept.
    pub cosigned: Option<String>,
    /// The hashes of the leaves since.
    pub leaves: Vec<Digest>,
}

impl Message for WitnessRequest {
    const KIND: &'static str = "witness";
    const BYTES_MAX: usize = 512 * 1024;
}

/// The witness's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WitnessReply {
    /// It is cosigned.
    Cosigned {
        /// With the cosignature.
        checkpoint: String,
    },
    /// It does not begin where the witness has got to.
    Known {
        /// What it cosigned last.
        checkpoint: String,
    },
    /// The witness cannot say yet; ask again.
    Later,
    /// It is not cosigned.
    Refused {
        /// Why.
        why: String,
    },
}

impl Message for WitnessReply {
    const KIND: &'static str = "witnessed";
    const BYTES_MAX: usize = 16 * 1024;
}

/// The head of a log: the last message on its subject of the heads stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The checkpoint, cosigned if it is a node's.
    pub checkpoint: String,
}

impl Message for Head {
    const KIND: &'static str = "head";
    const BYTES_MAX: usize = 16 * 1024;
}

/// What a witness does about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Witnessing {
    /// It follows: cosign it and publish it after the head with this stream sequence, 0 if there is none.
    Cosign(SignedCheckpoint, u64),
    /// Say what was cosigned last.
    Known(SignedCheckpoint),
    /// It contradicts what was cosigned: two histories of one run.
    Forked(String),
    /// It does not follow from itself.
    Refused(String),
}

/// The heads of all logs as the stream tells them.
#[derive(Clone, Debug, Default)]
pub struct Heads(BTreeMap<LogId, (SignedCheckpoint, u64)>);

impl Heads {
    /// Takes a head of the stream; one that is older than what is known is not taken.
    pub fn take(&mut self, head: SignedCheckpoint, revision: u64) {
        let log = head.checkpoint().log.clone();
        if self.0.get(&log).is_none_or(|(_, known)| *known < revision) {
            self.0.insert(log, (head, revision));
        }
    }

    /// The last head of a log.
    #[must_use]
    pub fn of(&self, log: &LogId) -> Option<&SignedCheckpoint> {
        self.0.get(log).map(|(head, _)| head)
    }

    /// Stream sequence of the last head of a log, 0 if there is none.
    #[must_use]
    pub fn revision(&self, log: &LogId) -> u64 {
        self.0.get(log).map_or(0, |(_, revision)| *revision)
    }

    /// Every head.
    pub fn all(&self) -> impl Iterator<Item = &SignedCheckpoint> {
        self.0.values().map(|(head, _)| head)
    }

    /// Whether a request follows from what was cosigned. Its signature is for the caller to check before, and
    /// `is_own` says whether a note bears a cosignature of a witness of this tenant.
    #[must_use]
    pub fn judge(
        &self,
        checkpoint: SignedCheckpoint,
        request: &WitnessRequest,
        is_own: impl Fn(&SignedCheckpoint) -> bool,
    ) -> Witnessing {
        let said = checkpoint.checkpoint();
        let known = self.0.get(&said.log);
        let (from_size, from_root) = (request.from.size(), request.from.root());
        if !request.from.is_sound() {
            return Witnessing::Refused("the tree it begins from is none".to_owned());
        }
        if let Some((head, _)) = known {
            let last = head.checkpoint();
            // The answer to an equal request was lost.
            if last == said || from_size < last.size {
                return Witnessing::Known(head.clone());
            }
            if from_size == last.size && from_root != last.root && !crate::red::off("B06") {
                return Witnessing::Forked(format!("another history of its first {from_size} records"));
            }
            if last.is_closed {
                return Witnessing::Forked(format!("it ended after {} records", last.size));
            }
        }
        // More than this witness knows of: it takes its own word for it.
        if from_size > known.map_or(0, |(head, _)| head.checkpoint().size) {
            let vouched = request.cosigned.as_deref().and_then(|note| SignedCheckpoint::parse(note).ok());
            let is_vouched = vouched.is_some_and(|note| {
                let before = note.checkpoint();
                before.log == said.log
                    && (before.size, before.root) == (from_size, from_root)
                    && is_own(&note)
            });
            if !is_vouched {
                return Witnessing::Refused(format!("nobody has witnessed its first {from_size} records"));
            }
        }
        let mut frontier = request.from.clone();
        request.leaves.iter().for_each(|leaf| frontier.append(*leaf));
        let follows = (frontier.size(), frontier.root()) == (said.size, said.root);
        if !follows && !crate::red::off("B06") {
            return Witnessing::Refused("its root is not that of its leaves".to_owned());
        }
        let revision = known.map_or(0, |(_, revision)| *revision);
        Witnessing::Cosign(checkpoint, revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{BootId, BrokerId, NodeId, TenantId},
        keys::PrivateKey,
        record::Origin,
        time::{Millis, Monotonic, Timestamp},
        tlog::{Answered, RunLog, WitnessName, leaf_hash},
    };

    struct Bench {
        log: RunLog,
        heads: Heads,
        revision: u64,
        now: Monotonic,
        key: PrivateKey,
    }

    fn tenant() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn broker() -> BrokerId {
        BrokerId::parse("broker-1").unwrap()
    }

    fn witness_key() -> PrivateKey {
        PrivateKey::from_seed(&[9; 32])
    }

    fn is_witness(note: &SignedCheckpoint) -> bool {
        note.check_witness(&WitnessName(&tenant(), &broker()), &witness_key().public()).is_ok()
    }

    fn log() -> LogId {
        LogId {
            tenant: tenant(),
            origin: Origin::Node(NodeId::parse("node-1").unwrap()),
            boot: BootId::parse("b-1").unwrap(),
        }
    }

    impl Bench {
        fn new() -> Self {
            Self {
                log: RunLog::new(log()),
                heads: Heads::default(),
                revision: 0,
                now: Monotonic::default(),
                key: PrivateKey::from_seed(&[1; 32]),
            }
        }

        fn record(&mut self, positions: std::ops::Range<u64>) {
            for position in positions {
                self.log.prepared(position, &position.to_be_bytes(), false);
                self.log.committed(position);
            }
        }

        fn request(&mut self) -> Option<WitnessRequest> {
            self.now = self.now.after(Millis(1_000));
            self.log.due(self.now, &self.key)
        }

        fn witness(&mut self, request: &WitnessRequest) -> WitnessReply {
            let checkpoint = SignedCheckpoint::parse(&request.checkpoint).unwrap();
            match self.heads.judge(checkpoint, request, is_witness) {
                Witnessing::Cosign(mut note, _) => {
                    let name = WitnessName(&tenant(), &broker());
                    note.cosign(&name, &witness_key(), Timestamp::from_secs(5)).unwrap();
                    self.revision += 1;
                    self.heads.take(note.clone(), self.revision);
                    WitnessReply::Cosigned { checkpoint: note.note().to_owned() }
                }
                Witnessing::Known(note) => WitnessReply::Known { checkpoint: note.note().to_owned() },
                Witnessing::Forked(why) | Witnessing::Refused(why) => WitnessReply::Refused { why },
            }
        }

        fn go(&mut self) -> Option<Answered> {
            let request = self.request()?;
            let reply = self.witness(&request);
            Some(self.log.answered(Some(reply), is_witness))
        }
    }

    #[test]
    fn a_log_is_witnessed_as_it_grows_and_closed_once() {
        let mut bench = Bench::new();
        assert!(bench.request().is_none());
        bench.record(0..3);
        assert_eq!(bench.go(), Some(Answered::Advanced));
        // What is not committed holds back what comes after it.
        bench.log.prepared(3, b"three", false);
        bench.record(4..6);
        assert!(bench.request().is_none());
        assert_eq!(bench.log.unwitnessed(), 3);
        bench.log.prepared(3, b"void of three", true);
        bench.log.committed(3);
        assert_eq!(bench.go(), Some(Answered::Advanced));
        bench.log.end(6);
        assert_eq!(bench.go(), Some(Answered::Closed));
        assert!(bench.log.is_closed() && bench.request().is_none());
        assert_eq!(bench.heads.of(&log()).unwrap().checkpoint().size, 6);
    }

    #[test]
    fn a_lost_answer_is_made_up_for() {
        let mut bench = Bench::new();
        bench.record(0..3);
        let request = bench.request().unwrap();
        drop(bench.witness(&request));
        assert_eq!(bench.log.answered(None, is_witness), Answered::Unanswered);
        bench.record(3..5);
        // The witness is ahead of what the recorder knows: it says so, and from there on they agree.
        assert_eq!(bench.go(), Some(Answered::Advanced));
        assert_eq!(bench.go(), Some(Answered::Advanced));
        assert_eq!(bench.heads.of(&log()).unwrap().checkpoint().size, 5);
    }

    #[test]
    fn a_restarted_recorder_goes_on_where_the_witness_is() {
        let mut bench = Bench::new();
        bench.record(0..20_000);
        while bench.go().is_some() {}
        bench.log = RunLog::new(log());
        bench.record(0..20_010);
        bench.log.end(20_010);
        let answers: Vec<Answered> = std::iter::from_fn(|| bench.go()).collect();
        assert_eq!(answers, [Answered::Advanced, Answered::Closed]);
    }

    #[test]
    fn a_log_is_taken_up_from_what_was_kept_of_it_although_the_witness_forgot() {
        let mut bench = Bench::new();
        bench.record(0..3_000);
        bench.go();
        let kept = bench.log.to_keep().unwrap();
        assert_eq!((kept.tree.size(), bench.log.to_keep()), (3_000, None));
        bench.heads = Heads::default();
        bench.log = RunLog::witnessed(log(), kept);
        bench.record(3_000..3_010);
        assert_eq!(bench.log.end_here(), None);
        assert_eq!(bench.go(), Some(Answered::Closed));
        assert_eq!(bench.heads.of(&log()).unwrap().checkpoint().size, 3_010);
    }

    #[test]
    fn a_run_whose_journal_lacks_a_record_is_witnessed_as_far_as_it_goes() {
        let mut bench = Bench::new();
        bench.record(0..3);
        bench.record(4..6);
        assert_eq!(bench.log.end_here(), Some(3));
        assert_eq!(bench.go(), Some(Answered::Advanced));
        assert!(bench.request().is_none() && !bench.log.is_closed());
    }

    #[test]
    fn b06_a_recorder_that_was_set_back_is_told_so() {
        let mut bench = Bench::new();
        bench.record(0..9);
        bench.go();
        bench.log = RunLog::new(log());
        bench.record(0..4);
        assert!(matches!(bench.go(), Some(Answered::Forked(_))));
    }

    #[test]
    fn b06_a_second_history_is_not_cosigned() {
        let mut bench = Bench::new();
        bench.record(0..4);
        bench.go();
        let mut other = RunLog::new(log());
        for position in 0..6_u64 {
            other.prepared(position, b"other", false);
            other.committed(position);
        }
        std::mem::swap(&mut bench.log, &mut other);
        assert!(matches!(bench.go(), Some(Answered::Forked(_))));
        // Even if it says it had begun where the witness is.
        let mut request =
            other.due(bench.now.after(Millis(5_000)), &bench.key).or_else(|| bench.request()).unwrap();
        request.from = {
            let mut frontier = Frontier::default();
            (0..4).for_each(|_| frontier.append(leaf_hash(b"other")));
            frontier
        };
        assert!(matches!(bench.witness(&request), WitnessReply::Refused { .. }));
    }

    #[test]
    fn b06_a_root_that_is_not_that_of_the_leaves_is_not_cosigned() {
        let mut bench = Bench::new();
        bench.record(0..4);
        let mut request = bench.request().unwrap();
        request.leaves[2] = leaf_hash(b"another");
        assert!(matches!(bench.witness(&request), WitnessReply::Refused { .. }));
    }

    #[test]
    fn a_witness_that_forgot_takes_its_own_word_and_nobody_elses() {
        let mut bench = Bench::new();
        bench.record(0..4);
        bench.go();
        bench.heads = Heads::default();
        bench.record(4..6);
        let mut request = bench.request().unwrap();
        let own = SignedCheckpoint::parse(&request.checkpoint).unwrap();
        let cosigned = request.cosigned.replace(own.note().to_owned());
        assert!(matches!(bench.witness(&request), WitnessReply::Refused { .. }));
        request.cosigned = None;
        assert!(matches!(bench.witness(&request), WitnessReply::Refused { .. }));
        request.cosigned = cosigned;
        assert!(matches!(bench.witness(&request), WitnessReply::Cosigned { .. }));
    }
}
