//! The recorder's side: which records are in the log, and when their root is to be witnessed.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Frontier, LogId, SignedCheckpoint, WitnessReply, WitnessRequest, leaf_hash};
use crate::{
    digest::Digest,
    keys::PrivateKey,
    time::{Millis, Monotonic},
};

/// How many leaves are witnessed at once however short the pause.
const BATCH: usize = 256;
/// Most leaves in one request: 32 bytes each.
const LEAVES_MAX: usize = 8_192;
/// After how many leaves the tree that was witnessed is kept anew.
const KEEP_EVERY: u64 = 2_048;
/// The longest a record waits for a checkpoint that covers it.
const PAUSE: Millis = Millis(1_000);
/// The longest a denial does.
const PAUSE_URGENT: Millis = Millis(100);

/// What a witness has seen of a log, and its word for it: enough to take the log up again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witnessed {
    /// The tree.
    pub tree: Frontier,
    /// The checkpoint as it was cosigned; absent for a broker's own log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// A run's log while it grows and until it is closed.
#[derive(Debug)]
pub struct RunLog {
    log: LogId,
    /// Records by position, each with whether the stream has it, from the first one that may still change on.
    waiting: BTreeMap<u64, (Digest, bool)>,
    /// Leaves that are in the log and not witnessed yet.
    unwitnessed: VecDeque<Digest>,
    /// What the witness has cosigned.
    witnessed: Frontier,
    cosigned: Option<String>,
    /// How many records the run has, once it has ended.
    ends_at: Option<u64>,
    is_closed: bool,
    /// What is being witnessed.
    sent: Option<(Frontier, bool)>,
    /// How much of it was witnessed when its tree was kept last.
    kept: u64,
    last_sent: Option<Monotonic>,
    is_urgent: bool,
}

/// What came of a request to the witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The witness has seen it, or said how far it had got.
    Advanced,
    /// The run's last checkpoint is witnessed: the log is complete.
    Closed,
    /// It was not answered; it will be asked again.
    Unanswered,
    /// The witness has seen another history of this run, or more of it than is here.
    Forked(String),
    /// It was refused, or the answer does not fit; it will be asked again.
    Fault(String),
}

impl RunLog {
    /// The log of a run that begins.
    #[must_use]
    pub fn new(log: LogId) -> Self {
        Self {
            log,
            waiting: BTreeMap::new(),
            unwitnessed: VecDeque::new(),
            witnessed: Frontier::default(),
            cosigned: None,
            ends_at: None,
            is_closed: false,
            sent: None,
            kept: 0,
            last_sent: None,
            is_urgent: false,
        }
    }

    /// Which log it is.
    #[must_use]
    pub fn id(&self) -> &LogId {
        &self.log
    }

    /// A record was prepared at a position; the last one counts.
    pub fn prepared(&mut self, position: u64, envelope: &[u8], is_urgent: bool) {
        if position >= self.size() {
            self.waiting.insert(position, (leaf_hash(envelope), false));
            self.is_urgent |= is_urgent;
        }
    }

    /// The stream has the record prepared last at this position.
    pub fn committed(&mut self, position: u64) {
        if let Some((_, is_committed)) = self.waiting.get_mut(&position) {
            *is_committed = true;
        }
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() == self.witnessed.size() + self.unwitnessed.len() as u64
            && entry.get().1
        {
            let (leaf, _) = entry.remove();
            self.unwitnessed.push_back(leaf);
        }
    }

    /// The log of an earlier run, of which so much is known to be witnessed.
    #[must_use]
    pub fn witnessed(log: LogId, known: Witnessed) -> Self {
        let Witnessed { tree, checkpoint } = known;
        Self { kept: tree.size(), witnessed: tree, cosigned: checkpoint, ..Self::new(log) }
    }

    /// What the witness has seen, if that has grown so much that it should be kept.
    pub fn to_keep(&mut self) -> Option<Witnessed> {
        let has_grown = self.witnessed.size() >= self.kept + KEEP_EVERY;
        has_grown.then(|| {
            self.kept = self.witnessed.size();
            Witnessed { tree: self.witnessed.clone(), checkpoint: self.cosigned.clone() }
        })
    }

    /// A record of an earlier run, as its journal has it.
    pub fn taken_up(&mut self, position: u64, leaf: Digest, is_committed: bool) {
        self.waiting.insert(position, (leaf, false));
        if is_committed {
            self.committed(position);
        }
    }

    /// The run has ended with the last record there is. Says at which position one is missing, if one is: such a log cannot
    /// be closed.
    pub fn end_here(&mut self) -> Option<u64> {
        let last = self.waiting.last_key_value().map(|(position, _)| position + 1);
        self.end(last.unwrap_or(self.size()));
        let first = self.waiting.first_key_value().map(|(position, _)| *position);
        first.filter(|first| *first > self.size()).map(|_| self.size())
    }

    /// The run has ended after so many records; its log is closed once the stream has all of them.
    pub fn end(&mut self, records: u64) {
        self.ends_at = Some(records);
    }

