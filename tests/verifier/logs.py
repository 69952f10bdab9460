"""The Merkle logs: whether the records are those that were committed to, and witnessed, when they were made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from control import Control
from findings import NOTE, WARNING, Report
from msgpack import Malformed
from notes import NOTE_BYTES_MAX, Checkpoint, RunId, split_notes
from records import Run
from tree import Tree, read_tiles

# How long a record may wait for a checkpoint that covers it, in milliseconds.
YOUNG_MS = 10_000


@dataclass(frozen=True)
class Log:
    """A checkpoint that is its recorder's word, and the tree its tiles store, if they do."""

    checkpoint: Checkpoint
    tiles: Tree | None


def is_witnessed(checkpoint: Checkpoint, control: Control) -> bool:
    """Whether a broker cosigned it; a broker's own log is signed by itself alone."""
    return checkpoint.run.kind == "broker" or any(
        checkpoint.is_cosigned(broker, control.record_keys["broker", broker]) for broker in control.brokers()
    )


def is_recorders(checkpoint: Checkpoint, control: Control) -> bool:
    """Whether its recorder signed it with a record key of its own."""
    keys = control.record_keys.get(checkpoint.run.recorder, set())
    return checkpoint.tenant == control.tenant and checkpoint.is_signed(keys)


def read_logs(folder: Path, control: Control, report: Report) -> dict[RunId, Log]:
    """The logs of an export; what is not its recorder's word is reported and left out."""
    logs: dict[RunId, Log] = {}
    for place in sorted((folder / "logs").glob("*")):
        where = f"logs/{place.name}"
        try:
            checkpoint = Checkpoint.parse(read_note(place / "checkpoint"))
        except Malformed as error:
            report.add("log.signature", where, f"its checkpoint {error}")
            continue
        if checkpoint.run.folder != place.name or not is_recorders(checkpoint, control):
            report.add(
                "log.signature", where, "its checkpoint is not signed by the recorder the folder is named after"
            )
            continue
        if not is_witnessed(checkpoint, control):
            report.add("log.unwitnessed", where, "no broker has cosigned its checkpoint")
        logs[checkpoint.run] = Log(checkpoint, _tiles(place, checkpoint, where, report))
    return logs


def read_note(path: Path) -> str:
    """A note from a file."""
    try:
        with path.open("rb") as file:
            return file.read(NOTE_BYTES_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(f"cannot be read: {error}") from error


def _tiles(place: Path, checkpoint: Checkpoint, where: str, report: Report) -> Tree | None:
    try:
        tree = read_tiles(place, checkpoint.size)
    except Malformed as error:
        report.add("log.tiles", where, error)
        return None
    if tree.root(tree.size) != checkpoint.root:
        report.add("log.tiles", where, "its tiles do not lead to the root its checkpoint says")
        return None
    return tree


def check_log(run: Run, log: Log, away: int, report: Report, is_everything: bool) -> None:
    """The records of a run against its log. `away` is one more than the last position that was put away."""
    said, size = log.checkpoint, max(run.size, away)
    if is_everything and said.size > size:
        text = f"its checkpoint covers {said.size} records, and the last one here is number {size}"
        report.add("log.rolled_back", run.id, text)
    if said.is_closed and size > said.size:
        text = f"it was closed after {said.size} records, and there are records up to number {size}"
        report.add("log.after_close", run.id, text)
    if log.tiles:
        others = [record for record in run if record.seq < said.size and log.tiles.leaves[record.seq] != record.leaf]
        if others:
            text = f"{len(others)} records are not those that were committed to; the first is {others[0]}"
            report.add("log.fork", run.id, text)
    elif (tree := tree_of(run, said.size)) and tree.root(said.size) != said.root:
        report.add(
            "log.fork", run.id, f"the root of its first {said.size} records is not the one its checkpoint says"
        )


def tree_of(run: Run, size: int) -> Tree | None:
    """The tree of the first records of a run, if they are all there."""
    if any(position not in run.at for position in range(min(size, run.count + 1))):
        return None
    return Tree(run.standing(position).leaf for position in range(size))


def check_coverage(run: Run, log: Log | None, away: list[tuple[int, int]], now: int, report: Report) -> None:
    """Whether what was recorded was also witnessed in time. `away` is what was put away and is not here, `now` is when
    the export was made, in milliseconds."""
    size = log.checkpoint.size if log else 0
    late = [record for record in run if record.seq >= size]
    gone = sum(last + 1 - max(first, size) for first, last in away if last >= size)
    if not (late or gone) or (log and log.checkpoint.is_closed):
        return
    # What was put away is old.
    is_young = not gone and all(now - record.at < YOUNG_MS for record in late)
    text = f"{len(late) + gone} records from number {size} on stand in no checkpoint"
    severity = NOTE if is_young else WARNING if log else None
    report.add("log.unwitnessed", run.id, text, severity)


def is_over(run: RunId, log: Log | None, runs: Iterable[RunId], control: Control) -> bool:
    """Whether a run has ended: it says so, or its recorder has begun another."""
    return bool(log and log.checkpoint.is_closed) or has_later(run, runs, control)


def has_later(run: RunId, runs: Iterable[RunId], control: Control) -> bool:
    """Whether its recorder has begun a later run."""
    return any(other.recorder == run.recorder and control.is_before(run, other) for other in runs)


def check_heads(
    text: str, runs: dict[RunId, Run], logs: dict[RunId, Log], control: Control, report: Report, is_everything: bool
) -> None:
    """Checkpoints that were kept elsewhere: the logs here must continue them."""
    for number, note in enumerate(split_notes(text), 1):
        where = f"head {number}"
        try:
            head = Checkpoint.parse(note)
        except Malformed as error:
            report.add("log.signature", where, error)
            continue
        where = f"head {number} ({head.run})"
        if not is_recorders(head, control):
            report.add("log.signature", where, "is not signed by its recorder")
            continue
        check_head(head, where, runs, logs, report, is_everything)


def check_head(
    head: Checkpoint, where: str, runs: dict[RunId, Run], logs: dict[RunId, Log], report: Report, is_everything: bool
) -> None:
    """One of them, which is its recorder's word."""
    log, run = logs.get(head.run), runs.get(head.run)
    if not is_everything and not log:
        # A run that has no part in the task is not in its export.
        return
    here = max(log.checkpoint.size if log else 0, run.size if run and is_everything else 0)
    if head.size > here:
        report.add("log.rolled_back", where, f"covers {head.size} records, and there are {here} here")
        return
    tree = tree_of(run, head.size) if run else None
    if tree is None and log and log.tiles and log.tiles.size >= head.size:
        tree = log.tiles
    # Without a tree, records are missing and the tiles are no good either, as was reported.
    if tree and tree.root(head.size) != head.root:
        report.add("log.fork", where, f"says another root of the first {head.size} records than this log has")
