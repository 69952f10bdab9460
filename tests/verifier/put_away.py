"""Exports of a tenant whose first part of the audit stream was put away: true ones, and what a verifier has to find.

The story goes on in part p1. What lay in p0 is in the archive; an export has its manifest, and the logs' hashes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cases import Case
from notes import RunId
from ranges import Range, merged
from signed import sha256
from story import (
    BEGIN,
    NODE_1,
    SECOND,
    TASKS,
    TENANT,
    B,
    Event,
    Log,
    Message,
    Run,
    Story,
    basis,
    outcome,
    receipt,
    tell,
    tell_call,
    verdict,
    what,
    who,
    with_body,
)

# The states after the events that put p0 away.
PUT_AWAY = 23


def story_in_two_parts() -> Story:
    """The same story, which goes on in p1: a call of each node, a denial, an answer to what was left open long ago."""
    story = tell()
    for name, task, at in (("other", TASKS[0], 741), ("second", TASKS[1], 742)):
        tell_call(story.runs[name], BEGIN + at * SECOND, task, f"{name} in p1", B, PUT_AWAY, "p1")
    denied = verdict("deny", who(TASKS[1]), what("tool.crm", "read", "in p1"), basis(B, PUT_AWAY))
    story.runs["second"].add(BEGIN + 743 * SECOND, denied, part="p1")
    return story


@dataclass
class Archive:
    """A part, and what its manifest says."""

    story: Story
    part: str = "p0"
    # Logs whose checkpoints stand in it, where they are not those of the records.
    logs: dict[str, Log | None] = field(default_factory=dict)
    # What is done to what it says.
    spoil: Callable[[dict[str, Any]], None] | None = None

    def positions(self, run: Run) -> list[int]:
        """Where the run has records in the part."""
        return [seq for seq, entry in enumerate(run.entries) if entry.part == self.part]

    def manifest(self) -> bytes:
        """Its manifest."""
        runs = [self._run(name, run) for name, run in self.story.runs.items() if self.positions(run)]
        said = {
            "format": "writ-archive/1",
            "tenant": TENANT,
            "part": self.part,
            "stream": {"created": "2027-01-15T08:00:00Z", "messages": 400, "last": 400},
            "sealed_at": "2027-01-15T08:12:00Z",
            "segments": [],
            "runs": runs,
            "verified": {"faults": 0, "warnings": 0, "findings": []},
        }
        if self.spoil:
            self.spoil(said)
        return json.dumps(said, indent=2).encode() + b"\n"

    def _run(self, name: str, run: Run) -> dict[str, Any]:
        positions, leaves = self.positions(run), [one.leaf for one in run.seal()]
        size = positions[-1] + 1
        log = self.logs.get(name, Log.of(run, leaves[:size], is_closed=run.is_closed and size == len(leaves)))
        return {
            "log": f"writ-log/v1/{TENANT}/{run.id.kind}/{run.id.name}/{run.id.boot}",
            "positions": [[first, last] for first, last in ranges_of(positions)],
            "leaves": sha256(*(leaves[position] for position in positions)).hex(),
            "checkpoint": log.note if log else None,
        }


def ranges_of(positions: Iterable[int]) -> list[Range]:
    """The same as ranges that do not touch."""
    return [(first, last - 1) for first, last in merged([(position, position + 1) for position in positions])]


def stages(*parts: tuple[str, bytes | None]) -> list[Event]:
    """Events by which parts are left for the next one, sealed, and, where there is a manifest, put away."""
    said: list[tuple[str, Any]] = []
    for number, (part, manifest) in enumerate(parts, 1):
        said += [(f"p{number}", "current"), (f"p{number}", "shared"), (part, "sealed")]
        if manifest is not None:
            said.append((part, {"archived": {"manifest": sha256(manifest), "last": 400}}))
    return [
        Event(20 + index, BEGIN + (710 + index) * SECOND, {"part": {"part": part, "stage": stage}})
        for index, (part, stage) in enumerate(said)
    ]


def in_part(part: str) -> Callable[[Message], bool]:
    """Whether a message is in this part."""
    return lambda message: message.content["part"] == part


def put_away(archive: Archive | None = None) -> Story:
    """The story, with p0 put away as the archive has it."""
    archive = archive or Archive(story_in_two_parts())
    story, manifest = archive.story, archive.manifest()
    story.events += stages(("p0", manifest))
    story.archive, story.is_here = {"p0": manifest}, in_part("p1")
    return story


# What nobody has to complain about.


def archived() -> Case:
    """The part is put away, and its records are not here."""
    return Case(put_away(), ("record.archived",))


def archived_and_here() -> Case:
    """The part is put away, and its records were taken back from the archive."""
    story = put_away()
    story.is_here = lambda message: True
    return Case(story)


def archived_task() -> Case:
    """An export of a task that goes on in the next part asks for nothing that was put away."""
    story = put_away()
    story.archive = {}
    return Case(story, task=TASKS[0])


def archived_twice() -> Case:
    """Both parts are put away, and what was recorded since is here."""
    story = story_in_two_parts()
    last = Archive(story).manifest(), Archive(story, "p1").manifest()
    late = verdict("deny", who(TASKS[1]), what("tool.crm", "read", "in p2"), basis(B, 27))
    story.runs["second"].add(BEGIN + 800 * SECOND, late, part="p2")
    story.events += stages(("p0", last[0]), ("p1", last[1]))
    story.archive, story.is_here = dict(zip(("p0", "p1"), last)), in_part("p2")
    return Case(story, ("record.archived",))


def archived_before() -> Case:
    """Heads kept elsewhere from before the part was put away."""
    first = tell().runs["first"]
    head = Log.of(first, [one.leaf for one in first.seal()][:100], is_closed=False)
    return Case(put_away(), ("record.archived",), heads=head.note)


def outcome_of_archived() -> Case:
    """An outcome is here, and what allowed the call was put away."""
    story = story_in_two_parts()
    second = story.runs["second"]
    second.entries[0] = replace(second.entries[0], part="p1")
    return Case(put_away(Archive(story)), ("record.archived",))


def intent_here_outcome_archived() -> Case:
    """What allowed a call is in a segment that was kept, and how it ended in one that was not."""
    story = put_away()
    first = story.runs["first"]

    def is_here(message: Message) -> bool:
        return in_part("p1")(message) or _is(message, first.id, 0)

    story.is_here = is_here
    return Case(story, ("intent.open", "record.archived"))


def receipt_of_archived() -> Case:
    """A caller has a receipt for a record that was put away."""
    story = put_away()
    return Case(story, ("record.archived",), receipts=receipt(story.runs["first"], 2))


def receipt_of_archived_in_task() -> Case:
    """The same, in an export of the task with the manifest."""
    case = receipt_of_archived()
    return replace(case, task=TASKS[0])


def restored_elsewhere() -> Case:
    """A record of p0 that was put back into p1."""
    story = put_away()
    first = story.runs["first"]

    def after(messages: list[Message]) -> list[Message]:
        return [_restored(message) if _is(message, first.id, 2) else message for message in messages]

    story.after = after
    story.is_here = lambda message: in_part("p1")(message) or ".restored." in message.subject
    return Case(story, ("record.archived",))


# What has to be found.


def manifest_missing() -> Case:
    """The manifest is not here: nothing says what was put away."""
    case = archived()
    return replace(case, codes=_UNSAID, spoil=lambda export: (export / "archive" / "p0.json").unlink())


def manifest_changed() -> Case:
    """The manifest is another than the control stream names: it lists more."""

    def change(export: Path) -> None:
        path = export / "archive" / "p0.json"
        said = json.loads(path.read_text())
        said["runs"][0]["positions"].append([100, 200])
        path.write_text(json.dumps(said))

    return replace(archived(), codes=_UNSAID, spoil=change)


# What is found where nothing counts that a manifest says.
_UNSAID = ("archive.manifest", "log.rolled_back", "record.missing")


def manifest_unnamed() -> Case:
    """There is a manifest, and the control stream says only that the part was sealed."""
    story = put_away()
    story.events.pop()
    for name in ("other", "second"):
        run = story.runs[name]
        run.entries = [entry for entry in run.entries if entry.part == "p0"]
        story.logs[name] = Log.of(run, (one.leaf for one in run.seal()))
    story.is_here = lambda message: not _is(message, story.runs["other"].id, 2)
    return Case(story, ("archive.manifest", "record.missing"))


def manifest_before_its_time() -> Case:
    """The control stream says that a part was put away which it never sealed: that says nothing."""
    story = put_away()
    story.events = [event for event in story.events if event.event.get("part", {}).get("stage") != "sealed"]
    return Case(story, _UNSAID)


def manifest_of_another_part() -> Case:
    """The control stream names the manifest of another part."""
    return _with_manifest(lambda said: said.update(part="p7"), _UNSAID)


def manifest_that_ends_elsewhere() -> Case:
    """The manifest is of more messages than the control stream says."""
    return _with_manifest(lambda said: said["stream"].update(last=401), _UNSAID)


def manifest_in_another_format() -> Case:
    """The manifest is one of a format nobody knows."""
    return _with_manifest(lambda said: said.update(format="writ-archive/2"), _UNSAID)


def manifest_out_of_order() -> Case:
    """The manifest lists positions twice."""
    return _with_manifest(lambda said: said["runs"][1]["positions"].append([0, 2]), _UNSAID)


def manifest_with_a_fraction() -> Case:
    """The manifest lists half a position."""
    return _with_manifest(lambda said: said["runs"][1]["positions"].append([900, 900.5]), _UNSAID)


def archived_but_not_listed() -> Case:
    """Records that the manifest does not list are not here either."""

    def leave_out(said: dict[str, Any]) -> None:
        ((first, last),) = said["runs"][1]["positions"]
        said["runs"][1]["positions"] = [[first, 30], [36, last]]

    return _with_manifest(leave_out, ("record.archived", "record.missing"))


def archived_end_not_listed() -> Case:
    """The last records of a run are neither listed nor here: its checkpoint knows of them."""

    def leave_out(said: dict[str, Any]) -> None:
        said["runs"][1]["positions"][-1][1] -= 2

    return _with_manifest(leave_out, ("log.rolled_back", "record.archived"))


def archived_checkpoint_forked() -> Case:
    """The log has another history than when the part was put away."""
    story, other = story_in_two_parts(), story_in_two_parts()
    with_body(other.runs["first"], 32, what=what("tool.crm", "read", "nothing to see"))
    return Case(put_away(Archive(story, logs={"first": other.log("first")})), ("log.fork", "record.archived"))


def archived_checkpoint_foreign() -> Case:
    """A checkpoint in the manifest is not signed by its recorder."""
    story = story_in_two_parts()
    archive = Archive(story, logs={"other": story.log("other", key=NODE_1)})
    return Case(put_away(archive), ("log.signature", "record.archived"))


def archived_checkpoint_of_another() -> Case:
    """A checkpoint in the manifest is that of another run."""
    story = story_in_two_parts()
    archive = Archive(story, logs={"other": story.log("first")})
    return Case(put_away(archive), ("log.signature", "record.archived"))


def archived_log_rolled_back() -> Case:
    """The log of a run that was put away whole is shorter than it was then."""
    story = put_away()
    first = story.runs["first"]
    story.logs["first"] = Log.of(first, [one.leaf for one in first.seal()][:100], is_closed=False)
    return Case(story, ("log.abandoned", "log.rolled_back", "log.unwitnessed", "record.archived"))


def archived_log_missing() -> Case:
    """Neither the records nor the log of a run are here, and the manifest knows of both."""
    story = put_away()
    story.logs["first"] = None
    return Case(story, ("log.rolled_back", "log.unwitnessed", "record.archived"))


def archived_tiles_missing() -> Case:
    """Without its hashes nothing shows that the log still has what was put away."""
    case = archived()
    tiles = f"logs/{case.story.runs['first'].id.folder}/tile"

    def remove(export: Path) -> None:
        for path in sorted((export / tiles).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    return replace(case, codes=("log.tiles", "record.archived"), spoil=remove)


def archived_without_checkpoint() -> Case:
    """A run that was put away before anybody witnessed it, and has no log."""
    story = story_in_two_parts()
    story.logs["first"] = None
    archive = Archive(story, logs={"first": None})
    return Case(put_away(archive), ("log.unwitnessed", "record.archived"))


def receipt_not_archived() -> Case:
    """A caller has a receipt for a record the node replaced, and the one that replaced it is here."""
    case = receipt_of_archived()
    with_body(case.story.runs["first"], 2, what=what("tool.crm", "read", "nothing to see"))
    told = put_away(Archive(case.story))
    told.events = tell().events + stages(("p0", told.archive["p0"]))
    told.is_here = lambda message: True
    return Case(told, ("receipt.without_record",), receipts=case.receipts)


def intent_without_outcome_in_the_next_part() -> Case:
    """What was put away cannot hold the outcome of a call of the next part."""
    story = story_in_two_parts()
    late = verdict("allow", who(TASKS[1]), what("tool.crm", "read", "forgotten"), basis(B, PUT_AWAY))
    second = story.runs["second"]
    second.add(BEGIN + 744 * SECOND, late, part="p1")
    # It goes on recording in the part before, as it does while that part is drained.
    denied = verdict("deny", who(TASKS[0]), what("tool.mail", "send", "drained"), basis(B, 18))
    second.add(BEGIN + 745 * SECOND, denied)
    second.is_closed = True
    return Case(put_away(Archive(story)), ("intent.without_outcome", "record.archived"))


def intent_without_outcome_behind_archived() -> Case:
    """Nothing behind a call was put away with its part that could be its outcome."""
    story = story_in_two_parts()
    late = verdict("allow", who(TASKS[1]), what("tool.crm", "read", "late"), basis(B, 18))
    # The last of its part, and the only one that is here.
    second = story.runs["second"]
    seq = second.add(BEGIN + 705 * SECOND, late)
    second.is_closed = True
    story = put_away(Archive(story))
    story.is_here = lambda message: in_part("p1")(message) or _is(message, second.id, seq)
    return Case(story, ("intent.without_outcome", "record.archived"))


def restored_nowhere() -> Case:
    """A record was put back under a subject that no part has."""
    case = restored_elsewhere()
    elsewhere = case.story.after

    def after(messages: list[Message]) -> list[Message]:
        return [
            replace(message, subject=message.subject.replace(".p1.restored", ".P!.restored"))
            for message in elsewhere(messages)
        ]

    case.story.after = after
    return replace(case, codes=("record.archived", "record.subject"))


def subject_of_another_part() -> Case:
    """A record stands in another part than it says, and was not put back there."""
    story = put_away()
    moved = story.runs["other"].seal()[-1].messages[0]

    def after(messages: list[Message]) -> list[Message]:
        other = replace(moved, subject=moved.subject.replace(".p1.", ".p0."))
        return [other if message.payload == moved.payload else message for message in messages]

    story.after = after
    return Case(story, ("record.archived", "record.subject"))


def _with_manifest(spoil: Callable[[dict[str, Any]], None], codes: tuple[str, ...]) -> Case:
    return Case(put_away(Archive(story_in_two_parts(), spoil=spoil)), codes)


def _is(message: Message, run: RunId, seq: int) -> bool:
    id = message.content["id"]
    return (id["boot"], id["seq"]) == (run.boot, seq)


def _restored(message: Message) -> Message:
    tokens = message.subject.split(".")
    tokens[4:6] = ["p1", "restored"]
    return replace(message, subject=".".join(tokens))


CASES: tuple[Callable[[], Case], ...] = (
    archived,
    archived_and_here,
    archived_task,
    archived_twice,
    archived_before,
    outcome_of_archived,
    intent_here_outcome_archived,
    receipt_of_archived,
    receipt_of_archived_in_task,
    restored_elsewhere,
    manifest_missing,
    manifest_changed,
    manifest_unnamed,
    manifest_before_its_time,
    manifest_of_another_part,
    manifest_that_ends_elsewhere,
    manifest_in_another_format,
    manifest_out_of_order,
    manifest_with_a_fraction,
    archived_but_not_listed,
    archived_end_not_listed,
    archived_checkpoint_forked,
    archived_checkpoint_foreign,
    archived_checkpoint_of_another,
    archived_log_rolled_back,
    archived_log_missing,
    archived_tiles_missing,
    archived_without_checkpoint,
    receipt_not_archived,
    intent_without_outcome_in_the_next_part,
    intent_without_outcome_behind_archived,
    restored_nowhere,
    subject_of_another_part,
)
