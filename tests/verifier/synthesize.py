#!/usr/bin/env python3
"""Makes exports with known keys: true ones, and every tampering a verifier has to find.

    python3 tests/verifier/synthesize.py --out DIR

DIR/root is the root's public key. Every other folder is one case: `export/`, or `proof.tlog-proof` with
`control.jsonl`; `receipts` and `heads` where the case has any; and `expected.json`, the codes a verifier has to find,
no more and no fewer. The same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import approved
import put_away
import tamper
from cases import Case, expect
from msgpack import encode
from story import (
    BEGIN,
    BROKER,
    NODE_1,
    ROOT,
    ROOT_OF_ANOTHER,
    SECOND,
    TASKS,
    A,
    B,
    Event,
    Log,
    Message,
    Story,
    basis,
    control_lines,
    events,
    keyset,
    number,
    outcome,
    public,
    receipt,
    tell,
    verdict,
    what,
    who,
    with_body,
)
from tamper import envelope, sign, write_lines

# A denial in the middle of the first run, and one at its end.
DENIAL = 32


def other_history() -> Story:
    """The same story with another denial in the first run, all of it signed anew by its node."""
    story = tell()
    with_body(story.runs["first"], DENIAL, what=what("tool.crm", "read", "nothing to see"))
    return story


# What nobody has to complain about.


def task() -> Case:
    """One task of it, with heads kept elsewhere and the receipts of its callers."""
    story = tell()
    return Case(story, task=TASKS[0], receipts=receipt(story.runs["first"], 0), heads=heads(story))


def kept() -> Case:
    """All of it, against heads kept earlier and receipts."""
    story = tell()
    receipts = receipt(story.runs["first"], 0) + receipt(story.runs["first"], 2) + receipt(story.runs["other"], 4)
    return Case(story, receipts=receipts, heads=heads(story))


def heads(story: Story, size: int = 100) -> str:
    """What was kept of each node's log when it was smaller."""
    first, other = story.runs["first"], story.runs["other"]
    notes = [Log.of(run, [one.leaf for one in run.seal()][:size], is_closed=False).note for run in (first, other)]
    return "".join(notes)


def under_way() -> Case:
    """A call that has no outcome yet: not a fault."""
    story = tell()
    call = what("tool.crm", "read", "under way")
    story.runs["other"].add(BEGIN + 90 * SECOND, verdict("allow", who(TASKS[0]), call, basis(A, 9)))
    return Case(story, ("intent.open",))


def young() -> Case:
    """A record that was made right before the export stands in no checkpoint yet: not a fault."""
    story = tell()
    story.logs["other"] = story.log("other")
    late = verdict("deny", who(TASKS[0]), what("tool.mail", "send", "late"), basis(B, 18))
    story.runs["other"].add(BEGIN + 999 * SECOND, late)
    return Case(story, ("log.unwitnessed",))


# What an insider does who holds a key.


def rewritten() -> Case:
    """A node signs its records anew with a denial exchanged; the checkpoint is the witnessed one."""
    story = other_history()
    story.logs["first"] = tell().log("first")
    return Case(story, ("log.fork",))


