"""Opening the app: config, history and engine before, closing them after."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_local import locations
from eft_local.chats import Chat, History
from eft_local.chats.opening import chat_to_continue, closing, unsaved
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.errors import HistoryError, UsageError
from eft_local.machine import interpreter
from eft_local.recipe.names import MIXTURE
from eft_local.tui import config as configuration
from eft_local.tui.actions.handlers import HANDLERS
from eft_local.tui.actions.registry import BY_ID
from eft_local.tui.app import ChatApp
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine
from eft_local.tui.terminal import guarded

if TYPE_CHECKING:
    from eft_local.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the app is opened with.

    own_recipe: `recipe` was requested, and wins over the one of a chat that is opened.
    chat: the id of a saved chat; resume: the latest one.  save: keep chats in the history.
    """

    recipe: Recipe
    own_recipe: bool = False
    target: str = MIXTURE
    system: str | None = None
    chat: str | None = None
    resume: bool = False
    save: bool = True


def run(opening: Opening, config: Config) -> int:
    """Open the app and return the exit code when the user has left it.

    Raises: UsageError for a chat or a key that does not exist; HistoryError where an old chat cannot be read.
    """
    configuration.check_keys(config, BY_ID)
    with _history(opening) as (history, chat, warning):
        engine = Engine()
        try:
            session = Session(history, opening.recipe, opening.target, config.record)
            folder = locations.chats() if opening.save else None
            typed = Typed(folder / "typed.json" if folder else None)
            if opening.save and not warning:
                typed.forget(lambda chat: is_gone(history, chat))
            app = ChatApp(
                session,
                engine,
                HANDLERS,
                config,
                typed,
                warning=warning,
                chat=chat.id if chat else None,
                own_recipe=opening.own_recipe,
            )
            session.set_system(opening.system)
            interpreter.switch_often()
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
def _history(opening: Opening) -> Iterator[tuple[History, Chat | None, str]]:
    """Yield the history, the chat that continues, and a warning where nothing can be saved."""
    with closing(History()) as history:
        try:
            history.latest()
            chat = chat_to_continue(history, opening.chat, resume=opening.resume)
        except HistoryError as error:
            if opening.chat is not None or opening.resume:
                raise
            chat, warning = None, f"{error}; chats are not saved" if opening.save else ""
        else:
            warning = ""
            if opening.save:
                yield history, chat, ""
                return
        recipe = chat.recipe.recipe() if chat and not opening.own_recipe else opening.recipe
        with unsaved(history, chat, recipe) as (memory, copy):
            yield memory, copy, warning
