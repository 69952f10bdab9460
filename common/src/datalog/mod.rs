//! The Datalog that capabilities and policies are written in, as a syntax tree.
//!
//! A subset of Biscuit's language (Biscuit specification, section "Datalog"): no scopes, no external calls, no
//! regular expressions, no closures with parameters, no arrays or maps. Equality is strict (`===`, `!==`): the
//! lenient `==` says yes to `"1" != 1`. The text written by `Display` parses back to the same tree; unlike
//! biscuit-auth's own it escapes quotes.

mod display;
pub(crate) mod eval;

use std::collections::BTreeSet;

/// Where something stands in a source text, in bytes. Empty for what was never text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// Positions are about the text, not the meaning: two trees are equal wherever they were written.
impl PartialEq for Span {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Span {}

impl Span {
    /// The span from the start of this to the end of `other`.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start, end: other.end }
    }
}

/// A constant or a variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Term {
    /// `true`, `false`.
    Bool(bool),
    /// `hex:0a0b`.
    Bytes(Vec<u8>),
    /// Seconds since the epoch, written in RFC 3339.
    Date(u64),
    /// A signed 64-bit integer.
    Integer(i64),
    /// `{1, 2}`; constants only.
    Set(BTreeSet<Term>),
    /// `"text"`.
    Str(String),
    /// `$name`.
    Variable(String),
}

/// A predicate with its terms: `right("tool.crm", $action)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// Its name.
    pub name: String,
    /// Its terms.
    pub terms: Vec<Term>,
    /// Where it stands.
    pub span: Span,
}

/// An operator with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// `!a`
    Not,
    /// `a.length()`
    Length,
}

/// An operator with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`; on strings concatenation.
    Add,
    /// `a && b`, the right side only if the left is true.
    And,
    /// `a.contains(b)`
    Contains,
    /// `a / b`
    Divide,
    /// `a.ends_with(b)`
    EndsWith,
    /// `a === b`
    Equal,
    /// `a >= b`
    GreaterOrEqual,
    /// `a > b`
    GreaterThan,
    /// `a.intersection(b)`
    Intersection,
    /// `a <= b`
    LessOrEqual,
    /// `a < b`
    LessThan,
    /// `a * b`
    Multiply,
    /// `a !== b`
    NotEqual,
    /// `a || b`, the right side only if the left is false.
    Or,
    /// `a.starts_with(b)`
    StartsWith,
    /// `a - b`
    Subtract,
    /// `a.union(b)`
    Union,
}

/// A condition over terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// What it is.
    pub node: Node,
    /// Where it stands.
    pub span: Span,
}

/// The node of an [`Expression`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A constant or a variable.
    Term(Term),
    /// One operand.
    Unary(Unary, Box<Expression>),
    /// Two operands.
    Binary(Binary, Box<Expression>, Box<Expression>),
}

impl From<Node> for Expression {
    fn from(node: Node) -> Self {
        Self { node, span: Span::default() }
    }
}

impl Expression {
    /// `left op right`.
    #[must_use]
    pub fn binary(op: Binary, left: impl Into<Self>, right: impl Into<Self>) -> Self {
        Node::Binary(op, Box::new(left.into()), Box::new(right.into())).into()
    }

    /// Calls `visit` for every node, parents first.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Self)) {
        visit(self);
        match &self.node {
            Node::Term(_) => {}
            Node::Unary(_, operand) => operand.walk(visit),
            Node::Binary(_, left, right) => {
                left.walk(visit);
                right.walk(visit);
            }
        }
    }
}

impl From<Term> for Expression {
    fn from(term: Term) -> Self {
        Node::Term(term).into()
    }
}

/// What must hold together: every predicate matches, every expression is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Facts to match.
    pub predicates: Vec<Predicate>,
    /// Conditions on what was matched.
    pub expressions: Vec<Expression>,
}

/// How often a check's body has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// `check if`: for at least one match.
    One,
    /// `check all`: for every match, and there is at least one.
    All,
}

/// A condition a capability carries: one of its alternatives has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `check if` or `check all`.
    pub kind: CheckKind,
    /// The alternatives, joined by `or`.
    pub alternatives: Vec<Body>,
}

/// `head <- body`: derives a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What is derived.
    pub head: Predicate,
    /// From what.
    pub body: Body,
}

impl Predicate {
    /// A predicate that was never text.
    #[must_use]
    pub fn new(name: impl Into<String>, terms: impl Into<Vec<Term>>) -> Self {
        Self { name: name.into(), terms: terms.into(), span: Span::default() }
    }
}

impl Term {
    /// `"text"`.
    #[must_use]
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// `$name`.
    #[must_use]
    pub fn var(name: impl Into<String>) -> Self {
        Self::Variable(name.into())
    }
}

impl From<&str> for Term {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<i64> for Term {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Term {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
