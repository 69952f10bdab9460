"""Signed notes, checkpoints and proofs (C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import shapes
from msgpack import Malformed
from signed import sha256, verifies

NOTE_BYTES_MAX = 4 * 1024
STEPS_MAX = 64
ED25519 = b"\1"
COSIGNATURE = b"\4"
PROOF_HEADER = "c2sp.org/tlog-proof@v1"

LOG = re.compile(rf"writ-log/v1/({shapes.NAME})/(node|broker)/({shapes.NAME})/({shapes.NAME})")


def unbase64(text: str) -> bytes:
    """The bytes of a text that is base64 in its one form."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed("is not base64") from error
    if base64.b64encode(found).decode() != text:
        raise Malformed("is base64 in another form than the usual one")
    return found


def whole_number(text: str) -> int:
    """Decimal digits without a sign or zeros in front."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,19}", text) or int(text) >= 1 << 64:
        raise Malformed(f"`{text[:40]}` is no number")
    return int(text)


@dataclass(frozen=True, slots=True, order=True)
class RunId:
    """One run of one recorder."""

    kind: str
    name: str
    boot: str

    def __str__(self) -> str:
        return f"{self.name}/{self.boot}"

    @property
    def recorder(self) -> tuple[str, str]:
        """Whose run it is: `node` or `broker`, and its name."""
        return self.kind, self.name

    @property
    def folder(self) -> str:
        """Name of its log's folder in an export."""
        return f"{self.kind}.{self.name}.{self.boot}"


def key_id(name: str, algorithm: bytes, public: bytes) -> bytes:
    """The four bytes a note names a key by, besides its name."""
    return sha256(name.encode(), b"\n", algorithm, public)[:4]


@dataclass(frozen=True)
class Checkpoint:
    """A note as it was read: nobody's signature is checked yet."""

    text: str
    signatures: tuple[tuple[str, bytes], ...]
    tenant: str
    run: RunId
    size: int
    root: bytes
    is_closed: bool

    @classmethod
    def parse(cls, note: str) -> Checkpoint:
        """Reads a note over the three or four lines of a checkpoint."""
        if len(note.encode()) > NOTE_BYTES_MAX:
            raise Malformed(f"is longer than {NOTE_BYTES_MAX} bytes")
        if any(char < " " and char != "\n" for char in note):
            raise Malformed("holds control characters")
        text, gap, tail = note.rpartition("\n\n")
        if not gap or not tail.endswith("\n"):
            raise Malformed("is no signed note")
        signatures = tuple(_signature(line) for line in tail[:-1].split("\n"))
        lines = text.split("\n")
        if len(lines) not in (3, 4) or lines[3:] not in ([], ["closed"]):
            raise Malformed("is not origin, size, root and perhaps `closed`")
        origin = LOG.fullmatch(lines[0])
        root = unbase64(lines[2])
        if origin is None or len(root) != 32:
            raise Malformed("names no log, or its root is no hash")
        tenant, kind, name, boot = origin.groups()
        size = whole_number(lines[1])
        return cls(f"{text}\n", signatures, tenant, RunId(kind, name, boot), size, root, len(lines) == 4)

    @property
    def origin(self) -> str:
        """Its first line, which is also the name it is signed as."""
        return self.text.partition("\n")[0]

    def is_signed(self, keys: Iterable[bytes]) -> bool:
        """Whether the log's recorder signed it with one of these keys."""
        return any(
            verifies(key, self.text.encode(), signature)
            for key in keys
            for signature in self._by(self.origin, ED25519, key)
        )

    def is_cosigned(self, broker: str, keys: Iterable[bytes]) -> bool:
        """Whether a broker witnessed it with one of these keys."""
        return any(
            verifies(key, self._witnessed(signature), signature[8:])
            for key in keys
            for signature in self._by(f"writ-witness/v1/{self.tenant}/{broker}", COSIGNATURE, key)
        )

    def _by(self, name: str, algorithm: bytes, key: bytes) -> Iterator[bytes]:
        wanted = key_id(name, algorithm, key)
        return (data[4:] for signer, data in self.signatures if signer == name and data[:4] == wanted)

    def _witnessed(self, signature: bytes) -> bytes:
        seconds = int.from_bytes(signature[:8], "big")
        return f"cosignature/v1\ntime {seconds}\n{self.text}".encode()


def _signature(line: str) -> tuple[str, bytes]:
    mark, _, rest = line.partition(" ")
    name, _, data = rest.partition(" ")
    found = unbase64(data)
    if mark != "—" or not name or "+" in name or any(char.isspace() for char in name) or len(found) < 5:
        raise Malformed("has a line that is no signature")
    return name, found


def split_notes(text: str) -> list[str]:
    """Notes that stand one after the other in a file, each up to its last signature."""
    notes: list[str] = []
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if lines and lines[-1].startswith("— ") and not line.startswith("— "):
            notes.append("".join(lines))
            lines = []
        # Between two notes, empty lines mean nothing.
        if lines or line.strip():
            lines.append(line)
    return [*notes, "".join(lines)] if lines else notes


@dataclass(frozen=True)
class Proof:
    """That an envelope is at a position of a log, as it was read."""

    envelope: bytes
    position: int
    path: list[bytes]
    checkpoint: Checkpoint

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Reads a tlog-proof; the error says which line is wrong."""
        head, gap, note = text.partition("\n\n")
        lines = head.split("\n")
        if lines[0] != PROOF_HEADER or not gap:
            raise Malformed(f"line 1: does not begin a `{PROOF_HEADER}`")
        if len(lines) < 3 or not lines[1].startswith("extra ") or not lines[2].startswith("index "):
            raise Malformed("line 2: is not `extra` with the record, and line 3 `index` with its position")
        if len(lines) - 3 > STEPS_MAX:
            raise Malformed(f"line {STEPS_MAX + 4}: is one step more than any tree has")
        try:
            number = 2
            envelope = unbase64(lines[1].removeprefix("extra "))
            number = 3
            position = whole_number(lines[2].removeprefix("index "))
            path = []
            for number, line in enumerate(lines[3:], 4):
                path.append(unbase64(line))
                if len(path[-1]) != 32:
                    raise Malformed("is no hash")
            number = len(lines) + 2
            return cls(envelope, position, path, Checkpoint.parse(note))
        except Malformed as error:
            raise Malformed(f"line {number}: {error}") from error
