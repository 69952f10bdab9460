//! The same world in biscuit-auth's engine, and the two held against each other over random programs.
//!
//! Limits are set on the builder: the library's default of one millisecond fails at random on a loaded machine.

use std::time::Duration;

use biscuit_auth::{
    AuthorizerBuilder, Biscuit,
    builder::{Fact, Policy, PolicyKind, Rule as TheirRule, Term as TheirTerm},
    datalog::RunLimits,
    error,
};

use super::{EngineFault, FailedCheck, World, to_builder};
use crate::{
    capability::{
        Capability, Grant, Narrowing, Right, UnverifiedCapability, block::is_list, verify::to_biscuit_key,
    },
    datalog::{
        Binary, Body, Check, CheckKind, Expression, Node, Predicate, Rule, Term, Unary,
        eval::{Limits, Program},
    },
    digest::Digest,
    epoch::Epoch,
    ids::{AgentId, CapabilityId, FlowDomain, TaskId, TenantId, UserId},
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    signed::Signed,
    time::{Millis, Timestamp},
};

#[path = "../../../tests/support/random.rs"]
mod random;
use random::Random;

impl From<error::Token> for EngineFault {
    fn from(error: error::Token) -> Self {
        match error {
            error::Token::Execution(error) => Self::Expression(error.to_string()),
            error::Token::RunLimit(error::RunLimit::Timeout) => Self::Timeout,
            error::Token::RunLimit(_) => Self::Limit,
            other => panic!("the library was not expected to say {other:?}"),
        }
    }
}

/// What one evaluation comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    facts: Vec<Vec<Vec<Term>>>,
    failed: Vec<FailedCheck>,
}

fn theirs(
    limits: Limits,
    capability: Option<&Capability>,
    facts: &[Predicate],
    rules: &[Rule],
) -> Result<Outcome, EngineFault> {
    let max = |limit: usize| u64::try_from(limit).unwrap();
    let limits = RunLimits {
        max_facts: max(limits.facts),
        max_iterations: max(limits.rounds),
        max_time: Duration::from_secs(60),
    };
    let mut builder = AuthorizerBuilder::new().set_limits(limits);
    for fact in facts {
        builder = builder.fact(to_builder::fact(fact))?;
    }
    for rule in rules {
        builder = builder.rule(to_builder::rule(rule))?;
    }
    // It evaluates the checks only together with a policy.
    let body = Body { predicates: Vec::new(), expressions: vec![Term::Bool(true).into()] };
    let always: TheirRule = to_builder::rule(&Rule { head: Predicate::new("writ_asked", []), body });
    builder = builder.policy(Policy { queries: vec![always], kind: PolicyKind::Allow })?;
    let mut authorizer = match capability {
        Some(capability) => {
            let issuer = to_biscuit_key(capability.issuer()).unwrap();
            builder.build(&Biscuit::from(capability.as_bytes(), issuer).unwrap())?
        }
        None => builder.build_unauthenticated()?,
    };
    let mut ask =
        |rule: &Rule| -> Result<Vec<Fact>, error::Token> { authorizer.query(to_builder::rule(rule)) };
    // The library stops at the first match, in an order that differs from run to run; this meets every match.
    if let Some(capability) = capability {
        let appended = capability.chain().checks().map(|(_, check)| check);
        for check in capability.grant().bounds.iter().chain(appended) {
            for body in &check.alternatives {
                if !body.predicates.iter().any(is_list) || body.expressions.is_empty() {
                    continue;
                }
                let found = ask(&Rule { head: Predicate::new("writ_match", []), body: body.clone() })?;
                if check.kind == CheckKind::One && !found.is_empty() {
                    break;
                }
            }
        }
    }
    let mut answers = Vec::new();
    for (name, arity) in PREDICATES {
        let terms: Vec<Term> = (0..arity).map(|index| Term::var(format!("v{index}"))).collect();
        let predicate = Predicate::new(name, terms);
        let body = Body { predicates: vec![predicate.clone()], expressions: Vec::new() };
        let mut tuples: Vec<Vec<Term>> = ask(&Rule { head: predicate, body })?
            .into_iter()
            .map(|fact| fact.predicate.terms.into_iter().map(ours).collect())
            .collect();
        tuples.sort();
        tuples.dedup();
        answers.push(tuples);
    }
    let failed = match authorizer.authorize() {
        Ok(_) => Vec::new(),
        Err(error::Token::FailedLogic(
            error::Logic::Unauthorized { checks, .. } | error::Logic::NoMatchingPolicy { checks },
        )) => checks.iter().map(|failed| locate(capability.unwrap(), failed)).collect(),
        Err(other) => return Err(other.into()),
    };
    Ok(Outcome { facts: answers, failed })
}

