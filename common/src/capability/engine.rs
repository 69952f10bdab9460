//! Datalog for deciding: the verifier's facts, the capability's, and a compiled [`Program`], asked together.
//!
//! Rules and checks are evaluated by `datalog/eval`. biscuit-auth, whose language this is, is the reference:
//! `reference.rs` has the same world in its engine, and a test holds the two against each other. A limit or an error
//! is never an answer: it is an [`EngineFault`], which denies with its own reason.

#[cfg(test)]
mod reference;

use super::{Capability, block::is_list};
use crate::{
    datalog::{
        Check, CheckKind, Predicate, Rule, Term,
        eval::{self, Fault, Limits, Run, Source},
    },
    reason::{Reason, ReasonCode},
};

/// What an evaluation may come to: 20,000 facts, 64 rounds, and a second or so of looking at facts.
const LIMITS: Limits = Limits { facts: FACTS_MAX, rounds: ITERATIONS_MAX, looks: 10_000_000 };
/// Most facts a world may hold, derived ones included.
pub const FACTS_MAX: usize = 20_000;
/// Most rounds of applying every rule.
pub const ITERATIONS_MAX: usize = 64;

/// Rules and the facts that are always there, compiled.
#[derive(Clone, Debug, Default)]
pub struct Program(eval::Program);

impl Program {
    /// Compiles rules whose variables are known to be bound, and facts that hold for every request.
    #[must_use]
    pub fn compile(rules: &[Rule], facts: &[Predicate]) -> Self {
        Self(eval::Program::compile(rules, facts, LIMITS))
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// An expression could not be evaluated: types, overflow, division by zero.
    #[error("a rule or check could not be evaluated: {0}")]
    Expression(String),
    /// Too many facts or rounds.
    #[error("evaluation met its limit on facts or iterations")]
    Limit,
    /// Too much to look at.
    #[error("evaluation looked at more than {} facts", LIMITS.looks)]
    Timeout,
}

impl From<EngineFault> for Reason {
    fn from(fault: EngineFault) -> Self {
        let code = match fault {
            EngineFault::Expression(_) => ReasonCode::EngineError,
            EngineFault::Limit => ReasonCode::EngineLimit,
            EngineFault::Timeout => ReasonCode::EngineTimeout,
        };
        Self::new(code).noted(fault)
    }
}

impl From<Fault> for EngineFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Expression(what) => Self::Expression(what.to_owned()),
            Fault::Limit => Self::Limit,
            Fault::Work => Self::Timeout,
        }
    }
}

/// A check of the capability that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// Block that carries it; 0 is the authority block.
    pub block: usize,
    /// The check.
    pub check: Check,
}

/// A world after every rule was applied, ready to be asked.
pub struct World<'p> {
    run: Run<'p>,
    failed_checks: Vec<FailedCheck>,
}

impl<'p> World<'p> {
    /// States the facts, applies the rules and evaluates the checks of the capability.
    ///
    /// The program's own facts need not be among `facts`.
    ///
    /// # Errors
    /// [`EngineFault`] if there is no answer.
    pub fn run(
        capability: Option<&Capability>,
        facts: &[Predicate],
        program: &'p Program,
    ) -> Result<Self, EngineFault> {
        Self::run_within(LIMITS, capability, facts, &program.0)
    }

    fn run_within(
        limits: Limits,
        capability: Option<&Capability>,
        facts: &[Predicate],
        program: &'p eval::Program,
    ) -> Result<Self, EngineFault> {
        let mut run = Run::new(program, limits);
        facts.iter().for_each(|fact| run.state(fact, Source::Verifier));
        if let Some(capability) = capability {
            capability.grant().facts().iter().for_each(|fact| run.state(fact, Source::Capability));
            // Other agents' facts, one in each delegation, are out of scope for rules and checks.
            run.count_unseen(capability.chain().depth());
        }
        run.derive()?;
        let failed_checks =
            capability.map_or(Ok(Vec::new()), |capability| failed_checks(&mut run, capability))?;
        Ok(Self { run, failed_checks })
    }

    /// The capability's checks that do not hold.
    #[must_use]
    pub fn failed_checks(&self) -> &[FailedCheck] {
        &self.failed_checks
    }

    /// Whether the verifier, the capability's authority or the program know this fact.
    #[must_use]
    pub fn has(&self, name: &str, terms: &[Term]) -> bool {
        self.run.has(name, terms)
    }

    /// Every fact `name(_, …)` of this arity that the verifier, the capability's authority and the program know, sorted.
    ///
    /// # Errors
    /// None today; a question could meet a limit.
    pub fn facts(&mut self, name: &str, arity: usize) -> Result<Vec<Vec<Term>>, EngineFault> {
        Ok(self.run.facts(name, arity))
    }
}

fn failed_checks(run: &mut Run<'_>, capability: &Capability) -> Result<Vec<FailedCheck>, EngineFault> {
    let bounds = capability.grant().bounds.iter().map(|check| (0, check));
    let checks: Vec<(usize, &Check)> = bounds.chain(capability.chain().checks()).collect();
    for (_, check) in &checks {
        try_every_match(run, check)?;
    }
    let mut failed = Vec::new();
    for (block, check) in checks {
        if !holds(run, check)? {
            failed.push(FailedCheck { block, check: check.clone() });
        }
    }
    Ok(failed)
}

