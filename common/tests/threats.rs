//! Threats of the catalogue that pure code answers, each by its id; those about the bytes of a capability are in
//! `capability.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{
    BROKER, Call, PLANNER, World, agent, append, block, grant, issued, key, keyset, keyset_document, right,
    verify,
};
use writ_common::{
    capability::{Capability, Narrowing, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    datalog::{Binary, Body, Check, CheckKind, Expression, Predicate, Term},
    digest::Digest,
    ids::{Resource, TenantId},
    json::Value,
    label::Label,
    reason::ReasonCode,
    request::Arguments,
    signed::Signed,
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

/// P10: `"1" != 1` is true in the lenient comparison, which neither a policy nor a capability may use.
#[test]
fn p10_a_lenient_comparison_is_refused_in_policies_and_capabilities() {
    let Err(findings) = World::under("allow if resource($r), $r == \"tool.crm\";\n") else {
        panic!("`==` was taken");
    };
    let said = findings.to_string();
    assert!(said.contains("base.datalog:1:") && said.contains("write `===`"), "{said}");
    for check in ["check if resource($r), $r == \"tool.crm\";", "check if resource($r), $r != 1;"] {
        let bytes = append(&issued(), PLANNER, block(check));
        assert_eq!(verify(&bytes).unwrap_err(), ReasonCode::TokenBlockShape, "{check}");
    }
    let strict = append(&issued(), PLANNER, block("check if resource($r), $r === \"tool.crm\";"));
    assert!(verify(&strict).is_ok());
}

/// P12: "every limit is at most 10" is not true of a call that says none.
#[test]
fn p12_a_check_of_all_does_not_hold_of_nothing() {
    let body = Body {
        predicates: vec![Predicate::new("arg", [Term::str("/limit"), Term::var("v")])],
        expressions: vec![Expression::binary(Binary::LessOrEqual, Term::var("v"), Term::Integer(10))],
    };
    let check = Check { kind: CheckKind::All, alternatives: vec![body] };
    let narrowed = issued().narrow(&key(PLANNER), &Narrowing::new().check(check), &[51; 32]).unwrap();
    let (world, capability) = (World::new(), verified(narrowed));
    let decided = |arguments| world.decide(&capability, &call("tool.crm:read", arguments));
    assert_eq!(decided(r#"{"limit":10}"#).decision(), Decision::Allow);
    for arguments in [r#"{"limit":11}"#, "{}", r#"{"table":"orders"}"#] {
        assert_eq!(decided(arguments).reasons()[0].code(), ReasonCode::TokenCheckFailed, "{arguments}");
    }
}

/// P15: a relation nobody filled in for this tenant allows nothing; one that nobody ever fills in does not load.
#[test]
fn p15_a_relation_that_is_not_there_for_a_tenant_allows_nothing() {
    let rule = "allow if request(\"call\"), tenant($t), serves($t), right($r, $a), resource($r), action($a);\n\
                may_delegate($from, $to) <- delegates($from, $to);\n";
    assert!(World::under(rule).is_err(), "nobody states `serves`");
    let capability = verified(issued());
    let asked = call("tool.crm:read", "{}");
    let elsewhere = World::under(&format!("serves(\"globex\");\n{rule}")).unwrap();
    let verdict = elsewhere.decide(&capability, &asked);
    assert_eq!(verdict.decision(), Decision::Deny);
    assert_eq!(verdict.reasons()[0].code(), ReasonCode::PolicyNoMatch);
    let here = World::under(&format!("serves(\"acme\");\n{rule}")).unwrap();
    assert_eq!(here.decide(&capability, &asked).decision(), Decision::Allow);
}

/// D06: an agent of another tenant is nobody here, and what it was handed is nothing there.
#[test]
fn d06_a_capability_handed_to_another_tenant_opens_nothing_on_either_side() {
    let partner = key(40);
    let handed = issued()
        .delegate(&key(PLANNER), &agent("researcher"), &partner.public(), &Narrowing::new(), &[51; 32])
        .unwrap();
    let capability = verified(handed);
    let asked = call("tool.crm:read", "{}");
    let here = World::new();
    assert_eq!(here.decide(&capability, &asked).reasons()[0].code(), ReasonCode::AgentKeyUnknown);

    // The other tenant knows the very key, and the same broker's key issues for it too.
    let globex = TenantId::parse("globex").unwrap();
    let mut document = keyset_document(&[key(BROKER).public()]);
    document.keys[0].tenants.push(globex.clone());
    let mut control = ControlState::new(globex.clone(), key(support::ROOT).public());
    let keyset = ControlEvent::Keyset(Signed::new(&document, &key(support::ROOT)));
    let known = [("planner", key(PLANNER)), ("researcher", partner)].map(|(name, key)| {
        let (holder, token) = (key.public(), Digest::plain(name.as_bytes()));
        ControlEvent::AgentKey { agent: agent(name), holder, connection: format!("nkey-{name}"), token }
    });
    for (sequence, event) in (1..).zip(std::iter::once(keyset).chain(known)) {
        let document = ControlDocument {
            tenant: globex.clone(),
            at: support::NOW,
            by: "broker-1".to_owned(),
            follows: control.epoch(),
            event,
        };
        control.apply(sequence, &encode(&Signed::new(&document, &key(BROKER)))).unwrap();
    }
    let there = World { policy: here.policy, control };
    let verdict = there.decide_for(&globex, &capability, &asked);
    assert_eq!(verdict.reasons()[0].code(), ReasonCode::TenantMismatch);
}

/// A05: one spelling per text, and nothing that only a model reads.
#[test]
fn a05_texts_have_one_spelling_and_hide_nothing() {
    let code = |text: &str| {
        let value =
            Value::Object([("to".to_owned(), Value::Array(vec![Value::String(text.to_owned())]))].into());
        Arguments::parse(&value.to_string()).map_err(|reason| (reason.code(), reason.for_caller().to_owned()))
    };
    for plain in [
        "caf\u{e9}",
        "Gr\u{fc}\u{df}e, \u{4e16}\u{754c}",
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{1f469}\u{200d}\u{1f4bb}",
    ] {
        assert!(code(plain).is_ok(), "{plain}");
    }
    for (text, why) in [
        ("cafe\u{301}", "normalization form C"),
        ("\u{212b}ngstr\u{f6}m", "normalization form C"),
        ("invoice\u{202e}fdp.exe", "re-order"),
        ("a\u{2066}b\u{2069}", "re-order"),
        ("hello\u{e0073}\u{e0065}\u{e006e}\u{e0064}", "nobody sees"),
    ] {
        let (code, told) = code(text).unwrap_err();
        assert_eq!(code, ReasonCode::ArgEncoding, "{text:?}");
        assert!(told.contains("/to/0") && told.contains(why), "{told}");
    }
    let key = "{\"e\u{301}\":1}";
    assert_eq!(Arguments::parse(key).unwrap_err().code(), ReasonCode::ArgEncoding);
    // Names are ASCII: the second letter is Cyrillic, the second name is in full width.
    for name in ["tool.m\u{430}il", "tool.\u{ff4d}ail", "tool.mail\u{200b}"] {
        assert!(Resource::parse(name).is_err(), "{name:?}");
    }
}

/// A10: a number is kept exactly or refused, and is never taken for a text or the other way round.
#[test]
fn a10_a_number_the_contract_cannot_keep_is_refused() {
    let mut granted = grant();
    granted.rights.insert(right("tool.crm:write"));
    let (world, capability) = (World::new(), verified(granted.issue(&key(BROKER), &[50; 32]).unwrap()));
    let decided = |arguments| world.decide(&capability, &call("tool.crm:write", arguments));
    assert_eq!(decided(r#"{"amount":98.76}"#).decision(), Decision::Allow);
    for (arguments, code) in [
        (r#"{"amount":98.765}"#, ReasonCode::ArgNumber),
        (r#"{"amount":92233720368547758.08}"#, ReasonCode::ArgNumber),
        (r#"{"amount":"100"}"#, ReasonCode::ArgInvalid),
        (r#"{"limit":1.5}"#, ReasonCode::ArgInvalid),
        (r#"{"table":100}"#, ReasonCode::ArgInvalid),
    ] {
        assert_eq!(decided(arguments).reasons()[0].code(), code, "{arguments}");
    }
    for number in ["9223372036854775808", "18446744073709551617", "-0", "1e400"] {
        let reason = Arguments::parse(&format!("{{\"limit\":{number}}}")).unwrap_err();
        assert_eq!(reason.code(), ReasonCode::ArgNumber, "{number}");
    }
}
