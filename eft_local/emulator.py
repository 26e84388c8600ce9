"""The Emulator: a recipe's models, loaded and ready to answer. A thin face of the engine and its worker."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack, cast, overload

from eft_local.engine.cache import Cache
from eft_local.engine.engine import Engine
from eft_local.engine.loading import Library, LoadedRole, LoadProgress, exactness, mixed_roles
from eft_local.engine.models import Messages, Models, Text, is_several
from eft_local.engine.request import Options, Request
from eft_local.engine.sequence import Sequence
from eft_local.engine.step import Answer, Score
from eft_local.engine.stream import Stream
from eft_local.engine.targets import targets_of
from eft_local.engine.task import OnStep, Task
from eft_local.engine.worker import OnEnd, Worker
from eft_local.errors import UsageError
from eft_local.hub.references import find_recipe
from eft_local.machine import memory
from eft_local.placement.survey import rows_at_once
from eft_local.recipe import Recipe, checks
from eft_local.recipe.names import MIXTURE

M = TypeVar("M", bound=Messages)
T = TypeVar("T", bound=Text)
Progress = Callable[[int], None]
_BATCH_ROWS = 64
"""Rows that the answers of a batch share: beyond them drafts gain little, and each is a buffer of logits."""


class Emulator:
    """Answers as the base would if it had been tuned as the experts were.

    Any number of threads may use one: their requests are answered side by side as far as there is room, the others
    wait their turn. Close it, or use it in a `with`.
    """

    def __init__(
        self, recipe: Recipe, roles: Mapping[str, LoadedRole], library: Library | None = None, parallel: int = 1
    ) -> None:
        """roles: what the formula needs, by name, loaded; or none: then each target gets its own when it is first used.

        library, parallel: as `load`. Raises: VocabularyMismatchError, OutOfMemoryError.
        """
        self._cache = Cache(recipe.context)
        self._engine = Engine(self._cache)
        self._worker = Worker(self._engine)
        reserve = partial(_reserve, self._worker, parallel)  # no method: nothing that it refers to may refer to it
        self.models = Models(recipe, roles, library, reserve)
        self._finalizer = weakref.finalize(self, self._worker.close)  # also where nobody closes it
        if roles:
            reserve(recipe, roles)

    @classmethod
    def load(
        cls,
        recipe: Recipe | str | Path,
        *,
        target: str | Iterable[str] = MIXTURE,
        parallel: int = 1,
        progress: LoadProgress | None = None,
        library: Library | None = None,
    ) -> Emulator:
        """Load a recipe, given itself, by name or by path.

        target: who is to answer (see `targets`), one or several; roles that they do without are not loaded.
        parallel: requests that are answered side by side, each with room for `context` tokens.
        progress: called with a role's name and 0…1, by several threads; returning False cancels.
        library: of the models, to share them with other emulators; to be closed after all of these.
        Raises: RecipeError, UsageError, ModelNotFoundError, ModelFileError, UnsupportedModelError, PromptError,
            VocabularyMismatchError, OutOfMemoryError, Cancelled.
        """
        if not isinstance(recipe, Recipe):
            recipe = find_recipe(recipe)
        with ExitStack() as cleanup:
            emulator = cls(recipe, {}, library, parallel)
            cleanup.callback(emulator.close)
            emulator.prepare(*((target,) if isinstance(target, str) else target), progress=progress)
            cleanup.pop_all()
        return emulator

    def prepare(self, *targets: str, progress: LoadProgress | None = None) -> None:
        """Load what targets need and is not loaded yet; without it they do so themselves.

        progress, Raises: as `load`.
        """
        self.models.prepare(targets, progress)

    @property
    def recipe(self) -> Recipe:
        """What is loaded, and the defaults of requests. A changed one (`emulator.recipe.replace(beta=1.2)`) may be
        assigned: requests that are made from then on obey it; those that run do not change (see `Stream.change`).

        Raises: RecipeError if the change needs other models or contexts; PromptError.
        """
        return self.models.recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        self.models.adopt(recipe)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the mixture: base, antiexpert, the experts, and own antiexperts as `NAME.antiexpert`."""
        return tuple(mixed_roles(self.recipe))

    @property
    def targets(self) -> tuple[str, ...]:
        """Who can answer: the mixture ("eft"), each role alone, the models under [compare]."""
        return targets_of(self.recipe)

    @property
    def exact(self) -> str:
        """Whether answers of the mixture are the same alone and in company, with drafts and without: "yes", or
        "no, because …".
        """
        return exactness({name: self.models.roles[name] for name in self.roles if name in self.models.roles})

    @property
    def engine(self) -> Engine:
        """The engine itself, to be run step by step; then nobody else may use the emulator."""
        return self._engine

    def stream_chat(self, messages: Messages, *, prefix: SequenceOf[int] = (), **options: Unpack[Options]) -> Stream:
        """Write one answer, token by token; `for` and `async for` read it, closing it stops it.

        messages: a conversation; a bare text is one user turn. prefix: token ids that the answer already has.
        options: see `Options`.
        Raises: PromptError, UsageError, RecipeError, and what `load` raises; while reading: EvaluationError.
        """
        return Stream(self._worker, self.models.request(messages, options, prefix, followed=True), self)

    def follow(
        self, messages: Messages, on_step: OnStep, *, prefix: SequenceOf[int] = (), **options: Unpack[Options]
    ) -> Stream:
        """Write one answer and call `on_step` with each step, in the engine's thread, which waits for it meanwhile.

        Steps have evidence in place of statistics: `statistics.compute` works these out in another thread. Otherwise as
        `stream_chat`; wait for the answer by `Stream.wait`.
        """
        return self.stream(self.models.request(messages, options, prefix, record="evidence"), on_step)

    def stream_generate(self, prompt: Text, *, prefix: SequenceOf[int] = (), **options: Unpack[Options]) -> Stream:
        """Continue a raw prompt, text or token ids, token by token; otherwise as `stream_chat`."""
        return Stream(self._worker, self.models.request(prompt, options, prefix, raw=True, followed=True), self)

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        prefix: SequenceOf[int] = ...,
        on_step: OnStep | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def chat(
        self,
        messages: list[M],
        *,
        prefix: list[SequenceOf[int]] = ...,
        parallel: int = ...,
        progress: Progress | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def chat(
        self,
        messages: Messages | list[M],
        *,
        prefix: SequenceOf[int] | list[SequenceOf[int]] = (),
        parallel: int = 8,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """Answer a conversation, or many: a list of them, at least `parallel` side by side.

        Each gets what it would get alone (the same seed for all). prefix: token ids that the answer already has, one
        list per conversation. on_step: called with each step of a single answer, by the engine's thread.
        progress: called with the number of finished answers. After `cancel`, unfinished ones have the finish reason
        "cancelled". options: see `Options`. Raises: as `stream_chat`, and ContextOverflowError, EvaluationError.
        """
        return self._answers(messages, options, prefix, parallel, progress, on_step, raw=False)

    @overload
    def generate(
        self,
        prompt: Text,
        *,
        prefix: SequenceOf[int] = ...,
        on_step: OnStep | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def generate(
        self,
        prompt: list[T],
        *,
        prefix: list[SequenceOf[int]] = ...,
        parallel: int = ...,
        progress: Progress | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    def generate(
        self,
        prompt: Text | list[T],
        *,
        prefix: SequenceOf[int] | list[SequenceOf[int]] = (),
        parallel: int = 8,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """Continue a raw prompt, text that every role reads as it stands or token ids, or many; otherwise as `chat`."""
        return self._answers(prompt, options, prefix, parallel, progress, on_step, raw=True)

    async def achat(self, messages: Messages, *, prefix: SequenceOf[int] = (), **options: Unpack[Options]) -> Answer:
        """As `chat` of one conversation, without holding up the event loop."""
        return await self._worker.run_async(self.models.request(messages, options, prefix))

    async def agenerate(self, prompt: Text, *, prefix: SequenceOf[int] = (), **options: Unpack[Options]) -> Answer:
        """As `generate` of one prompt, without holding up the event loop."""
        return await self._worker.run_async(self.models.request(prompt, options, prefix, raw=True))

    @overload
    def score(
        self, prompt: Messages, continuation: str, *, target: str = ..., recipe: Recipe | None = ...
    ) -> Score: ...
    @overload
    def score(
        self, prompt: Messages, continuation: list[str], *, target: str = ..., recipe: Recipe | None = ...
    ) -> list[Score]: ...
    def score(
        self,
        prompt: Messages,
        continuation: str | list[str],
        *,
        target: str = MIXTURE,
        recipe: Recipe | None = None,
    ) -> Score | list[Score]:
        """Return how likely given continuations of a conversation are: one, or each of a list.

        They are taken verbatim, tokenised without special tokens. What all have in common is evaluated once.
        Raises: PromptError, UsageError, ContextOverflowError, EvaluationError, Cancelled.
        """
        options: Options = {"target": target, "recipe": recipe or self.recipe, "seed": 0}
        texts = continuation if isinstance(continuation, list) else [continuation]
        for text in texts:
            checks.given_text("continuation", text)
        requests = [self.models.request(prompt, options, given=text) for text in texts]
        tasks = iter(self._worker.run([request for request in requests if request.given]))
        scores = [next(tasks).score if request.given else Sequence(request).score() for request in requests]
        return scores if isinstance(continuation, list) else scores[0]

    def run(self, requests: SequenceOf[Request], *, parallel: int = 8, on_end: OnEnd | None = None) -> list[Task]:
        """Run requests of one target to their ends, answers and scores, at least `parallel` side by side.

        Returns their tasks in order. on_end: called with a request's place and its task as soon as it has ended; after
        `cancel`, that is with the finish reason "cancelled".
        Raises: ContextOverflowError, EvaluationError, and what `on_end` raises.
        """
        parallel = min(parallel, len(requests))
        if parallel > 1:
            longest = max(len(text) + request.longest for request in requests for text in request.texts.values())
            roles = {name: self.models.roles[name] for name in requests[0].target.roles}
            outputs = max(request.outputs for request in requests)
            room = int(min(longest, self.recipe.context))
            _reserve(self._worker, parallel, self.recipe, roles, room, outputs)
        return self._worker.run(requests, on_end)

    def cancel(self) -> None:
        """Stop what is running, soon, from any thread; answers keep their partial text."""
        self._worker.cancel_all()

    def forget(self) -> None:
        """Forget all prompts and answers that caches hold, so that the next ones start from nothing."""
        self._worker.call(lambda engine: engine.cache.forget())

    def close(self) -> None:
        """Stop everything, and free all contexts and models."""
        self._worker.close()
        self._cache.close()
        self.models.close()

    def stream(self, request: Request, on_step: OnStep | None = None) -> Stream:
        """Run a request of `models`; its steps are read if it is `followed`. on_step: see `follow`."""
        return Stream(self._worker, request, self, on_step)

    def _answers(
        self,
        prompt: Messages | Text | list[M] | list[T],
        options: Options,
        prefix: SequenceOf[int] | list[SequenceOf[int]],
        parallel: int,
        progress: Progress | None,
        on_step: OnStep | None,
        *,
        raw: bool,
    ) -> Answer | list[Answer]:
        if not is_several(prompt):
            request = self.models.request(cast(Text, prompt), options, cast(SequenceOf[int], prefix), raw=raw)
            return self._worker.run([request], on_step=on_step)[0].answer
        if parallel < 1:
            raise UsageError(f"parallel = {parallel}: at least 1 answer must be written at a time")
        if prefix and len(prefix) != len(prompt):
            raise UsageError(f"{len(prefix)} prefixes were given for {len(prompt)} prompts")
        prefixes = cast(list[SequenceOf[int]], prefix or [()] * len(prompt))
        parallel = min(parallel, len(prompt))
        outputs = _batch_rows(options.get("recipe") or self.recipe, parallel) if parallel > 1 else 0
        requests = [
            self.models.request(each, options, given, raw=raw, outputs=outputs)
            for each, given in zip(prompt, prefixes, strict=True)
        ]
        finished = count(1)
        tasks = self.run(
            requests, parallel=parallel, on_end=(lambda _place, _task: progress(next(finished))) if progress else None
        )
        return [task.answer for task in tasks]

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reserve(
    worker: Worker,
    parallel: int,
    recipe: Recipe,
    roles: Mapping[str, LoadedRole],
    room: int | None = None,
    outputs: int = 0,
) -> None:
    """Make room for so many requests side by side."""
    outputs = outputs or rows_at_once(recipe)
    worker.call(lambda engine: engine.cache.reserve(roles, parallel=parallel, room=room, outputs=outputs))
    memory.trim()


def _batch_rows(recipe: Recipe, parallel: int) -> int:
    """Rows of logits that each answer of a batch may need at once; "auto" gets by with less where there are many."""
    if recipe.draft == "off":
        return 1
    rows = rows_at_once(recipe)
    return rows if recipe.draft != "auto" else min(rows, max(4, _BATCH_ROWS // parallel))
