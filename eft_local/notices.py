"""Warnings that are given once: what is so with every prompt or every load need not be said each time."""

from __future__ import annotations

import logging

log = logging.getLogger("eft_local")

_given: set[str] = set()


def notice(text: str, *values: object) -> None:
    """Warn, unless this process has given the same warning. text, values: as for `logging`."""
    message = text % values
    if message not in _given:
        _given.add(message)
        log.warning("%s", message)