fn locate(capability: &Capability, failed: &error::FailedCheck) -> FailedCheck {
    let error::FailedCheck::Block(failed) = failed else { panic!("no check of ours: {failed:?}") };
    let (block, position) = (failed.block_id as usize, failed.check_id as usize);
    let check = match block {
        0 => capability.grant().bounds[position].clone(),
        _ => {
            capability.chain().checks().filter(|(index, _)| *index == block).nth(position).unwrap().1.clone()
        }
    };
    FailedCheck { block, check }
}

fn ours(term: TheirTerm) -> Term {
    match term {
        TheirTerm::Bool(value) => Term::Bool(value),
        TheirTerm::Bytes(bytes) => Term::Bytes(bytes),
        TheirTerm::Date(secs) => Term::Date(secs),
        TheirTerm::Integer(value) => Term::Integer(value),
        TheirTerm::Set(members) => Term::Set(members.into_iter().map(ours).collect()),
        TheirTerm::Str(text) => Term::Str(text),
        other => panic!("no term of ours: {other:?}"),
    }
}

/// What the programs speak about: facts of the request, of the capability, and their own.
const PREDICATES: [(&str, usize); 11] = [
    ("resource", 1),
    ("action", 1),
    ("arg", 2),
    ("label", 1),
    ("time", 1),
    ("right", 2),
    ("tenant", 1),
    ("p", 1),
    ("q", 2),
    ("r", 2),
    ("s", 3),
];

fn constant(random: &mut Random) -> Term {
    match random.below(20) {
        0..8 => Term::str(random.one_of(&["tool.crm", "tool.mail", "read", "write", "a", "b", "ab", ""])),
        8..15 => Term::Integer(random.one_of(&[0, 1, 2, 3, i64::MAX, i64::MIN])),
        15 => Term::Bool(random.chance(50)),
        16 => Term::Date(random.one_of(&[5, 1_800_000_000])),
        17 => Term::Bytes(random.one_of(&[vec![], vec![1, 2]])),
        _ => Term::Set((0..random.below(3)).map(|_| scalar(random)).collect()),
    }
}

fn scalar(random: &mut Random) -> Term {
    // A set holds one type.
    Term::str(random.one_of(&["a", "b", "read", "tool.crm"]))
}

/// A value of the kind the column of a predicate mostly has, so that joins meet.
fn value_for(random: &mut Random, name: &str, column: usize) -> Term {
    if random.chance(6) {
        return constant(random);
    }
    match (name, column) {
        ("resource", _) | ("right", 0) => Term::str(random.one_of(&["tool.crm", "tool.mail"])),
        ("action", _) | ("right", 1) => Term::str(random.one_of(&["read", "write"])),
        ("label", _) => Term::str(random.one_of(&["a", "b"])),
        ("arg", 0) => Term::str(random.one_of(&["/a", "/b", "/c"])),
        ("time", _) => Term::Date(1_800_000_000),
        ("tenant", _) => Term::str("acme"),
        ("arg", _) | ("q" | "s", 1) => {
            if random.chance(50) {
                constant(random)
            } else {
                Term::Integer(random.one_of(&[0, 1, 2, 3]))
            }
        }
        ("r", _) | ("p", _) => Term::Integer(i64::try_from(random.below(8)).unwrap()),
        _ => Term::str(random.one_of(&["a", "b", "ab", "tool.crm", "read"])),
    }
}

fn variable(random: &mut Random) -> Term {
    Term::var(random.one_of(&["x", "y", "z"]))
}

fn predicate(random: &mut Random, name: &str, arity: usize, variables: usize) -> Predicate {
    let terms: Vec<Term> = (0..arity)
        .map(
            |column| {
                if random.chance(variables) { variable(random) } else { value_for(random, name, column) }
            },
        )
        .collect();
    Predicate::new(name, terms)
}

