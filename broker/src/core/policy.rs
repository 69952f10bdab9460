//! Policies: which one is in force, and what may follow it.
//!
//! The control stream decides. The broker's own folder only begins an empty stream: what an operator put in force
//! stays until an operator puts something else there, whatever is restarted in between.

use std::sync::Arc;

use writ_common::{
    control::ControlEvent,
    diagnostic::{Diagnostics, Severity},
    ids::{DomainId, FlowDomain},
    part::PartStage,
    policy::{Memory, PolicyBundle, PolicyRevision, PolicySet},
    reason::{Reason, ReasonCode},
    time::{Millis, Now},
    verdict::Decision,
    wire::AdminWanted,
};

use super::{Broker, Effect, admin::Operation};

/// Most findings an operator is told; the command line has named all of them before.
const FINDINGS_TOLD_MAX: usize = 16;

impl Broker {
    /// The policy that begins the stream, if it has none yet, or none that loads.
    pub(super) fn first_policy(&mut self) -> Option<ControlEvent> {
        let configured = self.setup.policy.revision();
        let decides_by = self.policy.as_ref().map(|policy| policy.revision());
        if let Some(in_force) = self.control.activations().back()
            && let Some(decides_by) = decides_by
        {
            if decides_by != in_force.revision {
                let text = format!(
                    "policy {} is in force and does not load in this version; this broker decides by {decides_by}",
                    in_force.revision
                );
                self.alarm(text);
            } else if in_force.revision != configured {
                let text = format!(
                    "policy {} stays in force, put there by {} at {}; the folder of this broker holds {configured}, \
                     which counts only once `writ policy activate <folder>` puts it there",
                    in_force.revision, in_force.by, in_force.at
                );
                self.alarm(text);
            }
            return None;
        }
        match PolicySet::load(&self.setup.policy) {
            Ok(_) => Some(ControlEvent::Policy(self.setup.policy.clone())),
            Err(findings) => {
                self.alarm(format!("the configured policy is broken and not activated: {findings}"));
                None
            }
        }
    }

    /// Takes a policy that came over the control stream.
    pub(super) fn applied(&mut self, event: &ControlEvent) {
        if let ControlEvent::Part { part, stage: PartStage::Shared } = event {
            return self.shared_is_now(part);
        }
        let ControlEvent::Policy(bundle) = event else { return };
        let loaded = PolicySet::load(bundle).map_err(|findings| findings.to_string());
        let loaded = loaded.and_then(|(policy, _)| {
            let delegations = writ_common::decide::delegations(&policy);
            Ok((policy, delegations.map_err(|reason| reason.to_string())?))
        });
        match loaded {
            Ok((policy, delegations)) => {
                self.policy = Some(Arc::new(policy));
                self.delegations = delegations;
                self.begin_memories();
            }
            Err(why) => self.alarm(format!("the policy of the control stream is broken: {why}")),
        }
    }

    /// Gives every agent that remembers from one task to the next its first label; one that has a label keeps it.
    pub(super) fn begin_memories(&mut self) {
        let Some(policy) = self.policy.clone() else { return };
        // While labels are carried over, one that begins could be left behind.
        if self.control.parts().shared() != self.control.parts().current() {
            return;
        }
        let shared = policy.inventory().agents.iter().filter(|(_, entry)| entry.memory == Memory::Shared);
        for (agent, _) in shared {
            let part = self.control.parts().shared().clone();
            let domain = FlowDomain { part, domain: DomainId::of_agent(agent) };
            let store = self.first_label(&domain);
            let ticket = self.fresh_ticket();
            self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        }
    }

    /// Whether an operator's policy may become the one in force; false if it is that already.
    ///
    /// # Errors
    /// `policy.invalid` for every finding, `policy.moved`, `policy.unknown`.
    pub(super) fn may_become_policy(
        &self,
        bundle: &PolicyBundle,
        expect: Option<PolicyRevision>,
        is_back: bool,
        now: Now,
    ) -> Result<bool, Vec<Reason>> {
        self.check_expected(expect).map_err(|reason| vec![reason])?;
        let revision = bundle.revision();
        if is_back && !self.control.activations().iter().any(|one| one.revision == revision) {
            let reason = Reason::new(ReasonCode::PolicyUnknown);
            return Err(vec![reason.told(format_args!("{revision} was never in force"))]);
        }
        let (policy, _) = PolicySet::load(bundle).map_err(|findings| told(&findings))?;
        let too_long = policy.check_observed(now.wall);
        if too_long.has_errors() {
            return Err(told(&too_long));
        }
        self.check_way_back(&policy, now).map_err(|reason| vec![reason])?;
        // With another change on its way, the one in force now is not the one that will be.
        let is_settled = self.control_queue.is_empty() && self.control_in_flight.is_none();
        let in_force = self.control.activations().back().map(|one| one.revision);
        Ok(!is_settled || in_force != Some(revision))
    }

    /// Whether a policy can be asked beside the one in force: it has to load, no more.
    ///
    /// # Errors
    /// `policy.invalid` for every finding.
    pub(super) fn may_be_shadow(&self, bundle: &PolicyBundle) -> Result<(), Vec<Reason>> {
        PolicySet::load(bundle).map(drop).map_err(|findings| told(&findings))
    }

    /// Under every policy some operator must be able to put another in force, or nobody ever could again.
    fn check_way_back(&self, policy: &PolicySet, now: Now) -> Result<(), Reason> {
        let wanted = AdminWanted::ActivatePolicy { bundle: PolicyBundle::default(), expect: None };
        let mut operators = self.setup.operators.keys();
        let has_one = operators.any(|operator| {
            let (request, _) = self.describe(operator, &wanted);
            self.judge_operator(&request, policy, now).decision() == Decision::Allow
        });
        if has_one {
            return Ok(());
        }
        Err(Reason::new(ReasonCode::PolicyInvalid)
            .told("under this policy no operator may put another one in force (action `activate`)"))
    }

    fn check_expected(&self, expect: Option<PolicyRevision>) -> Result<(), Reason> {
        let in_force = self.control.activations().back();
        match (expect, in_force) {
            (None, _) => Ok(()),
            (Some(expected), Some(in_force)) if in_force.revision == expected => Ok(()),
            (Some(_), _) if writ_common::red::off("P13") => Ok(()),
            (Some(expected), None) => Err(Reason::new(ReasonCode::PolicyMoved)
                .told(format_args!("{expected} is expected and none is in force"))),
            (Some(expected), Some(in_force)) => Err(Reason::new(ReasonCode::PolicyMoved).told(format_args!(
                "{expected} is expected, and {} is in force since {}, put there by {}",
                in_force.revision, in_force.at, in_force.by
            ))),
        }
    }

    /// Whether what an operator asked for may still be written when its turn comes.
    pub(super) fn check_turn(&self, operation: &Operation, now: Now) -> Result<(), Reason> {
        match &operation.wanted {
            AdminWanted::ActivatePolicy { expect, .. } | AdminWanted::RollbackPolicy { expect, .. } => {
                self.check_expected(*expect)
            }
            AdminWanted::SealPart { part, although_open } => self.check_unused(part, *although_open, now),
            _ => Ok(()),
        }
    }
}

fn told(findings: &Diagnostics) -> Vec<Reason> {
    let errors = findings.0.iter().filter(|finding| finding.severity == Severity::Error);
    let errors = errors.take(FINDINGS_TOLD_MAX);
    errors.map(|finding| Reason::new(ReasonCode::PolicyInvalid).told(finding.in_one_line())).collect()
}
