"""A tenant's history with known keys: what synthesize.py makes exports of, true ones and an insider's.

Everything in it is fixed (keys are seeds of one repeated byte, as in common/tests/golden), so it is the same bytes
every time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control import revision_of
from msgpack import encode
from notes import COSIGNATURE, ED25519, PROOF_HEADER, RunId, key_id
from signed import PURPOSES, digest, sha256
from tamper import Lines, envelope, relist, sign, write_lines
from tree import Tree, leaf_hash, tile, tile_path, tiles_of

TENANT = "acme"
# 2027-01-15T08:00:00Z, in milliseconds.
BEGIN = 1_800_000_000_000
SECOND = 1_000
TASKS = ("t-1", "t-2")


def seed(byte: int) -> Ed25519PrivateKey:
    """A key whose seed is one byte, repeated."""
    return Ed25519PrivateKey.from_private_bytes(bytes([byte]) * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    """Its public half."""
    return key.public_key().public_bytes_raw()


ROOT, BROKER, NODE_1, BROKER_RECORDS, NODE_2, ROOT_OF_ANOTHER = (seed(byte) for byte in (1, 2, 3, 4, 5, 6))
# People who approve, and the agent that asks for a right.
BOB, CAROL, PLANNER = (seed(byte) for byte in (20, 21, 12))

POLICY_A = {
    "agents.toml": '[[agent]]\nname = "planner"\n',
    "base.datalog": "allow if right($resource, $action);\n",
}
POLICY_B = {**POLICY_A, "base.datalog": "/// as the contract says\nallow if right($resource, $action);\n"}
A, B = revision_of(POLICY_A), revision_of(POLICY_B)


def present(**fields: Any) -> dict[str, Any]:
    """A map without what has nothing to say."""
    return {name: value for name, value in fields.items() if value not in (None, [])}


def number(*parts: object) -> bytes:
    """A digest of something this story does not tell."""
    return sha256("/".join(map(str, parts)).encode())


@dataclass
class Entry:
    """A record before it is signed."""

    at: int
    body: dict[str, Any]
    # Which of them the stream has, if it was voided: `void`, or `both`.
    voided: str | None = None
    # Another digest of the record before than the true one.
    prev: bytes | None = None
    # The part of the stream it is in.
    part: str = "p0"


def who(task: str, caller: str = "planner") -> dict[str, Any]:
    """On whose authority."""
    return present(
        task=task,
        user=["https://idp.example", "alice"],
        agent="planner",
        caller=caller,
        capability=f"c-{task}",
        serial=2,
        chain=number("chain", task),
        hops=[{"from": "planner", "to": "mailer", "key": number("key").hex()[:32], "id": number("hop", task)}]
        if caller == "mailer"
        else [],
        holder=number("holder"),
        issuer=number("issuer"),
        domain=f"p0.{task}",
        connection="UPLANNER",
    )


def what(resource: str, action: str, call: object = None) -> dict[str, Any]:
    """What was to be done."""
    is_call = call is not None
    return present(
        resource=resource,
        action=action,
        arguments=number("arguments", call) if is_call else None,
        call=number("call", call) if is_call else None,
        call_id=number("call id", call) if is_call else None,
    )


def basis(policy: bytes | None, sequence: int, fault: str | None = None) -> dict[str, Any]:
    """On what basis."""
    return present(
        policy=policy,
        policy_fault=fault,
        rules=["base.datalog:1"],
        epoch={"incarnation": 0, "sequence": sequence},
        age=40,
        label_revision=7,
        label={"confidentiality": {"tags": ["crm"]}, "integrity": "untrusted"},
    )


def verdict(
    decision: str, who: dict[str, Any], what: dict[str, Any], basis: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """The body of a verdict."""
    reasons = [{"code": "policy.denied", "told": "not this tool"}] if decision == "deny" else []
    return {"verdict": present(decision=decision, reasons=reasons, who=who, what=what, basis=basis, **more)}


def outcome(run: RunId, seq: int, task: str, call: object, status: str = "done") -> dict[str, Any]:
    """The body of an outcome."""
    reason = {"code": "tool.timeout", "told": "nobody knows", "noted": "the node was restarted"}
    return {
        "outcome": present(
            intent={"origin": {run.kind: run.name}, "boot": run.boot, "seq": seq},
            call_id=number("call id", call),
            task=task,
            status=status,
            reason=None if status == "done" else reason,
            result=number("result", call) if status == "done" else None,
            result_bytes=300 if status == "done" else None,
            elapsed=12,
        )
    }


@dataclass
class Run:
    """One run of a recorder, as it came about."""

    id: RunId
    key: Ed25519PrivateKey
    entries: list[Entry] = field(default_factory=list)
    is_closed: bool = False

    def add(self, at: int, body: dict[str, Any], voided: str | None = None, part: str = "p0") -> int:
        """Appends a record and returns its position."""
        self.entries.append(Entry(at, body, voided, part=part))
        return len(self.entries) - 1

    def seal(self) -> list[Sealed]:
        """Numbers, chains and signs the records."""
        prev, sealed = bytes(32), []
        for seq, entry in enumerate(self.entries):
            one = Sealed.of(self, seq, entry, entry.prev or prev)
            sealed.append(one)
            prev = one.digest
        return sealed


@dataclass(frozen=True)
class Message:
    """What the stream has."""

    at: int
    subject: str
    payload: bytes
    content: dict[str, Any]


@dataclass(frozen=True)
class Sealed:
    """What came of one position: what was prepared, and what the stream has of it, the last of which counts."""

    digest: bytes
    messages: tuple[Message, ...]

    @property
    def leaf(self) -> bytes:
        """Its leaf in the log."""
        return leaf_hash(self.messages[-1].payload)

    @classmethod
    def of(cls, run: Run, seq: int, entry: Entry, prev: bytes) -> Sealed:
        """Signs a record, and its void where it was voided."""
        record = _message(run, seq, prev, entry.at, entry.part, entry.body)
        prepared = digest("writ/v1/record", encode(record.content))
        if entry.voided is None:
            return cls(prepared, (record,))
        verdict = entry.body["verdict"]
        cause = {"code": "audit.unavailable", "told": "could not be recorded"}
        body = {"void": {"prepared": prepared, "cause": cause, "who": verdict["who"], "what": verdict["what"]}}
        void = _message(run, seq, prev, entry.at + SECOND, entry.part, body)
        return cls(prepared, (record, void) if entry.voided == "both" else (void,))


def _message(run: Run, seq: int, prev: bytes, at: int, part: str, body: dict[str, Any]) -> Message:
    ((sort, said),) = body.items()
    content = {
        "tenant": TENANT,
        "id": {"origin": {run.id.kind: run.id.name}, "boot": run.id.boot, "seq": seq},
        "prev": prev,
        "at": at,
        "part": part,
        "body": body,
    }
    task = said.get("task") if sort == "outcome" else said["who"].get("task")
    subject = f"writ.v1.{TENANT}.audit.{part}.{said.get('decision', sort)}.{task or '_'}.{run.id.name}"
    return Message(at, subject, envelope("record", sign("record", encode(content), run.key)), content)


@dataclass(frozen=True)
class Log:
    """A checkpoint, and the tree of which it is one."""

    run: RunId
    tree: Tree
    note: str

    @classmethod
    def of(
        cls,
        run: Run,
        leaves: Iterable[bytes],
        is_cosigned: bool = True,
        key: Ed25519PrivateKey | None = None,
        is_closed: bool | None = None,
    ) -> Log:
        """Signs the checkpoint of a run, and cosigns a node's."""
        tree = Tree(leaves)
        name = f"writ-log/v1/{TENANT}/{run.id.kind}/{run.id.name}/{run.id.boot}"
        root = base64.b64encode(tree.root(tree.size)).decode()
        is_closed = run.is_closed if is_closed is None else is_closed
        text = f"{name}\n{tree.size}\n{root}\n" + ("closed\n" if is_closed else "")
        signer = key or run.key
        note = text + "\n" + _signature(name, ED25519, public(signer), signer.sign(text.encode()))
        if run.id.kind == "node" and is_cosigned:
            seconds = (BEGIN + 900 * SECOND) // SECOND
            signature = BROKER_RECORDS.sign(f"cosignature/v1\ntime {seconds}\n{text}".encode())
            witness = f"writ-witness/v1/{TENANT}/broker-1"
            note += _signature(witness, COSIGNATURE, public(BROKER_RECORDS), seconds.to_bytes(8, "big") + signature)
        return cls(run.id, tree, note)

    def write(self, folder: Path) -> None:
        """The log's folder of an export."""
        place = folder / "logs" / self.run.folder
        place.mkdir(parents=True)
        (place / "checkpoint").write_text(self.note)
        for level, number, width in tiles_of(self.tree.size):
            path = place / tile_path(level, number, width)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tile(self.tree, level, number, width))

    def prove(self, position: int, payload: bytes) -> str:
        """A proof that a record is at a position of it."""
        path = "".join(base64.b64encode(step).decode() + "\n" for step in self.tree.path(position, self.tree.size))
        return f"{PROOF_HEADER}\nextra {base64.b64encode(payload).decode()}\nindex {position}\n{path}\n{self.note}"


