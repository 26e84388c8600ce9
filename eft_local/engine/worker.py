"""The worker: a thread that owns the engine, and streams by which any thread follows its requests."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from eft_local.engine.engine import Engine, Output
from eft_local.engine.request import Request
from eft_local.engine.sequence import Sequence
from eft_local.engine.step import Answer, Score, Step
from eft_local.errors import Cancelled, UsageError
from eft_local.recipe import Recipe

Result = TypeVar("Result")
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

    def take(self, step: Step) -> None:
        """Pass a step on."""
        if self.on_step is not None:
            self.on_step(step)
        if self.request.followed:
            self.steps.put(step)
            if self.woken:
                self.woken()

    def end(self, error: BaseException | None = None) -> None:
        """There will be no more steps."""
        self.error = error
        self.done.set()
        self.steps.put(None)
        if self.woken:
            self.woken()
        if self.on_end:
            self.on_end(self)

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


class Worker:
    """Runs an engine in a thread of its own, which begins with the first request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: deque[Callable[[], None]] = deque()
        self._awake = threading.Condition()
        self._tasks: dict[Sequence, Task] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, tasks: Iterable[Task]) -> None:
        """Run requests, all of them from the same round on."""
        tasks = list(tasks)

        def begin() -> None:
            for task in tasks:
                task.begin(self._engine)
                if task.sequence is not None:
                    self._tasks[task.sequence] = task

        self._post(begin)

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Stop requests soon; what they have written stays. Returns at once."""
        tasks = list(tasks)
        for task in tasks:
            task.cancelled = True
        self._engine.abort(task.sequence for task in tasks if task.sequence is not None)

    def cancel_all(self) -> None:
        """Stop all requests soon."""
        self.cancel(tuple(self._tasks.values()))
        with suppress(UsageError):  # those as well that the thread has not begun
            self._post(lambda: self.cancel(tuple(self._tasks.values())))

    def change(self, task: Task, recipe: Recipe) -> None:
        """Let the next token of a request obey another recipe of the same models."""
        self._post(lambda: self._engine.change(task.sequence, recipe) if task.sequence is not None else None)

    def call(self, function: Callable[[Engine], Result]) -> Result:
        """Run a function between two rounds, in the worker's thread if that has begun; return what it returns.

        Raises: what it raises.
        """
        with self._awake:
            if self._thread is None and not self._closed:
                return function(self._engine)
        if threading.current_thread() is self._thread:
            return function(self._engine)
        result: Future[Result] = Future()

        def run() -> None:
            try:
                result.set_result(function(self._engine))
            except BaseException as error:
                result.set_exception(error)

        self._post(run)
        return result.result()

    def close(self) -> None:
        """End all requests and the thread."""
        with self._awake:
            if self._closed:
                return
            self._closed = True
            self._awake.notify()
        self.cancel(tuple(self._tasks.values()))
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def is_current_thread(self) -> bool:
        """Whether this is the worker's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def _post(self, action: Callable[[], None]) -> None:
        """Let the thread do something between two rounds."""
        with self._awake:
            if self._closed:
                raise UsageError("the emulator is closed; load it again")
            self._inbox.append(action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eft-local worker", daemon=True)
                self._thread.start()
            self._awake.notify()

    def _run(self) -> None:
        while True:
            with self._awake:
                while not (self._inbox or self._closed) and self._engine.idle:
                    self._awake.wait()
            while self._inbox:
                self._inbox.popleft()()
            if self._closed:
                self.cancel(tuple(self._tasks.values()))
            try:
                outputs = self._engine.step()
            except Exception as error:  # of the engine itself: nobody shall wait for ever
                outputs = self._engine.give_up(error)
            for output in outputs:
                self._deliver(output)
            if self._closed and self._engine.idle:
                return

    def _deliver(self, output: Output) -> None:
        sequence, step = output.sequence, output.step
        error: BaseException | None = output.error
        task = self._tasks.get(sequence)
        if task is None:  # its listener has failed
            return
        if step is not None:
            try:
                task.take(step)
            except BaseException as failure:  # of its listener, who gets it back
                error = failure
                self._engine.abort([sequence])
        if error is not None or (step is not None and step.finish_reason):
            del self._tasks[sequence]
            task.end(error)


class Stream:
    """One request as it is answered: iterate over its steps, with `for` or `async for`.

    Closed, or no longer referred to, it stops the request. For one consumer.
    """

    def __init__(self, worker: Worker, task: Task, owner: object = None) -> None:
        """owner: what must live as long as somebody reads."""
        self._owner = owner
        self._worker = worker
        self._task = task
        self._ended = False

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
            await until(self._task, lambda: not self._task.steps.empty())
        except asyncio.CancelledError:
            self.cancel()
            raise
        try:
            return self._given(self._task.steps.get())
        except StopIteration:
            raise StopAsyncIteration from None

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
        if not self._task.done.is_set():
            self.cancel()


async def until(task: Task, ready: Callable[[], bool]) -> None:
    """Wait for something of a task without holding up the event loop."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(event.set)

    task.woken = wake
    while not ready():
        await event.wait()
        event.clear()
