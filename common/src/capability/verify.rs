//! From bytes to a capability: bounds, shape, chain, and then every signature.

use biscuit_auth::format::schema;
use prost::Message as _;

use super::{
    CAPABILITY_BLOCKS_MAX, CAPABILITY_BYTES_MAX, Capability, Contents, UnverifiedCapability,
    authority::Grant,
    block::{self, Block},
    chain::{DelegationChain, stable_ids},
};
use crate::{
    digest::Digest,
    keys::PublicKey,
    keyset::{Keyset, KeysetKey},
    reason::{Reason, ReasonCode},
    time::Timestamp,
};

/// Signature scheme version of third-party blocks that binds them to the signature before them
/// (GHSA-rgqv-mwc3-c78m was the lack of it).
const THIRD_PARTY_SIGNATURE_VERSION: u32 = 1;

impl UnverifiedCapability {
    /// Reads a capability: bounds, protobuf, algorithms, profile of every block, chain walk.
    ///
    /// Costs microseconds whatever the bytes are; no signature is checked and no Datalog runs.
    ///
    /// # Errors
    /// A [`Reason`] of the `token.*` or `delegation.*` group.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let contents = Contents::read(&read_container(bytes)?)?;
        let biscuit = biscuit_auth::UnverifiedBiscuit::from(bytes)
            .map_err(|error| Reason::new(ReasonCode::TokenFormat).noted(format_args!("{error:?}")))?;
        Ok(Self { biscuit, bytes: bytes.to_vec(), contents })
    }

    /// The stable id of a chain from its outermost form alone: for looking up one that was verified before.
    ///
    /// Whatever [`UnverifiedCapability::parse`] makes of bytes follows from what the id is taken over, payloads
    /// and signers. So bytes whose id is that of a verified chain say what that chain says; of any others the
    /// id says nothing.
    ///
    /// # Errors
    /// As [`UnverifiedCapability::parse`], for what can be seen without reading the blocks.
    pub fn chain_id_of(bytes: &[u8]) -> Result<Digest, Reason> {
        let container = read_container(bytes)?;
        check_container(&container)?;
        let signers =
            container.blocks.iter().enumerate().map(|(index, signed)| appended_by(index + 1, signed));
        let signers = signers.collect::<Result<Vec<PublicKey>, Reason>>()?;
        let payloads = container.blocks.iter().map(|signed| signed.block.as_slice());
        let ids = stable_ids(&container.authority.block, signers.iter().zip(payloads));
        ids.last().copied().ok_or_else(|| ReasonCode::TokenFormat.into())
    }

    /// Checks every signature, starting from a key of the keyset, and the bounds of that key.
    ///
    /// # Errors
    /// `token.unknown_root`, `token.signature`, `token.lifetime` or `keyset.expired`.
    pub fn verify(self, keyset: &Keyset, now: Timestamp) -> Result<Capability, Reason> {
        if !keyset.is_current(now) {
            return Err(ReasonCode::KeysetExpired.into());
        }
        let hint = self.biscuit.root_key_id();
        let tenant = &self.contents.grant.tenant;
        let mut hinted: Vec<&KeysetKey> = keyset.active(tenant, now).collect();
        // The hint is unsigned: it may order the keys, never choose among them.
        hinted.sort_by_key(|key| Some(key.hint()) != hint);
        let is_known = hinted.iter().any(|key| Some(key.hint()) == hint);
        for key in hinted {
            if self.check_signatures(&key.public).is_err() {
                continue;
            }
            let lives_until = now.after(key.max_ttl);
            if self.contents.grant.expires > lives_until && !crate::red::off("K03") {
                return Err(Reason::new(ReasonCode::TokenLifetime).told(format_args!(
                    "ends at {}, later than {lives_until}",
                    self.contents.grant.expires
                )));
            }
            return Ok(Capability { bytes: self.bytes, contents: self.contents, issuer: key.public });
        }
        Err(if is_known { ReasonCode::TokenSignature } else { ReasonCode::TokenUnknownRoot }.into())
    }

    fn check_signatures(
        &self,
        root: &PublicKey,
    ) -> Result<biscuit_auth::Biscuit, biscuit_auth::error::Format> {
        let root = to_biscuit_key(root)?;
        self.biscuit.clone().verify(root)
    }
}

