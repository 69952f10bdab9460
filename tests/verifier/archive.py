"""Parts of the audit stream that were put away: which records may be not here, and what was witnessed of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control import Control
from findings import WARNING, Report
from logs import is_recorders
from msgpack import Malformed
from notes import LOG, Checkpoint, RunId
from ranges import Range, count, holds, merged, outside
from records import Record, Run

FORMAT = "writ-archive/1"
# Most runs a note names; the others are counted.
RUNS_NAMED_MAX = 3


@dataclass(frozen=True)
class Manifest:
    """What verifying needs of a manifest."""

    part: str
    last: int
    positions: dict[RunId, list[Range]]
    checkpoints: dict[RunId, str]

    @classmethod
    def parse(cls, data: bytes, tenant: str) -> Manifest:
        """Reads one of this tenant."""
        try:
            said = json.loads(data)
            if said["format"] != FORMAT or said["tenant"] != tenant:
                raise Malformed(f"its format is not {FORMAT}, or its tenant another")
            positions: dict[RunId, list[Range]] = {}
            checkpoints: dict[RunId, str] = {}
            for entry in said["runs"]:
                run = _run(entry["log"], tenant)
                if run in positions:
                    raise Malformed(f"{run} stands there twice")
                positions[run] = [_range(pair) for pair in entry["positions"]]
                if any(b[0] <= a[1] for a, b in zip(positions[run], positions[run][1:])):
                    raise Malformed(f"the positions of {run} are out of order")
                if entry.get("checkpoint") is not None:
                    checkpoints[run] = _text(entry["checkpoint"])
            return cls(_text(said["part"]), _number(said["stream"]["last"]), positions, checkpoints)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Malformed(f"is no manifest: {error!r}") from error


def _run(line: str, tenant: str) -> RunId:
    origin = LOG.fullmatch(line)
    if origin is None or origin[1] != tenant:
        raise Malformed(f"{line!r} is no log of {tenant}")
    return RunId(*origin.groups()[1:])


def _range(pair: list[int]) -> Range:
    first, last = map(_number, pair)
    if not isinstance(pair, list) or first > last:
        raise Malformed(f"{pair!r} is no range")
    return first, last


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise Malformed(f"{value!r} is no position")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{value!r} is no text")
    return value


@dataclass
class PutAway:
    """The parts the control stream says were put away, as far as their manifests are here."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    runs: dict[RunId, list[Range]] = field(default_factory=dict)
    # Checkpoints of the manifests that are their recorders' word, with where they stand.
    checkpoints: list[tuple[str, Checkpoint]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, control: Control, report: Report, is_everything: bool) -> PutAway:
        """Reads the manifests of an export; one that is not what the control stream names counts for nothing."""
        found = cls()
        seen = set()
        for path in sorted((folder / "archive").glob("*.json")):
            where, part = f"archive/{path.name}", path.stem
            if part not in control.parts.archived:
                text = "the control stream does not say that this part was put away: it counts for nothing"
                report.add("archive.manifest", where, text, WARNING)
                continue
            seen.add(part)
            try:
                found._take(path.read_bytes(), part, control)
            except Malformed as error:
                report.add("archive.manifest", where, error)
                continue
            found._take_checkpoints(where, found.manifests[part], control, report)
        # An export of one task does not claim to hold what other tasks left.
        for part in sorted(control.parts.archived.keys() - seen) if is_everything else []:
            where = f"archive/{part}.json"
            report.add("archive.manifest", where, "the part was put away, and its manifest is not here")
        return found

    def _take(self, data: bytes, part: str, control: Control) -> None:
        digest, last = control.parts.archived[part]
        if hashlib.sha256(data).digest() != digest:
            raise Malformed(f"has another digest than {digest.hex()}, which the control stream says")
        manifest = Manifest.parse(data, control.tenant)
        if manifest.part != part or manifest.last != last:
            raise Malformed("is of another part, or ends elsewhere than the control stream says")
        self.manifests[part] = manifest
        for run, ranges in manifest.positions.items():
            self.runs[run] = merged([*self.runs.get(run, []), *ranges])

    def _take_checkpoints(self, where: str, manifest: Manifest, control: Control, report: Report) -> None:
        for run, note in manifest.checkpoints.items():
            try:
                checkpoint = Checkpoint.parse(note)
            except Malformed as error:
                report.add("log.signature", where, f"its checkpoint of {run} {error}")
                continue
            if checkpoint.run != run or not is_recorders(checkpoint, control):
                report.add("log.signature", where, f"what it has for {run} is not signed by its recorder")
                continue
            self.checkpoints.append((f"{where} ({run})", checkpoint))

    def holds(self, run: RunId, position: int) -> bool:
        """Whether there may be a record at a position that is not here."""
        return holds(position, self.runs.get(run, []))

    def not_here(self, runs: dict[RunId, Run]) -> dict[str, dict[RunId, list[Range]]]:
        """By part and run, the positions that were put away and have no record here."""
        found: dict[str, dict[RunId, list[Range]]] = {}
        for part, manifest in self.manifests.items():
            gone = {run: without(ranges, runs.get(run)) for run, ranges in manifest.positions.items()}
            found[part] = {run: ranges for run, ranges in gone.items() if ranges}
        return found


def without(ranges: list[Range], run: Run | None) -> list[Range]:
    """The positions that have no record in a run."""
    here = [(position, position) for position in sorted(run.at)] if run else []
    if not here:
        return ranges
    return [gap for wanted in ranges for gap in outside(wanted, here)]


def note_put_away(not_here: dict[str, dict[RunId, list[Range]]], report: Report) -> None:
    """One note for each part of which something is not here."""
    for part, runs in not_here.items():
        if not runs:
            continue
        named = [f"{count(gone)} of {run} from {gone[0][0]} to {gone[-1][1]}" for run, gone in runs.items()]
        if len(named) > RUNS_NAMED_MAX:
            named[RUNS_NAMED_MAX:] = [f"those of {len(named) - RUNS_NAMED_MAX} other runs"]
        total = sum(map(count, runs.values()))
        report.add(
            "record.archived", f"part {part}", f"{total} records were put away and are not here: {', '.join(named)}"
        )


def may_be_put_away(
    intent: Record, not_here: dict[str, dict[RunId, list[Range]]], is_before: Callable[[RunId, RunId], bool]
) -> bool:
    """Whether the outcome of an intent may be what was put away with its part: the place of a later record of the
    same recorder."""
    return any(
        gone[-1][1] > intent.seq
        if run == intent.run
        else run.recorder == intent.run.recorder and is_before(intent.run, run)
        for run, gone in not_here.get(intent.part, {}).items()
    )
