#!/usr/bin/env python3
"""Makes tampered copies of an export, as somebody could who holds none of its keys.

    python3 tests/verifier/tamper.py <export> <new folder>

Every copy stands in a folder of its own with the codes a verifier has to find in it (expected.json). Whoever tampers
puts export.json right too, where that is not the very thing that is tried.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import shapes
from msgpack import encode
from notes import Checkpoint
from records import id_of
from signed import Signed

# A key nobody enrolled.
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([0x63]) * 32)


class Absent(Exception):
    """The export has nothing of the kind this tampering takes."""


Lines = list[dict[str, Any]]


def read_lines(path: Path) -> Lines:
    """The messages of a file."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def write_lines(path: Path, lines: Lines) -> None:
    """Writes them as exports have them."""
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def relist(folder: Path) -> None:
    """Puts right what export.json says of the other files."""
    path = folder / "export.json"
    said = json.loads(path.read_text())
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != path)
    said["files"] = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    path.write_text(json.dumps(said, indent=2) + "\n")


def payload_of(line: dict[str, Any]) -> bytes:
    """The signed envelope."""
    return base64.b64decode(line["payload"])


def put(line: dict[str, Any], envelope: bytes) -> None:
    """Exchanges the signed envelope."""
    line["payload"] = base64.b64encode(envelope).decode()


def record_in(line: dict[str, Any]) -> dict[str, Any]:
    """What a record says."""
    found: dict[str, Any] = Signed.open("record", payload_of(line)).read(shapes.RECORD)
    return found


def sign(purpose: str, payload: bytes, key: Ed25519PrivateKey) -> dict[str, Any]:
    """A payload with its signature, as it stands in an envelope."""
    signature = key.sign(f"writ/v1/{purpose}".encode() + payload)
    return {"payload": payload, "key": key.public_key().public_bytes_raw(), "signature": signature}


def envelope(kind: str, body: dict[str, Any]) -> bytes:
    """The bytes that travel."""
    return encode({"v": 1, "kind": kind, "body": body})


def _denial(lines: Lines) -> int:
    """Index of a denial with records of its run on both sides: nothing else hangs on it."""
    records = [record_in(line) for line in lines]
    names = {id_of(record["id"]) for record in records}
    for index, record in enumerate(records):
        run, seq = id_of(record["id"])
        is_denial = record["body"].get("verdict", {}).get("decision") == "deny"
        if is_denial and (run, seq - 1) in names and (run, seq + 1) in names:
            return index
    raise Absent("no denial between two other records of its run")


def _later(data: bytes) -> bytes:
    """The same record or event, a moment earlier or later: readable, and not what was signed."""
    mark = b"\xa2at\xcf"
    at = data.index(mark) + len(mark) + 7
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def changed_byte(folder: Path) -> None:
    """A byte inside a record."""
    lines = read_lines(folder / "records.jsonl")
    line = lines[_denial(lines)]
    put(line, _later(payload_of(line)))
    write_lines(folder / "records.jsonl", lines)


def missing_record(folder: Path) -> None:
    """A record between two others is taken out."""
    lines = read_lines(folder / "records.jsonl")
    del lines[_denial(lines)]
    write_lines(folder / "records.jsonl", lines)


def swapped_lines(folder: Path) -> None:
    """Two lines change places: nothing rests on the order of lines, so that is no fault."""
    lines = read_lines(folder / "records.jsonl")
    index = _denial(lines)
    lines[index], lines[index + 1] = lines[index + 1], lines[index]
    write_lines(folder / "records.jsonl", lines)


def doubled_line(folder: Path) -> None:
    """A record stands there twice: that is no fault either."""
    lines = read_lines(folder / "records.jsonl")
    write_lines(folder / "records.jsonl", [*lines, lines[_denial(lines)]])


def other_subject(folder: Path) -> None:
    """A denial is filed as an outcome."""
    lines = read_lines(folder / "records.jsonl")
    line = lines[_denial(lines)]
    line["subject"] = line["subject"].replace(".deny.", ".outcome.")
    write_lines(folder / "records.jsonl", lines)


def rolled_back(folder: Path) -> None:
    """The last records of a run are taken out, as if its recorder had stopped earlier."""
    lines = read_lines(folder / "records.jsonl")
    ids = [id_of(record_in(line)["id"]) for line in lines]
    for place in sorted((folder / "logs").glob("*")):
        said = Checkpoint.parse((place / "checkpoint").read_text())
        last = [index for index, id in enumerate(ids) if id == (said.run, said.size - 1)]
        if last and ".deny." in lines[last[0]]["subject"]:
            write_lines(folder / "records.jsonl", [line for index, line in enumerate(lines) if index not in last])
            return
    raise Absent("no run whose last record is a denial")


