//! What a recorder counts of the verdicts it records: plain numbers, for whoever shows them.

use std::collections::BTreeMap;

use crate::{
    reason::ReasonCode,
    record::{RecordBody, RecordKind, Verdicted},
};

/// Deepest chain that is counted by itself; deeper ones count as this.
const DEPTH_MAX: usize = 16;

/// Verdicts by class and first reason, and how deep the chains of calls were.
///
/// Its size is bounded by the closed list of reason codes: nothing of a request is a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    decisions: BTreeMap<(RecordKind, Option<ReasonCode>), u64>,
    depths: [u64; DEPTH_MAX + 1],
}

impl Counts {
    /// Counts a record that is being prepared.
    pub fn count(&mut self, body: &RecordBody) {
        let RecordBody::Verdict(verdicted) = body else { return };
        let Verdicted { decision, reasons, who, count, .. } = &**verdicted;
        let key = (RecordKind::from(*decision), reasons.first().map(|reason| reason.code));
        // One record may stand for many calls over quota.
        *self.decisions.entry(key).or_default() += (*count).max(1);
        // Only who holds a capability has a chain.
        if who.chain.is_some()
            && let Some(depth) = self.depths.get_mut(who.hops.len().min(DEPTH_MAX))
        {
            *depth += 1;
        }
    }

    /// Verdicts by class and first reason.
    pub fn decisions(&self) -> impl Iterator<Item = ((RecordKind, Option<ReasonCode>), u64)> {
        self.decisions.iter().map(|(key, count)| (*key, *count))
    }

    /// Calls by the depth of their chain, from 0.
    #[must_use]
    pub fn depths(&self) -> &[u64] {
        &self.depths
    }
}
