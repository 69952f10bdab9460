//! Datalog text, written so that it reads back as the same tree.

use std::fmt::{self, Display, Formatter, Write as _};

use super::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Rule, Term, Unary};
use crate::time::Timestamp;

fn separated<T: Display>(f: &mut Formatter<'_>, items: &[T], separator: &str) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

impl Display for Term {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Bytes(bytes) => write!(f, "hex:{}", hex::encode(bytes)),
            Self::Date(secs) => {
                let text = Timestamp::from_secs(*secs).to_string();
                write!(f, "{}Z", text.split('.').next().unwrap_or_default())
            }
            Self::Integer(value) => write!(f, "{value}"),
            Self::Set(members) if members.is_empty() => f.write_str("{,}"),
            Self::Set(members) => {
                f.write_str("{")?;
                separated(f, &members.iter().collect::<Vec<_>>(), ", ")?;
                f.write_str("}")
            }
            Self::Str(text) => {
                f.write_char('"')?;
                for character in text.chars() {
                    match character {
                        '"' => f.write_str("\\\"")?,
                        '\\' => f.write_str("\\\\")?,
                        '\n' => f.write_str("\\n")?,
                        // Anything a terminal might act on is shown, not sent.
                        other if other.is_control() => write!(f, "\\u{{{:x}}}", u32::from(other))?,
                        other => f.write_char(other)?,
                    }
                }
                f.write_char('"')
            }
            Self::Variable(name) => write!(f, "${name}"),
        }
    }
}

impl Display for Predicate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        separated(f, &self.terms, ", ")?;
        f.write_str(")")
    }
}

impl Binary {
    /// How it is written, and how tightly it binds if it is written between its operands.
    pub(crate) fn notation(self) -> Notation {
        match self {
            Self::Or => Notation::Infix("||", 1),
            Self::And => Notation::Infix("&&", 2),
            Self::Equal => Notation::Infix("===", 3),
            Self::NotEqual => Notation::Infix("!==", 3),
            Self::LessThan => Notation::Infix("<", 3),
            Self::LessOrEqual => Notation::Infix("<=", 3),
            Self::GreaterThan => Notation::Infix(">", 3),
            Self::GreaterOrEqual => Notation::Infix(">=", 3),
            Self::Add => Notation::Infix("+", 4),
            Self::Subtract => Notation::Infix("-", 4),
            Self::Multiply => Notation::Infix("*", 5),
            Self::Divide => Notation::Infix("/", 5),
            Self::Contains => Notation::Method("contains"),
            Self::EndsWith => Notation::Method("ends_with"),
            Self::Intersection => Notation::Method("intersection"),
            Self::StartsWith => Notation::Method("starts_with"),
            Self::Union => Notation::Method("union"),
        }
    }
}

/// How a binary operator is written.
pub(crate) enum Notation {
    /// Between its operands, with a binding strength.
    Infix(&'static str, u8),
    /// After a dot, as a method of the left operand.
    Method(&'static str),
}

impl Expression {
    fn strength(&self) -> u8 {
        match &self.node {
            Node::Term(_) => 9,
            Node::Unary(Unary::Not, _) => 7,
            Node::Unary(Unary::Length, _) => 8,
            Node::Binary(op, ..) => match op.notation() {
                Notation::Infix(_, strength) => strength,
                Notation::Method(_) => 8,
            },
        }
    }

    fn write_at_least(&self, f: &mut Formatter<'_>, strength: u8) -> fmt::Result {
        if self.strength() < strength { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

impl Display for Expression {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.node {
            Node::Term(term) => write!(f, "{term}"),
            Node::Unary(Unary::Not, operand) => {
                f.write_str("!")?;
                operand.write_at_least(f, 7)
            }
            Node::Unary(Unary::Length, operand) => {
                operand.write_at_least(f, 8)?;
                f.write_str(".length()")
            }
            Node::Binary(op, left, right) => match op.notation() {
                Notation::Infix(text, strength) => {
                    left.write_at_least(f, strength)?;
                    write!(f, " {text} ")?;
                    // Left-associative: the same strength on the right needs brackets.
                    right.write_at_least(f, strength + 1)
                }
                Notation::Method(name) => {
                    left.write_at_least(f, 8)?;
                    write!(f, ".{name}({right})")
                }
            },
        }
    }
}

impl Display for Body {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.predicates.is_empty() && self.expressions.is_empty() {
            return f.write_str("true");
        }
        separated(f, &self.predicates, ", ")?;
        if !self.predicates.is_empty() && !self.expressions.is_empty() {
            f.write_str(", ")?;
        }
        separated(f, &self.expressions, ", ")
    }
}

impl Display for Check {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            CheckKind::One => "check if ",
            CheckKind::All => "check all ",
        })?;
        separated(f, &self.alternatives, " or ")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.head, self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str) -> Expression {
        Term::var(name).into()
    }

    #[test]
    fn brackets_stand_where_they_are_needed() {
        let sum = Expression::binary(Binary::Add, var("a"), var("b"));
        let product = Expression::binary(Binary::Multiply, sum.clone(), var("c"));
        assert_eq!(product.to_string(), "($a + $b) * $c");
        let nested = Expression::binary(Binary::Subtract, var("c"), sum);
        assert_eq!(nested.to_string(), "$c - ($a + $b)");
        let method = Expression::binary(Binary::StartsWith, product, Term::str("x\"y\u{7}"));
        assert_eq!(method.to_string(), "(($a + $b) * $c).starts_with(\"x\\\"y\\u{7}\")");
    }

    #[test]
    fn dates_and_sets_are_written_as_biscuit_writes_them() {
        assert_eq!(Term::Date(1_763_683_199).to_string(), "2025-11-20T23:59:59Z");
        assert_eq!(Term::Set([Term::Integer(1)].into()).to_string(), "{1}");
        assert_eq!(Term::Set(Default::default()).to_string(), "{,}");
    }
}
