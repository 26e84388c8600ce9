"""What the app's tests share: the app on a fake Emulator, and waiting for what should happen."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from textual.pilot import Pilot

from eft_local.chats import History
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.errors import HistoryError
from eft_local.hub.references import find_recipe
from eft_local.tui.actions import handlers
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.widgets.message import AnswerView, MessageView
from tests.helpers.fake_emulator import FakeEmulator

PATIENCE = float(os.environ.get("EFT_PATIENCE", "20"))
"""Seconds after which what should happen counts as not happening."""


HANDLERS = dict(handlers.HANDLERS)

COVERED: dict[str, list[str]] = {}
"""Action → the tests that would miss it."""

Test = TypeVar("Test", bound=Callable[..., Any])


def covers(*actions: str) -> Callable[[Test], Test]:
    """Say which actions a test would miss."""

    def note(test: Test) -> Test:
        for action in actions:
            COVERED.setdefault(action, []).append(f"{test.__module__.replace('.', '/')}.py::{test.__name__}")
        return test

    return note


class Gate:
    """Holds a fake answer before a word until it is opened, or the answer is cancelled."""

    def __init__(self, word: int) -> None:
        self.word = word
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, emulator: FakeEmulator, number: int) -> None:
        if number == self.word and not self.opened.is_set():
            self.reached.set()
            while not self.opened.wait(0.005) and not emulator.cancelled:
                pass


class Desk:
    """An app that runs, with short ways to use it."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any], emulators: list[FakeEmulator]) -> None:
        self.app = app
        self.pilot = pilot
        self.emulators = emulators

    @property
    def emulator(self) -> FakeEmulator:
        return self.emulators[-1]

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until something is so."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.pilot.pause(0.01)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def send(self, text: str) -> None:
        """Type a text and press Enter."""
        self.app.chat.composer.focus()
        self.app.chat.composer.write(text)
        await self.press("enter")

    async def ask(self, text: str) -> None:
        """Ask something and wait for the answer."""
        await self.send(text)
        await self.idle()

    async def idle(self) -> None:
        await self.until(lambda: not self.app.engine.busy and not self.app.session.writing and self.app.quiet)

    @property
    def notice(self) -> str:
        return self.app.chat.notice

    @property
    def shown(self) -> str:
        """What is on the screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    @property
    def texts(self) -> list[str]:
        """The shown messages' texts."""
        return [message.text for message in self.app.session.messages]

    @property
    def views(self) -> list[MessageView]:
        return self.app.chat.transcript.views

    @property
    def answer(self) -> AnswerView:
        view = self.app.chat.transcript.last_answer
        assert view is not None
        return view


@asynccontextmanager
async def desk(
    home: Path,
    emulators: list[FakeEmulator],
    *,
    size: tuple[int, int] = (120, 40),
    recipe: str = "demo",
    config: Config | None = None,
    chat: str | None = None,
    load: Callable[..., Any] | None = None,
    changes: dict[str, Any] | None = None,
    wait: bool = True,
) -> AsyncIterator[Desk]:
    """Run the app on a fake Emulator until its models are loaded."""

    def fake(recipe: Any, only: str, progress: Any) -> Any:
        return FakeEmulator.load(recipe, target=only, progress=progress)

    engine = Engine(load or fake)
    history = History(home / "chats.db")
    session = Session(history, find_recipe(recipe).replace(**(changes or {})))
    app = ChatApp(session, engine, HANDLERS, config or Config(), Typed(home / "typed.json"), chat=chat)
    try:
        async with app.run_test(size=size) as pilot:
            there = Desk(app, pilot, emulators)
            if wait:
                await there.idle()
            yield there
    finally:
        engine.close()
        with suppress(HistoryError):  # some tests let it fail
            history.close()


Open = Callable[..., AbstractAsyncContextManager[Desk]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's empty folder."""
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the app."""
    emulators: list[FakeEmulator] = []
    monkeypatch.setattr(FakeEmulator, "loaded", emulators, raising=False)
    yield partial(desk, home, emulators)
    assert all(emulator.closed for emulator in emulators)


def hold(monkeypatch: pytest.MonkeyPatch, word: int) -> Gate:
    """Hold answers before a word."""
    gate = Gate(word)
    monkeypatch.setattr(FakeEmulator, "before_word", staticmethod(gate))
    return gate


def replies(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str, list[dict[str, str]]], str]) -> None:
    """Let answers be what a function returns."""
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(reply))


def _mutate() -> None:
    """Let the action that EFT_MUTATE names do nothing: `mutate_actions.py` wants to see tests fail."""
    action = os.environ.get("EFT_MUTATE", "")
    if action in HANDLERS:
        HANDLERS[action] = lambda app, typed: None


_mutate()
