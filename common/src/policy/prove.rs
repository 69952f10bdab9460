//! What follows from which facts, with the way it was derived.
//!
//! The engine answers; this tells why. It evaluates the same rules over the same facts a second time, naively, and
//! keeps for every derived fact the rule and the facts it came from first, so that proofs are finite whatever the
//! rules. Facts may also be unknown: a term that nobody recorded matches anything, and what follows from it only
//! possibly is kept apart from what follows in any case. There is no negation in the language, so what is possible
//! is a superset of what is certain, and each is a least fixpoint.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::SourceRule;
use crate::{
    capability::engine::{FACTS_MAX, ITERATIONS_MAX},
    datalog::{Binary, Body, Expression, Node, Predicate, Term, Unary},
};

/// A fact that was stated or derived.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) name: String,
    /// `None` is a value nobody recorded.
    pub(crate) terms: Vec<Option<Term>>,
    pub(crate) from: From,
    /// Whether it holds whatever the unknown values are.
    pub(crate) is_certain: bool,
}

/// Where a fact comes from.
#[derive(Clone, Debug)]
pub(crate) enum From {
    /// Somebody states it.
    Stated(String),
    /// A rule derives it, from these facts; its conditions as they were evaluated.
    Rule { rule: usize, facts: Vec<usize>, conditions: Vec<String> },
}

impl Known {
    pub(crate) fn stated(fact: Predicate, source: impl Into<String>) -> Self {
        Self {
            name: fact.name,
            terms: fact.terms.into_iter().map(Some).collect(),
            from: From::Stated(source.into()),
            is_certain: true,
        }
    }

    /// A fact that may be there, with any values.
    pub(crate) fn unknown(name: &str, terms: Vec<Option<Term>>) -> Self {
        let from = From::Stated("not recorded".to_owned());
        Self { name: name.to_owned(), terms, from, is_certain: false }
    }

    pub(crate) fn text(&self) -> String {
        let terms: Vec<String> =
            self.terms.iter().map(|term| term.as_ref().map_or("?".to_owned(), ToString::to_string)).collect();
        format!("{}({})", self.name, terms.join(", "))
    }

    pub(crate) fn is(&self, name: &str, terms: &[Term]) -> bool {
        self.name == name
            && self.terms.len() == terms.len()
            && self.terms.iter().zip(terms).all(|(known, term)| known.as_ref() == Some(term))
    }

    /// Whether it is this fact for some values of what is unknown.
    pub(crate) fn may_be(&self, name: &str, terms: &[Term]) -> bool {
        self.name == name
            && self.terms.len() == terms.len()
            && self
                .terms
                .iter()
                .zip(terms)
                .all(|(known, term)| known.as_ref().is_none_or(|known| known == term))
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A condition of this rule cannot be evaluated.
    Condition { rule: usize, condition: String, why: &'static str },
    /// Too many facts or rounds.
    Limit,
}

/// Values of variables; `None` is a value nobody recorded.
pub(crate) type Bindings<'b> = BTreeMap<&'b str, Option<Term>>;

/// Every fact that holds, or may hold.
pub(crate) struct Model<'p> {
    pub(crate) rules: &'p [SourceRule],
    pub(crate) facts: Vec<Known>,
    by_name: BTreeMap<String, Vec<usize>>,
    seen: BTreeSet<(String, Vec<Option<Term>>)>,
    /// Rules with a condition that, for some values of what is unknown, may not be evaluable.
    pub(crate) doubtful: BTreeSet<usize>,
}

impl<'p> Model<'p> {
    pub(crate) fn run(rules: &'p [SourceRule], facts: Vec<Known>) -> Result<Self, Fault> {
        let mut model = Self {
            rules,
            facts: Vec::new(),
            by_name: BTreeMap::new(),
            seen: BTreeSet::new(),
            doubtful: BTreeSet::new(),
        };
        let (certain, possible): (Vec<Known>, Vec<Known>) =
            facts.into_iter().partition(|fact| fact.is_certain);
        for fact in certain {
            model.add(fact);
        }
        model.derive(true)?;
        if possible.is_empty() {
            return Ok(model);
        }
        for fact in possible {
            model.add(fact);
        }
        model.derive(false)?;
        Ok(model)
    }