    /// How many records are in the log.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.witnessed.size() + self.unwitnessed.len() as u64
    }

    /// How many records no cosigned checkpoint covers yet, those included that the stream does not have yet.
    #[must_use]
    pub fn unwitnessed(&self) -> u64 {
        (self.unwitnessed.len() + self.waiting.len()) as u64
    }

    /// Whether the witness has cosigned the last checkpoint there will be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// What is to be witnessed now, if anything is.
    pub fn due(&mut self, now: Monotonic, key: &PrivateKey) -> Option<WitnessRequest> {
        self.due_up_to(LEAVES_MAX, now, key)
    }

    fn due_up_to(&mut self, leaves_max: usize, now: Monotonic, key: &PrivateKey) -> Option<WitnessRequest> {
        let closes = self.ends_at == Some(self.size());
        if self.sent.is_some() || self.is_closed || (self.unwitnessed.is_empty() && !closes) {
            return None;
        }
        let pause = if self.is_urgent || self.unwitnessed.len() >= BATCH { PAUSE_URGENT } else { PAUSE };
        if self.last_sent.is_some_and(|last| now.since(last) < pause) {
            return None;
        }
        let (checkpoint, frontier, leaves) = self.next(leaves_max, closes);
        let is_closed = checkpoint.is_closed;
        let checkpoint = SignedCheckpoint::sign(checkpoint, key).ok()?;
        self.sent = Some((frontier, is_closed));
        self.last_sent = Some(now);
        self.is_urgent = false;
        Some(WitnessRequest {
            checkpoint: checkpoint.note().to_owned(),
            from: self.witnessed.clone(),
            cosigned: self.cosigned.clone(),
            leaves,
        })
    }

    /// The checkpoint over what is witnessed and at most so many leaves more.
    fn next(&self, leaves_max: usize, closes: bool) -> (Checkpoint, Frontier, Vec<Digest>) {
        let leaves: Vec<Digest> = self.unwitnessed.iter().take(leaves_max).copied().collect();
        let mut frontier = self.witnessed.clone();
        leaves.iter().for_each(|leaf| frontier.append(*leaf));
        let is_closed = closes && leaves.len() == self.unwitnessed.len();
        let checkpoint =
            Checkpoint { log: self.log.clone(), size: frontier.size(), root: frontier.root(), is_closed };
        (checkpoint, frontier, leaves)
    }

    /// A checkpoint nobody but its recorder signs, over all there is: what a broker says of its own log.
    pub fn own(&mut self, now: Monotonic, key: &PrivateKey) -> Option<SignedCheckpoint> {
        let request = self.due_up_to(usize::MAX, now, key)?;
        SignedCheckpoint::parse(&request.checkpoint).ok()
    }

    /// Takes the witness's answer; `is_witness` says whether a note bears a cosignature that counts.
    pub fn answered(
        &mut self,
        reply: Option<WitnessReply>,
        is_witness: impl Fn(&SignedCheckpoint) -> bool,
    ) -> Answered {
        let Some((frontier, is_closed)) = self.sent.take() else { return Answered::Unanswered };
        match reply {
            None | Some(WitnessReply::Later) => Answered::Unanswered,
            Some(WitnessReply::Refused { why }) => Answered::Fault(why),
            Some(WitnessReply::Cosigned { checkpoint } | WitnessReply::Known { checkpoint }) => {
                let note = match SignedCheckpoint::parse(&checkpoint) {
                    Ok(note) if note.checkpoint().log == self.log && is_witness(&note) => note,
                    Ok(_) => return Answered::Fault("its answer is not cosigned by a broker".to_owned()),
                    Err(error) => return Answered::Fault(format!("its answer {error}")),
                };
                self.advance(&note, &frontier, is_closed)
            }
        }
    }

    /// Takes what the witness has cosigned, which may be more or less than what was asked for.
    fn advance(&mut self, note: &SignedCheckpoint, sent: &Frontier, closing: bool) -> Answered {
        let said = note.checkpoint();
        if said.size < self.witnessed.size() {
            return Answered::Fault(format!(
                "the witness has forgotten: it says {} and cosigned {}",
                said.size,
                self.witnessed.size()
            ));
        }
        if said.size > self.size() {
            return forked(format!(
                "the witness has seen {} records of this run and {} are here",
                said.size,
                self.size()
            ));
        }
        let more = said.size - self.witnessed.size();
        let frontier = if said.size == sent.size() {
            sent.clone()
        } else {
            let mut frontier = self.witnessed.clone();
            let leaves = usize::try_from(more).unwrap_or(usize::MAX);
            self.unwitnessed.iter().take(leaves).for_each(|leaf| frontier.append(*leaf));
            frontier
        };
        if frontier.root() != said.root {
            return forked(format!(
                "the witness has seen other records than are here, {} of them",
                said.size
            ));
        }
        if said.is_closed && !closing {
            return forked("the witness has seen this run end before".to_owned());
        }
        for _ in 0..more {
            self.unwitnessed.pop_front();
        }
        self.witnessed = frontier;
        self.cosigned = Some(note.note().to_owned());
        self.is_closed = said.is_closed;
        if self.is_closed { Answered::Closed } else { Answered::Advanced }
    }

    /// What was published without a witness is in the stream, or is not.
    pub fn own_published(&mut self, is_stored: bool) -> Answered {
        let Some((frontier, is_closed)) = self.sent.take() else { return Answered::Unanswered };
        if !is_stored {
            return Answered::Unanswered;
        }
        for _ in self.witnessed.size()..frontier.size() {
            self.unwitnessed.pop_front();
        }
        self.witnessed = frontier;
        self.is_closed = is_closed;
        if is_closed { Answered::Closed } else { Answered::Advanced }
    }
}

/// Two histories of one run.
fn forked(why: String) -> Answered {
    if crate::red::off("B06") { Answered::Unanswered } else { Answered::Forked(why) }
}
