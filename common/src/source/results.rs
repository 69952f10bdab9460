//! The trusted values that results have brought into a flow domain.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_bytes::ByteArray;

use super::canonical;
use crate::{
    digest::Digest,
    ids::{EntityType, FlowDomain},
    json::Value,
};

/// Most trusted values remembered for one flow domain.
pub const RESULT_SOURCES_MAX: usize = 1_024;

/// Bytes kept of each digest: 128 bits, so that finding another value with the digest of a trusted one takes 2^128.
const DIGEST_BYTES: usize = 16;

/// Which values trusted fields of results held, as digests: what a domain has read is not told to whoever can read its
/// state.
///
/// Bounded by [`RESULT_SOURCES_MAX`]. A value that no longer fits is not remembered, and has no source: the call waits
/// for a human instead of going through. Only trusted values go in, so that nobody outside can push others out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResultSources(BTreeSet<[u8; DIGEST_BYTES]>);

impl ResultSources {
    /// Remembers a value of a trusted field; one without a canonical form is not.
    pub fn insert(&mut self, domain: &FlowDomain, entity: &EntityType, value: &Value) {
        if let Some(canonical) = canonical(entity, value) {
            self.0.insert(digest(domain, entity, &canonical));
            self.shrink();
        }
    }

    /// Both sets. Of too many, those with the least digests stay, so that the order of joining does not matter.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let mut joined = Self(self.0.union(&other.0).copied().collect());
        joined.shrink();
        joined
    }

    /// Whether a trusted field held this value, given in its canonical form.
    #[must_use]
    pub fn contains(&self, domain: &FlowDomain, entity: &EntityType, canonical: &str) -> bool {
        self.0.contains(&digest(domain, entity, canonical))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shrink(&mut self) {
        while self.0.len() > RESULT_SOURCES_MAX {
            self.0.pop_last();
        }
    }
}

fn digest(domain: &FlowDomain, entity: &EntityType, canonical: &str) -> [u8; DIGEST_BYTES] {
    let whole = Digest::of(
        "writ/v1/entity",
        &[domain.to_string().as_bytes(), entity.as_str().as_bytes(), canonical.as_bytes()],
    );
    let mut kept = [0; DIGEST_BYTES];
    for (byte, of_whole) in kept.iter_mut().zip(whole.as_bytes()) {
        *byte = *of_whole;
    }
    kept
}

/// A list of byte strings, in ascending order.
impl Serialize for ResultSources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|digest| ByteArray::new(*digest)))
    }
}

impl<'de> Deserialize<'de> for ResultSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digests = Vec::<ByteArray<DIGEST_BYTES>>::deserialize(deserializer)?;
        if digests.len() > RESULT_SOURCES_MAX {
            return Err(D::Error::custom("a flow domain remembers at most 1024 trusted values"));
        }
        Ok(Self(digests.into_iter().map(ByteArray::into_array).collect()))
    }
}
