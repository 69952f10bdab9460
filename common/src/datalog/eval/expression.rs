//! The value of an expression, as biscuit-auth's engine gives it (`datalog/expression.rs` there).

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    Fault,
    symbols::{Overlay, Value},
};
use crate::datalog::{Binary, Expression, Node, Term, Unary};

const TYPES: Fault = Fault::Expression("types do not fit");
const OVERFLOW: Fault = Fault::Expression("overflow");

/// An expression whose variables are numbered.
#[derive(Clone, Debug)]
pub(super) enum Compiled {
    Binary(Binary, Box<Compiled>, Box<Compiled>),
    Constant(Term),
    Slot(usize),
    Unary(Unary, Box<Compiled>),
    /// A variable no predicate binds.
    Unbound,
}

/// A value while it is computed with.
enum Operand<'a> {
    Bool(bool),
    Bytes(&'a [u8]),
    Date(u64),
    Integer(i64),
    Set(Cow<'a, BTreeSet<Term>>),
    Text(Cow<'a, str>),
}

impl<'a> Operand<'a> {
    fn of(term: &'a Term) -> Option<Self> {
        Some(match term {
            Term::Bool(value) => Self::Bool(*value),
            Term::Bytes(bytes) => Self::Bytes(bytes),
            Term::Date(secs) => Self::Date(*secs),
            Term::Integer(value) => Self::Integer(*value),
            Term::Set(members) => Self::Set(Cow::Borrowed(members)),
            Term::Str(text) => Self::Text(Cow::Borrowed(text)),
            Term::Variable(_) => return None,
        })
    }

    fn of_value(value: Value, symbols: &'a Overlay<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(value),
            Value::Date(secs) => Self::Date(secs),
            Value::Integer(value) => Self::Integer(value),
            Value::Symbol(number) => return Self::of(symbols.numbered(number)?),
        })
    }

    fn into_term(self) -> Term {
        match self {
            Self::Bool(value) => Term::Bool(value),
            Self::Bytes(bytes) => Term::Bytes(bytes.to_vec()),
            Self::Date(secs) => Term::Date(secs),
            Self::Integer(value) => Term::Integer(value),
            Self::Set(members) => Term::Set(members.into_owned()),
            Self::Text(text) => Term::Str(text.into_owned()),
        }
    }
}

impl Compiled {
    pub(super) fn of(expression: &Expression, slot: &dyn Fn(&str) -> Option<usize>) -> Self {
        match &expression.node {
            Node::Term(Term::Variable(name)) => slot(name).map_or(Self::Unbound, Self::Slot),
            Node::Term(constant) => Self::Constant(constant.clone()),
            Node::Unary(op, operand) => Self::Unary(*op, Box::new(Self::of(operand, slot))),
            Node::Binary(op, left, right) => {
                Self::Binary(*op, Box::new(Self::of(left, slot)), Box::new(Self::of(right, slot)))
            }
        }
    }

    /// Whether a condition holds; anything but true and false is a fault.
    pub(super) fn holds(&self, slots: &[Value], symbols: &Overlay<'_>) -> Result<bool, Fault> {
        match self.value(slots, symbols)? {
            Operand::Bool(value) => Ok(value),
            _ => Err(TYPES),
        }
    }

