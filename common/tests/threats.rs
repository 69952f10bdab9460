//! Threats of the catalogue that pure code answers, each by its id; those about the bytes of a capability are in
//! `capability.rs`, those that hold for every input in `properties.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]
#![allow(clippy::disallowed_methods, reason = "measures how long a refusal takes")]

mod support;

use std::time::{Duration, Instant};

use support::{
    BROKER, Call, MAILER, NOW, PLANNER, RESEARCHER, World, agent, append, block, control_event, delegated,
    grant, issued, key, keyset, malleated, messages, random::Random, right, schema, verify,
};
use writ_common::{
    capability::{Capability, Grant, Narrowing, UnverifiedCapability},
    codec::{CodecError, from_canonical, to_bytes},
    contract::ARGUMENT_LEAVES_MAX,
    control::{ControlEvent, ControlState, RevocationTarget},
    datalog::{Binary, Body, Check, CheckKind, Expression, Predicate, Term},
    ids::{
        Action, AgentId, BootId, BrokerId, CapabilityId, DomainId, FlowDomain, KeyId, NodeId, OperatorId,
        PartId, Resource, RoleId, TaskId, TaskKind, TenantId, UserId,
    },
    json::Value,
    label::{Label, Tag},
    reason::{Reason, ReasonCode},
    record::{Record, RecordedReason},
    request::Arguments,
    time::{Millis, Timestamp},
    verdict::{Decision, Verdict},
};

fn verified(token: &UnverifiedCapability) -> Capability {
    token.clone().verify(&keyset(), NOW).unwrap()
}

fn call(right_text: &str, arguments: &str) -> Call {
    Call {
        right: right(right_text),
        arguments: Arguments::new(Value::parse(arguments).unwrap()),
        label: Label::bottom(),
        now: NOW,
    }
}

fn codes(verdict: &Verdict) -> Vec<ReasonCode> {
    verdict.reasons().iter().map(Reason::code).collect()
}

/// What a terminal, a log reader or a viewer would act on instead of showing it.
fn acts_on_a_terminal(text: &str) -> bool {
    text.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || c == '\u{200b}')
}

