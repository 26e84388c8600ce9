"""The engine behind the app: one thread that owns the Emulator, so that no widget ever waits for a model.

The thread appends events to a buffer and calls nothing of the app; the app drains the buffer by a timer. Only
`stop` reaches into a running evaluation.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

from eft_local.chats.writing import recorded
from eft_local.errors import Cancelled, EftError
from eft_local.prompts.render import Message
from eft_local.tui.describing import Describer

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.engine.step import Answer, Step
    from eft_local.engine.stream import Stream
    from eft_local.recipe import Recipe

Progress = Callable[[str, float], bool]
Load = Callable[["Recipe", str, Progress], "Emulator"]
"""Loads what of a recipe one target needs."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to write.

    recipe: how to mix and sample; needs the same models as the loaded one.
    only: one role alone, or "eft" for the mixture.  prefix: token ids that the answer already has; kept: their steps.
    candidates: to record per token; 0 records nothing.
    follows: whether later `Engine.change` calls act on it from the next token; answers that are compared do not.
    """

    messages: tuple[Message, ...]
    recipe: Recipe
    only: str = "eft"
    prefix: tuple[int, ...] = ()
    seed: int | None = None
    candidates: int = 0
    kept: tuple[Step, ...] = ()
    follows: bool = True
    number: int = field(default_factory=itertools.count().__next__)


@dataclass(frozen=True, slots=True)
class Loading:
    """A role's weights are being read; fraction: 0…1."""

    role: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recipe's models are ready; targets: what `Request.only` may name."""

    recipe: Recipe
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A recipe's models could not be had; nothing is loaded now."""

    recipe: Recipe
    error: Exception


@dataclass(frozen=True, slots=True)
class Started:
    """An answer begins."""

    number: int


@dataclass(frozen=True, slots=True)
class Wrote:
    """One token of an answer."""

    number: int
    step: Step


@dataclass(frozen=True, slots=True)
class Computed:
    """What each role thought of some tokens that were reported before; the first of them is the answer's `start`-th."""

    number: int
    start: int
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer is complete, or was stopped: then `answer.finish_reason` says so.

    steps: all of it, those that it began with too.  statistics: the same as the history keeps it; None if nothing was
    to be recorded, or there was nothing to compare.
    """

    number: int
    answer: Answer
    steps: Sequence[Step]
    statistics: bytes | None


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer could not be written, or not to its end."""

    number: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Warned:
    """The models run, but not as well as they might."""

    text: str


Event = Loading | Loaded | LoadFailed | Started | Wrote | Computed | Finished | Failed | Warned


def load(recipe: Recipe, only: str, progress: Progress) -> Emulator:
    """Load what a target needs of a recipe's models; llama.cpp itself is imported here, in the engine's thread.

    only: the target; one that this recipe does not have means the mixture.
    """
    from eft_local.emulator import Emulator
    from eft_local.engine.targets import targets_of

    return Emulator.load(recipe, target=only if only in targets_of(recipe) else "eft", progress=progress)


@dataclass(eq=False, slots=True)
class _Job:
    """What the thread has to do: load a recipe for a target, or write an answer."""

    work: Recipe | Request
    only: str = "eft"
    stopped: bool = False


class _Warnings(logging.Handler):
    """Makes events of what is logged as a warning: where the app runs, nobody sees stderr."""

    def __init__(self, events: deque[Event]) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.append(Warned(record.getMessage()))


