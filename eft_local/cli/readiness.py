"""Whether recipes can be loaded: what `eft recipes`, `show` and `doctor` say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_local.errors import EftError
from eft_local.hub.references import hub_names, resolve_model

if TYPE_CHECKING:
    from eft_local.recipe import Recipe

READY, NOT_DOWNLOADED = "ready", "not downloaded"


@dataclass(frozen=True, slots=True)
class Readiness:
    """problem: why the models cannot be loaded, None if they can.  pullable: whether it is that they must be pulled."""

    problem: str | None = None
    pullable: bool = False

    @property
    def state(self) -> str:
        """The same in a few words; a problem that pulling does not solve in its own."""
        return NOT_DOWNLOADED if self.pullable else self.problem or READY


def readiness(recipe: Recipe) -> Readiness:
    """Return whether a recipe's models are downloaded and fit together, by their headers; the network is not used."""
    from eft_local.hub import cache

    try:
        missing = any(cache.find(name) is None for name in hub_names(recipe).values())
    except EftError as error:  # a name that means several models
        return Readiness(str(error))
    obstacle = _missing_file(recipe) if missing else _obstacle(recipe)
    return Readiness() if obstacle is None else Readiness(str(obstacle), pullable=missing)


def _obstacle(recipe: Recipe) -> EftError | None:
    try:
        from eft_local.engine.readiness import obstacle
    except (ImportError, OSError, RuntimeError):  # no llama.cpp: doctor reports it
        return _missing_file(recipe)
    return obstacle(recipe)


def _missing_file(recipe: Recipe) -> EftError | None:
    try:
        for _, role in recipe.named_roles():
            for reference in role.references.values():
                resolve_model(reference, recipe.folder)
    except EftError as error:
        return error
    return None