    fn add(&mut self, fact: Known) -> bool {
        let is_new = self.seen.insert((fact.name.clone(), fact.terms.clone()));
        if is_new {
            self.by_name.entry(fact.name.clone()).or_default().push(self.facts.len());
            self.facts.push(fact);
        }
        is_new
    }

    /// Facts of a name.
    pub(crate) fn of(&self, name: &str) -> impl Iterator<Item = (usize, &Known)> {
        self.by_name
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|index| Some((*index, self.facts.get(*index)?)))
    }

    fn derive(&mut self, certainly: bool) -> Result<(), Fault> {
        let rules = self.rules;
        for _ in 0..ITERATIONS_MAX {
            let mut found = Vec::new();
            for (index, source) in rules.iter().enumerate() {
                let mut doubtful = false;
                let mut fault = None;
                self.each_match(&source.rule.body, &mut |bindings, facts, matched_certainly| {
                    let held = hold(&source.rule.body, bindings);
                    let is_certain = match held {
                        Held::Yes => matched_certainly,
                        // Of some types or sizes, values are not defined for it either.
                        Held::Maybe => {
                            doubtful = true;
                            false
                        }
                        Held::No => return,
                        Held::Fault(condition, why) => {
                            if matched_certainly {
                                fault.get_or_insert(Fault::Condition { rule: index, condition, why });
                            } else {
                                doubtful = true;
                            }
                            return;
                        }
                    };
                    if certainly && !is_certain {
                        return;
                    }
                    let terms = source.rule.head.terms.iter().map(|term| value_of(term, bindings)).collect();
                    let conditions =
                        source.rule.body.expressions.iter().map(|one| filled(one, bindings)).collect();
                    let from = From::Rule { rule: index, facts: facts.to_vec(), conditions };
                    found.push(Known { name: source.rule.head.name.clone(), terms, from, is_certain });
                });
                if let Some(fault) = fault {
                    return Err(fault);
                }
                if doubtful {
                    self.doubtful.insert(index);
                }
            }
            let mut has_grown = false;
            for fact in found {
                has_grown |= self.add(fact);
            }
            if self.facts.len() as u64 > FACTS_MAX {
                return Err(Fault::Limit);
            }
            if !has_grown {
                return Ok(());
            }
        }
        Err(Fault::Limit)
    }

    /// Calls `visit` for every way to match the predicates of a body.
    fn each_match<'b>(&self, body: &'b Body, visit: &mut impl FnMut(&Bindings<'b>, &[usize], bool)) {
        self.match_rest(&body.predicates, &mut BTreeMap::new(), &mut Vec::new(), true, visit);
    }

    fn match_rest<'b>(
        &self,
        rest: &'b [Predicate],
        bindings: &mut Bindings<'b>,
        facts: &mut Vec<usize>,
        is_certain: bool,
        visit: &mut impl FnMut(&Bindings<'b>, &[usize], bool),
    ) {
        let Some((first, rest)) = rest.split_first() else { return visit(bindings, facts, is_certain) };
        for (index, fact) in self.of(&first.name) {
            let Some((mut bound, matches_certainly)) = unify(first, fact, bindings) else { continue };
            facts.push(index);
            self.match_rest(rest, &mut bound, facts, is_certain && matches_certainly, visit);
            facts.pop();
        }
    }
}

