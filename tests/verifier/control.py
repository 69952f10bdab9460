"""The control stream: whose signature counts for what, and which policy was in force when.

Everything else is believed because of an event here, and an event here because of the root's key.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import shapes
from msgpack import Malformed
from notes import RunId
from signed import Signed, digest

# How far brokers' clocks may be apart, in milliseconds.
SKEW_MS = 60_000

Recorder = tuple[str, str]


class Epoch(NamedTuple):
    """A state of the control stream: how often it was recovered, and its last event."""

    incarnation: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


class Refused(Exception):
    """A message of the control stream that is no event."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def revision_of(files: dict[str, str]) -> bytes:
    """The digest that names a policy."""
    return digest("writ/v1/policy", *(part.encode() for entry in files.items() for part in entry))


@dataclass
class Parts:
    """How far the parts of the audit stream have come. Each goes through its stages once; an event that says otherwise
    changes nothing."""

    # In the order they were begun; the last one is in use.
    begun: list[str] = field(default_factory=lambda: ["p0"])
    # Where the flow domains live that outlive a task.
    shared: str = "p0"
    sealed: set[str] = field(default_factory=set)
    # Of each that was put away, the digest of its manifest and the sequence of its last message.
    archived: dict[str, tuple[bytes, int]] = field(default_factory=dict)

    def apply(self, part: str, stage: Any) -> None:
        """Takes in an event."""
        takes = part in self.begun and part not in self.sealed
        match stage:
            case "current" if part == f"p{len(self.begun)}":
                self.begun.append(part)
            case "shared" if takes and self.begun.index(part) > self.begun.index(self.shared):
                self.shared = part
            case "sealed" if takes and part not in (self.begun[-1], self.shared):
                self.sealed.add(part)
            case {"archived": said} if part in self.sealed:
                self.archived.setdefault(part, (said["manifest"], said["last"]))


@dataclass
class Enrolled:
    """A key of an approver, from the event of this sequence until that of another, which bears a time."""

    key: bytes
    since: int
    until: tuple[int, int] | None = None


