"""What the payloads of control events, keysets, records, receipts and approvals look like: every field, in its order.

A field that is unknown, missing or out of place makes the whole thing unreadable: two readers must not see two things
in the same signed bytes. The names are those of common/src/{act,approval,control,keyset,record}.rs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgpack import Malformed

# Says nothing about a value of the right shape and raises Malformed for any other; the text is where it stands.
Shape = Callable[[Any, str], None]


@dataclass(frozen=True)
class Optional:
    """A field that is left out if it has nothing to say; then `empty` is what it would have said."""

    shape: Shape
    empty: Any = None


@dataclass(frozen=True)
class Struct:
    """A map with these fields in this order and no others."""

    fields: Mapping[str, Shape | Optional]

    def __call__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where} is no map")
        found = list(value)
        expected = [name for name, shape in self.fields.items() if name in value or not isinstance(shape, Optional)]
        if found != expected:
            raise Malformed(f"{where} has the fields {', '.join(found)} instead of {', '.join(expected)}")
        for name, item in value.items():
            shape = self.fields[name]
            if isinstance(shape, Optional):
                if item == shape.empty:
                    raise Malformed(f"{where}.{name} says nothing and is written all the same")
                shape = shape.shape
            shape(item, f"{where}.{name}")


class Variant:
    """A map with one of these keys."""

    def __init__(self, **variants: Shape) -> None:
        self.variants = variants

    def __call__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) != 1:
            raise Malformed(f"{where} is no map of one kind")
        ((kind, inner),) = value.items()
        if kind not in self.variants:
            raise Malformed(f"{where} is of the unknown kind `{kind}`")
        self.variants[kind](inner, f"{where}.{kind}")


def matching(pattern: str, what: str) -> Shape:
    """Text of this form."""
    form = re.compile(pattern)

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Malformed(f"{where} is no {what}")

    return check


def data(size: int) -> Shape:
    """So many bytes."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, bytes) or len(value) != size:
            raise Malformed(f"{where} is not of {size} bytes")

    return check


def number(below: int) -> Shape:
    """A whole number below a bound."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not value < below:
            raise Malformed(f"{where} is no number below {below}")

    return check


def many(shape: Shape, in_order: bool = False) -> Shape:
    """A list; `in_order` if it is a set and so sorted."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise Malformed(f"{where} is no list")
        for index, item in enumerate(value):
            shape(item, f"{where}[{index}]")
        if in_order and any(not a < b for a, b in zip(value, value[1:])):
            raise Malformed(f"{where} is not in order")

    return check


def either(*shapes: Shape) -> Shape:
    """One of several shapes; what the last one says counts if none fits."""

    def check(value: Any, where: str) -> None:
        for shape in shapes[:-1]:
            try:
                return shape(value, where)
            except Malformed:
                continue
        shapes[-1](value, where)

    return check


def text(value: Any, where: str) -> None:
    """Any text."""
    if not isinstance(value, str):
        raise Malformed(f"{where} is no text")


def flag(value: Any, where: str) -> None:
    """Yes or no."""
    if not isinstance(value, bool):
        raise Malformed(f"{where} is neither true nor false")


def raw(value: Any, where: str) -> None:
    """Any bytes."""
    if not isinstance(value, bytes):
        raise Malformed(f"{where} is no byte string")


def nothing(value: Any, where: str) -> None:
    """Nil."""
    if value is not None:
        raise Malformed(f"{where} is not nil")


