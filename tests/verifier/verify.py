#!/usr/bin/env python3
"""Verifies what `writ audit export` wrote, or one proof, by deploy/evidence.md alone.

    python3 tests/verifier/verify.py <export> [--root ed25519:<hex>] [--receipts FILE] [--heads FILE] [--json]
    python3 tests/verifier/verify.py --proof FILE --control FILE --root ed25519:<hex> [--json]

Shares no code with `writ audit verify`. Needs Python 3.11 and the package `cryptography`. Ends with 0 if there is no
fault, with 1 if there is, with 64 for a wrong command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import shapes
from approvals import Approvals, check_uses
from archive import PutAway, may_be_put_away, note_put_away, without
from control import Control, Refused, revision_of
from findings import NOTE, WARNING, Report, visible
from logs import (
    Log,
    check_coverage,
    check_head,
    check_heads,
    check_log,
    has_later,
    is_over,
    is_recorders,
    is_witnessed,
    read_logs,
)
from msgpack import Malformed
from notes import Proof, RunId, unbase64
from records import Record, RecordId, Run, Unbelieved, fits_subject, id_of, open_record
from signed import Signed
from tree import leaf_hash, root_by_path

LINE_BYTES_MAX = 16 * 1024 * 1024


class Usage(Exception):
    """A command line or an export that cannot be worked with."""


@dataclass(frozen=True)
class Line:
    """One message of a stream, as a file has it; nothing of it is believed but what a signature says."""

    number: int
    sequence: int
    subject: str
    payload: bytes


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which nothing is said twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("it says something twice")
    return found


def lines_of(path: Path, code: str, report: Report) -> Iterator[Line]:
    """The messages in a file; lines that hold none are reported with this code."""
    try:
        file = path.open("rb")
    except OSError as error:
        report.add(code, path.name, f"cannot be read: {error.strerror}")
        return
    with file:
        for number, text in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), 1):
            try:
                line = json.loads(text, object_pairs_hook=once)
                sequence, subject, payload = line["sequence"], line["subject"], unbase64(line["payload"])
                is_number = isinstance(sequence, int) and not isinstance(sequence, bool) and 0 <= sequence < 1 << 64
                if not is_number or not isinstance(subject, str):
                    raise Malformed("its sequence is no number, or its subject no text")
            except (ValueError, RecursionError, KeyError, TypeError, Malformed) as error:
                report.add(code, f"{path.name}:{number}", f"holds no message: {error}")
                continue
            yield Line(number, sequence, subject, payload)


def read_control(path: Path, tenant: str, root: bytes, report: Report) -> Control:
    """The control stream, as far as it is one."""
    control = Control(tenant, root)
    for line in lines_of(path, "control.signature", report):
        # Ticks of the freshness protocol stand in the same stream and say nothing.
        if line.subject == f"writ.v1.{tenant}.control.tick":
            continue
        try:
            control.take(line.sequence, line.payload)
        except Refused as refused:
            report.add(refused.code, f"{path.name}:{line.number}", f"event {line.sequence} {refused}")
    return control


@dataclass
class Manifest:
    """What export.json says. None of it is believed; it says what is claimed to be here."""

    tenant: str | None = None
    root: str | None = None
    # In milliseconds since 1970.
    exported_at: int = 0
    task: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, report: Report) -> Manifest:
        """An export without a readable one is taken for one of everything: that asks for the most."""
        try:
            said = json.loads((folder / "export.json").read_bytes())
            if said["format"] != "writ-export/1":
                raise ValueError(f"its format is {said['format']!r} and not 'writ-export/1'")
            task = said["scope"].get("task")
            at = datetime.fromisoformat(said["exported_at"])
            return cls(said["tenant"], said["root_key"], int(at.timestamp() * 1000), task, dict(said["files"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            report.add("file.digest", "export.json", f"cannot be read: {error!r}")
            return cls()


@dataclass
class Export:
    """An export while it is verified."""

    folder: Path
    manifest: Manifest
    control: Control
    report: Report
    runs: dict[RunId, Run] = field(default_factory=dict)
    logs: dict[RunId, Log] = field(default_factory=dict)
    put_away: PutAway = field(default_factory=PutAway)

    @property
    def is_everything(self) -> bool:
        """Whether it claims to hold every record of the tenant."""
        return self.manifest.task is None

    def __str__(self) -> str:
        what = "everything" if self.is_everything else f"task {self.manifest.task}"
        return f"{self.folder}, said to be {what} of {self.control.tenant}"

    def verify(self, receipts: Path | None, heads: Path | None) -> None:
        """Applies every rule."""
        for line in lines_of(self.folder / "records.jsonl", "record.malformed", self.report):
            self._take(line)
        self.logs = read_logs(self.folder, self.control, self.report)
        self.put_away = PutAway.read(self.folder, self.control, self.report, self.is_everything)
        self._check_runs()
        self._check_intents()
        for record in self._records():
            self._check_basis(record)
        self._check_approvals()
        if heads:
            text = heads.read_text(errors="replace")
            check_heads(text, self.runs, self.logs, self.control, self.report, self.is_everything)
        if receipts:
            self._check_receipts(receipts)
        self._check_files()
        self.report.records = sum(run.count for run in self.runs.values())
        self.report.runs = len(self.runs)

    def _records(self) -> Iterator[Record]:
        return (record for run in self.runs.values() for record in run)

    def _take(self, line: Line) -> None:
        where = f"records.jsonl:{line.number}"
        try:
            record = open_record(line.payload, self.control)
        except Unbelieved as unbelieved:
            self.report.add(unbelieved.code, where, unbelieved)
            return
        if not fits_subject(record, line.subject, self.control.tenant):
            self.report.add("record.subject", record, f"stands on {line.subject}")
        if not self.is_everything and record.task != self.manifest.task:
            self.report.add("record.subject", record, f"is not of task {self.manifest.task}")
        self.runs.setdefault(record.run, Run(record.run)).add(record)

    def _check_runs(self) -> None:
        newest = max((record.at for record in self._records()), default=0)
        now = max(self.manifest.exported_at, newest, self.control.last_at)
        known = self._known_runs()
        # An export of one task does not claim to hold what other tasks left.
        put_away = self.put_away.runs if self.is_everything else {}
        for id in sorted(self.runs.keys() | self.logs.keys() | put_away.keys()):
            run, log, away = self.runs.get(id, Run(id)), self.logs.get(id), put_away.get(id, [])
            run.check(away, self.report, self.is_everything)
            if log:
                check_log(run, log, away[-1][1] + 1 if away else 0, self.report, self.is_everything)
                if not log.checkpoint.is_closed and has_later(id, known, self.control):
                    self.report.add(
                        "log.abandoned", id, "it was never closed, and its recorder has begun another run"
                    )
            check_coverage(run, log, without(away, run), now, self.report)
        for where, checkpoint in self.put_away.checkpoints:
            check_head(checkpoint, where, self.runs, self.logs, self.report, self.is_everything)
        for id in sorted(known - self.runs.keys() - self.logs.keys() - put_away.keys()) if self.is_everything else []:
            severity = WARNING if has_later(id, known, self.control) else NOTE
            self.report.add(
                "log.unwitnessed", id, "the control stream says it began, and nothing of it is here", severity
            )

    def _known_runs(self) -> set[RunId]:
        put_away = self.put_away.runs.keys() if self.is_everything else set()
        return self.runs.keys() | self.logs.keys() | self.control.boots.keys() | put_away

    def _standing(self, id: RecordId) -> Record | None:
        run = self.runs.get(id[0])
        return run.standing(id[1]) if run and id[1] in run.at else None

    def _check_intents(self) -> None:
        """Every act has an outcome, and every outcome an act."""
        not_here = self.put_away.not_here(self.runs)
        if self.is_everything:
            note_put_away(not_here, self.report)
        known = self._known_runs()
        ended = {id: is_over(id, self.logs.get(id), known, self.control) for id in self.runs}
        settled: set[RecordId] = set()
        for outcome in self._records():
            if outcome.intent is None:
                continue
            intent = self._standing(outcome.intent)
            fits = intent and intent.kind == "allow" and intent.run.recorder == outcome.run.recorder
            if intent and fits and intent.call_id == outcome.call_id:
                settled.add(outcome.intent)
            elif intent or not self.put_away.holds(*outcome.intent):
                run, seq = outcome.intent
                self.report.add("record.missing", f"{run}/{seq}", f"{outcome} is its outcome, and it is not here")
        for record in self._records():
            is_intent = record.kind == "allow" and record.is_act and record.run.kind == "node"
            if not is_intent or (record.run, record.seq) in settled:
                continue
            if not ended[record.run]:
                self.report.add("intent.open", record, "was allowed, and may still be under way")
            elif may_be_put_away(record, not_here, self.control.is_before):
                self.report.add("intent.open", record, "was allowed, and how it ended may have been put away")
            else:
                self.report.add("intent.without_outcome", record, "was allowed, and nothing says how it ended")

    def _check_basis(self, record: Record) -> None:
        """The policy a verdict names was in force, at a state of the control stream that there was."""
        if record.epoch and record.epoch not in self.control.epochs:
            text = f"was decided at {record.epoch} of the control stream, which has no such event here"
            self.report.add("control.order", record, text)
        if record.policy is None:
            return
        until = record.epoch.sequence if record.epoch else self.control.epoch.sequence
        # Who could not take the policy in force says so, and goes on with an earlier one.
        is_any = record.policy_fault is not None or record.epoch is None
        allowed = self.control.policies_until(until) if is_any else {self.control.policy_at(until)}
        if record.policy not in allowed:
            text = f"was decided by policy {record.policy.hex()}, which was not in force at {record.epoch}"
            self.report.add("policy.never_active", record, text)

    def _check_approvals(self) -> None:
        """Who let something pass said so. What is not readable is not there, and missed where it is needed."""
        approvals, path = Approvals(), self.folder / "approvals.jsonl"
        if path.is_file():
            for line in lines_of(path, "approval.missing", Report()):
                approvals.take(line.payload)
        records = ((record, record.let_pass) for record in self._records())
        approvals.check(records, self.control, self.report)
        check_uses(self._records(), self.report)

    def _check_receipts(self, path: Path) -> None:
        for number, text in enumerate(path.read_text(errors="replace").split(), 1):
            where = f"receipt {number}"
            try:
                signed = Signed.open("receipt", unbase64(text))
                receipt = signed.read(shapes.RECEIPT)
            except Malformed as error:
                self.report.add("receipt.signature", where, f"is no receipt: {error}")
                continue
            run, seq = id = id_of(receipt["id"])
            keys = self.control.record_keys.get(run.recorder, set())
            if signed.key not in keys or receipt["tenant"] != self.control.tenant or not signed.is_genuine():
                self.report.add("receipt.signature", where, f"is not signed by {run.name}, which it names")
                continue
            found = self.runs[run].at.get(seq, []) if run in self.runs else []
            if not found and self.put_away.holds(run, seq):
                self.report.add("record.archived", f"{where} ({run}/{seq})", "was put away and is not here")
            elif all(record.digest != receipt["record"] for record in found):
                self.report.add(
                    "receipt.without_record", f"{where} ({run}/{seq})", f"no such record is here: {id[0]}"
                )

    def _check_files(self) -> None:
        """What rests on nothing and still should be what it was."""
        listed = self.manifest.files
        there = {
            str(path.relative_to(self.folder)): path
            for path in self.folder.rglob("*")
            if path.is_file() and path != self.folder / "export.json"
        }
        for name in sorted(listed.keys() - there.keys()):
            self.report.add("file.digest", name, "is listed in export.json, and not here")
        for name in sorted(there.keys() - listed.keys()):
            self.report.add("file.digest", name, "is not listed in export.json", WARNING)
        for name in sorted(listed.keys() & there.keys()):
            with there[name].open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]:
                    self.report.add("file.digest", name, "is not what export.json says")
        self._check_policies(there)

    def _check_policies(self, there: dict[str, Path]) -> None:
        """The policies that can be looked at are those that were put in force."""
        shown: dict[str, dict[str, str]] = defaultdict(dict)
        for name, path in there.items():
            parts = Path(name).parts
            if parts[0] == "policies" and len(parts) > 2:
                shown[parts[1]]["/".join(parts[2:])] = path.read_text(errors="replace")
        used = {record.policy.hex() for record in self._records() if record.policy in self.control.policies}
        for revision in sorted(used - shown.keys()):
            self.report.add("file.digest", f"policies/{revision}", "verdicts were given by it, and it is not here")
        for revision, files in sorted(shown.items()):
            in_order = dict(sorted(files.items(), key=lambda entry: entry[0].encode()))
            if revision_of(in_order).hex() != revision:
                self.report.add("file.digest", f"policies/{revision}", "its files are not those it is named after")


def check_proof(path: Path, control: Control, report: Report) -> None:
    """One record, its way to the root, and who stands for the root."""
    try:
        proof = Proof.parse(path.read_text(errors="replace"))
        record = open_record(proof.envelope, control)
    except Malformed as error:
        report.add("proof.malformed", path.name, error)
        return
    except Unbelieved as unbelieved:
        report.add(unbelieved.code, path.name, unbelieved)
        return
    report.records = report.runs = 1
    said = proof.checkpoint
    if not is_recorders(said, control):
        report.add("log.signature", said.run, "its checkpoint is not signed by its recorder")
    if not is_witnessed(said, control):
        report.add("log.unwitnessed", said.run, "no broker has cosigned its checkpoint")
    if (record.run, record.seq) != (said.run, proof.position):
        report.add("log.fork", record, f"is not the record at position {proof.position} of {said.run}")
    try:
        is_in = root_by_path(leaf_hash(proof.envelope), proof.position, said.size, proof.path) == said.root
    except Malformed as error:
        report.add("log.fork", record, error)
        return
    if not is_in:
        report.add("log.fork", record, "the path does not lead from it to the root its checkpoint says")


def parse_root(text: str) -> bytes:
    """The root's public key, as `ed25519:` and hex."""
    if not re.fullmatch(r"ed25519:[0-9a-f]{64}", text):
        raise Usage(f"`{text}` is no root key: it is `ed25519:` and 64 hex digits")
    return bytes.fromhex(text.removeprefix("ed25519:"))


