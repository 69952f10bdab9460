//! A value together with the signature over its canonical bytes.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    codec::{self, CodecError},
    digest::Digest,
    ids::KeyId,
    keys::{BadSignature, PrivateKey, PublicKey, Purpose, Signature},
};

/// What a signed value is for, and thereby what its signature is bound to.
pub trait Signable: Serialize + DeserializeOwned {
    /// The purpose whose prefix is signed in front of the payload.
    const PURPOSE: Purpose;
    /// What to call it in errors.
    const KIND: &'static str;
}

/// Canonical bytes of a `T`, the key that signed them, and the signature.
///
/// The value is only handed out by [`Signed::open`], after the signature was checked: there is no way to read
/// it by accident before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Signed<T> {
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
    key: PublicKey,
    signature: Signature,
    #[serde(skip)]
    kind: PhantomData<fn() -> T>,
}

/// Why a signed value could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The signature is not the key's over these bytes.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// Signed, but not a canonical `T`.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Signed by a key that is not accepted here.
    #[error("signed by {0}, which is not accepted for this")]
    WrongKey(KeyId),
}

impl<T: Signable> Signed<T> {
    /// Signs a value.
    #[must_use]
    pub fn new(value: &T, key: &PrivateKey) -> Self {
        let payload = codec::to_bytes(value);
        let signature = key.sign(T::PURPOSE, &payload);
        Self { payload, key: key.public(), signature, kind: PhantomData }
    }

    /// Checks the signature against a key `accepts` says yes to, then decodes.
    ///
    /// # Errors
    /// [`OpenError`] tells a foreign key, a bad signature and a malformed payload apart.
    pub fn open(&self, accepts: impl Fn(&PublicKey) -> bool) -> Result<T, OpenError> {
        if !accepts(&self.key) {
            return Err(OpenError::WrongKey(self.key.id()));
        }
        self.key.verify(T::PURPOSE, &self.payload, &self.signature)?;
        Ok(codec::from_canonical(T::KIND, &self.payload)?)
    }

    /// The key that claims to have signed; unverified until [`Signed::open`] accepts it.
    #[must_use]
    pub fn claimed_key(&self) -> &PublicKey {
        &self.key
    }

    /// Decodes without checking the signature, for looking at it and for finding out whose key to check.
    ///
    /// # Errors
    /// [`CodecError`] if the payload is not a canonical `T`.
    pub fn peek(&self) -> Result<T, CodecError> {
        codec::from_canonical(T::KIND, &self.payload)
    }

    /// The digest of the signed bytes: what other documents refer to this one by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(T::PURPOSE.prefix(), &[&self.payload])
    }

    /// The bytes that were signed.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}
