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
    reason::{Reason, ReasonCode},
    request::Arguments,
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
        assert_eq!(verdict.reasons().iter().map(Reason::code).collect::<Vec<_>>(), [ReasonCode::EngineError]);
        let verdict = world.decide(&capability, &call("tool.crm:read", r#"{"limit":0}"#));
        assert_eq!(verdict.decision(), Decision::Allow);
    }
}
