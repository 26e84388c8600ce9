"""`eft recipes`: what can be loaded by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option, read_text
from eft_local.errors import EftError
from eft_local.references import find_recipe, recipe_names


@click.group(
    invoke_without_command=True,
    epilog=example("eft recipes", "eft recipes show demo > my-recipe.toml"),
)
@json_option
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that can be loaded by name: the bundled ones and your own."""
    if ctx.invoked_subcommand is not None:
        return
    rows = _rows()
    if as_json:
        output.write_json({"recipes": rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        output.write(f"{row['name']:<{width}}  {row['error'] or row['description']}\n{'':<{width}}  {row['path']}\n")


@recipes.command(cls=Command, epilog=example("eft recipes show demo"))
@click.argument("name")
def show(name: str) -> None:
    """Print the recipe NAME (or a file) as it is written, after checking it."""
    find_recipe(name)
    output.write(read_text(recipe_names().get(name, Path(name).expanduser()), "recipe"))


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, path in recipe_names().items():
        row: dict[str, Any] = {
            "name": name,
            "path": str(path),
            "description": "",
            "experts": [],
            "error": None,
        }
        try:
            recipe = find_recipe(name)
            row |= {"description": recipe.description, "experts": list(recipe.experts)}
        except EftError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows
