"""A stream: one request as it is answered, for the thread or the event loop that made it."""

from __future__ import annotations

import asyncio

from eft_local.engine.request import Request
from eft_local.engine.step import Answer, Step
from eft_local.engine.task import OnStep, until
from eft_local.engine.worker import Worker
from eft_local.recipe import Recipe


class Stream:
    """One request as it is answered: iterate over its steps, with `for` or `async for`.

    Closed, or no longer referred to, it stops the request. For one consumer.
    """

    def __init__(self, worker: Worker, request: Request, owner: object = None, on_step: OnStep | None = None) -> None:
        """owner: what must live as long as somebody reads. on_step: see `Task`."""
        self._owner = owner
        self._worker = worker
        self._ended = True
        [self._task] = worker.submit([request], on_step)
        self._ended = False  # for `__del__`, not before it has begun

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Step:
        """Return the next step. Raises: what ended the request."""
        if self._ended:
            raise StopIteration
        try:
            step = self._task.steps.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        return self._given(step)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Step:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._task.steps.empty():
                await until(self._task, lambda: not self._task.steps.empty())
        except asyncio.CancelledError:
            self.cancel()
            raise
        try:
            return self._given(self._task.steps.get())
        except StopIteration:
            raise StopAsyncIteration from None

    async def steps(self) -> list[Step]:
        """Return the next step and all that are ready with it; none at the end. Raises: what ended the request."""
        try:
            found = [await anext(self)]
        except StopAsyncIteration:
            return []
        while not (found[-1].finish_reason or self._task.steps.empty()):
            found.append(self._given(self._task.steps.get()))
        return found

    def _given(self, step: Step | None) -> Step:
        if step is not None:
            return step
        self._ended = True
        if self._task.error is not None:
            raise self._task.error
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The answer; while it is being written, as if it were stopped now. Raises: what ended the request."""
        return self._task.answer

    def wait(self) -> Answer:
        """Return the answer when it is complete. Raises: what ended the request."""
        try:
            self._task.done.wait()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        return self.answer

    def change(self, recipe: Recipe) -> None:
        """Let the next token obey another recipe of the same models: its strengths, its sampling."""
        self._worker.change(self._task, recipe)

    def cancel(self) -> None:
        """Stop soon; what was written so far stays, and the last step says "cancelled". Returns at once."""
        self._worker.cancel([self._task])

    def close(self) -> None:
        """Stop, and wait until the request holds nothing any more."""
        self.cancel()
        if not self._worker.is_current_thread():
            self._task.done.wait()

    async def aclose(self) -> None:
        """As `close`, without holding up the event loop."""
        self.cancel()
        await until(self._task, self._task.done.is_set)

    def __del__(self) -> None:
        if not (self._ended or self._task.done.is_set()):
            self.cancel()
