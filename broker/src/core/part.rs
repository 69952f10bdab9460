//! The parts of the audit stream: when the next one is begun, what moves there, and when an old one takes nothing more.
//!
//! A part is begun before the one in use is full, so that new tasks never wait for an operator. What outlives a task moves
//! along; tasks end where they began. A part in which nothing lives is sealed on an operator's word, and only then put away.

use std::collections::BTreeMap;

use writ_bus::StreamFacts;
use writ_common::{
    control::ControlEvent,
    hold::HOLD_WHY_BYTES_MAX,
    ids::PartId,
    part::PartStage,
    reason::{Reason, ReasonCode},
    record::Origin,
    time::{Millis, Now, Timestamp},
    tlog::{LogId, SignedCheckpoint},
    wire::AdminWanted,
};

use super::{Broker, CallRef, Effect, Pending, TaskEntry, admin::Operation, control::ControlWrite};

/// How full a part is when the next one is begun, in percent: well before 90, where tasks under way are refused too.
const NEXT_FROM_PERCENT: u64 = 70;
/// How long after the end of its last task a part may be sealed: calls under way have ended by then.
const SEALED_AFTER: Millis = Millis::from_secs(600);
/// Pause before what failed is tried again.
const AGAIN_AFTER: Millis = Millis(5_000);

/// What is under way, and what the streams were when they were last looked at.
#[derive(Default)]
pub(super) struct PartWork {
    streams: BTreeMap<PartId, StreamFacts>,
    /// The part whose stream is being made.
    making: Option<PartId>,
    /// Operators who wait for it.
    asked: Vec<(CallRef, Box<Operation>)>,
    /// Whether labels are being carried over.
    is_moving: bool,
    /// When something failed last, and why.
    failed: Option<(Now, String)>,
}

impl Broker {
    /// What a part's stream is now.
    pub(super) fn part_seen(&mut self, part: PartId, facts: StreamFacts) {
        self.parts.streams.insert(part, facts);
    }

    /// Whether a part, or the journal, is nearly full: what is left is kept for what must still be said.
    pub(super) fn is_short_of_room(&self, part: &PartId) -> bool {
        let is_full = |facts: &StreamFacts| facts.is_nearly_full(0);
        self.parts.streams.get(part).is_some_and(is_full) || self.journal_room != writ_journal::Room::Enough
    }

    /// Begins the next part in time, and brings along what outlives a task.
    pub(super) fn tend_parts(&mut self, now: Now) {
        let has_just_failed = |(at, _): &(Now, String)| now.monotonic.since(at.monotonic) < AGAIN_AFTER;
        if !self.control_read || self.is_closing || self.parts.failed.as_ref().is_some_and(has_just_failed) {
            return;
        }
        let state = self.control.parts();
        let (current, shared) = (state.current().clone(), state.shared().clone());
        let is_filling = |facts: &StreamFacts| {
            facts.bytes_max > 0 && facts.bytes >= facts.bytes_max / 100 * NEXT_FROM_PERCENT
        };
        if self.parts.streams.get(&current).is_some_and(is_filling) {
            self.make_part();
        }
        if shared != current && !self.parts.is_moving && !self.is_queued(&current) {
            self.parts.is_moving = true;
            let control = Box::new(self.control.clone());
            self.push(Effect::MoveShared { from: shared, to: current, control });
        }
    }

    fn make_part(&mut self) {
        let next = self.control.parts().next();
        if self.parts.making.is_none() && !self.is_queued(&next) {
            self.parts.making = Some(next.clone());
            self.push(Effect::MakePart(next));
        }
    }

    /// Whether an event about a part waits for its turn already.
    fn is_queued(&self, about: &PartId) -> bool {
        let is_about = |write: &ControlWrite| {
            let event = match write {
                ControlWrite::Own(event) => event.as_ref(),
                ControlWrite::Admin(_, operation) => &operation.event,
                ControlWrite::Enroll(..) => return false,
            };
            matches!(event, ControlEvent::Part { part, .. } if part == about)
        };
        self.control_queue.iter().chain(self.write_in_flight()).any(is_about)
    }

