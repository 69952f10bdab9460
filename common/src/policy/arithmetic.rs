//! Conditions that some values make impossible to evaluate: a division by zero, a result outside 64 bits (threat P11).
//!
//! Such a request is denied with `engine.error`, whatever other rules say. What can be known of the values, from
//! what a predicate means and from conditions that stand before, is known here as an interval.

use std::collections::BTreeMap;

use super::{
    analyse::{Finding, for_each_conjunct_of},
    schema::{self, Type},
};
use crate::datalog::{Binary, Body, Expression, Node, Span, Term, Unary};

/// What an integer can be; wide enough for every result of one operation on 64 bits.
type Range = (i128, i128);

const ALL: Range = (i64::MIN as i128, i64::MAX as i128);
/// No text, byte string or set is longer: requests are bounded far below.
const LENGTH_MAX: i128 = 1 << 32;

/// Looks at the conditions of one body, in the order they are evaluated in.
pub(super) fn faults(body: &Body, found: &mut Vec<Finding>) {
    let mut ranges = ranges_of(body);
    for expression in &body.expressions {
        look(expression, &ranges, found);
        bound(expression, &mut ranges);
    }
}

/// What variables can be by the meaning of the predicates they stand in; those that are no integers are left out.
fn ranges_of(body: &Body) -> BTreeMap<&str, Range> {
    let mut ranges: BTreeMap<&str, Range> = BTreeMap::new();
    let mut others: Vec<&str> = Vec::new();
    for predicate in &body.predicates {
        let declared = schema::find(&predicate.name);
        for (position, term) in predicate.terms.iter().enumerate() {
            let Term::Variable(name) = term else { continue };
            let kind = declared.and_then(|declared| declared.terms.get(position)).map(|(_, kind)| *kind);
            if matches!(kind, Some(Type::Bytes | Type::Date | Type::Text)) {
                others.push(name);
                continue;
            }
            let range = match (predicate.name.as_str(), position) {
                ("hour", 0) => (0, 23),
                ("weekday", 0) => (1, 7),
                ("depth" | "max_depth" | "hop", 0) => (0, 255),
                ("serial", 0) | ("min_epoch", _) => (0, ALL.1),
                _ => ALL,
            };
            let known = ranges.entry(name).or_insert(ALL);
            *known = (known.0.max(range.0), known.1.min(range.1));
        }
    }
    ranges.retain(|name, _| !others.contains(name));
    ranges
}

/// Takes in what holds once this condition does.
fn bound<'b>(expression: &'b Expression, ranges: &mut BTreeMap<&'b str, Range>) {
    for_each_conjunct_of(expression, &mut |op, name, constant, _| {
        let (Term::Integer(value), Some((low, high))) = (constant, ranges.get_mut(name)) else { return };
        let value = i128::from(*value);
        match op {
            Binary::Equal => (*low, *high) = ((*low).max(value), (*high).min(value)),
            Binary::LessThan => *high = (*high).min(value - 1),
            Binary::LessOrEqual => *high = (*high).min(value),
            Binary::GreaterThan => *low = (*low).max(value + 1),
            Binary::GreaterOrEqual => *low = (*low).max(value),
            Binary::NotEqual if *low == value => *low += 1,
            Binary::NotEqual if *high == value => *high -= 1,
            _ => {}
        }
    });
}

/// What an expression can come to, if it is an integer, and what may go wrong on the way.
fn look<'b>(
    expression: &'b Expression,
    ranges: &BTreeMap<&'b str, Range>,
    found: &mut Vec<Finding>,
) -> Option<Range> {
    match &expression.node {
        Node::Term(Term::Integer(value)) => Some((i128::from(*value), i128::from(*value))),
        Node::Term(Term::Variable(name)) => ranges.get(name.as_str()).copied(),
        Node::Term(_) => None,
        Node::Unary(op, operand) => {
            look(operand, ranges, found);
            (*op == Unary::Length).then_some((0, LENGTH_MAX))
        }
        Node::Binary(Binary::And, left, right) => {
            look(left, ranges, found);
            // The right side is only evaluated if the left one holds.
            let mut ranges = ranges.clone();
            bound(left, &mut ranges);
            look(right, &ranges, found);
            None
        }
        Node::Binary(op, left, right) => {
            let (left_range, right_range) = (look(left, ranges, found), look(right, ranges, found));
            let (left_range, right_range) = (left_range?, right_range?);
            let range = match op {
                Binary::Add => (left_range.0 + right_range.0, left_range.1 + right_range.1),
                Binary::Subtract => (left_range.0 - right_range.1, left_range.1 - right_range.0),
                Binary::Multiply => product(left_range, right_range),
                Binary::Divide => {
                    division(expression.span, right, right_range, found);
                    let greatest = left_range.0.abs().max(left_range.1.abs());
                    (-greatest, greatest.min(ALL.1))
                }
                _ => return None,
            };
            let may_overflow = range.0 < ALL.0 || range.1 > ALL.1;
            if may_overflow && *op != Binary::Divide && !crate::red::off("P11") {
                found.push(Finding::warning(
                    expression.span,
                    format!("`{expression}` may not fit into 64 bits, and the request is denied with engine.error then"),
                    "bound its values in a condition before it, as in `$amount < 1000000`; the contract's schema does not count here",
                ));
            }
            Some((range.0.max(ALL.0), range.1.min(ALL.1)))
        }
    }
}

