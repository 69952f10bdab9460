//! MessagePack, strictly: one byte string per value.
//!
//! `rmp-serde` by itself accepts trailing bytes, duplicate keys, structs written as arrays and numbers written
//! long. So bytes from outside are decoded, encoded again and compared: what differs is refused. Structs are
//! maps with named fields, so that a record can be read years later without this code, and a field added later
//! as optional leaves old bytes valid.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::reason::ReasonCode;

/// Deepest nesting of maps and arrays in a message.
pub const CODEC_DEPTH_MAX: usize = 48;

/// Why bytes are not the message they were meant to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not MessagePack, not this type, or a value its type refuses. Holds the decoder's own words.
    #[error("the bytes are not a `{kind}` message: {detail}")]
    Format {
        /// Kind of message that was expected.
        kind: &'static str,
        /// What the decoder met.
        detail: String,
    },
    /// Decodes, but is not written in the one canonical way.
    #[error("the `{kind}` message is not in canonical form")]
    NotCanonical {
        /// Kind of message that was expected.
        kind: &'static str,
    },
    /// Nested deeper than [`CODEC_DEPTH_MAX`].
    #[error("the `{kind}` message is nested deeper than {CODEC_DEPTH_MAX}")]
    TooDeep {
        /// Kind of message that was expected.
        kind: &'static str,
    },
    /// More bytes than the kind may have.
    #[error("the `{kind}` message has {bytes} bytes, more than {bytes_max}")]
    TooLarge {
        /// Kind of message that was expected.
        kind: &'static str,
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        bytes_max: usize,
    },
    /// Another version of the format.
    #[error("the `{kind}` message is of version {version}; this build reads version 1")]
    Version {
        /// Kind of message that was expected.
        kind: &'static str,
        /// The version it claims.
        version: u64,
    },
    /// A well-formed message of another kind.
    #[error("expected a `{expected}` message and got a `{found}` message")]
    WrongKind {
        /// Kind of message that was expected.
        expected: &'static str,
        /// Kind it claims to be, cut to 40 characters.
        found: String,
    },
}

impl CodecError {
    /// The code such bytes are refused with, wherever they arrive.
    #[must_use]
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Format { .. } | Self::WrongKind { .. } => ReasonCode::CodecFormat,
            Self::NotCanonical { .. } => ReasonCode::CodecNonCanonical,
            Self::TooDeep { .. } => ReasonCode::CodecDepth,
            Self::TooLarge { .. } => ReasonCode::CodecTooLarge,
            Self::Version { .. } => ReasonCode::CodecVersion,
        }
    }
}

/// A message body: what it is called on the wire and how large it may be.
pub trait Message: Serialize + DeserializeOwned {
    /// The name of the kind, written into every envelope.
    const KIND: &'static str;
    /// Most bytes an envelope of this kind may have.
    const BYTES_MAX: usize = 256 * 1024;
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    v: u64,
    kind: String,
    body: T,
}

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    v: u64,
    kind: &'static str,
    body: &'a T,
}

#[derive(Deserialize)]
struct Head {
    v: u64,
    kind: String,
}

/// Writes a message in its version 1 envelope `{v: 1, kind, body}`.
#[must_use]
pub fn encode<T: Message>(body: &T) -> Vec<u8> {
    to_bytes(&EnvelopeRef { v: 1, kind: T::KIND, body })
}

/// Reads a version 1 envelope, accepting only the canonical bytes.
///
/// # Errors
/// [`CodecError`] says which rule the bytes break.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, CodecError> {
    let kind = T::KIND;
    if bytes.len() > T::BYTES_MAX {
        return Err(CodecError::TooLarge { kind, bytes: bytes.len(), bytes_max: T::BYTES_MAX });
    }
    let envelope: Envelope<T> = match from_bytes(bytes) {
        Ok(envelope) => envelope,
        Err(error) => return Err(explain_failure(kind, bytes, &error)),
    };
    if envelope.v != 1 {
        return Err(CodecError::Version { kind, version: envelope.v });
    }
    if envelope.kind != kind {
        return Err(wrong_kind(kind, &envelope.kind));
    }
    if encode(&envelope.body) != bytes && !crate::red::off("A07") {
        return Err(CodecError::NotCanonical { kind });
    }
    Ok(envelope.body)
}

fn wrong_kind(expected: &'static str, found: &str) -> CodecError {
    CodecError::WrongKind { expected, found: found.chars().take(40).flat_map(char::escape_default).collect() }
}

/// A body that fails to decode may be of another version or kind; say that, since it helps more.
fn explain_failure(kind: &'static str, bytes: &[u8], error: &rmp_serde::decode::Error) -> CodecError {
    if matches!(error, rmp_serde::decode::Error::DepthLimitExceeded) {
        return CodecError::TooDeep { kind };
    }
    match from_bytes::<Head>(bytes) {
        Ok(head) if head.v != 1 => CodecError::Version { kind, version: head.v },
        Ok(head) if head.kind != kind => wrong_kind(kind, &head.kind),
        // The type may have tripped over the first level already; what it met is a bomb all the same.
        Err(rmp_serde::decode::Error::DepthLimitExceeded) => CodecError::TooDeep { kind },
        _ => CodecError::Format { kind, detail: error.to_string().chars().take(160).collect() },
    }
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(CODEC_DEPTH_MAX);
    T::deserialize(&mut deserializer)
}

