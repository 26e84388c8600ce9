"""Recipes and knobs: what is turned acts from the next token."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import pytest
from textual.widgets import Input

from eft_local.tui.screens.dialogs import ChoiceScreen
from tests.helpers.tui_desk import Open, covers, hold, home, opened  # noqa: F401

pytestmark = pytest.mark.asyncio


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
async def test_every_knob_has_a_command(opened: Open) -> None:
    async with opened() as desk:
        for name, (typed, key, value) in KNOBS.items():
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