fn product(left: Range, right: Range) -> Range {
    let all = [left.0 * right.0, left.0 * right.1, left.1 * right.0, left.1 * right.1];
    (all.into_iter().min().unwrap_or(ALL.0), all.into_iter().max().unwrap_or(ALL.1))
}

fn division(span: Span, divisor: &Expression, range: Range, found: &mut Vec<Finding>) {
    if range.0 > 0 || range.1 < 0 || crate::red::off("P11") {
        return;
    }
    found.push(if range == (0, 0) {
        Finding::error(
            span,
            "a division by zero cannot be evaluated",
            "it denies every request it meets with engine.error",
        )
    } else {
        Finding::warning(
            span,
            format!("`{divisor}` may be 0, and the request is denied with engine.error then"),
            "say what it is in a condition before it, as in `$count > 0`",
        )
    });
}

#[cfg(test)]
mod tests {
    use crate::policy::{PolicyBundle, PolicySet};

    fn findings(rule: &str) -> Vec<String> {
        let text = format!("allow if request(\"call\");\n{rule}");
        let bundle = PolicyBundle([("a.datalog".to_owned(), text)].into());
        let found = PolicySet::load(&bundle).map_or_else(|findings| findings, |(_, warnings)| warnings);
        found
            .0
            .into_iter()
            .map(|one| one.message)
            .filter(|message| !message.contains("something else"))
            .collect()
    }

    #[test]
    fn p11_what_some_values_make_impossible_to_evaluate_is_warned_of() {
        for (rule, expected) in [
            ("deny if arg(\"/a\", $a), $a + 1 > 5;", "`$a + 1` may not fit into 64 bits"),
            (
                "deny if arg(\"/a\", $a), arg(\"/b\", $b), $a > 0, $b > 0, $a * $b > 5;",
                "`$a * $b` may not fit",
            ),
            ("deny if arg(\"/a\", $a), 0 - $a > 5;", "`0 - $a` may not fit"),
            ("deny if arg(\"/a\", $a), 100 / $a > 5;", "`$a` may be 0"),
            ("deny if hour($h), weekday($d), $d / $h > 1;", "`$h` may be 0"),
            ("deny if hour($h), $h / 0 > 1;", "a division by zero cannot be evaluated"),
            // What stands behind comes too late.
            ("deny if arg(\"/a\", $a), 100 / $a > 5, $a > 0;", "`$a` may be 0"),
            ("deny if arg(\"/a\", $a), $a > 0 || 100 / $a > 5;", "`$a` may be 0"),
        ] {
            let found = findings(rule);
            assert!(found.iter().any(|one| one.contains(expected)), "{rule}: {found:?}");
        }
    }

    #[test]
    fn what_is_bounded_before_is_left_alone() {
        for rule in [
            "deny if hour($h), weekday($d), $h * 60 + $d > 5;",
            "deny if hour($h), weekday($d), $h / $d > 1;",
            "deny if arg(\"/a\", $a), $a > 0, $a < 1000, $a * $a > 5, 100 / $a > 1;",
            "deny if arg(\"/a\", $a), $a > 0 && 100 / $a > 5;",
            "deny if caller($c), $c.length() * 2 - 1 > 5;",
            "deny if hour($h), $h > 0, 24 / $h > 1;",
            "deny if hour($h), $h !== 0, 24 / $h > 1;",
            "deny if caller($c), user($i, $s), $c + $s === \"x\";",
        ] {
            assert_eq!(findings(rule), Vec::<String>::new(), "{rule}");
        }
    }
}
