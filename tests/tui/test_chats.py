"""Saved chats: listed, searched, renamed, deleted, exported, resumed, and loaded in pieces."""

# ruff: noqa: F811 (fixtures of tui_desk come as arguments)

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import ref

import pytest
from textual.widgets import OptionList

from eft_local.chats import History, store
from eft_local.tui.screens.dialogs import TextScreen
from eft_local.tui.widgets import sidebar
from eft_local.tui.widgets.sidebar import PIECE, ChatList
from tests.helpers.tui_desk import Desk, Open, covers, hold, home, opened  # noqa: F401

pytestmark = pytest.mark.asyncio


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


async def test_a_search_stays_while_its_words_do(opened: Open) -> None:
    async with opened() as desk:
        for question in ("about kangaroos", "about koalas", "more of kangaroos"):
            await desk.ask(question)
            await desk.send("/new")
        options = desk.app.sidebar.query_one(OptionList)
        await desk.press("ctrl+s", *"kang", "enter")
        await desk.until(lambda: options.option_count == 2)
        await desk.press("enter")
        await desk.until(lambda: desk.texts[:1] == ["more of kangaroos"])
        await desk.send("/delete")
        assert options.option_count == 1


async def test_the_list_folds_away_when_the_terminal_gets_narrow(opened: Open) -> None:
    async with opened(size=(160, 50)) as desk:
        for width in (80, 160, 109, 110):
            await desk.pilot.resize_terminal(width, 24)
            await desk.pilot.pause()
            assert desk.app.sidebar.display == (width >= 110)


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
        assert desk.app.chat.composer.text == ""


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
        assert desk.emulator.requested[-1][1][0] == {"role": "system", "content": "Be brief."}
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
        assert [message["content"] for message in desk.emulator.requested[-1][1]] == ["two", "eft answers two", "three"]
        await desk.send("/drop 5")
        assert "cannot be dropped" in desk.notice


async def test_the_last_chat_is_resumed_with_its_knobs(opened: Open) -> None:
    async with opened() as desk:
        await desk.send("/alpha 0.5")
        await desk.ask("hello")
        chat = desk.app.session.chat.id
    async with opened(chat=chat) as desk:
        assert desk.texts == ["hello", "eft answers hello"]
        assert desk.app.session.recipe.alphas["assistant"] == 0.5


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


def fill(history: History) -> None:
    """Let the disk be full from now on."""
    with history._lock:
        assert history._db is not None
        pages = history._db.execute("PRAGMA page_count").fetchone()[0]
        history._db.execute(f"PRAGMA max_page_count = {pages}")


def remove(history: History) -> None:
    """Let somebody remove the file."""
    history.path.unlink()