/// The bindings with which a predicate is this fact, and whether it is in any case.
pub(crate) fn unify<'b>(
    pattern: &'b Predicate,
    fact: &Known,
    bindings: &Bindings<'b>,
) -> Option<(Bindings<'b>, bool)> {
    if pattern.terms.len() != fact.terms.len() {
        return None;
    }
    let mut bound = bindings.clone();
    let mut is_certain = fact.is_certain;
    for (term, value) in pattern.terms.iter().zip(&fact.terms) {
        let known = match term {
            Term::Variable(name) => match bound.get(name.as_str()) {
                None => {
                    bound.insert(name, value.clone());
                    continue;
                }
                Some(known) => known.clone(),
            },
            constant => Some(constant.clone()),
        };
        match (known, value) {
            (Some(known), Some(value)) if known != *value => return None,
            (Some(_), Some(_)) => {}
            (None, Some(value)) => {
                if let Term::Variable(name) = term {
                    bound.insert(name, Some(value.clone()));
                }
                is_certain = false;
            }
            (_, None) => is_certain = false,
        }
    }
    Some((bound, is_certain))
}

/// What a term stands for, as far as it is known.
pub(crate) fn value_of(term: &Term, bindings: &Bindings<'_>) -> Option<Term> {
    match term {
        Term::Variable(name) => bindings.get(name.as_str()).cloned().flatten(),
        constant => Some(constant.clone()),
    }
}

/// A predicate with what is known of its variables in their places.
pub(crate) fn filled_predicate(predicate: &Predicate, bindings: &Bindings<'_>) -> Predicate {
    let terms = predicate.terms.iter().map(|term| value_of(term, bindings).unwrap_or_else(|| term.clone()));
    Predicate::new(predicate.name.clone(), terms.collect::<Vec<_>>())
}

/// An expression with what is known of its variables in their places.
pub(crate) fn filled(expression: &Expression, bindings: &Bindings<'_>) -> String {
    fn fill(expression: &Expression, bindings: &Bindings<'_>) -> Expression {
        match &expression.node {
            Node::Term(term) => value_of(term, bindings).unwrap_or_else(|| term.clone()).into(),
            Node::Unary(op, operand) => Node::Unary(*op, Box::new(fill(operand, bindings))).into(),
            Node::Binary(op, left, right) => {
                Expression::binary(*op, fill(left, bindings), fill(right, bindings))
            }
        }
    }
    fill(expression, bindings).to_string()
}

/// Whether the conditions of a body hold.
enum Held {
    Yes,
    Maybe,
    No,
    Fault(String, &'static str),
}

/// As the engine does: in their order, and the first that is false ends it.
fn hold(body: &Body, bindings: &Bindings<'_>) -> Held {
    let mut held = Held::Yes;
    for expression in &body.expressions {
        match evaluate(expression, bindings) {
            Ok(Some(Term::Bool(true))) => {}
            Ok(Some(Term::Bool(false))) => return Held::No,
            Ok(None) => held = Held::Maybe,
            // Behind a condition nobody can evaluate yet, a fault is only possible.
            _ if matches!(held, Held::Maybe) => {}
            Ok(Some(_)) => return Held::Fault(filled(expression, bindings), "it is neither true nor false"),
            Err(why) => return Held::Fault(filled(expression, bindings), why),
        }
    }
    held
}

/// The value of an expression, by the engine's rules; `None` if it hangs on a value nobody recorded.
///
/// # Errors
/// Why it cannot be evaluated.
pub(crate) fn evaluate(
    expression: &Expression,
    bindings: &Bindings<'_>,
) -> Result<Option<Term>, &'static str> {
    match &expression.node {
        Node::Term(term) => Ok(value_of(term, bindings)),
        Node::Unary(op, operand) => {
            let Some(operand) = evaluate(operand, bindings)? else { return Ok(None) };
            let length = |length: usize| Ok(Some(Term::Integer(i64::try_from(length).unwrap_or(i64::MAX))));
            match (op, operand) {
                (Unary::Not, Term::Bool(value)) => Ok(Some(Term::Bool(!value))),
                (Unary::Length, Term::Str(text)) => length(text.len()),
                (Unary::Length, Term::Bytes(bytes)) => length(bytes.len()),
                (Unary::Length, Term::Set(members)) => length(members.len()),
                _ => Err(TYPES),
            }
        }
        Node::Binary(op @ (Binary::And | Binary::Or), left, right) => match (op, evaluate(left, bindings)?) {
            (Binary::And, Some(Term::Bool(false))) => Ok(Some(Term::Bool(false))),
            (Binary::Or, Some(Term::Bool(true))) => Ok(Some(Term::Bool(true))),
            (_, Some(Term::Bool(_))) => evaluate(right, bindings),
            (_, Some(_)) => Err(TYPES),
            (_, None) => match (op, evaluate(right, bindings)) {
                // Whatever the left side is; unless it cannot be evaluated, which is possible anyhow.
                (Binary::And, Ok(Some(Term::Bool(false)))) => Ok(Some(Term::Bool(false))),
                _ => Ok(None),
            },
        },
        Node::Binary(op, left, right) => {
            let (left, right) = (evaluate(left, bindings)?, evaluate(right, bindings)?);
            let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
            binary(*op, left, right).map(Some)
        }
    }
}

