//! Ed25519 keys and signatures (RFC 8032), always over a named context.
//!
//! Ed25519 is the only algorithm in capabilities and records: with P-256, `s -> n - s` makes a second valid
//! signature, and with it a second identity for a revoked token.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey as DalekSigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::{digest::Digest, ids::KeyId};

/// What a signature is for. The text is hashed in front of the payload, so that a signature given for one
/// purpose is worth nothing for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A person's word on one call, by the approver's key.
    Act,
    /// A request to the control plane, by an operator's key.
    Admin,
    /// An approver's answer, by the approver's key.
    Approval,
    /// A request for approval, by the node's key.
    ApprovalRequest,
    /// What was spent of a budget, by the key of the node that charged it.
    Budget,
    /// One governed call, by the holder's key.
    Call,
    /// A node's use of an approval, by the node's key.
    Claim,
    /// A control event, by a keyset key.
    Control,
    /// An enrollment, by the keys being enrolled.
    Enroll,
    /// A question for a kept result, by the holder's key.
    Fetch,
    /// A freshness answer, by a keyset key.
    Fresh,
    /// A node's question for freshness, by the node's key.
    Hello,
    /// A request for or renewal of a capability, by the holder's key.
    Issue,
    /// The broker's answer to it, by a keyset key.
    Issued,
    /// The keyset document, by the offline root.
    Keyset,
    /// A call handed on to an agent, by the node's key.
    Relay,
    /// An agent's answer to a relayed call, by that agent's holder key.
    Answer,
    /// A record, by the key of the node or broker that decided.
    Record,
    /// A receipt, by the node's key.
    Receipt,
    /// A task label, by the broker's or a node's key.
    Label,
    /// What results of a flow domain vouch for, by a node's key.
    Sources,
}

impl Purpose {
    /// The prefix that is signed in front of the payload.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Act => "writ/v1/act",
            Self::Admin => "writ/v1/admin",
            Self::Approval => "writ/v1/approval",
            Self::ApprovalRequest => "writ/v1/asks-approval",
            Self::Budget => "writ/v1/budget",
            Self::Call => "writ/v1/call",
            Self::Claim => "writ/v1/claim",
            Self::Control => "writ/v1/control",
            Self::Enroll => "writ/v1/enroll",
            Self::Fetch => "writ/v1/fetch",
            Self::Fresh => "writ/v1/fresh",
            Self::Hello => "writ/v1/hello",
            Self::Issue => "writ/v1/request",
            Self::Issued => "writ/v1/issued",
            Self::Keyset => "writ/v1/keyset",
            Self::Relay => "writ/v1/relay",
            Self::Answer => "writ/v1/answer",
            Self::Record => "writ/v1/record",
            Self::Receipt => "writ/v1/receipt",
            Self::Label => "writ/v1/label",
            Self::Sources => "writ/v1/sources",
        }
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Decodes 32 bytes (RFC 8032 section 5.1.3) and refuses points of small order.
    ///
    /// # Errors
    /// [`InvalidKey`] if the bytes are no usable point.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidKey> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| InvalidKey("is not 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| InvalidKey("is no point on the curve"))?;
        if key.is_weak() {
            return Err(InvalidKey("is a point of small order"));
        }
        Ok(Self(key))
    }

    /// Parses `ed25519:<64 hex digits>`.
    ///
    /// # Errors
    /// [`InvalidKey`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let hex_digits = text.strip_prefix("ed25519:").ok_or(InvalidKey("does not begin with `ed25519:`"))?;
        Self::from_bytes(&hex::decode(hex_digits).map_err(|_| InvalidKey("is not hex"))?)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The digest that stands for this key in records.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of("writ/v1/key", &[self.as_bytes()])
    }

    /// The short id that names this key in subjects: 128 bits of its fingerprint.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId::from_hex(self.fingerprint().to_string().chars().take(32).collect())
    }

    /// Checks a signature over `payload` for `purpose`, strictly (no small-order components, canonical `s`).
    ///
    /// # Errors
    /// [`BadSignature`] if it was not made by this key for this purpose over exactly these bytes.
    pub fn verify(
        &self,
        purpose: Purpose,
        payload: &[u8],
        signature: &Signature,
    ) -> Result<(), BadSignature> {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.0.verify_strict(&message(purpose, payload), &signature).map_err(|_| BadSignature)
    }
}

