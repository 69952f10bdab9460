//! The log of this run, and of earlier ones until they are closed: every record the stream has is a leaf, and a
//! broker cosigns their root. A node that was set back, or lives twice, is found here: the witness has seen more
//! of a run than is here, or something else.

use std::collections::BTreeMap;

use bytes::Bytes;
use writ_common::{
    codec::{decode, encode},
    ids::BootId,
    record::Origin,
    recorder::Prepared,
    time::Now,
    tlog::{Answered, LogId, RunLog},
};
use writ_journal::{Entry, Unsettled};

use super::{Effect, Guard, RecordKind};

/// Every log that is not closed.
#[derive(Debug)]
pub(super) struct Logs {
    open: BTreeMap<BootId, RunLog>,
    refused: u64,
    /// Why it was refused last.
    fault: Option<String>,
    /// Whether the last checkpoint of a run that is ending went without an answer: the next run sees to it.
    is_given_up: bool,
}

impl Logs {
    pub(super) fn new(log: LogId) -> Self {
        Self {
            open: BTreeMap::from([(log.boot.clone(), RunLog::new(log))]),
            refused: 0,
            fault: None,
            is_given_up: false,
        }
    }

    /// A record was prepared in its run; the last one at a position counts.
    pub(super) fn prepared(&mut self, prepared: &Prepared) {
        if let Some(log) = self.open.get_mut(&prepared.id.boot) {
            log.prepared(prepared.id.seq, &prepared.bytes, prepared.kind == RecordKind::Deny);
        }
    }

    /// The stream has the record prepared last at a position.
    pub(super) fn committed(&mut self, boot: &BootId, seq: u64) {
        if let Some(log) = self.open.get_mut(boot) {
            log.committed(seq);
        }
    }

    /// An earlier run as its journal tells it.
    pub(super) fn take_up(&mut self, log: LogId, unsettled: &Unsettled) {
        let mut run = RunLog::witnessed(log, unsettled.witnessed.clone());
        for (seq, (leaf, is_committed)) in &unsettled.leaves {
            run.taken_up(*seq, *leaf, *is_committed);
        }
        self.open.insert(run.id().boot.clone(), run);
    }

    /// How many records no cosigned checkpoint covers.
    pub(super) fn unwitnessed(&self) -> u64 {
        self.open.values().map(RunLog::unwitnessed).sum()
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

impl Guard {
    /// Asks the witness to cosign what there is to.
    pub(super) fn witness(&mut self, now: Now) {
        let key = self.config.key.clone();
        let due: Vec<(BootId, Vec<u8>)> = self
            .logs
            .open
            .iter_mut()
            .filter_map(|(boot, log)| Some((boot.clone(), encode(&log.due(now.monotonic, &key)?))))
            .collect();
        for (boot, payload) in due {
            self.push(Effect::Witness(boot, payload));
        }
    }

    /// What the witness said, if it answered.
    pub(super) fn witnessed(&mut self, boot: &BootId, answer: Option<&Bytes>) {
        let control = &self.control;
        let Some(log) = self.logs.open.get_mut(boot) else { return };
        let reply = answer.map(|bytes| decode(bytes));
        let answered = match reply {
            Some(Err(error)) => {
                log.answered(None, |_| false);
                Answered::Fault(format!("its answer: {error}"))
            }
            Some(Ok(reply)) => log.answered(Some(reply), |note| note.witness(control).is_some()),
            None => log.answered(None, |_| false),
        };
        let witnessed = log.to_keep().filter(|_| *boot == self.config.boot);
        if let Some(witnessed) = witnessed {
            self.push(Effect::Journal(None, Entry::Witnessed(witnessed)));
        }
        match answered {
            Answered::Advanced => self.logs.fault = None,
            Answered::Unanswered => self.logs.is_given_up = self.is_closing,
            Answered::Closed => {
                self.logs.open.remove(boot);
                self.push(Effect::Forget(boot.clone()));
            }
            Answered::Fault(why) => {
                self.logs.refused += 1;
                // It is asked again every second: said once.
                if self.logs.fault.as_ref() != Some(&why) {
                    self.alarm(format!("the log of run {boot} is not witnessed: {why}"));
                    self.logs.fault = Some(why);
                }
            }
            Answered::Forked(why) => self.forked(boot, &why),
        }
    }

    /// The witness has seen another history than is here. Only somebody who knows why can say that it goes on.
    fn forked(&mut self, boot: &BootId, why: &str) {
        self.logs.refused += 1;
        self.logs.open.remove(boot);
        let why = format!("run {boot}: {why}");
        if self.streams.is_accepted() && *boot != self.config.boot {
            self.alarm(format!("{why}; accepted, and its journal is set aside"));
            return self.push(Effect::Forget(boot.clone()));
        }
        self.streams.distrust(&why);
        self.alarm(format!("{why}; nothing more is decided here (state.rollback)"));
    }

    /// The run is ending: nothing more is recorded, and its log is closed as soon as the stream has everything.
    pub fn close_log(&mut self, now: Now) -> Vec<Effect> {
        self.is_closing = true;
        let records = self.recorder.next_id().seq;
        if let Some(log) = self.logs.open.get_mut(&self.config.boot) {
            log.end(records);
        }
        self.witness(now);
        self.effects.drain(..).collect()
    }

    /// Whether the log of this run is complete and witnessed, or nobody is there to witness it.
    #[must_use]
    pub fn is_log_done(&self) -> bool {
        self.logs.is_given_up || !self.logs.open.contains_key(&self.config.boot)
    }

    /// How many records no cosigned checkpoint covers yet.
    #[must_use]
    pub fn unwitnessed(&self) -> u64 {
        self.logs.unwitnessed()
    }

    /// How often a checkpoint was refused.
    #[must_use]
    pub fn witness_refusals(&self) -> u64 {
        self.logs.refused()
    }

    /// An earlier run has nothing open any more: its log can be closed.
    pub(super) fn run_settled(&mut self, boot: &BootId) {
        let Some(log) = self.logs.open.get_mut(boot) else { return };
        if let Some(position) = log.end_here() {
            // What is there is witnessed; the journal stays, for somebody to look at.
            self.alarm(format!(
                "the journal of run {boot} has no record {position}: its log cannot be closed"
            ));
        }
    }

    pub(super) fn log_of(&self, boot: &BootId) -> LogId {
        LogId {
            tenant: self.config.tenant.clone(),
            origin: Origin::Node(self.config.node.clone()),
            boot: boot.clone(),
        }
    }
}