const TYPES: &str = "the values are of types this is not defined for";

fn binary(op: Binary, left: Term, right: Term) -> Result<Term, &'static str> {
    use Term::{Bool, Bytes, Date, Integer, Set, Str};
    let order = |wanted: fn(Ordering) -> bool| match (&left, &right) {
        (Integer(left), Integer(right)) => Ok(Bool(wanted(left.cmp(right)))),
        (Date(left), Date(right)) => Ok(Bool(wanted(left.cmp(right)))),
        _ => Err(TYPES),
    };
    let same_type = std::mem::discriminant(&left) == std::mem::discriminant(&right);
    match op {
        Binary::LessThan => return order(Ordering::is_lt),
        Binary::LessOrEqual => return order(Ordering::is_le),
        Binary::GreaterThan => return order(Ordering::is_gt),
        Binary::GreaterOrEqual => return order(Ordering::is_ge),
        Binary::Equal if same_type => return Ok(Bool(left == right)),
        Binary::NotEqual if same_type => return Ok(Bool(left != right)),
        _ => {}
    }
    let overflow = "the result does not fit into 64 bits";
    match (op, left, right) {
        (Binary::Add, Integer(left), Integer(right)) => left.checked_add(right).map(Integer).ok_or(overflow),
        (Binary::Subtract, Integer(left), Integer(right)) => {
            left.checked_sub(right).map(Integer).ok_or(overflow)
        }
        (Binary::Multiply, Integer(left), Integer(right)) => {
            left.checked_mul(right).map(Integer).ok_or(overflow)
        }
        (Binary::Divide, Integer(left), Integer(right)) => {
            left.checked_div(right).map(Integer).ok_or("a number is divided by zero")
        }
        (Binary::Add, Str(left), Str(right)) => Ok(Str(left + &right)),
        (Binary::Contains, Set(whole), Set(part)) => Ok(Bool(part.is_subset(&whole))),
        (Binary::Contains, Set(members), one @ (Integer(_) | Date(_) | Bool(_) | Str(_) | Bytes(_))) => {
            Ok(Bool(members.contains(&one)))
        }
        (Binary::Contains, Str(text), Str(part)) => Ok(Bool(text.contains(&part))),
        (Binary::StartsWith, Str(text), Str(part)) => Ok(Bool(text.starts_with(&part))),
        (Binary::EndsWith, Str(text), Str(part)) => Ok(Bool(text.ends_with(&part))),
        (Binary::Intersection, Set(left), Set(right)) => {
            Ok(Set(left.intersection(&right).cloned().collect()))
        }
        (Binary::Union, Set(left), Set(right)) => Ok(Set(left.union(&right).cloned().collect())),
        _ => Err(TYPES),
    }
}
