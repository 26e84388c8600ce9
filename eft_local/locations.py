"""Where eft-local keeps what belongs to the user. Nothing here creates a folder.

The environment variable EFT_HOME names one folder that holds everything; without it each kind of file goes
where the platform wants it (XDG on Linux, Library on macOS, AppData on Windows). A user without a home folder (a
service, a container that runs under a bare number) has none of these places: they are None, `needed` refuses, and
whatever needs no place works.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import PlatformDirs

from eft_local.errors import UsageError, shown

_PLATFORM = PlatformDirs("eft-local", appauthor=False)

NO_HOME = "there is no home folder (HOME is not set, and the user has no entry)"
"""Why a place is None."""


def expanded(path: str | Path) -> Path:
    """Return a path with ~ replaced by the home folder; the ~ of an unknown user stays as it is written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _folder(name: str, kind: str) -> Path | None:
    """Return the folder EFT_HOME/`name`, or the platform's for this `kind`; None where there is no home folder.

    Raises: UsageError for an EFT_HOME that can be no folder.
    """
    named = os.environ.get("EFT_HOME")
    if named:
        home = expanded(named)
        if home.parts[:1] and home.parts[0].startswith("~"):
            raise UsageError(f"EFT_HOME={shown(named)}: there is no such user's home; give a whole path")
        if _is_file(home):
            raise UsageError(f"EFT_HOME={shown(named)} is not a folder; name one, or unset it")
        return home.absolute() / name
    try:
        place: Path = getattr(_PLATFORM, f"user_{kind}_path")
    except RuntimeError:
        return None
    return None if "~" in place.parts else place / name  # as older versions of platformdirs have it


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def recipes() -> Path | None:
    """The user's recipes, `NAME.toml`."""
    return _folder("recipes", "config")


def settings() -> Path | None:
    """The app's settings: `config.toml` and `presets.toml`."""
    folder = recipes()
    return folder.parent if folder else None


def models() -> Path | None:
    """GGUF files that any recipe may name."""
    return _folder("models", "data")


def chats() -> Path | None:
    """The history of chats."""
    return _folder("chats", "data")


def cache() -> Path | None:
    """What can be made again."""
    return _folder("cache", "cache")


def cached(*parts: str) -> Path | None:
    """Return a place in the cache; None where nothing can be kept, and is made again each time."""
    folder = cache()
    return folder.joinpath(*parts) if folder else None


def unkept() -> str | None:
    """Return why nothing can be kept in the cache, None where it can."""
    folder = cache()
    if folder is None:
        return NO_HOME
    there = next(place for place in (folder, *folder.parents) if os.access(place, os.F_OK))
    return None if os.access(f"{there}/.", os.W_OK | os.X_OK) else f"{folder} cannot be written to"


def needed(place: Path | None) -> Path:
    """Return a place that is to be written to. Raises: UsageError where there is none."""
    if place is None:
        raise UsageError(f"{NO_HOME}; set EFT_HOME to a folder for what eft-local keeps")
    return place
