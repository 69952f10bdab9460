//! What is decided again from a record is what was decided, or is said to hang on what the record does not hold.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{Call, NOW, World, key, keyset, policies, programs, random::Random};
use writ_common::{
    capability::Capability,
    digest::Digest,
    ids::{Action, BootId, NodeId, PartId, Resource, TaskKind},
    json::Value,
    label::Label,
    reason::{Class, ReasonCode},
    record::{
        Basis, DecisionId, Granted, Origin, Record, RecordBody, RecordedDecision, Verdicted, What, Who,
    },
    replay::{
        Answer, History,
        diff::{Before, compare},
        suggest::suggest,
    },
    request::Arguments,
    time::Millis,
    verdict::Decision,
};

/// A record in a stream of one run.
fn record(seq: u64, verdicted: Verdicted) -> Record {
    Record {
        tenant: support::tenant(),
        id: DecisionId {
            origin: Origin::Node(NodeId::parse("node-1").unwrap()),
            boot: BootId::parse("b-1").unwrap(),
            seq,
        },
        prev: Digest::plain(b""),
        at: NOW,
        part: PartId::first(),
        body: RecordBody::Verdict(Box::new(verdicted)),
    }
}

/// The record of the issue of a capability.
fn issued(capability: &Capability) -> Record {
    let grant = capability.grant();
    let who = Who {
        task: Some(grant.task.clone()),
        user: Some(grant.user.clone()),
        agent: Some(grant.agent.clone()),
        caller: Some(grant.agent.clone()),
        capability: Some(grant.capability.clone()),
        serial: Some(grant.serial),
        ..Who::default()
    };
    let granted = Granted {
        kind: TaskKind::parse("answer").unwrap(),
        rights: grant.rights.iter().cloned().collect(),
        max_depth: grant.max_depth,
        expires: grant.expires,
        deadline: grant.expires.after(Millis::from_secs(3_000)),
        key: key(support::PLANNER).public().id(),
        instruction: grant.instruction,
        idempotency: Digest::plain(b""),
        asked: Digest::plain(b""),
        roles: vec!["analyst".to_owned()],
        started: grant.min_epoch,
    };
    let verdicted = Verdicted {
        decision: RecordedDecision::Allow,
        reasons: Vec::new(),
        who,
        what: What {
            resource: Some(Resource::task(&TaskKind::parse("answer").unwrap())),
            action: Some(Action::parse("issue").unwrap()),
            ..What::default()
        },
        basis: Basis::default(),
        trace: None,
        granted: Some(Box::new(granted)),
        right: None,
        approval: None,
        sources: Vec::new(),
        found: Vec::new(),
        acts: Vec::new(),
        shadow: None,
        would_deny: Vec::new(),
        count: 1,
    };
    record(0, verdicted)
}

/// The record a node would write of this call.
fn decided(world: &World, capability: &Capability, call: &Call, seq: u64) -> (Record, Vec<ReasonCode>) {
    let verdict = world.decide(capability, call);
    let what = What {
        resource: Some(call.right.resource.clone()),
        action: Some(call.right.action.clone()),
        arguments: Some(call.arguments.digest()),
        contract: world.policy.contract(&call.right.resource).map(|contract| contract.digest),
        ..What::default()
    };
    let basis = Basis { label: Some(call.label.clone()), ..Basis::default() };
    let decision = match verdict.decision() {
        Decision::Allow => RecordedDecision::Allow,
        Decision::Deny => RecordedDecision::Deny,
    };
    let codes = verdict.reasons().iter().map(writ_common::reason::Reason::code).collect();
    let who = Who::of_capability(capability, None);
    let mut record = record(seq, Verdicted::new(decision, &verdict, who, what, basis));
    record.at = call.now;
    (record, codes)
}

fn held() -> Vec<Capability> {
    let tokens = [support::issued(), support::delegated()];
    tokens.into_iter().map(|token| token.verify(&keyset(), NOW).unwrap()).collect()
}

/// With the arguments, the same answer from the same rules; without them, the same or "it depends". And a policy does
/// not differ from itself.
#[test]
fn a_record_is_decided_again_as_it_was_or_said_to_depend() {
    let held = held();
    let issue = issued(&held[0]);
    let (mut loaded, mut seed) = (0, 0);
    let (mut same, mut depends, mut left_out) = (0, 0, 0);
    while loaded < 120 {
        seed += 1;
        let mut random = Random(seed);
        let rules = policies::rules(&mut random);
        let Ok(world) = World::under(&rules) else { continue };
        loaded += 1;
        let mut records = vec![issue.clone()];
        for seq in 1..10 {
            let (capability, call) = (random.one_of(&held), programs::call(&mut random));
            let (record, codes) = decided(&world, &capability, &call, seq);
            let shown = || format!("seed {seed}\n{rules}\n{call:?}\n{codes:?}\n{record:?}");
            let stream = [&issue, &record];
            let history = History::new(stream);
            let past = history.decisions().nth(1).unwrap();
            let Ok(again) = past.again(&world.policy, Some(&call.arguments)) else {
                left_out += 1;
                assert!(!codes.is_empty(), "{}", shown());
                continue;
            };
            // The holder's key and the epoch are not on record, and no rule here looks at them.
            assert_eq!(again.answer, past.decision(), "{}\n{again:?}", shown());
            let undecided = codes.iter().any(|code| code.class() == Class::CouldNotDecide);
            if !undecided {
                assert_eq!(again.rules, past.verdicted.basis.rules, "{}\n{again:?}", shown());
                assert!(
                    again.codes.iter().eq(codes.iter().collect::<std::collections::BTreeSet<_>>()),
                    "{}",
                    shown()
                );
            }
            let blind = past.again(&world.policy, None).unwrap();
            if blind.answer == Answer::Depends {
                depends += 1;
                assert!(!blind.depends.is_empty(), "{}\n{blind:?}", shown());
            } else {
                same += 1;
                assert_eq!(blind.answer, past.decision(), "{}\n{blind:?}", shown());
            }
            records.push(record);
        }
        let history = History::new(&records);
        let to_itself = compare(&history, Before::Policy(&world.policy), &world.policy, None);
        assert!(to_itself.changes.is_empty() && to_itself.depends.is_empty(), "seed {seed}: {to_itself:?}");
    }
    assert!(same > 100 && depends > 100 && left_out > 10, "{same} {depends} {left_out}");
}