fn operand(random: &mut Random, bound: &[Term], depth: usize) -> Expression {
    if depth == 0 || random.chance(55) {
        return if !bound.is_empty() && random.chance(65) {
            random.one_of(bound).into()
        } else {
            constant(random).into()
        };
    }
    if random.chance(12) {
        let op = random.one_of(&[Unary::Not, Unary::Length, Unary::Length]);
        return Node::Unary(op, Box::new(operand(random, bound, depth - 1))).into();
    }
    let op = random.one_of(&[
        Binary::Add,
        Binary::Subtract,
        Binary::Multiply,
        Binary::Divide,
        Binary::Union,
        Binary::Intersection,
    ]);
    Expression::binary(op, operand(random, bound, depth - 1), operand(random, bound, depth - 1))
}

fn condition(random: &mut Random, bound: &[Term], depth: usize) -> Expression {
    if depth > 0 && random.chance(25) {
        if random.chance(20) {
            return Node::Unary(Unary::Not, Box::new(condition(random, bound, depth - 1))).into();
        }
        let op = random.one_of(&[Binary::And, Binary::Or]);
        return Expression::binary(
            op,
            condition(random, bound, depth - 1),
            condition(random, bound, depth - 1),
        );
    }
    let op = random.one_of(&[
        Binary::Equal,
        Binary::Equal,
        Binary::NotEqual,
        Binary::LessThan,
        Binary::LessOrEqual,
        Binary::GreaterThan,
        Binary::GreaterOrEqual,
        Binary::Contains,
        Binary::StartsWith,
        Binary::EndsWith,
    ]);
    // Arithmetic that meets zero and the ends of the range.
    if random.chance(25) && !bound.is_empty() {
        let number = |random: &mut Random| Term::Integer(random.one_of(&[-1, 0, 1, 2, i64::MAX, i64::MIN]));
        let op =
            random.one_of(&[Binary::Add, Binary::Subtract, Binary::Multiply, Binary::Divide, Binary::Divide]);
        let (variable, constant) = (random.one_of(bound), number(random));
        let sum = if random.chance(50) {
            Expression::binary(op, variable, constant)
        } else {
            Expression::binary(op, constant, variable)
        };
        return Expression::binary(random.one_of(&[Binary::LessThan, Binary::NotEqual]), sum, number(random));
    }
    // Alike on both sides, mostly: otherwise nearly every program would end in an error.
    if random.chance(75) && !bound.is_empty() {
        let left: Expression = random.one_of(bound).into();
        return match op {
            Binary::Contains | Binary::StartsWith | Binary::EndsWith => Expression::binary(
                Binary::Contains,
                Term::Set((0..2).map(|_| scalar(random)).collect()),
                left,
            ),
            Binary::Equal => Expression::binary(op, left, random.one_of(bound)),
            _ => Expression::binary(op, left, Term::Integer(random.one_of(&[0, 1, 2]))),
        };
    }
    Expression::binary(op, operand(random, bound, depth), operand(random, bound, depth))
}

fn body(random: &mut Random, names: &[(&str, usize)], most: usize, conditions: usize) -> Body {
    let predicates: Vec<Predicate> = (0..random.below(most + 1))
        .map(|_| {
            let (name, arity) = random.one_of(names);
            predicate(random, name, arity, 65)
        })
        .collect();
    let bound = variables_of(&predicates);
    let count = if random.chance(conditions) { 1 + random.below(2) } else { 0 };
    let expressions = (0..count).map(|_| condition(random, &bound, 2)).collect();
    Body { predicates, expressions }
}

fn variables_of(predicates: &[Predicate]) -> Vec<Term> {
    let mut all: Vec<Term> = predicates
        .iter()
        .flat_map(|predicate| &predicate.terms)
        .filter(|term| matches!(term, Term::Variable(_)))
        .cloned()
        .collect();
    all.sort();
    all.dedup();
    all
}

