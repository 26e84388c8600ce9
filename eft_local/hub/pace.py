"""How fast a download goes, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from eft_local.hub.names import size_text

if TYPE_CHECKING:
    from eft_local.hub.pull import Event


class Pace:
    """Bytes per second over the last seconds."""

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._points: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> None:
        """Remember how much is done now."""
        now = self._clock()
        self._points.append((now, done))
        while now - self._points[0][0] > self._seconds:
            self._points.popleft()

    @property
    def bytes_per_second(self) -> float | None:
        """None as long as there is nothing to compute it from."""
        (start, first), (end, last) = (self._points[0], self._points[-1]) if self._points else ((0.0, 0), (0.0, 0))
        return (last - first) / (end - start) if end > start and last > first else None

    def seconds_left(self, missing: int) -> float | None:
        """Return the seconds for the bytes that are missing, at this pace."""
        speed = self.bytes_per_second
        return missing / speed if speed else None


def progress(event: Event, pace: Pace) -> str:
    """Return on one line how far a pull is, how fast it goes, and how long it will take."""
    speed, left = pace.bytes_per_second, pace.seconds_left(event.all_size - event.all_done)
    text = f"{size_text(event.all_done)} of {size_text(event.all_size)}"
    if speed and left is not None:
        text += f", {size_text(round(speed))}/s, {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
    return text
