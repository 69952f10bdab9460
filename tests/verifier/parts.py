"""The verifier's parts, held to what does not come from here: golden files, the source, RFC 6962 as it is written."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import shapes
import tamper
from msgpack import Malformed, decode, encode
from notes import PROOF_HEADER, Checkpoint, Proof, split_notes
from ranges import count, holds, merged, outside
from signed import Signed, sha256
from tree import Tree, node_hash, root_by_path

COMMON = Path(__file__).resolve().parent.parent.parent / "common"
SOURCE = COMMON / "src"
GOLDEN = COMMON / "tests" / "golden"


def golden() -> list[str]:
    """Records and control events as Rust wrote them: read, verified, written again as the same bytes."""
    faults = []
    records = json.loads((GOLDEN / "records.json").read_text())["records"]
    events = json.loads((GOLDEN / "control.json").read_text())["events"]
    samples = [("record", shapes.RECORD, sample["envelope"], sample["digest"]) for sample in records]
    samples += [("control", shapes.CONTROL, sample["bytes"], None) for sample in events]
    for kind, shape, text, digest in samples:
        envelope = bytes.fromhex(text)
        signed = Signed.open(kind, envelope)
        value = signed.read(shape)
        if encode(decode(envelope)) != envelope or encode(value) != signed.payload:
            faults.append(f"a {kind} is not written again as it was: {text[:60]}…")
        if not signed.is_genuine() or digest not in (None, signed.digest().hex()):
            faults.append(f"a {kind} has another signature or digest: {text[:60]}…")
        faults += [f"a {kind} verifies with byte {at} changed" for at in _accepted_changes(kind, envelope, signed)]
    return faults if samples else ["there are no golden records"]


def _accepted_changes(kind: str, envelope: bytes, signed: Signed) -> list[int]:
    """Bytes of an envelope that can be changed and nobody notices."""
    accepted = []
    for at in range(len(envelope)):
        changed = envelope[:at] + bytes([envelope[at] ^ 1]) + envelope[at + 1 :]
        try:
            other = Signed.open(kind, changed)
        except Malformed:
            continue
        if other.key == signed.key and other.is_genuine():
            accepted.append(at)
    return accepted


# Which shape each type of the source has.
TYPES = {
    "record.rs": {
        "Record": shapes.RECORD,
        "DecisionId": shapes.DECISION_ID,
        "RecordedReason": shapes.REASON,
        "RecordedHop": shapes.HOP,
        "Who": shapes.WHO,
        "What": shapes.WHAT,
        "Basis": shapes.BASIS,
        "TraceRef": shapes.TRACE,
        "Granted": shapes.GRANTED,
        "RecordedRight": shapes.ASKED,
        "Verdicted": shapes.VERDICT,
        "Shadowed": shapes.SHADOWED,
        "RecordedApproval": shapes.APPROVAL,
        "RecordedAct": shapes.ACT,
        "RecordedSource": shapes.SOURCE,
        "RecordedFinding": shapes.FINDING,
        "Void": shapes.VOID,
        "Outcome": shapes.OUTCOME,
        "Receipt": shapes.RECEIPT,
    },
    "keyset.rs": {"KeysetDocument": shapes.KEYSET, "KeysetKey": shapes.KEYSET_KEY},
    "control.rs": {"ControlDocument": shapes.CONTROL},
    "epoch.rs": {"Epoch": shapes.EPOCH},
    "hold.rs": {"LegalHold": shapes.HOLD},
    "part.rs": {"Archived": shapes.ARCHIVED},
    "label.rs": {"Label": shapes.LABEL},
    "approval.rs": {"Need": shapes.NEED},
}


def fields() -> list[str]:
    """The fields of every signed thing are those of the source: one that is added there has to be known here."""
    faults = []
    for file, types in TYPES.items():
        source = (SOURCE / file).read_text()
        for name, shape in types.items():
            body = re.search(rf"^pub struct {name} \{{\n(.*?)^\}}", source, re.M | re.S)
            written = re.findall(
                r"^    ((?:#\[.*\n    )*)pub (\w+):", re.sub(r" *///.*\n", "", body[1] if body else ""), re.M
            )
            there = [(field, "skip_serializing_if" in attributes) for attributes, field in written]
            here = [(field, isinstance(kind, shapes.Optional)) for field, kind in shape.fields.items()]
            faults += [] if there == here else [f"{name} of {file} has {there}, and here it has {here}"]
    body = re.search(r"^pub enum ControlEvent \{\n(.*?)^\}", (SOURCE / "control.rs").read_text(), re.M | re.S)
    kinds = re.findall(r"^    ([A-Z]\w+)[ ({,]", body[1] if body else "", re.M)
    events = {re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower() for kind in kinds}
    if events != shapes.EVENT.variants.keys():
        faults.append(f"control events are {sorted(events)}, and here {sorted(shapes.EVENT.variants)}")
    return faults


def strictness() -> list[str]:
    """Bytes that say something known in a form Writ does not write are not read."""
    forms = {
        "a number written long": "cc01",
        "a number in eight bytes": "cf0000000000000001",
        "text written long": "d90161",
        "bytes written long": "c500" + "01" + "61",
        "a list written long": "dc000101",
        "a map written long": "de0001a16101",
        "a key twice": "82a16101a16102",
        "a key that is a number": "810102",
        "something behind the end": "0102",
        "an end too early": "a261",
        "a length nobody has": "ddffffffff",
        "a number below zero": "ff",
        "a fraction": "ca3f800000",
        "nested too deep": "91" * 60 + "90",
        "text that is not UTF-8": "a1ff",
        "nothing": "",
    }
    long = encode(
        {"v": 1, "kind": "record", "body": {"payload": bytes(65 * 1024), "key": bytes(32), "signature": bytes(64)}}
    )
    attempts: list[tuple[str, Callable[[], Any]]] = [
        (what, partial(decode, bytes.fromhex(form))) for what, form in forms.items()
    ]
    attempts += [
        ("an envelope longer than any", lambda: Signed.open("record", long)),
        ("a record for a receipt", lambda: Signed.open("receipt", long)),
        ("a number of 65 bits, written", lambda: encode(1 << 64)),
        ("a fraction, written", lambda: encode(0.5)),
    ]
    return _all_refused(attempts)


def _all_refused(attempts: Iterable[tuple[str, Callable[[], Any]]]) -> list[str]:
    faults = []
    for what, attempt in attempts:
        try:
            faults.append(f"{what} is taken for {attempt()!r}")
        except Malformed:
            continue
    return faults


def fields_refused() -> list[str]:
    """Values that are not of their shape are not taken for it."""
    who = {"task": "t-1"}
    wrong: list[tuple[shapes.Shape, Any]] = [
        (shapes.WHO, []),
        (shapes.WHO, {"task": None}),
        (shapes.WHO, {"hops": []}),
        (shapes.WHO, {"agent": "a", "task": "t-1"}),
        (shapes.WHO, who | {"task": "T"}),
        (shapes.WHO, who | {"task": "_"}),
        (shapes.WHO, who | {"operator": 1}),
        (shapes.WHO, who | {"hops": "none"}),
        (shapes.WHO, who | {"chain": bytes(31)}),
        (shapes.WHO, who | {"serial": "1"}),
        (shapes.WHO, who | {"user": ["https://idp.example"]}),
        (shapes.WHO, who | {"user": ["https://idp.example", ""]}),
        (shapes.WHO, who | {"user": ["https://idp.example", "a\nb"]}),
        (shapes.WHAT, {"resource": "tool._"}),
        (shapes.ORIGIN, {"node": "a", "broker": "b"}),
        (shapes.ORIGIN, {"agent": "a"}),
        (shapes.ORIGIN, "node"),
        (shapes.EPOCH, {"incarnation": 1 << 32, "sequence": 0}),
        (shapes.EPOCH, {"incarnation": True, "sequence": 0}),
        (shapes.EPOCH, {"incarnation": 0}),
        (shapes.LABEL, {"confidentiality": {"tags": ["b", "a"]}, "integrity": "trusted"}),
        (shapes.LABEL, {"confidentiality": "top", "integrity": "perhaps"}),
        (shapes.SIGNED, {"payload": "text", "key": bytes(32), "signature": bytes(64)}),
        (shapes.EVENT, {"halt_all": {"on": 1}}),
        (shapes.EVENT, {"policy": {"b": "", "a": ""}}),
        (shapes.EVENT, {"policy": {"a": b""}}),
        (shapes.EVENT, {"policy": []}),
        (shapes.EVENT, {"shadow_policy": False}),
        (shapes.EVENT, {"part": {"part": "p0", "stage": "open"}}),
        (shapes.EVENT, {"part": {"part": "p0", "stage": {"archived": {"manifest": bytes(32)}}}}),
        (shapes.EVENT, {"legal_hold": {"id": "h-1", "hold": None}}),
        (shapes.VERDICT, {"decision": "allow", "who": {}, "what": {}, "basis": {}, "count": 1}),
    ]
    right: list[tuple[shapes.Shape, Any]] = [
        (shapes.WHO, {}),
        (shapes.WHO, who),
        (shapes.LABEL, {"confidentiality": "top", "integrity": "untrusted"}),
        (shapes.EVENT, {"shadow_policy": None}),
        (shapes.EVENT, {"part": {"part": "p0", "stage": "sealed"}}),
        (shapes.EVENT, {"part": {"part": "p0", "stage": {"archived": {"manifest": bytes(32), "last": 9}}}}),
        (shapes.EVENT, {"legal_hold": {"id": "h-1"}}),
        (shapes.EVENT, {"legal_hold": {"id": "h-1", "hold": {"on": "everything", "why": "case 7"}}}),
        (shapes.VERDICT, {"decision": "allow", "who": {}, "what": {}, "basis": {}, "count": 2}),
    ]
    for shape, value in right:
        shape(value, "")
    return _all_refused((repr(value), partial(shape, value, "")) for shape, value in wrong)


def ranges() -> list[str]:
    """Ranges of positions say what a list of them does."""
    faults = []
    pairs = [(first, first + more) for first in (0, 3, 4, 7, 12) for more in (0, 1, 5)]
    for chosen in itertools.combinations(pairs, 3):
        held = {position for first, last in chosen for position in range(first, last + 1)}
        one = merged(list(chosen))
        if count(one) != len(held) or any(holds(position, one) != (position in held) for position in range(20)):
            faults.append(f"{chosen} become {one}")
        for begin, end in ((0, 19), (2, 6), (5, 5), (18, 19)):
            rest = {position for first, last in outside((begin, end), one) for position in range(first, last + 1)}
            if rest != set(range(begin, end + 1)) - held:
                faults.append(f"outside {chosen}, {begin} to {end} has {rest}")
    return faults


def trees() -> list[str]:
    """Roots and paths at every size against RFC 6962 as it is written."""

    def by_the_book(leaves: list[bytes]) -> bytes:
        if len(leaves) < 2:
            return leaves[0] if leaves else sha256()
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return node_hash(by_the_book(leaves[:half]), by_the_book(leaves[half:]))

    faults = []
    leaves = [sha256(bytes([index % 256, index // 256])) for index in range(260)]
    tree = Tree(leaves)
    for size in range(len(leaves) + 1):
        if tree.root(size) != by_the_book(leaves[:size]):
            faults.append(f"another root at size {size}")
    for size in (1, 2, 3, 7, 8, 9, 255, 256, 257):
        for position in range(size):
            path = tree.path(position, size)
            if root_by_path(leaves[position], position, size, path) != tree.root(size):
                faults.append(f"the path of {position} in {size} does not lead to the root")
            if root_by_path(leaves[position + 1], position, size, path) == tree.root(size):
                faults.append(f"another leaf passes for {position} in {size}")
    path, leaf = tree.path(5, 9), leaves[5]
    attempts: list[tuple[str, Callable[[], Any]]] = [
        ("a path with a step too many", lambda: root_by_path(leaf, 5, 9, [*path, leaf])),
        ("a path with a step too few", lambda: root_by_path(leaf, 5, 9, path[:-1])),
        ("a position behind the end", lambda: root_by_path(leaf, 9, 9, path)),
    ]
    return faults + _all_refused(attempts)


def notes(case: Path) -> list[str]:
    """No character of a checkpoint can be changed so that its recorder still stands for it."""
    export = case / "export"
    note = next(iter(sorted((export / "logs").glob("node.*/checkpoint")))).read_text()
    keys = [bytes.fromhex(text) for text in _record_keys(export)]
    if not Checkpoint.parse(note).is_signed(keys) or split_notes(note * 3) != [note] * 3:
        return ["a good checkpoint is not read, or several are not told apart"]
    # Behind the recorder's own signature stand those of witnesses, which are theirs to answer for.
    own = note[: note.index("\n— writ-witness")]
    return [f"with character {at} changed it is accepted" for at in range(len(own)) if _is_accepted(note, at, keys)]


def notes_refused(case: Path) -> list[str]:
    """Texts that are no checkpoint or no proof are not read, whoever signed them."""
    note = next(iter(sorted((case / "export" / "logs").glob("node.*/checkpoint")))).read_text()
    lines = note.split("\n")
    size = lines[1]
    wrong_notes = {
        "nothing": "",
        "no signature": note.partition("\n\n")[0] + "\n",
        "a note without its last line end": note[:-1],
        "another log": note.replace("writ-log/v1", "writ-log/v2"),
        "a size with a zero in front": note.replace(f"\n{size}\n", f"\n0{size}\n"),
        "a size of 65 bits": note.replace(f"\n{size}\n", f"\n{1 << 64}\n"),
        "a root that is no hash": note.replace(lines[2], "AAAA"),
        "base64 in another form": note.replace(lines[2], lines[2][:-2] + chr(ord(lines[2][-2]) + 1) + "="),
        "a fourth line": note.replace("\n\n", "\nopen\n\n"),
        "a control character": note.replace("\n\n", "\n\n\t"),
        "a signature without a name": f"{note}—  AAAAAAA=\n",
        "a note that is too long": note + lines[-2] + "\n" + (lines[-2] + "\n") * 40,
    }
    proof = f"{PROOF_HEADER}\nextra AAAA\nindex 1\n{lines[2]}\n\n{note}"
    Proof.parse(proof)
    wrong_proofs = {
        "another header": proof.replace("@v1", "@v2"),
        "no record": proof.replace("extra ", "extra: "),
        "a position below zero": proof.replace("index 1", "index -1"),
        "a step that is no hash": proof.replace(lines[2] + "\n\n", "AAAA\n\n"),
        "more steps than any tree has": proof.replace(lines[2] + "\n\n", (lines[2] + "\n") * 65 + "\n"),
        "no checkpoint": proof.partition("\n\n")[0],
    }
    attempts: list[tuple[str, Callable[[], Any]]] = [
        (what, partial(Checkpoint.parse, text)) for what, text in wrong_notes.items()
    ]
    attempts += [(what, partial(Proof.parse, text)) for what, text in wrong_proofs.items()]
    return _all_refused(attempts)


def _is_accepted(note: str, at: int, keys: list[bytes]) -> bool:
    try:
        return Checkpoint.parse(note[:at] + chr(ord(note[at]) ^ 1) + note[at + 1 :]).is_signed(keys)
    except Malformed:
        return False


def _record_keys(export: Path) -> list[str]:
    lines = tamper.read_lines(export / "control.jsonl")
    said = [Signed.open("control", tamper.payload_of(line)).read(shapes.CONTROL)["event"] for line in lines]
    return [event["node_key"]["key"].hex() for event in said if "node_key" in event]


# What needs nothing but what is here.
CHECKS = (golden, fields, fields_refused, strictness, ranges, trees)
