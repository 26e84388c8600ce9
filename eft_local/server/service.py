"""What is served: the recipes, their targets by name, and the answers that are being written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

from eft_local.backends.base import Vocabulary
from eft_local.emulator import Emulator
from eft_local.engine.loading import Library, LoadedRole, LoadProgress
from eft_local.engine.models import Messages, Text
from eft_local.engine.request import Options, Request
from eft_local.engine.sequence import Sequence as Unbegun
from eft_local.engine.step import Answer, Step
from eft_local.engine.stream import Stream
from eft_local.engine.targets import roles_of
from eft_local.errors import ContextOverflowError, UsageError, nearest, shown
from eft_local.recipe import Recipe
from eft_local.recipe.names import MIXTURE
from eft_local.server.admission import Admission, Ticket
from eft_local.server.errors import ApiError
from eft_local.server.metrics import Metrics
from eft_local.server.settings import Settings

log = logging.getLogger("eft_local.server")

_LONGEST_TOKEN = 64
"""Characters that no token of a prompt has on average: longer prompts are refused before they are tokenised."""


@dataclass(frozen=True, slots=True)
class Model:
    """Who answers to a name: a target of a recipe that is served."""

    name: str
    target: str
    emulator: Emulator
    admission: Admission

    @property
    def recipe(self) -> Recipe:
        return self.emulator.recipe

    @property
    def names(self) -> tuple[str, ...]:
        """The roles that are evaluated."""
        return roles_of(self.recipe, self.target)

    @property
    def roles(self) -> Mapping[str, LoadedRole]:
        """The roles that are evaluated; those that are not loaded yet are loaded."""
        self.emulator.prepare(self.target)
        return {name: self.emulator.models.roles[name] for name in self.names}

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the answers."""
        self.emulator.prepare(self.target)
        return self.emulator.models.target(self.target).vocabulary

    def request(self, prompt: Messages | Text, recipe: Recipe, **more: Any) -> Request:
        """Return a request that the engine can run. It blocks: for a thread. more: see `Models.request`.

        Raises: what that raises; UsageError for a grammar or bias that cannot be used.
        """
        check_length(prompt, recipe.context)
        options: Options = {"target": self.target, "recipe": recipe}
        for name in ("seed", "max_tokens", "statistics", "top"):
            if name in more:
                options[name] = more.pop(name)
        # One row of logits at least: contexts are as large as they were made, whatever a client wants.
        request = self.emulator.models.request(prompt, options, followed=True, outputs=1, **more)
        sampling = request.recipe.sampling
        if request.given is None and (sampling.grammar or sampling.json_schema or sampling.logit_bias):
            request.target.sampler(sampling).close()  # what is wrong with it is found here, and not by the engine
        return request


