"""Presets: knobs that were kept under a name, per recipe, in `presets.toml` beside the config."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from eft_local import files, locations
from eft_local.chats.knobs import KNOBS
from eft_local.errors import OutputError, UsageError, nearest

if TYPE_CHECKING:
    from eft_local.recipe import Recipe


class Presets:
    """The presets of all recipes, read when they are needed and written whole."""

    def __init__(self, file: Path | None = None) -> None:
        folder = locations.settings()
        self.file = file or (folder / "presets.toml" if folder else None)

    def of(self, recipe: Recipe) -> Mapping[str, Mapping[str, Any]]:
        """Return a recipe's presets by name. Raises: UsageError if the file cannot be read."""
        table = self._read().get(recipe.name, {})
        return table if isinstance(table, dict) else {}

    def load(self, recipe: Recipe, name: str) -> Recipe:
        """Return the recipe with a preset's knobs. Raises: UsageError."""
        presets = self.of(recipe)
        if name not in presets:
            there = f'the nearest one is "{nearest(name, presets)}"' if presets else "/save-preset NAME makes one"
            raise UsageError(f"recipe {recipe.name} has no preset {name!r}; {there}")
        knobs = dict(presets[name])
        for knob in KNOBS:  # TOML has no None: what is absent was off
            if knob.optional:
                knobs.setdefault(knob.key, None)
        return recipe.replace(**knobs)

    def save(self, recipe: Recipe, name: str) -> None:
        """Keep a recipe's knobs. Raises: UsageError, OutputError."""
        if not name:
            raise UsageError("/save-preset: needs a name")
        table = self._read()
        table.setdefault(recipe.name, {})[name] = knobs_of(recipe)
        self._write(table)

    def forget(self, recipe: Recipe, name: str) -> None:
        """Remove a preset. Raises: UsageError, OutputError."""
        self.load(recipe, name)
        table = self._read()
        del table[recipe.name][name]
        self._write(table)

    def _read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.file.read_text("utf-8-sig")) if self.file else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.file}: cannot be read ({error}); correct it, or remove it") from None

    def _write(self, table: Mapping[str, Any]) -> None:
        file = locations.needed(self.file)
        try:
            files.write(file, tomli_w.dumps(table).encode(), make_folder=True)
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}") from None


def knobs_of(recipe: Recipe) -> dict[str, Any]:
    """Return all knobs of a recipe as TOML holds them."""
    values = {knob.key: knob.value(recipe) for knob in KNOBS} | {"alpha": recipe.alphas}
    return {key: value for key, value in values.items() if value is not None}