impl PublicKey {
    /// Checks a signature over a C2SP note, whose form is others' and has no purpose in front; strictly.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub(crate) fn verify_note(&self, text: &[u8], signature: &[u8; 64]) -> Result<(), BadSignature> {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(text, &signature).map_err(|_| BadSignature)
    }
}

fn message(purpose: Purpose, payload: &[u8]) -> Vec<u8> {
    [purpose.prefix().as_bytes(), payload].concat()
}

/// Why bytes or text are no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Ed25519 public key {0}")]
pub struct InvalidKey(pub &'static str);

/// The signature does not belong to the key, the purpose and the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for PublicKey {}
impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(self.as_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
        } else {
            let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
            Self::from_bytes(&bytes).map_err(D::Error::custom)
        }
    }
}

/// An Ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// From 64 bytes; whether they verify is another question.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(self.0.first_chunk::<4>().copied().unwrap_or_default()))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::bytes32::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::bytes32::deserialize(deserializer).map(Self)
    }
}

/// An Ed25519 private key. Wiped when dropped; never printed, never serialised.
#[derive(Clone)]
pub struct PrivateKey(DalekSigningKey);

impl PrivateKey {
    /// From the 32-byte seed (RFC 8032 section 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(DalekSigningKey::from_bytes(seed))
    }

    /// The seed, for writing a key file or for the one module that speaks biscuit.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `payload` for `purpose`.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, payload: &[u8]) -> Signature {
        Signature(self.0.sign(&message(purpose, payload)).to_bytes())
    }

    /// Signs a C2SP note. Its text begins with `writ-log/` or `cosignature/`, as no purpose's prefix does.
    pub(crate) fn sign_note(&self, text: &[u8]) -> Signature {
        Signature(self.0.sign(text).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Purpose; 15] = [
        Purpose::Admin,
        Purpose::Call,
        Purpose::Control,
        Purpose::Enroll,
        Purpose::Fresh,
        Purpose::Hello,
        Purpose::Issue,
        Purpose::Issued,
        Purpose::Fetch,
        Purpose::Keyset,
        Purpose::Relay,
        Purpose::Answer,
        Purpose::Record,
        Purpose::Receipt,
        Purpose::Label,
    ];

    #[test]
    fn no_prefix_begins_another() {
        for a in ALL {
            for b in ALL {
                assert!(a == b || !a.prefix().starts_with(b.prefix()), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn a_signature_is_bound_to_purpose_key_and_bytes() {
        let key = PrivateKey::from_seed(&[7; 32]);
        let other = PrivateKey::from_seed(&[8; 32]);
        let signature = key.sign(Purpose::Call, b"payload");
        assert!(key.public().verify(Purpose::Call, b"payload", &signature).is_ok());
        assert!(key.public().verify(Purpose::Record, b"payload", &signature).is_err());
        assert!(key.public().verify(Purpose::Call, b"payloae", &signature).is_err());
        assert!(other.public().verify(Purpose::Call, b"payload", &signature).is_err());
    }

    /// T19: adding the group order to `s` must not make a second valid signature.
    #[test]
    fn t19_a_malleated_signature_is_refused() {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let key = PrivateKey::from_seed(&[7; 32]);
        let mut bytes = *key.sign(Purpose::Call, b"payload").as_bytes();
        let mut carry = 0u16;
        for (byte, order) in bytes[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = u8::try_from(sum & 0xff).unwrap();
            carry = sum >> 8;
        }
        let malleated = Signature::from_bytes(bytes);
        assert!(key.public().verify(Purpose::Call, b"payload", &malleated).is_err());
    }

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        assert!(PublicKey::from_bytes(&[0; 32]).is_err());
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(InvalidKey("is a point of small order")));
        assert!(PublicKey::parse("ed25519:00").is_err());
        assert!(PublicKey::parse("p256:00").is_err());
        let key = PrivateKey::from_seed(&[7; 32]).public();
        assert_eq!(PublicKey::parse(&key.to_string()), Ok(key));
    }

    #[test]
    fn private_keys_do_not_print_themselves() {
        let key = PrivateKey::from_seed(&[7; 32]);
        let seed = hex::encode([7u8; 32]);
        assert!(!format!("{key:?}").contains(&seed));
    }
}
