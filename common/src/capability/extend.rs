//! Issuing, narrowing and delegating: how capabilities come about. Narrowing and delegating need no broker.

use std::collections::BTreeSet;

use biscuit_auth::{
    Algorithm, BiscuitBuilder, BlockBuilder, KeyPair, builder::CheckKind as BiscuitCheckKind,
};

use super::{Grant, Right, UnverifiedCapability, engine::to_builder};
use crate::{
    datalog::{Binary, Body, Check, CheckKind, Expression, Predicate, Term},
    ids::AgentId,
    keys::{PrivateKey, PublicKey},
    keyset::root_key_hint,
    reason::Reason,
    time::Timestamp,
};

/// Why a capability could not be issued or extended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendError {
    /// The result would not be accepted by any node.
    #[error("the capability would be refused: {0}")]
    Refused(Reason),
    /// Only the present holder can append.
    #[error("the capability is held by another key than the one given")]
    NotHolder,
    /// The Biscuit library refused.
    #[error("the token could not be written: {0}")]
    Token(String),
}

impl From<biscuit_auth::error::Token> for ExtendError {
    fn from(error: biscuit_auth::error::Token) -> Self {
        Self::Token(format!("{error:?}"))
    }
}

/// What a holder gives up: conditions every later call must meet.
///
/// ```
/// # use writ_common::{capability::{Narrowing, Right}, time::Timestamp};
/// let narrowing = Narrowing::new()
///     .only([Right::parse("tool.crm:read")?])
///     .until(Timestamp::from_secs(1_800_000_000));
/// # Ok::<_, writ_common::ids::InvalidId>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    checks: Vec<Check>,
}

impl Narrowing {
    /// Gives up nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps these rights and no others.
    #[must_use]
    pub fn only(self, rights: impl IntoIterator<Item = Right>) -> Self {
        self.only_where(rights.into_iter().map(|right| (right, Vec::new())))
    }

    /// Keeps these rights and no others, each only for calls whose arguments equal the given values.
    ///
    /// Arguments are addressed by JSON Pointer (RFC 6901). A value is compared with the fact the call's
    /// argument becomes: a text, an integer or a boolean.
    #[must_use]
    pub fn only_where(mut self, rights: impl IntoIterator<Item = (Right, Vec<(String, Term)>)>) -> Self {
        let alternatives = rights.into_iter().map(|(right, arguments)| {
            let mut predicates = vec![
                Predicate::new("resource", [Term::str(right.resource.as_str())]),
                Predicate::new("action", [Term::str(right.action.as_str())]),
            ];
            predicates.extend(
                arguments.into_iter().map(|(path, value)| Predicate::new("arg", [Term::Str(path), value])),
            );
            Body { predicates, expressions: Vec::new() }
        });
        let mut alternatives: Vec<Body> = alternatives.collect();
        if alternatives.is_empty() {
            // Keeping nothing is a condition that never holds.
            alternatives.push(Body { predicates: Vec::new(), expressions: vec![Term::Bool(false).into()] });
        }
        self.checks.push(Check { kind: CheckKind::One, alternatives });
        self
    }

    /// Ends it earlier; whole seconds.
    #[must_use]
    pub fn until(mut self, end: Timestamp) -> Self {
        self.checks.push(Check {
            kind: CheckKind::One,
            alternatives: vec![Body {
                predicates: vec![Predicate::new("time", [Term::var("t")])],
                expressions: vec![Expression::binary(
                    Binary::LessThan,
                    Term::var("t"),
                    Term::Date(end.as_secs()),
                )],
            }],
        });
        self
    }

    /// Adds any other condition within the profile.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// The conditions.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }
}

