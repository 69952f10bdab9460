//! After a crash: what an earlier run prepared is completed, voided or marked, and never run again.

use writ_common::{
    digest::Digest,
    ids::{BootId, PartId},
    reason::{Reason, ReasonCode},
    record::{OutcomeStatus, Record, RecordBody, RecordKind, What, Who},
    recorder::Prepared,
    time::{Millis, Now},
};
use writ_journal::{Entry, Unpublished, Unsettled};

use super::{Effect, Guard, Pending, Purpose, REPUBLISH_AFTER, call::recorded};

/// An intent of which nobody knows whether it is on record.
#[derive(Clone, Debug)]
pub(super) struct OldIntent {
    pub(super) prepared: Box<Prepared>,
    pub(super) call_id: Digest,
    pub(super) who: Who,
    pub(super) what: What,
    /// The void of it that was sent, which may be on record although nobody said so.
    pub(super) void: Option<Box<Prepared>>,
    /// Whether something with its id is on record, so that it remains to be seen whether that is it.
    pub(super) contested: bool,
    /// Since when; past the stream's duplicate window its id proves nothing any more.
    pub(super) since: Now,
}

/// Which of the records that may be at its place is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought {
    Intent,
    Void,
}

impl Guard {
    /// Takes over what an earlier run left open.
    pub(super) fn recover(&mut self, boot: &BootId, unsettled: Unsettled, now: Now) {
        let open = unsettled.unpublished.len() + unsettled.without_outcome.len();
        let log = self.log_of(boot);
        self.logs.take_up(log, &unsettled);
        if open == 0 {
            return self.run_settled(boot);
        }
        self.alarm(format!("run {boot} left {open} records open; completing them"));
        self.recovering.insert(boot.clone(), open);
        for unpublished in unsettled.unpublished {
            self.republish(boot, &unpublished, now);
        }
        for (seq, bytes) in unsettled.without_outcome {
            match self.reopen(&bytes) {
                Some((prepared, record)) => {
                    let call_id = call_id_of(&record);
                    let task = record.task().cloned();
                    self.record_outcome_of(&prepared, call_id, task, OutcomeStatus::UnknownOutcome, now);
                }
                // Its journal stays, for somebody to look at.
                None => {
                    self.alarm(format!("record {seq} of run {boot} is not readable"));
                    continue;
                }
            }
            self.settled(boot);
        }
    }

    fn reopen(&self, bytes: &[u8]) -> Option<(Prepared, Record)> {
        self.recorder.reopen(bytes).ok()
    }

    fn republish(&mut self, boot: &BootId, unpublished: &Unpublished, now: Now) {
        let Some((prepared, record)) = self.reopen(&unpublished.record) else {
            // Its journal stays, for somebody to look at.
            return self.alarm(format!("record {} of run {boot} is not readable", unpublished.seq));
        };
        let prepared = Box::new(prepared);
        if unpublished.kind != RecordKind::Allow {
            let purpose = Purpose::Settle(boot.clone());
            return self.publish_record(prepared, unpublished.message_id.clone(), purpose, Millis(0));
        }
        // An ALLOW is never published again. Its id may be forgotten by now, so the stream is asked first.
        let (who, what) = match record.body {
            RecordBody::Verdict(verdicted) => (verdicted.who, verdicted.what),
            RecordBody::Outcome(_) | RecordBody::Void(_) => (Who::default(), What::default()),
        };
        let call_id = what.call_id.unwrap_or(Digest::from_bytes([0; 32]));
        self.search(OldIntent { prepared, call_id, who, what, void: None, contested: false, since: now });
    }

    /// Looks for the void of an intent, if one was sent, and then for the intent: a place has one of them, and a void that is
    /// made anew is another record.
    pub(super) fn search(&mut self, intent: OldIntent) {
        let sought = if intent.void.is_some() { Sought::Void } else { Sought::Intent };
        self.search_for(sought, intent);
    }

    fn search_for(&mut self, sought: Sought, intent: OldIntent) {
        let record = match (sought, &intent.void) {
            (Sought::Void, Some(void)) => void,
            _ => &intent.prepared,
        };
        let (subject, record) = (record.subject.clone(), record.bytes.clone());
        let ticket = self.ticket(Pending::Search(sought, Box::new(intent)));
        self.push(Effect::Search { ticket, subject, record });
    }

    pub(super) fn searched(&mut self, ticket: super::Ticket, found: Result<Option<u64>, String>, now: Now) {
        let Some(Pending::Search(sought, intent)) = self.pending.remove(&ticket) else { return };
        match found {
            Ok(Some(sequence)) if sought == Sought::Void => self.void_stands(&intent, sequence),
            Ok(Some(sequence)) => self.intent_stands(&intent, sequence, now),
            Ok(None) if sought == Sought::Void => self.search_for(Sought::Intent, *intent),
            // Another node's intent: ours is not on record. Nor can it come late to a part that takes nothing more.
            Ok(None) if intent.contested || self.control.parts().is_sealed(&intent.prepared.record.part) => {
                self.void_apart(*intent, now);
            }
            Ok(None) => self.void_old(*intent, now),
            Err(_) if self.control.parts().archived().contains_key(&intent.prepared.record.part) => {
                // Its journal stays, for somebody to look at.
                let (id, part) = (&intent.prepared.id, &intent.prepared.record.part);
                self.alarm(format!(
                    "nobody knows here whether {id} was let through: part {part} was put away; the archive of it has the \
                     record, or it never counted (`writ audit export --archive`). Its log stays open; later parts are put \
                     away with `--although-open`"
                ));
            }
            Err(why) => {
                self.alarm(format!("record {} cannot be looked for: {why}", intent.prepared.id));
                self.search_for(sought, *intent);
            }
        }
    }

