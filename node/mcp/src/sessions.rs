//! Sessions belong to the credential that opened them (threat M07; MCP security best practices, session hijacking).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use writ_common::digest::Digest;

/// Most sessions of one owner; the oldest is closed for one more.
const PER_OWNER_MAX: usize = 128;

/// Whose a session is, by its id.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Owned>);

#[derive(Default)]
struct Owned {
    owners: BTreeMap<String, Digest>,
    by_owner: BTreeMap<Digest, VecDeque<String>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a session that was opened; returns one of the same owner's that has to be closed for it.
    pub(crate) fn opened(&self, session: &str, owner: Digest) -> Option<String> {
        let mut owned = self.lock();
        if owned.owners.insert(session.to_owned(), owner).is_some() {
            return None;
        }
        let own = owned.by_owner.entry(owner).or_default();
        own.push_back(session.to_owned());
        let oldest = if own.len() > PER_OWNER_MAX { own.pop_front() } else { None };
        if let Some(oldest) = &oldest {
            owned.owners.remove(oldest);
        }
        oldest
    }

    /// Forgets a session that was closed.
    pub(crate) fn closed(&self, session: &str) {
        let mut owned = self.lock();
        let Some(owner) = owned.owners.remove(session) else { return };
        if let Some(own) = owned.by_owner.get_mut(&owner) {
            own.retain(|one| one != session);
            if own.is_empty() {
                owned.by_owner.remove(&owner);
            }
        }
    }

    /// Whether a session is this owner's; one that nobody knows is nobody's.
    pub(crate) fn is_of(&self, session: &str, owner: Digest) -> bool {
        self.lock().owners.get(session).is_some_and(|known| *known == owner) || writ_common::red::off("M07")
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
        sessions.closed("s-1");
        assert!(!sessions.is_of("s-1", alice));
    }

    #[test]
    fn one_owner_pushes_out_nobody_elses_sessions() {
        let (sessions, alice, bob) = (Sessions::default(), Digest::of("a", &[]), Digest::of("b", &[]));
        sessions.opened("bobs", bob);
        for number in 0..PER_OWNER_MAX {
            assert_eq!(sessions.opened(&format!("s-{number}"), alice), None);
        }
        assert_eq!(sessions.opened("one more", alice).as_deref(), Some("s-0"));
        assert!(sessions.is_of("bobs", bob) && sessions.is_of("one more", alice));
    }
}
