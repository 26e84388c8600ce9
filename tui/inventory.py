"""What there is to run: recipes, and the models in the Hugging Face cache that they share with other tools."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eft_local.errors import EftError
from eft_local.hub.names import HubName, size_text
from eft_local.hub.references import find_recipe, hub_names, recipe_names

if TYPE_CHECKING:
    from eft_local.hub.cache import Installed, Unfinished
    from eft_local.hub.removal import Removal
    from eft_local.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe, a model in the cache, or what a stopped download has left.

    title, details: as they are shown.  recipe: its name, if it is one.  missing: models that `pull` would get.
    models, parts: what removing it removes; those of a recipe may serve others too.
    """

    title: str
    details: str
    recipe: str | None = None
    missing: tuple[HubName, ...] = ()
    models: tuple[Installed, ...] = ()
    parts: tuple[Unfinished, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All entries, recipes first.  disk: where models are, what they take and what is free, or why there is none."""

    entries: tuple[Entry, ...]
    disk: str


def inventory() -> Inventory:
    """Read recipes and cache; does not use the network."""
    from eft_local.hub import cache

    try:
        folder = cache.default_folder()
        installed, parts = cache.installed(folder), cache.unfinished(folder)
        used = sum(model.model.size for model in installed) + sum(part.size for part in parts)
        disk = f"{size_text(used)} of models in {folder}, {size_text(_free(folder))} free"
    except EftError as error:  # a cache that cannot be found: recipes with bundled models and files are there
        installed, parts, disk = [], [], str(error)
    recipes = {name: _recipe(name, installed) for name in sorted(recipe_names())}
    users = {model.reference: [name for name, entry in recipes.items() if model in entry.models] for model in installed}
    models = [
        Entry(model.reference, _joined(size_text(model.model.size), *users[model.reference]), models=(model,))
        for model in installed
    ]
    left = [
        Entry(part.repo, f"{size_text(part.size)} of a download that is not complete", parts=(part,)) for part in parts
    ]
    return Inventory((*recipes.values(), *models, *left), disk)


def removal(entry: Entry) -> Removal:
    """Return what removing an entry's files would do. Raises: OutputError."""
    from eft_local.hub.removal import removal

    return removal(entry.models, entry.parts)


def _recipe(name: str, installed: Sequence[Installed]) -> Entry:
    from eft_local.hub import cache

    try:
        recipe = find_recipe(name)
        wanted = dict.fromkeys(hub_names(recipe).values())
        paths = {hub_name: cache.find(hub_name) for hub_name in wanted}
    except EftError as error:
        return Entry(name, str(error), recipe=name)
    missing = tuple(hub_name for hub_name, path in paths.items() if path is None)
    models = tuple(model for model in installed if model.path in paths.values())
    return Entry(name, _joined(_state(recipe, len(wanted), missing), recipe.description), name, missing, models)


def _state(recipe: Recipe, wanted: int, missing: Sequence[HubName]) -> str:
    if not missing:
        return "here" if wanted else "nothing to pull"
    size = f", about {recipe.about.download_gb:g} GB in all" if recipe.about.download_gb else ""
    return f"{len(missing)} of {wanted} models to pull{size}"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
