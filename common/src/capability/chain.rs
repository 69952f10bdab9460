//! The chain of hands a capability went through, and what each of them gave up.

use std::collections::BTreeSet;

use super::{
    authority::{Grant, Right},
    block::Block,
};
use crate::{
    datalog::{Binary, Body, Check, Expression, Node, Predicate, Term, Unary},
    digest::Digest,
    ids::{Action, AgentId, Resource},
    keys::PublicKey,
    reason::{Reason, ReasonCode},
    time::Timestamp,
};

/// Who handed what to whom, from the agent the task was given to, down to the present holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegationChain {
    origin: AgentId,
    origin_key: PublicKey,
    links: Vec<Link>,
    rights: BTreeSet<Right>,
}

/// One appended block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The holder handed the capability to another agent's key.
    Delegated(Box<Hop>),
    /// The holder gave something up and kept it.
    Narrowed(Box<Narrowed>),
}

/// A delegation: one agent handed the capability to another's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// 1 for the first hop.
    pub depth: u8,
    /// The agent that handed it on.
    pub from: AgentId,
    /// The agent it was handed to.
    pub to: AgentId,
    /// The key that signed the hand-over.
    pub delegator: PublicKey,
    /// The key it was handed to.
    pub key: PublicKey,
    /// The conditions added on the way.
    pub checks: Vec<Check>,
    /// The rights that no request can use any more because of these conditions.
    pub gave_up: BTreeSet<Right>,
    /// Stable id of the chain up to here.
    pub id: Digest,
}

/// A narrowing: the holder added conditions and kept the capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// The agent that narrowed it.
    pub by: AgentId,
    /// The key that signed.
    pub key: PublicKey,
    /// The conditions added.
    pub checks: Vec<Check>,
    /// The rights that no request can use any more because of them.
    pub gave_up: BTreeSet<Right>,
    /// Stable id of the chain up to here.
    pub id: Digest,
}

impl DelegationChain {
    /// The agent the task was given to.
    #[must_use]
    pub fn origin(&self) -> &AgentId {
        &self.origin
    }

    /// The key it was given to.
    #[must_use]
    pub fn origin_key(&self) -> &PublicKey {
        &self.origin_key
    }

    /// Every appended block, in order.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The delegations among them.
    pub fn hops(&self) -> impl DoubleEndedIterator<Item = &Hop> {
        self.links.iter().filter_map(|link| match link {
            Link::Delegated(hop) => Some(hop.as_ref()),
            Link::Narrowed(_) => None,
        })
    }

