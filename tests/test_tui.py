"""The app on a fake Emulator: every action by its key or command, and what may go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_emulator import OTHER, FakeEmulator
from textual.widgets import Input, OptionList
from tui_desk import Desk, Gate, desk

from eft_local.errors import ContextOverflowError, EvaluationError, ModelNotFoundError
from eft_local.tui import clipboard
from eft_local.tui.actions import ACTIONS
from eft_local.tui.compare import CompareScreen
from eft_local.tui.config import Config
from eft_local.tui.help import help_text
from eft_local.tui.screens import ChoiceScreen, DecisionScreen, HelpScreen, TextScreen

pytestmark = pytest.mark.asyncio

Open = Callable[..., AbstractAsyncContextManager[Desk]]
Test = TypeVar("Test", bound=Callable[..., Any])
COVERED: set[str] = set()


def covers(*actions: str) -> Callable[[Test], Test]:
    """Say which actions a test would miss."""
    COVERED.update(actions)
    return lambda test: test


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    emulators: list[FakeEmulator] = []
    monkeypatch.setattr(FakeEmulator, "loaded", emulators, raising=False)
    yield partial(desk, home, emulators)
    assert all(emulator.closed for emulator in emulators)


def hold(monkeypatch: pytest.MonkeyPatch, word: int) -> Gate:
    gate = Gate(word)
    monkeypatch.setattr(FakeEmulator, "before_word", staticmethod(gate))
    return gate


def replies(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str, list[dict[str, str]]], str]) -> None:
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(reply))


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


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _nothing() -> _Nothing:
    return _Nothing()


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
async def test_a_stopped_answer_goes_on_as_a_branch(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
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


@covers("chat.new", "chat.list", "chat.open")
async def test_chats_are_listed_and_opened(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("first")
        first = desk.app.session.chat.id
        desk.app.chat.composer.write("not sent yet")
        await desk.press("ctrl+n")
        assert not desk.texts
        assert desk.app.chat.composer.text == ""
        await desk.ask("second")
        await desk.press("f2")
        assert desk.app.sidebar.query_one(OptionList).has_focus
        await desk.press("down", "enter")
        assert desk.texts[0] == "first"
        assert desk.app.chat.composer.text == "not sent yet"
        await desk.press("f2", "f2")
        assert not desk.app.sidebar.display
        await desk.send("/new")
        await desk.send(f"/open {first}")
        assert desk.texts[0] == "first"


@covers("chat.search")
async def test_search_finds_words_and_shows_their_branch(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("about kangaroos")
        await desk.send("/retry")
        await desk.idle()
        await desk.send("/new")
        await desk.ask("about koalas")
        await desk.press("ctrl+s", *"kang", "enter")
        await desk.until(lambda: desk.app.sidebar.query_one(OptionList).option_count == 1)
        await desk.press("enter")
        await desk.until(lambda: desk.texts[:1] == ["about kangaroos"])


@covers("chat.rename", "chat.delete", "chat.undo")
async def test_a_chat_is_renamed_deleted_and_brought_back(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        await desk.send("/rename Greetings")
        assert desk.app.session.chat.title == "Greetings"
        await desk.send("/rename")
        assert desk.app.chat.composer.text == "/rename Greetings"
        await desk.send("/delete")
        assert not desk.texts
        assert desk.app.history.chats() == []
        await desk.send("/undo")
        assert desk.texts[0] == "hello"
        assert "Greetings is back" in desk.notice


@covers("chat.remove", "chat.undelete")
async def test_chats_are_deleted_in_the_list(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("one")
        await desk.press("f2", "d")
        assert desk.app.history.chats() == []
        await desk.press("u")
        assert len(desk.app.history.chats()) == 1


@covers("chat.export")
async def test_a_chat_is_exported_once(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        await desk.send("/export out.md")
        assert "eft answers hello" in Path("out.md").read_text()
        await desk.send("/export out.md")
        assert "exists already" in desk.notice
        await desk.send("/export out.json")
        assert len(json.loads(Path("out.json").read_text())["messages"]) == 2
        await desk.send("/export out.txt")
        assert "must end in .md or .json" in desk.notice


@covers("chat.system")
async def test_the_system_prompt_acts_from_the_next_answer(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/system Be brief.")
        await desk.ask("hello")
        assert desk.emulator.asked[-1][1][0] == {"role": "system", "content": "Be brief."}
        assert desk.app.history.chats()[0].system_prompt == "Be brief."
        await desk.press("f6")
        assert isinstance(desk.app.screen, TextScreen)
        await desk.press("!", "ctrl+s")
        assert desk.app.session.system == "!Be brief."


@covers("chat.drop")
async def test_oldest_turns_are_left_out_and_shown_so(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("one")
        await desk.ask("two")
        await desk.send("/drop")
        assert [view.has_class("-dropped") for view in desk.views] == [True, True, False, False]
        await desk.ask("three")
        assert [message["content"] for message in desk.emulator.asked[-1][1]] == ["two", "eft answers two", "three"]
        await desk.send("/drop 5")
        assert "cannot be dropped" in desk.notice


@covers("recipe.switch")
async def test_another_recipe_is_loaded(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/recipe demo-two")
        await desk.idle()
        assert desk.emulator.recipe.name == "demo-two"
        assert desk.emulators[0].closed
        await desk.press("ctrl+o")
        assert isinstance(desk.app.screen, ChoiceScreen)
        await desk.press("enter")
        await desk.until(lambda: len(desk.emulators) == 3)
        assert desk.emulator.recipe.name == "demo"
        await desk.send("/recipe demmo")
        assert '"demo"' in desk.notice


@covers("recipe.only")
async def test_one_role_answers_alone(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/only base")
        await desk.ask("hello")
        assert desk.texts[-1] == "base answers hello"
        await desk.send("/only bse")
        assert "there is no such role" in desk.notice


@covers("knobs.less", "knobs.more", "knob.alpha")
async def test_alpha_acts_from_the_next_token(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 3)
    async with opened() as desk:
        await desk.send("one two three four five")
        await desk.until(gate.reached.is_set)
        await desk.press("f7", "f7")
        gate.opened.set()
        await desk.idle()
        alphas = [recipe.alphas["assistant"] for recipe in desk.emulator.obeyed]
        assert alphas[:3] == [1.0, 1.0, 1.0]
        assert alphas[-1] == 0.8
        kept = desk.app.session.messages[-1].answer
        assert kept.recipe.recipe().alphas["assistant"] == 0.8
        await desk.press("f8")
        assert desk.app.session.recipe.alphas["assistant"] == 0.9
        await desk.send("/alpha 1.5")
        assert desk.app.session.recipe.alphas["assistant"] == 1.5


KNOBS = {
    "beta": ("1.2", "beta", 1.2),
    "temperature": ("0.5", "temperature", 0.5),
    "top-p": ("0.9", "top_p", 0.9),
    "top-k": ("7", "top_k", 7),
    "min-p": ("0.1", "min_p", 0.1),
    "repeat": ("1.1", "repeat_penalty", 1.1),
    "presence": ("0.2", "presence_penalty", 0.2),
    "frequency": ("0.3", "frequency_penalty", 0.3),
    "seed": ("11", "seed", 11),
    "max-tokens": ("3", "max_tokens", 3),
    "draft": ("auto", "draft", "auto"),
    "filter": ("0.9", "conservative_filter", 0.9),
    "mask": ("0.1", "plausibility_mask", 0.1),
}


@covers(*(f"knob.{name}" for name in KNOBS))
@pytest.mark.parametrize("name", KNOBS)
async def test_every_knob_has_a_command(opened: Open, name: str) -> None:
    typed, key, value = KNOBS[name]
    async with opened() as desk:
        await desk.send(f"/{name} {typed}")
        recipe = desk.app.session.recipe
        assert getattr(recipe if hasattr(recipe, key) else recipe.sampling, key) == value
        await desk.send(f"/{name} nonsense")
        assert "nonsense" in desk.notice
        await desk.send(f"/{name}")
        assert typed in desk.notice


@covers("knobs.panel")
async def test_the_panel_turns_knobs(opened: Open) -> None:
    async with opened() as desk:
        await desk.press("f3")
        alpha = desk.app.query_one("#knob-alpha-assistant", Input)
        assert alpha.has_focus
        await desk.press("down")
        assert desk.app.session.recipe.alphas["assistant"] == 0.9
        await desk.press("home", "shift+end", *"0.25", "enter")
        assert desk.app.session.recipe.alphas["assistant"] == 0.25
        await desk.press("shift+end", *"x", "enter")
        assert "a number is needed" in desk.notice
        assert alpha.value == "0.25"
        await desk.press("f3")
        assert not desk.app.knobs.display


@covers("knobs.mix")
async def test_two_experts_are_one_slider(opened: Open) -> None:
    async with opened(recipe="demo-two") as desk:
        await desk.send("/mix 0.3")
        assert desk.app.session.recipe.alphas == {"assistant": 0.3, "cautious": 0.7}
        await desk.press("f3", "up")
        assert desk.app.session.recipe.alphas == {"assistant": 0.4, "cautious": 0.6}


@covers("preset.load", "preset.save", "preset.forget")
async def test_presets_are_kept_per_recipe(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/alpha 0.7")
        await desk.send("/save-preset mild")
        await desk.send("/alpha 1")
        await desk.send("/preset mild")
        assert desk.app.session.recipe.alphas["assistant"] == 0.7
        await desk.send("/preset")
        assert "mild" in desk.notice
        await desk.send("/forget-preset mild")
        await desk.send("/preset mild")
        assert "has no preset" in desk.notice


@covers("inspector.panel", "inspector.left", "inspector.right", "inspector.next")
async def test_the_inspector_shows_who_decided(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("what is this")
        await desk.press("f4")
        panel = desk.app.chat.inspector
        assert "token 1" in str(panel.border_title)
        assert "the experts changed the top choice" in str(panel.border_title)
        await desk.press("right")
        assert "token 2" in str(panel.border_title)
        await desk.press("left", "n")
        assert "token 5" in str(panel.border_title)
        assert panel.table.row_count == 3
        await desk.press("f4")
        assert not panel.display


@covers("inspector.up", "inspector.down", "inspector.branch")
async def test_another_candidate_becomes_a_branch(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("what is this")
        await desk.press("f4", "right", "enter")
        assert "was the one taken" in desk.notice
        await desk.press("down", "down", "up", "enter")
        await desk.idle()
        assert desk.emulator.prefixes[-1] == (0, OTHER)
        assert desk.texts[-1] == "other answers what is this"
        assert len(desk.app.session.messages[-1].siblings) == 2
        assert "4 %" not in desk.answer.heading()


async def test_old_answers_can_be_inspected(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("what is this")
        chat = desk.app.session.chat.id
    async with opened(chat=chat) as desk:
        await desk.press("f4", "n")
        assert desk.app.chat.inspector.table.row_count == 3


@covers("compare.open", "compare.left", "compare.right", "compare.pick")
async def test_answers_stand_side_by_side_and_one_is_kept(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        await desk.press("f5")
        screen = desk.app.screen
        assert isinstance(screen, CompareScreen)
        await desk.until(lambda: not desk.app.engine.busy and len(desk.emulator.asked) == 4)
        await desk.until(lambda: all(column.answer for column in screen.query("Column")))
        await desk.press("right", "right", "left", "enter")
        await desk.until(lambda: not isinstance(desk.app.screen, CompareScreen))
        assert desk.texts == ["hello", "expert answers hello"]
        assert desk.app.session.messages[-1].answer.written_by == "expert"


async def test_other_alphas_can_be_compared(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        await desk.send("/compare 0 0.5 eft")
        await desk.until(lambda: not desk.app.engine.busy and len(desk.emulator.obeyed) > 10)
        assert {0.0, 0.5, 1.0} <= {recipe.alphas["assistant"] for recipe in desk.emulator.obeyed}
        await desk.until(lambda: all(column.answer for column in desk.app.screen.query("Column")))
        await desk.press("escape")
        assert not isinstance(desk.app.screen, CompareScreen)
        await desk.send("/compare nobody")
        assert "there is no such role" in desk.notice


@covers("app.help")
async def test_help_lists_every_action(opened: Open) -> None:
    async with opened() as desk:
        await desk.press("f1")
        assert isinstance(desk.app.screen, HelpScreen)
        await desk.press("escape")
        assert not isinstance(desk.app.screen, HelpScreen)
    listed = help_text()
    for action in ACTIONS:
        assert action.help in listed
        assert action.id in listed
        assert f"/{action.slash}" in listed
    assert "F12" in help_text({"app.help": "f12"})


@covers("app.palette")
async def test_the_palette_finds_actions(opened: Open) -> None:
    async with opened() as desk:
        await desk.press("ctrl+p")
        await desk.until(lambda: "CommandPalette" in type(desk.app.screen).__name__)
        await desk.press(*"Knobs")
        await desk.until(lambda: desk.app.screen.query_one(OptionList).option_count > 0)
        await desk.press("enter")
        await desk.until(lambda: desk.app.knobs.display)


@covers("app.theme")
async def test_themes(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/theme textual-light")
        assert desk.app.theme == "textual-light"
        await desk.send("/theme textual-lite")
        assert "textual-light" in desk.notice


@covers("app.interrupt")
async def test_ctrl_c_climbs_the_ladder(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 2)
    async with opened() as desk:
        await desk.send("one two")
        await desk.until(gate.reached.is_set)
        await desk.press("ctrl+c")
        await desk.idle()
        assert desk.texts[-1] == "eft"
        await desk.press(*"abc", "ctrl+a", "shift+end", "ctrl+c")
        assert desk.app.clipboard == "abc"
        await desk.press("end", "ctrl+c")
        assert "again leaves" in desk.notice
        assert desk.app.is_running
        await desk.press("ctrl+c")
        await desk.until(lambda: not desk.app.is_running)
    kept = json.loads((Path.cwd() / "home" / "typed.json").read_text())
    assert list(kept["unsent"].values()) == ["abc"]


@covers("app.quit")
async def test_quitting_keeps_the_partial_answer(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold(monkeypatch, 3)
    async with opened() as desk:
        await desk.send("hello there friend")
        await desk.until(gate.reached.is_set)
        await desk.until(lambda: desk.app.session.writing and desk.app.session.writing.writer.text)
        chat = desk.app.session.chat.id
        await desk.press("ctrl+q")
        await desk.until(lambda: not desk.app.is_running)
    async with opened(chat=chat) as desk:
        assert desk.texts == ["hello there friend", "eft answers"]


async def test_the_last_chat_is_resumed_with_its_knobs(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/alpha 0.5")
        await desk.ask("hello")
        chat = desk.app.session.chat.id
    async with opened(chat=chat) as desk:
        assert desk.texts == ["hello", "eft answers hello"]
        assert desk.app.session.recipe.alphas["assistant"] == 0.5


async def test_a_model_that_is_missing_is_told_and_another_recipe_helps(opened: Open) -> None:
    def load(recipe: Any, progress: Any) -> Any:
        if recipe.name == "demo":
            raise ModelNotFoundError("model 'x.gguf' is not at /nowhere; put it there")
        return FakeEmulator.load(recipe, progress=progress)

    async with opened(load=load) as desk:
        assert "x.gguf" in desk.notice
        assert "/recipe" in desk.notice
        await desk.ask("hello")
        assert "no models are loaded" in desk.notice
        assert desk.texts == ["hello"]
        await desk.send("/recipe demo-two")
        await desk.idle()
        await desk.send("/retry")
        await desk.idle()
        assert desk.texts == ["hello", "eft answers hello"]


async def test_loading_can_be_stopped(opened: Open) -> None:
    began = threading.Event()

    def load(recipe: Any, progress: Any) -> Any:
        began.set()
        while progress("base", 0.5):
            pass
        raise EvaluationError("loading was cancelled")

    async def stop(desk: Desk) -> None:
        await desk.until(began.is_set)
        await desk.press("ctrl+c")
        await desk.idle()
        assert "loading was cancelled" in desk.notice

    context = opened(load=load, wait=False)
    async with context as desk:
        await stop(desk)


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


async def test_a_nearly_full_context_is_told(opened: Open) -> None:
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


async def test_long_chats_are_loaded_in_pieces(opened: Open) -> None:
    async with opened(size=(80, 24)) as desk:
        session = desk.app.session
        chat = desk.app.history.create(session.recipe)
        for number in range(30):
            question = desk.app.history.ask(chat.id, f"question {number}")
            with desk.app.history.answer(question.id, session.recipe) as writer:
                writer.add(f"answer {number}")
                writer.finish("stop")
        await desk.send(f"/open {chat.id}")
        assert len(desk.views) == 20
        desk.views[0].focus()
        await desk.press("up")
        await desk.until(lambda: len(desk.views) >= 40)
        assert desk.views[-1].message.text == "answer 29"


async def test_keys_are_remapped_by_id(opened: Open) -> None:
    async with opened(config=Config(keys={"knobs.panel": "f9", "composer.send": "ctrl+t"})) as desk:
        await desk.press("f3")
        assert not desk.app.knobs.display
        await desk.press("f9")
        assert desk.app.knobs.display
        await desk.press("escape")
        await desk.press(*"hi", "ctrl+t")
        await desk.idle()
        assert desk.texts == ["hi", "eft answers hi"]


async def test_control_characters_never_reach_the_terminal(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: " a\x1b[2Jb")
    async with opened() as desk:
        await desk.ask("go")
        shown = "".join(segment.text for strip in desk.app.screen._compositor.render_strips() for segment in strip)
        assert "\x1b" not in shown
        assert "\\x1b[2J" in shown


async def test_every_action_is_covered_and_within_reach() -> None:
    assert {action.id for action in ACTIONS} == COVERED
    assert all(action.keys or action.slash for action in ACTIONS)
