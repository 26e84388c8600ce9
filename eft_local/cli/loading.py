"""Loading a recipe's models, with progress for those who watch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eft_local import locations
from eft_local.cli import output
from eft_local.cli.interrupt import Interrupt, interruptible
from eft_local.errors import Cancelled

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.recipe import Recipe


@contextmanager
def loaded(recipe: Recipe, only: str | Iterable[str] = "eft") -> Iterator[Emulator]:
    """Load what these systems need of a recipe and free it at the end; Ctrl+C while it loads raises Cancelled."""
    from eft_local.emulator import Emulator

    unkept = locations.unkept()
    if unkept:
        output.note(f"what is measured here cannot be kept: {unkept}; set EFT_HOME to a folder for it")
    with interruptible() as interrupt, _progress(interrupt) as progress:
        emulator = Emulator.load(recipe, target=only, progress=progress)
    with emulator:
        if interrupt.asked:  # too late for the progress callback
            raise Cancelled("loading was cancelled")
        yield emulator


@contextmanager
def _progress(interrupt: Interrupt) -> Iterator[Callable[[str, float], bool]]:
    """Yield a progress callback that shows a bar on a terminal, and that stops the load after Ctrl+C."""
    if not sys.stderr.isatty():
        yield lambda role, fraction: not interrupt.asked
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("loading {task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("models", total=1.0)

        def report(role: str, fraction: float) -> bool:
            bar.update(task, description=role, completed=fraction)
            return not interrupt.asked

        yield report
