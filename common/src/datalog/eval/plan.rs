//! In which order a body is matched.

use super::{expression::Compiled, symbols::Value};
use crate::datalog::{Body as Source, Term};

/// A body with its variables numbered.
#[derive(Clone, Debug)]
pub(super) struct Body {
    atoms: Vec<Atom>,
    pub(super) expressions: Vec<Compiled>,
    /// How many variables there are.
    pub(super) slots: usize,
}

#[derive(Clone, Debug)]
struct Atom {
    relation: usize,
    terms: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Constant(Value),
    Variable(usize),
}

/// The predicates of a body, in the order they are matched.
pub(super) type Plan = Vec<Step>;

/// One predicate.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) relation: usize,
    pub(super) columns: Vec<Column>,
    /// Columns whose value is known before.
    pub(super) keys: Vec<usize>,
}

/// What is to be done with a column.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    Bind(usize),
    Constant(Value),
    Equal(usize),
}

impl Column {
    /// The value the column has to have, for those of [`Step::keys`].
    pub(super) fn known(self, slots: &[Value]) -> Option<Value> {
        match self {
            Self::Bind(_) => None,
            Self::Constant(value) => Some(value),
            Self::Equal(slot) => slots.get(slot).copied(),
        }
    }

    /// Compares or binds.
    pub(super) fn take(self, value: Value, slots: &mut [Value]) -> bool {
        match self {
            Self::Constant(constant) => constant == value,
            Self::Equal(slot) => slots.get(slot) == Some(&value),
            Self::Bind(slot) => slots.get_mut(slot).map(|bound| *bound = value).is_some(),
        }
    }
}

/// A term of a head.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadTerm {
    Constant(Value),
    Slot(usize),
}

impl HeadTerm {
    pub(super) fn value(self, slots: &[Value]) -> Option<Value> {
        match self {
            Self::Constant(value) => Some(value),
            Self::Slot(slot) => slots.get(slot).copied(),
        }
    }
}

/// Numbers the variables of one rule or check.
#[derive(Default)]
pub(super) struct Planner {
    variables: Vec<String>,
}

impl Planner {
    fn slot(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|known| known == name)
    }

    /// Compiles a body; `intern` gives constants a value.
    pub(super) fn body(
        &mut self,
        body: &Source,
        relations: &[usize],
        intern: &mut dyn FnMut(&Term) -> Option<Value>,
    ) -> Body {
        let atoms = body.predicates.iter().zip(relations).map(|(predicate, relation)| {
            let terms = predicate.terms.iter().filter_map(|term| match term {
                Term::Variable(name) => Some(Slot::Variable(self.slot(name).unwrap_or_else(|| {
                    self.variables.push(name.clone());
                    self.variables.len() - 1
                }))),
                constant => intern(constant).map(Slot::Constant),
            });
            Atom { relation: *relation, terms: terms.collect() }
        });
        let atoms = atoms.collect();
        let slot = |name: &str| self.slot(name);
        let expressions = body.expressions.iter().map(|expression| Compiled::of(expression, &slot)).collect();
        Body { atoms, expressions, slots: self.variables.len() }
    }

    /// Compiles a term of the head; `None` if the body does not bind it.
    pub(super) fn head(
        &self,
        term: &Term,
        intern: &mut dyn FnMut(&Term) -> Option<Value>,
    ) -> Option<HeadTerm> {
        match term {
            Term::Variable(name) => self.slot(name).map(HeadTerm::Slot),
            constant => intern(constant).map(HeadTerm::Constant),
        }
    }
}

impl Body {
    /// Every constant that has to stand in a column of a relation.
    pub(super) fn constants(&self) -> impl Iterator<Item = (usize, usize, Value)> {
        self.atoms.iter().flat_map(|atom| {
            atom.terms.iter().enumerate().filter_map(|(column, term)| match term {
                Slot::Constant(value) => Some((atom.relation, column, *value)),
                Slot::Variable(_) => None,
            })
        })
    }

    /// Orders the predicates, `first` before all others: next is always the one of which the most is known, and of
    /// several the one with the fewest fixed facts.
    pub(super) fn plan(&self, first: Option<usize>, size: impl Fn(usize) -> usize) -> Plan {
        let mut left: Vec<usize> = (0..self.atoms.len()).collect();
        let mut is_bound = vec![false; self.slots];
        let mut plan = Plan::new();
        while !left.is_empty() {
            let unknown = |atom: &Atom| {
                let is_open = |term: &&Slot| match term {
                    Slot::Constant(_) => false,
                    Slot::Variable(slot) => !is_bound.get(*slot).copied().unwrap_or(false),
                };
                atom.terms.iter().filter(is_open).count()
            };
            let price = |at: &usize| {
                let Some(atom) = self.atoms.get(*at) else { return (usize::MAX, 0, 0) };
                let open = unknown(atom);
                let is_free = open == atom.terms.len() && open > 0;
                (usize::from(open > 0) + usize::from(is_free) * size(atom.relation).max(1), open, *at)
            };
            let next = first.filter(|first| left.contains(first));
            let Some(next) = next.or_else(|| left.iter().copied().min_by_key(price)) else { break };
            left.retain(|at| *at != next);
            if let Some(atom) = self.atoms.get(next) {
                plan.push(atom.step(&mut is_bound));
            }
        }
        plan
    }
}

impl Atom {
    fn step(&self, is_bound: &mut [bool]) -> Step {
        let (mut columns, mut keys) = (Vec::new(), Vec::new());
        let before = is_bound.to_vec();
        for (column, term) in self.terms.iter().enumerate() {
            columns.push(match term {
                Slot::Constant(value) => {
                    keys.push(column);
                    Column::Constant(*value)
                }
                Slot::Variable(slot) => match is_bound.get_mut(*slot) {
                    Some(bound @ false) => {
                        *bound = true;
                        Column::Bind(*slot)
                    }
                    _ => {
                        if before.get(*slot) == Some(&true) {
                            keys.push(column);
                        }
                        Column::Equal(*slot)
                    }
                },
            });
        }
        Step { relation: self.relation, columns, keys }
    }
}
