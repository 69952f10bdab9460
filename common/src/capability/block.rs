//! Blocks, read from the protobuf schema and screened before any Datalog engine sees them.
//!
//! Screening is by construction: the syntax tree of [`crate::datalog`] has no place for rules in a block,
//! scopes, regular expressions, external calls or closures with parameters, so a block that holds one cannot be
//! decoded. What remains is bounded in size. Printed Datalog is never parsed again: biscuit-auth's printer does
//! not escape quotes.

use std::collections::BTreeSet;

use biscuit_auth::format::schema;
use prost::Message as _;

use crate::datalog::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Span, Term, Unary};

/// Most bytes of one block's payload.
pub(crate) const BLOCK_BYTES_MAX: usize = 8 * 1024;
/// Most checks in one block.
pub(crate) const CHECKS_MAX: usize = 32;
/// Most alternatives (`or`) in one check.
pub(crate) const ALTERNATIVES_MAX: usize = 64;
/// Most predicates in one alternative.
pub(crate) const PREDICATES_MAX: usize = 6;
/// Most operations in the expressions of one alternative.
pub(crate) const OPS_MAX: usize = 48;
/// Longest text or byte string in a block.
pub(crate) const LITERAL_BYTES_MAX: usize = 1024;
/// Most members of a set.
pub(crate) const SET_MEMBERS_MAX: usize = 64;

/// The facts a check in a capability may ask about: what the verifier says about the call, nothing else.
pub(crate) const AMBIENT: [(&str, usize); 6] =
    [("action", 1), ("arg", 2), ("integrity", 1), ("label", 1), ("resource", 1), ("time", 1)];

/// The decoded content of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) facts: Vec<Predicate>,
    pub(crate) checks: Vec<Check>,
}

/// What a block holds that the profile does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {index}: {fault}")]
pub struct BlockFault {
    /// 0 is the authority block.
    pub index: usize,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// Whether a predicate of a check can match more than one fact: there is one fact each for resource, action, time,
/// integrity and for an argument at a fixed path.
pub(crate) fn is_list(predicate: &Predicate) -> bool {
    match (predicate.name.as_str(), predicate.terms.first()) {
        ("arg", Some(Term::Str(_))) => false,
        ("arg" | "label", _) => true,
        _ => false,
    }
}

type Screened<T> = Result<T, &'static str>;

/// Decodes and screens one block's payload.
pub(crate) fn screen(index: usize, payload: &[u8]) -> Result<Block, BlockFault> {
    screen_payload(payload).map_err(|fault| BlockFault { index, fault })
}

fn screen_payload(payload: &[u8]) -> Screened<Block> {
    if payload.len() > BLOCK_BYTES_MAX {
        return Err("has more than 8 KiB");
    }
    let block = schema::Block::decode(payload).map_err(|_| "is no Biscuit block")?;
    // Fields this schema does not know would be signed and ignored; nobody needs them.
    if block.encode_to_vec() != payload {
        return Err("holds unknown fields or is not in canonical form");
    }
    if !block.rules.is_empty() {
        return Err("holds a rule");
    }
    if !block.scope.is_empty() || !block.public_keys.is_empty() {
        return Err("changes its scope");
    }
    if block.context.is_some() {
        return Err("holds a context text");
    }
    if block.checks.len() > CHECKS_MAX {
        return Err("holds more than 32 checks");
    }
    let reader = Reader { symbols: &block.symbols };
    Ok(Block {
        facts: block.facts.iter().map(|fact| reader.fact(&fact.predicate)).collect::<Screened<_>>()?,
        checks: block.checks.iter().map(|check| reader.check(check)).collect::<Screened<_>>()?,
    })
}

/// Biscuit's built-in symbols (specification, appendix "Default symbols"), by index.
const DEFAULT_SYMBOLS: [&str; 28] = [
    "read",
    "write",
    "resource",
    "operation",
    "right",
    "time",
    "role",
    "owner",
    "tenant",
    "namespace",
    "user",
    "team",
    "service",
    "admin",
    "email",
    "group",
    "member",
    "ip_address",
    "client",
    "client_ip",
    "domain",
    "path",
    "version",
    "cluster",
    "node",
    "hostname",
    "nonce",
    "query",
];
const FIRST_OWN_SYMBOL: u64 = 1024;

/// The authority block and every third-party block have symbol tables of their own, starting here.
struct Reader<'a> {
    symbols: &'a [String],
}

