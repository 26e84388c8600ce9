"""What is measured next: every part gets its share of the time, block by block, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Part:
    """A measurement that is made of blocks, each complete in itself.

    share: of the time that there is, relative to the other parts'.
    least, most: blocks that are measured however long they take, and at all.
    measure: measures block number 0, 1, …
    """

    name: str
    share: float
    least: int
    most: int
    measure: Callable[[int], None]
    seconds: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Blocks that are measured."""
        return len(self.seconds)

    def is_due(self, left: float) -> bool:
        """Whether another block is owed, or may be expected to fit into so many seconds."""
        if self.done >= self.most:
            return False
        return self.done < self.least or sum(self.seconds) / self.done <= left

    def run(self, clock: Callable[[], float]) -> None:
        started = clock()
        self.measure(self.done)
        self.seconds.append(clock() - started)


def interleave(
    parts: Sequence[Part],
    seconds: float,
    *,
    on_block: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run blocks until no part is due: first what every part owes, then as much as fits into `seconds`.

    Blocks of different parts take turns, so that a machine that gets slower does so for all of them.
    on_block: called before each block.
    """
    started = clock()
    while due := [part for part in parts if part.is_due(seconds - (clock() - started))]:
        on_block()
        min(due, key=lambda part: (part.done >= part.least, sum(part.seconds) / part.share)).run(clock)


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return names in the order of block `number`: every two begin at the next of them, the second runs backwards."""
    start = number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order
