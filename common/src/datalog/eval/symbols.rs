//! Terms as small values: whatever is longer than a word is numbered.

use std::collections::BTreeMap;

use crate::datalog::Term;

/// A constant; equal if and only if the terms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Bool(bool),
    Date(u64),
    Integer(i64),
    /// A text, a byte string or a set, by number.
    Symbol(u32),
}

fn small(term: &Term) -> Option<Value> {
    Some(match term {
        Term::Bool(value) => Value::Bool(*value),
        Term::Date(secs) => Value::Date(*secs),
        Term::Integer(value) => Value::Integer(*value),
        Term::Bytes(_) | Term::Set(_) | Term::Str(_) | Term::Variable(_) => return None,
    })
}

/// The symbols of a program.
#[derive(Clone, Debug, Default)]
pub(super) struct Symbols {
    terms: Vec<Term>,
    numbers: BTreeMap<Term, u32>,
}

impl Symbols {
    /// The value of a constant; `None` for a variable.
    pub(super) fn intern(&mut self, term: &Term) -> Option<Value> {
        if let Some(value) = small(term) {
            return Some(value);
        }
        if matches!(term, Term::Variable(_)) {
            return None;
        }
        let next = u32::try_from(self.terms.len()).ok()?;
        let number = *self.numbers.entry(term.clone()).or_insert(next);
        if number == next {
            self.terms.push(term.clone());
        }
        Some(Value::Symbol(number))
    }
}

/// The symbols of a run, on top of its program's.
pub(super) struct Overlay<'p> {
    program: &'p Symbols,
    terms: Vec<Term>,
    /// Positions in `terms`, in the order of the terms.
    sorted: Vec<usize>,
}

impl<'p> Overlay<'p> {
    pub(super) fn new(program: &'p Symbols) -> Self {
        Self { program, terms: Vec::new(), sorted: Vec::new() }
    }

    fn place(&self, term: &Term) -> Result<usize, usize> {
        self.sorted.binary_search_by(|at| self.terms.get(*at).cmp(&Some(term)))
    }

    fn own(&self, at: usize) -> Option<Value> {
        u32::try_from(self.program.terms.len() + at).ok().map(Value::Symbol)
    }

    /// The value of a constant that was met before.
    pub(super) fn find(&self, term: &Term) -> Option<Value> {
        let program = || self.program.numbers.get(term).copied().map(Value::Symbol);
        let own = || self.own(*self.sorted.get(self.place(term).ok()?)?);
        small(term).or_else(program).or_else(own)
    }

    /// The value of a constant; `None` for a variable.
    pub(super) fn intern(&mut self, term: &Term) -> Option<Value> {
        if let Some(value) = small(term) {
            return Some(value);
        }
        if matches!(term, Term::Variable(_)) {
            return None;
        }
        if let Some(number) = self.program.numbers.get(term) {
            return Some(Value::Symbol(*number));
        }
        let at = match self.place(term) {
            Ok(place) => *self.sorted.get(place)?,
            Err(place) => {
                self.sorted.insert(place, self.terms.len());
                self.terms.push(term.clone());
                self.terms.len() - 1
            }
        };
        self.own(at)
    }

    /// The term of a numbered value.
    pub(super) fn numbered(&self, number: u32) -> Option<&Term> {
        let number = usize::try_from(number).ok()?;
        match number.checked_sub(self.program.terms.len()) {
            None => self.program.terms.get(number),
            Some(own) => self.terms.get(own),
        }
    }

    /// The term of a value.
    pub(super) fn term(&self, value: Value) -> Option<Term> {
        Some(match value {
            Value::Bool(value) => Term::Bool(value),
            Value::Date(secs) => Term::Date(secs),
            Value::Integer(value) => Term::Integer(value),
            Value::Symbol(number) => self.numbered(number)?.clone(),
        })
    }
}
