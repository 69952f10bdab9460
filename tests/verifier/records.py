"""Records: whether each is its recorder's word, and whether the records of a run are all there, once, in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import shapes
from approvals import LetPass
from control import Control, Epoch
from findings import Report
from msgpack import Malformed
from notes import RunId
from ranges import Range, outside
from signed import Signed
from tree import leaf_hash

ZEROS = bytes(32)
RecordId = tuple[RunId, int]


class Unbelieved(Exception):
    """A record, receipt or the like that is not what it says it is."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Record:
    """What a verifier keeps of a record; the payload itself is not kept."""

    run: RunId
    seq: int
    # Class, as its subject has it.
    kind: str
    digest: bytes
    prev: bytes
    leaf: bytes
    at: int
    part: str
    task: str | None
    # Of a void: digest of the record it voids.
    voids: bytes | None
    # Of a verdict.
    policy: bytes | None
    policy_fault: str | None
    epoch: Epoch | None
    is_act: bool
    # Of an outcome: the record that allowed it. Of both: the id of the call.
    intent: RecordId | None
    call_id: bytes | None
    # Of an outcome: how the call ended.
    status: str | None
    # Of a verdict that somebody had to let pass.
    let_pass: LetPass | None

    def __str__(self) -> str:
        return f"{self.run}/{self.seq}"

    @property
    def prepared(self) -> bytes:
        """Digest of what was prepared at its position."""
        return self.voids or self.digest

    def subject(self, tenant: str) -> str:
        """Where it is published."""
        return f"writ.v1.{tenant}.audit.{self.part}.{self.kind}.{self.task or '_'}.{self.run.name}"


# What millions of records say alike is kept once.
_shared: dict[Any, Any] = {}


def _share(value: Any) -> Any:
    return _shared.setdefault(value, value)


def id_of(value: dict[str, Any]) -> RecordId:
    """The record an id names."""
    ((kind, name),) = value["origin"].items()
    return _share(RunId(kind, name, value["boot"])), value["seq"]


def open_record(envelope: bytes, control: Control) -> Record:
    """Believes a record, or raises Unbelieved."""
    try:
        signed = Signed.open("record", envelope)
    except Malformed as error:
        raise Unbelieved("record.malformed", str(error)) from error
    try:
        content, unreadable = signed.read(shapes.RECORD), None
    except Malformed as error:
        content, unreadable = None, error
    # Only a key enrolled for the very name the record bears makes it that one's word.
    if content:
        run, seq = id_of(content["id"])
        where, keys, tenant = f"{run}/{seq}: ", control.record_keys.get(run.recorder, set()), content["tenant"]
    else:
        where, keys, tenant = "", control.all_record_keys, control.tenant
    if signed.key not in keys or tenant != control.tenant:
        raise Unbelieved("record.forged", f"{where}{signed.key.hex()} was never enrolled for who it says it is from")
    if not signed.is_genuine():
        raise Unbelieved("record.changed", f"{where}its signature does not fit its bytes")
    if content is None:
        raise Unbelieved("record.malformed", f"is signed, but {unreadable}")
    return _kept(content, run, seq, signed.digest(), leaf_hash(envelope))


def _kept(content: dict[str, Any], run: RunId, seq: int, digest: bytes, leaf: bytes) -> Record:
    ((sort, body),) = content["body"].items()
    verdict = body if sort == "verdict" else {}
    outcome = body if sort == "outcome" else {}
    basis, what = verdict.get("basis", {}), verdict.get("what", {})
    return Record(
        run=run,
        seq=seq,
        kind=_share(verdict.get("decision", sort)),
        digest=digest,
        prev=content["prev"],
        leaf=leaf,
        at=content["at"],
        part=_share(content["part"]),
        task=_share(outcome.get("task") if outcome else body["who"].get("task")),
        voids=body["prepared"] if sort == "void" else None,
        policy=_share(basis.get("policy")),
        policy_fault=basis.get("policy_fault"),
        epoch=_share(Epoch(**basis["epoch"])) if "epoch" in basis else None,
        is_act=what.get("resource", "").startswith(("tool.", "agent.")),
        intent=id_of(outcome["intent"]) if outcome else None,
        call_id=outcome.get("call_id") or what.get("call_id"),
        status=outcome.get("status"),
        let_pass=LetPass.of(content),
    )


def fits_subject(record: Record, subject: str, tenant: str) -> bool:
    """Whether a subject is the record's; class `restored` stands for any, in any part."""
    wanted, found = record.subject(tenant).split("."), subject.split(".")
    if len(found) == len(wanted) and found[5] == "restored" and shapes.is_name(found[4]):
        wanted[4:6] = found[4:6]
    return found == wanted


@dataclass
class Run:
    """The records of one run."""

    id: RunId
    # By position, in the order of the stream; more than one only where something was voided, or is wrong.
    at: dict[int, list[Record]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        """Takes a record, once."""
        known = self.at[record.seq]
        if all(record.leaf != other.leaf for other in known):
            known.append(record)

    def standing(self, position: int) -> Record:
        """What counts at a position: a void rather than what it voids, the last void of several, and the first
        record where there is a fork."""
        found = self.at[position]
        voids = [record for record in found if record.voids]
        return voids[-1] if voids and not self.is_forked(position) else found[0]

    def is_forked(self, position: int) -> bool:
        """Whether more than one record was prepared at a position."""
        found = self.at[position]
        # A second signature under the same words is a second record too: its leaf is another.
        signed = sum(record.voids is None for record in found)
        return signed > 1 or len({record.prepared for record in found}) > 1

    @property
    def size(self) -> int:
        """One more than the last position."""
        return max(self.at, default=-1) + 1

    @property
    def count(self) -> int:
        """How many positions have a record."""
        return len(self.at)

    def __iter__(self) -> Iterator[Record]:
        return (self.standing(position) for position in sorted(self.at))

    def gaps(self, away: list[Range]) -> list[Range]:
        """Positions before the last that have no record and were not put away."""
        end = away[-1][1] + 1 if away else 0
        positions = [-1, *sorted(self.at), *([end] if end > self.size else [])]
        gaps = [(a + 1, b - 1) for a, b in zip(positions, positions[1:]) if b - a > 1]
        return [rest for gap in gaps for rest in outside(gap, away)]

    def check(self, away: list[Range], report: Report, is_everything: bool) -> None:
        """Positions and order. `away` is what was put away."""
        for first, last in self.gaps(away) if is_everything else []:
            which = f"position {first}" if first == last else f"positions {first} to {last}"
            report.add("record.missing", f"{self.id}/{first}", f"the run has no record at {which}")
        for position, found in self.at.items():
            if self.is_forked(position):
                report.add("record.fork", found[0], f"{len(found)} different records bear this name")
            before = {record.prepared for record in self.at[position - 1]} if position - 1 in self.at else None
            expected = {ZEROS} if position == 0 else before
            if expected and any(record.prev not in expected for record in found):
                report.add("record.order", found[0], "it names another record as the one before it")
