//! The broker as a witness of the nodes' logs, and its own log.
//!
//! A head is published by compare-and-set on the log's own subject, so that several brokers are one witness; what is
//! not stored is not cosigned.

use std::collections::{BTreeMap, BTreeSet};

use writ_bus::{Store, StoreError, Stored};
use writ_common::{
    codec::{decode, encode},
    ids::{BootId, NodeId},
    reason::{Reason, ReasonCode},
    record::{Basis, Origin, RecordBody, RecordedDecision, Verdicted, Who},
    recorder::Prepared,
    subjects::Subject,
    time::{Millis, Now},
    tlog::{
        Answered, Head, Heads, LogId, RunLog, SignedCheckpoint, WitnessName, WitnessReply, WitnessRequest,
        Witnessing,
    },
    verdict::Verdict,
};
use writ_journal::{Entry, Unsettled};

use super::{Arrival, Broker, CallRef, Effect, ID_FORGOTTEN_AFTER, Pending, Ticket, control};

/// What a broker knows of logs: its own that are open, and the heads of all.
#[derive(Debug, Default)]
pub(super) struct Logs {
    own: BTreeMap<BootId, RunLog>,
    heads: Heads,
    is_read: bool,
    /// Heads whose signers are not known yet, with their sequences.
    unchecked: Vec<(SignedCheckpoint, u64)>,
    /// Logs a head of which is on its way.
    under_way: BTreeSet<LogId>,
    /// Logs that were found to have two histories; said once.
    forked: BTreeSet<LogId>,
    /// Voids under whose ids the stream has something else; said once.
    pub(super) displaced: BTreeSet<(BootId, u64)>,
    refused: u64,
}

/// Most heads that wait for their signers' keys.
const UNCHECKED_MAX: usize = 1_024;

/// A head on its way to the stream.
pub(super) struct HeadOnItsWay {
    note: SignedCheckpoint,
    /// Who asked for it; nobody for the broker's own.
    back: Option<CallRef>,
}

impl Logs {
    pub(super) fn new(own: LogId) -> Self {
        Self { own: BTreeMap::from([(own.boot.clone(), RunLog::new(own))]), ..Self::default() }
    }

    /// The newest checkpoint of every log.
    pub(super) fn heads(&self) -> impl Iterator<Item = &SignedCheckpoint> {
        self.heads.all()
    }

    pub(super) fn prepared(&mut self, prepared: &Prepared) {
        if let Some(log) = self.own.get_mut(&prepared.id.boot) {
            log.prepared(prepared.id.seq, &prepared.bytes, false);
        }
    }

    pub(super) fn committed(&mut self, boot: &BootId, seq: u64) {
        if let Some(log) = self.own.get_mut(boot) {
            log.committed(seq);
        }
    }
}

impl Broker {
    pub(super) fn log_of(&self, boot: &BootId) -> LogId {
        LogId {
            tenant: self.setup.tenant.clone(),
            origin: Origin::Broker(self.setup.broker.clone()),
            boot: boot.clone(),
        }
    }

    /// Takes up the log of an earlier run as its journal tells it.
    pub(super) fn take_up_log(&mut self, boot: &BootId, unsettled: &Unsettled) {
        let mut log = RunLog::witnessed(self.log_of(boot), unsettled.witnessed.clone());
        for (seq, (leaf, is_committed)) in &unsettled.leaves {
            log.taken_up(*seq, *leaf, *is_committed);
        }
        self.logs.own.insert(boot.clone(), log);
    }

    /// An earlier run has nothing open any more: its log can be closed.
    pub(super) fn run_settled(&mut self, boot: &BootId) {
        let Some(log) = self.logs.own.get_mut(boot) else { return };
        if let Some(position) = log.end_here() {
            // The journal stays, for somebody to look at.
            self.alarm(format!(
                "the journal of run {boot} has no record {position}: its log cannot be closed"
            ));
        }
    }

    /// The stream has this record, which may be of an earlier run.
    pub(super) fn stands(&mut self, prepared: &Prepared) {
        self.logs.prepared(prepared);
        self.logs.committed(&prepared.id.boot, prepared.id.seq);
        self.push(Effect::recorded(prepared));
    }

    /// The run is ending: nothing more is recorded, and its log is closed.
    pub fn close_log(&mut self, now: Now) -> Vec<Effect> {
        self.is_closing = true;
        let records = self.recorder.next_id().seq;
        if let Some(log) = self.logs.own.get_mut(&self.setup.boot) {
            log.end(records);
        }
        self.publish_own_heads(now);
        self.effects.drain(..).collect()
    }

    /// Whether the log of this run is complete and its last checkpoint in the stream.
    #[must_use]
    pub fn is_log_closed(&self) -> bool {
        !self.logs.own.contains_key(&self.setup.boot)
    }

    /// How many of its own records no checkpoint covers yet.
    #[must_use]
    pub fn unwitnessed(&self) -> u64 {
        self.logs.own.values().map(RunLog::unwitnessed).sum()
    }

