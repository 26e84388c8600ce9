"""Whether a recipe could be loaded, checked before anything is."""

from __future__ import annotations

from eft_local.engine.loading import compared_roles, mixed_roles
from eft_local.errors import EftError
from eft_local.placement.headers import check_headers
from eft_local.placement.survey import role_files
from eft_local.recipe import Recipe


def obstacle(recipe: Recipe) -> EftError | None:
    """Return what would keep a recipe's models from being loaded, whatever memory there is; None if nothing would.

    Files are looked for where they would be loaded from, and their headers are read.
    """
    roles = mixed_roles(recipe) | compared_roles(recipe)
    try:
        check_headers(recipe, roles, role_files(recipe, roles), combined=True)
    except EftError as error:
        return error
    return None