def _signature(name: str, algorithm: bytes, key: bytes, signature: bytes) -> str:
    return f"— {name} {base64.b64encode(key_id(name, algorithm, key) + signature).decode()}\n"


@dataclass(frozen=True)
class Event:
    """A control event before it is signed."""

    sequence: int
    at: int
    event: dict[str, Any]
    key: Ed25519PrivateKey = BROKER


def keyset(version: int, root: Ed25519PrivateKey = ROOT, withdrawn: Iterable[bytes] = ()) -> dict[str, Any]:
    """An event that brings a keyset."""
    document = {
        "version": version,
        "issued_at": BEGIN,
        "expires": BEGIN + 86_400 * SECOND,
        "keys": [
            {
                "public": public(BROKER),
                "tenants": [TENANT],
                "max_ttl": 600_000,
                "not_before": 0,
                "not_after": BEGIN + 86_400 * SECOND,
            }
        ],
        "withdrawn": list(withdrawn),
    }
    return {"keyset": sign("keyset", encode(document), root)}


def events(root: Ed25519PrivateKey = ROOT) -> list[Event]:
    """The control stream. Ticks stand in the same stream, so its sequences have gaps."""
    told: list[tuple[int, int, dict[str, Any]]] = [
        (1, 0, keyset(1, root)),
        (2, 0, {"broker_boot": {"broker": "broker-1", "boot": boot(1), "key": public(BROKER_RECORDS)}}),
        (3, 1, {"node_key": {"node": "node-1", "key": public(NODE_1), "connection": "UNODE1"}}),
        (4, 1, {"node_key": {"node": "node-2", "key": public(NODE_2), "connection": "UNODE2"}}),
        (5, 1, {"policy": POLICY_A}),
        (7, 2, {"node_boot": {"node": "node-1", "boot": boot(2)}}),
        (8, 2, {"node_boot": {"node": "node-2", "boot": boot(3)}}),
        (
            9,
            3,
            {
                "agent_key": {
                    "agent": "planner",
                    "holder": public(PLANNER),
                    "connection": "UPLANNER",
                    "token": number("token"),
                }
            },
        ),
        (10, 4, {"approver_key": {"approver": "bob", "key": public(BOB)}}),
        (11, 4, {"approver_key": {"approver": "carol", "key": public(CAROL)}}),
        (12, 100, keyset(2, root)),
        (13, 200, {"policy": POLICY_B}),
        (15, 500, {"node_boot": {"node": "node-1", "boot": boot(4)}}),
        (16, 590, {"halt_all": {"on": False}}),
        (17, 700, {"quarantine": {"agent": "mailer", "on": True}}),
        (18, 701, {"quarantine": {"agent": "mailer", "on": False}}),
    ]
    return [Event(sequence, BEGIN + second * SECOND, event) for sequence, second, event in told]


