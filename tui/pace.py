"""How often an answer that is being written is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05
"""The part of its time that the thread which draws may take: the models' thread waits for it meanwhile."""

LONGEST = 0.3
"""Seconds after which is drawn in any case."""


WHILE_TYPING = 1.0
"""The same while somebody types: a key that comes during a drawing waits for its end."""

TYPING = 0.5
"""Seconds after a key in which the next one is expected."""


class Pace:
    """Spaces drawings by what they cost: on a screen that is drawn in 5 ms there are ten in a second."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        """spent: seconds that this thread has worked."""
        self._clock, self._spent = clock, spent
        self._drawn_at, self._spent_then = -LONGEST, 0.0
        self._typed_at = -TYPING

    def typed(self) -> None:
        """Hear that a key was pressed."""
        self._typed_at = self._clock()

    def due(self) -> bool:
        """Return whether to draw now; that counts as drawn."""
        now, spent = self._clock(), self._spent()
        passed = now - self._drawn_at
        longest = WHILE_TYPING if now - self._typed_at < TYPING else LONGEST
        if passed < longest and spent - self._spent_then > SHARE * passed:
            return False
        self._drawn_at, self._spent_then = now, spent
        return True
