//! What people let pass: used up by one claim before the intent, and only by the call it was said of.
//!
//! One claim is enough. It names the call, whose intent the stream lets through once, so that the same call may go on
//! at any node and no other call ever can. What was used for a call that then did not run stays used.

use std::collections::BTreeSet;

use writ_bus::{Fence, StoreError, Stored};
use writ_common::{
    approval::ClaimState,
    digest::Digest,
    ids::ApprovalId,
    reason::{Reason, ReasonCode},
    record::Basis,
    subjects::Subject,
    time::{Millis, Now},
    verdict::Verdict,
};

use super::{CallRef, Effect, Guard, Pending};

/// An allowed call while what people let pass is used up for it.
pub(super) struct Acting {
    verdict: Verdict,
    basis: Basis,
    act: ApprovalId,
}

impl Guard {
    /// Uses up what people let pass, one after the other; then the call goes on.
    pub(super) fn use_acts(
        &mut self,
        call: CallRef,
        verdict: Verdict,
        acts: &BTreeSet<ApprovalId>,
        basis: Basis,
        now: Now,
    ) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let call_id = known.call_id;
        let next = acts.iter().find(|id| !self.acts.is_claimed_by(id, &call_id, now.wall));
        let Some(act) = next.cloned() else {
            let verdict = verdict.acted(&self.acts, &call_id, now.wall);
            return self.go_on(call, verdict, basis, now);
        };
        let subject = Subject::ApprovalClaim { part: known.task_part().clone(), approval: act.clone() };
        let claim = self.claim_of(act.clone(), call_id, ClaimState::Used, now);
        let mut store = self.fenced(&claim, &subject, 0);
        if writ_common::red::off("F08-claim") {
            store.fence = Fence::None;
        }
        let ticket = self.ticket(Pending::ActUsed(call, Box::new(Acting { verdict, basis, act })));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// What the stream said about the use of an act.
    pub(super) fn act_used(
        &mut self,
        call: CallRef,
        acting: Acting,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let Acting { verdict, basis, act } = acting;
        let refused = match result {
            Ok(stored) => {
                let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else {
                    return;
                };
                self.streams.acknowledged(known.task_part(), stored.sequence);
                self.acts.claimed(act, known.call_id, now.wall);
                return self.go_on(call, verdict, basis, now);
            }
            Err(StoreError::Fenced) => {
                self.acts.claimed(act, Digest::plain(b"another call"), now.wall);
                Reason::new(ReasonCode::ApprovalConsumed).told("another call used what a person let pass")
            }
            Err(error) => Reason::new(ReasonCode::ApprovalUnavailable).noted(error),
        };
        self.deny(call, &Verdict::deny(refused, verdict.policy_revision()), basis, now);
    }
}
