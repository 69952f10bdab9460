//! Sessions belong to the credential that opened them (threat M07; MCP security best practices, session hijacking).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use writ_common::digest::Digest;

/// Most sessions that are remembered. A session that was forgotten is opened anew by its client.
const SESSIONS_MAX: usize = 10_000;

/// Whose a session is, by its id.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<(BTreeMap<String, Digest>, VecDeque<String>)>);

impl Sessions {
    /// Notes a session that was opened.
    pub(crate) fn opened(&self, session: &str, credential: Digest) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (owners, order) = &mut *guard;
        if owners.insert(session.to_owned(), credential).is_none() {
            order.push_back(session.to_owned());
        }
        while order.len() > SESSIONS_MAX {
            if let Some(first) = order.pop_front() {
                owners.remove(&first);
            }
        }
    }

    /// Whether a session is this credential's; one that nobody knows is nobody's.
    pub(crate) fn is_of(&self, session: &str, credential: Digest) -> bool {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.get(session).is_some_and(|owner| *owner == credential) || writ_common::red::off("M07")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m07_a_session_is_its_openers() {
        let (sessions, alice, bob) = (Sessions::default(), Digest::of("a", &[]), Digest::of("b", &[]));
        sessions.opened("s-1", alice);
        assert!(sessions.is_of("s-1", alice));
        assert!(!sessions.is_of("s-1", bob) && !sessions.is_of("s-2", alice));
    }
}
