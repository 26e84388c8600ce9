"""Writing: stdout is the product, stderr is the talk, files appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eft_local import files
from eft_local.analysis.format import printable
from eft_local.errors import OutputError


def prepare() -> None:
    """Let every text be written: what the terminal's encoding lacks is shown as an escape, not as a crash.

    A stream that was closed before the start (`>&-`, `<&-`) leads nowhere.
    """
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115 - for as long as the process
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write to stdout. Raises: OutputError (disk full, ...), BrokenPipeError."""
    with _as_output_error():
        sys.stdout.write(text)


def safe(text: str) -> str:
    """Return what a model wrote as it may be shown: on a terminal, control characters could do anything."""
    return printable(text) if sys.stdout.isatty() else text


def flush() -> None:
    """Send what was written on its way. Raises: OutputError, BrokenPipeError."""
    with _as_output_error():
        sys.stdout.flush()


def write_json(value: Any) -> None:
    """Write one JSON object and a newline to stdout."""
    write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    """Say a line on stderr."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def complain(text: str) -> None:
    """Say on stderr what went wrong."""
    note(f"eft: {text}")


def abandon() -> None:
    """Give up on stdout if it cannot be written, so that Python's own last flush does not fail aloud."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def save(path: Path, content: bytes, *, private: bool = False, make_folder: bool = False) -> None:
    """Write a file whole or not at all. Raises: OutputError.

    private: only the user may read it.  make_folder: where there is none yet.
    """
    try:
        files.write(path, content, private=private, make_folder=make_folder)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later, before hours of work. Raises: OutputError."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}")


@contextlib.contextmanager
def _as_output_error() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error
