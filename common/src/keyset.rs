//! Which broker keys count: a versioned document, signed by an offline root that nodes pin.

use serde::{Deserialize, Serialize};

use crate::{
    codec::Message,
    ids::TenantId,
    keys::{PublicKey, Purpose},
    signed::{OpenError, Signable, Signed},
    time::{Millis, Timestamp},
};

/// One broker key and the bounds it signs within.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysetKey {
    /// The key.
    pub public: PublicKey,
    /// Tenants it may issue for.
    pub tenants: Vec<TenantId>,
    /// Longest life of a capability it may issue.
    pub max_ttl: Millis,
    /// When it starts to count.
    pub not_before: Timestamp,
    /// When it stops.
    pub not_after: Timestamp,
}

impl KeysetKey {
    /// The hint biscuits carry for their root key: the first 32 bits of the key's fingerprint.
    ///
    /// Biscuit does not sign it, so it chooses which key is tried first and grants nothing (threat T05).
    #[must_use]
    pub fn hint(&self) -> u32 {
        root_key_hint(&self.public)
    }
}

/// The hint for a key; see [`KeysetKey::hint`].
#[must_use]
pub fn root_key_hint(key: &PublicKey) -> u32 {
    key.fingerprint().as_bytes().first_chunk::<4>().map_or(0, |four| u32::from_be_bytes(*four))
}

/// The document the offline root signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysetDocument {
    /// Raised with every change; a lower one is never accepted again.
    pub version: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// When a newer one is needed.
    pub expires: Timestamp,
    /// The keys that count.
    pub keys: Vec<KeysetKey>,
    /// Keys that counted once and must never count again.
    pub withdrawn: Vec<PublicKey>,
}

impl Signable for KeysetDocument {
    const PURPOSE: Purpose = Purpose::Keyset;
    const KIND: &'static str = "keyset";
}

impl Message for Signed<KeysetDocument> {
    const KIND: &'static str = "keyset";
}

/// A keyset whose signature by the pinned root was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyset {
    document: KeysetDocument,
}

/// Why a keyset is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysetError {
    /// Not signed by the pinned root, or malformed.
    #[error("the keyset is not signed by the pinned root key: {0}")]
    Open(#[from] OpenError),
    /// Older than one seen before.
    #[error("the keyset has version {version}, but version {seen} was seen before")]
    Rollback {
        /// Its version.
        version: u64,
        /// The highest version seen.
        seen: u64,
    },
    /// The same version with other content: the root signed two.
    #[error("there are two different keysets of version {version}")]
    Fork {
        /// The version both claim.
        version: u64,
    },
}

impl Keyset {
    /// Opens a signed keyset against the pinned root.
    ///
    /// # Errors
    /// [`KeysetError::Open`].
    pub fn open(signed: &Signed<KeysetDocument>, root: &PublicKey) -> Result<Self, KeysetError> {
        Ok(Self { document: signed.open(|key| key == root)? })
    }

    /// Replaces this keyset by a newer one; an equal one changes nothing, an older one is refused.
    ///
    /// # Errors
    /// [`KeysetError::Rollback`] or [`KeysetError::Fork`].
    pub fn replace(&mut self, newer: Self) -> Result<(), KeysetError> {
        let (version, seen) = (newer.document.version, self.document.version);
        if version < seen {
            return Err(KeysetError::Rollback { version, seen });
        }
        if version == seen && newer != *self {
            return Err(KeysetError::Fork { version });
        }
        *self = newer;
        Ok(())
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> &KeysetDocument {
        &self.document
    }

    /// Whether the document itself is still good.
    #[must_use]
    pub fn is_current(&self, now: Timestamp) -> bool {
        now < self.document.expires
    }

    /// The keys that count now for this tenant.
    pub fn active(&self, tenant: &TenantId, now: Timestamp) -> impl Iterator<Item = &KeysetKey> {
        self.document.keys.iter().filter(move |key| {
            key.tenants.contains(tenant)
                && key.not_before <= now
                && now < key.not_after
                && (!self.document.withdrawn.contains(&key.public) || crate::red::off("K02"))
        })
    }

    /// Whether `key` counts now for this tenant.
    #[must_use]
    pub fn is_active(&self, key: &PublicKey, tenant: &TenantId, now: Timestamp) -> bool {
        self.active(tenant, now).any(|active| active.public == *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PrivateKey;

    fn document(version: u64) -> KeysetDocument {
        KeysetDocument {
            version,
            issued_at: Timestamp::from_secs(1),
            expires: Timestamp::from_secs(1_000),
            keys: vec![KeysetKey {
                public: PrivateKey::from_seed(&[2; 32]).public(),
                tenants: vec![TenantId::parse("acme").unwrap()],
                max_ttl: Millis::from_secs(300),
                not_before: Timestamp::from_secs(10),
                not_after: Timestamp::from_secs(100),
            }],
            withdrawn: vec![],
        }
    }

    fn keyset(document: &KeysetDocument) -> Keyset {
        let root = PrivateKey::from_seed(&[1; 32]);
        Keyset::open(&Signed::new(document, &root), &root.public()).unwrap()
    }

    #[test]
    fn only_the_pinned_root_can_sign() {
        let signed = Signed::new(&document(1), &PrivateKey::from_seed(&[3; 32]));
        let pinned = PrivateKey::from_seed(&[1; 32]).public();
        assert!(matches!(Keyset::open(&signed, &pinned), Err(KeysetError::Open(OpenError::WrongKey(_)))));
    }

    #[test]
    fn versions_only_go_up() {
        let mut current = keyset(&document(2));
        assert_eq!(current.replace(keyset(&document(1))), Err(KeysetError::Rollback { version: 1, seen: 2 }));
        let mut other = document(2);
        other.withdrawn.push(PrivateKey::from_seed(&[9; 32]).public());
        assert_eq!(current.replace(keyset(&other)), Err(KeysetError::Fork { version: 2 }));
        assert_eq!(current.replace(keyset(&document(2))), Ok(()));
        assert_eq!(current.replace(keyset(&document(3))), Ok(()));
    }

    #[test]
    fn keys_count_within_their_time_and_tenants_until_withdrawn() {
        let tenant = TenantId::parse("acme").unwrap();
        let other = TenantId::parse("other").unwrap();
        let mut doc = document(1);
        let count = |doc: &KeysetDocument, tenant, secs| {
            keyset(doc).active(tenant, Timestamp::from_secs(secs)).count()
        };
        assert_eq!(count(&doc, &tenant, 10), 1);
        assert_eq!(count(&doc, &tenant, 9), 0);
        assert_eq!(count(&doc, &tenant, 100), 0);
        assert_eq!(count(&doc, &other, 50), 0);
        doc.withdrawn.push(doc.keys[0].public);
        assert_eq!(count(&doc, &tenant, 50), 0);
    }
}
