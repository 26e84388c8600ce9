"""What each role thought of an answer's tokens, worked out by a second thread while the first writes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eft_local.emulator import Step

PACE = 0.05
"""Seconds between two looks at what was written: many tokens at once cost far less than one by one."""

MOST_WAITING = 64 << 20
"""Bytes of evidence that may wait; then the writer waits too."""


class Describer:
    """Takes the steps of one answer as they are made, and tells their facts soon after. Finish or close it."""

    def __init__(self, tell: Callable[[int, Sequence[Step]], None]) -> None:
        """tell: called, in the second thread, with the place of the first step and the steps with their facts."""
        self._tell = tell
        self._steps: list[Step] = []
        self._told = 0
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="describer", daemon=True)
        self._thread.start()

    def add(self, step: Step) -> None:
        """Take the next step; waits where too much of what came before is not looked at yet."""
        self._steps.append(step)
        if step.evidence is not None:
            most = max(1, MOST_WAITING // step.evidence.rows.nbytes)
            while len(self._steps) - self._told > most and self._error is None:
                time.sleep(0.001)

    def finish(self) -> Sequence[Step]:
        """Return all steps with their facts. Raises: what went wrong with one of them."""
        self.close()
        if self._error is not None:
            raise self._error
        return self._steps

    def close(self) -> None:
        """Wait until all that was added is told."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        from eft_local.emulator.facts import known

        ended = False
        try:
            while not ended:
                ended = self._ended.wait(PACE)
                new = self._steps[self._told :]
                if new:
                    found = known(new)
                    self._steps[self._told : self._told + len(new)] = found
                    self._tell(self._told, found)
                    self._told += len(new)
        except Exception as error:
            self._error = error