fn rule(random: &mut Random) -> Rule {
    // More often about what other rules derive: chains, recursion.
    let names = if random.chance(50) { &PREDICATES[..] } else { &PREDICATES[5..] };
    let body = body(random, names, 3, 15);
    let bound = variables_of(&body.predicates);
    // Now and then about what the capability states: what comes of it counts apart.
    let (name, arity) = if random.chance(8) { ("right", 2) } else { random.one_of(&PREDICATES[7..]) };
    let terms: Vec<Term> = (0..arity)
        .map(|column| {
            if !bound.is_empty() && random.chance(75) {
                random.one_of(&bound)
            } else {
                value_for(random, name, column)
            }
        })
        .collect();
    Rule { head: Predicate::new(name, terms), body }
}

/// Facts of a request: one each of those there is one of, and a few others.
fn facts(random: &mut Random) -> Vec<Predicate> {
    let mut facts: Vec<Predicate> = ["resource", "action", "time"]
        .into_iter()
        .map(|name| Predicate::new(name, [value_for(random, name, 0)]))
        .collect();
    for _ in 0..random.below(26) {
        let (name, arity) = random.one_of(&PREDICATES);
        if !["resource", "action", "time", "tenant"].contains(&name) {
            facts.push(predicate(random, name, arity, 0));
        }
    }
    // One value for each path.
    let mut paths = Vec::new();
    facts.retain(|fact| {
        fact.name != "arg"
            || (!paths.contains(&fact.terms[0]) && {
                paths.push(fact.terms[0].clone());
                true
            })
    });
    facts
}

