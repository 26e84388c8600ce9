"""Looking closer: who decided each token, other candidates, and answers side by side."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import pytest
from fake_emulator import OTHER
from tui_desk import Open, covers, home, opened, replies  # noqa: F401

from eft_local.tui.compare import CompareScreen

pytestmark = pytest.mark.asyncio


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
        await desk.press("left")
        assert "token 1" in str(panel.border_title)
        await desk.press("n")
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
        await desk.until(lambda: all(column.finished for column in screen.query("Column")))
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
        await desk.until(lambda: all(column.finished for column in desk.app.screen.query("Column")))
        await desk.press("escape")
        assert not isinstance(desk.app.screen, CompareScreen)
        await desk.send("/compare nobody")
        assert "there is no such role" in desk.notice


async def test_the_chosen_token_is_in_sight(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, lambda only, messages: " ".join(f"word{number}" for number in range(400)))
    async with opened(size=(80, 24)) as desk:
        await desk.ask("a long one")
        assert "word199" in desk.shown
        await desk.press("f4")
        await desk.until(lambda: "word0 word1" in desk.shown)
        assert "word199" not in desk.shown
