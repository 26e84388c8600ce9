"""The plain chat and the app write the same chat: the same messages, figures and statistics, shown alike."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eft_local.emulator
from eft_local.analysis import Inspection
from eft_local.chats import History, to_json
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.cli import main
from eft_local.hub.references import demo_questions, find_recipe
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.widgets.message import AnswerView
from tests.helpers.fake_emulator import FakeEmulator
from tests.helpers.tui_desk import HANDLERS, Desk

pytestmark = pytest.mark.asyncio

RECIPE = find_recipe("demo").replace(temperature=0.0, seed=1, draft=2, max_tokens=24)
OPTIONS = ("--temperature", "0", "--seed", "1", "--draft", "2", "--max-tokens", "24")
QUESTIONS = ("What is the capital of Peru?", "Tell me about Japan.")
MEASURED = {"created", "updated", "id", "chat", "tokens_per_second", "milliseconds", "overhead_milliseconds"}
"""Keys whose values no two runs share."""

Load = Callable[..., Any]


def plain(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the chat with `eft chat --plain`."""
    monkeypatch.setenv("EFT_HOME", str(home))
    typed = "\n".join((*QUESTIONS, "/retry", "")).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--plain", "--save", "--system", "Be brief.", *OPTIONS])
    assert not ended.value.code


async def app(home: Path, act: Callable[[Desk], Any], load: Load | None, chat: str | None = None) -> None:
    """Open the app and do something in it."""
    engine = Engine(load) if load else Engine()
    try:
        with History(home / "chats" / "chats.db") as history:
            session = Session(history, RECIPE)
            session.set_system("Be brief.")
            opened = ChatApp(session, engine, HANDLERS, Config(sidebar=False), Typed(None), chat=chat)
            async with opened.run_test(size=(110, 40)) as pilot:
                desk = Desk(opened, pilot, [])
                await desk.idle()
                await act(desk)
    finally:
        engine.close()


def stored(home: Path) -> tuple[dict[str, Any], list[float]]:
    """Return all that was saved, with each answer's steps, but for times and names; and all changes."""
    changes = []
    with History(home / "chats" / "chats.db") as history:
        (chat,) = history.chats()
        table = to_json(history, chat.id)
        for message in table["messages"]:
            statistics = history.statistics(message["id"])
            steps = Inspection.loads(statistics).steps if statistics else ()
            message["steps"] = [
                [step.text, step.token, step.drafted, step.top_changed, list(step.roles)] for step in steps
            ]
            changes += [step.change for step in steps if step.change is not None]
    return without_times(table), changes


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in MEASURED}
    return [without_times(each) for each in value] if isinstance(value, list) else value


async def shown(home: Path, load: Load | None) -> list[tuple[str, str]]:
    """Return the headings and strips that the app shows, but for how fast answers were written."""
    views: list[tuple[str, str]] = []

    async def look(desk: Desk) -> None:
        await asyncio.sleep(0)
        answers = [view for view in desk.views if isinstance(view, AnswerView)]
        views.extend((re.sub(r"\d+ tokens/s", "N tokens/s", view.heading()), view.strip()) for view in answers)

    with History(home / "chats" / "chats.db") as history:
        (chat,) = history.chats()
    await app(home, look, load, chat.id)
    return views


async def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Load | None) -> None:
    async def chat(desk: Desk) -> None:
        for question in QUESTIONS:
            await desk.ask(question)
        await desk.send("/retry")
        await desk.idle()

    plain(tmp_path / "plain", monkeypatch)
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "app"))
    await app(tmp_path / "app", chat, load)
    (one, changes), (other, same_changes) = stored(tmp_path / "plain"), stored(tmp_path / "app")
    assert one == other
    assert changes == pytest.approx(same_changes, abs=0.002)
    answers = [message for message in one["messages"] if "answer" in message]
    assert len(answers) == 3
    assert all(message["answer"]["figures"]["strip"] and message["steps"] for message in answers)
    views = await shown(tmp_path / "plain", load)
    assert views == await shown(tmp_path / "app", load)
    assert all("changed" in heading and strip for heading, strip in views)


async def test_the_faces_write_the_same_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEmulator, "loaded", [], raising=False)
    monkeypatch.setattr(eft_local.emulator, "Emulator", FakeEmulator)
    await compare(tmp_path, monkeypatch, lambda recipe, only, progress: FakeEmulator.load(recipe, target=only))


@pytest.mark.skipif(
    not demo_questions().is_file(), reason="models/demo holds no models yet; train them with: make train"
)
async def test_the_faces_write_the_same_chat_with_real_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await compare(tmp_path, monkeypatch, None)