    /// How many checkpoints were refused.
    #[must_use]
    pub fn witness_refusals(&self) -> u64 {
        self.logs.refused
    }

    pub(super) fn heads_were_read(&mut self) {
        self.logs.is_read = true;
    }

    /// A head of the stream, its own writes included.
    pub(super) fn head(&mut self, sequence: u64, payload: &[u8]) {
        let read = decode::<Head>(payload).map_err(|error| error.to_string());
        let note = read
            .and_then(|head| SignedCheckpoint::parse(&head.checkpoint).map_err(|error| error.to_string()));
        match note {
            Ok(note) => {
                self.logs.unchecked.push((note, sequence));
                self.check_heads();
            }
            Err(why) => self.alarm(format!("head {sequence} is none: {why}")),
        }
    }

    /// Takes the heads whose signers are known. The control stream is read beside the heads, and may come later with
    /// the key.
    pub(super) fn check_heads(&mut self) {
        for (note, sequence) in std::mem::take(&mut self.logs.unchecked) {
            if note.is_recorders(&self.control) && note.is_witnessed(&self.control) {
                self.logs.heads.take(note, sequence);
            } else if self.logs.unchecked.len() < UNCHECKED_MAX {
                self.logs.unchecked.push((note, sequence));
            } else {
                let log = &note.checkpoint().log;
                self.alarm(format!("head {sequence} of log {log} is not signed by who should have"));
            }
        }
    }

    /// A node asks to cosign.
    pub(super) fn witness(&mut self, call: CallRef, arrival: &Arrival, node: &NodeId, now: Now) {
        let reply = match self.judge_checkpoint(arrival, node) {
            Ok((mut note, revision)) => {
                let (tenant, broker) = (self.setup.tenant.clone(), self.setup.broker.clone());
                let name = WitnessName(&tenant, &broker);
                match note.cosign(&name, &self.setup.record_key, now.wall) {
                    Ok(()) => return self.send_head(note, revision, Some(call)),
                    Err(error) => WitnessReply::Refused { why: error.to_string() },
                }
            }
            Err(Refusal::Known(note)) => WitnessReply::Known { checkpoint: note.note().to_owned() },
            Err(Refusal::NotNow) => WitnessReply::Later,
            Err(Refusal::Wrong(why)) => {
                self.logs.refused += 1;
                self.alarm(format!("a checkpoint of {node} is not cosigned: {why}"));
                WitnessReply::Refused { why }
            }
            Err(Refusal::Forked(log, why)) => {
                self.logs.refused += 1;
                self.record_fork(&log, &why, now);
                WitnessReply::Refused { why }
            }
        };
        self.push(Effect::Reply(call, encode(&reply)));
    }

    fn judge_checkpoint(&self, arrival: &Arrival, node: &NodeId) -> Result<(SignedCheckpoint, u64), Refusal> {
        if !self.logs.is_read || !self.control_read {
            return Err(Refusal::NotNow);
        }
        let request: WitnessRequest =
            decode(&arrival.payload).map_err(|error| Refusal::Wrong(error.to_string()))?;
        let note = SignedCheckpoint::parse(&request.checkpoint)
            .map_err(|error| Refusal::Wrong(error.to_string()))?;
        let log = note.checkpoint().log.clone();
        if log.tenant != self.setup.tenant || log.origin != Origin::Node(node.clone()) {
            return Err(Refusal::Wrong(format!("log {log} is not {node}'s")));
        }
        if !note.is_recorders(&self.control) {
            return Err(Refusal::Wrong(format!("it is not signed by a record key of {node}")));
        }
        if self.logs.under_way.contains(&log) {
            return Err(Refusal::NotNow);
        }
        match self.logs.heads.judge(note, &request, |note| note.witness(&self.control).is_some()) {
            Witnessing::Cosign(note, revision) => Ok((note, revision)),
            Witnessing::Known(note) => Err(Refusal::Known(Box::new(note))),
            Witnessing::Refused(why) => Err(Refusal::Wrong(why)),
            Witnessing::Forked(why) => Err(Refusal::Forked(Box::new(log), why)),
        }
    }

    /// Two histories of one run: somebody runs twice, was set back, or lies. On record once.
    fn record_fork(&mut self, log: &LogId, why: &str, now: Now) {
        if !self.logs.forked.insert(log.clone()) {
            return;
        }
        self.alarm(format!("log {log} is forked: {why}"));
        let reason = Reason::new(ReasonCode::AuditFork).noted(format_args!("log {log}: {why}"));
        let who = Who { connection: Some(log.origin.name().to_owned()), ..Who::default() };
        let basis = Basis { epoch: Some(self.control.epoch()), ..Basis::default() };
        let verdict = Verdict::deny(reason, None);
        let denied =
            Verdicted::new(RecordedDecision::Deny, &verdict, who, control::what_of("witness"), basis);
        self.record(RecordBody::Verdict(Box::new(denied)), None, now);
    }

