"""The app around the chat: help, palette, themes, keys, leaving, and models that cannot be loaded."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import json
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import OptionList

from eft_local.errors import EvaluationError, ModelNotFoundError
from eft_local.tui.actions.help import help_text
from eft_local.tui.actions.registry import ACTIONS
from eft_local.tui.config import Config
from eft_local.tui.screens.dialogs import HelpScreen
from tests.helpers.fake_emulator import FakeEmulator
from tests.helpers.tui_desk import COVERED, Desk, Open, covers, hold, home, opened  # noqa: F401

pytestmark = pytest.mark.asyncio


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


async def test_help_continues_below_its_column_on_a_narrow_screen(opened: Open) -> None:
    async with opened(size=(80, 24)) as desk:
        await desk.press("f1")
        await desk.until(lambda: "what is open" in desk.shown)
        lines = desk.shown.splitlines()
        first = next(line for line in lines if "/stop" in line)
        column = first.index("stop the answer")
        below = lines[lines.index(first) + 1]
        assert set(below[:column]) <= set(" │")
        assert below[column] != " "


@covers("app.palette")
async def test_the_palette_finds_actions(opened: Open) -> None:
    async with opened() as desk:
        await desk.press("ctrl+p")
        await desk.until(lambda: "CommandPalette" in type(desk.app.screen).__name__)
        await desk.press(*"Knobs")
        await desk.until(lambda: desk.app.screen.query_one(OptionList).option_count > 0)
        await desk.press("enter")
        await desk.until(lambda: desk.app.knobs.display)
        await desk.send("/palette")
        await desk.until(lambda: "CommandPalette" in type(desk.app.screen).__name__)


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


async def test_a_model_that_is_missing_is_reported_and_another_recipe_helps(opened: Open) -> None:
    def load(recipe: Any, only: str, progress: Any) -> Any:
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

    def load(recipe: Any, only: str, progress: Any) -> Any:
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


async def test_every_action_is_covered_and_within_reach() -> None:
    for file in Path(__file__).parent.glob("test_*.py"):
        import_module(f"{__package__}.{file.stem}")
    assert set(COVERED) == {action.id for action in ACTIONS}
    assert all(action.keys or action.slash for action in ACTIONS)
