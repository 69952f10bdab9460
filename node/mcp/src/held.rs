//! Calls that wait for people, so that the same call made again is the same call.

use std::collections::BTreeMap;

use writ_common::{
    capability::Right,
    ids::{AgentId, ApprovalId},
    time::Timestamp,
};
use writ_sdk::Held;

/// Most calls that are kept for later. What is given up is not lost: the approval stands, and the same call made
/// again is held anew.
const HELD_MAX: usize = 1_024;

/// What makes two calls the same one for whoever waits: who calls what, with which arguments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeldKey {
    pub(crate) agent: AgentId,
    pub(crate) right: Right,
    /// As canonical JSON.
    pub(crate) arguments: String,
}

/// Calls that wait.
#[derive(Debug, Default)]
pub(crate) struct HeldCalls(BTreeMap<HeldKey, Held>);

impl HeldCalls {
    /// Takes a call out to make it again.
    pub(crate) fn take(&mut self, key: &HeldKey, now: Timestamp) -> Option<Held> {
        self.0.remove(key).filter(|held| now < held.expires)
    }

    /// Whether a call with this approval waits under this key.
    pub(crate) fn has(&self, key: &HeldKey, approval: &ApprovalId) -> bool {
        self.0.get(key).is_some_and(|held| held.approval == *approval)
    }

    /// Puts a call aside.
    pub(crate) fn put(&mut self, key: HeldKey, held: Held, now: Timestamp) {
        if self.0.len() >= HELD_MAX {
            self.0.retain(|_, held| now < held.expires);
        }
        if self.0.len() >= HELD_MAX {
            let first = self.0.iter().min_by_key(|(_, held)| held.expires).map(|(key, _)| key.clone());
            self.0.remove(&first.unwrap_or_else(|| key.clone()));
        }
        self.0.insert(key, held);
    }
}
