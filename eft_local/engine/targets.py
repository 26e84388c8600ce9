"""What can answer, by name: the mixture, each of its roles alone, and the models under [compare]."""

from __future__ import annotations

from eft_local.engine.loading import mixed_roles
from eft_local.engine.mixture import MIXTURE
from eft_local.errors import UsageError
from eft_local.recipe import Recipe


def roles_of(recipe: Recipe, system: str) -> tuple[str, ...]:
    """Return the roles that a system evaluates: all of the formula, or one alone. Raises: UsageError."""
    mixed = tuple(mixed_roles(recipe))
    if system == MIXTURE:
        return mixed
    if system == "expert":
        return (next(iter(recipe.experts)),)
    if system in mixed or system in recipe.compare:
        return (system,)
    raise UsageError(
        f"there is no system {system!r} in recipe {recipe.name!r}; use one of {', '.join(systems_of(recipe))}"
    )


def systems_of(recipe: Recipe) -> tuple[str, ...]:
    """Return what can answer: the mixture, each of its roles alone, and the models under [compare]."""
    return (MIXTURE, *mixed_roles(recipe), "expert", *recipe.compare)
