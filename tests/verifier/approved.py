"""Exports in which somebody let something pass: true ones, and what a verifier has to find.

A node that acts without anybody's word can name whomever it likes in its records; it cannot sign for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import Case
from put_away import PUT_AWAY, put_away
from story import (
    BEGIN,
    BOB,
    CAROL,
    MAIL,
    RIGHT,
    SECOND,
    TASKS,
    WORDS,
    B,
    Event,
    Story,
    Word,
    answer,
    basis,
    number,
    outcome,
    tell,
    who,
    with_body,
)
from tamper import STRANGER


def _without(*gone: Word) -> Case:
    story = tell()
    story.words = tuple(word for word in WORDS if word not in gone)
    return Case(story, ("approval.missing",))


def _instead(code: str, *pairs: tuple[Word, Word]) -> Case:
    story, other = tell(), dict((id(word), other) for word, other in pairs)
    story.words = tuple(other.get(id(word), word) for word in WORDS)
    return Case(story, (code,) if code else ())


def _with(word: Word, **content: Any) -> Word:
    return replace(word, content=word.content | content)


NO, YES, ACT, BOBS, CAROLS = WORDS[1], WORDS[2], WORDS[3], WORDS[5], WORDS[6]


# What nobody has to complain about.


def approved_task() -> Case:
    """An export of the task in which it was approved."""
    return Case(tell(), task=TASKS[0])


def approved_in_another_order() -> Case:
    """The order of what was said is nothing the verifier rests on, and one of the answers counts."""
    story = tell()
    story.words = WORDS[::-1]
    return Case(story)


def words_of_others() -> Case:
    """Answers of strangers, to the same request and in the same name, and what is none, count for nothing."""
    story = tell()
    story.words = (replace(YES, key=STRANGER), _with(YES, decision="refused"), *WORDS, _with(MAIL, note="x"))
    return Case(story)


def _used_again(status: str, *codes: str, acts: tuple[dict[str, Any], ...] = ()) -> Case:
    """The call is made once more by what let the first one pass."""
    story = tell()
    run = story.runs["first"]
    body = run.entries[_approved(story)].body
    # Right before it ends, so that nothing else moves.
    at = BEGIN + 485 * SECOND
    call_id = body["verdict"]["what"] | {"call_id": number("call id", "again")}
    again = {name: said for name, said in body["verdict"].items() if name != "acts"} | {"what": call_id}
    seq = run.add(at, {"verdict": again | ({"acts": list(acts)} if acts else {})})
    run.add(at, outcome(run.id, seq, TASKS[0], "again", status))
    return Case(story, codes)


def claimed_again() -> Case:
    """A call that was allowed and did not run used nothing up."""
    return _used_again("not_run")


def unknown_and_again() -> Case:
    """Nor did one of which nobody knows: it was not marked used, or nobody could have claimed it again."""
    return _used_again("unknown_outcome")


def put_away_with_what_was_said() -> Case:
    """The records of the part are here, and what was said was removed with its class."""
    story = put_away()
    story.is_here = lambda message: True
    story.words = ()
    return Case(story, ("approval.missing",))


# What an insider does who holds a key.


def used_twice() -> Case:
    """One yes, two mails."""
    return _used_again("done", "approval.reused")


def act_used_twice() -> Case:
    """Carol's word was for one mail; that the second did not run after all is only what the node says."""
    act = {"id": "la-1", "by": "carol", "what": "declassified crm, hr"}
    return _used_again("not_run", "approval.reused", acts=(act,))


def right_issued_twice() -> Case:
    """A broker hands the right out once more."""
    story = tell()
    run = story.runs["broker"]
    run.add(BEGIN + 214 * SECOND + 1, run.entries[-1].body)
    return Case(story, ("approval.reused",))


def right_issued_and_not_handed_out() -> Case:
    """The first attempt came to nothing, as the broker says itself."""
    case = right_issued_twice()
    run = case.story.runs["broker"]
    run.add(BEGIN + 215 * SECOND, outcome(run.id, len(run.entries) - 2, TASKS[0], "right", "not_run"))
    return replace(case, codes=())


def right_by_nobody() -> Case:
    """A broker issues a right and names nobody."""
    story = tell()
    run = story.runs["broker"]
    last = run.entries[-1]
    said = {name: value for name, value in last.body["verdict"].items() if name != "approval"}
    run.entries[-1] = replace(last, body={"verdict": said})
    return Case(story, ("approval.binding",))


def approved_by_nobody() -> Case:
    """A node names an approval and nobody who gave it."""
    return _approved_with(by=None)


def approved_by_too_few() -> Case:
    """Two had to say yes, and he did so twice."""
    return _approved_with(by=["bob", "bob"], needs=[{"role": "manager", "count": 2}])


def asked_for_fewer() -> Case:
    """A node says that less was needed than it asked for."""
    return _approved_with(needs=[{"role": "clerk", "count": 1}])


def _approved_with(**changes: Any) -> Case:
    story = tell()
    run, index = story.runs["first"], _approved(story)
    said = run.entries[index].body["verdict"]["approval"] | changes
    with_body(run, index, approval={name: value for name, value in said.items() if value is not None})
    return Case(story, ("approval.binding",))