def by_name(shape: Shape) -> Shape:
    """A map from texts to this, in the order of the texts' bytes."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where} is no map")
        for item, inner in value.items():
            text(item, where)
            shape(inner, f"{where}.{item}")
        names = [item.encode() for item in value]
        if names != sorted(names):
            raise Malformed(f"{where} is not in order")

    return check


# Texts by path.
files = by_name(text)


def user(value: Any, where: str) -> None:
    """Issuer and subject."""
    if not isinstance(value, list) or len(value) != 2:
        raise Malformed(f"{where} is no issuer and subject")
    for part in value:
        text(part, where)
        if not PERSON.fullmatch(part) or len(part.encode()) > PERSON_BYTES_MAX:
            raise Malformed(f"{where} is empty, too long, or holds control characters")


# `_` alone is reserved.
NAME = r"(?!_(?![a-z0-9_-]))[a-z0-9_-]{1,64}"
RESOURCE = rf"(?:agent|node|policy|task|tool)\.{NAME}"
# Without control characters; bytes are counted apart.
PERSON = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")
PERSON_BYTES_MAX = 512
name = matching(NAME, "name")


def is_name(value: str) -> bool:
    """Whether a text is a name."""
    return re.fullmatch(NAME, value) is not None


TAGS_MAX = 64
tag = matching(rf"(?!(?:public|top)$){NAME}", "tag")


def tags(value: Any, where: str) -> None:
    """The tags of a label."""
    many(tag, in_order=True)(value, where)
    if len(value) > TAGS_MAX:
        raise Malformed(f"{where} has more than {TAGS_MAX} tags")


resource = matching(RESOURCE, "resource")
right = matching(rf"{RESOURCE}:{NAME}", "right")
domain = matching(rf"{NAME}\.{NAME}", "flow domain")
code = matching(r"[a-z0-9_]+(\.[a-z0-9_]+)*", "reason code")
digest = data(32)
key = data(32)
u8, u32, u64 = number(1 << 8), number(1 << 32), number(1 << 64)

maybe_name, maybe_digest, maybe_u64 = Optional(name), Optional(digest), Optional(u64)
texts = Optional(many(text), [])

SIGNED = Struct({"payload": raw, "key": key, "signature": data(64)})

EPOCH = Struct({"incarnation": u32, "sequence": u64})
ORIGIN = Variant(broker=name, node=name)
DECISION_ID = Struct({"origin": ORIGIN, "boot": name, "seq": u64})
LABEL = Struct(
    {
        "confidentiality": either(Variant(tags=tags), matching("top", "confidentiality")),
        "integrity": matching("trusted|untrusted", "integrity"),
    }
)
REASON = Struct({"code": code, "told": text, "noted": Optional(text)})
HOP = Struct({"from": name, "to": name, "key": name, "id": digest, "gave_up": Optional(many(right), [])})
WHO = Struct(
    {
        "task": maybe_name,
        "user": Optional(user),
        "agent": maybe_name,
        "caller": maybe_name,
        "operator": Optional(text),
        "capability": maybe_name,
        "serial": maybe_u64,
        "chain": maybe_digest,
        "hops": Optional(many(HOP), []),
        "holder": maybe_digest,
        "issuer": maybe_digest,
        "domain": Optional(domain),
        "connection": Optional(text),
    }
)
WHAT = Struct(
    {
        "resource": Optional(resource),
        "action": maybe_name,
        "arguments": maybe_digest,
        "call": maybe_digest,
        "call_id": maybe_digest,
        "contract": maybe_digest,
        "handover": maybe_digest,
    }
)
BASIS = Struct(
    {
        "policy": maybe_digest,
        "policy_fault": Optional(code),
        "rules": texts,
        "epoch": Optional(EPOCH),
        "age": maybe_u64,
        "label_revision": maybe_u64,
        "label": Optional(LABEL),
    }
)
GRANTED = Struct(
    {
        "kind": name,
        "rights": many(right),
        "max_depth": u8,
        "expires": u64,
        "deadline": u64,
        "key": name,
        "instruction": digest,
        "idempotency": digest,
        "asked": digest,
        "roles": many(text),
        "started": EPOCH,
    }
)
NEED = Struct({"role": name, "count": u8})
APPROVAL = Struct(
    {
        "id": name,
        "request": digest,
        "needs": many(NEED),
        "by": Optional(many(name), []),
        "waited": maybe_u64,
    }
)
FINDING = Struct({"kind": name, "detector": text, "severity": u8, "places": u64})
FOUND = Optional(many(FINDING), [])
ACT = Struct({"id": name, "by": name, "what": text})
SOURCE = Struct({"path": text, "entity": name, "source": Optional(text)})
ASKED = Struct({"right": right, "key": name, "expires": maybe_u64})
TRACE = Struct({"trace": text, "span": text})
DECISION = matching("allow|deny|hold", "decision")
SHADOWED = Struct(
    {
        "policy": digest,
        "decision": DECISION,
        "reasons": Optional(many(code), []),
        "rules": texts,
        "differs": flag,
    }
)
VERDICT = Struct(
    {
        "decision": DECISION,
        "reasons": Optional(many(REASON), []),
        "would_deny": Optional(many(REASON), []),
        "who": WHO,
        "what": WHAT,
        "basis": BASIS,
        "trace": Optional(TRACE),
        "granted": Optional(GRANTED),
        "right": Optional(ASKED),
        "approval": Optional(APPROVAL),
        "sources": Optional(many(SOURCE), []),
        "found": FOUND,
        "acts": Optional(many(ACT), []),
        "shadow": Optional(SHADOWED),
        "count": Optional(u64, 1),
    }
)
OUTCOME = Struct(
    {
        "intent": DECISION_ID,
        "call_id": digest,
        "task": maybe_name,
        "status": matching("done|failed|not_run|unknown_outcome", "status"),
        "reason": Optional(REASON),
        "result": maybe_digest,
        "result_bytes": maybe_u64,
        "label": Optional(LABEL),
        "found": FOUND,
        "elapsed": maybe_u64,
        "manifest": Optional(many(digest), []),
    }
)
VOID = Struct({"prepared": digest, "cause": REASON, "who": WHO, "what": WHAT})
RECORD = Struct(
    {
        "tenant": name,
        "id": DECISION_ID,
        "prev": digest,
        "at": u64,
        "part": name,
        "body": Variant(outcome=OUTCOME, verdict=VERDICT, void=VOID),
    }
)
RECEIPT = Struct(
    {
        "tenant": name,
        "id": DECISION_ID,
        "record": digest,
        "call": maybe_digest,
        "call_id": maybe_digest,
        "answer": digest,
    }
)

ORIGIN_OF_LABEL = Struct({"decision": DECISION_ID, "resource": resource, "action": name, "agent": name, "at": u64})
REQUEST = Struct(
    {
        "tenant": name,
        "id": name,
        "node": name,
        "at": u64,
        "expires": u64,
        "user": user,
        "task": name,
        "chain": many(name),
        "resource": resource,
        "action": name,
        "arguments": text,
        "call": digest,
        "contract": maybe_digest,
        "policy": digest,
        "rules": many(text),
        "label": LABEL,
        "origins": Optional(by_name(ORIGIN_OF_LABEL), {}),
        "sources": Optional(many(SOURCE), []),
        "needs": many(NEED),
        "trace": Optional(TRACE),
        "right": Optional(Struct({"holder": key, "life": u64, "why": text})),
    }
)
ANSWER = Struct(
    {
        "tenant": name,
        "approval": name,
        "request": digest,
        "approver": name,
        "at": u64,
        "expires": u64,
        "decision": matching("granted|refused", "answer"),
        "comment": Optional(text, ""),
    }
)
LABEL_ACT = Struct(
    {
        "tenant": name,
        "id": name,
        "kind": either(
            Variant(declassify=Struct({"tags": many(tag, in_order=True)})), matching("endorse", "kind of act")
        ),
        "task": name,
        "resource": resource,
        "action": name,
        "call": digest,
        "by": name,
        "at": u64,
        "expires": u64,
        "why": text,
    }
)

KEYSET_KEY = Struct({"public": key, "tenants": many(name), "max_ttl": u64, "not_before": u64, "not_after": u64})
KEYSET = Struct({"version": u64, "issued_at": u64, "expires": u64, "keys": many(KEYSET_KEY), "withdrawn": many(key)})
ARCHIVED = Struct({"manifest": digest, "last": u64})
STAGE = either(
    Variant(archived=ARCHIVED),
    matching("current|sealed|shared", "stage of a part"),
)
HOLD = Struct({"on": either(Variant(task=name, user=user), matching("everything", "hold")), "why": text})
EVENT = Variant(
    agent_key=Struct({"agent": name, "holder": key, "connection": text, "token": digest}),
    agent_key_withdrawn=Struct({"agent": name, "key": name}),
    approver_key=Struct({"approver": name, "key": Optional(key)}),
    broker_boot=Struct({"broker": name, "boot": name, "key": key}),
    halt_all=Struct({"on": flag}),
    incarnation=Struct({"number": u32}),
    join_token=Struct({"token": digest, "agent": name, "expires": u64}),
    keyset=SIGNED,
    legal_hold=Struct({"id": name, "hold": Optional(HOLD)}),
    node_boot=Struct({"node": name, "boot": name}),
    node_key=Struct({"node": name, "key": key, "connection": text}),
    part=Struct({"part": name, "stage": STAGE}),
    policy=files,
    shadow_policy=either(nothing, files),
    quarantine=Struct({"agent": name, "on": flag}),
    revocation=Struct(
        {
            "target": Variant(
                agent=name,
                capability=name,
                holder=name,
                hop=Struct({"capability": name, "delegator": name, "delegatee": name}),
                task=name,
                user=user,
            ),
            "until": u64,
        }
    ),
)
CONTROL = Struct({"tenant": name, "at": u64, "by": text, "follows": EPOCH, "event": EVENT})
