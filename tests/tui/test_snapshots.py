"""What the app looks like: few pictures, of what changes seldom. `pytest --snapshot-update` draws them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eft_local.chats import History
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.hub.references import find_recipe
from eft_local.tui.actions.handlers import HANDLERS
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.widgets import footer
from tests.helpers.fake_emulator import FakeEmulator

Snap = Callable[..., bool]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatApp]:
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    monkeypatch.setattr(FakeEmulator, "loaded", [], raising=False)
    monkeypatch.setattr(
        FakeEmulator, "reply", staticmethod(lambda only, messages: f" {only}: **bold** and `code` of it")
    )
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=123_000_000))
    monkeypatch.setattr(footer.psutil, "Process", lambda: memory)
    engine = Engine(lambda recipe, only, progress: FakeEmulator.load(recipe))  # type: ignore[arg-type,return-value]
    with History(tmp_path / "chats.db") as history:
        session = Session(history, find_recipe("demo"))
        yield ChatApp(session, engine, HANDLERS, Config(threads=1, sidebar=False, theme="textual-dark"), Typed(None))
        engine.close()


def after(*keys: str) -> Callable[[Any], Any]:
    """Ask something, press keys, and come to rest."""

    async def play(pilot: Any) -> None:
        app = pilot.app
        app.chat.composer.cursor_blink = False
        app.chat.composer.write("What is this?")
        for key in ("enter", *keys):
            await pilot.press(key)
            while app.engine.busy or app.session.writing or not app.quiet:
                await pilot.pause(0.02)
        await pilot.pause(0.2)

    return play


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
def test_a_chat(app: ChatApp, snap_compare: Snap, size: tuple[int, int]) -> None:
    assert snap_compare(app, terminal_size=size, run_before=after())


def test_the_inspector(app: ChatApp, snap_compare: Snap) -> None:
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("f4", "right"))


def test_the_knobs(app: ChatApp, snap_compare: Snap) -> None:
    assert snap_compare(app, terminal_size=(80, 24), run_before=after("f3"))