def control_lines(events: Iterable[Event]) -> Lines:
    """Signs the events, each with the state it follows."""
    lines: Lines = []
    follows = {"incarnation": 0, "sequence": 0}
    for event in events:
        document = {
            "tenant": TENANT,
            "at": event.at,
            "by": "broker broker-1",
            "follows": follows,
            "event": event.event,
        }
        payload = envelope("control", sign("control", encode(document), event.key))
        lines.append(_line(event.sequence, f"writ.v1.{TENANT}.control.event", payload))
        incarnation = event.event.get("incarnation", {}).get("number", follows["incarnation"])
        follows = {"incarnation": incarnation, "sequence": event.sequence}
    return lines


def _line(sequence: int, subject: str, payload: bytes) -> dict[str, Any]:
    return {"sequence": sequence, "subject": subject, "payload": base64.b64encode(payload).decode()}


def boot(number: int) -> str:
    """Id of a run, in the order they began."""
    return f"b-01kq{number:022}"


@dataclass(frozen=True)
class Word:
    """What approvers were asked or said, before it is signed."""

    # The approval or act, and the last tokens of its subject.
    id: str
    subject: str
    kind: str
    content: dict[str, Any]
    key: Ed25519PrivateKey
    task: str = TASKS[0]

    @property
    def digest(self) -> bytes:
        """What others refer to it by."""
        return digest(f"writ/v1/{self._purpose}", encode(self.content))

    @property
    def _purpose(self) -> str:
        return PURPOSES.get(self.kind, self.kind)

    def line(self, sequence: int) -> dict[str, Any]:
        """As exports have it."""
        payload = envelope(self.kind, sign(self._purpose, encode(self.content), self.key))
        return _line(sequence, f"writ.v1.{TENANT}.approval.p0.{self.id}.{self.subject}", payload)


