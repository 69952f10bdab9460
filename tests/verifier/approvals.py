"""Whether the people a verdict names said yes, and to what was done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import shapes
from control import Control
from findings import NOTE, Report
from msgpack import Malformed
from signed import Signed, digest, sha256

# How far the clocks of an approver and a recorder may be apart, in milliseconds.
SKEW_MS = 60_000

# By kind of the envelope, the shape of what it holds.
SHAPES = {"approval_request": shapes.REQUEST, "approval": shapes.ANSWER, "label_act": shapes.LABEL_ACT}

Word = tuple[Signed, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LetPass:
    """What a verdict that allowed something says of the people who let it pass."""

    at: int
    # Where the record stands, and where its task lives.
    parts: frozenset[str]
    task: str | None
    user: list[str] | None
    call: bytes | None
    arguments: bytes | None
    # The right that was issued and the key that holds it, if it is no call.
    right: tuple[str, str] | None
    approval: dict[str, Any] | None
    acts: list[dict[str, Any]]

    @classmethod
    def of(cls, record: dict[str, Any]) -> LetPass | None:
        """Of a record; None if nobody had to let it pass."""
        verdict = record["body"].get("verdict", {})
        approval = verdict.get("approval")
        approval = approval if approval and approval.get("by") else None
        acts = verdict.get("acts", [])
        if verdict.get("decision") != "allow" or not (approval or acts):
            return None
        who, what, right = verdict["who"], verdict["what"], verdict.get("right")
        home = who.get("domain", record["part"]).split(".")[0]
        return cls(
            at=record["at"],
            parts=frozenset((record["part"], home)),
            task=who.get("task"),
            user=who.get("user"),
            call=what.get("call"),
            arguments=what.get("arguments"),
            right=(right["right"], right["key"]) if right else None,
            approval=approval,
            acts=acts,
        )

    def is_shown_by(self, request: dict[str, Any]) -> bool:
        """Whether a request shows what was done."""
        texts = [request[name].encode() for name in ("resource", "action", "arguments", "task")]
        asked = request.get("right")
        if asked is None:
            shown = digest("writ/v1/call-digest", *texts)
            is_it = self.right is None and self.call == request["call"]
        else:
            shown = digest("writ/v1/right-digest", *texts, asked["holder"], asked["life"].to_bytes(8, "big"))
            holder = digest("writ/v1/key", asked["holder"]).hex()[:32]
            is_it = self.right == (f"{request['resource']}:{request['action']}", holder)
            is_it = is_it and self.arguments == sha256(request["arguments"].encode())
        return is_it and shown == request["call"]

    def counts(self, said: dict[str, Any]) -> bool:
        """Whether something that was said counted when it was relied on."""
        return said["at"] <= self.at + SKEW_MS and self.at < said["expires"] + SKEW_MS


@dataclass
class Approvals:
    """What people were asked, and what they said."""

    # By digest.
    requests: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    # By approval or act, and by who claims to have said it.
    answers: dict[tuple[str, str], list[Word]] = field(default_factory=lambda: defaultdict(list))
    acts: dict[tuple[str, str], list[Word]] = field(default_factory=lambda: defaultdict(list))

    def take(self, payload: bytes) -> None:
        """Takes a message; one that is none of these counts for nothing."""
        for kind, shape in SHAPES.items():
            try:
                signed = Signed.open(kind, payload)
                said = signed.read(shape)
            except Malformed:
                continue
            match kind:
                case "approval_request":
                    self.requests[signed.digest()] = said
                case "approval":
                    self.answers[said["approval"], said["approver"]].append((signed, said))
                case "label_act":
                    self.acts[said["id"], said["by"]].append((signed, said))

    def check(self, records: Iterable[tuple[object, LetPass | None]], control: Control, report: Report) -> None:
        """Holds every record that somebody let pass to what is here."""
        for record, passed in records:
            if passed is None:
                continue
            away = passed.parts & control.parts.archived.keys()
            for code, text in self._faults(passed, control):
                # What is not here may have been put away with its part.
                severity = NOTE if away and code == "approval.missing" else None
                report.add(code, record, text, severity)

    def _faults(self, passed: LetPass, control: Control) -> Iterable[tuple[str, str]]:
        approval = passed.approval
        if approval:
            id, request = approval["id"], self.requests.get(approval["request"])
            if request is None:
                yield "approval.missing", f"the request {id} by which it was allowed is not here"
            elif not (
                request["tenant"] == control.tenant
                and request["id"] == id
                and request["task"] == passed.task
                and request["user"] == passed.user
                and passed.is_shown_by(request)
            ):
                yield "approval.binding", f"the request {id} shows something else than was done"
            for name in approval["by"]:

                def is_yes(answer: dict[str, Any]) -> bool:
                    return answer["request"] == approval["request"] and answer["decision"] == "granted"

                code = _one_of(self.answers[id, name], name, is_yes, passed, control)
                if code:
                    yield code, f"the answer of `{name}` to {id} is not here, not theirs, or no yes to this"
        for act in passed.acts:

            def is_it(said: dict[str, Any], recorded: str = act["what"]) -> bool:
                return said["task"] == passed.task and said["call"] == passed.call and _in_words(said) == recorded

            code = _one_of(self.acts[act["id"], act["by"]], act["by"], is_it, passed, control)
            if code:
                yield code, f"the word of `{act['by']}` ({act['id']}) is not here, not theirs, or about something else"


def _one_of(
    words: list[Word], name: str, fits: Callable[[dict[str, Any]], bool], passed: LetPass, control: Control
) -> str | None:
    """What is wrong if none of what a person is said to have said is theirs, and what it should be."""
    theirs = [said for signed, said in words if signed.key in control.approver_keys[name] and signed.is_genuine()]
    if any(said["tenant"] == control.tenant and fits(said) and passed.counts(said) for said in theirs):
        return None
    if theirs:
        return "approval.binding"
    return "approval.signature" if words else "approval.missing"


def _in_words(act: dict[str, Any]) -> str:
    match act["kind"]:
        case {"declassify": said}:
            return "declassified " + ", ".join(said["tags"])
    return "endorsed"
