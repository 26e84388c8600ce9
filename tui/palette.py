"""The command palette's entries, made from the registry of actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from textual.app import SystemCommand
from textual.screen import Screen

from eft_local.tui.actions import ACTIONS, Action
from eft_local.tui.compare import CompareScreen
from eft_local.tui.help import key_name
from eft_local.tui.models import ModelsScreen

if TYPE_CHECKING:
    from eft_local.tui.app import ChatApp

SCREENS: Mapping[str, type[Screen[Any]]] = {"compare": CompareScreen, "models": ModelsScreen}
"""Scopes whose actions make sense on one screen only."""


def palette(app: ChatApp, screen: Screen[object]) -> Iterator[SystemCommand]:
    """Yield what can be done on a screen; an action that needs words is put into the input."""
    for action in ACTIONS:
        if action.scope == "composer" or not isinstance(screen, SCREENS.get(action.scope, Screen)):
            continue
        keys = ", ".join(key_name(key) for key in app.config.keys.get(action.id, action.keys).split(",") if key)
        words = " · ".join(part for part in (action.help, f"/{action.slash}" if action.slash else "", keys) if part)
        yield SystemCommand(action.title, words, _chooser(app, action))


def _chooser(app: ChatApp, action: Action) -> Callable[[], None]:
    def choose() -> None:
        if action.argument and not action.argument.startswith("["):
            app.chat.composer.write(f"/{action.slash} ")
            app.chat.composer.focus()
        else:
            app.call_later(app.action_perform, action.id)

    return choose
