//! Datalog evaluation by biscuit-auth, the reference engine, behind one seam.
//!
//! A world is built per question from three sources: the capability's own blocks, the verifier's facts and a
//! compiled [`Program`]. Limits are set on the builder, by counts, since the library's default of one
//! millisecond denies at random on a loaded machine and `authorize_with_limits` ignores its limits. A limit or
//! an error is never an answer: it is an [`EngineFault`], which denies with its own reason.

use std::time::Duration;

use biscuit_auth::{
    Authorizer, AuthorizerBuilder,
    builder::{Fact, Policy, PolicyKind, Rule},
    datalog::RunLimits,
    error,
};

use super::{Capability, block::is_list};
use crate::{
    datalog::{self, Check, CheckKind, Predicate, Term},
    reason::{Reason, ReasonCode},
};

/// Most facts a world may hold, derived ones included.
pub const FACTS_MAX: u64 = 20_000;
/// Most rounds of applying every rule.
pub const ITERATIONS_MAX: u64 = 64;
/// A backstop against the clock, far above what any screened input needs.
pub const TIME_MAX: Duration = Duration::from_secs(2);

/// Rules, translated once for the engine.
#[derive(Clone, Debug, Default)]
pub struct Program {
    rules: Vec<Rule>,
}

impl Program {
    /// Translates rules. Their variables are already known to be bound.
    #[must_use]
    pub fn compile<'a>(rules: impl IntoIterator<Item = &'a datalog::Rule>) -> Self {
        Self { rules: rules.into_iter().map(to_builder::rule).collect() }
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
    /// The backstop on time.
    #[error("evaluation took longer than {} s", TIME_MAX.as_secs())]
    Timeout,
    /// Anything the library was not expected to say.
    #[error("the engine failed: {0}")]
    Internal(String),
}

impl From<EngineFault> for Reason {
    fn from(fault: EngineFault) -> Self {
        let code = match fault {
            EngineFault::Expression(_) | EngineFault::Internal(_) => ReasonCode::EngineError,
            EngineFault::Limit => ReasonCode::EngineLimit,
            EngineFault::Timeout => ReasonCode::EngineTimeout,
        };
        Self::new(code).noted(fault)
    }
}

