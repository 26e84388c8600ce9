"""A request on its way through the engine, and what waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from eft_local.engine.engine import Engine
from eft_local.engine.request import Request
from eft_local.engine.sequence import Sequence
from eft_local.engine.step import Answer, Score, Step
from eft_local.errors import Cancelled

OnStep = Callable[[Step], None]


class Task:
    """A request on its way through the engine, and what is waiting for it."""

    def __init__(
        self, request: Request, on_step: OnStep | None = None, on_end: Callable[[Task], None] | None = None
    ) -> None:
        """on_step: called with each step by the worker's thread; what it raises ends the request.

        on_end: called at the end.
        """
        self.request = request
        self.on_step = on_step
        self.on_end = on_end
        self.steps: SimpleQueue[Step | None] = SimpleQueue()  # if they are followed; None: there are no more
        self.woken: Callable[[], None] | None = None
        self.sequence: Sequence | None = None
        self.cancelled = False
        self.error: BaseException | None = None
        self.done = threading.Event()

    def begin(self, engine: Engine) -> None:
        """Queue the request."""
        try:
            self.sequence = engine.add(self.request)
        except Exception as error:
            self.end(error)
        if self.cancelled and self.sequence is not None:
            self.sequence.cancelled = True

    def end(self, error: BaseException | None = None) -> None:
        """There will be no more steps."""
        self.error = error
        self.done.set()
        self.put(None)
        if self.on_end:
            self.on_end(self)

    def put(self, step: Step | None) -> None:
        """Pass a step on to whoever reads the steps; None: there are no more."""
        self.steps.put(step)
        if self.woken:
            self.woken()

    @property
    def answer(self) -> Answer:
        """The answer; while it is being written, as if it were stopped now. Raises: what ended the request."""
        if self.error is not None:
            raise self.error
        return (self.sequence or Sequence(self.request)).answer()

    @property
    def score(self) -> Score:
        """The score of the tokens that were given. Raises: Cancelled, and what ended the request."""
        if self.answer.finish_reason == "cancelled" or self.sequence is None:
            raise Cancelled("the scoring was stopped")
        return self.sequence.score()


async def until(task: Task, ready: Callable[[], bool]) -> None:
    """Wait for something of a task without holding up the event loop."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    called = False  # once is enough for all the steps of a round

    def wake() -> None:
        nonlocal called
        if not called:
            called = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

    task.woken = wake
    while not ready():
        await event.wait()
        event.clear()
        called = False