@dataclass
class Control:
    """What the events say that were taken so far."""

    tenant: str
    root: bytes
    epoch: Epoch = Epoch(0, 0)
    # The latest time an event bore, in milliseconds since 1970.
    last_at: int = 0
    keyset: dict[str, Any] | None = None
    epochs: set[Epoch] = field(default_factory=lambda: {Epoch(0, 0)})
    record_keys: dict[Recorder, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    all_record_keys: set[bytes] = field(default_factory=set)
    # Every policy that was put in force, as (sequence of its event, revision).
    activations: list[tuple[int, bytes]] = field(default_factory=list)
    policies: dict[bytes, dict[str, str]] = field(default_factory=dict)
    # The event that announced a run, by its sequence.
    boots: dict[RunId, int] = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)
    approver_keys: dict[str, list[Enrolled]] = field(default_factory=lambda: defaultdict(list))
    # The sequence of the event by which a part was sealed.
    sealed: dict[str, int] = field(default_factory=dict)

    def take(self, sequence: int, payload: bytes) -> None:
        """Takes the next message. Refused says why it is no event; then nothing has changed."""
        try:
            signed = Signed.open("control", payload)
            document = signed.read(shapes.CONTROL)
            brought = self._keyset_in(document["event"])
        except Malformed as error:
            raise Refused("control.signature", f"is no event this verifier can read: {error}") from error
        keysets = [keyset for keyset in (self.keyset, brought) if keyset]
        at, follows = document["at"], Epoch(**document["follows"])
        if not any(self._counts(keyset, signed.key, at) for keyset in keysets):
            raise Refused("control.signature", f"is signed by {signed.key.hex()}, which no keyset lists for then")
        if not signed.is_genuine() or document["tenant"] != self.tenant:
            raise Refused("control.signature", "its signature does not fit it, or it is another tenant's")
        if sequence <= self.epoch.sequence or follows != self.epoch:
            raise Refused("control.order", f"follows {follows}, and {self.epoch} is what stands before it")
        if self.last_at - at > SKEW_MS:
            raise Refused("control.order", f"says it is {self.last_at - at} ms older than an event before it")
        if brought and self.keyset:
            self._check_successor(brought, self.keyset)
        self.last_at = max(self.last_at, at)
        ((kind, event),) = document["event"].items()
        self._fold(sequence, at, kind, event, brought)

    def _keyset_in(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """A keyset is the root's word, whoever brings it."""
        if "keyset" not in event:
            return None
        signed = Signed.of("keyset", event["keyset"])
        if signed.key != self.root or not signed.is_genuine():
            raise Refused("control.signature", "brings a keyset that is not signed by the root's key")
        found: dict[str, Any] = signed.read(shapes.KEYSET)
        return found

    def _counts(self, keyset: dict[str, Any], key: bytes, at: int) -> bool:
        return key not in keyset["withdrawn"] and any(
            entry["public"] == key
            and self.tenant in entry["tenants"]
            and entry["not_before"] <= at < entry["not_after"]
            for entry in keyset["keys"]
        )

    @staticmethod
    def _check_successor(newer: dict[str, Any], current: dict[str, Any]) -> None:
        if newer["version"] < current["version"]:
            raise Refused("control.order", f"brings keyset {newer['version']} after {current['version']}")
        if newer["version"] == current["version"] and newer != current:
            raise Refused("control.order", f"brings another keyset {newer['version']} than the one before")

    def _fold(self, sequence: int, at: int, kind: str, event: Any, brought: dict[str, Any] | None) -> None:
        incarnation = self.epoch.incarnation
        match kind:
            case "keyset":
                self.keyset = brought
            case "incarnation":
                incarnation = max(incarnation, event["number"])
            case "broker_boot":
                self._enroll(("broker", event["broker"]), event["key"])
                self.boots[RunId("broker", event["broker"], event["boot"])] = sequence
            case "node_key":
                self._enroll(("node", event["node"]), event["key"])
            case "approver_key":
                keys = self.approver_keys[event["approver"]]
                for enrolled in keys:
                    enrolled.until = enrolled.until or (sequence, at)
                if "key" in event:
                    keys.append(Enrolled(event["key"], sequence))
            case "node_boot":
                self.boots[RunId("node", event["node"], event["boot"])] = sequence
            case "part":
                self.parts.apply(event["part"], event["stage"])
                if event["part"] in self.parts.sealed:
                    self.sealed.setdefault(event["part"], sequence)
            case "policy":
                revision = revision_of(event)
                self.activations.append((sequence, revision))
                self.policies[revision] = event
        self.epoch = Epoch(incarnation, sequence)
        self.epochs.add(self.epoch)

    def _enroll(self, recorder: Recorder, key: bytes) -> None:
        self.record_keys[recorder].add(key)
        self.all_record_keys.add(key)

    def policy_at(self, sequence: int) -> bytes | None:
        """The policy that was in force after the event of this sequence."""
        index = bisect_right(self.activations, sequence, key=lambda activation: activation[0])
        return self.activations[index - 1][1] if index else None

    def policies_until(self, sequence: int) -> set[bytes]:
        """Every policy that was in force by then."""
        return {revision for at, revision in self.activations if at <= sequence}

    def is_approvers(self, name: str, key: bytes, at: int, epoch: Epoch | None) -> bool:
        """Whether a key was an approver's at this state, or until right before this time."""
        return any(
            enrolled.key == key
            and (
                epoch is None
                or enrolled.since <= epoch.sequence
                and not (enrolled.until and enrolled.until[0] <= epoch.sequence and enrolled.until[1] + SKEW_MS < at)
            )
            for enrolled in self.approver_keys[name]
        )

    def brokers(self) -> list[str]:
        """Every broker that ever started."""
        return [name for kind, name in self.record_keys if kind == "broker"]

    def is_before(self, run: RunId, other: RunId) -> bool:
        """Whether a run of a recorder came before another of it: by their events, or else by their names, which
        begin with the time."""
        if run in self.boots and other in self.boots:
            return self.boots[run] < self.boots[other]
        return run.boot < other.boot