def forged_node(folder: Path) -> None:
    """A record of a run that never was, by a key nobody enrolled."""
    lines = read_lines(folder / "records.jsonl")
    line = dict(lines[_denial(lines)])
    record = record_in(line)
    record["id"] |= {"boot": "b-zzzzzzzzzzzzzzzzzzzzzzzzzz", "seq": 0}
    record["prev"] = bytes(32)
    put(line, envelope("record", sign("record", encode(record), STRANGER)))
    line["sequence"] = lines[-1]["sequence"] + 1
    write_lines(folder / "records.jsonl", [*lines, line])


def no_envelope(folder: Path) -> None:
    """A message that is no envelope stands between the records."""
    lines = read_lines(folder / "records.jsonl")
    line = dict(lines[-1])
    put(line, b"a record")
    write_lines(folder / "records.jsonl", [*lines, line])


def no_message(folder: Path) -> None:
    """A line of the records holds no message."""
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"sequence": 1}\n')


def no_subject(folder: Path) -> None:
    """A line of the records has something else than text for its subject."""
    lines = read_lines(folder / "records.jsonl")
    write_lines(folder / "records.jsonl", [*lines, {**lines[-1], "subject": None}])


def no_control(folder: Path) -> None:
    """The control stream is taken out: there is nothing left to believe anything by."""
    (folder / "control.jsonl").unlink()


def changed_event(folder: Path) -> None:
    """A byte inside the last control event."""
    lines = read_lines(folder / "control.jsonl")
    put(lines[-1], _later(payload_of(lines[-1])))
    write_lines(folder / "control.jsonl", lines)


def removed_event(folder: Path) -> None:
    """The last control event but one is taken out."""
    lines = read_lines(folder / "control.jsonl")
    write_lines(folder / "control.jsonl", [*lines[:-2], lines[-1]])


def truncated_control(folder: Path) -> None:
    """The control stream ends before a state that verdicts name, and after every key and policy."""
    lines = read_lines(folder / "control.jsonl")
    verdicts = [record_in(line)["body"].get("verdict", {}) for line in read_lines(folder / "records.jsonl")]
    last = max(verdict["basis"].get("epoch", {}).get("sequence", 0) for verdict in verdicts if verdict)
    taken = [line for line in lines if line["sequence"] >= last]
    said = [Signed.open("control", payload_of(line)).read(shapes.CONTROL)["event"] for line in taken]
    if not taken or any(
        kind in event for event in said for kind in ("policy", "node_key", "broker_boot", "node_boot")
    ):
        raise Absent("something else would be missed first")
    write_lines(folder / "control.jsonl", [line for line in lines if line["sequence"] < last])


def _a_policy_file(folder: Path) -> Path:
    for path in sorted((folder / "policies").rglob("*")):
        if path.is_file():
            return path
    raise Absent("no policy")


def changed_policy(folder: Path) -> None:
    """A policy reads otherwise than it was put in force."""
    path = _a_policy_file(folder)
    path.write_text(path.read_text() + "# nothing to see\n")


def changed_file(folder: Path) -> None:
    """The same, and export.json is left as it was."""
    changed_policy(folder)


def changed_line(folder: Path) -> None:
    """A line of the records says more than was exported, in what is not signed."""
    lines = read_lines(folder / "records.jsonl")
    write_lines(folder / "records.jsonl", [{**lines[0], "remark": "as agreed"}, *lines[1:]])


def missing_file(folder: Path) -> None:
    """A file that export.json lists is not there."""
    said = json.loads((folder / "export.json").read_text())
    said["files"]["report.html"] = hashlib.sha256(b"a report").hexdigest()
    (folder / "export.json").write_text(json.dumps(said))


def missing_policy(folder: Path) -> None:
    """A policy that verdicts were given by is taken out."""
    shutil.rmtree(_a_policy_file(folder).parent)


def added_file(folder: Path) -> None:
    """A file that export.json does not know of."""
    (folder / "conclusion.txt").write_text("Everything is in order.\n")


def no_manifest(folder: Path) -> None:
    """export.json is taken out: everything else still has to be what it was."""
    (folder / "export.json").unlink()


