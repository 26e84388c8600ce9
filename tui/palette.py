"""The command palette's entries, made from the registry of actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from textual.app import SystemCommand
from textual.screen import Screen

from eft_local.tui.actions.help import key_name
from eft_local.tui.actions.registry import ACTIONS, Action
from eft_local.tui.screens.compare import CompareScreen
from eft_local.tui.screens.models import ModelsScreen

SCREENS: Mapping[str, type[Screen[Any]]] = {"compare": CompareScreen, "models": ModelsScreen}
"""Scopes whose actions make sense on one screen only."""


def palette(
    screen: Screen[object], remapped: Mapping[str, str], choose: Callable[[Action], None]
) -> Iterator[SystemCommand]:
    """Yield what can be done on a screen. remapped: keys by action id.  choose: called with what is chosen."""
    for action in ACTIONS:
        if action.scope == "composer" or not isinstance(screen, SCREENS.get(action.scope, Screen)):
            continue
        keys = ", ".join(key_name(key) for key in remapped.get(action.id, action.keys).split(",") if key)
        words = " · ".join(part for part in (action.help, f"/{action.slash}" if action.slash else "", keys) if part)
        yield SystemCommand(action.title, words, partial(choose, action))