@dataclass(slots=True, eq=False)
class Writing:
    """One answer: it waits for its turn, and is then read step by step. Close it.

    given: the prompt as tokens to score before, if it is to be echoed.  writes: whether anything follows.
    ended: why it ended.  drafted: tokens that a draft proposed.  read_steps: how many were read.
    """

    model: Model
    request: Request
    deadline: float
    metrics: Metrics
    ticket: Ticket
    given: Request | None = None
    writes: bool = True
    ended: str = ""
    drafted: int = 0
    read_steps: int = 0
    stream: Stream | None = None
    expired: bool = False
    timer: asyncio.TimerHandle | None = None
    begun_at: float = field(default_factory=time.monotonic)

    async def score(self) -> list[Step]:
        """Return a step for each token of `given`. Raises: as `read`, and ApiError at the deadline."""
        assert self.given is not None
        await self._turn()
        stream = self.model.emulator.stream(self.given)
        found: list[Step] = []
        try:
            async with asyncio.timeout_at(self.deadline):
                while not (found and found[-1].finish_reason):
                    found += await stream.steps()
        except TimeoutError:
            raise ApiError(400, "the prompt was not scored within the server's deadline; shorten it") from None
        return found

    async def read(self) -> list[Step]:
        """Return the next steps of the answer, at least one; none at the end.

        Raises: ApiError where the deadline passes in the queue; what ended the request.
        """
        if not self.writes and not self.ended:
            self.ended = "length"
            self.ticket.give_back()
        if self.ended:
            return []
        if self.stream is None:
            await self._turn()
            self.stream = self.model.emulator.stream(self.request)
            self.timer = asyncio.get_running_loop().call_at(self.deadline, self._expire)
        steps = await self.stream.steps()
        if not self.read_steps:
            self.metrics.first_token.observe(time.monotonic() - self.begun_at)
        self.read_steps += len(steps)
        self.drafted += sum(step.drafted for step in steps)
        if reason := steps[-1].finish_reason:
            self.ended = "deadline" if self.expired and reason == "cancelled" else reason
            self.ticket.give_back()  # others of the same request may wait for it
            self.metrics.count(self.model.name, self.answer, self.drafted)
        return steps

    def tokens(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Return those of the steps that were just read whose token is part of the answer: an end token is none."""
        if steps and steps[-1].finish_reason and len(self.answer.tokens) < self.read_steps:
            return steps[:-1]
        return steps

    def _expire(self) -> None:
        """The deadline has come: what is written is the answer."""
        self.expired = True
        if self.stream is not None:
            self.stream.cancel()

    async def _turn(self) -> None:
        """Wait for a place. Raises: ApiError where the deadline passes first."""
        try:
            async with asyncio.timeout_at(self.deadline):
                await self.ticket.granted.wait()
        except TimeoutError:
            raise ApiError(429, "the server was busy until the request's deadline; try again", retry_after=5) from None

    @property
    def answer(self) -> Answer:
        """The answer, as if it were stopped now."""
        return self.stream.answer if self.stream else Unbegun(self.request).answer()

    def close(self) -> None:
        """Stop it if it is still being written, and let others have its place."""
        if self.stream is not None and not self.ended:
            self.stream.cancel()
        if self.timer is not None:
            self.timer.cancel()
        self.ended = self.ended or "cancelled"
        self.ticket.give_back()


class Service:
    """The recipes of a server."""

    def __init__(self, recipes: Sequence[Recipe], settings: Settings) -> None:
        """Raises: UsageError where two recipes have one name."""
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names):
            raise UsageError(f"two of the recipes are called {max(names, key=names.count)!r}; rename one")
        self.settings = settings
        self.started = int(time.time())
        self.metrics = Metrics(self)
        self.models: dict[str, Model] = {}
        self._recipes = recipes
        self._library = Library()
        self._cleanup = ExitStack()
        self.ready = False

    def load(self, progress: LoadProgress | None = None) -> None:
        """Load all recipes; files that several name are loaded once. Raises: as `Emulator.load`."""
        self._cleanup.callback(self._library.close)
        for recipe in self._recipes:
            emulator = Emulator.load(recipe, parallel=self.settings.parallel, progress=progress, library=self._library)
            self._cleanup.callback(emulator.close)
            admission = Admission(self.settings.parallel, self.settings.queue)
            for target in emulator.targets:
                name = recipe.name if target == MIXTURE else f"{recipe.name}:{target}"
                self.models[name] = Model(name, target, emulator, admission)
        self.ready = True

    def close(self) -> None:
        """Stop everything, and free all models."""
        self.ready = False
        self._cleanup.close()

    def check_ready(self) -> None:
        """Raise ApiError while models are being loaded."""
        if not self.ready:
            raise ApiError(503, "the models are being loaded; try again", retry_after=1)

    def model(self, name: str | None) -> Model:
        """Return the model of this name, or the first. Raises: ApiError 404, with the nearest name."""
        self.check_ready()
        if name is None:
            return next(iter(self.models.values()))
        plain = name.removesuffix(":latest")  # as Ollama's clients call what has no tag
        if plain not in self.models:
            raise ApiError(
                404,
                f"there is no model {shown(name)}; the nearest is {nearest(name, self.models)!r} "
                f"(GET /v1/models lists them all)",
                code="model_not_found",
                param="model",
            )
        return self.models[plain]

    def limit(self, max_tokens: int | None, recipe: Recipe) -> int | None:
        """Return how many tokens an answer may get. Raises: UsageError if more are wanted than the server allows."""
        most = self.settings.max_tokens
        if most is None:
            return max_tokens
        if max_tokens is not None and max_tokens > most:
            raise UsageError(f"max_tokens = {max_tokens}: this server writes at most {most} tokens")
        return max_tokens or min(most, recipe.sampling.max_tokens or most)


def check_length(prompt: Messages | Text, context: int) -> None:
    """Raise ContextOverflowError for a prompt that cannot fit, before time is spent on it."""
    if isinstance(prompt, str):
        length = len(prompt)
    elif prompt and isinstance(prompt[0], Mapping):
        length = sum(len(str(turn["content"])) for turn in cast(Sequence[Mapping[str, object]], prompt))
    else:
        if len(prompt) > context:
            raise ContextOverflowError(f"the prompt has {len(prompt)} tokens; the context holds {context}: shorten it")
        return
    if length > _LONGEST_TOKEN * context:
        raise ContextOverflowError(
            f"the prompt has {length} characters, more than the context of {context} tokens holds: shorten it"
        )
