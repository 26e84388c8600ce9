"""What comes through stdin: a text as a whole, or line by line."""

from __future__ import annotations

import io
import os
import queue
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path

import click

from eft_local.cli import output
from eft_local.errors import UsageError

PATIENCE = 5.0
"""Seconds without a byte after which an open stream counts as one that nobody writes to."""

MOST = 64 * 10**6
"""Bytes after which a stream counts as one without end."""

_NOTICE = 1.0  # seconds after which a wait is explained
_PIECE = 1 << 16
_MARK = "\ufeff"  # a byte order mark: editors and shells of Windows put one in front


def piped() -> str:
    """Return the text that comes through a pipe or from a file, "" if there is none.

    A program that starts this one may leave its own end of a pipe open and never write to it (ssh, services, editors,
    CI): after PATIENCE without a byte the text is taken to be absent, and stderr says so. A program in front of this
    one in a pipeline is waited for, and what has begun to come is read to its end.
    Raises: UsageError if it is no text.
    """
    if sys.stdin.isatty():
        return ""
    arrived: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
    threading.Thread(target=lambda: arrived.put(_piece()), name="stdin", daemon=True).start()
    try:
        first = arrived.get(timeout=min(_NOTICE, PATIENCE))
    except queue.Empty:
        fed = _is_fed()
        limit = "" if fed else f" for {PATIENCE:g} s (< /dev/null: there is none; -: wait until it comes)"
        output.note(f"waiting for text on stdin{limit}")
        try:
            first = arrived.get(timeout=None if fed else max(0.0, PATIENCE - _NOTICE))
        except queue.Empty:
            output.complain("no text arrived on stdin, so the question is sent without it; use - to wait for it")
            return ""
    return _text(first)


def _is_fed() -> bool:
    """Whether a program holds the other end of the pipe that is none of those that led to this one; on Linux only."""
    import psutil  # slow to import, and seldom needed

    try:
        pipe = os.fstat(sys.stdin.fileno())
    except OSError:  # a stream without a descriptor
        return False
    family = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in family:
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            for end in (process / "fd").iterdir():
                with suppress(OSError):
                    if end.lstat().st_mode & stat.S_IWUSR and os.path.samestat(end.stat(), pipe):
                        return True
    return False


def awaited(what: str) -> str:
    """Return the text on stdin, however long it takes; on a terminal, ask for it.

    what: it is, for whoever types. Raises: UsageError if it is no text.
    """
    if sys.stdin.isatty():
        click.echo(f"Type {what}, then Ctrl+D.", err=True)
    return _text(_piece())


def line(data: bytes) -> str:
    """Return a line that was read, without its end. Raises: UsageError if it is no text."""
    return _decoded(data, "this line").rstrip("\r\n")


def _text(first: bytes | OSError) -> str:
    """Return what begins with this piece, to the stream's end, without blank lines around it."""
    pieces, size, piece = [], 0, first
    while piece:
        if isinstance(piece, OSError):
            raise UsageError(f"stdin cannot be read: {piece.strerror or piece}")
        size += len(piece)
        if size > MOST:
            raise UsageError(f"stdin has more than {MOST // 10**6} MB, which no context holds; give less of the text")
        pieces.append(piece)
        piece = _piece()
    return _decoded(b"".join(pieces), "stdin").strip("\r\n").rstrip()


def _decoded(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 text (byte {error.start}); convert it first") from None
    if "\0" in text:
        raise UsageError(f"{what} is not text but binary data (byte {data.index(0)} is zero)")
    return text


def _piece() -> bytes | OSError:
    """Return the next bytes, none at the end. Not through Python's buffer: who waits there cannot be left behind."""
    try:
        return os.read(sys.stdin.fileno(), _PIECE)
    except io.UnsupportedOperation:  # a stream without a descriptor, as where Python runs inside another program
        return sys.stdin.buffer.read(_PIECE)
    except OSError as error:
        return error