impl From<error::Token> for EngineFault {
    fn from(error: error::Token) -> Self {
        match error {
            error::Token::Execution(error) => Self::Expression(error.to_string()),
            error::Token::RunLimit(error::RunLimit::Timeout) => Self::Timeout,
            error::Token::RunLimit(_) => Self::Limit,
            other => Self::Internal(format!("{other:?}")),
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
pub struct World {
    authorizer: Authorizer,
    failed_checks: Vec<FailedCheck>,
}

impl World {
    /// Builds the world, applies the rules and evaluates the checks of the capability.
    ///
    /// # Errors
    /// [`EngineFault`] if there is no answer.
    pub fn run(
        capability: Option<&Capability>,
        facts: &[Predicate],
        program: &Program,
    ) -> Result<Self, EngineFault> {
        let limits = RunLimits { max_facts: FACTS_MAX, max_iterations: ITERATIONS_MAX, max_time: TIME_MAX };
        let mut builder = AuthorizerBuilder::new().set_limits(limits);
        for fact in facts {
            builder = builder.fact(to_builder::fact(fact))?;
        }
        for rule in &program.rules {
            builder = builder.rule(rule.clone())?;
        }
        // The verdict is read from derived facts, not from the library's first-match policies; this one only
        // makes it evaluate the checks.
        builder = builder.policy(Policy { queries: vec![always()], kind: PolicyKind::Allow })?;
        let mut authorizer = match capability {
            Some(capability) => builder.build(capability.biscuit())?,
            None => builder.build_unauthenticated()?,
        };
        if let Some(capability) = capability {
            let appended = capability.chain().checks().map(|(_, check)| check);
            for check in capability.grant().bounds.iter().chain(appended) {
                try_every_match(&mut authorizer, check)?;
            }
        }
        let failed_checks = match authorizer.authorize() {
            Ok(_) => Vec::new(),
            Err(error::Token::FailedLogic(
                error::Logic::Unauthorized { checks, .. } | error::Logic::NoMatchingPolicy { checks },
            )) => checks.iter().filter_map(|failed| locate(capability?, failed)).collect(),
            Err(other) => return Err(other.into()),
        };
        Ok(Self { authorizer, failed_checks })
    }

    /// The capability's checks that do not hold.
    #[must_use]
    pub fn failed_checks(&self) -> &[FailedCheck] {
        &self.failed_checks
    }

    /// Every fact `name(_, …)` of this arity that the verifier and the program know, sorted.
    ///
    /// Facts of appended blocks are out of scope.
    ///
    /// # Errors
    /// [`EngineFault`] if the query itself meets a limit.
    pub fn facts(&mut self, name: &str, arity: usize) -> Result<Vec<Vec<Term>>, EngineFault> {
        let terms: Vec<Term> = (0..arity).map(|index| Term::var(format!("v{index}"))).collect();
        let predicate = Predicate::new(name, terms);
        let rule = datalog::Rule {
            head: predicate.clone(),
            body: datalog::Body { predicates: vec![predicate], expressions: Vec::new() },
        };
        let found: Vec<Fact> = self.authorizer.query(to_builder::rule(&rule))?;
        let mut tuples: Vec<Vec<Term>> = found
            .into_iter()
            .map(|fact| fact.predicate.terms.into_iter().filter_map(from_builder).collect())
            .collect();
        tuples.sort();
        tuples.dedup();
        Ok(tuples)
    }
}

/// Evaluates a check on all of its matches, where the library would stop at the first.
///
/// It meets them in an order that differs from run to run, so that a check which cannot be evaluated on one match
/// and holds on another would be an answer at one time and an error at the next. Now it is always the error. Only
/// bodies over several facts with an expression can differ so; alternatives are tried in their order anyway.
fn try_every_match(authorizer: &mut Authorizer, check: &Check) -> Result<(), EngineFault> {
    for body in &check.alternatives {
        if !body.predicates.iter().any(is_list) || body.expressions.is_empty() {
            continue;
        }
        let rule = datalog::Rule { head: Predicate::new("writ_match", []), body: body.clone() };
        let found: Vec<Fact> = authorizer.query(to_builder::rule(&rule))?;
        if check.kind == CheckKind::One && !found.is_empty() {
            break;
        }
    }
    Ok(())
}

fn always() -> Rule {
    to_builder::rule(&datalog::Rule {
        head: Predicate::new("writ_asked", []),
        body: datalog::Body { predicates: Vec::new(), expressions: vec![Term::Bool(true).into()] },
    })
}

fn locate(capability: &Capability, failed: &error::FailedCheck) -> Option<FailedCheck> {
    let error::FailedCheck::Block(failed) = failed else { return None };
    let (block, position) = (usize::try_from(failed.block_id).ok()?, usize::try_from(failed.check_id).ok()?);
    let check = match block {
        0 => capability.grant().bounds.get(position)?.clone(),
        _ => capability.chain().checks().filter(|(index, _)| *index == block).nth(position)?.1.clone(),
    };
    Some(FailedCheck { block, check })
}

fn from_builder(term: biscuit_auth::builder::Term) -> Option<Term> {
    use biscuit_auth::builder::Term as Their;
    Some(match term {
        Their::Bool(value) => Term::Bool(value),
        Their::Bytes(bytes) => Term::Bytes(bytes),
        Their::Date(secs) => Term::Date(secs),
        Their::Integer(value) => Term::Integer(value),
        Their::Set(members) => Term::Set(members.into_iter().filter_map(from_builder).collect()),
        Their::Str(text) => Term::Str(text),
        Their::Variable(_) | Their::Null | Their::Array(_) | Their::Map(_) | Their::Parameter(_) => {
            return None;
        }
    })
}

/// Our syntax tree to biscuit-auth's builders, without going through text.
pub(super) mod to_builder {
    use biscuit_auth::builder::{
        Binary as TheirBinary, Check as TheirCheck, Expression as TheirExpression, Fact, Op,
        Predicate as TheirPredicate, Rule as TheirRule, Term as TheirTerm, Unary as TheirUnary,
    };

    use crate::{
        capability::block::is_list,
        datalog::{Binary, Body, Check, Expression, Node, Predicate, Rule, Term, Unary},
    };

    pub(in crate::capability) fn fact(fact: &Predicate) -> Fact {
        Fact { predicate: predicate(fact), parameters: None }
    }

    pub(in crate::capability) fn rule(rule: &Rule) -> TheirRule {
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
