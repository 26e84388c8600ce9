"""The terminal belongs to the app: whatever else writes to stderr goes into a file instead of over the screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def can_show() -> bool:
    """Whether there is a terminal that the app can draw on."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


@contextmanager
def guarded(log: Path | None) -> Iterator[None]:
    """Send file descriptor 2 into a file; Python's own `sys.__stderr__`, on which Textual draws, keeps the terminal.

    llama.cpp's log goes to `logging`, but its grammar parser and its assertions write to the descriptor.
    log: None where nothing can be kept.
    """
    log = log or Path(os.devnull)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)
    before = sys.__stderr__
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(target, 2)
    os.close(target)
    with os.fdopen(terminal, "w", encoding="utf-8", errors="replace", closefd=False) as screen:
        sys.__stderr__ = screen  # type: ignore[misc]
        try:
            yield
        finally:
            sys.__stderr__ = before  # type: ignore[misc]
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