/// A08: a depth bomb is refused by every message, for its depth or its size, before it costs anything.
#[test]
fn a08_depth_bombs_are_refused_by_every_message() {
    let begun = Instant::now();
    for sample in messages::all(&mut Random(1)) {
        let kind = sample.kind;
        let head = [b"\x83\xa1v\x01\xa4kind".as_slice(), &to_bytes(&kind), b"\xa4body"].concat();
        for (levels, nest) in [(100, 0x91), (5_000, 0x91), (200_000, 0x91), (5_000, 0x81)] {
            let mut bytes = head.clone();
            bytes.resize(bytes.len() + levels, nest);
            bytes.push(0xc0);
            let error = sample.recode(&bytes).unwrap_err();
            // A map of maps is malformed at its first key, which is no text.
            let expected = match error {
                CodecError::TooDeep { .. } | CodecError::TooLarge { .. } => true,
                CodecError::Format { .. } => nest == 0x81,
                _ => false,
            };
            assert!(expected, "{kind}, {levels} levels: {error}");
        }
    }
    let payload = [vec![0x91; 200_000], vec![0x90]].concat();
    assert!(from_canonical::<Record>("record", &payload).is_err());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// A09: a length bomb is refused at once; nothing is set aside for what is not there.
#[test]
fn a09_length_bombs_are_refused_by_every_message() {
    let begun = Instant::now();
    for sample in messages::all(&mut Random(1)) {
        let kind = sample.kind;
        for head in [0xdb, 0xc6, 0xc9, 0xdd, 0xdf] {
            let bomb = [head, 0xff, 0xff, 0xff, 0xff];
            let body = [b"\x83\xa1v\x01\xa4kind".as_slice(), &to_bytes(&kind), b"\xa4body", &bomb].concat();
            let error = sample.recode(&body).unwrap_err();
            assert!(matches!(error, CodecError::Format { .. }), "{kind}: {error}");
            // In the place of every byte of a good message.
            for at in (0..sample.bytes.len() - bomb.len()).step_by(7) {
                let bytes = [&sample.bytes[..at], &bomb].concat();
                assert!(sample.recode(&bytes).is_err(), "{kind}");
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// A11: what a permit lets run is what was checked, to the byte.
#[test]
fn a11_a_permit_holds_the_arguments_that_were_checked() {
    let (world, capability) = (World::new(), verified(&issued()));
    let call = call("tool.crm:read", r#"{"limit":5,"table":"customers"}"#);
    let permit = world.decide(&capability, &call).permit().unwrap();
    assert_eq!(permit.arguments(), &call.arguments);
    assert_eq!(permit.arguments_digest(), call.arguments.digest());
    assert_eq!((permit.resource().as_str(), permit.action().as_str()), ("tool.crm", "read"));
}

/// B11: no id can add a token to a subject, a wildcard, a header or a line to a log.
#[test]
fn b11_no_id_breaks_out_of_a_subject() {
    macro_rules! parsers {
        ($($Id:ty),*) => { [$((stringify!($Id), (|text: &str| <$Id>::parse(text).is_ok()) as fn(&str) -> bool)),*] };
    }
    let parsers = parsers![
        Action,
        AgentId,
        BootId,
        BrokerId,
        CapabilityId,
        DomainId,
        KeyId,
        NodeId,
        OperatorId,
        PartId,
        RoleId,
        Tag,
        TaskId,
        TaskKind,
        TenantId
    ];
    for (name, accepts) in parsers {
        assert!(accepts("a-1_b"), "{name}");
        for hostile in [
            "",
            ".",
            "a.b",
            "a..b",
            "*",
            ">",
            "a.>",
            "a b",
            " a",
            "a\t",
            "a\r\nX: y",
            "a\n",
            "a\0",
            "A",
            "é",
            "a/b",
            "a\u{202e}b",
            "a\u{200b}",
            "ａ",
            "$SYS",
            "_INBOX.x",
            "a%2eb",
            "\"",
            "`",
        ] {
            assert!(!accepts(hostile), "{name} takes {hostile:?}");
        }
        assert!(!accepts(&"x".repeat(65)), "{name} takes 65 bytes");
    }
    for hostile in
        ["tool", "tool.", ".a", "tool.a.b", "tool.*", "tool.>", "disk.a", "tool.a b", "Tool.a", "tool.a\n"]
    {
        assert!(Resource::parse(hostile).is_err(), "{hostile:?}");
    }
    for hostile in ["p0", "p0.", ".a", "p0.a.b", "p0.*", "p0.>", "p0.a b", "P0.a", "p0.a\n"] {
        assert!(FlowDomain::parse(hostile).is_err(), "{hostile:?}");
    }
}

/// B16: whatever text an attacker chooses, what is told and recorded shows it instead of acting on it.
#[test]
fn b16_no_chosen_text_reaches_a_terminal_or_a_log_unescaped() {
    const HOSTILE: &str = "x\r\n\u{1b}[2J\u{202e}\u{200b}\u{7}DENY";
    let (world, capability) = (World::new(), verified(&issued()));
    // The name of an argument.
    let hostile = Value::from_iter([(HOSTILE, Value::Bool(true))]);
    let mut unknown = call("tool.crm:read", "{}");
    unknown.arguments = Arguments::new(hostile);
    // A condition somebody delegated with.
    let check = Check {
        kind: CheckKind::One,
        alternatives: vec![Body {
            predicates: vec![Predicate::new("arg", [Term::str("/table"), Term::str(HOSTILE)])],
            expressions: Vec::new(),
        }],
    };
    let narrowed = issued().narrow(&key(PLANNER), &Narrowing::new().check(check), &[51; 32]).unwrap();
    let refusals = [
        world.decide(&capability, &unknown),
        world.decide(&verified(&narrowed), &call("tool.crm:read", "{}")),
    ];
    for (verdict, code) in refusals.iter().zip([ReasonCode::ArgUnknown, ReasonCode::TokenCheckFailed]) {
        assert_eq!(codes(verdict), [code]);
        for reason in verdict.reasons() {
            let recorded = RecordedReason::from(reason);
            for text in [recorded.told, recorded.noted.unwrap_or_default(), reason.to_string()] {
                assert!(!acts_on_a_terminal(&text) && text.len() < 2_000, "{text:?}");
            }
        }
    }
    // Names are refused, and the refusal shows them harmless.
    let errors = [
        AgentId::parse(HOSTILE).unwrap_err().to_string(),
        UserId::parse("https://idp", HOSTILE).unwrap_err().to_string(),
        Resource::parse(HOSTILE).unwrap_err().to_string(),
        Arguments::parse(HOSTILE).unwrap_err().to_string(),
        UnverifiedCapability::parse(HOSTILE.as_bytes()).unwrap_err().to_string(),
    ];
    for error in errors {
        assert!(!acts_on_a_terminal(&error), "{error:?}");
    }
}

/// D05: a delegation that ends later than its parent ends when the parent does.
#[test]
fn d05_a_longer_life_than_the_parents_has_no_effect() {
    let parent_ends = Timestamp::from_secs(NOW.as_secs() + 60);
    let later = Timestamp::from_secs(NOW.as_secs() + 86_400);
    let parent = issued().narrow(&key(PLANNER), &Narrowing::new().until(parent_ends), &[51; 32]).unwrap();
    let researcher = (agent("researcher"), key(RESEARCHER).public());
    let child = parent
        .delegate(&key(PLANNER), &researcher.0, &researcher.1, &Narrowing::new().until(later), &[52; 32])
        .unwrap();
    let (world, child) = (World::new(), verified(&child));
    assert_eq!(child.expires(), parent_ends);
    let mut call = call("tool.crm:read", "{}");
    assert_eq!(world.decide(&child, &call).decision(), Decision::Allow);
    call.now = parent_ends;
    assert_eq!(codes(&world.decide(&child, &call)), [ReasonCode::TokenExpired]);
}

/// P01, P02, P05: a block that would keep the engine busy for minutes is refused without asking it.
#[test]
fn p01_p02_p05_hostile_blocks_are_refused_at_once() {
    let facts: String = (0..30).map(|i| format!("f({i}); ")).collect();
    let join: String = (0..5).map(|i| format!("f($a{i}), ")).collect();
    let product: String = (0..4).map(|i| format!("arg($p{i}, $v{i}), ")).collect();
    for code in [
        format!("{facts} g($a0) <- {join} true;"),
        format!("check if {product} $v0 === $v1;"),
        "check if resource($r), $r.matches(\"(((a+)+)+)+b\");".to_owned(),
    ] {
        let bytes = append(&issued(), PLANNER, block(&code));
        let begun = Instant::now();
        assert_eq!(verify(&bytes).unwrap_err(), ReasonCode::TokenBlockShape);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?} for {code}", begun.elapsed());
    }
}

/// P02: the dearest capabilities the profile lets through, on the largest call, are decided in time; a list that
/// other predicates follow took 2 s in 13 KB, and is no longer let through.
#[test]
fn p02_the_dearest_blocks_within_the_profile_are_decided_in_time() {
    let list = "arg($p, $v)";
    let singles = "resource($r), action($c), time($n), integrity($i), arg(\"/table\", $t)";
    let behind = format!("check if {list}, {singles}, $p === \"\";");
    assert_eq!(verify(&append(&issued(), PLANNER, block(&behind))).unwrap_err(), ReasonCode::TokenBlockShape);

    let tags: Vec<Value> = (0..ARGUMENT_LEAVES_MAX - 1).map(|i| Value::from(format!("t{i}"))).collect();
    let mut call = call("tool.crm:read", "{}");
    let arguments = [("table", Value::from("x")), ("tags", Value::from(tags))];
    call.arguments = Arguments::new(Value::from_iter(arguments));
    let world = World::new();
    // Never true, so that everything is tried: many predicates, then many operations.
    let operations = ["!$p.starts_with(\"/\")"; 8].join(" || ");
    for body in [format!("{singles}, {list}, $p === \"\""), format!("{list}, {operations}")] {
        let mut token = issued();
        // As much of it as fits.
        for alternatives in [64, 32, 16, 8, 4, 2, 1].into_iter().flat_map(|n| [n; 4]) {
            let code = format!("check if {};", vec![body.as_str(); alternatives].join(" or "));
            let longer = UnverifiedCapability::parse(&append(&token, PLANNER, block(&code)));
            token = longer.unwrap_or(token);
        }
        assert!(token.as_bytes().len() > 14_000, "{} bytes of {body}", token.as_bytes().len());
        let capability = verified(&token);
        let begun = Instant::now();
        let verdict = world.decide(&capability, &call);
        let elapsed = begun.elapsed();
        assert_eq!(verdict.decision(), Decision::Deny);
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?} for {body}: {:?}", codes(&verdict));
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
    let narrowed = issued().narrow(&key(PLANNER), &Narrowing::new().check(check), &[51; 32]).unwrap();
    let (world, capability) = (World::new(), verified(&narrowed));
    for _ in 0..64 {
        let verdict = world.decide(&capability, &call("tool.crm:read", r#"{"limit":0,"table":"x"}"#));
        assert_eq!(codes(&verdict), [ReasonCode::EngineError]);
        let verdict = world.decide(&capability, &call("tool.crm:read", r#"{"limit":0}"#));
        assert_eq!(verdict.decision(), Decision::Allow);
    }
}

/// T19: the second form of an Ed25519 signature is refused wherever a capability carries one.
#[test]
fn t19_malleated_signatures_are_refused_everywhere() {
    use prost::Message as _;
    let whole = delegated();
    let mut tokens = vec![schema(&whole); 5];
    tokens[0].authority.signature = malleated(&tokens[0].authority.signature);
    for at in 0..2 {
        tokens[1 + at].blocks[at].signature = malleated(&tokens[1 + at].blocks[at].signature);
        let external = tokens[3 + at].blocks[at].external_signature.as_mut().unwrap();
        external.signature = malleated(&external.signature);
    }
    assert!(verify(whole.as_bytes()).is_ok());
    for token in tokens {
        let code = verify(&token.encode_to_vec()).unwrap_err();
        // With no key under which the authority block verifies, its root is unknown or its signature bad.
        assert_eq!(code, ReasonCode::TokenSignature);
    }
}

fn revoke_hop(control: &mut ControlState, delegator: u8, delegatee: u8) {
    let target = RevocationTarget::Hop {
        capability: grant().capability,
        delegator: key(delegator).public().id(),
        delegatee: key(delegatee).public().id(),
    };
    let revocation = ControlEvent::Revocation { target, until: NOW.after(Millis::from_secs(3_600)) };
    let follows = control.epoch();
    control.apply(follows.sequence + 1, &control_event(follows, revocation)).unwrap();
}

/// T20: a revoked delegation stays revoked when it is signed again, attached again, narrowed, handed on or
/// renewed; its siblings go on.
#[test]
fn t20_a_revoked_hop_cannot_be_minted_again() {
    let mut world = World::new();
    let delegate = |grant: &Grant, to: (&str, u8), next: u8, narrowing: &Narrowing| {
        let token = grant.issue(&key(BROKER), &[next; 32]).unwrap();
        token.delegate(&key(PLANNER), &agent(to.0), &key(to.1).public(), narrowing, &[next; 32]).unwrap()
    };
    let nothing = Narrowing::new();
    let researcher = ("researcher", RESEARCHER);
    let first = delegate(&grant(), researcher, 51, &nothing);
    let read = call("tool.crm:read", "{}");
    assert_eq!(world.decide(&verified(&first), &read).decision(), Decision::Allow);

    revoke_hop(&mut world.control, PLANNER, RESEARCHER);
    let mut renewed = grant();
    renewed.serial = 2;
    renewed.min_epoch = world.control.epoch();
    let below = first
        .delegate(&key(RESEARCHER), &agent("mailer"), &key(MAILER).public(), &nothing, &[52; 32])
        .unwrap();
    for token in [
        first.clone(),
        delegate(&grant(), researcher, 61, &nothing),
        delegate(&grant(), researcher, 61, &Narrowing::new().only([right("tool.crm:read")])),
        delegate(&renewed, researcher, 62, &nothing),
        first.narrow(&key(RESEARCHER), &nothing, &[63; 32]).unwrap(),
        below,
    ] {
        let verdict = world.decide(&verified(&token), &read);
        assert_eq!(codes(&verdict), [ReasonCode::RevokedHop], "{token:?}");
    }
    let sibling = delegate(&grant(), ("mailer", MAILER), 51, &nothing);
    assert_eq!(world.decide(&verified(&sibling), &read).decision(), Decision::Allow);
}