fn read_call(capability: &Capability, seq: u64, world: &World) -> Record {
    let call = Call {
        right: support::right("tool.mail:draft"),
        arguments: Arguments::new([("table", Value::from("customers"))].into_iter().collect()),
        label: Label::bottom(),
        now: NOW,
    };
    decided(world, capability, &call, seq).0
}

#[test]
fn another_policy_is_told_by_what_it_changes() {
    let base = "allow if request(\"call\"), right($r, $a), resource($r), action($a);\nmay_delegate($f, $t) <- delegates($f, $t);\n";
    let world = World::under(base).unwrap();
    let held = held();
    let records = [issued(&held[0]), read_call(&held[1], 1, &world), read_call(&held[1], 2, &world)];
    let history = History::new(&records);
    let told = |rules: &str| {
        let new = World::under(&format!("{base}{rules}")).unwrap().policy;
        let told = compare(&history, Before::Recorded { in_force: None }, &new, None);
        // These policies start no tasks.
        let calls =
            told.changes.iter().chain(&told.depends).filter(|change| !change.right.starts_with("task."));
        let lines = calls.map(|change| {
            format!(
                "{} {} {}: {} -> {} {:?}",
                change.count, change.agent, change.right, change.from, change.to, change.rules
            )
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(told("deny if caller(\"writer\");"), Vec::<String>::new());
    assert_eq!(
        told("deny if caller(\"mailer\");"),
        ["2 mailer tool.mail:draft: allow -> deny policy.denied [\"base.datalog:3\"]"]
    );
    assert_eq!(
        told("deny if resource(\"tool.mail\"), arg(\"/table\", $t), $t === \"x\";"),
        ["2 mailer tool.mail:draft: allow -> depends on arguments [\"base.datalog:3\"]"]
    );
}

/// A11: an explanation is never given for arguments other than those that were decided on.
#[test]
fn a11_arguments_of_another_call_are_refused() {
    let world = World::new();
    let held = held();
    let records = [issued(&held[0]), read_call(&held[1], 1, &world)];
    let history = History::new(&records);
    let past = history.decisions().nth(1).unwrap();
    let arguments = |table: &str| Arguments::new([("table", Value::from(table))].into_iter().collect());
    assert_eq!(past.check_arguments(&arguments("customers")), Ok(()));
    let fault = past.check_arguments(&arguments("orders")).unwrap_err();
    assert!(fault.contains("not the arguments of node-1/b-1/1"), "{fault}");
    assert!(past.explain(&world.policy, Some(&arguments("orders"))).is_err());
    let told = past.explain(&world.policy, None).unwrap();
    assert_eq!((told.decision, told.rules.len()), ("allow", 1));
    let other = World::under("allow if request(\"call\");").unwrap().policy;
    assert!(past.explain(&other, None).unwrap_err().contains("was decided under revision"));
}

#[test]
fn a_suggestion_is_made_of_what_was_allowed_and_says_what_it_left_out() {
    let world = World::new();
    let held = held();
    let mut denied = read_call(&held[1], 3, &world);
    if let RecordBody::Verdict(verdicted) = &mut denied.body {
        verdicted.decision = RecordedDecision::Deny;
        let reason = writ_common::reason::Reason::new(ReasonCode::PolicyDenied);
        verdicted.reasons = vec![(&reason).into()];
    }
    let records = [issued(&held[0]), read_call(&held[1], 1, &world), read_call(&held[1], 2, &world), denied];
    let history = History::new(&records);
    let suggestion = suggest(&history, Some(&world.policy), &|_| None);
    assert_eq!(suggestion.calls, 2);
    assert_eq!(
        suggestion.left_out.into_iter().collect::<Vec<_>>(),
        [("denied: policy.denied".to_owned(), 1)]
    );
    let calls = &suggestion.files["calls.datalog"];
    assert!(calls.contains("caller(\"mailer\"), resource(\"tool.mail\"), action(\"draft\")"), "{calls}");
    assert!(!calls.contains("tool.crm"), "{calls}");
    let roles = &suggestion.files["roles.toml"];
    assert!(roles.contains("rights = [\"tool.mail:draft\"]"), "{roles}");
    assert!(suggestion.files["base.datalog"].contains("depth_limit(2)"));
    let nothing = suggest(&history, None, &|_| Some("flagged".to_owned()));
    assert_eq!((nothing.calls, nothing.files.len(), nothing.left_out["flagged"]), (0, 0, 3));
}
