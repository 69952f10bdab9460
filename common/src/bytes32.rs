//! Fixed-size byte arrays on the wire: `bin` in MessagePack, hex in text formats.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

pub(crate) fn serialize<const N: usize, S: Serializer>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        serializer.serialize_str(&hex::encode(bytes))
    } else {
        serializer.serialize_bytes(bytes)
    }
}

pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let bytes = if deserializer.is_human_readable() {
        hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?
    } else {
        serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec()
    };
    let len = bytes.len();
    bytes.try_into().map_err(|_| D::Error::invalid_length(len, &"a fixed number of bytes"))
}
