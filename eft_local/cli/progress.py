"""What a terminal shows on stderr while something takes long; where stderr is no terminal, nothing is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress

Kind = Literal["share", "count", "time", "bytes"]
"""What is written beside a bar: per cent, how many of how many, the time that has passed, or bytes and their speed."""

Show = Callable[[float, str], None]
"""Takes how much is done, and what is being done."""


@contextmanager
def bar(kind: Kind, total: float, text: str = "") -> Iterator[Show]:
    """Yield a function that moves one bar. total: what is done at the end; text: what is being done at first."""
    if not sys.stderr.isatty():
        yield lambda done, text: None
        return
    with bars(kind) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text)


@contextmanager
def bars(kind: Kind) -> Iterator[Progress]:
    """Yield Rich's progress display, for several bars; they vanish at the end."""
    from rich import progress
    from rich.console import Console

    beside: dict[Kind, tuple[progress.ProgressColumn, ...]] = {
        "share": (progress.TextColumn("{task.percentage:3.0f} %"),),
        "count": (progress.MofNCompleteColumn(), progress.TimeRemainingColumn()),
        "time": (progress.TimeElapsedColumn(),),
        "bytes": (progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn()),
    }
    text = progress.TextColumn("{task.description}", markup=False)
    line = progress.BarColumn(bar_width=24 if kind == "bytes" else 40)
    with progress.Progress(text, line, *beside[kind], console=Console(stderr=True), transient=True) as display:
        yield display


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show what is waited for, where nobody knows how long it takes."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
