"""Whether the people a verdict names said yes, and to what was done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import shapes
from control import SKEW_MS, Control, Epoch
from findings import WARNING, Report
from msgpack import Malformed
from signed import Signed, digest, is_point, sha256

# By kind of the envelope, the shape of what it holds.
SHAPES = {"approval_request": shapes.REQUEST, "approval": shapes.ANSWER, "label_act": shapes.LABEL_ACT}

Word = tuple[Signed, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LetPass:
    """What a verdict that allowed something says of the people who let it pass."""

    at: int
    epoch: Epoch | None
    # Where the record stands, and where its task lives.
    parts: frozenset[str]
    task: str | None
    user: list[str] | None
    # The agents, the one that was given the task first.
    chain: list[str]
    what: dict[str, Any]
    # The right that was issued, if it is no call.
    right: dict[str, Any] | None
    approval: dict[str, Any] | None
    acts: list[dict[str, Any]]

    @classmethod
    def of(cls, record: dict[str, Any]) -> LetPass | None:
        """Of a record; None if it says nothing of the kind."""
        verdict = record["body"].get("verdict", {})
        approval, right, acts = verdict.get("approval"), verdict.get("right"), verdict.get("acts", [])
        if verdict.get("decision") != "allow" or not (approval or right or acts):
            return None
        who, epoch = verdict["who"], verdict["basis"].get("epoch")
        home = who.get("domain", record["part"]).split(".")[0]
        return cls(
            at=record["at"],
            epoch=Epoch(**epoch) if epoch else None,
            parts=frozenset((record["part"], home)),
            task=who.get("task"),
            user=who.get("user"),
            chain=[name for name in (who.get("agent"),) if name] + [hop["to"] for hop in who.get("hops", [])],
            what=verdict["what"],
            right=right,
            approval=approval,
            acts=acts,
        )

    def is_shown_by(self, request: dict[str, Any]) -> bool:
        """Whether a request shows what was done, and was open then."""
        texts = [request[name].encode() for name in ("resource", "action", "arguments", "task")]
        asked, right = request.get("right"), self.right
        if asked is None:
            shown = digest("writ/v1/call-digest", *texts)
            names = ("resource", "action", "contract")
            is_it = right is None and all(self.what.get(name) == request.get(name) for name in names)
        else:
            shown = digest("writ/v1/right-digest", *texts, asked["holder"], asked["life"].to_bytes(8, "big"))
            holder = digest("writ/v1/key", asked["holder"]).hex()[:32]
            is_it = (
                right is not None
                and right["right"] == f"{request['resource']}:{request['action']}"
                and right["key"] == holder
                and "expires" in right
                and right["expires"] <= self.at + asked["life"]
            )
        return (
            is_it
            and self.what.get("call") == shown == request["call"]
            and self.what.get("arguments") == sha256(request["arguments"].encode())
            and self.chain == request["chain"]
            and self.at < request["expires"] + SKEW_MS
        )

    def is_enough(self) -> bool:
        """Whether it names as many people as had to say yes, each once."""
        approval = self.approval or {}
        by = approval.get("by", [])
        wanted = sum(need["count"] for need in approval.get("needs", []))
        return len(set(by)) == len(by) >= max(wanted, 1)


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
            if not is_point(signed.key):
                return
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
            away = any(
                part in control.parts.archived
                and (passed.epoch is None or passed.epoch.sequence < control.sealed.get(part, 1 << 64))
                for part in passed.parts
            )
            for code, is_digest, text in self._faults(passed, control):
                # What is not here may have been put away with its part, and what is left of several words proves
                # nothing about the one that is not.
                if away and (code == "approval.missing" or not is_digest):
                    report.add("approval.missing", record, f"{text}; its part was put away", WARNING)
                else:
                    report.add(code, record, text)

    def _faults(self, passed: LetPass, control: Control) -> Iterable[tuple[str, bool, str]]:
        """Each with whether it is about something that is named by its digest."""
        approval = passed.approval
        if approval is None and passed.right:
            yield "approval.binding", True, "a right was issued, and nobody is named who approved it"
        if approval:
            id, request = approval["id"], self.requests.get(approval["request"])
            if not passed.is_enough():
                yield "approval.binding", True, f"too few people are named who said yes to {id}"
            elif request is None:
                yield "approval.missing", True, f"the request {id} by which it was allowed is not here"
            elif not (
                request["tenant"] == control.tenant
                and request["id"] == id
                and request["needs"] == approval["needs"]
                and request["task"] == passed.task
                and request["user"] == passed.user
                and passed.is_shown_by(request)
            ):
                yield "approval.binding", True, f"the request {id} shows something else than was done"
            for name in approval.get("by", []):

                def is_yes(answer: dict[str, Any]) -> bool:
                    return (
                        answer["request"] == approval["request"]
                        and answer["decision"] == "granted"
                        and answer["at"] <= passed.at + SKEW_MS
                    )

                code = _one_of(self.answers[id, name], name, is_yes, passed, control)
                if code:
                    yield code, False, f"the answer of `{name}` to {id} is not here, not theirs, or no yes to this"
        for act in passed.acts:

            def is_it(said: dict[str, Any], recorded: str = act["what"]) -> bool:
                of_call = all(said[name] == passed.what.get(name) for name in ("resource", "action", "call"))
                return said["task"] == passed.task and of_call and _in_words(said) == recorded

            code = _one_of(self.acts[act["id"], act["by"]], act["by"], is_it, passed, control)
            if code:
                yield (
                    code,
                    False,
                    f"the word of `{act['by']}` ({act['id']}) is not here, not theirs, or about something else",
                )


def check_uses(records: Iterable[Any], report: Report) -> None:
    """What people let pass counts once: of the calls that name an approval, one ran; a run of a broker issued one right by
    it; and an act is used up before anything is allowed."""
    records = list(records)
    ran = {record.intent for record in records if record.status in ("done", "failed")}
    not_run = {record.intent for record in records if record.status == "not_run"}
    uses: dict[tuple[str, object], list[object]] = defaultdict(list)
    for record in records:
        passed, id = record.let_pass, (record.run, record.seq)
        if passed is None:
            continue
        for act in passed.acts:
            uses[act["id"], None].append(record)
        if passed.approval and passed.right and id not in not_run:
            uses[passed.approval["id"], record.run].append(record)
        elif passed.approval and not passed.right and id in ran:
            uses[passed.approval["id"], None].append(record)
    for (id, _), by in uses.items():
        if len(by) > 1:
            report.add("approval.reused", f"approval {id}", f"counts once, and let {' and '.join(map(str, by))} pass")


def _one_of(
    words: list[Word], name: str, fits: Callable[[dict[str, Any]], bool], passed: LetPass, control: Control
) -> str | None:
    """What is wrong if none of what a person is said to have said is theirs, and what it should be."""
    theirs = [
        said
        for signed, said in words
        if control.is_approvers(name, signed.key, passed.at, passed.epoch) and signed.is_genuine()
    ]
    if any(
        said["tenant"] == control.tenant and fits(said) and passed.at < said["expires"] + SKEW_MS for said in theirs
    ):
        return None
    if theirs:
        return "approval.binding"
    return "approval.signature" if words else "approval.missing"


def _in_words(act: dict[str, Any]) -> str:
    match act["kind"]:
        case {"declassify": said}:
            return "declassified " + ", ".join(said["tags"])
    return "endorsed"
