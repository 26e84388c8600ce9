"""What is typed in the app and not sent: it comes back where it was typed, and what was sent does not."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

from pathlib import Path

import pytest

from eft_local.chats import History
from eft_local.chats.typed import Typed
from eft_local.tui import launch
from tests.helpers.tui_desk import Open, home, opened, replies  # noqa: F401

pytestmark = pytest.mark.asyncio


async def test_a_sent_question_does_not_return(opened: Open) -> None:
    async with opened() as desk:
        desk.app.chat.composer.write("What is the capital of Peru?")
        desk.app.keep_typed()  # what a timer does each second
        await desk.press("enter")
        await desk.idle()
        assert desk.app.typed.unsent == {}
        await desk.send("/new")
        assert desk.app.chat.composer.text == ""


async def test_a_sent_question_is_not_kept_where_the_app_dies(opened: Open, home: Path) -> None:
    async with opened() as desk:
        for text in ("first", "second"):
            desk.app.chat.composer.write(text)
            desk.app.keep_typed()
            await desk.press("enter")
            assert Typed(home / "typed.json").unsent == {}
            await desk.idle()


async def test_an_edited_question_does_not_return(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("old")
        desk.app.chat.composer.write("unsent")
        desk.app.keep_typed()
        await desk.send("/edit")
        desk.app.chat.composer.write("new")
        desk.app.keep_typed()
        await desk.press("enter")
        await desk.idle()
        await desk.send("/new")
        assert desk.app.chat.composer.text == ""


async def test_a_command_does_not_return(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        desk.app.chat.composer.write("/delete")
        desk.app.keep_typed()
        await desk.press("enter")
        await desk.send("/undo")
        assert desk.texts[0] == "hello"
        assert desk.app.chat.composer.text == ""


async def test_what_is_typed_in_a_chat_survives_its_deletion(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        desk.app.chat.composer.write("not sent")
        await desk.press("f2", "d")
        assert desk.app.chat.composer.text == ""
        await desk.press("u")
        assert desk.app.chat.composer.text == "not sent"


async def test_a_question_that_failed_stays_in_one_place(opened: Open) -> None:
    async with opened() as desk:
        desk.app.chat.composer.write("for later")
        desk.app.keep_typed()
        desk.app.session.chat = desk.app.history.create(desk.app.session.recipe)  # as where asking fails half-way
        desk.app.keep_typed()
        assert desk.app.typed.unsent == {desk.app.session.chat.id: "for later"}


async def test_leaving_while_a_question_is_edited_keeps_both_texts(opened: Open, home: Path) -> None:
    async with opened() as desk:
        await desk.ask("old")
        desk.app.chat.composer.write("unsent")
        desk.app.chat.begin_edit(desk.app.session.question_of(None))
        desk.app.chat.composer.write("half edited")
        chat = desk.app.session.chat.id
        desk.app.leave()
    kept = Typed(home / "typed.json")
    assert (kept.unsent, kept.recalled[-1]) == ({chat: "unsent"}, "half edited")


async def test_another_branch_ends_an_edit(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("one")
        await desk.send("/edit")
        desk.app.chat.composer.write("one again")
        await desk.press("enter")
        await desk.idle()
        await desk.ask("two")
        await desk.send("/edit")
        assert desk.app.chat.editing is not None
        await desk.press("shift+tab", "up", "up", "up", "left")
        assert desk.texts == ["one", "eft answers one"]
        assert (desk.app.chat.editing, desk.app.chat.composer.text) == (None, "")
        await desk.ask("three")
        assert desk.texts == ["one", "eft answers one", "three", "eft answers three"]


async def test_two_apps_keep_what_was_typed_in_each(tmp_path: Path) -> None:
    file = tmp_path / "typed.json"
    one, other = Typed(file), Typed(file)
    one.keep("a", "in one", ["asked in one"])
    other.keep("b", "in the other", ["asked in the other"])
    one.keep("a", "more in one", ["asked in one"])
    kept = Typed(file)
    assert kept.unsent == {"a": "more in one", "b": "in the other"}
    assert set(kept.recalled) == {"asked in one", "asked in the other"}


async def test_what_was_typed_goes_with_a_chat_that_is_gone(tmp_path: Path) -> None:
    typed = Typed(tmp_path / "typed.json")
    with History(tmp_path / "chats.db") as history:
        from eft_local.hub.references import find_recipe

        there, deleted = (history.create(find_recipe("demo")).id for _ in range(2))
        history.delete(deleted)
        for chat in (there, deleted, "gone", ""):
            typed.keep(chat, "text", [])
        typed.forget(lambda chat: launch.is_gone(history, chat))
    assert set(Typed(typed.file).unsent) == {there, deleted, ""}


async def test_an_empty_answer_is_said(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: "")
    async with opened() as desk:
        await desk.ask("hello")
        assert "the answer is empty" in desk.notice
        assert desk.answer.heading().endswith("empty")
        await desk.send("/compare eft")
        await desk.until(lambda: "tokens/s" in desk.shown and "empty" in desk.shown)
