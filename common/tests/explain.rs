//! What is told about a decision is what was decided.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{World, keyset, policies, programs, random::Random};
use writ_common::{
    capability::Capability, policy::explain::Explanation, reason::ReasonCode, verdict::Decision,
};

/// Policies that load before the test is content.
const POLICIES: u64 = 150;
/// Calls on each.
const CALLS: usize = 12;

fn held() -> Vec<Capability> {
    let tokens = [support::issued(), support::delegated()];
    tokens.into_iter().map(|token| token.verify(&keyset(), support::NOW).unwrap()).collect()
}

#[derive(Default)]
struct Tally {
    allowed: u64,
    by_deny: u64,
    unmatched: u64,
    faults: u64,
    not_delegated: u64,
}

/// Whenever rules decide, the explanation names the same rules; where they cannot be evaluated, it says so; and what
/// the policy was asked for beside them is there or is not.
#[test]
fn an_explanation_agrees_with_the_decision() {
    let held = held();
    let mut tally = Tally::default();
    let (mut loaded, mut seed) = (0, 0);
    while loaded < POLICIES {
        seed += 1;
        let mut random = Random(seed);
        let rules = policies::rules(&mut random);
        let Ok(world) = World::under(&rules) else { continue };
        loaded += 1;
        for _ in 0..CALLS {
            let capability = random.one_of(&held);
            let call = programs::call(&mut random);
            let verdict = world.decide(&capability, &call);
            let told = world.explain(&capability, &call);
            let shown = || format!("seed {seed}\n{rules}\n{call:?}\n{verdict:?}\n{told:#?}");
            let codes: Vec<ReasonCode> =
                verdict.reasons().iter().map(writ_common::reason::Reason::code).collect();
            assert_eq!(told.decision == "allow", verdict.decision() == Decision::Allow, "{}", shown());
            if codes.contains(&ReasonCode::EngineError) {
                tally.faults += 1;
                assert!(told.fault.is_some() && told.rules.is_empty(), "{}", shown());
                continue;
            }
            assert_eq!(told.fault, None, "{}", shown());
            if told.demands.is_empty() && told.rules.is_empty() && !codes.contains(&ReasonCode::PolicyNoMatch)
            {
                // Refused before any rule was asked.
                assert!(verdict.rules().is_empty(), "{}", shown());
                continue;
            }
            let places: Vec<&String> = told.rules.iter().map(|fired| &fired.rule.place).collect();
            assert_eq!(places, verdict.rules().iter().collect::<Vec<_>>(), "{}", shown());
            assert_eq!(
                told.demands.iter().any(|demand| demand.proof.is_none()),
                codes.contains(&ReasonCode::DelegationNotAllowed),
                "{}",
                shown()
            );
            tally.not_delegated += u64::from(codes.contains(&ReasonCode::DelegationNotAllowed));
            tally.allowed += u64::from(verdict.decision() == Decision::Allow);
            if codes.contains(&ReasonCode::PolicyDenied) {
                tally.by_deny += 1;
                let nearest = told.nearest.as_ref().unwrap();
                assert_eq!(nearest.overruled_by.len(), told.rules.len(), "{}", shown());
            } else if codes == [ReasonCode::PolicyNoMatch] {
                tally.unmatched += 1;
                let nearest = told.nearest.as_ref().unwrap();
                assert!(!nearest.lacks.is_empty() && nearest.overruled_by.is_empty(), "{}", shown());
            }
            grounded(&told);
        }
    }
    for count in [tally.allowed, tally.by_deny, tally.unmatched, tally.faults, tally.not_delegated] {
        assert!(count > 20, "the test has to see every kind of answer: {count}");
    }
}

/// Every proof ends in facts somebody states.
fn grounded(told: &Explanation) {
    let mut todo: Vec<_> = told.rules.iter().flat_map(|fired| &fired.facts).collect();
    todo.extend(told.demands.iter().filter_map(|demand| demand.proof.as_ref()));
    while let Some(proof) = todo.pop() {
        assert!(!proof.source.is_empty() && !proof.fact.contains('?'), "{proof:?}");
        assert!(proof.rule.is_some() || proof.facts.is_empty(), "{proof:?}");
        todo.extend(&proof.facts);
    }
}
