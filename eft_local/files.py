"""Files that appear whole or not at all: written under another name beside the old one, which they then replace."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, make_folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to, in the same folder and of this call alone; it becomes `path` unless an error is raised.

    make_folder: where there is none yet. Raises: OSError.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write(path: Path, content: bytes, *, private: bool = False, make_folder: bool = False) -> None:
    """Write a file whole or not at all.

    private: only the user may read it.  make_folder: where there is none yet. Raises: OSError.
    """
    with replacing(path, make_folder=make_folder) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor)
            file.write(content)