/// Evaluates what a check says about lists, so that one match that cannot be evaluated is an error whatever else
/// there is. Alternatives are tried in their order.
fn try_every_match(run: &mut Run<'_>, check: &Check) -> Result<(), EngineFault> {
    for body in &check.alternatives {
        if !body.predicates.iter().any(is_list) || body.expressions.is_empty() {
            continue;
        }
        if run.ask(body, false)? && check.kind == CheckKind::One {
            break;
        }
    }
    Ok(())
}

fn holds(run: &mut Run<'_>, check: &Check) -> Result<bool, EngineFault> {
    for body in &check.alternatives {
        if run.ask(body, check.kind == CheckKind::All)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Our syntax tree to biscuit-auth's builders, without going through text.
pub(super) mod to_builder {
    use biscuit_auth::builder::{
        Binary as TheirBinary, Check as TheirCheck, Expression as TheirExpression, Fact, Op,
        Predicate as TheirPredicate, Rule as TheirRule, Term as TheirTerm, Unary as TheirUnary,
    };

    use crate::{
        capability::block::is_list,
        datalog::{Binary, Body, Check, Expression, Node, Predicate, Term, Unary},
    };

    pub(in crate::capability) fn fact(fact: &Predicate) -> Fact {
        Fact { predicate: predicate(fact), parameters: None }
    }

    #[cfg(test)]
    pub(in crate::capability) fn rule(rule: &crate::datalog::Rule) -> TheirRule {
        with_head(predicate(&rule.head), &rule.body)
    }

    pub(in crate::capability) fn check(check: &Check) -> TheirCheck {
        let queries = check.alternatives.iter();
        let head = TheirPredicate { name: "query".to_owned(), terms: Vec::new() };
        // What can match many facts comes last; the order of predicates has no meaning, but a price.
        let listed = |body: &Body| {
            let mut body = body.clone();
            body.predicates.sort_by_key(is_list);
            body
        };
        TheirCheck {
            queries: queries.map(|body| with_head(head.clone(), &listed(body))).collect(),
            kind: check.kind.into(),
        }
    }

    fn with_head(head: TheirPredicate, body: &Body) -> TheirRule {
        TheirRule {
            head,
            body: body.predicates.iter().map(predicate).collect(),
            expressions: body.expressions.iter().map(expression).collect(),
            parameters: None,
            scopes: Vec::new(),
            scope_parameters: None,
        }
    }

    fn predicate(predicate: &Predicate) -> TheirPredicate {
        TheirPredicate { name: predicate.name.clone(), terms: predicate.terms.iter().map(term).collect() }
    }

    fn term(term: &Term) -> TheirTerm {
        match term {
            Term::Bool(value) => TheirTerm::Bool(*value),
            Term::Bytes(bytes) => TheirTerm::Bytes(bytes.clone()),
            Term::Date(secs) => TheirTerm::Date(*secs),
            Term::Integer(value) => TheirTerm::Integer(*value),
            Term::Set(members) => TheirTerm::Set(members.iter().map(self::term).collect()),
            Term::Str(text) => TheirTerm::Str(text.clone()),
            Term::Variable(name) => TheirTerm::Variable(name.clone()),
        }
    }

    fn expression(expression: &Expression) -> TheirExpression {
        let mut ops = Vec::new();
        postfix(expression, &mut ops);
        TheirExpression { ops }
    }

    fn postfix(expression: &Expression, ops: &mut Vec<Op>) {
        match &expression.node {
            Node::Term(value) => ops.push(Op::Value(term(value))),
            Node::Unary(op, operand) => {
                postfix(operand, ops);
                ops.push(Op::Unary(match op {
                    Unary::Not => TheirUnary::Negate,
                    Unary::Length => TheirUnary::Length,
                }));
            }
            Node::Binary(op, left, right) => {
                postfix(left, ops);
                match op {
                    Binary::And | Binary::Or => {
                        let mut lazy = Vec::new();
                        postfix(right, &mut lazy);
                        ops.push(Op::Closure(Vec::new(), lazy));
                    }
                    _ => postfix(right, ops),
                }
                ops.push(Op::Binary(binary(*op)));
            }
        }
    }

    fn binary(op: Binary) -> TheirBinary {
        match op {
            Binary::Add => TheirBinary::Add,
            Binary::And => TheirBinary::LazyAnd,
            Binary::Contains => TheirBinary::Contains,
            Binary::Divide => TheirBinary::Div,
            Binary::EndsWith => TheirBinary::Suffix,
            Binary::Equal => TheirBinary::Equal,
            Binary::GreaterOrEqual => TheirBinary::GreaterOrEqual,
            Binary::GreaterThan => TheirBinary::GreaterThan,
            Binary::Intersection => TheirBinary::Intersection,
            Binary::LessOrEqual => TheirBinary::LessOrEqual,
            Binary::LessThan => TheirBinary::LessThan,
            Binary::Multiply => TheirBinary::Mul,
            Binary::NotEqual => TheirBinary::NotEqual,
            Binary::Or => TheirBinary::LazyOr,
            Binary::StartsWith => TheirBinary::Prefix,
            Binary::Subtract => TheirBinary::Sub,
            Binary::Union => TheirBinary::Union,
        }
    }
}
