//! Rights for certain calls only: what a policy pins, and the bounds of the authority block that come of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Right, block::PREDICATES_MAX};
use crate::datalog::{Body, Check, CheckKind, Predicate, Term};

/// Most arguments of an alternative that also says what is called.
const ARGUMENTS_MAX: usize = PREDICATES_MAX - 2;

/// The calls that rights are for, each by the values some of its arguments have to have. A right that is not here is for
/// every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins(BTreeMap<Right, BTreeSet<BTreeMap<String, Term>>>);

impl Pins {
    /// Adds a call: JSON Pointers with the value of the fact each argument becomes.
    pub fn insert(&mut self, right: Right, call: BTreeMap<String, Term>) {
        self.0.entry(right).or_default().insert(call);
    }

    /// The calls, by right.
    pub fn iter(&self) -> impl Iterator<Item = (&Right, &BTreeSet<BTreeMap<String, Term>>)> {
        self.0.iter()
    }

    /// The bounds of a grant of `rights`: a call under a right that is pinned has the values of one of its calls, and any
    /// other is as it is.
    ///
    /// An alternative has room for four arguments. Those of longer calls are looked at four by four, so that two long
    /// calls of one right let through what is one of them up to there and the other from there on.
    #[must_use]
    pub fn bounds(&self, rights: &BTreeSet<Right>) -> Vec<Check> {
        let granted = self.0.iter().filter(|(right, _)| rights.contains(*right));
        granted.flat_map(|(right, calls)| bounds_of(right, calls, rights)).collect()
    }
}

fn bounds_of(
    right: &Right,
    calls: &BTreeSet<BTreeMap<String, Term>>,
    rights: &BTreeSet<Right>,
) -> Vec<Check> {
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