def recorded_as_something_else() -> Case:
    """The digest of the call is the one that was shown, and all else that the record says of it is not."""
    story = tell()
    run, index = story.runs["first"], _approved(story)
    said = run.entries[index].body["verdict"]["what"]
    with_body(run, index, what=said | {"resource": "tool.payments", "action": "pay"})
    return Case(story, ("approval.binding",))


def by_another_agent() -> Case:
    """Another agent does it than the one that asked."""
    story = tell()
    with_body(story.runs["first"], _approved(story), who=who(TASKS[0], "mailer"))
    return Case(story, ("approval.binding",))


def right_for_longer() -> Case:
    """A broker lets a right live longer than was asked for."""
    story = tell()
    right = story.runs["broker"].entries[-1].body["verdict"]["right"]
    return _issued(right=right | {"expires": BEGIN + 9_999 * SECOND})


def stolen_key_of_an_approver() -> Case:
    """Her key was withdrawn long before somebody answers with it."""
    story = tell()
    (carols,) = (event for event in story.events if event.sequence == 11)
    others = [event for event in story.events if event is not carols]
    withdrawn = replace(carols, event={"approver_key": {"approver": "carol"}})
    earlier = replace(carols, sequence=6, at=BEGIN + SECOND)
    story.events = sorted([*others, earlier, withdrawn], key=lambda event: event.sequence)
    return Case(story, ("approval.signature",))


def key_enrolled_later() -> Case:
    """A key counts from when it was enrolled."""
    story = tell()
    index = next(at for at, event in enumerate(story.events) if event.sequence == 11)
    carols = story.events.pop(index)
    story.events.append(replace(carols, sequence=21, at=BEGIN + 710 * SECOND))
    return Case(story, ("approval.signature",))


def put_away_with_some_of_what_was_said() -> Case:
    """Retention removed his yes, and what he said before is in a segment that stays."""
    case = put_away_with_what_was_said()
    case.story.words = (MAIL, NO)
    return case


def sealed_before_it_was_allowed() -> Case:
    """A node says that a call lived in a part that had been put away when it allowed it."""
    story = put_away()
    run = story.runs["second"]
    body = tell().runs["first"].entries[_approved(tell())].body["verdict"]
    seq = run.add(BEGIN + 744 * SECOND, {"verdict": body | {"basis": basis(B, PUT_AWAY)}}, part="p1")
    run.add(BEGIN + 745 * SECOND, outcome(run.id, seq, TASKS[0], "held"), part="p1")
    story.words = ()
    return Case(story, ("approval.missing", "record.archived"))


def answer_taken_out() -> Case:
    """Nobody said yes."""
    return _without(NO, YES)


def only_a_refusal() -> Case:
    """He said no."""
    return replace(_without(YES), codes=("approval.binding",))


def one_of_two_answers_taken_out() -> Case:
    """One of the two who had to agree did not."""
    return _without(CAROLS)


def request_taken_out() -> Case:
    """What they were shown is not here."""
    return _without(MAIL)


def act_taken_out() -> Case:
    """Nobody said that the data may go there."""
    return _without(ACT)


def no_words() -> Case:
    """The file with all of it is gone."""
    case = Case(tell(), ("approval.missing",))
    return replace(case, spoil=lambda export: (export / "approvals.jsonl").unlink())


def answer_by_a_stranger() -> Case:
    """Somebody signs in his name."""
    case = _instead("approval.signature", (YES, replace(YES, key=STRANGER)))
    case.story.words = tuple(word for word in case.story.words if word is not NO)
    return case


def answer_by_another_approver() -> Case:
    """Another approver signs in her name."""
    return _instead("approval.signature", (CAROLS, replace(CAROLS, key=BOB)))


def answer_by_the_node() -> Case:
    """The node signs for her."""
    return _instead("approval.signature", (CAROLS, replace(CAROLS, key=MAIL.key)))


def act_by_a_stranger() -> Case:
    """Somebody else lets the data go there."""
    return _instead("approval.signature", (ACT, replace(ACT, key=STRANGER)))


def answer_to_another_request() -> Case:
    """His yes was to something else."""
    return _instead("approval.binding", (YES, _with(YES, request=RIGHT.digest)))


def answer_of_another_tenant() -> Case:
    """She says yes elsewhere."""
    return _instead("approval.binding", (CAROLS, _with(CAROLS, tenant="globex")))


def answer_that_had_ended() -> Case:
    """His yes did not count any more when it was relied on."""
    at = BEGIN + 80 * SECOND
    return _instead("approval.binding", (YES, answer(MAIL, "bob", BOB, at, expires=at + 10 * SECOND)))


def answer_that_came_later() -> Case:
    """She said yes when it had been done long ago."""
    return _instead("approval.binding", (CAROLS, answer(RIGHT, "carol", CAROL, BEGIN + 400 * SECOND)))


def act_for_another_call() -> Case:
    """The data were let go elsewhere."""
    return _instead("approval.binding", (ACT, _with(ACT, call=RIGHT.content["call"])))


