"""Keys, signatures, digests and the envelope every signed thing travels in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import shapes
from msgpack import Malformed, decode

# Bytes an envelope may have, by kind; as the writers hold themselves to.
ENVELOPE_BYTES_MAX = {
    "approval": 8 * 1024,
    "approval_request": 192 * 1024,
    "control": 900 * 1024,
    "label_act": 16 * 1024,
    "receipt": 256 * 1024,
    "record": 64 * 1024,
}
# What is signed for a purpose that is not called like its kind.
PURPOSES = {"approval_request": "asks-approval", "label_act": "act"}

# Encodings of points of small order, the sign bit aside: signatures by or with them say nothing about who signed.
SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


def sha256(*parts: bytes) -> bytes:
    """Plain SHA-256 of the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def digest(context: str, *parts: bytes) -> bytes:
    """SHA-256 over the context, a zero byte, and each part after its length."""
    return sha256(context.encode(), b"\0", *(item for part in parts for item in (len(part).to_bytes(8, "big"), part)))


def is_small_order(point: bytes) -> bool:
    """Whether 32 bytes encode a point whose signatures anybody can make."""
    return point[:31] + bytes([point[31] & 0x7F]) in SMALL_ORDER


FIELD = 2**255 - 19
CURVE = -121665 * pow(121666, -1, FIELD) % FIELD


def is_point(public: bytes) -> bool:
    """Whether 32 bytes encode a point of the curve (RFC 8032, section 5.1.3)."""
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(CURVE * y * y + 1, -1, FIELD) % FIELD
    return pow(square, (FIELD - 1) // 2, FIELD) in (0, 1)


@lru_cache(maxsize=4096)
def _loaded(public: bytes) -> Ed25519PublicKey | None:
    try:
        return None if is_small_order(public) else Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        return None


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature over the message is this key's."""
    loaded = _loaded(public)
    if loaded is None or len(signature) != 64 or is_small_order(signature[:32]):
        return False
    try:
        loaded.verify(signature, message)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Signed:
    """A payload, who claims to have signed it, and the signature."""

    purpose: str
    payload: bytes
    key: bytes
    signature: bytes

    @classmethod
    def of(cls, purpose: str, body: dict[str, Any]) -> Signed:
        """From a map of the right shape."""
        return cls(purpose, body["payload"], body["key"], body["signature"])

    @classmethod
    def open(cls, kind: str, envelope: bytes) -> Signed:
        """From an envelope of this kind. Nothing is verified yet."""
        if len(envelope) > ENVELOPE_BYTES_MAX[kind]:
            raise Malformed(f"{len(envelope)} bytes are more than a {kind} may have")
        shapes.Struct({"v": shapes.u64, "kind": shapes.text, "body": shapes.SIGNED})(found := decode(envelope), kind)
        if found["v"] != 1 or found["kind"] != kind:
            raise Malformed(f"is `{found['kind']}` of version {found['v']} and not `{kind}` of version 1")
        return cls.of(PURPOSES.get(kind, kind), found["body"])

    def read(self, shape: shapes.Shape) -> Any:
        """What the payload says, whoever signed it."""
        value = decode(self.payload)
        shape(value, self.purpose)
        return value

    def is_genuine(self) -> bool:
        """Whether the key signed this payload for this purpose."""
        return verifies(self.key, f"writ/v1/{self.purpose}".encode() + self.payload, self.signature)

    def digest(self) -> bytes:
        """What other documents refer to this one by."""
        return digest(f"writ/v1/{self.purpose}", self.payload)
