//! Calls that wait for people, so that the same call made again is the same call, and is made once.

use std::collections::BTreeMap;

use tokio::sync::watch;
use writ_common::{
    capability::Right,
    digest::Digest,
    ids::{AgentId, ApprovalId},
    time::Timestamp,
};
use writ_sdk::Held;

use crate::gateway::Outcome;

/// Most calls that are kept for later. What is given up is not lost: the approval stands, and the same call made
/// again is held anew.
const HELD_MAX: usize = 1_024;

/// What makes two calls the same one for whoever waits: who calls what, with which arguments, under what it brought.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeldKey {
    /// The capabilities that came along, as they were written.
    pub(crate) presented: Vec<Digest>,
    pub(crate) agent: AgentId,
    pub(crate) right: Right,
    /// As canonical JSON.
    pub(crate) arguments: String,
}

/// What a call that waited came to, for those who made the same one meanwhile.
pub(crate) type News = watch::Receiver<Option<Outcome>>;

enum Slot {
    /// Put aside.
    Waiting(Box<Held>),
    /// Somebody is asking whether it may go on, or making it.
    Running(ApprovalId, News),
}

/// How a call stands that may have been held before.
pub(crate) enum Stage {
    /// Nobody has made it, or it is over.
    Fresh,
    /// It was held: whoever gets this goes on with it, and says what it came to.
    Again(Box<Held>, watch::Sender<Option<Outcome>>),
    /// Somebody goes on with it right now.
    Elsewhere(News),
}

/// Calls that wait.
#[derive(Default)]
pub(crate) struct HeldCalls(BTreeMap<HeldKey, Slot>);

impl HeldCalls {
    /// Takes a call up, or says who has.
    pub(crate) fn take(&mut self, key: &HeldKey, now: Timestamp) -> Stage {
        match self.0.remove(key) {
            None => Stage::Fresh,
            Some(Slot::Waiting(held)) if held.expires <= now => Stage::Fresh,
            Some(Slot::Waiting(held)) => {
                let news = self.run(key, &held);
                Stage::Again(held, news)
            }
            Some(Slot::Running(approval, news)) => {
                // Whoever had it is gone without a word: it is nobody's.
                if news.has_changed().is_err() && news.borrow().is_none() {
                    return Stage::Fresh;
                }
                self.0.insert(key.clone(), Slot::Running(approval, news.clone()));
                Stage::Elsewhere(news)
            }
        }
    }

    /// Notes that somebody goes on with a call; whoever makes it meanwhile hears by what is returned what it came to.
    pub(crate) fn run(&mut self, key: &HeldKey, held: &Held) -> watch::Sender<Option<Outcome>> {
        let (sender, news) = watch::channel(None);
        self.0.insert(key.clone(), Slot::Running(held.approval.clone(), news));
        sender
    }

    /// Whether a call with this approval is known under this key.
    pub(crate) fn has(&self, key: &HeldKey, approval: &ApprovalId, now: Timestamp) -> bool {
        match self.0.get(key) {
            Some(Slot::Waiting(held)) => held.approval == *approval && now < held.expires,
            Some(Slot::Running(running, _)) => running == approval,
            None => false,
        }
    }

    /// Puts a call aside.
    pub(crate) fn put(&mut self, key: HeldKey, held: Box<Held>, now: Timestamp) {
        if self.0.len() >= HELD_MAX {
            self.0.retain(|_, slot| !matches!(slot, Slot::Waiting(held) if held.expires <= now));
        }
        if self.0.len() >= HELD_MAX {
            let waiting = self.0.iter().filter_map(|(key, slot)| match slot {
                Slot::Waiting(held) => Some((held.expires, key)),
                Slot::Running(..) => None,
            });
            if let Some(first) = waiting.min().map(|(_, key)| key.clone()) {
                self.0.remove(&first);
            }
        }
        self.0.insert(key, Slot::Waiting(held));
    }

    /// It is over.
    pub(crate) fn remove(&mut self, key: &HeldKey) {
        self.0.remove(key);
    }
}
