"""What each role thought of an answer's tokens, worked out by a second thread while the first writes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eft_local.engine.step import Step

PACE = 0.05
"""Seconds between two looks at what was written."""

LATEST = 1.0
"""Seconds that a token waits for its statistics, unless they are on the screen: an answer is then written faster."""

AT_ONCE = 64
"""Steps that are worked on together: all of a second's at once would keep the thread that draws waiting."""

MOST_WAITING = 64 << 20
"""Bytes of evidence that may wait, then the writer waits too; half as much is reason enough to work."""


class Describer:
    """Takes the steps of one answer as they are made, and reports their statistics soon after. Finish or close it."""

    def __init__(
        self, report: Callable[[int, Sequence[Step]], None], watched: Callable[[], bool] = lambda: False
    ) -> None:
        """report: called, in the second thread, with the place of the first step and the steps with their statistics.

        watched: whether somebody looks at them, and wants them soon.
        """
        self._report = report
        self._watched = watched
        self._steps: list[Step] = []
        self._most = 1  # steps that may wait
        self._reported = 0
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="describer", daemon=True)
        self._thread.start()

    def add(self, step: Step) -> None:
        """Take the next step; waits where too much of what came before is not looked at yet."""
        self._steps.append(step)
        if step.evidence is not None:
            self._most = max(1, MOST_WAITING // step.evidence.nbytes)
            while self._waiting > self._most and self._error is None:
                time.sleep(0.001)

    def finish(self) -> Sequence[Step]:
        """Return all steps with their statistics. Raises: what went wrong with one of them."""
        self.close()
        if self._error is not None:
            raise self._error
        return self._steps

    def close(self) -> None:
        """Wait until all that was added is reported."""
        self._ended.set()
        self._thread.join()

    @property
    def _waiting(self) -> int:
        return len(self._steps) - self._reported

    def _run(self) -> None:
        ended, looked_at = False, time.monotonic()
        try:
            while not ended:
                ended = self._ended.wait(PACE)
                late = time.monotonic() - looked_at > LATEST
                if ended or late or self._watched() or self._waiting > self._most // 2:
                    looked_at = time.monotonic()
                    self._look()
        except Exception as error:
            self._error = error

    def _look(self) -> None:
        from eft_local.engine.statistics import compute

        while new := self._steps[self._reported :][:AT_ONCE]:
            found = compute(new)
            self._steps[self._reported : self._reported + len(new)] = found
            self._report(self._reported, found)
            self._reported += len(new)
