"""A stand-in for the Emulator: answers from a table, so that the faces are tested without models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from eft_local.emulator.results import Answer, RoleTiming, Step
from eft_local.prompts import conversation
from eft_local.recipe import Recipe

Reply = Callable[[str, list[dict[str, str]]], str]


def echo(only: str, messages: list[dict[str, str]]) -> str:
    """Say who answers, and what was asked."""
    return f" {only} answers {messages[-1]['content']}"


class FakeEmulator:
    """Writes one word per step. `reply(only, messages)` is the answer; an exception in its place is raised."""

    reply: Reply = staticmethod(echo)  # tests set it
    loaded: list[FakeEmulator]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.closed = False
        self.cancelled = False

    @classmethod
    def load(cls, recipe: Recipe, *, progress: Callable[[str, float], bool | None] | None = None) -> FakeEmulator:
        if progress:
            progress("base", 1.0)
        emulator = cls(recipe)
        cls.loaded.append(emulator)
        return emulator

    @property
    def systems(self) -> tuple[str, ...]:
        return ("eft", "base", "antiexpert", "expert", *self.recipe.experts, *self.recipe.compare)

    def _words(self, only: str, prompt: Any) -> list[str]:
        messages = [dict(message) for message in conversation(prompt)]
        self.asked.append((only, messages))
        text = type(self).reply(only, messages)
        pieces = text.split(" ")
        return pieces[:1] + [f" {piece}" for piece in pieces[1:]]

    def stream(self, prompt: Any, *, only: str = "eft", facts: bool = True) -> Iterator[Step]:
        self.cancelled = False
        limit = self.recipe.sampling.max_tokens
        for number, word in enumerate(self._words(only, prompt)):
            if limit is not None and number == limit:
                yield Step(None, "", finish_reason="length")
                return
            yield Step(number, word)
            if self.cancelled:
                yield Step(None, "", finish_reason="cancelled")
                return
        yield Step(None, "", finish_reason="stop")

    def chat(self, prompt: Any, *, only: str = "eft", on_step: Callable[[Step], None] | None = None) -> Answer:
        words, reason = [], None
        for step in self.stream(prompt, only=only):
            if on_step:
                on_step(step)
            words.append(step.text)
            reason = step.finish_reason
        return answer(words, reason)

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

    def __enter__(self) -> FakeEmulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


def answer(words: Sequence[str], reason: Any) -> Answer:
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
        seed=7,
    )
