"""A stand-in for the Emulator: answers from a table, so that the faces are tested without models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from eft_local.engine.step import Answer, Candidate, RoleStatistics, RoleTiming, Step
from eft_local.prompts.render import conversation
from eft_local.recipe import Recipe

END, OTHER = 9000, 9001
"""The token that ends an answer, and one that no answer has unless it is chosen."""

Reply = Callable[[str, list[dict[str, str]]], str]


def echo(only: str, messages: list[dict[str, str]]) -> str:
    """Say who answers, and what was asked."""
    return f" {only} answers {messages[-1]['content']}"


class FakeEmulator:
    """Writes one word per step. `reply(only, messages)` is the answer; an exception in its place is raised."""

    reply: Reply = staticmethod(echo)  # tests set it
    before_word: Callable[[FakeEmulator, int], None] = staticmethod(lambda emulator, number: None)  # tests set it
    loaded: list[FakeEmulator]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.requested: list[tuple[str, list[dict[str, str]]]] = []
        self.recipes: list[Recipe] = []  # of each answer
        self.prefixes: list[tuple[int, ...]] = []
        self.obeyed: list[Recipe] = []  # the recipe at each step
        self.prepared: list[str | Iterable[str]] = []  # what it was loaded for, and what was asked of it
        self.closed = False
        self.cancelled = False

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        *,
        target: str | Iterable[str] = "eft",
        parallel: int = 1,
        progress: Callable[[str, float], bool | None] | None = None,
    ) -> FakeEmulator:
        if progress:
            progress("base", 1.0)
        emulator = cls(recipe)
        emulator.prepared.append(target)
        cls.loaded.append(emulator)
        return emulator

    @property
    def targets(self) -> tuple[str, ...]:
        return ("eft", "base", "antiexpert", "expert", *self.recipe.experts, *self.recipe.compare)

    def prepare(self, target: str, *, progress: Callable[[str, float], bool | None] | None = None) -> None:
        self.prepared.append(target)

    def _words(self, only: str, prompt: Any) -> list[str]:
        messages = [dict(message) for message in conversation(prompt)]
        self.requested.append((only, messages))
        text = type(self).reply(only, messages)
        pieces = text.split(" ")
        return pieces[:1] + [f" {piece}" for piece in pieces[1:]]

    def stream_chat(
        self,
        prompt: Any,
        *,
        target: str = "eft",
        recipe: Recipe | None = None,
        seed: int | None = None,
        top: int = 0,
        prefix: Sequence[int] = (),
    ) -> FakeStream:
        self.cancelled = False
        self.recipes.append(recipe or self.recipe)
        words = self._words(target, prompt)
        self.prefixes.append(tuple(prefix))
        return FakeStream(self, words, recipe or self.recipe, seed, top, prefix)

    def follow(self, prompt: Any, on_step: Callable[[Step], None], **options: Any) -> FakeStream:
        stream = self.stream_chat(prompt, **options)
        stream.on_step = on_step
        return stream

    def chat(
        self,
        prompt: Any,
        *,
        target: str = "eft",
        recipe: Recipe | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        top: int = 0,
        prefix: Sequence[Any] = (),
        parallel: int = 8,
        progress: Callable[[int], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Any:
        if not (isinstance(prompt, list) and all(isinstance(each, str | list) for each in prompt)):
            return self.follow(
                prompt, on_step or (lambda step: None), target=target, recipe=recipe, seed=seed, top=top, prefix=prefix
            ).wait()
        answers = []
        self.recipes.append(recipe or self.recipe)
        for index, each in enumerate(prompt):
            words = self._words(target, each)[len(prefix[index]) if prefix else 0 :]
            cut = max_tokens is not None and len(words) > max_tokens
            answers.append(answer(words[:max_tokens], "length" if cut else "stop"))
            if progress:
                progress(index + 1)
            if self.cancelled:
                answers += [answer([], "cancelled")] * (len(prompt) - len(answers))
                break
        return answers

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeEmulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


class FakeStream:
    """One answer of a FakeEmulator, made while it is read."""

    def __init__(
        self,
        emulator: FakeEmulator,
        words: Sequence[str],
        recipe: Recipe,
        seed: int | None,
        top: int,
        prefix: Sequence[int],
    ) -> None:
        self.answer = answer([], "cancelled")
        self.on_step: Callable[[Step], None] = lambda step: None
        self._emulator = emulator
        self._recipe = recipe
        self._seed = seed
        self._steps = self._write(words, top, len(prefix))

    def _write(self, words: Sequence[str], top: int, start: int) -> Iterator[Step]:
        emulator, limit = self._emulator, self._recipe.sampling.max_tokens
        for number, word in enumerate(words[start:], start=start):
            if limit is not None and number - start == limit:
                yield Step(None, "", finish_reason="length")
                return
            type(emulator).before_word(emulator, number)
            if emulator.cancelled:
                yield Step(None, "", finish_reason="cancelled")
                return
            yield step(number, word, top) if top else Step(number, word)
        yield Step(END, "", finish_reason="stop")

    def __iter__(self) -> Iterator[Step]:
        return self._steps

    def wait(self) -> Answer:
        words, reason = [], None
        for made in self._steps:
            self._emulator.obeyed.append(self._recipe)
            self.on_step(made)
            words.append(made.text)
            reason = made.finish_reason
            self.answer = answer(words, reason or "cancelled", self._seed)
        self.answer = answer(words, reason, self._seed)
        return self.answer

    def change(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def cancel(self) -> None:
        self._emulator.cancel()

    def close(self) -> None:
        self._emulator.cancel()


def step(number: int, word: str, top: int = 10) -> Step:
    """A step with statistics: the experts changed the choice at every fourth word, where "other" was the base's."""
    moved = number % 4 == 0
    roles = {name: RoleStatistics(rank, math.log(share)) for name, rank, share in _roles(moved)}
    others = {name: RoleStatistics(1 - rank, math.log(1 - share)) for name, rank, share in _roles(moved)}
    candidates = (
        Candidate(number, word.encode(), False, roles, 1.0, 0.5),
        Candidate(OTHER, b" other", False, others, -1.0, -0.5),
        Candidate(END, b"", True, {name: RoleStatistics(2, -9.0) for name in roles}, 0.0, 0.0),
    )
    return Step(number, word, -0.1, False, roles, candidates[:top], 0.8 if moved else 0.0, moved)


def _roles(moved: bool) -> list[tuple[str, int, float]]:
    base = ("base", 1, 0.1) if moved else ("base", 0, 0.9)
    return [base, ("antiexpert", *base[1:]), ("assistant", 0, 0.9), ("eft", 0, 0.9)]


def answer(words: Sequence[str], reason: Any, seed: int | None = None) -> Answer:
    """Make an Answer from words that are one token each."""
    words = [word for word in words if word]
    return Answer(
        text="".join(words),
        tokens=tuple(range(len(words))),
        finish_reason=reason,
        prompt_tokens={"base": 5, "antiexpert": 5, "assistant": 9},
        evaluated_tokens={"base": 5, "antiexpert": 5, "assistant": 9},
        timings={"base": RoleTiming(10.0, 20.0)},
        overhead_ms=1.5,
        tokens_per_second=42.0,
        seed=7 if seed is None else seed,
    )
