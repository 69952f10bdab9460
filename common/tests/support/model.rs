//! What a check means, told a second time and naively, to compare the engine with.
//!
//! Only for checks of the profile. An expression that cannot be evaluated counts as false: the engine then
//! denies as well, though with another reason.

use writ_common::datalog::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Term, Unary};

type Bindings<'a> = Vec<(&'a str, &'a Term)>;

/// Whether the check holds over these facts.
pub fn holds(check: &Check, facts: &[Predicate]) -> bool {
    check.alternatives.iter().any(|body| {
        let mut matches = Vec::new();
        find_matches(body, facts, &mut Vec::new(), &mut matches);
        match check.kind {
            CheckKind::One => matches.contains(&true),
            CheckKind::All => !matches.is_empty() && !matches.contains(&false),
        }
    })
}

/// For every way to match the body's predicates, whether its expressions are true.
fn find_matches<'a>(body: &'a Body, facts: &'a [Predicate], bound: &mut Bindings<'a>, found: &mut Vec<bool>) {
    fn walk<'a>(
        rest: &'a [Predicate],
        body: &'a Body,
        facts: &'a [Predicate],
        bound: &mut Bindings<'a>,
        found: &mut Vec<bool>,
    ) {
        let Some((first, rest)) = rest.split_first() else {
            found.push(body.expressions.iter().all(|e| value(e, bound) == Some(Term::Bool(true))));
            return;
        };
        for fact in facts.iter().filter(|fact| fact.name == first.name) {
            let mark = bound.len();
            if fact.terms.len() == first.terms.len()
                && first.terms.iter().zip(&fact.terms).all(|(pattern, term)| unify(pattern, term, bound))
            {
                walk(rest, body, facts, bound, found);
            }
            bound.truncate(mark);
        }
    }
    walk(&body.predicates, body, facts, bound, found);
}

fn unify<'a>(pattern: &'a Term, term: &'a Term, bound: &mut Bindings<'a>) -> bool {
    let Term::Variable(name) = pattern else { return pattern == term };
    match bound.iter().find(|(other, _)| other == name) {
        Some((_, value)) => *value == term,
        None => {
            bound.push((name, term));
            true
        }
    }
}

fn value(expression: &Expression, bound: &Bindings<'_>) -> Option<Term> {
    Some(match &expression.node {
        Node::Term(Term::Variable(name)) => {
            bound.iter().find(|(other, _)| other == name).map(|(_, value)| (*value).clone())?
        }
        Node::Term(term) => term.clone(),
        Node::Unary(op, operand) => match (op, value(operand, bound)?) {
            (Unary::Not, Term::Bool(value)) => Term::Bool(!value),
            (Unary::Length, Term::Str(text)) => Term::Integer(i64::try_from(text.len()).ok()?),
            (Unary::Length, Term::Bytes(bytes)) => Term::Integer(i64::try_from(bytes.len()).ok()?),
            (Unary::Length, Term::Set(members)) => Term::Integer(i64::try_from(members.len()).ok()?),
            _ => return None,
        },
        Node::Binary(Binary::And, left, right) => match value(left, bound)? {
            Term::Bool(true) => value(right, bound)?,
            Term::Bool(false) => Term::Bool(false),
            _ => return None,
        },
        Node::Binary(Binary::Or, left, right) => match value(left, bound)? {
            Term::Bool(true) => Term::Bool(true),
            Term::Bool(false) => value(right, bound)?,
            _ => return None,
        },
        Node::Binary(op, left, right) => {
            Term::Bool(compare(*op, &value(left, bound)?, &value(right, bound)?)?)
        }
    })
}

fn compare(op: Binary, left: &Term, right: &Term) -> Option<bool> {
    use Term::{Date, Integer, Set, Str};
    let ordered = match (left, right) {
        (Integer(left), Integer(right)) => Some(left.cmp(right)),
        (Date(left), Date(right)) => Some(left.cmp(right)),
        _ => None,
    };
    let same_type = std::mem::discriminant(left) == std::mem::discriminant(right);
    Some(match (op, left, right) {
        (Binary::LessThan, ..) => ordered?.is_lt(),
        (Binary::LessOrEqual, ..) => ordered?.is_le(),
        (Binary::GreaterThan, ..) => ordered?.is_gt(),
        (Binary::GreaterOrEqual, ..) => ordered?.is_ge(),
        (Binary::Equal, ..) if same_type => left == right,
        (Binary::NotEqual, ..) if same_type => left != right,
        (Binary::Contains, Set(whole), Set(part)) => part.is_subset(whole),
        (Binary::Contains, Set(members), member) => members.contains(member),
        (Binary::Contains, Str(text), Str(part)) => text.contains(part.as_str()),
        (Binary::StartsWith, Str(text), Str(part)) => text.starts_with(part.as_str()),
        (Binary::EndsWith, Str(text), Str(part)) => text.ends_with(part.as_str()),
        _ => return None,
    })
}
