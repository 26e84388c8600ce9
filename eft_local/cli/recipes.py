"""`eft recipes`: what can be loaded by name, what it needs, and writing one of your own."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from eft_local import locations
from eft_local.cli import output
from eft_local.cli.new_recipe import new
from eft_local.cli.options import Command, example, json_option, read_text
from eft_local.cli.readiness import READY, readiness
from eft_local.errors import EftError
from eft_local.hub.references import DEMO_PREFIX, find_recipe, hub_names, recipe_names

if TYPE_CHECKING:
    from eft_local.recipe import Recipe
    from eft_local.recipe.about import About


@click.group(
    invoke_without_command=True,
    epilog=example("eft recipes", "eft recipes show demo > my-recipe.toml", "eft recipes new mine"),
)
@json_option
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that can be loaded by name, the bundled ones and your own, with what their models need.

    Each line says whether its models are downloaded and fit together: only headers are read.
    'eft pull NAME' downloads a recipe's models, 'eft show NAME' lists which of them are downloaded.
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = _rows()
    if as_json:
        output.write_json({"recipes": rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        state = "" if row["state"] == READY else row["state"]
        details = "; ".join(filter(None, (row["needs"], state, row["path"] if row["is_own"] else None)))
        output.write(f"{row['name']:<{width}}  {row['error'] or row['description']}\n")
        if details:
            output.write(f"{'':<{width}}  {details}\n")


@recipes.command(cls=Command, epilog=example("eft recipes show demo"))
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME (or a file) as it is written, after checking it."""
    find_recipe(name)
    output.write(read_text(recipe_names().get(name, locations.expanded(name)), "recipe"))


recipes.add_command(new)


def _rows() -> list[dict[str, Any]]:
    own = locations.recipes()
    rows: list[dict[str, Any]] = []
    for name, path in recipe_names().items():
        row: dict[str, Any] = {
            "name": name,
            "path": str(path),
            "is_own": path.parent == own,
            "description": "",
            "experts": [],
            "hub": [],
            "needs": "",
            "about": None,
            "error": None,
            "state": "",
        }
        try:
            recipe = find_recipe(name)
        except EftError as error:
            row |= {"error": str(error), "is_own": True}
        else:
            row |= {
                "description": recipe.description,
                "experts": list(recipe.experts),
                "hub": list(dict.fromkeys(map(str, hub_names(recipe).values()))),
                "needs": _requirements(recipe.about),
                "about": asdict(recipe.about),
                "state": _state(recipe),
            }
        rows.append(row)
    return rows


def _state(recipe: Recipe) -> str:
    """Return whether a recipe's models are downloaded and fit together. Those that came with eft-local are known to."""
    references = [reference for _, role in recipe.named_roles() for reference in role.references.values()]
    if all(reference.startswith(DEMO_PREFIX) for reference in references):
        return READY
    return readiness(recipe).state


def _requirements(about: About) -> str:
    """Return on one line what a recipe says of its models."""
    gated = " (gated)" if about.gated else ""
    parts = (
        f"{about.licence}{gated}" if about.licence else None,
        f"{about.download_gb:g} GB to download" if about.download_gb else None,
        f"{about.memory_gb:g} GB of memory" if about.memory_gb else None,
        {True: "run by us", False: "not run by us", None: None}[about.tested],
    )
    return ", ".join(filter(None, parts))
