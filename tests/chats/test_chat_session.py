"""A conversation in use, without any face: what it wants written, what it saves, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_local.chats import History
from eft_local.chats.opening import chat_to_continue, unsaved
from eft_local.chats.session import Session
from eft_local.chats.writing import recorded
from eft_local.errors import HistoryError, UsageError
from eft_local.hub.references import find_recipe
from tests.helpers.fake_emulator import OTHER, FakeEmulator

RECIPE = find_recipe("demo").replace(seed=3)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "chats.db") as history:
        yield history


@pytest.fixture
def session(history: History) -> Session:
    return Session(history, RECIPE)


def write(session: Session) -> str:
    """Let a fake write what the session wants; return what it was to show."""
    writing = session.writing
    assert writing is not None
    request = writing.request
    pieces: list[str] = []
    answer = FakeEmulator(request.recipe).chat(
        request.messages,
        target=request.target,
        seed=request.seed,
        prefix=request.prefix,
        top=request.candidates,
        on_step=lambda step: pieces.append(session.wrote(step)),
    )
    session.finish(answer, writing.all_steps, recorded(request, writing.all_steps))
    return "".join(pieces)


def test_a_question_wants_an_answer_which_is_saved_with_its_figures(session: Session, history: History) -> None:
    session.set_system("Be brief.")
    session.ask("Where is Lima?")
    assert session.writing is not None
    request = session.writing.request
    assert [message["content"] for message in request.messages] == ["Be brief.", "Where is Lima?"]
    assert (request.recipe, request.target, request.seed) == (RECIPE, "eft", 3)
    assert write(session) == "eft answers Where is Lima?"
    assert session.writing is None
    chat = history.latest()
    assert chat is not None
    question, answer = history.shown(chat.id)
    assert (question.text, answer.text) == ("Where is Lima?", "eft answers Where is Lima?")
    assert answer.answer is not None
    assert answer.answer.figures["strip"] == "▇▁▁▁▇▁"
    assert answer.answer.has_statistics
    assert session.messages == [question, answer]


def test_nothing_else_is_asked_while_an_answer_is_written(session: Session) -> None:
    session.ask("one")
    with pytest.raises(UsageError, match="being written"):
        session.ask("two")


def test_without_recording_no_statistics_are_wanted(history: History) -> None:
    session = Session(history, RECIPE, record=False)
    session.ask("one")
    assert session.writing is not None
    assert session.writing.request.candidates == 0
    write(session)
    assert session.messages[-1].answer is not None
    assert not session.messages[-1].answer.has_statistics


def test_an_answer_branches_at_another_candidate(session: Session) -> None:
    session.ask("one two three")
    write(session)
    session.branch_from(session.messages[-1], 2, OTHER)
    assert session.writing is not None
    assert session.writing.request.prefix == (0, 1, OTHER)
    assert [step.token for step in session.writing.request.kept] == [0, 1, OTHER]
    write(session)
    assert session.messages[-1].position == 2


def test_a_question_with_an_empty_answer_is_no_turn(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter(["", "fine"])
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(lambda only, messages: next(replies)))
    session.ask("one")
    write(session)
    session.ask("two")
    assert session.writing is not None
    assert [message["content"] for message in session.writing.request.messages] == ["two"]
    write(session)
    assert [message.text for message in session.messages] == ["one", "", "two", "fine"]


def test_what_fails_before_a_word_leaves_the_question_alone(session: Session) -> None:
    session.ask("one")
    session.fail()
    assert [message.text for message in session.messages] == ["one"]
    session.ask("another")
    write(session)
    assert [message.text for message in session.messages] == ["another", "eft answers another"]


def test_a_chat_continues_unsaved_where_the_file_fails(
    session: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise HistoryError("the disk is full")

    session.ask("one")
    write(session)
    chat = session.chat
    assert chat is not None
    monkeypatch.setattr(history, "ask", full)
    session.ask("two")
    assert str(session.unsaved) == "the disk is full"
    write(session)
    assert [message.text for message in session.messages] == ["one", "eft answers one", "two", "eft answers two"]
    assert len(history.shown(chat.id)) == 2


def test_an_unsaved_copy_of_a_chat_leaves_the_chat_alone(session: Session, history: History) -> None:
    session.ask("one")
    write(session)
    saved = chat_to_continue(history, None, resume=True)
    assert saved is not None
    changed = RECIPE.replace(beta=1.5)
    with unsaved(history, saved, changed) as (memory, copy):
        assert copy is not None
        other = Session(memory, changed)
        other.open(copy.id)
        assert other.recipe.beta == 1.5
        assert other.steps(other.messages[-1]) == session.steps(session.messages[-1])
        other.ask("two")
        assert other.writing is not None
        assert len(other.writing.request.messages) == 3
        write(other)
        assert len(other.messages) == 4
    assert len(history.shown(saved.id)) == 2
    assert history.chat(saved.id) == saved


def test_a_deleted_chat_does_not_continue(session: Session, history: History) -> None:
    session.ask("one")
    write(session)
    assert session.chat is not None
    history.delete(session.chat.id)
    with pytest.raises(UsageError, match="is deleted"):
        chat_to_continue(history, session.chat.id, resume=False)
    with pytest.raises(UsageError, match="no chat to continue"):
        chat_to_continue(history, None, resume=True)
    assert chat_to_continue(history, None, resume=False) is None