pub(super) fn to_biscuit_key(
    key: &PublicKey,
) -> Result<biscuit_auth::PublicKey, biscuit_auth::error::Format> {
    biscuit_auth::PublicKey::from_bytes(key.as_bytes(), biscuit_auth::Algorithm::Ed25519)
}

/// The outermost form, within its bounds.
fn read_container(bytes: &[u8]) -> Result<schema::Biscuit, Reason> {
    if bytes.is_empty() {
        return Err(ReasonCode::TokenMissing.into());
    }
    if bytes.len() > CAPABILITY_BYTES_MAX && !crate::red::off("T21") {
        return Err(Reason::new(ReasonCode::TokenTooLarge)
            .told(format_args!("{} bytes of at most {CAPABILITY_BYTES_MAX}", bytes.len())));
    }
    let container = schema::Biscuit::decode(bytes).map_err(|_| Reason::new(ReasonCode::TokenFormat))?;
    if container.blocks.len() >= CAPABILITY_BLOCKS_MAX && !crate::red::off("T21") {
        return Err(Reason::new(ReasonCode::TokenTooLarge)
            .told(format_args!("{} blocks of at most {CAPABILITY_BLOCKS_MAX}", container.blocks.len() + 1)));
    }
    Ok(container)
}

impl Contents {
    pub(super) fn read(container: &schema::Biscuit) -> Result<Self, Reason> {
        check_container(container)?;
        let authority = screen(0, &container.authority.block)?;
        let mut appended = Vec::with_capacity(container.blocks.len());
        for (index, signed) in container.blocks.iter().enumerate() {
            let signer = appended_by(index + 1, signed)?;
            appended.push((signer, screen(index + 1, &signed.block)?));
        }
        let ids = stable_ids(
            &container.authority.block,
            appended
                .iter()
                .zip(&container.blocks)
                .map(|((signer, _), signed)| (signer, signed.block.as_slice())),
        );
        let grant = Grant::from_block(authority).map_err(|fault| {
            Reason::new(ReasonCode::TokenBlockShape).told(format_args!("block 0: {fault}"))
        })?;
        let chain = DelegationChain::walk(&grant, appended, &ids)?;
        let expires = chain.expires(&grant);
        Ok(Self { grant, chain, ids, expires })
    }
}

fn screen(index: usize, payload: &[u8]) -> Result<Block, Reason> {
    block::screen(index, payload).map_err(|fault| Reason::new(ReasonCode::TokenBlockShape).told(fault))
}

/// Algorithms and seal; the outer message may hold unknown fields, which nothing reads (threat T04).
fn check_container(container: &schema::Biscuit) -> Result<(), Reason> {
    let signed = std::iter::once(&container.authority).chain(&container.blocks);
    let foreign = signed
        .flat_map(|block| {
            [Some(&block.next_key), block.external_signature.as_ref().map(|external| &external.public_key)]
        })
        .flatten()
        .any(|key| key.algorithm != schema::public_key::Algorithm::Ed25519 as i32);
    if foreign && !crate::red::off("T18") {
        return Err(ReasonCode::TokenAlgorithm.into());
    }
    match &container.proof.content {
        Some(schema::proof::Content::NextSecret(_)) => Ok(()),
        Some(schema::proof::Content::FinalSignature(_)) => Err(ReasonCode::TokenSealed.into()),
        None => Err(Reason::new(ReasonCode::TokenFormat).told("the capability has no proof")),
    }
}

/// The holder that appended a block: nothing anonymous is accepted.
fn appended_by(index: usize, signed: &schema::SignedBlock) -> Result<PublicKey, Reason> {
    let Some(external) = &signed.external_signature else {
        return Err(Reason::new(ReasonCode::TokenThirdParty)
            .told(format_args!("block {index} was appended by nobody in particular")));
    };
    if signed.version != Some(THIRD_PARTY_SIGNATURE_VERSION) {
        return Err(Reason::new(ReasonCode::TokenThirdParty)
            .told(format_args!("block {index} is not bound to the block before it")));
    }
    PublicKey::from_bytes(&external.public_key.key)
        .map_err(|error| Reason::new(ReasonCode::TokenFormat).told(format_args!("block {index}: {error}")))
}
