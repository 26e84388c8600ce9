"""The state of one request: what was written so far, and what chooses the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats
from eft_local.backends.llamacpp import Sampler
from eft_local.backends.tokenize import controls_named
from eft_local.engine.kv import KVSequence
from eft_local.engine.request import Request
from eft_local.engine.speculative.acceptance import DraftToken, Rule
from eft_local.engine.statistics import Evidence, compute
from eft_local.engine.step import Answer, FinishReason, RoleTiming, Score, Step
from eft_local.engine.text import TextStream
from eft_local.machine.cores import CoreMeter
from eft_local.recipe import Recipe, Sampling
from eft_local.recipe.names import MIXTURE


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making.

    texts: what each role reads before the first token.  recipe: the request's, until a message changes it.
    kv: what each role has read; empty until it is admitted.
    cancelled: set by any thread; the answer ends with the next round.
    last: the token that was chosen last, an end token as well.
    """

    request: Request
    texts: Mapping[str, list[int]] = field(init=False)
    recipe: Recipe = field(init=False)
    kv: Mapping[str, KVSequence] = field(default_factory=dict)
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    last: int = -1
    finish_reason: FinishReason | None = None
    evaluated: dict[str, int] = field(default_factory=dict)
    role_seconds: dict[str, float] = field(default_factory=dict)
    prompt_seconds: dict[str, float] = field(default_factory=dict)
    first_seconds: float = 0.0
    wall_seconds: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    role_logprobs: dict[str, list[float]] = field(default_factory=dict)
    greedy: bool = True
    _cores: CoreMeter = field(default_factory=CoreMeter)
    _stream: TextStream = field(default_factory=TextStream)
    _stop_tokens: frozenset[int] = frozenset()
    _sampler: Sampler | None = None
    _sampling: Sampling | None = None

    def __post_init__(self) -> None:
        self.texts = self.request.texts
        self.recipe = self.request.recipe

    @property
    def position(self) -> int:
        """Where in the answer the next token stands; draws are keyed by it."""
        return len(self.request.prefix) + len(self.tokens)

    @property
    def room(self) -> int:
        """How many more tokens fit into what every role can hold."""
        return min(each.context.room - each.length for each in self.kv.values())

    @property
    def remaining(self) -> float:
        """How many tokens the answer may still get."""
        if self.request.given is not None:
            return len(self.request.given) - len(self.tokens)
        return (self.request.max_tokens or self.recipe.sampling.max_tokens or float("inf")) - len(self.tokens)

    @property
    def history(self) -> list[int]:
        """All that the first role reads before the next token: prompt, prefix, answer."""
        return [*next(iter(self.request.prompts.values())), *self.request.prefix, *self.tokens]

    def begin(self, kv: Mapping[str, KVSequence]) -> None:
        """Start from what the roles' caches hold."""
        self.kv = kv
        self.evaluated = {name: len(each.pending) for name, each in kv.items()}
        prefix = b"".join(map(self.request.target.vocabulary.piece, self.request.prefix))
        self._stream = TextStream(self.recipe.sampling.stop, prefix)
        self._stop_tokens = controls_named(self.request.target.vocabulary, self.recipe.sampling.stop)

    def choose(self, scores: Floats, rule: Rule, draft_token: DraftToken | None) -> int:
        """Choose the next token by one row of scores, with the samplers that the recipe has now."""
        if self.request.given is not None:
            return self.request.given[len(self.tokens)]
        sampler = self._current_sampler()
        token = rule.choose(sampler, scores, self.request.seed, self.position, draft_token)
        sampler.accept(token)
        return token

    @property
    def lawful(self) -> npt.NDArray[np.bool_] | None:
        """Which tokens a grammar or schema allows next, [n_vocab], where a plausibility mask must know."""
        if self.recipe.plausibility_mask is None and self.recipe.plausibility_top_p is None:
            return None
        return None if self.request.given is not None else self._current_sampler().lawful()

    def draft_sampler(self) -> Sampler:
        """Return a copy of the sampler, which may see tokens that the answer will not have. Close it."""
        return self._current_sampler().clone()

    def _current_sampler(self) -> Sampler:
        sampling = self.recipe.sampling
        if self._sampler is None or (sampling is not self._sampling and sampling != self._sampling):
            self.close()
            self._sampler, self._sampling = self.request.target.sampler(sampling), sampling
            self._stream.stop = sampling.stop
            self._stop_tokens = controls_named(self.request.target.vocabulary, sampling.stop)
            for token in (*self.request.prefix, *self.tokens):
                self._sampler.accept(token)
        return self._sampler

    def ends_with(self, token: int) -> bool:
        """Whether a token ends the answer: an end token, or one that a stop string names."""
        return self.request.target.ends(token) or token in self._stop_tokens

    def commit(self, token: int, logits: Mapping[str, Floats], scores: Floats, *, drafted: bool) -> Step:
        """Append a chosen token; return its step, with what the request wants recorded.

        logits: each role's [1, n] that it was chosen by; scores: the target's [n].
        """
        self.last = token
        text = self._append(token)
        if self.finish_reason is None and self._full:
            text += self.end("context")
        return self._step(token, text, logits, scores, drafted=drafted)

    @property
    def _full(self) -> bool:
        """Whether a role has no room left for the last token."""
        return any(len(self.texts[name]) + len(self.tokens) > kv.context.room for name, kv in self.kv.items())

    def _append(self, token: int) -> str:
        """Append a token; return the text to show, and set `finish_reason` where the answer ends."""
        if self.request.given is not None:
            self.tokens.append(token)
            self.finish_reason = None if self.remaining else "length"
            return ""
        if self.ends_with(token):
            self.finish_reason = "stop"
            text = self._stream.flush()
        else:
            self.tokens.append(token)
            text = self._stream.push(self.request.target.vocabulary.piece(token))
            if self._stream.stopped:
                self.finish_reason = "stop"
            elif self.remaining <= 0:
                self.finish_reason = "length"
                text += self._stream.flush()
        self.text.append(text)
        return text

    def end(self, reason: FinishReason) -> str:
        """Finish for a reason that lies outside the text; return what text was held back."""
        self.finish_reason = reason
        self.text.append(self._stream.flush())
        return self.text[-1]

    def _step(self, token: int, text: str, rows: Mapping[str, Floats], scores: Floats, *, drafted: bool) -> Step:
        request, target = self.request, self.request.target
        step = Step(token, text, drafted=drafted, finish_reason=self.finish_reason)
        if request.given is not None:
            self._score(token, rows, scores)
        if request.record == "nothing":
            return step
        own = MIXTURE if target.mixture else target.roles[0]
        rows_of_all = {name: row[0] for name, row in rows.items()} | {own: scores}
        evidence = Evidence(self.recipe, rows_of_all, request.top, target.vocabulary.piece, self.ends_with)
        if request.record == "evidence":
            return replace(step, evidence=evidence.kept())
        step = compute([replace(step, evidence=evidence)])[0]
        if step.logprob is not None and len(self.logprobs) < len(self.tokens):
            self.logprobs.append(step.logprob)
        return step

    def _score(self, token: int, rows: Mapping[str, Floats], scores: Floats) -> None:
        self.logprobs.append(_logprob(scores, token))
        self.greedy &= int(scores.argmax()) == token
        for name, row in rows.items():
            self.role_logprobs.setdefault(name, []).append(_logprob(row[0], token))

    def count(self, seconds: float) -> None:
        """Add the sequence's share of a round's time."""
        self.wall_seconds += seconds
        self.role_seconds = {name: each.seconds for name, each in self.kv.items()}
        if not self.prompt_seconds and (self.tokens or self.finish_reason):
            self.prompt_seconds = self.role_seconds
            self.first_seconds = self.wall_seconds

    def close(self) -> None:
        if self._sampler:
            self._sampler.close()
        self._sampler = self._sampling = None

    def answer(self) -> Answer:
        """Return the answer; one that is being written, as if it were stopped now."""
        seconds = self.role_seconds or dict.fromkeys(self.request.prompts, 0.0)
        prompt = self.prompt_seconds or seconds
        after_first, seconds_after_first = len(self.tokens) - 1, self.wall_seconds - self.first_seconds
        return Answer(
            text="".join(self.text),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens={name: len(tokens) for name, tokens in self.request.prompts.items()},
            evaluated_tokens=self.evaluated,
            timings={
                name: RoleTiming(1000 * prompt[name], 1000 * (total - prompt[name])) for name, total in seconds.items()
            },
            overhead_ms=1000 * (self.wall_seconds - sum(seconds.values())),
            tokens_per_second=after_first / seconds_after_first if after_first > 0 and seconds_after_first > 0 else 0.0,
            seed=self.request.seed,
            exact=self.request.target.exact if self.evaluated else "",
            logprobs=tuple(self.logprobs) if self.request.record == "statistics" else None,
            cores=self._cores.use(),
        )

    def score(self) -> Score:
        """Return how likely the tokens that were given are."""
        roles = self.request.target.roles
        by_role = {name: np.array(self.role_logprobs.get(name, ()), np.float32) for name in roles}
        return Score(tuple(self.request.given or ()), np.array(self.logprobs, np.float32), by_role, self.greedy)


def _logprob(row: Floats, token: int) -> float:
    """Return the log-probability of a token, from one row of logits [n]."""
    highest = row.max()
    exponentials = np.subtract(row, highest)
    np.exp(exponentials, out=exponentials)
    return float(row[token]) - float(highest) - float(np.log(exponentials.sum()))
