"""Opening the app: config, history and engine before, closing them after."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_local import locations
from eft_local.chats import History
from eft_local.errors import HistoryError, UsageError
from eft_local.tui import config as configuration
from eft_local.tui.actions import BY_ID
from eft_local.tui.app import ChatApp
from eft_local.tui.composer import Typed
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.session import Session
from eft_local.tui.terminal import guarded

if TYPE_CHECKING:
    from eft_local.recipe import Recipe


SWITCH_INTERVAL = 0.0003
"""Seconds after which the thread that draws gives way to the engine's, which needs the interpreter between two calls
of llama.cpp for some microseconds only, and after each waits that long: Python's own 5 ms would be three tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the app is opened with.

    own_recipe: `recipe` was asked for, and wins over the one of a chat that is opened.
    chat: the id of a saved chat; resume: the latest one.  save: keep chats in the history.
    """

    recipe: Recipe
    own_recipe: bool = False
    only: str = "eft"
    system: str | None = None
    chat: str | None = None
    resume: bool = False
    save: bool = True


def run(opening: Opening, config: Config) -> int:
    """Open the app and return the exit code when the user has left it.

    Raises: UsageError for a chat or a key that does not exist; HistoryError where an old chat cannot be read.
    """
    configuration.check_keys(config, BY_ID)
    with _history(opening) as (history, warning):
        chat = _chat(history, opening)
        engine = Engine()
        try:
            session = Session(history, engine, opening.recipe, opening.only, config.record)
            folder = locations.chats() if opening.save else None
            typed = Typed(folder / "typed.json" if folder else None)
            if opening.save and not warning:
                typed.forget(lambda chat: is_gone(history, chat))
            app = ChatApp(session, config, typed, warning=warning, chat=chat, own_recipe=opening.own_recipe)
            session.set_system(opening.system)
            sys.setswitchinterval(SWITCH_INTERVAL)
            _collect_seldom()
            with guarded(locations.cached("stderr.log")):
                app.run()
            return app.return_code or 0
        finally:
            engine.close()


def is_gone(history: History, chat: str) -> bool:
    """Whether a chat cannot be brought back any more."""
    try:
        history.chat(chat)
    except UsageError:
        return True
    return False


def _collect_seldom() -> None:
    """Let the garbage collector leave alone what stays, and look at the rest less often: it stops every thread."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@contextmanager
def _history(opening: Opening) -> Iterator[tuple[History, str]]:
    """Yield the history, and a warning where it is one that will be forgotten because the real one cannot be used."""
    warning = ""
    if opening.save:
        history = History()
        try:
            history.latest()
        except HistoryError as error:
            if opening.chat is not None or opening.resume:
                raise
            history.close()
            warning = f"{error}; chats are not saved"
        else:
            try:
                yield history, ""
            finally:
                history.close()
            return
    with History.unsaved() as history:
        yield history, warning


def _chat(history: History, opening: Opening) -> str | None:
    if opening.chat is not None:
        return history.chat(opening.chat).id
    if not opening.resume:
        return None
    latest = history.latest()
    if latest is None:
        raise UsageError("there is no chat to continue yet; `eft` begins one")
    return latest.id
