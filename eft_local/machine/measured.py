"""What was measured on this machine, kept in the cache: where that cannot be, it is measured again next time."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from eft_local import files, locations


def place(kind: str, *about: object) -> Path | None:
    """Return the file for one kind of measurement of something; None where nothing can be kept.

    about: all that it depends on, by `repr`.
    """
    return locations.cached(kind, f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json")


def read(path: Path | None) -> Any:
    """Return what `write` kept there; None if nothing, or nothing that can be read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes()) if path else None
    return None


def write(path: Path | None, content: Any) -> None:
    """Keep something that JSON can hold."""
    if path:
        with suppress(OSError):
            files.write(path, json.dumps(content).encode(), make_folder=True)