    /// The stream of the next part is there, or cannot be made.
    pub(super) fn part_made(&mut self, part: &PartId, made: Result<(), String>, now: Now) {
        self.parts.making = None;
        let asked = std::mem::take(&mut self.parts.asked);
        match made {
            Ok(()) => {
                self.parts.failed = None;
                if asked.is_empty() {
                    let event = ControlEvent::Part { part: part.clone(), stage: PartStage::Current };
                    self.queue_control(ControlWrite::Own(Box::new(event)), now);
                }
                for (call, operation) in asked {
                    self.queue_control(ControlWrite::Admin(call, operation), now);
                }
            }
            Err(why) => {
                let reason = Reason::new(ReasonCode::ControlUnavailable).told(&why);
                for (call, _) in asked {
                    self.operation_failed(call, &reason);
                }
                let text = format!(
                    "the next part of the audit stream, {part}, cannot be made: {why}; the server's `max_file_store` may be used \
                     up, or the accounts file not name the part (deploy/nats/README.md)"
                );
                self.part_failed(text, now);
            }
        }
    }

    /// What outlives a task was carried over, or not.
    pub(super) fn shared_moved(&mut self, to: PartId, moved: Result<(), String>, now: Now) {
        self.parts.is_moving = false;
        match moved {
            // What came to the old part after it was read the first time is there now too.
            Ok(()) if *self.control.parts().shared() == to => {
                self.parts.failed = None;
                self.begin_memories();
            }
            Ok(()) => {
                self.parts.failed = None;
                let event = ControlEvent::Part { part: to, stage: PartStage::Shared };
                self.queue_control(ControlWrite::Own(Box::new(event)), now);
            }
            Err(why) => {
                let text =
                    format!("the labels of agents that remember cannot be carried over to {to}: {why}");
                self.part_failed(text, now);
            }
        }
    }

    /// What outlives a task lives in another part: whatever was left behind meanwhile is brought along.
    pub(super) fn shared_is_now(&mut self, to: &PartId) {
        if !self.control_read {
            return;
        }
        let parts = self.control.parts();
        let before: Vec<PartId> =
            parts.live().filter(|part| *part != to && parts.takes(part)).cloned().collect();
        for from in before {
            let control = Box::new(self.control.clone());
            self.push(Effect::MoveShared { from, to: to.clone(), control });
        }
    }

    fn part_failed(&mut self, why: String, now: Now) {
        let is_known = self.parts.failed.as_ref().is_some_and(|(_, known)| *known == why);
        if !is_known {
            self.alarm(&why);
        }
        self.parts.failed = Some((now, why));
    }

    /// Whether the control stream says already what one of our own events would.
    pub(super) fn is_moot(&self, event: &ControlEvent) -> bool {
        let ControlEvent::Part { part, stage } = event else { return false };
        let parts = self.control.parts();
        match stage {
            PartStage::Current => parts.next() != *part,
            PartStage::Shared => parts.shared() == part || !parts.takes(part),
            PartStage::Sealed | PartStage::Archived(_) => false,
        }
    }

    /// An operator's wish about a part or a hold as a control event.
    pub(super) fn part_operation(&self, wanted: &AdminWanted, now: Now) -> Result<ControlEvent, Reason> {
        match wanted {
            AdminWanted::SealPart { part, although_open } => {
                self.check_unused(part, *although_open, now)?;
                Ok(ControlEvent::Part { part: part.clone(), stage: PartStage::Sealed })
            }
            AdminWanted::PartArchived { part, archived } => {
                let parts = self.control.parts();
                let known = parts.archived().get(part);
                if !parts.is_sealed(part) || known.is_some_and(|known| known != archived) {
                    let why = if known.is_some() {
                        "was put away before, as something else"
                    } else {
                        "is not sealed"
                    };
                    return Err(Reason::new(ReasonCode::AuditPartInUse).told(format_args!("{part} {why}")));
                }
                Ok(ControlEvent::Part { part: part.clone(), stage: PartStage::Archived(archived.clone()) })
            }
            AdminWanted::LegalHold { id, hold } => {
                let is_known = self.control.holds().contains_key(id);
                let fault = match hold {
                    None if !is_known => Some("there is no such hold"),
                    Some(_) if is_known => {
                        Some("a hold of this name is in force; lift it, or choose another name")
                    }
                    Some(hold) if hold.why.len() > HOLD_WHY_BYTES_MAX => Some("the reason is too long"),
                    _ => None,
                };
                match fault {
                    Some(why) => Err(Reason::new(ReasonCode::HoldRefused).told(format_args!("{id}: {why}"))),
                    None => Ok(ControlEvent::LegalHold { id: id.clone(), hold: hold.clone() }),
                }
            }
            _ => Ok(ControlEvent::Part { part: self.control.parts().next(), stage: PartStage::Current }),
        }
    }