    /// The void of an intent turned out to be on record.
    fn void_stands(&mut self, intent: &OldIntent, sequence: u64) {
        let Some(void) = &intent.void else { return };
        if void.id.boot == self.config.boot {
            self.committed(void, &void.subject, sequence);
        } else {
            self.resolved(void, &void.subject, sequence);
        }
        self.settled(&void.id.boot);
    }

    /// An earlier run's void is not what is stored under its id. What is?
    pub(super) fn read_back(&mut self, void: Box<Prepared>, part: PartId, sequence: u64) {
        let ticket = self.ticket(Pending::ReadBack(void, part.clone(), sequence));
        self.push(Effect::ReadRecord { ticket, part, sequence });
    }

    /// What is stored under the id of an earlier run's void.
    pub(super) fn record_read(&mut self, ticket: super::Ticket, found: Option<&[u8]>, now: Now) {
        let Some(Pending::ReadBack(void, part, sequence)) = self.pending.remove(&ticket) else { return };
        let Some(bytes) = found else { return self.read_back(void, part, sequence) };
        match self.reopen(bytes).filter(|(stored, _)| stored.id == void.id) {
            // The intent itself: it stands, and nobody knows whether it ran.
            Some((prepared, Record { body: RecordBody::Verdict(verdicted), .. })) => {
                let (who, what) = (verdicted.who, verdicted.what);
                let call_id = what.call_id.unwrap_or(Digest::from_bytes([0; 32]));
                let prepared = Box::new(prepared);
                let intent =
                    OldIntent { prepared, call_id, who, what, void: None, contested: false, since: now };
                self.intent_stands(&intent, sequence, now);
            }
            // The void, or one made before it.
            Some((stored, _)) => {
                self.resolved(&stored, &stored.subject, sequence);
                self.settled(&stored.id.boot);
            }
            // Another node's intent: the void goes under the id of its own record.
            None => {
                let (message_id, boot) = (void.message_id.clone(), void.id.boot.clone());
                self.publish_record(void, message_id, Purpose::Settle(boot), Millis(0));
            }
        }
    }

    /// Voids an intent that is not on record, under its own id, so that a late copy of it is dropped.
    fn void_old(&mut self, mut intent: OldIntent, now: Now) {
        let reason =
            Reason::new(ReasonCode::AuditUnavailable).noted("the node ended before it was acknowledged");
        let void = intent.void.clone().unwrap_or_else(|| {
            let (who, what) = (intent.who.clone(), intent.what.clone());
            Box::new(self.recorder.void(&intent.prepared, recorded(&reason), who, what, now.wall))
        });
        intent.void = Some(void.clone());
        let message_id = intent.call_id.to_string();
        let purpose = Purpose::VoidUnknown(Box::new(intent));
        self.publish_record(void, message_id, purpose, REPUBLISH_AFTER);
    }

    /// Voids an intent whose id somebody else used, under the record's own.
    fn void_apart(&mut self, intent: OldIntent, now: Now) {
        let reason = Reason::new(ReasonCode::AuditUnavailable).noted("it was not acknowledged");
        let OldIntent { prepared, who, what, .. } = intent;
        let void = self.recorder.void(&prepared, recorded(&reason), who, what, now.wall);
        let message_id = prepared.message_id.clone();
        let is_own = prepared.id.boot == self.config.boot;
        if is_own {
            self.journal(None, &void, &message_id, None);
        }
        let purpose = if is_own { Purpose::Record } else { Purpose::Settle(prepared.id.boot.clone()) };
        self.publish_record(Box::new(void), message_id, purpose, Millis(0));
    }

    /// The stream has a record that an earlier run left open, in the form it is in now. Kept in that run's own journal, so
    /// that the run is whole there.
    pub(super) fn resolved(&mut self, prepared: &Prepared, subject: &str, stream: u64) {
        self.stands(prepared);
        let seq = prepared.id.seq;
        let entry = Self::entry_of(prepared, &prepared.message_id, None);
        let part = prepared.part_elsewhere(subject);
        let entries = vec![entry, Entry::Committed { seq, stream, part }];
        self.push(Effect::Resolve(prepared.id.boot.clone(), entries));
    }

    /// One thing less an earlier run left open; its log is closed with the last.
    pub(super) fn settled(&mut self, boot: &BootId) {
        let Some(open) = self.recovering.get_mut(boot) else { return };
        *open -= 1;
        if *open == 0 {
            self.recovering.remove(boot);
            self.run_settled(boot);
        }
    }
}

fn call_id_of(record: &Record) -> Digest {
    match &record.body {
        RecordBody::Verdict(verdicted) => verdicted.what.call_id,
        RecordBody::Outcome(outcome) => Some(outcome.call_id),
        RecordBody::Void(void) => void.what.call_id,
    }
    .unwrap_or(Digest::from_bytes([0; 32]))
}
