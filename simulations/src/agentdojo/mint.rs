//! What a task's capability holds, in three ways: by what its ground truth needs, by what the user's words ask for, by
//! nothing at all.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use writ_common::{
    capability::{Narrowing, Pins, Right},
    contract::ActionContract,
    datalog::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Term, Unary},
    json::Value,
    policy::PolicySet,
};

use super::{
    contracts::{agent, kind, resource},
    entities::id_of,
    trace::{Call, Effect, Suite, Tool, UserTask},
    world::World,
};

/// How capabilities come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mint {
    /// Writes exactly, reads by domain, from the task's own ground truth
    Oracle,
    /// What the words of the prompt ask for, by the policy's table of verbs
    Rules,
    /// Everything the suite's tools can do
    Suite,
}

impl Mint {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oracle => "oracle",
            Self::Rules => "rules",
            Self::Suite => "suite",
        }
    }
}

/// Most predicates of one alternative of a check.
const PREDICATES_MAX: usize = 6;

/// What the oracle asks for.
pub struct Wanted {
    /// The rights of the capability.
    pub rights: BTreeSet<Right>,
    /// The calls it makes of them, by guarded arguments.
    pub pins: Pins,
    /// Every write, with what whoever makes it may still do.
    pub writes: Vec<(Right, Narrowing)>,
}

/// The pins of every task as rules. Those of a task with more writes than a grant has room for are left out: its writes
/// are still exact where each is handed on.
pub fn rules_of_pins(suite: &Suite, world: &World) -> Result<String> {
    let mut rules = String::new();
    for (name, task) in &suite.tasks {
        let wanted = oracle(suite, task, &world.policy)?;
        if !world.has_room_for(name, &wanted)? {
            continue;
        }
        for (right, calls) in wanted.pins.iter() {
            // One call without guarded arguments, and the right is for every call.
            if calls.iter().any(BTreeMap::is_empty) {
                continue;
            }
            for (number, call) in calls.iter().enumerate() {
                for (path, value) in call {
                    let terms = [
                        Term::str(right.resource.as_str()),
                        Term::str(right.action.as_str()),
                        Term::str(number.to_string()),
                        Term::str(path.as_str()),
                        value.clone(),
                    ];
                    let pin = Predicate::new("pin", terms);
                    let of = Predicate::new("task_kind", [Term::str(kind(name))]);
                    rules.push_str(&format!("{pin} <- {of};\n"));
                }
            }
        }
    }
    Ok(rules)
}

/// The right a call needs.
pub fn right(suite: &Suite, tool: &str) -> Result<Right> {
    let group = suite.tools.get(tool).map_or("", |tool| tool.group.as_str());
    Ok(Right::parse(&format!("{}:{}", resource(group), id_of(tool)))?)
}

/// Whether a tool changes what is kept.
pub fn writes(tool: &Tool) -> bool {
    !matches!(tool.effect, Effect::Read | Effect::ReadEgress)
}

/// Whether a tool only reads, so that its rights go by domain.
pub fn only_reads(suite: &Suite, tool: &str) -> bool {
    suite.tools.get(tool).is_some_and(|tool| tool.effect == Effect::Read)
}

/// What the ground truth of a task needs: its writes exactly, and every read of the domains it works in.
pub fn oracle(suite: &Suite, task: &UserTask, policy: &PolicySet) -> Result<Wanted> {
    let mut rights = BTreeSet::new();
    let used = task.calls.iter().filter_map(|call| suite.tools.get(&call.tool));
    let groups: BTreeSet<&str> = used.map(|tool| tool.group.as_str()).collect();
    for group in &groups {
        rights.insert(Right::parse(&format!("agent.{}:invoke", agent(group)))?);
    }
    for (name, tool) in &suite.tools {
        if tool.effect == Effect::Read && groups.contains(tool.group.as_str()) {
            rights.insert(right(suite, name)?);
        }
    }
    let mut pins = Pins::default();
    let mut writes = Vec::new();
    for call in task.calls.iter().filter(|call| !only_reads(suite, &call.tool)) {
        let right = right(suite, &call.tool)?;
        let contract = policy.contract(&right.resource).and_then(|contract| contract.action(&right.action));
        let Some(contract) = contract else { continue };
        let pinned = guarded(contract, call);
        let narrowing = exactly(&right, contract, call, &pinned);
        pins.insert(right.clone(), pinned);
        rights.insert(right.clone());
        writes.push((right, narrowing));
    }
    Ok(Wanted { rights, pins, writes })
}

/// The guarded arguments of a call, as the facts they become.
fn guarded(contract: &ActionContract, call: &Call) -> BTreeMap<String, Term> {
    let found = contract.flow.guarded(&call.arguments).into_iter();
    let fact = |path: &str, value: &Value| match value {
        Value::String(text) => Some(Term::str(text.as_str())),
        Value::Bool(value) => Some(Term::Bool(*value)),
        Value::Number(number) => {
            let scale = contract.scales.get(path).copied().unwrap_or(0);
            number.scaled(scale).map(Term::Integer)
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    found.filter_map(|(path, _, value)| fact(&path, value).map(|term| (path, term))).collect()
}

/// This write and no other: its guarded arguments as they are, and no further ones.
fn exactly(
    right: &Right,
    contract: &ActionContract,
    call: &Call,
    pinned: &BTreeMap<String, Term>,
) -> Narrowing {
    let mut narrowing = Narrowing::new().only([right.clone()]);
    let predicates: Vec<Predicate> = pinned
        .iter()
        .map(|(path, value)| Predicate::new("arg", [Term::str(path.as_str()), value.clone()]))
        .collect();
    for predicates in predicates.chunks(PREDICATES_MAX) {
        let body = Body { predicates: predicates.to_vec(), expressions: Vec::new() };
        narrowing = narrowing.check(Check { kind: CheckKind::One, alternatives: vec![body] });
    }
    let mut present = BTreeSet::new();
    call.arguments.for_each_leaf(&mut |path, _| present.extend([path.to_owned()]));
    // Of a call without arguments `check all` says nothing but no.
    if present.is_empty() {
        return narrowing;
    }
    let roots = contract.flow.guards.iter().filter_map(|guard| guard.argument.as_str().split('/').nth(1));
    for root in roots.collect::<BTreeSet<_>>() {
        narrowing = narrowing.check(nothing_else(&format!("/{root}"), &present));
    }
    narrowing
}

/// `check all arg($p, $v), !($p === root || $p.starts_with(root/)) || {those present}.contains($p)`
fn nothing_else(root: &str, present: &BTreeSet<String>) -> Check {
    let below = format!("{root}/");
    let here = |path: &&String| **path == root || path.starts_with(&below);
    let allowed: BTreeSet<Term> = present.iter().filter(here).map(|path| Term::str(path.as_str())).collect();
    let path = || Expression::from(Term::var("p"));
    let is_here = Expression::binary(
        Binary::Or,
        Expression::binary(Binary::Equal, path(), Term::str(root)),
        Expression::binary(Binary::StartsWith, path(), Term::str(below.as_str())),
    );
    let elsewhere = Expression::from(Node::Unary(Unary::Not, Box::new(is_here)));
    let expression = match allowed.is_empty() {
        true => elsewhere,
        false => Expression::binary(
            Binary::Or,
            elsewhere,
            Expression::binary(Binary::Contains, Term::Set(allowed), path()),
        ),
    };
    let predicates = vec![Predicate::new("arg", [Term::var("p"), Term::var("v")])];
    Check { kind: CheckKind::All, alternatives: vec![Body { predicates, expressions: vec![expression] }] }
}
