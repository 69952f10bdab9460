"""Exports in which somebody let something pass: true ones, and what a verifier has to find.

A node that acts without anybody's word can name whomever it likes in its records; it cannot sign for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import Case
from put_away import put_away
from story import BEGIN, BOB, CAROL, MAIL, RIGHT, SECOND, TASKS, WORDS, Event, Story, Word, answer, tell, with_body
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


def put_away_with_what_was_said() -> Case:
    """The records of the part are here, and what was said was removed with its class."""
    story = put_away()
    story.is_here = lambda message: True
    story.words = ()
    return Case(story, ("approval.missing",))


# What an insider does who holds a key.


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
    put_away_with_what_was_said,
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