def request(id: str, at: int, resource: str, arguments: str, right: dict[str, Any] | None = None) -> Word:
    """What a node asks approvers, or a broker where it is a right."""
    texts = [text.encode() for text in (resource, "send", arguments, TASKS[0])]
    call = digest("writ/v1/call-digest", *texts)
    if right:
        call = digest("writ/v1/right-digest", *texts, right["holder"], right["life"].to_bytes(8, "big"))
    content = present(
        tenant=TENANT,
        id=id,
        node="broker-1" if right else "node-1",
        at=at,
        expires=at + 3_600 * SECOND,
        user=["https://idp.example", "alice"],
        task=TASKS[0],
        chain=["planner"],
        resource=resource,
        action="send",
        arguments=arguments,
        call=call,
        policy=A,
        rules=["base.datalog:1"],
        label={"confidentiality": {"tags": ["crm"]}, "integrity": "untrusted"},
        origins={
            "crm": {
                "decision": {"origin": {"node": "node-1"}, "boot": boot(2), "seq": 0},
                "resource": "tool.crm",
                "action": "read",
                "agent": "planner",
                "at": at - SECOND,
            }
        },
        sources=[{"path": "/to", "entity": "email", "source": "directory"}],
        needs=[{"role": "manager", "count": 1}],
        right=right,
    )
    return Word(id, "request", "approval_request", content, BROKER if right else NODE_1)


def answer(asked: Word, name: str, key: Ed25519PrivateKey, at: int, **more: Any) -> Word:
    """What an approver says to it."""
    content = present(
        tenant=TENANT,
        approval=asked.id,
        request=asked.digest,
        approver=name,
        at=at,
        expires=at + 600 * SECOND,
        decision="granted",
        comment="as agreed",
    )
    return Word(asked.id, f"answer.{name}", "approval", content | more, key)


def declassified(asked: Word, at: int, **more: Any) -> Word:
    """Carol's word that the data may go there."""
    content = present(
        tenant=TENANT,
        id="la-1",
        kind={"declassify": {"tags": ["crm", "hr"]}},
        task=TASKS[0],
        resource=asked.content["resource"],
        action="send",
        call=asked.content["call"],
        by="carol",
        at=at,
        expires=at + 600 * SECOND,
        why="the customer asked for it",
    )
    return Word("la-1", "act.carol", "label_act", content | more, CAROL)


