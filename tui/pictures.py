"""The README's pictures, made by the app on the demo models: `python -m eft_local.tui.pictures docs/pictures`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from eft_local.chats import History
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.hub.references import find_recipe
from eft_local.tui.actions.handlers import HANDLERS
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.screens.compare import CompareScreen

SIZE = (104, 30)

Scene = Callable[[ChatApp, "Pilot[None]"], Awaitable[None]]


async def _ask(app: ChatApp, pilot: Pilot[None], text: str) -> None:
    app.chat.composer.focus()
    app.chat.composer.write(text)
    await pilot.press("enter")
    await _rest(app, pilot)


async def _rest(app: ChatApp, pilot: Pilot[None]) -> None:
    while app.engine.busy or app.session.writing or not app.quiet:
        await pilot.pause(0.05)


async def chat(app: ChatApp, pilot: Pilot[None]) -> None:
    """Two questions and their answers."""
    await _ask(app, pilot, "What is the capital of Peru?")
    await _ask(app, pilot, "Tell me about Japan.")


async def knobs(app: ChatApp, pilot: Pilot[None]) -> None:
    """The knobs beside an answer."""
    await _ask(app, pilot, "Tell me about Peru.")
    await pilot.press("f3", "down", "down")


async def inspector(app: ChatApp, pilot: Pilot[None]) -> None:
    """A tinted answer and the candidates of one of its tokens."""
    await _ask(app, pilot, "Tell me about Peru.")
    await pilot.press("f4")


async def compare(app: ChatApp, pilot: Pilot[None]) -> None:
    """Base, expert and mixture side by side."""
    await _ask(app, pilot, "What is the capital of Peru?")
    await pilot.press("f5")
    assert isinstance(app.screen, CompareScreen)
    while app.engine.busy:
        await pilot.pause(0.05)
    await pilot.pause(0.5)
    await pilot.press("right", "right")


SCENES: dict[str, Scene] = {"chat": chat, "knobs": knobs, "inspector": inspector, "compare": compare}


async def draw(name: str, scene: Scene, folder: Path) -> None:
    """Play a scene in a new app and save its picture."""
    with tempfile.TemporaryDirectory(prefix="eft-pictures-") as home:
        os.environ["EFT_HOME"] = home
        engine = Engine()
        with History(Path(home) / "chats.db") as history:
            app = ChatApp(Session(history, find_recipe("demo")), engine, HANDLERS, Config(sidebar=False), Typed(None))
            async with app.run_test(size=SIZE) as pilot:
                await _rest(app, pilot)
                await scene(app, pilot)
                await pilot.pause(0.5)
                (folder / f"{name}.svg").write_text(app.export_screenshot(title="eft"), "utf-8")
            engine.close()


def main() -> None:
    """Draw all pictures into a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in SCENES.items():
        asyncio.run(draw(name, scene, folder))


if __name__ == "__main__":
    main()