class Engine:
    """Loads recipes and writes answers in the order they are requested; every method returns at once."""

    def __init__(self, load: Load = load) -> None:
        self._load = load
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: list[_Job] = []  # queued or running
        self._events: deque[Event] = deque()
        self._warnings = _Warnings(self._events)
        logging.getLogger("eft_local").addHandler(self._warnings)
        self._emulator: Emulator | None = None
        self._stream: Stream | None = None  # of the answer that is being written
        self._request: Request | None = None
        self.watched = False  # somebody looks at the statistics of what is written
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something is queued or running."""
        return bool(self._jobs)

    def load(self, recipe: Recipe, only: str = "eft") -> None:
        """Free what is loaded and load a recipe's models; those a target does without, when others are requested."""
        self._add(_Job(recipe, only))

    def write(self, request: Request) -> int:
        """Write an answer; return the number that its events carry."""
        self._add(_Job(request))
        return request.number

    @property
    def written(self) -> Answer | None:
        """The answer that is being written, as it stands: its figures so far."""
        stream = self._stream
        return stream.answer if stream is not None else None

    def change(self, recipe: Recipe) -> None:
        """Let the next token of the answer that is being written obey another recipe (of the same models)."""
        stream, request = self._stream, self._request
        if stream is not None and request is not None and request.follows:
            stream.change(recipe)

    def stop(self) -> None:
        """Stop what runs and what is queued; a partial answer is kept."""
        for job in tuple(self._jobs):
            job.stopped = True
        emulator = self._emulator
        if emulator is not None:
            emulator.cancel()

    def drain(self) -> list[Event]:
        """Return the events since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self, patience: float = 10.0) -> None:
        """Stop, free the models and end the thread; patience: seconds to wait for llama.cpp."""
        self.stop()
        self._queue.put(None)
        self._thread.join(patience)
        logging.getLogger("eft_local").removeHandler(self._warnings)

    def _add(self, job: _Job) -> None:
        self._jobs.append(job)
        self._queue.put(job)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if isinstance(job.work, Request):
                    self._write(job, job.work)
                else:
                    self._load_recipe(job, job.work)
            finally:
                self._jobs.remove(job)
        self._free()

    def _free(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            emulator.close()

    def _load_recipe(self, job: _Job, recipe: Recipe) -> None:
        try:
            self._free()
            if job.stopped:
                raise Cancelled("loading was cancelled")
            self._emulator = self._load(recipe, job.only, self._progress(job))
        except Exception as error:
            self._events.append(LoadFailed(recipe, error))
        else:
            self._events.append(Loaded(recipe, tuple(self._emulator.targets)))

    def _progress(self, job: _Job) -> Progress:
        reported: Loading | None = None

        def progress(role: str, fraction: float) -> bool:
            nonlocal reported
            news = Loading(role, round(fraction, 2))  # llama.cpp reports every tensor
            if news != reported:
                reported = news
                self._events.append(news)
            return not job.stopped

        return progress

    def _write(self, job: _Job, request: Request) -> None:
        emulator = self._emulator
        number = request.number
        describer = Describer(
            lambda start, steps: self._events.append(Computed(number, start, steps)), lambda: self.watched
        )

        def on_step(step: Step) -> None:
            self._events.append(Wrote(number, step))
            describer.add(step)
            if step.finish_reason is None and job.stopped:  # a stop that came before found nothing to stop
                assert emulator is not None
                emulator.cancel()

        try:
            if emulator is None:
                raise EftError("no models are loaded; choose a recipe with /recipe")
            if job.stopped:
                raise Cancelled("stopped before it began")
            emulator.prepare(request.only, progress=self._progress(job))
            self._events.append(Started(number))
            self._request = request
            self._stream = emulator.follow(
                request.messages,
                on_step,
                target=request.only,
                recipe=request.recipe,
                seed=request.seed,
                prefix=request.prefix,
                top=request.candidates,
            )
            answer = self._stream.wait()
            steps = (*request.kept, *describer.finish())
            self._events.append(Finished(number, answer, steps, recorded(request.candidates, steps)))
        except Exception as error:
            self._events.append(Failed(number, error))
        finally:
            self._stream = self._request = None
            describer.close()


def with_threads(recipe: Recipe, threads: int | None) -> Recipe:
    """Return the recipe with so many CPU threads for llama.cpp, unless it has an order of its own.

    threads: None leaves the choice to the engine, which also feels what the drawing of the screen takes.
    """
    return recipe if threads is None or recipe.placement.threads is not None else recipe.replace(threads=threads)
