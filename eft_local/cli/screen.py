"""`eft chat` on a terminal: the app."""

from __future__ import annotations

import click
from click.core import ParameterSource

from eft_local.cli.options import Session


def wanted(plain: bool) -> bool:
    """Whether the app is to be opened: on a terminal that it can draw on, unless the plain chat was requested."""
    from eft_local.tui.terminal import can_show

    return not plain and can_show()


def open_app(
    ctx: click.Context, *, only: str, system: str | None, chat: str | None, resume: bool, save: bool | None
) -> int:
    """Open the app with what the command line requests, and return the exit code.

    Raises: UsageError (config, chat), RecipeError.
    """
    from eft_local.tui import config as configuration
    from eft_local.tui.launch import Opening, run

    config = configuration.load()
    session = ctx.ensure_object(Session)
    named = ctx.get_parameter_source("recipe") is not ParameterSource.DEFAULT
    if not named:
        session.recipe_name = config.recipe
    opening = Opening(
        recipe=session.recipe(),
        own_recipe=named or bool(session.changes),
        target=only,
        system=system,
        chat=chat,
        resume=resume,
        save=save is not False,
    )
    return run(opening, config)
