"""Asking and answering: the input, the answer, its messages and branches, and what may go wrong."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from eft_local.errors import ContextOverflowError, EvaluationError
from eft_local.tui import clipboard
from eft_local.tui.config import Config
from eft_local.tui.screens.dialogs import DecisionScreen
from tests.helpers.fake_emulator import FakeEmulator
from tests.helpers.tui_desk import Open, covers, hold, home, opened, replies  # noqa: F401

pytestmark = pytest.mark.asyncio


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _nothing() -> _Nothing:
    return _Nothing()


@covers("composer.send")
async def test_a_question_is_answered_and_saved(opened: Open) -> None:
    async with opened() as desk:
        await desk.press(*"hi", "enter")
        await desk.idle()
        assert desk.texts == ["hi", "eft answers hi"]
        assert desk.app.chat.composer.text == ""
        assert [message.text for message in desk.app.history.shown(desk.app.session.chat.id)] == desk.texts
        assert "42 tokens/s" in str(desk.app.footer.content)
        assert "base 100 %" in str(desk.app.footer.content)


@covers("composer.newline")
async def test_lines_are_broken_not_sent(opened: Open) -> None:
    async with opened() as desk:
        await desk.press("a", "ctrl+j", "b", "shift+enter", "c")
        assert desk.app.chat.composer.text == "a\nb\nc"
        assert not desk.texts


@covers("composer.complete")
async def test_tab_completes_a_command(opened: Open) -> None:
    async with opened() as desk:
        await desk.press(*"/temp", "tab")
        assert desk.app.chat.composer.text == "/temperature "
        assert "how freely" in desk.notice


@covers("composer.editor")
async def test_the_editor_writes_the_message(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nprintf "%s, edited\\n" "$(cat "$1")" > "$1"\n')
    script.chmod(0o755)
    async with opened(config=Config(editor=str(script))) as desk:
        monkeypatch.setattr(desk.app, "suspend", _nothing)
        await desk.press(*"text", "ctrl+g")
        assert desk.app.chat.composer.text == "text, edited"


async def test_up_recalls_and_keeps_what_is_not_sent(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("one")
        await desk.ask("two")
        await desk.press(*"thr", "up", "up")
        assert desk.app.chat.composer.text == "one"
        await desk.press("down", "down")
        assert desk.app.chat.composer.text == "thr"


@covers("answer.stop")
async def test_esc_stops_and_keeps_the_partial_answer(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 3)
    async with opened() as desk:
        await desk.send("stop me please")
        await desk.until(gate.reached.is_set)
        await desk.press("escape")
        await desk.idle()
        assert desk.texts == ["stop me please", "eft answers"]
        assert desk.app.session.messages[-1].answer.finish_reason == "cancelled"
        assert "stopped" in desk.answer.heading()


@covers("answer.continue")
async def test_a_stopped_answer_continues_as_a_branch(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 3)
    async with opened() as desk:
        await desk.send("stop me please")
        await desk.until(gate.reached.is_set)
        await desk.press("escape")
        await desk.idle()
        gate.opened.set()
        await desk.press("ctrl+l")
        await desk.idle()
        assert desk.texts == ["stop me please", "eft answers stop me please"]
        assert desk.app.session.messages[-1].siblings == (2, 3)
        assert desk.emulator.prefixes == [(), (0, 1, 2)]


@covers("answer.regenerate", "message.previous", "message.next")
async def test_answers_are_siblings_and_nothing_is_overwritten(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter(range(9))
    replies(monkeypatch, lambda only, messages: f" answer {next(counted)}")
    async with opened() as desk:
        await desk.ask("again")
        await desk.press("ctrl+r")
        await desk.idle()
        assert desk.texts[-1] == "answer 1"
        assert "‹ 2/2 ›" in desk.answer.heading()
        await desk.press("shift+tab", "left")
        assert desk.texts[-1] == "answer 0"
        assert "‹ 1/2 ›" in desk.answer.heading()
        await desk.press("right")
        assert desk.texts[-1] == "answer 1"
        await desk.press("right")
        assert "no other branch" in desk.notice


@covers("message.edit")
async def test_an_edited_question_is_a_branch(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("old")
        desk.app.chat.composer.write("unsent")
        await desk.press("shift+tab", "up", "e")
        assert desk.app.chat.composer.text == "old"
        await desk.press("escape")
        assert desk.app.chat.composer.text == "unsent"
        await desk.press("shift+tab", "e")
        desk.app.chat.composer.write("new")
        await desk.press("enter")
        await desk.idle()
        assert desk.texts == ["new", "eft answers new"]
        assert desk.app.session.messages[0].siblings == (1, 3)
        assert desk.app.chat.composer.text == "unsent"


@covers("message.retry", "message.focus", "message.up", "message.down", "composer.focus")
async def test_messages_are_walked_by_keys(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("one")
        await desk.ask("two")
        await desk.press("ctrl+up")
        assert desk.app.focused is desk.views[3]
        await desk.press("up", "up")
        assert desk.app.focused is desk.views[1]
        await desk.press("r")
        await desk.idle()
        assert desk.texts == ["one", "eft answers one"]
        assert desk.app.session.messages[1].siblings == (2, 5)
        await desk.press("ctrl+up", "down")
        assert desk.app.chat.composer.has_focus
        await desk.press("ctrl+up", "i")
        assert desk.app.chat.composer.has_focus


@covers("message.copy", "message.code")
async def test_copying_says_how_it_went(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: "Look:\n\n```py\nx = 1\n```\n\n```\ny = 2\n```\n")
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "native_command", lambda: ["true"])
    monkeypatch.setattr(clipboard, "copy_native", lambda text, command: bool(command) and not copied.append(text))
    monkeypatch.setattr(clipboard, "understands_osc52", lambda: False)
    async with opened() as desk:
        await desk.ask("code")
        await desk.press("shift+tab", "c")
        await desk.until(lambda: "copied" in desk.notice)
        await desk.press("b")
        await desk.send("/code 1")
        await desk.until(lambda: len(copied) == 3)
        assert copied == [desk.texts[-1], "y = 2\n", "x = 1\n"]
        monkeypatch.setattr(clipboard, "native_command", lambda: None)
        await desk.send("/copy")
        assert "nothing was copied" in desk.notice
        monkeypatch.setattr(clipboard, "understands_osc52", lambda: True)
        await desk.send("/copy")
        assert "OSC 52" in desk.notice
        assert desk.app.clipboard == desk.texts[-1]


async def test_an_error_in_the_middle_keeps_the_text(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(emulator: FakeEmulator, number: int) -> None:
        if number == 3:
            raise EvaluationError("llama.cpp failed; try again")

    monkeypatch.setattr(FakeEmulator, "before_word", staticmethod(fail))
    async with opened() as desk:
        await desk.ask("one two three")
        assert desk.notice == "llama.cpp failed; try again"
        assert desk.texts[-1] == "eft answers"
        assert "failed" in desk.answer.heading()
        monkeypatch.setattr(FakeEmulator, "before_word", staticmethod(lambda emulator, number: None))
        await desk.ask("again")
        assert desk.texts[-1] == "eft answers again"


async def test_a_full_context_offers_room(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(only: str, messages: list[dict[str, str]]) -> str:
        if len(messages) > 3:
            raise ContextOverflowError("the prompt of base has 600 tokens; the context holds 512")
        return " fits"

    replies(monkeypatch, reply)
    async with opened() as desk:
        await desk.ask("one")
        await desk.ask("two")
        await desk.ask("three")
        assert isinstance(desk.app.screen, DecisionScreen)
        await desk.press("enter")
        await desk.until(lambda: not isinstance(desk.app.screen, DecisionScreen))
        await desk.until(lambda: desk.texts[-1] == "fits")
        await desk.idle()
        assert desk.texts == ["one", "fits", "two", "fits", "three", "fits"]


async def test_a_nearly_full_context_is_reported(opened: Open) -> None:
    async with opened(changes={"context": 14}) as desk:
        await desk.ask("one two three four")
        assert "nearly full" in desk.notice


async def test_a_terminal_resized_while_streaming(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 3)
    async with opened(size=(160, 50)) as desk:
        await desk.send("a b c d e f g")
        await desk.until(gate.reached.is_set)
        await desk.press("f3")
        for size in ((40, 12), (80, 24), (200, 60), (20, 5), (100, 30)):
            await desk.pilot.resize_terminal(*size)
            await desk.pilot.pause()
        gate.opened.set()
        await desk.idle()
        assert desk.texts[-1] == "eft answers a b c d e f g"


async def test_questions_during_an_answer_stay_in_the_input(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 1)
    async with opened() as desk:
        await desk.send("one")
        await desk.until(gate.reached.is_set)
        await desk.send("two")
        assert "being written" in desk.notice
        assert desk.app.chat.composer.text == "two"
        gate.opened.set()
        await desk.idle()


async def test_control_characters_never_reach_the_terminal(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: " a\x1b[2Jb")
    async with opened() as desk:
        await desk.ask("go")
        shown = "".join(segment.text for strip in desk.app.screen._compositor.render_strips() for segment in strip)
        assert "\x1b" not in shown
        assert "\\x1b[2J" in shown


async def test_the_end_stays_in_sight_until_the_user_scrolls_up(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: " ".join(f"word{number}" for number in range(190)))
    gate = hold(monkeypatch, 150)
    async with opened(size=(80, 16)) as desk:
        transcript = desk.app.chat.transcript
        await desk.send("go")
        await desk.until(gate.reached.is_set)
        await desk.until(lambda: "word149" in desk.shown)
        transcript.scroll_to(y=3, animate=False)
        await desk.pilot.pause()
        gate.opened.set()
        await desk.idle()
        assert transcript.scroll_y == 3
        assert "word189" not in desk.shown
        await desk.ask("and on")
        assert "word189" in desk.shown


async def test_a_hint_goes_with_what_it_was_on(opened: Open) -> None:
    async with opened() as desk:
        await desk.press(*"/alpha 0")
        assert "strength of what tuning changed" in desk.notice
        await desk.press("enter")
        assert not desk.notice


async def test_keys_of_a_message_are_shown_over_the_input(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(config=Config(keys={"message.edit": "x"})) as desk:
        replies(monkeypatch, lambda only, messages: "plain")
        await desk.ask("```hello```")
        await desk.send("/retry")
        await desk.idle()
        composer = desk.app.chat.composer
        await desk.press("ctrl+up")
        assert composer.border_title == "r answer again · c copy · ← branch before · → branch after · i to the input"
        await desk.press("up")
        assert composer.border_title == "x edit · c copy · b copy code · i to the input"
        await desk.press("x")
        assert str(composer.border_title).startswith("edit:")
        await desk.press("escape")
        assert composer.border_title == ""


async def test_figures_are_shown_while_an_answer_is_written(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 2)
    async with opened() as desk:
        await desk.send("hello")
        await desk.until(lambda: "writing │ 42 tokens/s" in desk.shown)
        gate.opened.set()
        await desk.idle()
        assert "ready │ 42 tokens/s" in desk.shown


@covers("transcript.up", "transcript.down")
async def test_the_chat_is_scrolled_from_the_input(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: "\n\n".join(f"word{number}." for number in range(60)))
    async with opened(size=(80, 24)) as desk:
        await desk.ask("a long one")
        await desk.until(lambda: "word59." in desk.shown)
        await desk.press("pageup", "pageup")
        await desk.until(lambda: "word59." not in desk.shown)
        assert desk.app.chat.composer.has_focus
        await desk.press("pagedown", "pagedown")
        await desk.until(lambda: "word59." in desk.shown)


async def test_warnings_of_the_models_are_shown(opened: Open) -> None:
    """Nobody sees stderr while the app is open."""

    def load(recipe: Any, only: Any, progress: Any) -> FakeEmulator:
        for file in ("a", "b"):
            logging.getLogger("eft_local").warning("%s.gguf does not say how its tokenizer splits text", file)
        return FakeEmulator.load(recipe, target=only, progress=progress)

    async with opened(load=load) as desk:
        assert "a.gguf does not say" in desk.notice
        assert "b.gguf does not say" in desk.notice
