//! Results that are kept for a while, so that a caller who lost the answer can fetch it instead of calling again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use writ_common::{
    capability::Capability,
    digest::Digest,
    ids::{FlowDomain, TaskId},
    keys::PublicKey,
    label::{Label, LabelOrigin},
    record::{DecisionId, OutcomeStatus, What},
    recorder::Prepared,
    wire::CallReply,
};

/// Most bytes of results kept.
const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most calls remembered.
const KEPT_CALLS_MAX: usize = 20_000;

/// What is known of a call that was allowed here.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) holder: PublicKey,
    pub(super) task: TaskId,
    pub(super) decision: DecisionId,
    /// How it ended, if it has.
    pub(super) status: Option<OutcomeStatus>,
    /// The answer, if it is still here.
    pub(super) reply: Option<CallReply>,
    pub(super) bytes: usize,
    /// The result, if its label could not be raised yet.
    pub(super) withheld: Option<Box<Withheld>>,
}

/// A result that is kept back.
#[derive(Clone, Debug)]
pub(super) struct Withheld {
    pub(super) text: String,
    pub(super) label: Label,
    /// The domain whose label has to be raised by it.
    pub(super) domain: FlowDomain,
    pub(super) origin: LabelOrigin,
    /// The record and the call a receipt is about.
    pub(super) intent: Box<Prepared>,
    pub(super) what: What,
    /// Whom it is for.
    pub(super) capability: Arc<Capability>,
    pub(super) manifest: Vec<Digest>,
}

#[derive(Debug, Default)]
pub(super) struct KeptResults {
    calls: BTreeMap<Digest, Kept>,
    order: VecDeque<Digest>,
    bytes: usize,
}

impl KeptResults {
    pub(super) fn get(&self, call_id: &Digest) -> Option<&Kept> {
        self.calls.get(call_id)
    }

    /// Remembers that a call was let through.
    pub(super) fn begin(&mut self, call_id: Digest, kept: Kept) {
        if self.calls.insert(call_id, kept).is_none() {
            self.order.push_back(call_id);
        }
        self.shrink();
    }

    /// Forgets a call that was not let through after all.
    pub(super) fn forget(&mut self, call_id: &Digest) {
        if let Some(kept) = self.calls.remove(call_id) {
            self.bytes -= kept.bytes;
            self.order.retain(|id| id != call_id);
        }
    }

    /// Keeps how a call ended.
    pub(super) fn finish(&mut self, call_id: &Digest, status: OutcomeStatus, reply: CallReply, bytes: usize) {
        if let Some(kept) = self.calls.get_mut(call_id) {
            kept.status = Some(status);
            kept.reply = Some(reply);
            kept.bytes += bytes;
            self.bytes += bytes;
        }
        self.shrink();
    }

    /// Keeps a result back.
    pub(super) fn withhold(&mut self, call_id: &Digest, withheld: Withheld) {
        if let Some(kept) = self.calls.get_mut(call_id) {
            let bytes = withheld.text.len();
            kept.withheld = Some(Box::new(withheld));
            kept.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// A result that is kept back.
    pub(super) fn withheld(&self, call_id: &Digest) -> Option<&Withheld> {
        self.calls.get(call_id)?.withheld.as_deref()
    }

    /// Takes a result that was kept back, to hand it out.
    pub(super) fn take_withheld(&mut self, call_id: &Digest) -> Option<Withheld> {
        let kept = self.calls.get_mut(call_id)?;
        let withheld = kept.withheld.take()?;
        kept.bytes -= withheld.text.len();
        self.bytes -= withheld.text.len();
        Some(*withheld)
    }

    fn shrink(&mut self) {
        while self.bytes > KEPT_BYTES_MAX || self.order.len() > KEPT_CALLS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(kept) = self.calls.remove(&oldest) {
                self.bytes -= kept.bytes;
            }
        }
    }
}
