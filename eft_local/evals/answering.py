"""Who is evaluated: a target of a loaded recipe, or a model behind an endpoint, with three kinds of questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eft_local.backends.tokenize import tokenize_text
from eft_local.errors import Cancelled, ContextOverflowError
from eft_local.evals.run import Target
from eft_local.hub.references import adapter_of, model_of
from eft_local.prompts.task import TaskPrompt
from eft_local.recipe import Sampling
from eft_local.recipe.names import MIXTURE
from eft_local.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from eft_local.backends.base import Vocabulary
    from eft_local.emulator import Emulator
    from eft_local.engine.request import Options, Request
    from eft_local.engine.task import Task

Prompt = str | TaskPrompt
"""A text that every role continues as it stands, or one that each role reads in its own way."""


class Scored(NamedTuple):
    """A text's log-probability, and whether each of its tokens is the likeliest one."""

    logprob: float
    greedy: bool


class Answered(NamedTuple):
    """What was written; `tokens` counts them."""

    text: str
    finish_reason: str
    tokens: int


class Writing(NamedTuple):
    """An answer to be written. banned: words that no token may be, with or without a space before them."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    banned: tuple[str, ...] = ()


Done = Callable[[int, Any], None]
"""Called with the place of a question among those that are answered together, and what came of it, as it comes."""


class Answering(Protocol):
    """Somebody who can be evaluated. All three methods raise Cancelled where they were stopped, and EftError."""

    @property
    def name(self) -> str:
        """As tables call it."""

    @property
    def alone(self) -> bool:
        """Whether one model answers, not the mixture."""

    @property
    def conditions(self) -> Mapping[str, Any]:
        """What answers depend on, ready for JSON."""

    def score(self, questions: Sequence[tuple[Prompt, str]], done: Done) -> None:
        """Score continuations of prompts: `Scored`."""

    def score_whole(self, texts: Sequence[str], done: Done) -> None:
        """Score whole texts, from their first token on: `Scored`."""

    def write(self, questions: Sequence[Writing], done: Done) -> None:
        """Write answers: `Answered`."""


class LocalTarget:
    """A target of an emulator; requests run side by side, and what prompts share is evaluated once."""

    def __init__(self, emulator: Emulator, target: Target, parallel: int = 8) -> None:
        """parallel: requests that are answered at a time."""
        self.name = target.name
        self.alone = target.target != MIXTURE
        self.target = target
        self.recipe = emulator.recipe.replace(**target.changes)
        self._emulator = emulator
        self._parallel = parallel

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The recipe as it is run, the target, and the files' sizes and dates."""
        recipe = self.recipe
        files: list[Path] = []
        for _, role in recipe.named_roles():
            files += [model_of(recipe, role), *filter(None, [adapter_of(recipe, role)])]
        return {
            "version": __version__,
            "target": self.target.target,
            "recipe": recipe.replace(sampling=Sampling(), description="").to_toml(),
            "files": [[str(file), file.stat().st_size, int(file.stat().st_mtime)] for file in files],
        }

    def score(self, questions: Sequence[tuple[Prompt, str]], done: Done) -> None:
        """Score continuations, in tokens of their own: they are the same for all roles, whatever these have read."""
        places = [place for place, (_, text) in enumerate(questions) if text]
        for place in set(range(len(questions))).difference(places):
            done(place, Scored(0.0, True))
        requests = [self._request(questions[place][0], given=questions[place][1]) for place in places]
        self._run(requests, lambda at, task: done(places[at], _score(task)))

    def score_whole(self, texts: Sequence[str], done: Done) -> None:
        """Score texts after BOS (or the end token); a long one in windows, each token once, after all that fits."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        start = self._start()
        places: list[int] = []
        requests: list[Request] = []
        for place, text in enumerate(texts):
            tokens = self._tokens(text)
            for window in get_rolling_token_windows(tokens, start, self.recipe.context, 1):
                before, given = make_disjoint_window(window)
                requests.append(self._request(before, given=given))
                places.append(place)
        parts: dict[int, list[Scored]] = {place: [] for place in range(len(texts))}
        left = {place: places.count(place) for place in parts}

        def ended(at: int, task: Task) -> None:
            place = places[at]
            parts[place].append(_score(task))
            left[place] -= 1
            if not left[place]:
                done(place, _whole(parts[place]))

        for place in (place for place, number in left.items() if not number):
            done(place, Scored(0.0, True))
        self._run(requests, ended)

    def write(self, questions: Sequence[Writing], done: Done) -> None:
        """Write answers with the recipe's mixture and each question's own sampling."""
        requests = [self._request(each.prompt, sampling=self._banning(each), seed=each.seed) for each in questions]
        self._run(requests, lambda at, task: done(at, _answer(task)))

    def _request(
        self,
        prompt: Prompt | Sequence[int],
        *,
        given: str | Sequence[int] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Request:
        options: Options = {"target": self.target.target, "recipe": self.recipe, "seed": seed}
        if sampling is not None:
            options["sampling"] = sampling
        if prompt == "":
            prompt = [self._start()]
        try:
            return self._emulator.models.request(prompt, options, raw=not isinstance(prompt, TaskPrompt), given=given)
        except ContextOverflowError as error:
            raise ContextOverflowError(f"{error} (--context N does it here)") from None

    def _run(self, requests: list[Request], ended: Callable[[int, Task], None]) -> None:
        if requests:
            self._emulator.run(requests, parallel=self._parallel, on_end=ended)

    def _vocabulary(self) -> Vocabulary:
        self._emulator.prepare(self.target.target)
        return self._emulator.models.target(self.target.target).vocabulary

    def _start(self) -> int:
        """Return the token that stands before a text: BOS, or the end of another one."""
        vocabulary = self._vocabulary()
        return vocabulary.bos if vocabulary.bos is not None else vocabulary.ends()[0]

    def _tokens(self, text: str) -> list[int]:
        return tokenize_text(self._vocabulary(), text, add_special=False)

    def _banning(self, writing: Writing) -> Sampling:
        """Return the sampling in which the banned words' tokens cannot be chosen."""
        if not writing.banned:
            return writing.sampling
        vocabulary = self._vocabulary()
        spellings = [spelling for word in writing.banned for spelling in (word, f" {word}")]
        found = [vocabulary.tokenize(text, add_special=False, parse_special=False) for text in spellings]
        biases = {str(tokens[0]): -100.0 for tokens in found if len(tokens) == 1}
        return replace(writing.sampling, logit_bias={**writing.sampling.logit_bias, **biases})


def plain_pair(pair: tuple[Prompt, str]) -> Any:
    """Return what is to be scored, ready for JSON: equal for equal questions."""
    return [_plain(pair[0]), pair[1]]


def plain_writing(writing: Writing) -> Any:
    """Return what is to be written, ready for JSON: equal for equal questions."""
    return [_plain(writing.prompt), repr(writing.sampling), writing.seed, list(writing.banned)]


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [[dict(each) for each in prompt.messages], prompt.text, prompt.start]


def _score(task: Task) -> Scored:
    score = task.score
    return Scored(float(score.logprobs.sum(dtype="float64")), score.greedy)


def _whole(parts: Sequence[Scored]) -> Scored:
    return Scored(sum(part.logprob for part in parts), all(part.greedy for part in parts))


def _answer(task: Task) -> Answered:
    answer = task.answer
    if answer.finish_reason == "cancelled":
        raise Cancelled("stopped while an answer was written")
    return Answered(answer.text, answer.finish_reason, len(answer.tokens))