impl Reader<'_> {
    fn symbol(&self, index: u64) -> Screened<String> {
        let text = match index.checked_sub(FIRST_OWN_SYMBOL) {
            Some(own) => self.symbols.get(usize::try_from(own).unwrap_or(usize::MAX)).map(String::as_str),
            None => DEFAULT_SYMBOLS.get(usize::try_from(index).unwrap_or(usize::MAX)).copied(),
        };
        let text = text.ok_or("refers to a symbol it does not hold")?;
        if text.len() > LITERAL_BYTES_MAX {
            return Err("holds a text of more than 1024 bytes");
        }
        Ok(text.to_owned())
    }

    fn fact(&self, predicate: &schema::Predicate) -> Screened<Predicate> {
        let fact = self.predicate(predicate)?;
        if fact.terms.iter().any(|term| matches!(term, Term::Variable(_))) {
            return Err("holds a fact with a variable");
        }
        Ok(fact)
    }

    fn predicate(&self, predicate: &schema::Predicate) -> Screened<Predicate> {
        let terms = predicate.terms.iter().map(|term| self.term(term)).collect::<Screened<Vec<_>>>()?;
        Ok(Predicate { name: self.symbol(predicate.name)?, terms, span: Span::default() })
    }

    fn term(&self, term: &schema::Term) -> Screened<Term> {
        use schema::term::Content;
        Ok(match term.content.as_ref().ok_or("holds an empty term")? {
            Content::Variable(index) => Term::Variable(self.symbol(u64::from(*index))?),
            Content::Integer(value) => Term::Integer(*value),
            Content::String(index) => Term::Str(self.symbol(*index)?),
            Content::Date(secs) => Term::Date(*secs),
            Content::Bytes(bytes) if bytes.len() > LITERAL_BYTES_MAX => {
                return Err("holds a byte string of more than 1024 bytes");
            }
            Content::Bytes(bytes) => Term::Bytes(bytes.clone()),
            Content::Bool(value) => Term::Bool(*value),
            Content::Set(set) => {
                if set.set.len() > SET_MEMBERS_MAX {
                    return Err("holds a set of more than 64 members");
                }
                let members =
                    set.set.iter().map(|member| self.term(member)).collect::<Screened<BTreeSet<_>>>()?;
                if members.iter().any(|member| matches!(member, Term::Set(_) | Term::Variable(_))) {
                    return Err("holds a set of sets or variables");
                }
                Term::Set(members)
            }
            Content::Null(_) | Content::Array(_) | Content::Map(_) => {
                return Err("holds a null, an array or a map");
            }
        })
    }

    fn check(&self, check: &schema::Check) -> Screened<Check> {
        let kind = match check.kind {
            None | Some(0) => CheckKind::One,
            Some(1) => CheckKind::All,
            _ => return Err("holds a `reject if`"),
        };
        if check.queries.is_empty() || check.queries.len() > ALTERNATIVES_MAX {
            return Err("holds a check with no or more than 64 alternatives");
        }
        let alternatives = check.queries.iter().map(|query| self.body(query)).collect::<Screened<_>>()?;
        Ok(Check { kind, alternatives })
    }

    fn body(&self, query: &schema::Rule) -> Screened<Body> {
        if !query.scope.is_empty() {
            return Err("changes the scope of a check");
        }
        if query.body.len() > PREDICATES_MAX {
            return Err("holds a check with more than 6 predicates");
        }
        if query.expressions.iter().map(|expression| count_ops(&expression.ops)).sum::<usize>() > OPS_MAX {
            return Err("holds a check with more than 48 operations");
        }
        let predicates = query.body.iter().map(|p| self.predicate(p)).collect::<Screened<Vec<_>>>()?;
        let mut lists = 0;
        for (position, predicate) in (1..).zip(&predicates) {
            if !AMBIENT.contains(&(predicate.name.as_str(), predicate.terms.len())) {
                return Err("asks about something else than resource, action, arg, time, label, integrity");
            }
            lists += usize::from(is_list(predicate));
            // The engine looks at every fact for every predicate behind a list, once per member.
            let is_last = position == predicates.len();
            if is_list(predicate) && !is_last && !crate::red::off("P02") {
                return Err("holds a check that goes on behind a list");
            }
        }
        if lists > 1 {
            return Err("holds a check that joins several lists");
        }
        let bound: BTreeSet<&str> = predicates
            .iter()
            .flat_map(|predicate| &predicate.terms)
            .filter_map(|term| if let Term::Variable(name) = term { Some(name.as_str()) } else { None })
            .collect();
        let expressions =
            query.expressions.iter().map(|e| self.expression(&e.ops)).collect::<Screened<Vec<_>>>()?;
        for expression in &expressions {
            let mut unbound = false;
            expression.walk(&mut |part| {
                if let Node::Term(Term::Variable(name)) = &part.node {
                    unbound |= !bound.contains(name.as_str());
                }
            });
            if unbound {
                return Err("holds an expression over a variable no predicate binds");
            }
        }
        Ok(Body { predicates, expressions })
    }

    /// Turns postfix operations into a tree.
    fn expression(&self, ops: &[schema::Op]) -> Screened<Expression> {
        let mut stack: Vec<Operand> = Vec::new();
        for op in ops {
            let operand = self.operation(op, &mut stack)?;
            stack.push(operand);
        }
        match (stack.pop(), stack.is_empty()) {
            (Some(Operand::Value(expression)), true) => Ok(expression),
            _ => Err("holds a malformed expression"),
        }
    }

    fn operation(&self, op: &schema::Op, stack: &mut Vec<Operand>) -> Screened<Operand> {
        use schema::op::Content;
        Ok(match op.content.as_ref().ok_or("holds an empty operation")? {
            Content::Value(term) => Operand::Value(self.term(term)?.into()),
            Content::Unary(unary) => {
                let Some(Operand::Value(operand)) = stack.pop() else {
                    return Err("holds a malformed expression");
                };
                match unary.kind {
                    0 => Operand::Value(Node::Unary(Unary::Not, Box::new(operand)).into()),
                    // Brackets stand in the tree by its shape.
                    1 => Operand::Value(operand),
                    2 => Operand::Value(Node::Unary(Unary::Length, Box::new(operand)).into()),
                    _ => return Err("holds a type test or an external call"),
                }
            }
            Content::Binary(binary) => {
                let (op, lazy) = binary_op(binary.kind)?;
                let ((Some(Operand::Value(right)), false) | (Some(Operand::Lazy(right)), true)) =
                    (stack.pop(), lazy)
                else {
                    return Err("holds a malformed expression");
                };
                let Some(Operand::Value(left)) = stack.pop() else {
                    return Err("holds a malformed expression");
                };
                Operand::Value(Expression::binary(op, left, right))
            }
            Content::Closure(closure) if closure.params.is_empty() => {
                Operand::Lazy(self.expression(&closure.ops)?)
            }
            Content::Closure(_) => return Err("holds a closure with parameters"),
        })
    }
}