    fn value<'a>(&'a self, slots: &[Value], symbols: &'a Overlay<'_>) -> Result<Operand<'a>, Fault> {
        const UNBOUND: Fault = Fault::Expression("unknown variable");
        match self {
            Self::Unbound => Err(UNBOUND),
            Self::Constant(term) => Operand::of(term).ok_or(UNBOUND),
            Self::Slot(slot) => {
                let value = slots.get(*slot).and_then(|value| Operand::of_value(*value, symbols));
                value.ok_or(UNBOUND)
            }
            Self::Unary(op, operand) => match (op, operand.value(slots, symbols)?) {
                (Unary::Not, Operand::Bool(value)) => Ok(Operand::Bool(!value)),
                (Unary::Length, Operand::Text(text)) => length(text.len()),
                (Unary::Length, Operand::Bytes(bytes)) => length(bytes.len()),
                (Unary::Length, Operand::Set(members)) => length(members.len()),
                _ => Err(TYPES),
            },
            // What is not needed is not evaluated, and what is, is taken as it is.
            Self::Binary(Binary::And, left, right) => match left.value(slots, symbols)? {
                Operand::Bool(true) => right.value(slots, symbols),
                Operand::Bool(false) => Ok(Operand::Bool(false)),
                _ => Err(TYPES),
            },
            Self::Binary(Binary::Or, left, right) => match left.value(slots, symbols)? {
                Operand::Bool(false) => right.value(slots, symbols),
                Operand::Bool(true) => Ok(Operand::Bool(true)),
                _ => Err(TYPES),
            },
            Self::Binary(op, left, right) => {
                binary(*op, left.value(slots, symbols)?, right.value(slots, symbols)?)
            }
        }
    }
}

fn length<'a>(length: usize) -> Result<Operand<'a>, Fault> {
    i64::try_from(length).map(Operand::Integer).map_err(|_| OVERFLOW)
}

fn binary<'a>(op: Binary, left: Operand<'a>, right: Operand<'a>) -> Result<Operand<'a>, Fault> {
    use Operand::{Bool, Bytes, Date, Integer, Set, Text};
    match (left, right) {
        (Integer(left), Integer(right)) => match op {
            Binary::Add => left.checked_add(right).map(Integer).ok_or(OVERFLOW),
            Binary::Subtract => left.checked_sub(right).map(Integer).ok_or(OVERFLOW),
            Binary::Multiply => left.checked_mul(right).map(Integer).ok_or(OVERFLOW),
            Binary::Divide => {
                left.checked_div(right).map(Integer).ok_or(Fault::Expression("division by zero"))
            }
            op => compared(op, &left, &right),
        },
        (Date(left), Date(right)) => compared(op, &left, &right),
        (Bool(left), Bool(right)) => same(op, &left, &right),
        (Bytes(left), Bytes(right)) => same(op, &left, &right),
        (Text(left), Text(right)) => match op {
            Binary::Add => Ok(Text(Cow::Owned(left.into_owned() + &right))),
            Binary::Contains => Ok(Bool(left.contains(&*right))),
            Binary::StartsWith => Ok(Bool(left.starts_with(&*right))),
            Binary::EndsWith => Ok(Bool(left.ends_with(&*right))),
            op => same(op, &left, &right),
        },
        (Set(left), Set(right)) => match op {
            Binary::Contains => Ok(Bool(left.is_superset(&right))),
            Binary::Intersection => Ok(Set(Cow::Owned(left.intersection(&right).cloned().collect()))),
            Binary::Union => Ok(Set(Cow::Owned(left.union(&right).cloned().collect()))),
            op => same(op, &left, &right),
        },
        (Set(members), member) if op == Binary::Contains => Ok(Bool(members.contains(&member.into_term()))),
        _ => Err(TYPES),
    }
}

fn same<'a, T: PartialEq>(op: Binary, left: &T, right: &T) -> Result<Operand<'a>, Fault> {
    match op {
        Binary::Equal => Ok(Operand::Bool(left == right)),
        Binary::NotEqual => Ok(Operand::Bool(left != right)),
        _ => Err(TYPES),
    }
}

fn compared<'a, T: Ord>(op: Binary, left: &T, right: &T) -> Result<Operand<'a>, Fault> {
    Ok(Operand::Bool(match op {
        Binary::LessThan => left < right,
        Binary::LessOrEqual => left <= right,
        Binary::GreaterThan => left > right,
        Binary::GreaterOrEqual => left >= right,
        op => return same(op, left, right),
    }))
}
