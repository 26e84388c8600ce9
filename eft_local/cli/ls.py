"""`eft ls`: the models that were pulled."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option
from eft_local.hub.names import size_text

if TYPE_CHECKING:
    from pathlib import Path

    from eft_local.hub.cache import Installed, Unfinished


@click.command(cls=Command, epilog=example("eft ls", "eft ls --json"))
@json_option
def ls(as_json: bool) -> None:
    """List the GGUF models in the Hugging Face cache: name, size, and the recipes that use them.

    The cache is shared: models that other programs downloaded are listed too. Unfinished downloads are
    listed with their size so far; 'eft pull' continues them, 'eft rm --unfinished' deletes them.
    """
    from eft_local.hub import cache

    folder = cache.default_folder()
    models, begun = cache.installed(folder), cache.unfinished(folder)
    users = recipes_by_path()
    if as_json:
        output.write_json(
            {
                "cache": str(folder),
                "models": [model_entry(model, users[model.path]) for model in models],
                "unfinished": [{"repo": each.repo, "path": str(each.path), "size": each.size} for each in begun],
            }
        )
        return
    if not models and not begun:
        output.note(f"no models in {folder} yet; `eft recipes` lists recipes to pull")
    output.write("".join(_lines(models, users)) + "".join(map(_unfinished_line, begun)))


def _lines(models: list[Installed], users: dict[Path, list[str]]) -> list[str]:
    width = max((len(model.reference) for model in models), default=0)
    return [
        f"{model.reference:<{width}}  {size_text(model.model.size):>8}  {', '.join(users[model.path])}".rstrip() + "\n"
        for model in models
    ]


def _unfinished_line(part: Unfinished) -> str:
    return f"{part.repo}: {size_text(part.size)} of a download that is not complete\n"


def model_entry(model: Installed, recipes: list[str]) -> dict[str, Any]:
    """Return a model's row for --json."""
    return {
        "reference": model.reference,
        "size": model.model.size,
        "files": list(model.model.files),
        "path": str(model.path),
        "revisions": list(model.revisions),
        "recipes": recipes,
    }


def recipes_by_path() -> dict[Path, list[str]]:
    """Return which recipes use a file in the cache. One that cannot be read uses none."""
    from eft_local.errors import EftError
    from eft_local.hub import cache
    from eft_local.hub.references import find_recipe, hub_names, recipe_names

    users: dict[Path, list[str]] = defaultdict(list)
    for recipe in recipe_names():
        try:
            names = set(hub_names(find_recipe(recipe)).values())
            paths = {path for name in names if (path := cache.find(name))}
        except EftError:
            continue
        for path in paths:
            users[path].append(recipe)
    return users
