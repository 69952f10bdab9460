//! The facts of one predicate.

use std::collections::BTreeMap;

use super::symbols::Value;

/// From how many rows on a relation is indexed.
const INDEXED_FROM: usize = 12;

/// By which of three ways a fact came about: the capability states it, the verifier states it or rules derive it from
/// what the verifier states alone, or rules derive it with something of the capability. The reference engine keeps
/// these apart and counts each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(u8);

impl Bits {
    pub(super) const CAPABILITY: Self = Self(1);
    pub(super) const VERIFIER: Self = Self(2);
    const DERIVED_WITH: Self = Self(4);

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The ways a match with one more fact can have come about.
    pub(super) fn joined(self, fact: Self) -> Self {
        let alone = Self(self.0 & fact.0 & Self::VERIFIER.0);
        let with = Self::CAPABILITY.or(Self::DERIVED_WITH);
        if self.has(with) || fact.has(with) { alone.or(Self::DERIVED_WITH) } else { alone }
    }
}

/// Rows, each once.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    arity: usize,
    values: Vec<Value>,
    bits: Vec<Bits>,
    /// Once there are many rows: where each is, and where those with a value in a column are.
    places: BTreeMap<Box<[Value]>, usize>,
    columns: Vec<BTreeMap<Value, Vec<usize>>>,
}

impl Rows {
    pub(super) fn new(arity: usize) -> Self {
        Self { arity, values: Vec::new(), bits: Vec::new(), places: BTreeMap::new(), columns: Vec::new() }
    }

    pub(super) fn arity(&self) -> usize {
        self.arity
    }

    pub(super) fn len(&self) -> usize {
        self.bits.len()
    }

    fn is_indexed(&self) -> bool {
        self.len() >= INDEXED_FROM
    }

    fn row(&self, at: usize) -> Option<(&[Value], Bits)> {
        let start = at.checked_mul(self.arity)?;
        Some((self.values.get(start..start + self.arity)?, *self.bits.get(at)?))
    }

    fn iter(&self) -> impl Iterator<Item = (&[Value], Bits)> {
        (0..self.len()).filter_map(|at| self.row(at))
    }

    fn place(&self, row: &[Value]) -> Option<usize> {
        if self.is_indexed() {
            return self.places.get(row).copied();
        }
        self.iter().position(|(known, _)| known == row)
    }

    /// Whether some row has the value in the column.
    pub(super) fn has(&self, column: usize, value: Value) -> bool {
        if self.is_indexed() {
            return self.columns.get(column).is_some_and(|values| values.contains_key(&value));
        }
        self.iter().any(|(row, _)| row.get(column) == Some(&value))
    }

    /// Adds a row, or ways it came about; where it is and how many ways are new, if any.
    pub(super) fn insert(&mut self, row: &[Value], bits: Bits) -> Option<(usize, usize)> {
        if let Some(at) = self.place(row) {
            let known = self.bits.get_mut(at)?;
            let added = known.or(bits).count() - known.count();
            *known = known.or(bits);
            return (added > 0).then_some((at, added));
        }
        let at = self.len();
        self.values.extend_from_slice(row);
        self.bits.push(bits);
        if self.len() == INDEXED_FROM {
            self.columns = vec![BTreeMap::new(); self.arity];
            for at in 0..self.len() {
                self.index(at);
            }
        } else if self.is_indexed() {
            self.index(at);
        }
        Some((at, bits.count()))
    }

    fn index(&mut self, at: usize) {
        let Some((row, _)) = self.row(at) else { return };
        let row: Box<[Value]> = row.into();
        for (column, value) in self.columns.iter_mut().zip(&row) {
            column.entry(*value).or_default().push(at);
        }
        self.places.insert(row, at);
    }

    /// Rows that may have these values in these columns; the caller compares.
    fn candidates(&self, keys: &[(usize, Value)]) -> Candidates<'_> {
        if !self.is_indexed() {
            return Candidates { rows: self, places: None, next: 0 };
        }
        let lists = keys.iter().filter_map(|(column, value)| {
            Some(self.columns.get(*column)?.get(value).map_or(&[][..], Vec::as_slice))
        });
        Candidates { rows: self, places: lists.min_by_key(|list| list.len()), next: 0 }
    }
}

struct Candidates<'r> {
    rows: &'r Rows,
    places: Option<&'r [usize]>,
    next: usize,
}

impl<'r> Iterator for Candidates<'r> {
    type Item = (&'r [Value], Bits);

    fn next(&mut self) -> Option<Self::Item> {
        let at = match self.places {
            Some(places) => *places.get(self.next)?,
            None => self.next,
        };
        self.next += 1;
        self.rows.row(at)
    }
}

/// The rows a program always has, and those of one run.
pub(super) struct Relation<'p> {
    fixed: Option<&'p Rows>,
    own: Rows,
}

impl<'p> Relation<'p> {
    pub(super) fn new(fixed: &'p Rows) -> Self {
        Self { fixed: Some(fixed).filter(|rows| rows.len() > 0), own: Rows::new(fixed.arity()) }
    }

    pub(super) fn empty(arity: usize) -> Self {
        Self { fixed: None, own: Rows::new(arity) }
    }

    /// Adds a row of this run; where it is and how many ways it came about are new, if any.
    pub(super) fn insert(&mut self, row: &[Value], bits: Bits) -> Option<(usize, usize)> {
        let known = self.fixed.and_then(|fixed| fixed.row(fixed.place(row)?)).map(|(_, known)| known);
        let bits = Bits(bits.0 & !known.unwrap_or_default().0);
        if bits == Bits::default() { None } else { self.own.insert(row, bits) }
    }

    pub(super) fn has(&self, row: &[Value]) -> bool {
        self.own.place(row).is_some() || self.fixed.is_some_and(|fixed| fixed.place(row).is_some())
    }

    pub(super) fn own(&self, at: usize) -> Option<(&[Value], Bits)> {
        self.own.row(at)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&[Value], Bits)> {
        self.fixed.into_iter().flat_map(Rows::iter).chain(self.own.iter())
    }

    /// Rows that may have these values in these columns; the caller compares.
    pub(super) fn candidates(&self, keys: &[(usize, Value)]) -> impl Iterator<Item = (&[Value], Bits)> {
        let fixed = self.fixed.map(|fixed| fixed.candidates(keys));
        fixed.into_iter().flatten().chain(self.own.candidates(keys))
    }
}
