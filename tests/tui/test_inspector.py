"""Looking closer: who decided each token, other candidates, and answers side by side."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from textual.widgets import Static

from eft_local.engine.step import Step
from eft_local.tui.screens.compare import Column, CompareScreen
from tests.helpers.fake_emulator import OTHER, step
from tests.helpers.tui_desk import Open, covers, home, opened, replies  # noqa: F401

if TYPE_CHECKING:
    from eft_local.engine.statistics import Evidence

pytestmark = pytest.mark.asyncio


@covers("inspector.panel", "inspector.left", "inspector.right", "inspector.next")
async def test_the_inspector_shows_who_decided(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("what is this")
        await desk.press("f4")
        panel = desk.app.chat.inspector
        assert "token 1" in str(panel.border_title)
        assert "the experts changed the first choice" in str(panel.border_title)
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


async def test_the_inspector_follows_what_becomes_known(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("what is this")
        await desk.press("f4")
        assert desk.app.engine.watched
        panel = desk.app.chat.inspector
        summary = panel.query_one("#inspector-summary", Static)
        pending = [Step(0, "some", evidence=cast("Evidence", object()))]
        panel.follow(pending, 0)
        assert "being worked out" in str(summary.content)
        assert panel.table.row_count == 0
        shown = [step(0, "some")]
        panel.follow(shown, 0)
        assert "1/1 changed" in str(summary.content)
        assert panel.table.row_count == 3
        await desk.press("down")
        panel.follow([*shown, step(1, " more")], 0)
        assert panel.table.cursor_row == 1
        await desk.press("f4")
        assert not desk.app.engine.watched


async def test_the_inspector_shows_the_branch_that_is_shown(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("first")
        await desk.send("/only base")
        await desk.send("/retry")
        await desk.idle()
        await desk.press("f4")
        inspected = desk.app.chat.inspected
        await desk.send("/previous")
        await desk.until(lambda: desk.texts[-1] == "eft answers first")
        assert desk.app.chat.inspected is desk.answer is not inspected
        assert desk.answer.tokens.display
        await desk.send("/new")
        assert desk.app.chat.inspected is None
        assert desk.app.chat.inspector.table.row_count == 0


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
        await desk.until(lambda: not desk.app.engine.busy and len(desk.emulator.requested) == 4)
        await desk.until(lambda: all(column.finished for column in screen.query("Column")))
        await desk.press("right", "right", "left", "enter")
        await desk.until(lambda: not isinstance(desk.app.screen, CompareScreen))
        assert desk.texts == ["hello", "expert answers hello"]
        assert desk.app.session.messages[-1].answer.written_by == "expert"


async def test_a_long_answer_of_a_comparison_is_read_from_its_beginning(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(monkeypatch, lambda only, messages: "\n\n".join(f"word{number}" for number in range(60)))
    async with opened(size=(80, 24)) as desk:
        await desk.ask("hello")
        await desk.press("f5")
        screen = desk.app.screen
        await desk.until(lambda: not desk.app.engine.busy and all(each.finished for each in screen.query("Column")))
        column = screen.query("Column").first(Column)
        finished, column.finished = column.finished, None
        await column.draw()
        await desk.until(lambda: "word59 " in desk.shown)
        column.finished = finished
        await column.draw()
        await desk.until(lambda: desk.shown.count("word0 ") == 3)
        await desk.press("right", "down")
        await desk.until(lambda: desk.shown.count("word0 ") == 2)
        assert desk.shown.count("1 tokens") == 3
        await desk.press("end")
        await desk.until(lambda: desk.shown.count("word59 ") == 1)


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
