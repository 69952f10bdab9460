//! Capabilities, format version 1: Biscuit tokens within a strict profile.
//!
//! Three states, three types: bytes become an [`UnverifiedCapability`] (shape and chain are sound, nobody has
//! checked a signature), that becomes a [`Capability`] (every signature holds under a key of the keyset), and
//! only a verdict over a `Capability` makes a [`Permit`](crate::verdict::Permit).
//!
//! This module and its children are the only place that names `biscuit_auth`. What they guard against, each of
//! it measured: Datalog in a hostile block can run for minutes whatever the time limit says, so blocks are
//! screened before any engine sees them (`block`); the library's own revocation ids change when a block is
//! attached again, so chains get ids of their own (`chain`); two `time` facts let an expired token pass, so
//! the engine is handed exactly one (`engine`).

pub(crate) mod authority;
pub(crate) mod block;
pub(crate) mod chain;
pub mod engine;
mod extend;
mod pins;
mod verify;

use std::{collections::BTreeSet, fmt};

pub use authority::{Grant, Right};
pub use chain::{DelegationChain, Hop, Link, Narrowed};
pub use extend::{ExtendError, Narrowing};
pub use pins::Pins;

use crate::{digest::Digest, keys::PublicKey, time::Timestamp};

/// Most bytes of a capability.
pub const CAPABILITY_BYTES_MAX: usize = 16 * 1024;

/// Most blocks of a capability, the authority block among them.
pub const CAPABILITY_BLOCKS_MAX: usize = 16;

/// A capability whose shape and chain are sound, but whose signatures nobody has checked.
///
/// Good for looking at and for extending; never for deciding.
#[derive(Clone)]
pub struct UnverifiedCapability {
    biscuit: biscuit_auth::UnverifiedBiscuit,
    bytes: Vec<u8>,
    contents: Contents,
}

/// A capability all of whose signatures hold.
///
/// Only [`UnverifiedCapability::verify`] makes one, and deciding takes nothing else:
///
/// ```compile_fail,E0308
/// # use writ_common::{capability::UnverifiedCapability, decide::check_expiry, time::Timestamp};
/// fn decide_on(unverified: &UnverifiedCapability) {
///     check_expiry(unverified, Timestamp::default()).unwrap();
/// }
/// ```
#[derive(Clone)]
pub struct Capability {
    bytes: Vec<u8>,
    contents: Contents,
    issuer: PublicKey,
}

/// What a capability says, verified or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) grant: Grant,
    pub(crate) chain: DelegationChain,
    /// Stable id of every prefix of the chain, the authority block first.
    pub(crate) ids: Vec<Digest>,
    /// Earliest bound on time among the authority block and the checks whose meaning is plain.
    pub(crate) expires: Timestamp,
}

macro_rules! contents_accessors {
    ($($Type:ident),*) => {$(
        /// Names the capability; its bytes and the key inside it never reach a log (threat K12).
        impl fmt::Debug for $Type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (grant, chain) = (self.grant(), self.chain());
                write!(
                    f,
                    concat!(stringify!($Type), "({} #{} of {}, held by {}, chain {})"),
                    grant.capability, grant.serial, grant.task, chain.caller(), self.chain_id().short()
                )
            }
        }

        impl $Type {
            /// What the broker granted: the authority block.
            #[must_use]
            pub fn grant(&self) -> &Grant {
                &self.contents.grant
            }

            /// Who handed it to whom, and what each hop gave up.
            #[must_use]
            pub fn chain(&self) -> &DelegationChain {
                &self.contents.chain
            }

            /// Stable id of the last block, over payloads and signers of the whole chain.
            ///
            /// Unlike Biscuit's revocation ids it does not change when a block is signed or attached again.
            #[must_use]
            pub fn chain_id(&self) -> Digest {
                self.contents.ids.last().copied().unwrap_or(Digest::from_bytes([0; 32]))
            }

            /// Stable ids of every prefix, the authority block first: what a longer chain extends.
            #[must_use]
            pub fn chain_ids(&self) -> &[Digest] {
                &self.contents.ids
            }

            /// When it stops working at the latest; a narrowing may end it sooner.
            #[must_use]
            pub fn expires(&self) -> Timestamp {
                self.contents.expires
            }

            /// The bytes to hand over or send.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.bytes
            }

            /// The rights that are left after every narrowing, as far as resource and action decide it.
            #[must_use]
            pub fn rights(&self) -> &BTreeSet<Right> {
                self.contents.chain.rights()
            }
        }
    )*};
}

contents_accessors!(UnverifiedCapability, Capability);

impl Capability {
    /// The keyset key that signed the authority block.
    #[must_use]
    pub fn issuer(&self) -> &PublicKey {
        &self.issuer
    }
}
