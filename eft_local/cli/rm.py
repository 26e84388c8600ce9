"""`eft rm`: models that are no longer wanted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from eft_local.cli import output
from eft_local.cli.ls import model_entry, recipes_by_path
from eft_local.cli.options import Command, example, json_option
from eft_local.errors import ModelNotFoundError, UsageError
from eft_local.hub.names import HubName, size_text
from eft_local.hub.references import find_recipe, hub_names, names_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from eft_local.hub.cache import Installed, Unfinished


@click.command(
    cls=Command,
    epilog=example("eft rm Qwen/Qwen3-0.6B-GGUF:Q8_0", "eft rm qwen3-laptop --yes", "eft rm --unfinished"),
)
@click.argument("what", metavar="RECIPE|REF...", nargs=-1)
@click.option("--unfinished", is_flag=True, help="Unfinished downloads, by any program.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@json_option
def rm(what: tuple[str, ...], unfinished: bool, yes: bool, dry_run: bool, as_json: bool) -> int | None:
    """Delete models from the Hugging Face cache, after listing what is deleted and how much space that frees.

    Nothing else is deleted: content that other files of the cache use stays, and so do recipes.
    """
    if not what and not unfinished:
        raise UsageError("name the models to delete, or --unfinished; `eft ls` lists what there is")
    if as_json and not (yes or dry_run):
        raise UsageError("--json does not ask: add --yes, or --dry-run")
    from eft_local.hub import cache
    from eft_local.hub.removal import removal

    users = recipes_by_path()
    models = _chosen(what, cache.installed())
    begun = cache.unfinished() if unfinished else []
    planned = removal(models, begun)
    if as_json:
        rows = [model_entry(model, users[model.path]) for model in models]
        parts = [str(part.path) for part in begun]
        if not dry_run:
            planned.execute()
        output.write_json({"deleted": not dry_run, "models": rows, "unfinished": parts, "freed": planned.freed})
        return None
    if not models and not begun:
        output.note("there is nothing to delete")
        return None
    output.write("".join(_lines(models, begun, users)))
    output.write(f"{size_text(planned.freed)} {'would be' if dry_run else 'will be'} free\n")
    if dry_run:
        return None
    if not yes and not _confirmed():
        output.note("nothing was deleted")
        return 1
    planned.execute()
    return None


def _chosen(what: tuple[str, ...], models: list[Installed]) -> list[Installed]:
    """Return the models in the cache that the arguments mean. Raises: UsageError, ModelNotFoundError."""
    chosen: list[Installed] = []
    for each in what:
        chosen += _of_recipe(each, models) if names_recipe(each) else _named(each, models)
    return list(dict.fromkeys(chosen))


def _of_recipe(recipe: str, models: list[Installed]) -> list[Installed]:
    from eft_local.hub import cache

    names = hub_names(find_recipe(recipe)).values()
    paths = {path for name in names if (path := cache.find(name))}
    return [model for model in models if model.path in paths]


def _named(reference: str, models: list[Installed]) -> list[Installed]:
    by_reference = [model for model in models if model.reference == reference]
    if by_reference:
        return by_reference
    name = HubName.parse(reference)
    if name is None:
        raise UsageError(f"{reference} names neither a recipe nor a model in the cache; `eft ls` lists what there is")
    from eft_local.hub import cache

    mine = [model for model in models if model.repo == name.repo]
    path = cache.find(name) if name.label or name.file else None
    found = [model for model in mine if model.path == path]
    if found:
        return found
    there = f"; there are {', '.join(model.reference for model in mine)}" if mine else "; `eft ls` lists what there is"
    raise ModelNotFoundError(f"{reference} is no model in the cache{there}")


def _lines(models: list[Installed], begun: list[Unfinished], users: dict[Path, list[str]]) -> list[str]:
    lines = []
    for model in models:
        used = f", used by {', '.join(users[model.path])}" if users[model.path] else ""
        lines.append(f"{model.reference} ({size_text(model.model.size)}{used})\n")
        lines += [f"  {path}\n" for path in model.paths]
    return lines + [f"{part.repo}, unfinished ({size_text(part.size)})\n  {part.path}\n" for part in begun]


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: add --yes to delete, or --dry-run to look")
    return click.confirm("Delete this?", err=True)