/// What the operations before left on the stack: a value, or the unevaluated right side of `&&` and `||`.
enum Operand {
    Value(Expression),
    Lazy(Expression),
}

fn count_ops(ops: &[schema::Op]) -> usize {
    ops.iter()
        .map(|op| match &op.content {
            Some(schema::op::Content::Closure(closure)) => 1 + count_ops(&closure.ops),
            _ => 1,
        })
        .sum()
}

/// Which operators a block may use, and whether the right side is a closure.
fn binary_op(kind: i32) -> Screened<(Binary, bool)> {
    use schema::op_binary::Kind;
    Ok(match Kind::from_i32(kind) {
        Some(Kind::LessThan) => (Binary::LessThan, false),
        Some(Kind::GreaterThan) => (Binary::GreaterThan, false),
        Some(Kind::LessOrEqual) => (Binary::LessOrEqual, false),
        Some(Kind::GreaterOrEqual) => (Binary::GreaterOrEqual, false),
        Some(Kind::Equal) => (Binary::Equal, false),
        Some(Kind::NotEqual) => (Binary::NotEqual, false),
        Some(Kind::Contains) => (Binary::Contains, false),
        Some(Kind::Prefix) => (Binary::StartsWith, false),
        Some(Kind::Suffix) => (Binary::EndsWith, false),
        Some(Kind::LazyAnd) => (Binary::And, true),
        Some(Kind::LazyOr) => (Binary::Or, true),
        Some(Kind::HeterogeneousEqual) if crate::red::off("P10") => (Binary::Equal, false),
        Some(Kind::Regex) => return Err("holds a regular expression"),
        Some(Kind::HeterogeneousEqual | Kind::HeterogeneousNotEqual) => {
            return Err("holds a lenient comparison");
        }
        _ => return Err("holds an operator that is not on the list"),
    })
}
