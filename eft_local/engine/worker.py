"""The worker: a thread that owns the engine, and through which every other thread uses it."""

from __future__ import annotations

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
from eft_local.engine.step import Answer
from eft_local.engine.task import OnStep, Task, until
from eft_local.errors import UsageError
from eft_local.recipe import Recipe

Result = TypeVar("Result")
OnEnd = Callable[[int, Task], None]
"""Called with the place of a request among those that run together, and its task, when that has ended."""


class Worker:
    """Runs an engine in a thread of its own, which begins with the first request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: deque[Callable[[], None]] = deque()
        self._awake = threading.Condition()
        self._tasks: dict[Sequence, Task] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        requests: Iterable[Request],
        on_step: OnStep | None = None,
        on_end: Callable[[Task], None] | None = None,
    ) -> list[Task]:
        """Run requests, all of them from the same round on. on_step, on_end: see `Task`."""
        tasks = [Task(request, on_step, on_end) for request in requests]

        def begin() -> None:
            for task in tasks:
                task.begin(self._engine)
                if task.sequence is not None:
                    self._tasks[task.sequence] = task

        self._post(begin)
        return tasks

    def run(
        self,
        requests: Iterable[Request],
        on_end: OnEnd | None = None,
        on_step: OnStep | None = None,
    ) -> list[Task]:
        """Run requests to their ends; return them in order. on_end: called with the place and the task of each.

        Raises: what ended the first that failed, when all have ended; what `on_end` raises.
        """
        ended: SimpleQueue[Task] = SimpleQueue()
        tasks = self.submit(requests, on_step, ended.put)
        places = {task: place for place, task in enumerate(tasks)}
        try:
            for _ in tasks:
                task = ended.get()
                _ = task.answer
                if on_end:
                    on_end(places[task], task)
        except BaseException:  # Ctrl-C as well
            self.cancel(tasks)
            for task in tasks:
                task.done.wait()
            raise
        return tasks

    async def run_async(self, request: Request) -> Answer:
        """Run a request to its end, without holding up the event loop. Raises: what ended it."""
        [task] = self.submit([request])
        try:
            await until(task, task.done.is_set)
        except BaseException:
            self.cancel([task])
            raise
        return task.answer

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Stop requests soon; what they have written stays. Returns at once."""
        tasks = list(tasks)
        for task in tasks:
            task.cancelled = True
        self._engine.abort(task.sequence for task in tasks if task.sequence is not None)

    def cancel_all(self) -> None:
        """Stop all requests soon."""
        with self._awake:
            if self._thread is None:
                return  # there is nothing to stop
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
                if task.on_step is not None:
                    task.on_step(step)
            except BaseException as failure:  # of its listener, who gets it back
                error = failure
                self._engine.abort([sequence])
            else:
                if task.request.followed:
                    task.put(step)
        if error is not None or (step is not None and step.finish_reason):
            del self._tasks[sequence]
            task.end(error)