/// Canonical bytes of any value of ours: maps with named fields, in declaration order.
///
/// Serialisation of our own types cannot fail: they hold no maps with unserialisable keys and no sequences of
/// unknown length.
#[must_use]
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = rmp_serde::to_vec_named(value);
    debug_assert!(encoded.is_ok(), "a type of ours does not serialise");
    encoded.unwrap_or_default()
}

/// Canonical bytes of a fixed field list: a MessagePack array, for bytes that are signed field by field.
#[must_use]
pub fn to_array_bytes<T: Serialize>(fields: &T) -> Vec<u8> {
    let encoded = rmp_serde::to_vec(fields);
    debug_assert!(encoded.is_ok(), "a type of ours does not serialise");
    encoded.unwrap_or_default()
}

/// Reads bytes written by [`to_bytes`], accepting only those.
///
/// # Errors
/// [`CodecError`] says which rule the bytes break; `kind` is for its text.
pub fn from_canonical<T: Serialize + DeserializeOwned>(
    kind: &'static str,
    bytes: &[u8],
) -> Result<T, CodecError> {
    let value: T = from_bytes(bytes).map_err(|error| match error {
        rmp_serde::decode::Error::DepthLimitExceeded => CodecError::TooDeep { kind },
        other => CodecError::Format { kind, detail: other.to_string().chars().take(160).collect() },
    })?;
    if to_bytes(&value) != bytes && !crate::red::off("A07") {
        return Err(CodecError::NotCanonical { kind });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Note {
        text: String,
        count: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        extra: Option<String>,
    }

    impl Message for Note {
        const KIND: &'static str = "note";
        const BYTES_MAX: usize = 1024;
    }

    fn note() -> Note {
        Note { text: "hi".into(), count: 3, extra: None }
    }

    #[test]
    fn round_trip() {
        assert_eq!(decode::<Note>(&encode(&note())), Ok(note()));
    }

    #[test]
    fn a07_only_the_canonical_bytes_are_accepted() {
        let good = encode(&note());
        let trailing = [good.as_slice(), &[0xc0]].concat();
        // The same map with `count` written as a 64-bit integer instead of one byte.
        let long_int = {
            let mut bytes = good[..good.len() - 1].to_vec();
            bytes.extend([0xcf, 0, 0, 0, 0, 0, 0, 0, 3]);
            bytes
        };
        // The same struct as a positional array, which rmp-serde would take.
        let positional = rmp_serde::to_vec(&(1u8, "note", ("hi", 3u8))).unwrap();
        // A map that names `v` twice.
        let mut twice = vec![0x84, 0xa1, b'v', 0x01];
        twice.extend_from_slice(&good[1..]);
        for bytes in [trailing, long_int, positional, twice] {
            let error = decode::<Note>(&bytes).unwrap_err();
            assert!(
                matches!(error, CodecError::NotCanonical { .. } | CodecError::Format { .. }),
                "{error:?} for {bytes:02x?}"
            );
        }
    }

    #[test]
    fn other_versions_kinds_and_sizes_are_named() {
        let newer = rmp_serde::to_vec_named(&Envelope { v: 2, kind: "note".into(), body: 7u8 }).unwrap();
        assert_eq!(decode::<Note>(&newer), Err(CodecError::Version { kind: "note", version: 2 }));
        let other = rmp_serde::to_vec_named(&Envelope { v: 1, kind: "call".into(), body: 7u8 }).unwrap();
        assert!(matches!(decode::<Note>(&other), Err(CodecError::WrongKind { .. })));
        assert!(matches!(decode::<Note>(&vec![0; 2000]), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn a08_depth_bombs_are_refused() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Nest(Vec<Nest>);
        impl Message for Nest {
            const KIND: &'static str = "nest";
        }
        for levels in [100, 1_100, 5_000, 200_000, 1_000_000] {
            let mut bytes = vec![0x83, 0xa1, b'v', 1, 0xa4];
            bytes.extend(b"kind\xa4nest\xa4body");
            bytes.resize(bytes.len() + levels, 0x91);
            bytes.push(0x90);
            let error = decode::<Nest>(&bytes).unwrap_err();
            assert!(matches!(error, CodecError::TooDeep { .. } | CodecError::TooLarge { .. }), "{error:?}");
        }
    }

    #[test]
    fn a09_length_bombs_allocate_nothing() {
        for head in [[0xdd, 0xff, 0xff, 0xff, 0xff], [0xc6, 0xff, 0xff, 0xff, 0xff]] {
            let mut bytes = vec![0x83, 0xa1, b'v', 1, 0xa4];
            bytes.extend(b"kind\xa4note\xa4body");
            bytes.extend(head);
            assert!(matches!(decode::<Note>(&bytes), Err(CodecError::Format { .. })));
        }
    }
}
