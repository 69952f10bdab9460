//! Threats of the catalogue that pure code answers, each by its id; those about the bytes of a capability are in
//! `capability.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{BROKER, Call, PLANNER, World, grant, key, keyset, right};
use writ_common::{
    capability::{Capability, Narrowing, UnverifiedCapability},
    datalog::{Binary, Body, Check, CheckKind, Expression, Predicate, Term},
    json::Value,
    label::Label,
    reason::ReasonCode,
    request::Arguments,
    time::Timestamp,
    verdict::Decision,
};

fn verified(token: UnverifiedCapability) -> Capability {
    token.verify(&keyset(), support::NOW).unwrap()
}

fn call(right_text: &str, arguments: &str) -> Call {
    Call {
        right: right(right_text),
        arguments: Arguments::new(Value::parse(arguments).unwrap()),
        label: Label::bottom(),
        now: support::NOW,
    }
}

/// P11: a check that cannot be evaluated on one of its matches is an error in every run, whichever match the
/// engine happens to meet first.
#[test]
fn p11_a_check_that_cannot_be_evaluated_never_depends_on_order() {
    // "Some argument is below 5": true of /limit, meaningless for /table.
    let body = Body {
        predicates: vec![Predicate::new("arg", [Term::var("p"), Term::var("v")])],
        expressions: vec![Expression::binary(Binary::LessThan, Term::var("v"), Term::Integer(5))],
    };
    let check = Check { kind: CheckKind::One, alternatives: vec![body] };
    let issued = grant().issue(&key(BROKER), &[50; 32]).unwrap();
    let narrowed = issued.narrow(&key(PLANNER), &Narrowing::new().check(check), &[51; 32]).unwrap();
    let (world, capability) = (World::new(), verified(narrowed));
    for _ in 0..64 {
        let verdict = world.decide(&capability, &call("tool.crm:read", r#"{"limit":0,"table":"x"}"#));
        assert_eq!(verdict.reasons()[0].code(), ReasonCode::EngineError);
        let verdict = world.decide(&capability, &call("tool.crm:read", r#"{"limit":0}"#));
        assert_eq!(verdict.decision(), Decision::Allow);
    }
}

/// A condition on the time that only the engine sees: not in the form whose end the chain itself knows.
fn not_after(end: Timestamp) -> Check {
    let body = Body {
        predicates: vec![Predicate::new("time", [Term::var("t")])],
        expressions: vec![Expression::binary(Binary::GreaterThan, Term::Date(end.as_secs()), Term::var("t"))],
    };
    Check { kind: CheckKind::One, alternatives: vec![body] }
}

fn ends(end: Timestamp) -> Capability {
    let issued = grant().issue(&key(BROKER), &[50; 32]).unwrap();
    verified(issued.narrow(&key(PLANNER), &Narrowing::new().check(not_after(end)), &[51; 32]).unwrap())
}

/// Without a time every condition on it would fail, with two an expired one would hold.
#[test]
fn t13_t14_a_request_has_exactly_one_time() {
    let (world, call) = (World::new(), call("tool.crm:read", "{}"));
    let later = Timestamp::from_secs(support::NOW.as_secs() + 10);
    assert_eq!(world.decide(&ends(later), &call).decision(), Decision::Allow);
    let earlier = Timestamp::from_secs(support::NOW.as_secs() - 10);
    let verdict = world.decide(&ends(earlier), &call);
    assert_eq!(verdict.decision(), Decision::Deny);
    assert_eq!(verdict.reasons()[0].code(), ReasonCode::TokenCheckFailed);
}

#[test]
fn t12_an_expired_capability_is_refused_as_that() {
    let (world, mut call) = (World::new(), call("tool.crm:read", "{}"));
    let capability = verified(grant().issue(&key(BROKER), &[50; 32]).unwrap());
    assert_eq!(world.decide(&capability, &call).decision(), Decision::Allow);
    call.now = capability.expires();
    assert_eq!(world.decide(&capability, &call).reasons()[0].code(), ReasonCode::TokenExpired);
}

#[test]
fn t11_a_right_that_was_not_granted_is_named_as_missing() {
    let world = World::new();
    let capability = verified(grant().issue(&key(BROKER), &[50; 32]).unwrap());
    let verdict = world.decide(&capability, &call("tool.crm:write", "{}"));
    assert_eq!(verdict.reasons()[0].code(), ReasonCode::RightMissing);
}
