"""A stand-in for the Emulator: answers from a table, so that the faces are tested without models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from eft_local.engine.step import Answer, Candidate, RoleTiming, RoleView, Step
from eft_local.prompts import conversation
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
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.prefixes: list[tuple[int, ...]] = []
        self.obeyed: list[Recipe] = []  # the recipe at each step
        self.prepared: list[str | Iterable[str]] = []  # what it was loaded for, and what was asked of it
        self.closed = False
        self.cancelled = False
        self.written: Answer | None = None

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        *,
        only: str | Iterable[str] = "eft",
        progress: Callable[[str, float], bool | None] | None = None,
    ) -> FakeEmulator:
        if progress:
            progress("base", 1.0)
        emulator = cls(recipe)
        emulator.prepared.append(only)
        cls.loaded.append(emulator)
        return emulator

    @property
    def systems(self) -> tuple[str, ...]:
        return ("eft", "base", "antiexpert", "expert", *self.recipe.experts, *self.recipe.compare)

    def prepare(self, only: str, *, progress: Callable[[str, float], bool | None] | None = None) -> None:
        self.prepared.append(only)

    def _words(self, only: str, prompt: Any) -> list[str]:
        messages = [dict(message) for message in conversation(prompt)]
        self.asked.append((only, messages))
        text = type(self).reply(only, messages)
        pieces = text.split(" ")
        return pieces[:1] + [f" {piece}" for piece in pieces[1:]]

    def stream(
        self,
        prompt: Any,
        *,
        only: str = "eft",
        seed: int | None = None,
        facts: bool = True,
        top: int = 0,
        prefix: Sequence[int] = (),
    ) -> Iterator[Step]:
        self.cancelled = False
        limit = self.recipe.sampling.max_tokens
        words = self._words(only, prompt)
        self.prefixes.append(tuple(prefix))
        for number, word in enumerate(words[len(prefix) :], start=len(prefix)):
            if limit is not None and number - len(prefix) == limit:
                yield Step(None, "", finish_reason="length")
                return
            type(self).before_word(self, number)
            if self.cancelled:
                yield Step(None, "", finish_reason="cancelled")
                return
            yield step(number, word, top) if top else Step(number, word)
        yield Step(END, "", finish_reason="stop")

    def chat(
        self,
        prompt: Any,
        *,
        only: str = "eft",
        seed: int | None = None,
        facts: bool = False,
        top: int = 0,
        later: bool = False,
        prefix: Sequence[int] = (),
        on_step: Callable[[Step], None] | None = None,
    ) -> Answer:
        words, reason = [], None
        self.written = answer([], "cancelled")
        for made in self.stream(prompt, only=only, seed=seed, facts=facts, top=top, prefix=prefix):
            self.obeyed.append(self.recipe)
            if on_step:
                on_step(made)
            words.append(made.text)
            reason = made.finish_reason
            self.written = answer(words, reason or "cancelled", seed)
        return answer(words, reason, seed)

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        only: str = "eft",
        max_tokens: int | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
        parallel: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        answers = []
        for index, prompt in enumerate(prompts):
            words = self._words(only, prompt)[len(prefixes[index]) if prefixes else 0 :]
            cut = max_tokens is not None and len(words) > max_tokens
            answers.append(answer(words[:max_tokens], "length" if cut else "stop"))
            if progress:
                progress(index + 1)
            if self.cancelled:
                answers += [answer([], "cancelled")] * (len(prompts) - len(answers))
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


def step(number: int, word: str, top: int = 10) -> Step:
    """A step with facts: the experts changed the choice at every fourth word, where "other" was the base's."""
    moved = number % 4 == 0
    views = {name: RoleView(rank, math.log(share)) for name, rank, share in _views(moved)}
    others = {name: RoleView(1 - rank, math.log(1 - share)) for name, rank, share in _views(moved)}
    candidates = (
        Candidate(number, word.encode(), False, views, 1.0, 0.5),
        Candidate(OTHER, b" other", False, others, -1.0, -0.5),
        Candidate(END, b"", True, {name: RoleView(2, -9.0) for name in views}, 0.0, 0.0),
    )
    return Step(number, word, -0.1, False, views, candidates[:top], 0.8 if moved else 0.0, moved)


def _views(moved: bool) -> list[tuple[str, int, float]]:
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