def act_for_other_data() -> Case:
    """Other data were let go there."""
    return _instead("approval.binding", (ACT, _with(ACT, kind={"declassify": {"tags": ["crm"]}})))


def endorsed_instead() -> Case:
    """She said that the arguments are right, and nothing of the data."""
    return _instead("approval.binding", (ACT, _with(ACT, kind="endorse")))


def another_call_than_approved() -> Case:
    """A node does something else than it has asked for."""
    story = tell()
    index = _approved(story)
    said = story.runs["first"].entries[index].body["verdict"]["what"]
    with_body(story.runs["first"], index, what=said | {"call": RIGHT.content["call"]})
    # The act was for the call that was shown.
    return Case(story, ("approval.binding",))


def another_task_than_approved() -> Case:
    """The yes was for another task."""
    shown = _with(MAIL, task=TASKS[1])
    return _asked(shown)


def another_user_than_approved() -> Case:
    """The yes was for another user's authority."""
    return _asked(_with(MAIL, user=["https://idp.example", "mallory"]))


def arguments_that_are_not_the_calls() -> Case:
    """A node shows other arguments than those whose digest it names."""
    return _asked(_with(MAIL, arguments='{"body":"hello","to":"eve@example.com"}'))


def _asked(shown: Word) -> Case:
    """A node asks with this request, everybody answers that, and it records it."""
    case = _instead("approval.binding", (MAIL, shown), (NO, _with(NO, request=shown.digest)))
    case.story.words = tuple(
        _with(word, request=shown.digest) if word is YES else word for word in case.story.words
    )
    run, index = case.story.runs["first"], _approved(case.story)
    with_body(run, index, approval=run.entries[index].body["verdict"]["approval"] | {"request": shown.digest})
    return case


def right_for_another_key() -> Case:
    """A broker issues a right to another key than asked for it."""
    return _issued(right={"right": "tool.mail:send", "key": "0" * 32, "expires": BEGIN + 274 * SECOND})


def right_with_other_arguments() -> Case:
    """A broker binds a right to other arguments."""
    story = tell()
    said = story.runs["broker"].entries[-1].body["verdict"]["what"]
    return _issued(what=said | {"arguments": MAIL.content["call"]})


def call_by_the_approval_of_a_right() -> Case:
    """What was asked for was a right, and what is recorded is a call."""
    story = tell()
    index = _approved(story)
    approval = story.runs["broker"].entries[-1].body["verdict"]["approval"]
    said = story.runs["first"].entries[index].body["verdict"]["what"]
    with_body(
        story.runs["first"], index, approval=approval, what=said | {"call": RIGHT.content["call"]}
    )
    return Case(story, ("approval.binding",))


def _issued(**changes: Any) -> Case:
    story = tell()
    with_body(story.runs["broker"], -1, **changes)
    return Case(story, ("approval.binding",))


def _approved(story: Story) -> int:
    """Where the first run has the call that was approved."""
    verdicts = (entry.body.get("verdict", {}) for entry in story.runs["first"].entries)
    return next(index for index, verdict in enumerate(verdicts) if verdict.get("acts"))


def unreadable_words() -> Case:
    """Lines that hold no message, and messages that are none, stand between the others: they count for nothing."""

    def spoil(export: Path) -> None:
        path = export / "approvals.jsonl"
        path.write_text("nothing\n" + path.read_text() + '{"sequence": 1}\n')

    return Case(tell(), spoil=spoil)


def withdrawn_key_of_an_approver() -> Case:
    """Her key was withdrawn since: what she signed with it stays said."""
    story = tell()
    story.events.append(Event(21, BEGIN + 710 * SECOND, {"approver_key": {"approver": "carol"}}))
    return Case(story)


CASES: tuple[Callable[[], Case], ...] = (
    approved_task,
    approved_in_another_order,
    words_of_others,
    claimed_again,
    unknown_and_again,
    put_away_with_what_was_said,
    put_away_with_some_of_what_was_said,
    right_issued_and_not_handed_out,
    used_twice,
    act_used_twice,
    right_issued_twice,
    right_by_nobody,
    approved_by_nobody,
    approved_by_too_few,
    asked_for_fewer,
    recorded_as_something_else,
    by_another_agent,
    right_for_longer,
    stolen_key_of_an_approver,
    key_enrolled_later,
    sealed_before_it_was_allowed,
    answer_taken_out,
    only_a_refusal,
    one_of_two_answers_taken_out,
    request_taken_out,
    act_taken_out,
    no_words,
    answer_by_a_stranger,
    answer_by_another_approver,
    answer_by_the_node,
    act_by_a_stranger,
    answer_to_another_request,
    answer_of_another_tenant,
    answer_that_had_ended,
    answer_that_came_later,
    act_for_another_call,
    act_for_other_data,
    endorsed_instead,
    another_call_than_approved,
    another_task_than_approved,
    another_user_than_approved,
    arguments_that_are_not_the_calls,
    right_for_another_key,
    right_with_other_arguments,
    call_by_the_approval_of_a_right,
    unreadable_words,
    withdrawn_key_of_an_approver,
)
