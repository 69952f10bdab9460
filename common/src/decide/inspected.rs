//! Where inspectors come in: what a call must have passed before anybody is shown its content, and what rules say once
//! a result was looked at.

use std::collections::BTreeSet;

use super::{
    Evidence, FlowEvidence, call_facts, check_agents, check_binding, check_expiry, check_right, fired, flow,
    may_be_observed,
};
use crate::{
    capability::engine::World,
    datalog::Predicate,
    label::Label,
    policy::{Effect, PolicySet, RuleInfo},
    reason::{Reason, ReasonCode},
    request::{Principal, Request},
    time::Timestamp,
};

/// What rules say about a result, once it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultJudgement {
    /// What it carries beside what the decision said.
    pub label: Label,
    /// Why it is not released.
    pub withheld: Vec<Reason>,
}

/// Whether a call passes what comes before the rules: content is shown to inspectors only of calls that do. Nothing
/// else follows from it; [`super::decide`] checks all of it again.
#[must_use]
pub fn passes_checks(request: &Request, evidence: &Evidence<'_>, policy: &PolicySet, now: Timestamp) -> bool {
    let (Principal::Agent(caller), Some(capability)) = (&request.principal, evidence.capability) else {
        return false;
    };
    let environment = &request.environment;
    let may_lack = !policy.observed_in(&request.resource, caller, now).is_empty();
    check_binding(capability, &environment.tenant, environment.task.as_ref(), caller).is_ok()
        && check_expiry(capability, now).is_ok()
        && evidence.control.check_readable().is_ok()
        && evidence.control.check_revocation(capability).is_ok()
        && check_agents(capability, evidence.control, policy).is_ok()
        && (may_lack || check_right(capability, &request.right()).is_ok())
        && call_facts(request, capability, evidence, policy, now).is_ok()
}

/// Asks the rules once more, with what was found in the result. Deny rules that did not hold before withhold it, and
/// what is derived of `result_tag` and `result_integrity` raises it.
///
/// # Errors
/// Why the rules could not be asked; the result must not be released then.
pub fn judge_result(
    request: &Request,
    evidence: &Evidence<'_>,
    findings: &[Predicate],
    policy: &PolicySet,
    now: Timestamp,
) -> Result<ResultJudgement, Reason> {
    let Principal::Agent(caller) = &request.principal else { return Err(ReasonCode::TokenMissing.into()) };
    let capability = evidence.capability.ok_or(ReasonCode::TokenMissing)?;
    let first = |refused: super::Refused| -> Reason {
        refused.reasons.into_iter().next().unwrap_or_else(|| ReasonCode::EngineError.into())
    };
    let facts = |findings: &[Predicate]| {
        let evidence = Evidence { flow: FlowEvidence { findings, ..evidence.flow }, ..*evidence };
        call_facts(request, capability, &evidence, policy, now)
            .map(|(facts, _)| facts.joined())
            .map_err(first)
    };
    let (before, after) = (facts(&[])?, facts(findings)?);
    let mut before = World::run(Some(capability), &before, &policy.program)?;
    let mut after = World::run(Some(capability), &after, &policy.program)?;
    let held: BTreeSet<String> =
        fired(&mut before, policy, Effect::Deny).map_err(first)?.into_iter().map(RuleInfo::place).collect();
    let new = fired(&mut after, policy, Effect::Deny).map_err(first)?.into_iter();
    let mut withheld: Vec<Reason> = new
        .filter(|rule| !held.contains(&rule.place()))
        .map(|rule| {
            let reason = Reason::new(ReasonCode::PolicyDenied);
            let reason = reason.noted(format_args!("about the result, {}: {}", rule.place(), rule.text));
            reason.told(rule.message.as_deref().unwrap_or("a rule withholds the result for what is in it"))
        })
        .collect();
    let observed = policy.observed_in(&request.resource, caller, now);
    if !withheld.is_empty() && may_be_observed(&mut after, &observed).map_err(first)? {
        withheld.clear();
    }
    Ok(ResultJudgement { label: flow::added(&mut after)?, withheld })
}