impl Grant {
    /// Signs the authority block with a broker key. `next` is the seed of a fresh key the token carries.
    ///
    /// # Errors
    /// [`ExtendError::Refused`] if the grant is outside the profile (too large, say).
    pub fn issue(&self, key: &PrivateKey, next: &[u8; 32]) -> Result<UnverifiedCapability, ExtendError> {
        let mut token = BiscuitBuilder::new().root_key_id(root_key_hint(&key.public()));
        for fact in self.facts() {
            token = token.fact(to_builder::fact(&fact))?;
        }
        for check in &self.bounds {
            token = token.check(to_builder::check(check))?;
        }
        let symbols = biscuit_auth::datalog::SymbolTable::new();
        let token = token.build_with_key_pair(&key_pair(&key.seed())?, symbols, &key_pair(next)?)?;
        UnverifiedCapability::parse(&token.to_vec()?).map_err(ExtendError::Refused)
    }
}

impl UnverifiedCapability {
    /// Hands the capability to another agent's key, giving up what `narrowing` says. Works offline.
    ///
    /// `next` is the seed of a fresh key the token carries.
    ///
    /// # Errors
    /// [`ExtendError::NotHolder`] with any key but the holder's; [`ExtendError::Refused`] if the hop is too
    /// deep, goes in a circle or leaves the profile.
    pub fn delegate(
        &self,
        holder: &PrivateKey,
        to: &AgentId,
        to_key: &PublicKey,
        narrowing: &Narrowing,
        next: &[u8; 32],
    ) -> Result<Self, ExtendError> {
        let depth = i64::try_from(self.chain().depth() + 1).unwrap_or(i64::MAX);
        let fact = Predicate::new(
            "delegate",
            [
                Term::Integer(depth),
                Term::str(self.chain().caller().as_str()),
                Term::str(to.as_str()),
                Term::Bytes(to_key.as_bytes().to_vec()),
            ],
        );
        self.append(holder, Some(&fact), narrowing, next)
    }

    /// Gives something up and keeps the capability. Works offline.
    ///
    /// # Errors
    /// As [`UnverifiedCapability::delegate`].
    pub fn narrow(
        &self,
        holder: &PrivateKey,
        narrowing: &Narrowing,
        next: &[u8; 32],
    ) -> Result<Self, ExtendError> {
        self.append(holder, None, narrowing, next)
    }

    fn append(
        &self,
        holder: &PrivateKey,
        fact: Option<&Predicate>,
        narrowing: &Narrowing,
        next: &[u8; 32],
    ) -> Result<Self, ExtendError> {
        if holder.public() != *self.chain().holder() {
            return Err(ExtendError::NotHolder);
        }
        let mut block = BlockBuilder::new();
        if let Some(fact) = fact {
            block = block.fact(to_builder::fact(fact))?;
        }
        for check in narrowing.checks() {
            block = block.check(to_builder::check(check))?;
        }
        let signer = biscuit_auth::PrivateKey::from_bytes(holder.seed().as_slice(), Algorithm::Ed25519)
            .map_err(biscuit_auth::error::Token::from)?;
        let signed = self.biscuit.third_party_request()?.create_block(&signer, block)?;
        let token = self.biscuit.append_third_party_with_keypair(&signed.serialize()?, key_pair(next)?)?;
        Self::parse(&token.to_vec()?).map_err(ExtendError::Refused)
    }

    /// Whether `longer` is this capability with blocks appended.
    #[must_use]
    pub fn is_extended_by(&self, longer: &Self) -> bool {
        longer.chain_ids().starts_with(self.chain_ids()) && longer.chain_ids().len() > self.chain_ids().len()
    }

    /// The rights nobody downstream can use any more, compared with the grant.
    #[must_use]
    pub fn gave_up(&self) -> BTreeSet<&Right> {
        self.grant().rights.difference(self.rights()).collect()
    }
}

fn key_pair(seed: &[u8; 32]) -> Result<KeyPair, biscuit_auth::error::Token> {
    let key = biscuit_auth::PrivateKey::from_bytes(seed, Algorithm::Ed25519)?;
    Ok(KeyPair::from(&key))
}

impl From<CheckKind> for BiscuitCheckKind {
    fn from(kind: CheckKind) -> Self {
        match kind {
            CheckKind::One => Self::One,
            CheckKind::All => Self::All,
        }
    }
}
