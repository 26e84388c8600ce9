"""What a user has chosen for good: `config.toml` in the platform's config folder, and the environment over it.

theme = "textual-dark"       # EFT_THEME; any of Textual's themes
recipe = "demo"              # EFT_RECIPE; what `eft` opens with
threads = 3                  # EFT_THREADS; CPU threads for recipes that order none; without it, as many as are fastest
sidebar = true               # the saved chats are open at the start where there is room
record = true                # keep what each role thought of every token, for the inspector
editor = "vim"               # Ctrl+G; without it $VISUAL, then $EDITOR
compare = ["base", "expert", "eft"]   # the columns of /compare
[keys]                       # action id → keys, as "answer.stop" = "escape,f12"; `eft` shows ids in its help
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eft_local import locations
from eft_local.errors import UsageError
from eft_local.recipe.checks import (
    checked,
    flag,
    integer,
    optional,
    refuse_unknown,
    table_of,
    text,
    texts,
    verify,
    within,
)
from eft_local.recipe.names import COMPARED

_KEYS = table_of(text(empty=False), 'a table from action ids to keys, as "answer.stop" = "escape,f12"')

VARIABLES = {"theme": "EFT_THEME", "recipe": "EFT_RECIPE", "threads": "EFT_THREADS"}
"""Key → the environment variable that overrides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One-to-one with config.toml; see the module. Raises: UsageError naming the key."""

    theme: str | None = checked(optional(text(empty=False)), None)
    recipe: str = checked(text(empty=False), "demo")
    threads: int | None = checked(optional(integer(1)), None)
    sidebar: bool = checked(flag, True)
    record: bool = checked(flag, True)
    editor: str | None = checked(optional(text(empty=False)), None)
    compare: tuple[str, ...] = checked(texts(), COMPARED)
    keys: Mapping[str, str] = checked(_KEYS, factory=dict)

    def __post_init__(self) -> None:
        verify(self)


def path() -> Path | None:
    """The config file, which need not exist."""
    place = locations.settings()
    return place / "config.toml" if place else None


def load(file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the config file, if there is one, and the environment. Raises: UsageError naming where and what."""
    file = file or path()
    values = _table(file) if file else {}
    with within(f"{file}:"):
        refuse_unknown(values, [each.name for each in fields(Config)])
        Config(**values)
    for key, variable in VARIABLES.items():
        given = environment.get(variable, "")
        if given:
            values[key] = int(given) if key == "threads" and given.isdecimal() else given
            with within(f"{variable}:"):
                Config(**{key: values[key]})
    return Config(**values)


def check_keys(config: Config, ids: Iterable[str], file: Path | None = None) -> None:
    """Refuse keys for actions that do not exist. Raises: UsageError naming the nearest id."""
    with within(f"{file or path()}: [keys]"):
        refuse_unknown(config.keys, list(ids))


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is not valid TOML: {error}; correct it, or remove it") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
