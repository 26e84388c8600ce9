"""Loading a recipe's models, with progress for those who watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eft_local import locations
from eft_local.cli import output, progress
from eft_local.cli.interrupt import interruptible
from eft_local.errors import Cancelled
from eft_local.recipe.names import MIXTURE

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.recipe import Recipe


@contextmanager
def loaded(recipe: Recipe, only: str | Iterable[str] = MIXTURE) -> Iterator[Emulator]:
    """Load what these targets need of a recipe and free it at the end; Ctrl+C while it loads raises Cancelled."""
    from eft_local.emulator import Emulator

    unkept = locations.unkept()
    if unkept:
        output.note(f"what is measured here cannot be kept: {unkept}; set EFT_HOME to a folder for it")
    with interruptible() as interrupt, progress.bar("share", 1.0, "loading models") as show:

        def report(role: str, fraction: float) -> bool:
            show(fraction, f"loading {role}")
            return not interrupt.requested

        emulator = Emulator.load(recipe, target=only, progress=report)
    with emulator:
        if interrupt.requested:  # too late for the progress callback
            raise Cancelled("loading was cancelled")
        yield emulator