def tenant_of(control: Path) -> str:
    """The tenant the first event says it is of; whether that is so, its signature says later."""
    for line in lines_of(control, "control.signature", Report()):
        try:
            return str(Signed.open("control", line.payload).read(shapes.CONTROL)["tenant"])
        except Malformed:
            continue
    raise Usage(f"{control} holds no event of a control stream")


class Arguments(argparse.ArgumentParser):
    """Ends with 64 for a wrong command line, as Writ's own commands do."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{message}\n")


def run(options: argparse.Namespace) -> tuple[str, Report]:
    """Does what the command line asks for, and says what that was."""
    report = Report()
    if options.proof:
        if not options.control or not options.root or options.export:
            raise Usage("a proof is verified with --control and --root, and without an export")
        tenant = tenant_of(options.control)
        control = read_control(options.control, tenant, parse_root(options.root), report)
        check_proof(options.proof, control, report)
        return str(options.proof), report
    if not options.export or options.control:
        raise Usage("name the folder of an export, or a proof by --proof with --control")
    if not options.export.is_dir():
        raise Usage(f"{options.export} is no folder")
    manifest = Manifest.read(options.export, report)
    root = options.root or manifest.root
    if root is None:
        raise Usage("export.json names no root key; give the one you know by --root")
    if not options.root:
        report.add(
            "root.from_export", "export.json", "the root's key is the export's own word; compare it, or give --root"
        )
    stream = options.export / "control.jsonl"
    control = read_control(stream, manifest.tenant or tenant_of(stream), parse_root(root), report)
    export = Export(options.export, manifest, control, report)
    export.verify(options.receipts, options.heads)
    return str(export), report


def say(report: Report, what: str, as_json: bool) -> None:
    """Prints what was found."""
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    for finding in report.findings:
        print(finding)
    found = report.to_json()
    counted = f"{found['records']} records of {found['runs']} runs"
    print(f"{visible(what)}: {counted}, {found['faults']} faults, {found['warnings']} warnings")


def main() -> int:
    parser = Arguments(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", nargs="?", type=Path, help="the folder `writ audit export` wrote")
    parser.add_argument("--root", help="the offline root's public key, from elsewhere")
    parser.add_argument("--receipts", type=Path, help="receipts callers kept, one base64 envelope a line")
    parser.add_argument("--heads", type=Path, help="checkpoints that were kept elsewhere, one note after the other")
    parser.add_argument("--proof", type=Path, help="a proof for one record, instead of an export")
    parser.add_argument("--control", type=Path, help="the control stream a proof is verified by")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    try:
        what, report = run(options)
    except (Usage, OSError) as error:
        parser.error(str(error))
    say(report, what, options.json)
    return 1 if report.count("fault") else 0


if __name__ == "__main__":
    sys.exit(main())