def rewritten_in_task() -> Case:
    """The same, in an export of the task."""
    return replace(rewritten(), task=TASKS[DENIAL // 3 % 2])


def forked_log() -> Case:
    """Node and witness sign a checkpoint of another history than the stream has."""
    story = tell()
    story.logs["first"] = other_history().log("first")
    return Case(story, ("log.fork",))


def forked_without_tiles() -> Case:
    """The same, and the tiles are taken out."""
    case = forked_log()
    tiles = f"logs/{case.story.runs['first'].id.folder}/tile"
    return replace(case, codes=("log.fork", "log.tiles"), spoil=lambda export: shutil.rmtree(export / tiles))


def forked_since() -> Case:
    """Records and log agree, and a head kept elsewhere shows that they once were others."""
    return Case(other_history(), ("log.fork",), heads=heads(tell()))


def rolled_back_since() -> Case:
    """Records and log agree, and a head kept elsewhere shows that there were more."""
    story, shorter = tell(), tell()
    del shorter.runs["other"].entries[-1]
    return Case(shorter, ("log.rolled_back",), heads=story.log("other").note)


def without_run() -> Case:
    """A run is missing with all its records and its log; a head kept elsewhere shows it."""
    story, without = tell(), tell()
    del without.runs["other"]
    return Case(without, ("log.rolled_back", "log.unwitnessed"), heads=story.log("other").note)


def without_first_run() -> Case:
    """The same with a run that another came after: the control stream knows of it, and an outcome names it."""
    without = tell()
    del without.runs["first"]
    return Case(without, ("log.unwitnessed", "record.missing"))


def foreign_head() -> Case:
    """A head that the recorder never signed."""
    story = tell()
    return Case(story, ("log.signature",), heads=story.log("other", key=NODE_1).note)


def unreadable_head() -> Case:
    """A head that is another text."""
    return Case(tell(), ("log.signature",), heads="There were more records than this.\n")


def uncosigned() -> Case:
    """A node's log that no broker has witnessed."""
    story = tell()
    story.logs["first"] = story.log("first", is_cosigned=False)
    return Case(story, ("log.unwitnessed",))


def lagging() -> Case:
    """A checkpoint that was not renewed for minutes while records came in."""
    story = tell()
    story.logs["other"] = story.log("other")
    story.runs["other"].add(
        BEGIN + 300 * SECOND, verdict("deny", who(TASKS[0]), what("tool.mail", "send"), basis(B, 13))
    )
    return Case(story, ("log.unwitnessed",))


def signed_by_another() -> Case:
    """A checkpoint by the key of another node."""
    story = tell()
    story.logs["other"] = story.log("other", key=NODE_1)
    return Case(story, ("log.signature", "log.unwitnessed"))


def after_close() -> Case:
    """A run goes on after it was closed."""
    story = tell()
    story.logs["first"] = story.log("first")
    more = verdict("deny", who(TASKS[1]), what("tool.mail", "send", "more"), basis(B, 13))
    story.runs["first"].add(BEGIN + 490 * SECOND, more)
    return Case(story, ("log.after_close",))


def abandoned() -> Case:
    """A run that was never closed, and its node runs again."""
    story = tell()
    story.runs["first"].is_closed = False
    return Case(story, ("log.abandoned",))


def reordered() -> Case:
    """A node swaps the positions of two records and signs only them anew."""
    story, run = tell(), tell().runs["first"]
    sealed = run.seal()
    entries = story.runs["first"].entries
    one, two = entries[DENIAL], entries[DENIAL + 1]
    entries[DENIAL] = replace(two, prev=sealed[DENIAL].digest)
    entries[DENIAL + 1] = replace(one, prev=sealed[DENIAL - 1].digest)
    # The outcome that follows names its intent by the new position.
    entries[DENIAL + 2] = replace(entries[DENIAL + 2], body=outcome(run.id, DENIAL, TASKS[1], "first 11"))
    story.logs["first"] = tell().log("first")
    return Case(story, ("log.fork", "record.order"))


def two_at_one_place() -> Case:
    """A node publishes two records under one name; the log has the first."""
    story, other = tell(), other_history().runs["first"].seal()[DENIAL].messages[0]
    story.after = lambda messages: [*messages, other]
    return Case(story, ("record.fork",))


def as_another_node() -> Case:
    """A node signs a record in another's name."""
    story, forged = tell(), tell()
    forged.runs["other"].key = NODE_1
    forged.runs["other"].add(
        BEGIN + 95 * SECOND, verdict("deny", who(TASKS[0]), what("tool.crm", "read"), basis(A, 9))
    )
    last = forged.runs["other"].seal()[-1].messages[0]
    story.after = lambda messages: [*messages, last]
    return Case(story, ("record.forged",))


def not_canonical() -> Case:
    """A node signs a record with a byte behind its end."""
    return _spoilt(lambda content: encode(content) + b"\xc0")


def unknown_field() -> Case:
    """A node signs a record with a field no version has."""
    return _spoilt(lambda content: encode({**content, "note": "x"}))


def fields_in_another_order() -> Case:
    """A node signs a record whose fields stand in another order."""
    return _spoilt(lambda content: encode(dict(sorted(content.items()))))


def _spoilt(spoil: Callable[[dict[str, object]], bytes]) -> Case:
    story = tell()
    good = story.runs["first"].seal()[DENIAL].messages[0]
    payload = envelope("record", sign("record", spoil(good.content), NODE_1))
    bad = replace(good, payload=payload)

    def after(messages: list[Message]) -> list[Message]:
        return [bad if message.payload == good.payload else message for message in messages]

    story.after = after
    return Case(story, ("record.malformed", "record.missing"))


def intent_without_outcome() -> Case:
    """A node never says how a call ended, and its run is over."""
    story = tell()
    late = verdict("allow", who(TASKS[1]), what("tool.crm", "read", "forgotten"), basis(B, 13))
    story.runs["first"].add(BEGIN + 490 * SECOND, late)
    return Case(story, ("intent.without_outcome",))


def outcome_of_another_call() -> Case:
    """An outcome names an intent and has the id of another call."""
    story = tell()
    entries = story.runs["first"].entries
    entries[1] = replace(entries[1], body=outcome(story.runs["first"].id, 0, TASKS[0], "another call"))
    return Case(story, ("intent.without_outcome", "record.missing"))


def outcome_without_intent() -> Case:
    """An outcome in an export of its task, and what allowed the call is taken out of it."""
    story = tell()
    intent = story.runs["first"].seal()[0].messages[0]
    story.after = lambda messages: [message for message in messages if message.payload != intent.payload]
    return Case(story, ("record.missing",), task=TASKS[0])


def record_of_another_task() -> Case:
    """A record of another task in an export of one."""
    other = next(message for message in tell().messages() if f".deny.{TASKS[1]}." in message.subject)

    def add(export: Path) -> None:
        lines = tamper.read_lines(export / "records.jsonl")
        line = {"sequence": 9_999, "subject": other.subject}
        tamper.put(line, other.payload)
        write_lines(export / "records.jsonl", [*lines, line])

    return Case(tell(), ("record.subject",), task=TASKS[0], spoil=add)


def policy_never_active() -> Case:
    """A verdict by a policy nobody put in force."""
    story = tell()
    with_body(story.runs["other"], -1, basis=basis(number("no policy"), 9))
    return Case(story, ("policy.never_active",))


def policy_of_before() -> Case:
    """A verdict by a policy that had been replaced by then, and no fault is named."""
    story = tell()
    with_body(story.runs["second"], -1, basis=basis(A, 16))
    return Case(story, ("policy.never_active",))


def policy_of_later() -> Case:
    """A verdict by a policy that was put in force only afterwards."""
    story = tell()
    with_body(story.runs["other"], -1, basis=basis(B, 9))
    return Case(story, ("policy.never_active",))


def receipt_without_record() -> Case:
    """A caller has a receipt for a record that the node replaced before anybody witnessed it."""
    story = other_history()
    return Case(story, ("receipt.without_record",), receipts=receipt(tell().runs["first"], DENIAL))


def foreign_receipt() -> Case:
    """A receipt that another node signed."""
    story = tell()
    return Case(story, ("receipt.signature",), receipts=receipt(story.runs["other"], 0, key=NODE_1))


def unreadable_receipt() -> Case:
    """A receipt that is another text."""
    return Case(tell(), ("receipt.signature",), receipts="received\n")


def by_a_foreign_root() -> Case:
    """Somebody with a root of their own makes the whole story up."""
    story = tell()
    story.events = events(ROOT_OF_ANOTHER)
    return Case(story, ("control.signature", "log.signature", "record.forged"))


def keyset_that_falls_back() -> Case:
    """A broker brings an older keyset back."""
    return _with_last_event(keyset(1), ("control.order",))


def two_keysets_of_a_version() -> Case:
    """The root signed two keysets of one version."""
    return _with_last_event(keyset(2, withdrawn=[public(ROOT_OF_ANOTHER)]), ("control.order",))


def unreadable_event() -> Case:
    """A broker signs an event of a kind nobody knows."""
    return _with_last_event({"amnesty": {"agent": "mailer"}}, ("control.signature",))


def keyset_by_another_root() -> Case:
    """A broker brings a keyset the root did not sign."""
    return _with_last_event(keyset(3, ROOT_OF_ANOTHER), ("control.signature",))


def withdrawn_key() -> Case:
    """An event by a key that the keyset before it withdrew."""
    story = tell()
    story.events.append(Event(21, BEGIN + 710 * SECOND, keyset(3, withdrawn=[public(BROKER)]), BROKER))
    story.events.append(Event(22, BEGIN + 711 * SECOND, {"halt_all": {"on": False}}))
    return Case(story, ("control.signature",))


def backdated_event() -> Case:
    """An event that says it is minutes older than the one before it."""
    story = tell()
    story.events.append(Event(21, BEGIN + 600 * SECOND, {"halt_all": {"on": True}}))
    return Case(story, ("control.order",))


def _with_last_event(event: dict[str, object], codes: tuple[str, ...]) -> Case:
    story = tell()
    story.events.append(Event(21, BEGIN + 710 * SECOND, event))
    return Case(story, codes)


CASES: tuple[Callable[[], Case], ...] = (
    task,
    kept,
    under_way,
    young,
    rewritten,
    rewritten_in_task,
    forked_log,
    forked_without_tiles,
    forked_since,
    rolled_back_since,
    without_run,
    without_first_run,
    foreign_head,
    unreadable_head,
    uncosigned,
    lagging,
    signed_by_another,
    after_close,
    abandoned,
    reordered,
    two_at_one_place,
    as_another_node,
    not_canonical,
    unknown_field,
    fields_in_another_order,
    intent_without_outcome,
    outcome_of_another_call,
    outcome_without_intent,
    record_of_another_task,
    policy_never_active,
    policy_of_before,
    policy_of_later,
    receipt_without_record,
    foreign_receipt,
    unreadable_receipt,
    by_a_foreign_root,
    keyset_that_falls_back,
    two_keysets_of_a_version,
    unreadable_event,
    keyset_by_another_root,
    withdrawn_key,
    backdated_event,
)


def write_proofs(out: Path) -> None:
    """Proofs for single records."""
    story = tell()
    log, records = story.log("first"), story.runs["first"].seal()
    good = log.prove(DENIAL, records[DENIAL].messages[-1].payload)
    last = records[-1].messages[-1].payload
    uncosigned = story.log("first", is_cosigned=False).prove(DENIAL, records[DENIAL].messages[-1].payload)
    denial = records[DENIAL].messages[-1].payload
    rewritten = other_history().runs["first"].seal()[DENIAL].messages[-1].payload
    # The leaves of two records have changed places.
    leaves = [one.leaf for one in records]
    leaves[DENIAL], leaves[DENIAL + 1] = leaves[DENIAL + 1], leaves[DENIAL]
    moved = Log.of(story.runs["first"], leaves).prove(DENIAL + 1, denial)
    foreign = story.log("first", key=ROOT_OF_ANOTHER).prove(DENIAL, denial)
    stranger = envelope("record", sign("record", encode(records[DENIAL].messages[-1].content), tamper.STRANGER))
    for name, text, codes in (
        ("proof", good, ()),
        ("proof_of_the_last", log.prove(len(records) - 1, last), ()),
        ("proof_of_another_record", log.prove(DENIAL, last), ("log.fork",)),
        ("proof_at_another_position", good.replace(f"index {DENIAL}\n", f"index {DENIAL + 1}\n"), ("log.fork",)),
        ("proof_of_a_rewritten_record", log.prove(DENIAL, rewritten), ("log.fork",)),
        ("proof_of_a_moved_record", moved, ("log.fork",)),
        ("proof_by_a_foreign_checkpoint", foreign, ("log.signature",)),
        ("proof_without_a_step", _without_last_step(good), ("log.fork",)),
        ("proof_that_nobody_witnessed", uncosigned, ("log.unwitnessed",)),
        ("proof_by_a_stranger", log.prove(DENIAL, stranger), ("record.forged",)),
        ("proof_that_is_none", good.replace("extra ", "extra: "), ("proof.malformed",)),
    ):
        folder = out / name
        folder.mkdir()
        (folder / "proof.tlog-proof").write_text(text)
        write_lines(folder / "control.jsonl", control_lines(story.events))
        expect(folder, codes)


def _without_last_step(proof: str) -> str:
    head, _, note = proof.partition("\n\n")
    return head.rpartition("\n")[0] + "\n\n" + note


def synthesize(out: Path) -> list[Path]:
    """Writes every case and returns their folders."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "root").write_text(f"ed25519:{public(ROOT).hex()}\n")
    Case(tell()).write(out / "good")
    for case in (*CASES, *approved.CASES, *put_away.CASES):
        case().write(out / case.__name__)
    write_proofs(out)
    absent = tamper.make(out / "good" / "export", out)
    if absent:
        raise SystemExit(f"the story has not what these tamperings take: {absent}")
    return sorted(path for path in out.iterdir() if path.is_dir())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already; name a new folder")
    print(f"{len(synthesize(options.out))} cases in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