def lock(history: History) -> None:
    """Let another program hold the file."""
    other = sqlite3.connect(history.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    HELD.append(other)


HELD: list[sqlite3.Connection] = []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    yield
    for other in HELD:
        other.close()
    HELD.clear()


FAILURES = [(fill, "the disk is full"), (remove, "moved or removed"), (lock, "in use by another program")]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("fail", "words"), FAILURES, ids=["full", "removed", "locked"])
async def test_a_chat_continues_where_the_history_fails(
    opened: Open, fail: Callable[[History], None], words: str
) -> None:
    async with opened() as desk:
        await desk.ask("one")
        fail(desk.app.history)
        await desk.ask("two " + "long " * 3000)
        assert words in desk.notice
        assert "this chat continues unsaved" in desk.notice
        assert [text[:16] for text in desk.texts] == ["one", "eft answers one", "two long long lo", "eft answers two "]
        await desk.press("ctrl+r")
        await desk.idle()
        assert "‹ 2/2 ›" in desk.answer.heading()
        await desk.ask("three")
        assert desk.emulator.requested[-1][1][0]["content"] == "one"
        assert len(desk.texts) == 6
        await desk.send("/export kept.md")
        assert "eft answers three" in Path("kept.md").read_text()
        await desk.send("/delete")
        assert "not saved" in desk.notice


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_cannot_be_saved_stays_on_the_screen(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold(monkeypatch, 3)
    async with opened() as desk:
        await desk.send("one two three")
        await desk.until(gate.reached.is_set)
        desk.app.chat.composer.write("typed meanwhile")
        remove(desk.app.history)
        gate.opened.set()
        await desk.idle()
        assert desk.texts[-1] == "eft answers one two three"
        assert "moved or removed" in desk.notice
        assert "three" in desk.shown
        assert desk.app.chat.composer.text == "typed meanwhile"
        await desk.ask("four")
        assert desk.texts[-2:] == ["four", "eft answers four"]
        assert desk.emulator.requested[-1][1][1]["content"] == "eft answers one two three"


def saved(desk: Desk, count: int) -> None:
    """Save some chats of one question and one answer."""
    history, recipe = desk.app.history, desk.app.session.recipe
    for number in range(count):
        question = history.ask(history.create(recipe).id, f"question {number}")
        with history.answer(question.id, recipe) as writer:
            writer.add(f"answer {number}")


@pytest.mark.parametrize("way", ["end", "scroll", "resize"])
async def test_older_chats_are_listed_when_the_end_is_looked_at(opened: Open, way: str) -> None:
    async with opened() as desk:
        saved(desk, 3 * PIECE - 1)
        await desk.ask("hello")
        chats = desk.app.sidebar.query_one(ChatList)
        assert chats.option_count == PIECE
        if way == "resize":
            await desk.pilot.resize_terminal(120, 4 * PIECE)
        while chats.option_count < 3 * PIECE:
            before = chats.option_count
            if way == "end":
                chats.action_last()
            else:
                chats.scroll_end(animate=False)
            await desk.until(lambda: chats.option_count > before)  # noqa: B023 (awaited here)
        await desk.pilot.pause()
        assert "question 0\n" in str(chats.options[-1].prompt)
        assert chats.option_count == 3 * PIECE


async def test_a_turn_lists_no_more_than_what_is_looked_at(opened: Open) -> None:
    async with opened() as desk:
        counts: list[tuple[int, int]] = []
        for count in (PIECE, 4 * PIECE):
            saved(desk, count)
            await desk.ask("hello")
            reads: list[str] = []
            desk.app.history._db.set_trace_callback(reads.append)
            await desk.ask("again")
            desk.app.history._db.set_trace_callback(None)
            ours = [read for read in reads if not read.startswith("--")]  # the others are FTS5's own
            counts.append((len(ours), desk.app.sidebar.query_one(ChatList).option_count))
            await desk.press("ctrl+n")
        assert counts[0] == counts[1]
        assert counts[0][1] == PIECE


async def test_the_list_is_drawn_only_when_it_changes(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as desk:
        saved(desk, 2 * PIECE)
        await desk.ask("hello")
        chats = desk.app.sidebar.query_one(ChatList)
        drawn: list[int] = []
        monkeypatch.setattr(sidebar, "_when", lambda chat: "today")  # no minute ends meanwhile
        desk.app.show_chats()
        await desk.pilot.pause()
        assert chats.vertical_scrollbar.display
        monkeypatch.setattr(chats, "render_line", drawn.append)
        monkeypatch.setattr(chats.vertical_scrollbar, "refresh", lambda *_, **__: drawn.append(-1))
        await desk.ask("again")
        assert drawn == []


async def test_what_is_taken_off_the_screen_is_forgotten(opened: Open) -> None:
    async with opened() as desk:
        await desk.ask("hello")
        drawn = [ref(view._styles_cache) for view in desk.views]
        await desk.press("ctrl+n")
        await desk.ask("again")
        gc.collect()
        assert [cache() for cache in drawn] == [None, None]


async def test_long_chats_are_not_read_again_for_every_turn(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as desk:
        await desk.ask("one")
        reads: list[str] = []
        for name in ("shown", "branch", "messages"):
            monkeypatch.setattr(History, name, lambda self, *a, name=name: reads.append(name))
        await desk.ask("two")
        await desk.press("ctrl+r")
        await desk.idle()
        assert reads == []
        assert desk.texts == ["one", "eft answers one", "two", "eft answers two"]