def changed_tile(folder: Path) -> None:
    """A hash in a tile."""
    path = max(path for path in (folder / "logs").rglob("*") if "tile" in path.parts and path.is_file())
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def changed_upper_tile(folder: Path) -> None:
    """A hash in a tile above others: nothing hangs on it, and it is not what it should be."""
    path = next(iter(sorted((folder / "logs").glob("*/tile/1/*"))), None)
    if path is None:
        raise Absent("no log with more records than a tile is wide")
    path = path if path.is_file() else next(path.iterdir())
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def missing_tile(folder: Path) -> None:
    """A tile is taken out."""
    next(path for path in sorted(_a_log(folder).rglob("*")) if "tile" in path.parts and path.is_file()).unlink()


def _a_log(folder: Path) -> Path:
    """The log of a run with more than one record, which were all made long before the export."""
    return max((folder / "logs").glob("node.*"), key=lambda place: sum(1 for _ in place.rglob("*")))


def missing_log(folder: Path) -> None:
    """A run's log is taken out."""
    shutil.rmtree(_a_log(folder))


def changed_checkpoint(folder: Path) -> None:
    """A checkpoint says another root than was signed."""
    path = _a_log(folder) / "checkpoint"
    lines = path.read_text().split("\n")
    lines[2] = base64.b64encode(hashlib.sha256(b"another root").digest()).decode()
    path.write_text("\n".join(lines))


def unreadable_checkpoint(folder: Path) -> None:
    """A checkpoint is another text."""
    (_a_log(folder) / "checkpoint").write_text("There is nothing to see here.\n")


def missing_checkpoint(folder: Path) -> None:
    """A checkpoint is taken out, and its tiles are left."""
    (_a_log(folder) / "checkpoint").unlink()


@dataclass(frozen=True)
class Tampering:
    """What is done to a copy, and the codes a verifier has to find in it."""

    apply: Callable[[Path], None]
    codes: tuple[str, ...]
    is_listed: bool = True


TAMPERINGS = (
    Tampering(changed_byte, ("record.changed", "record.missing")),
    Tampering(missing_record, ("record.missing",)),
    Tampering(swapped_lines, ()),
    Tampering(doubled_line, ()),
    Tampering(other_subject, ("record.subject",)),
    Tampering(rolled_back, ("log.rolled_back",)),
    Tampering(forged_node, ("record.forged",)),
    Tampering(no_envelope, ("record.malformed",)),
    Tampering(no_message, ("record.malformed",)),
    Tampering(no_subject, ("record.malformed",)),
    Tampering(no_control, ("control.signature", "log.signature", "record.forged")),
    Tampering(changed_event, ("control.signature",)),
    Tampering(removed_event, ("control.order",)),
    Tampering(truncated_control, ("control.order",)),
    Tampering(changed_policy, ("file.digest",)),
    Tampering(changed_file, ("file.digest",), is_listed=False),
    Tampering(changed_line, ("file.digest",), is_listed=False),
    Tampering(missing_file, ("file.digest",), is_listed=False),
    Tampering(missing_policy, ("file.digest",)),
    Tampering(added_file, ("file.digest",), is_listed=False),
    Tampering(no_manifest, ("file.digest",), is_listed=False),
    Tampering(changed_tile, ("log.tiles",)),
    Tampering(changed_upper_tile, ("log.tiles",)),
    Tampering(missing_tile, ("log.tiles",)),
    Tampering(missing_log, ("log.unwitnessed",)),
    Tampering(changed_checkpoint, ("log.signature", "log.unwitnessed")),
    Tampering(unreadable_checkpoint, ("log.signature", "log.unwitnessed")),
    Tampering(missing_checkpoint, ("log.signature", "log.unwitnessed")),
)


def make(export: Path, out: Path) -> dict[str, str]:
    """Makes every tampering; says which could not be made of this export, and why."""
    absent = {}
    for tampering in TAMPERINGS:
        name = tampering.apply.__name__
        folder = out / name / "export"
        shutil.copytree(export, folder)
        try:
            tampering.apply(folder)
        except Absent as error:
            shutil.rmtree(out / name)
            absent[name] = str(error)
            continue
        if tampering.is_listed:
            relist(folder)
        (out / name / "expected.json").write_text(json.dumps(tampering.codes) + "\n")
    return absent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for name, why in make(options.export, options.out).items():
        print(f"{name}: not made, {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
