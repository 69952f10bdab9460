//! Results that are kept for a while, so that a caller who lost the answer can fetch it instead of calling again.

use std::collections::{BTreeMap, VecDeque};

use writ_common::{
    digest::Digest,
    ids::TaskId,
    keys::PublicKey,
    record::{DecisionId, OutcomeStatus},
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
            kept.bytes = bytes;
            self.bytes += bytes;
        }
        self.shrink();
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
