"""How the interpreter's threads take turns."""

from __future__ import annotations

import sys

_SECONDS = 0.0003


def switch_often() -> None:
    """Let a thread that draws or serves give way to the engine's soon.

    That one needs the interpreter between two calls of llama.cpp for some microseconds only, and waits that long after
    each: Python's own 5 ms are three tokens of small models.
    """
    sys.setswitchinterval(_SECONDS)
