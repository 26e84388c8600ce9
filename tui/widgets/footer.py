"""The last line of the screen: what is happening, how fast, who takes the time, and how full the contexts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
from textual.widgets import Static

from eft_local.analysis.format import share, speed

if TYPE_CHECKING:
    from eft_local.engine.step import Answer
    from eft_local.machine.cores import CoreUse


@dataclass(frozen=True, slots=True)
class Figures:
    """What the footer shows; None is left out.

    drafted: share of tokens that a draft had proposed.  shares: per role, its part of the time in llama.cpp.
    used: per role, tokens in its context.  cores: what other programs use of them; shown on a busy machine.
    """

    state: str = ""
    tokens_per_second: float | None = None
    drafted: float | None = None
    shares: Mapping[str, float] | None = None
    used: Mapping[str, int] | None = None
    context: int = 0
    cores: CoreUse | None = None


def figures_of(answer: Answer, drafted: float | None, used: Mapping[str, int], context: int) -> Figures:
    """Return the figures of an answer. drafted: the share of tokens that a draft had proposed."""
    times = {name: timing.prompt_ms + timing.generation_ms for name, timing in answer.timings.items()}
    total = sum(times.values())
    shares = {name: time / total for name, time in times.items()} if total else None
    return Figures("", answer.tokens_per_second, drafted, shares, used, context, answer.cores)


class Footer(Static):
    """Shows `Figures` and the memory of this process, as many of them as there is room for."""

    def __init__(self) -> None:
        super().__init__("", id="footer", markup=False)
        self._process = psutil.Process()
        self.figures = Figures()

    def show(self, figures: Figures) -> None:
        """Show other figures."""
        self.figures = figures
        self._draw()

    def say(self, state: str) -> None:
        """Say what is happening; "" is nothing."""
        self.show(replace(self.figures, state=state))

    def on_resize(self) -> None:
        """Use the room there is."""
        self._draw()

    def _draw(self) -> None:
        self.update(line(self.figures, self._process.memory_info().rss, self.size.width or 80), layout=False)


def line(figures: Figures, memory: int, width: int) -> str:
    """Return the figures as one line of at most `width` characters; what matters least goes first."""
    parts = [figures.state or "ready"]
    if figures.tokens_per_second:
        parts.append(speed(figures.tokens_per_second))
    if figures.cores and figures.cores.busy:
        parts.append(f"busy: other programs use {figures.cores}")
    if figures.used:
        parts.append(_context(figures.used, figures.context, brief=False))
    if figures.drafted is not None:
        parts.append(f"drafted {share(figures.drafted)}")
    if figures.shares:
        parts.append("time " + " ".join(f"{name} {share(part)}" for name, part in figures.shares.items()))
    parts.append(f"RAM {memory / 1e6:.0f} MB")
    if figures.used and len(" │ ".join(parts)) > width:
        parts[parts.index(_context(figures.used, figures.context, brief=False))] = _context(
            figures.used, figures.context, brief=True
        )
    shown = parts[0]
    for part in parts[1:]:
        if len(shown) + 3 + len(part) <= width:
            shown += f" │ {part}"
    return shown[:width]


def _context(used: Mapping[str, int], context: int, *, brief: bool) -> str:
    if brief:
        return f"context {max(used.values())}/{context}"
    return "context " + " ".join(f"{name} {tokens}" for name, tokens in used.items()) + f" of {context}"