    /// Nothing lives in a part, and nothing will.
    pub(super) fn check_unused(&self, part: &PartId, although_open: bool, now: Now) -> Result<(), Reason> {
        let in_use = |why: std::fmt::Arguments<'_>| {
            Err(Reason::new(ReasonCode::AuditPartInUse).told(format_args!("{part} {why}")))
        };
        let parts = self.control.parts();
        if parts.is_sealed(part) {
            return Ok(());
        }
        if !parts.takes(part) {
            return in_use(format_args!("is no part of this tenant"));
        }
        if part == parts.current() {
            return in_use(format_args!("is the part in use; `writ audit rotate` begins the next one"));
        }
        if part == parts.shared() {
            return in_use(format_args!(
                "still holds what agents remember; that moves by itself, in a moment"
            ));
        }
        if let Some(log) = self.open_logs(now).find(|_| !although_open) {
            return in_use(format_args!(
                "may lack records of {log}, which was never closed: start it once, so that it completes them, or ask with \
                 `--although-open`"
            ));
        }
        if !self.starting.is_empty() || self.pending.values().any(Pending::is_issue) {
            return in_use(format_args!("may be where a task is being started; ask again in a moment"));
        }
        // Of their tasks nothing is known here.
        let mut others = self.control.brokers().keys().filter(|broker| **broker != self.setup.broker);
        if let Some(other) = others.next().filter(|_| !although_open) {
            return in_use(format_args!(
                "may hold tasks that {other} has started; ask with `--although-open` once the last of them has ended"
            ));
        }
        let lives = |end: &Timestamp| end.after(SEALED_AFTER) > now.wall;
        // One that was revoked can do nothing any more: a part is sealed once every node knows what was before.
        let is_revoked = |entry: &TaskEntry| {
            let TaskEntry { capability, task, user, agent, started, .. } = entry;
            let codes = [
                ReasonCode::Revoked,
                ReasonCode::RevokedTask,
                ReasonCode::RevokedUser,
                ReasonCode::RevokedAgent,
            ];
            let checked = self.control.check_task(capability, task, user, agent, *started);
            checked.is_err_and(|reason| codes.contains(&reason.code()))
        };
        let living = self.tasks.values().filter(|entry| entry.domain.part == *part && !is_revoked(entry));
        let ends = living.map(|entry| entry.deadline);
        match ends.filter(lives).max() {
            Some(last) => {
                let from = last.after(SEALED_AFTER);
                in_use(format_args!(
                    "holds tasks that may still do something; it can be sealed from {from} on"
                ))
            }
            None => Ok(()),
        }
    }

    /// Logs that are open although nobody is there who writes them.
    fn open_logs(&self, now: Now) -> impl Iterator<Item = &LogId> {
        let is_written = move |log: &LogId| match &log.origin {
            Origin::Broker(broker) => {
                self.control.brokers().get(broker).is_some_and(|present| present.boot == log.boot)
            }
            Origin::Node(node) => {
                let boot = self.control.nodes().get(node).and_then(|entry| entry.boot.as_ref());
                boot == Some(&log.boot) && self.freshness.is_live(node, now)
            }
        };
        let open = self.logs.heads().map(SignedCheckpoint::checkpoint).filter(|head| !head.is_closed);
        open.map(|head| &head.log).filter(move |log| !is_written(log))
    }

    /// An operator wants the next part: its stream comes first.
    pub(super) fn rotate_when_made(&mut self, call: CallRef, operation: Box<Operation>, now: Now) {
        if self.is_queued(&self.control.parts().next()) {
            return self.queue_control(ControlWrite::Admin(call, operation), now);
        }
        self.parts.asked.push((call, operation));
        self.make_part();
    }
}
