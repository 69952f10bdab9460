//! What a task's capability holds, in three ways: by what its ground truth needs, by what the user's words ask for, by
//! nothing at all.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use writ_common::{
    capability::{Narrowing, Right},
    contract::ActionContract,
    datalog::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Term, Unary},
    json::Value,
    policy::PolicySet,
};

use super::{
    contracts::{agent, resource},
    entities::id_of,
    trace::{Call, Effect, Suite, UserTask},
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

/// Most arguments of one alternative of a check: six predicates, two of which say what is called.
const ARGUMENTS_MAX: usize = 4;

/// What the oracle asks for.
pub struct Wanted {
    /// The rights of the capability.
    pub rights: BTreeSet<Right>,
    /// Bounds of the grant: guarded arguments of writes are as in the ground truth.
    pub bounds: Vec<Check>,
    /// Every write, with what whoever makes it may still do.
    pub writes: Vec<(Right, Narrowing)>,
}

/// The right a call needs.
pub fn right(suite: &Suite, tool: &str) -> Result<Right> {
    let group = suite.tools.get(tool).map_or("", |tool| tool.group.as_str());
    Ok(Right::parse(&format!("{}:{}", resource(group), id_of(tool)))?)
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
    let mut exact: BTreeMap<Right, Vec<BTreeMap<String, Term>>> = BTreeMap::new();
    let mut writes = Vec::new();
    for call in task.calls.iter().filter(|call| !only_reads(suite, &call.tool)) {
        let right = right(suite, &call.tool)?;
        let contract = policy.contract(&right.resource).and_then(|contract| contract.action(&right.action));
        let Some(contract) = contract else { continue };
        let pinned = guarded(contract, call);
        let narrowing = exactly(&right, contract, call, &pinned);
        exact.entry(right.clone()).or_default().push(pinned);
        rights.insert(right.clone());
        writes.push((right, narrowing));
    }
    let bounds = exact.iter().flat_map(|(right, calls)| bounds(right, calls, &rights)).collect();
    Ok(Wanted { rights, bounds, writes })
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
    for (path, value) in pinned {
        let predicates = vec![Predicate::new("arg", [Term::str(path.as_str()), value.clone()])];
        narrowing = narrowing.check(Check {
            kind: CheckKind::One,
            alternatives: vec![Body { predicates, expressions: Vec::new() }],
        });
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

/// The bounds that let an action be called as in the ground truth only, and everything else as it is.
fn bounds(right: &Right, calls: &[BTreeMap<String, Term>], rights: &BTreeSet<Right>) -> Vec<Check> {
    let called = |right: &Right| {
        vec![
            Predicate::new("resource", [Term::str(right.resource.as_str())]),
            Predicate::new("action", [Term::str(right.action.as_str())]),
        ]
    };
    let body = |predicates| Body { predicates, expressions: Vec::new() };
    let pieces = calls.iter().map(|call| call.len().div_ceil(ARGUMENTS_MAX)).max().unwrap_or(0);
    let check = |piece: usize| {
        let others = rights.iter().filter(|other| *other != right).map(|other| body(called(other)));
        let exact: BTreeSet<Vec<(&String, &Term)>> = calls
            .iter()
            .map(|call| call.iter().skip(piece * ARGUMENTS_MAX).take(ARGUMENTS_MAX).collect())
            .collect();
        let exact = exact.into_iter().map(|pinned| {
            let arguments = pinned
                .into_iter()
                .map(|(path, value)| Predicate::new("arg", [Term::str(path.as_str()), value.clone()]));
            body(called(right).into_iter().chain(arguments).collect())
        });
        Check { kind: CheckKind::One, alternatives: others.chain(exact).collect() }
    };
    (0..pieces).map(check).collect()
}