    fn send_head(&mut self, note: SignedCheckpoint, revision: u64, back: Option<CallRef>) {
        let log = note.checkpoint().log.clone();
        let head = Head { checkpoint: note.note().to_owned() };
        let subject = Subject::Head(log.clone()).of(&self.setup.tenant);
        let store = Store::fenced(subject, revision, encode(&head));
        let ticket = self.fresh_ticket();
        self.logs.under_way.insert(log);
        self.pending.insert(ticket, Pending::Head(Box::new(HeadOnItsWay { note, back })));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// What the stream said about a head.
    pub(super) fn head_published(&mut self, head: HeadOnItsWay, result: &Result<Stored, StoreError>) {
        let HeadOnItsWay { note, back } = head;
        let log = note.checkpoint().log.clone();
        self.logs.under_way.remove(&log);
        if let Ok(stored) = result {
            self.logs.heads.take(note.clone(), stored.sequence);
        }
        let Some(call) = back else {
            let own = self.logs.own.get_mut(&log.boot);
            let (closed, witnessed) =
                own.map_or((None, None), |own| (Some(own.own_published(result.is_ok())), own.to_keep()));
            if let Some(witnessed) = witnessed.filter(|_| log.boot == self.setup.boot) {
                self.push(Effect::Journal(None, Entry::Witnessed(witnessed)));
            }
            if closed == Some(Answered::Closed) {
                self.logs.own.remove(&log.boot);
                self.push(Effect::Forget(log.boot));
            }
            return;
        };
        let reply = match (result, self.logs.heads.of(&log)) {
            (Ok(_), _) => WitnessReply::Cosigned { checkpoint: note.note().to_owned() },
            (Err(_), Some(known)) => WitnessReply::Known { checkpoint: known.note().to_owned() },
            (Err(_), None) => WitnessReply::Later,
        };
        self.push(Effect::Reply(call, encode(&reply)));
    }

    /// Publishes the heads of its own logs.
    pub(super) fn publish_own_heads(&mut self, now: Now) {
        if !self.logs.is_read || !self.control_read {
            return;
        }
        let key = self.setup.record_key.clone();
        let Logs { own, heads, .. } = &mut self.logs;
        let due: Vec<SignedCheckpoint> =
            own.values_mut().filter_map(|log| log.own(now.monotonic, &key)).collect();
        let (mut notes, mut behind) = (Vec::new(), Vec::new());
        for note in due {
            let said = note.checkpoint();
            match heads.of(&said.log).map(SignedCheckpoint::checkpoint) {
                Some(known) if known.size > said.size || (known.is_closed && known != said) => {
                    behind.push((said.log.clone(), known.size, said.size));
                }
                _ => notes.push((heads.revision(&said.log), note)),
            }
        }
        for (log, known, here) in behind {
            // Its journal stays, for somebody to look at.
            self.logs.own.remove(&log.boot);
            self.record_fork(&log, &format!("its head covers {known} records and {here} are here"), now);
        }
        for (revision, note) in notes {
            self.send_head(note, revision, None);
        }
    }

    /// Something is stored under a void's id: which record is it?
    pub(super) fn read_back(&mut self, void: Box<Prepared>, sequence: u64) {
        let ticket = self.fresh_ticket();
        let part = void.record.part.clone();
        self.pending.insert(ticket, Pending::ReadBack(void, sequence));
        self.push(Effect::ReadRecord { ticket, part, sequence });
    }

    /// The record at a sequence of the stream, or why it cannot be read.
    pub(super) fn record_read(&mut self, ticket: Ticket, found: Option<&[u8]>, now: Now) {
        let Some(Pending::ReadBack(void, sequence)) = self.pending.remove(&ticket) else { return };
        let Some(bytes) = found else { return self.read_back(void, sequence) };
        match self.recorder.reopen(bytes) {
            Ok((prepared, record)) if prepared.id == void.id => {
                if prepared.id.boot == self.setup.boot {
                    let _written = self.journal(&prepared);
                }
                self.acknowledged(&prepared, &prepared.subject, sequence);
                self.right_came_to_nothing(&record, now);
            }
            _ => self.displaced(void, sequence),
        }
    }

    /// Neither a void nor what it voids is stored under their id. That does not change by looking again: the void goes on
    /// record once the stream has forgotten the id.
    fn displaced(&mut self, void: Box<Prepared>, sequence: u64) {
        if self.logs.displaced.insert((void.id.boot.clone(), void.id.seq)) {
            self.alarm(format!(
                "record {sequence} of the audit stream has the message id of record {} and is another: the stream was set \
                 back, or somebody else wrote to it; the void waits until the id is forgotten",
                void.id
            ));
        }
        self.publish_record_after(ID_FORGOTTEN_AFTER, void);
    }
}

/// Why a checkpoint is not cosigned.
enum Refusal {
    /// It does not begin where the witness is.
    Known(Box<SignedCheckpoint>),
    /// The heads are still being read, or one of this log is being cosigned.
    NotNow,
    /// It is not what it says.
    Wrong(String),
    /// It contradicts what was cosigned.
    Forked(Box<LogId>, String),
}
