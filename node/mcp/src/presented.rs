//! Capabilities that come with a call: each has to extend that of the connection, and be held by an agent whose key
//! is here.

use std::collections::{BTreeMap, VecDeque};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use writ_common::{
    capability::{CAPABILITY_BYTES_MAX, UnverifiedCapability},
    digest::Digest,
    reason::{Reason, ReasonCode},
};
use writ_sdk::Task;

/// Most capabilities whose tasks are kept ready.
const KNOWN_MAX: usize = 1_024;
/// How many of its own earlier capabilities a task's descendants may still be made of. One is replaced when two thirds
/// of its life are over, so that two are ever alive at once.
const EARLIER_MAX: usize = 4;

/// Reads a capability as it comes in a header or in `_meta`.
///
/// # Errors
/// `token.too_large` or another reason of the `token.*` group.
pub(crate) fn read(text: &str) -> Result<UnverifiedCapability, Reason> {
    // Four characters for three bytes.
    if text.len() > CAPABILITY_BYTES_MAX / 3 * 4 + 4 {
        return Err(ReasonCode::TokenTooLarge.into());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| {
        Reason::new(ReasonCode::TokenFormat).told("a capability is sent as base64url (RFC 4648, section 5)")
    })?;
    UnverifiedCapability::parse(&bytes)
}

/// A capability as it is sent in a header or in `_meta`.
pub(crate) fn write(capability: &UnverifiedCapability) -> String {
    URL_SAFE_NO_PAD.encode(capability.as_bytes())
}

/// A task with the chains its capability has had.
#[derive(Clone)]
pub(crate) struct Standing {
    pub(crate) task: Task,
    chains: VecDeque<Digest>,
}

impl Standing {
    pub(crate) fn new(task: Task) -> Self {
        Self { task, chains: VecDeque::new() }
    }

    /// Remembers what the task's capability is now.
    pub(crate) fn is_at(&mut self, chain: Digest) {
        if self.chains.back() != Some(&chain) {
            self.chains.push_back(chain);
            if self.chains.len() > EARLIER_MAX {
                self.chains.pop_front();
            }
        }
    }

    /// A capability that comes with a call has to be made of this task's own: appended to it, whatever it was renewed
    /// to since. Another one of the same holder could be wider.
    ///
    /// # Errors
    /// `session.mismatch`.
    pub(crate) fn check_extends(&self, presented: &UnverifiedCapability) -> Result<(), Reason> {
        let extends = presented.chain_ids().iter().any(|id| self.chains.contains(id));
        if extends || writ_common::red::off("M07-capability") {
            return Ok(());
        }
        Err(Reason::new(ReasonCode::SessionMismatch)
            .told("the capability sent along does not extend that of the connection"))
    }
}

/// Tasks by the chain of the capability they were presented with.
#[derive(Default)]
pub(crate) struct Known {
    tasks: BTreeMap<Digest, Standing>,
    order: VecDeque<Digest>,
}

impl Known {
    pub(crate) fn get(&self, chain: &Digest) -> Option<Standing> {
        self.tasks.get(chain).cloned()
    }

    pub(crate) fn put(&mut self, chain: Digest, standing: Standing) {
        if self.tasks.insert(chain, standing).is_none() {
            self.order.push_back(chain);
        }
        while self.order.len() > KNOWN_MAX {
            if let Some(first) = self.order.pop_front() {
                self.tasks.remove(&first);
            }
        }
    }
}