    /// How many times it was delegated.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.hops().count()
    }

    /// The agent that holds it now, and must make every call with it.
    #[must_use]
    pub fn caller(&self) -> &AgentId {
        self.hops().next_back().map_or(&self.origin, |hop| &hop.to)
    }

    /// The key that must sign every call and every hand-over.
    #[must_use]
    pub fn holder(&self) -> &PublicKey {
        self.hops().next_back().map_or(&self.origin_key, |hop| &hop.key)
    }

    /// Every agent of the chain with the key it holds or held the capability by.
    pub fn holders(&self) -> impl Iterator<Item = (&AgentId, &PublicKey)> {
        std::iter::once((&self.origin, &self.origin_key)).chain(self.hops().map(|hop| (&hop.to, &hop.key)))
    }

    /// The granted rights that are left after every narrowing.
    #[must_use]
    pub fn rights(&self) -> &BTreeSet<Right> {
        &self.rights
    }

    /// Every condition appended, with the position of its block (1 is the first after the authority).
    pub fn checks(&self) -> impl Iterator<Item = (usize, &Check)> {
        self.links.iter().enumerate().flat_map(|(index, link)| {
            let checks = match link {
                Link::Delegated(hop) => &hop.checks,
                Link::Narrowed(narrowed) => &narrowed.checks,
            };
            checks.iter().map(move |check| (index + 1, check))
        })
    }

    /// Walks the appended blocks: each signed by the holder of the moment, each a delegation or a narrowing.
    pub(super) fn walk(
        grant: &Grant,
        blocks: Vec<(PublicKey, Block)>,
        ids: &[Digest],
    ) -> Result<Self, Reason> {
        let mut chain = Self {
            origin: grant.agent.clone(),
            origin_key: grant.holder,
            links: Vec::with_capacity(blocks.len()),
            rights: grant.rights.clone(),
        };
        chain.give_up(&grant.bounds);
        let mut seen = BTreeSet::from([grant.holder]);
        for (index, (signer, block)) in blocks.into_iter().enumerate() {
            if signer != *chain.holder() && !crate::red::off("D04") {
                return Err(Reason::new(ReasonCode::DelegationSignature)
                    .told(format_args!("block {} is not signed by the holder before it", index + 1)));
            }
            let id = ids.get(index + 1).copied().unwrap_or(Digest::from_bytes([0; 32]));
            let delegation = parse_delegate(index + 1, &block.facts)?;
            let gave_up = chain.give_up(&block.checks);
            let link = match delegation {
                None => Link::Narrowed(Box::new(Narrowed {
                    by: chain.caller().clone(),
                    key: signer,
                    checks: block.checks,
                    gave_up,
                    id,
                })),
                Some(Delegate { depth, from, to, key }) => {
                    if from != *chain.caller() {
                        return Err(Reason::new(ReasonCode::DelegationSignature).told(format_args!(
                            "block {} says `{from}` delegated, but `{}` held it",
                            index + 1,
                            chain.caller()
                        )));
                    }
                    let expected = chain.depth() + 1;
                    let too_deep = depth != expected || expected > usize::from(grant.max_depth);
                    if too_deep && !crate::red::off("D02") {
                        return Err(Reason::new(ReasonCode::DelegationDepth)
                            .told(format_args!("hop {expected} of at most {}", grant.max_depth)));
                    }
                    if !seen.insert(key) && !crate::red::off("D02") {
                        return Err(Reason::new(ReasonCode::DelegationCycle)
                            .told(format_args!("`{to}` holds it by a key that held it before")));
                    }
                    let depth = u8::try_from(depth).unwrap_or(u8::MAX);
                    let (delegator, checks) = (signer, block.checks);
                    Link::Delegated(Box::new(Hop { depth, from, to, delegator, key, checks, gave_up, id }))
                }
            };
            chain.links.push(link);
        }
        Ok(chain)
    }

    /// Takes from the remaining rights those that `checks` rule out for good, and returns them.
    fn give_up(&mut self, checks: &[Check]) -> BTreeSet<Right> {
        let (kept, gave_up) = std::mem::take(&mut self.rights)
            .into_iter()
            .partition(|right| checks.iter().all(|check| could_hold(check, &right.resource, &right.action)));
        self.rights = kept;
        gave_up
    }

    /// When the chain ends at the latest, as far as plain bounds on time say.
    pub(super) fn expires(&self, grant: &Grant) -> Timestamp {
        let bounds = grant.bounds.iter().chain(self.checks().map(|(_, check)| check)).filter_map(time_bound);
        bounds.fold(grant.expires, Timestamp::min)
    }
}

struct Delegate {
    depth: usize,
    from: AgentId,
    to: AgentId,
    key: PublicKey,
}

fn parse_delegate(index: usize, facts: &[Predicate]) -> Result<Option<Delegate>, Reason> {
    let shape =
        |fault: &str| Reason::new(ReasonCode::TokenBlockShape).told(format_args!("block {index}: {fault}"));
    let [fact] = facts else {
        return match facts {
            [] => Ok(None),
            _ => Err(shape("holds more than one fact")),
        };
    };
    match (fact.name.as_str(), fact.terms.as_slice()) {
        ("delegate", [Term::Integer(depth), Term::Str(from), Term::Str(to), Term::Bytes(key)]) => {
            Ok(Some(Delegate {
                depth: usize::try_from(*depth).map_err(|_| shape("has a negative depth"))?,
                from: AgentId::parse(from.as_str()).map_err(|error| shape(&error.to_string()))?,
                to: AgentId::parse(to.as_str()).map_err(|error| shape(&error.to_string()))?,
                key: PublicKey::from_bytes(key).map_err(|error| shape(&error.to_string()))?,
            }))
        }
        // Red: a block's facts then reach the engine, which still keeps them out of the authority's scope.
        _ if crate::red::off("T10") => Ok(None),
        _ => Err(shape("holds a fact other than `delegate`")),
    }
}