fn check(random: &mut Random) -> Check {
    let ambient = [("resource", 1), ("action", 1), ("time", 1), ("arg", 2), ("label", 1)];
    let alternatives = (0..=random.below(2)).map(|_| {
        let mut body = body(random, &ambient, 3, 50);
        // As the profile has it: what can match many facts once, at the end.
        body.predicates.sort_by_key(is_list);
        let lists = body.predicates.iter().filter(|predicate| is_list(predicate)).count();
        body.predicates.truncate(body.predicates.len() - lists.saturating_sub(1));
        body.expressions.retain(|expression| {
            let bound = variables_of(&body.predicates);
            let mut is_bound = true;
            expression.walk(&mut |part| {
                if let Node::Term(term @ Term::Variable(_)) = &part.node {
                    is_bound &= bound.contains(term);
                }
            });
            is_bound
        });
        body
    });
    let alternatives = alternatives.collect();
    let kind = if random.chance(75) { CheckKind::One } else { CheckKind::All };
    Check { kind, alternatives }
}

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn keyset() -> Keyset {
    let later = NOW.after(Millis::from_secs(86_400));
    let document = KeysetDocument {
        version: 1,
        issued_at: NOW,
        expires: later,
        keys: vec![KeysetKey {
            public: key(2).public(),
            tenants: vec![TenantId::parse("acme").unwrap()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: later,
        }],
        withdrawn: Vec::new(),
    };
    Keyset::open(&Signed::new(&document, &key(1)), &key(1).public()).unwrap()
}

/// A capability with conditions of every form, if the profile takes them.
fn capability(random: &mut Random, keyset: &Keyset) -> Option<Capability> {
    let rights = ["tool.crm:read", "tool.crm:write", "tool.mail:write"];
    let grant = Grant {
        tenant: TenantId::parse("acme").unwrap(),
        user: UserId::parse("https://idp.example", "alice").unwrap(),
        agent: AgentId::parse("planner").unwrap(),
        task: TaskId::parse("t-1").unwrap(),
        holder: key(10).public(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        instruction: Digest::plain(b"answer"),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: rights.iter().filter(|_| random.chance(70)).map(|text| Right::parse(text).unwrap()).collect(),
        expires: NOW.after(Millis::from_secs(300)),
        min_epoch: Epoch::default(),
        max_depth: 3,
        bounds: (0..random.below(2)).map(|_| check(random)).collect(),
    };
    let mut token: UnverifiedCapability = grant.issue(&key(2), &[50; 32]).ok()?;
    let narrowing = |random: &mut Random| {
        (0..random.below(3)).fold(Narrowing::new(), |narrowing, _| narrowing.check(check(random)))
    };
    if random.chance(60) {
        let to = AgentId::parse("mailer").unwrap();
        token = token.delegate(&key(10), &to, &key(11).public(), &narrowing(random), &[51; 32]).ok()?;
        if random.chance(40) {
            token = token.narrow(&key(11), &narrowing(random), &[52; 32]).ok()?;
        }
    }
    token.verify(keyset, NOW).ok()
}

#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    derived: usize,
    failed: usize,
    errors: usize,
    limits: usize,
}

fn compare(seed: u64, capabilities: &[Capability], tally: &mut Tally) {
    let random = &mut Random(seed);
    let rules: Vec<Rule> = (0..random.below(9)).map(|_| rule(random)).collect();
    let mut stated = facts(random);
    // Some of them always there, as the inventory is.
    let fixed: Vec<Predicate> = (0..random.below(16))
        .map(|_| {
            let (name, arity) = random.one_of(&PREDICATES[7..]);
            predicate(random, name, arity, 0)
        })
        .collect();
    let capability = random.chance(60).then(|| random.one_of(capabilities));
    // Narrow ones too, so that limits are met in every place they can be.
    let limits = Limits {
        facts: random.one_of(&[20_000, 20_000, 120, 60, 40, 30]),
        rounds: random.one_of(&[64, 64, 4, 3, 2, 1]),
        looks: u64::MAX,
    };
    // What is settled beforehand takes no round, so with few rounds nothing is.
    let is_wide = limits.rounds == 64 && limits.facts == 20_000;
    let program = if is_wide && random.chance(75) {
        Program::compile(&rules, &fixed, limits)
    } else {
        Program::unsettled(&rules, &fixed)
    };
    let ours = World::run_within(limits, capability.as_ref(), &stated, &program).map(|world| Outcome {
        facts: PREDICATES.iter().map(|(name, arity)| world.run.facts(name, *arity)).collect(),
        failed: world.failed_checks,
    });
    stated.extend(fixed);
    let theirs = theirs(limits, capability.as_ref(), &stated, &rules);
    let kind = |outcome: &Result<Outcome, EngineFault>| match outcome {
        Err(EngineFault::Expression(_)) => Err(EngineFault::Expression(String::new())),
        Err(fault) => Err(fault.clone()),
        Ok(_) => Ok(()),
    };
    let told = || {
        let rules: Vec<String> =
            rules.iter().map(|rule| format!("{} <- {:?}", rule.head, rule.body)).collect();
        format!("WRIT_SEED={seed} WRIT_PROGRAMS=1 {limits:?}\n{rules:#?}\n{stated:?}")
    };
    assert_eq!(kind(&ours), kind(&theirs), "{}", told());
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours, theirs, "{}", told());
            tally.answered += 1;
            let known = |name: &str, tuple: &Vec<Term>| {
                stated.iter().any(|fact| fact.name == name && fact.terms == *tuple)
            };
            let derived = PREDICATES[7..].iter().zip(&ours.facts[7..]);
            let derived =
                derived.flat_map(|((name, _), tuples)| tuples.iter().filter(|tuple| !known(name, tuple)));
            tally.derived += usize::from(derived.count() > 3);
            tally.failed += usize::from(!ours.failed.is_empty());
        }
        (Err(EngineFault::Expression(_)), _) => tally.errors += 1,
        _ => tally.limits += 1,
    }
}

#[expect(clippy::disallowed_methods, reason = "how many programs to try is given from outside")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The two engines agree on facts, failed checks and faults. `WRIT_PROGRAMS` is how many programs are tried.
#[test]
#[expect(clippy::print_stdout, reason = "what the programs came to is said")]
fn the_compiled_evaluator_means_what_the_reference_engine_means() {
    let (first, count) = (setting("WRIT_SEED", 1), setting("WRIT_PROGRAMS", 4_000));
    let keyset = keyset();
    let random = &mut Random(7);
    let capabilities: Vec<Capability> = (0..400).filter_map(|_| capability(random, &keyset)).collect();
    assert!(capabilities.len() > 150, "{}", capabilities.len());
    let mut tally = Tally::default();
    (first..first + count).for_each(|seed| compare(seed, &capabilities, &mut tally));
    println!("{tally:?}");
    if count >= 1_000 {
        let enough = |part: usize| part * 40 > usize::try_from(count).unwrap();
        assert!(enough(tally.answered / 4) && enough(tally.derived) && enough(tally.failed), "{tally:?}");
        assert!(enough(tally.errors) && enough(tally.limits), "{tally:?}");
    }
}
