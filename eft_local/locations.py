"""Where eft-local keeps what belongs to the user. Nothing here creates a folder.

The environment variable EFT_HOME names one folder that holds everything; without it each kind of file goes
where the platform wants it (XDG on Linux, Library on macOS, AppData on Windows).
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import PlatformDirs

_PLATFORM = PlatformDirs("eft-local", appauthor=False)


def expanded(path: str | Path) -> Path:
    """Return a path with ~ replaced by the home folder; the ~ of an unknown user stays as it is written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _folder(name: str, platform: Path) -> Path:
    home = os.environ.get("EFT_HOME")
    return (expanded(home).absolute() if home else platform) / name


def recipes() -> Path:
    """The user's recipes, `NAME.toml`."""
    return _folder("recipes", _PLATFORM.user_config_path)


def models() -> Path:
    """GGUF files that any recipe may name."""
    return _folder("models", _PLATFORM.user_data_path)


def chats() -> Path:
    """The history of chats."""
    return _folder("chats", _PLATFORM.user_data_path)


def cache() -> Path:
    """What can be made again."""
    return _folder("cache", _PLATFORM.user_cache_path)