/// Stable ids of every prefix: SHA-256 over payload and signer of each block, chained.
///
/// Signatures, Biscuit's ephemeral keys and the unsigned root key id are left out on purpose: none of them
/// changes what the chain says, and all of them can be changed by somebody who holds a prefix.
pub(super) fn stable_ids<'a>(
    issuer_independent_authority: &[u8],
    appended: impl Iterator<Item = (&'a PublicKey, &'a [u8])>,
) -> Vec<Digest> {
    let mut ids = vec![Digest::of("writ/v1/chain", &[issuer_independent_authority])];
    for (signer, payload) in appended {
        let previous = ids.last().copied().unwrap_or(Digest::from_bytes([0; 32]));
        ids.push(Digest::of("writ/v1/chain", &[previous.as_bytes(), signer.as_bytes(), payload]));
    }
    ids
}

/// Whether some request for this action on this resource could meet the check, whatever its arguments, time
/// and labels are.
fn could_hold(check: &Check, resource: &Resource, action: &Action) -> bool {
    check.alternatives.iter().any(|body| body_could_hold(body, resource, action))
}

fn body_could_hold(body: &Body, resource: &Resource, action: &Action) -> bool {
    let known = |name: &str| match name {
        "resource" => Some(resource.as_str()),
        "action" => Some(action.as_str()),
        _ => None,
    };
    let mut bindings: Vec<(&str, Term)> = Vec::new();
    for predicate in &body.predicates {
        let Some(value) = known(&predicate.name) else { continue };
        match predicate.terms.first() {
            Some(Term::Str(text)) if text != value => return false,
            Some(Term::Variable(name)) => match bindings.iter().find(|(bound, _)| bound == name) {
                Some((_, Term::Str(text))) if text != value => return false,
                Some(_) => {}
                None => bindings.push((name, Term::str(value))),
            },
            _ => {}
        }
    }
    body.expressions.iter().all(|expression| value_of(expression, &bindings) != Some(Term::Bool(false)))
}

/// The value of an expression as far as the bindings decide it.
fn value_of(expression: &Expression, bindings: &[(&str, Term)]) -> Option<Term> {
    match &expression.node {
        Node::Term(Term::Variable(name)) => {
            bindings.iter().find(|(bound, _)| bound == name).map(|(_, value)| value.clone())
        }
        Node::Term(term) => Some(term.clone()),
        Node::Unary(Unary::Not, operand) => match value_of(operand, bindings) {
            Some(Term::Bool(value)) => Some(Term::Bool(!value)),
            _ => None,
        },
        Node::Unary(Unary::Length, _) => None,
        Node::Binary(op, left, right) => {
            let (left, right) = (value_of(left, bindings), value_of(right, bindings));
            binary_value(*op, left.as_ref(), right.as_ref())
        }
    }
}

fn binary_value(op: Binary, left: Option<&Term>, right: Option<&Term>) -> Option<Term> {
    use Term::{Bool, Set, Str};
    let value = match (op, left, right) {
        (Binary::And, Some(Bool(false)), _) | (Binary::And, _, Some(Bool(false))) => false,
        (Binary::And, Some(Bool(true)), Some(Bool(true))) => true,
        (Binary::Or, Some(Bool(true)), _) | (Binary::Or, _, Some(Bool(true))) => true,
        (Binary::Or, Some(Bool(false)), Some(Bool(false))) => false,
        (Binary::Equal, Some(left), Some(right)) => left == right,
        (Binary::NotEqual, Some(left), Some(right)) => left != right,
        (Binary::Contains, Some(Set(members)), Some(member)) => members.contains(member),
        (Binary::Contains, Some(Str(text)), Some(Str(part))) => text.contains(part.as_str()),
        (Binary::StartsWith, Some(Str(text)), Some(Str(part))) => text.starts_with(part.as_str()),
        (Binary::EndsWith, Some(Str(text)), Some(Str(part))) => text.ends_with(part.as_str()),
        _ => return None,
    };
    Some(Bool(value))
}

/// The bound of `check if time($t), $t < date`, and of nothing more complicated.
fn time_bound(check: &Check) -> Option<Timestamp> {
    let [body] = check.alternatives.as_slice() else { return None };
    let [Predicate { name, terms, .. }] = body.predicates.as_slice() else { return None };
    let [Term::Variable(variable)] = terms.as_slice() else { return None };
    if name != "time" {
        return None;
    }
    body.expressions.iter().find_map(|expression| match &expression.node {
        Node::Binary(Binary::LessThan | Binary::LessOrEqual, left, right) => {
            match (&left.node, &right.node) {
                (Node::Term(Term::Variable(left)), Node::Term(Term::Date(secs))) if left == variable => {
                    Some(Timestamp::from_secs(*secs))
                }
                _ => None,
            }
        }
        _ => None,
    })
}