# A mail that bob lets pass after a first no, and carol the data in it; and a right that both have to agree to.
MAIL = request("ap-1", BEGIN + 150 * SECOND, "tool.mail", '{"body":"hello","to":"dora@example.com"}')
RIGHT = request("ap-2", BEGIN + 212 * SECOND, "tool.mail", "{}", {"holder": public(PLANNER), "life": 60_000, "why": "x"})
WORDS = (
    MAIL,
    answer(MAIL, "bob", BOB, BEGIN + 150 * SECOND, decision="refused", comment="not yet"),
    answer(MAIL, "bob", BOB, BEGIN + 151 * SECOND),
    declassified(MAIL, BEGIN + 151 * SECOND),
    RIGHT,
    answer(RIGHT, "bob", BOB, BEGIN + 213 * SECOND),
    answer(RIGHT, "carol", CAROL, BEGIN + 213 * SECOND),
)


def approval(asked: Word, *by: str) -> dict[str, Any]:
    """The same as records keep it."""
    said = present(id=asked.id, request=asked.digest, needs=asked.content["needs"], by=list(by))
    return said | ({"waited": SECOND} if by else {})


def what_was_asked(asked: Word, call: object) -> dict[str, Any]:
    """What a record says of the call that was asked for."""
    said = what(asked.content["resource"], asked.content["action"], call)
    return said | {"arguments": sha256(asked.content["arguments"].encode()), "call": asked.content["call"]}


@dataclass
class Story:
    """What happened, before anybody signs or exports it."""

    runs: dict[str, Run]
    events: list[Event] = field(default_factory=events)
    # Logs that say otherwise than the records, by the name of the run.
    logs: dict[str, Log | None] = field(default_factory=dict)
    # What is done to the messages after they were signed.
    after: Callable[[list[Message]], list[Message]] = lambda messages: messages
    # Which of them are in the export; the others were put away with their part.
    is_here: Callable[[Message], bool] = lambda message: True
    # What approvers were asked and said.
    words: tuple[Word, ...] = WORDS
    # Manifests of parts that were put away, by the part.
    archive: dict[str, bytes] = field(default_factory=dict)
    # When the export was made.
    exported_at: int = BEGIN + 1_000 * SECOND

    def log(self, name: str, **how: Any) -> Log:
        """The log of a run, as its recorder keeps it."""
        run = self.runs[name]
        return Log.of(run, (one.leaf for one in run.seal()), **how)

    def messages(self) -> list[Message]:
        """The audit stream."""
        found = [message for run in self.runs.values() for one in run.seal() for message in one.messages]
        return self.after(sorted(found, key=lambda message: message.at))

    def export(self, folder: Path, task: str | None = None) -> None:
        """Writes it as `writ audit export` does, all of it or one task."""
        folder.mkdir(parents=True)
        messages = enumerate(self.messages(), 101)
        told = [
            (sequence, message)
            for sequence, message in messages
            if self.is_here(message) and (task is None or f".{task}." in message.subject)
        ]
        lines = [
            _line(sequence, message.subject, message.payload) | {"record": readable(message.content)}
            for sequence, message in told
        ]
        write_lines(folder / "records.jsonl", lines)
        words = [word for word in self.words if task in (None, word.task)]
        write_lines(folder / "approvals.jsonl", [word.line(sequence) for sequence, word in enumerate(words, 51)])
        write_lines(folder / "control.jsonl", control_lines(self.events))
        concerned = {RunId(*_recorder(message), message.content["id"]["boot"]) for _, message in told}
        for name in self.runs:
            log = self.logs[name] if name in self.logs else self.log(name)
            if log and (task is None or log.run in concerned):
                log.write(folder)
        used = {message.content["body"].get("verdict", {}).get("basis", {}).get("policy") for _, message in told}
        for files in (POLICY_A, POLICY_B):
            if revision_of(files) in used:
                _write_policy(folder, files)
        for part, manifest in self.archive.items():
            (folder / "archive").mkdir(exist_ok=True)
            (folder / "archive" / f"{part}.json").write_bytes(manifest)
        self._write_manifest(folder, task)

    def _write_manifest(self, folder: Path, task: str | None) -> None:
        at = datetime.fromtimestamp(self.exported_at / SECOND, UTC)
        said = {
            "format": "writ-export/1",
            "tenant": TENANT,
            "root_key": f"ed25519:{public(ROOT).hex()}",
            "exported_at": at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "scope": {"task": task} if task else {"all": True},
        }
        (folder / "export.json").write_text(json.dumps(said))
        relist(folder)


