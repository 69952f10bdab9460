//! SHA-256 digests, always over a named context, so that bytes of one kind never pass for another.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest (FIPS 180-4), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `parts`, each preceded by its length, under `context`.
    ///
    /// Layout: `SHA-256(context || 0x00 || for each part: u64 big-endian length || part)`. The lengths keep
    /// two different splits of the same bytes apart.
    #[must_use]
    pub fn of(context: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(context.as_bytes());
        hasher.update([0]);
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The plain SHA-256 of `bytes`, for content that others digest too (result bodies, files, instructions).
    #[must_use]
    pub fn plain(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From 32 bytes that are a digest already.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 8 bytes in hex, for people; never compare by it.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).collect()
    }

    /// Parses 64 hex digits.
    ///
    /// # Errors
    /// Returns the text's fault in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let bytes = hex::decode(text).map_err(|_| "is not hex")?;
        Ok(Self(bytes.try_into().map_err(|_| "is not 32 bytes")?))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::bytes32::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::bytes32::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_and_splits_stay_apart() {
        let whole = Digest::of("a", &[b"xy"]);
        assert_ne!(whole, Digest::of("a", &[b"x", b"y"]));
        assert_ne!(whole, Digest::of("b", &[b"xy"]));
        assert_ne!(whole, Digest::plain(b"xy"));
    }

    #[test]
    fn plain_is_sha_256() {
        assert_eq!(
            Digest::plain(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