def _recorder(message: Message) -> tuple[str, str]:
    ((kind, name),) = message.content["id"]["origin"].items()
    return kind, name


def _write_policy(folder: Path, files: dict[str, str]) -> None:
    place = folder / "policies" / revision_of(files).hex()
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)


def readable(value: Any) -> Any:
    """The same with digests in hex, as JSON can have it."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: readable(item) for key, item in value.items()}
        case list():
            return [readable(item) for item in value]
    return value


def receipt(run: Run, seq: int, key: Ed25519PrivateKey | None = None) -> str:
    """What the node gave its caller for a record, as one line."""
    sealed = run.seal()[seq]
    content = sealed.messages[-1].content
    said = content["body"].get("verdict", {}).get("what", {})
    body = present(
        tenant=TENANT,
        id=content["id"],
        record=sealed.digest,
        call=said.get("call"),
        call_id=said.get("call_id"),
        answer=number("answer", seq),
    )
    return base64.b64encode(envelope("receipt", sign("receipt", encode(body), key or run.key))).decode() + "\n"


def tell() -> Story:
    """What happened: a broker, a node that ran twice, and another node."""
    broker = Run(RunId("broker", "broker-1", boot(1)), BROKER_RECORDS)
    first = Run(RunId("node", "node-1", boot(2)), NODE_1, is_closed=True)
    other = Run(RunId("node", "node-2", boot(3)), NODE_2)
    second = Run(RunId("node", "node-1", boot(4)), NODE_1)
    _tell_broker(broker)
    _tell_first(first)
    for index in range(9):
        tell_call(other, BEGIN + (60 + index) * SECOND, TASKS[0], f"other {index}", A, 9)
    other.add(BEGIN + 80 * SECOND, verdict("deny", who(TASKS[0]), what("tool.mail", "send", "other"), basis(A, 9)))
    # What the first run left open, the second one settles as far as it can.
    left = next(index for index, entry in enumerate(first.entries) if entry.at == BEGIN + 480 * SECOND)
    second.add(BEGIN + 510 * SECOND, outcome(first.id, left, TASKS[1], "left open", "unknown_outcome"))
    for index in range(4):
        tell_call(second, BEGIN + (520 + index) * SECOND, TASKS[1], f"second {index}", B, 15)
    second.add(BEGIN + 600 * SECOND, verdict("deny", who(TASKS[1]), what("tool.crm", "read", "second"), basis(B, 16)))
    return Story({"broker": broker, "first": first, "other": other, "second": second})


def _tell_broker(run: Run) -> None:
    granted = {
        "kind": "customer-answer",
        "rights": ["agent.mailer:invoke", "tool.crm:read", "tool.mail:send"],
        "max_depth": 3,
        "expires": BEGIN + 600 * SECOND,
        "deadline": BEGIN + 3_600 * SECOND,
        "key": number("key").hex()[:32],
        "instruction": number("instruction"),
        "idempotency": number("idempotency"),
        "asked": number("asked"),
        "roles": ["support"],
        "started": {"incarnation": 0, "sequence": 9},
    }
    issue = what("task.customer-answer", "start")
    run.add(BEGIN + 10 * SECOND, verdict("allow", who(TASKS[0]), issue, basis(A, 9), granted=granted))
    run.add(BEGIN + 11 * SECOND, verdict("deny", {}, issue, basis(A, 9), count=12))
    activation = what(f"policy.{B.hex()}", "activate")
    run.add(BEGIN + 199 * SECOND, verdict("allow", {"operator": "olga"}, activation, basis(A, 12)))
    run.add(BEGIN + 210 * SECOND, verdict("allow", who(TASKS[1]), issue, basis(B, 13), granted=granted))
    run.add(BEGIN + 211 * SECOND, verdict("deny", {}, issue, basis(B, 13)))
    arguments = sha256(RIGHT.content["arguments"].encode())
    wanted = issue | {"arguments": arguments, "call": RIGHT.content["call"], "call_id": number("call id", "right")}
    right = {"right": "tool.mail:send", "key": digest("writ/v1/key", public(PLANNER)).hex()[:32]}
    asked = {"right": right, "approval": approval(RIGHT)}
    run.add(BEGIN + 212 * SECOND, verdict("hold", who(TASKS[0]), wanted, basis(B, 13), **asked))
    issued = {"right": right | {"expires": BEGIN + 274 * SECOND}, "approval": approval(RIGHT, "bob", "carol")}
    run.add(BEGIN + 214 * SECOND, verdict("allow", who(TASKS[0]), wanted, basis(B, 13), **issued))


def tell_call(run: Run, at: int, task: str, call: str, policy: bytes, sequence: int, part: str = "p0") -> int:
    """An allowed call and how it ended; returns the position of the first."""
    body = verdict("allow", who(task), what("tool.crm", "read", call), basis(policy, sequence))
    seq = run.add(at, body, part=part)
    run.add(at + 12, outcome(run.id, seq, task, call), part=part)
    return seq


def _tell_first(run: Run) -> None:
    """More records than a tile is wide, and one of every kind."""
    for index in range(70):
        tell_call(run, BEGIN + (20 + index) * SECOND, TASKS[index % 2], f"first {index}", A, 9)
        at = BEGIN + (20 + index) * SECOND + 500
        run.add(at, verdict("deny", who(TASKS[index % 2]), what("tool.mail", "send", index), basis(A, 9)))
    held = what_was_asked(MAIL, "held")
    run.add(BEGIN + 150 * SECOND, verdict("hold", who(TASKS[0]), held, basis(A, 12), approval=approval(MAIL)))
    let = {
        "approval": approval(MAIL, "bob"),
        "acts": [{"id": "la-1", "by": "carol", "what": "declassified crm, hr"}],
    }
    seq = run.add(BEGIN + 152 * SECOND, verdict("allow", who(TASKS[0]), held, basis(A, 12), **let))
    run.add(BEGIN + 153 * SECOND, outcome(run.id, seq, TASKS[0], "held"))
    # Calls whose intent did not reach the stream, or did in vain.
    for index, voided in enumerate(("void", "both", "void")):
        call = what("tool.crm", "read", f"voided {index}")
        run.add(BEGIN + (160 + index) * SECOND, verdict("allow", who(TASKS[0]), call, basis(A, 12)), voided)
    handed = what("agent.mailer", "invoke", "handed over")
    seq = run.add(BEGIN + 170 * SECOND, verdict("allow", who(TASKS[0]), handed, basis(A, 12)))
    # While the mailer is at it, it calls.
    mail = what("tool.mail", "send", "mailed")
    by = run.add(BEGIN + 171 * SECOND, verdict("allow", who(TASKS[0], "mailer"), mail, basis(A, 12)))
    run.add(BEGIN + 172 * SECOND, outcome(run.id, by, TASKS[0], "mailed"))
    run.add(BEGIN + 173 * SECOND, outcome(run.id, seq, TASKS[0], "handed over"))
    # The new policy cannot be taken at once; the last good one goes on.
    late = what("tool.crm", "read", "late")
    fault = basis(A, 13, "policy.invalid")
    run.add(BEGIN + 201 * SECOND, verdict("deny", who(TASKS[0]), late, fault))
    for index in range(20):
        tell_call(run, BEGIN + (220 + index) * SECOND, TASKS[1], f"after {index}", B, 13)
    run.add(
        BEGIN + 480 * SECOND, verdict("allow", who(TASKS[1]), what("tool.crm", "read", "left open"), basis(B, 13))
    )
    for index in range(3):
        denied = what("tool.mail", "send", f"last {index}")
        run.add(BEGIN + (481 + index) * SECOND, verdict("deny", who(TASKS[1]), denied, basis(B, 13)))


def with_body(run: Run, index: int, **changes: Any) -> None:
    """Changes what a verdict of a run says."""
    entry = run.entries[index]
    run.entries[index] = replace(entry, body={"verdict": entry.body["verdict"] | changes})
