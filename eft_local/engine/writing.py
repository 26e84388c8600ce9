"""The loop: draft, evaluate every role, mix, choose, append; for one answer or for many side by side."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats, Vocabulary
from eft_local.backends.llamacpp import Sampler
from eft_local.cores import CoreMeter
from eft_local.engine.cache import Slots
from eft_local.engine.mixture import MIXTURE, Mixture
from eft_local.engine.speculative.acceptance import RULES, Guess, Rule
from eft_local.engine.speculative.drafters import Draft, Drafting, Round, rows_of
from eft_local.engine.speculative.length import Outcome
from eft_local.engine.statistics import Evidence, known
from eft_local.engine.step import Answer, FinishReason, RoleTiming, Step
from eft_local.engine.text import TextStream
from eft_local.errors import Cancelled
from eft_local.markup import controls_named
from eft_local.placement.survey import rows_at_once
from eft_local.recipe import Recipe, Sampling


@dataclass(frozen=True, slots=True)
class System:
    """What writes an answer: the mixture, or one role alone.

    roles: names of those that are evaluated; mixture: None for one role alone.
    vocabulary: gives tokens their text; n_vocab: width of the logits that are sampled from.
    unused: ids below n_vocab that are padding and never offered; scratch: a row to compute in.
    ends: whether a token ends the answer.
    exact: "yes", or "no, because …": see `Answer.exact`.
    """

    roles: tuple[str, ...]
    mixture: Mixture | None
    vocabulary: Vocabulary
    n_vocab: int
    unused: npt.NDArray[np.intp]
    scratch: Floats
    ends: Callable[[int], bool]
    exact: str
    sampler: Callable[[Sampling], Sampler]

    def common(self, name: str, logits: Floats) -> Floats:
        """Return a role's logits of the ids that may be sampled, [rows, n_vocab], from all that its model gave."""
        return self.mixture.common(name, logits) if self.mixture else logits[:, : self.n_vocab]

    def scores(
        self, recipe: Recipe, logits: Mapping[str, Floats], lawful: npt.NDArray[np.bool_] | None = None
    ) -> Floats:
        """Return what the next token is sampled from, [rows, n_vocab]. logits: per role, from `common`.

        lawful: see `Mixture.scores`.
        """
        if self.mixture:
            return self.mixture.scores(recipe, logits, lawful)
        scores = logits[self.roles[0]][:, : self.n_vocab]
        if self.unused.size:
            scores = scores.copy()
            scores[:, self.unused] = -np.inf
        return scores


@dataclass(slots=True, eq=False)
class Line:
    """One answer in the making."""

    prompts: Mapping[str, Sequence[int]]
    seed: int
    max_tokens: int | None
    prefix: Sequence[int] = ()
    facts: bool = False
    top: int = 0
    later: bool = False
    exact: str = ""
    slot: int = -1
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    evaluated: dict[str, int] = field(default_factory=dict)
    prompt_seconds: dict[str, float] = field(default_factory=dict)
    role_seconds: dict[str, float] = field(default_factory=dict)
    first_seconds: float = 0.0
    wall_seconds: float = 0.0
    cores: CoreMeter = field(default_factory=CoreMeter)
    stream: TextStream = field(default_factory=TextStream)
    stop_tokens: frozenset[int] = frozenset()
    sampler: Sampler | None = None
    sampling: Sampling | None = None

    @property
    def position(self) -> int:
        """Where in the answer the next token stands; draws are keyed by it."""
        return len(self.prefix) + len(self.tokens)

    @property
    def sequences(self) -> dict[str, list[int]]:
        """What each role reads before the next token is chosen: its prompt, then the prefix."""
        return {name: [*prompt, *self.prefix] for name, prompt in self.prompts.items()}

    def begin(self, slots: Slots, slot: int, system: System, sampling: Sampling) -> None:
        """Take a slot. Raises: ContextOverflowError."""
        self.slot = slot
        self.exact = system.exact
        self.evaluated = slots.begin(slot, self.sequences)
        self.role_seconds = dict.fromkeys(self.prompts, 0.0)
        self.stream = TextStream(sampling.stop, b"".join(map(system.vocabulary.piece, self.prefix)))
        self.stop_tokens = controls_named(system.vocabulary, sampling.stop)

    def choose(self, system: System, scores: Floats, sampling: Sampling, rule: Rule, guess: Guess | None) -> int:
        """Choose the next token by one row of scores, with the samplers that the recipe asks for now."""
        sampler = self._current_sampler(system, sampling)
        token = rule.choose(sampler, scores, self.seed, self.position, guess)
        sampler.accept(token)
        return token

    def lawful(self, system: System, recipe: Recipe) -> npt.NDArray[np.bool_] | None:
        """Return which tokens a grammar or schema allows next, [n_vocab], where a plausibility mask must know."""
        if recipe.plausibility_mask is None and recipe.plausibility_top_p is None:
            return None
        return self._current_sampler(system, recipe.sampling).lawful()

    def draft_sampler(self, system: System, sampling: Sampling) -> Sampler:
        """Return a copy of the line's sampler, which may see tokens that the answer will not have. Close it."""
        return self._current_sampler(system, sampling).clone()

    def _current_sampler(self, system: System, sampling: Sampling) -> Sampler:
        if self.sampler is None or (sampling is not self.sampling and sampling != self.sampling):
            self.close()
            self.sampler, self.sampling = system.sampler(sampling), sampling
            self.stream.stop = sampling.stop
            self.stop_tokens = controls_named(system.vocabulary, sampling.stop)
            for token in (*self.prefix, *self.tokens):
                self.sampler.accept(token)
        return self.sampler

    def history(self) -> list[int]:
        """Return all that the line's first role reads before its next token: prompt, prefix, answer."""
        return [*next(iter(self.prompts.values())), *self.prefix, *self.tokens]

    def remaining(self, sampling: Sampling) -> float:
        """Return how many tokens the answer may still get."""
        return (self.max_tokens or sampling.max_tokens or math.inf) - len(self.tokens)

    def ends(self, token: int, system: System) -> bool:
        """Whether a token ends the answer: an end token, or one that a stop string names."""
        return system.ends(token) or token in self.stop_tokens

    def add(self, token: int, system: System, sampling: Sampling) -> str:
        """Append a chosen token; return the text to show, and set `finish_reason` where the answer ends."""
        if self.ends(token, system):
            self.finish_reason = "stop"
            text = self.stream.flush()
        else:
            self.tokens.append(token)
            text = self.stream.push(system.vocabulary.piece(token))
            if self.stream.stopped:
                self.finish_reason = "stop"
            elif self.remaining(sampling) <= 0:
                self.finish_reason = "length"
                text += self.stream.flush()
        self.text.append(text)
        return text

    def end(self, reason: FinishReason) -> str:
        """Finish for a reason that lies outside the text; return what text was held back."""
        self.finish_reason = reason
        self.text.append(self.stream.flush())
        return self.text[-1]

    def close(self) -> None:
        if self.sampler:
            self.sampler.close()
        self.sampler = self.sampling = None

    def count(self, seconds: Mapping[str, float], wall: float) -> None:
        """Add this line's share of a step's time."""
        for name in self.role_seconds:
            self.role_seconds[name] += seconds[name]
        self.wall_seconds += wall
        if not self.prompt_seconds:
            self.prompt_seconds = dict(self.role_seconds)
            self.first_seconds = wall

    def answer(self) -> Answer:
        """Return the answer; one that is being written, as if it were stopped now."""
        prompt = self.prompt_seconds or self.role_seconds
        later, seconds = len(self.tokens) - 1, self.wall_seconds - self.first_seconds
        return Answer(
            text="".join(self.text),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens={name: len(tokens) for name, tokens in self.prompts.items()},
            evaluated_tokens=self.evaluated,
            timings={
                name: RoleTiming(1000 * prompt[name], 1000 * (total - prompt[name]))
                for name, total in self.role_seconds.items()
            },
            overhead_ms=1000 * (self.wall_seconds - sum(self.role_seconds.values())),
            tokens_per_second=later / seconds if later > 0 and seconds > 0 else 0.0,
            seed=self.seed,
            exact=self.exact,
            cores=self.cores.use(),
        )


class Stopwatch:
    """Times a round without what the reader of its steps does in between, and shares the time among its lines."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._before = dict(slots.seconds)
        self._seconds = 0.0
        self._started = time.perf_counter()

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._seconds += time.perf_counter() - self._started

    def share(self, lines: Sequence[Line]) -> None:
        """Give each line an equal part of the round's time."""
        part = 1 / len(lines)
        seconds = {name: part * (total - self._before[name]) for name, total in self._slots.seconds.items()}
        for line in lines:
            line.count(seconds, part * self._seconds)


def write(
    slots: Slots,
    system: System,
    lines: Iterable[Line],
    recipe: Callable[[], Recipe],
    *,
    parallel: int = 1,
    drafting: Drafting | None = None,
) -> Iterator[tuple[Line, Step]]:
    """Write answers, `parallel` of them side by side; yield each step with its line as it is made.

    recipe: asked before each token, so that changed strengths and samplers act from the next one on. drafting: None
    evaluates every token by itself; answers have the same distribution with it, and with shared noise are the same.
    A consumer may stop at any step: caches hold exactly the tokens that their lists say. After an abort every
    unfinished line gets its closing step.
    """
    waiting = deque(lines)
    free = list(range(parallel))
    live: list[Line] = []
    try:
        while waiting or live:
            while waiting and free:
                line = waiting.popleft()
                free.sort()
                line.begin(slots, free.pop(0), system, recipe().sampling)
                live.append(line)
            live.sort(key=lambda line: line.slot)  # neighbours are evaluated in one go
            yield from _round(slots, system, tuple(live), recipe, drafting)
            for line in [line for line in live if line.finish_reason]:
                live.remove(line)
                free.append(line.slot)
                line.close()
    except Cancelled:
        for line in (*live, *waiting):
            yield line, Step(None, line.end("cancelled"), finish_reason="cancelled")
    finally:
        for line in live:
            line.close()


def _round(
    slots: Slots, system: System, live: Sequence[Line], recipe: Callable[[], Recipe], drafting: Drafting | None
) -> Iterator[tuple[Line, Step]]:
    """Give every live line its next token, and those after it as long as the guesses before them are taken."""
    rule = drafting.rule if drafting else RULES["shared-noise"]
    watch = Stopwatch(slots)
    rooms = [slots.room(line.slot, system.roles) for line in live]
    lengths = [{name: slots.length(line.slot, name) for name in system.roles} for line in live]
    drafts, drafting_roles = _drafts(slots, system, live, rooms, recipe(), drafting)
    rest = [name for name in system.roles if name not in drafting_roles]
    for line, draft in zip(live, drafts, strict=True):
        slots.push(line.slot, rest, draft.tokens)
    evaluated = slots.evaluate([line.slot for line in live], rest, [len(draft.tokens) + 1 for draft in drafts])
    logits = {name: [system.common(name, part) for part in parts] for name, parts in evaluated.items()}
    outcomes = []
    for i, (line, draft) in enumerate(zip(live, drafts, strict=True)):
        accepted = 0
        for row, guess in enumerate(draft.offers):
            settings = recipe()
            rows = rows_of(draft, logits, i, row)
            scores = system.scores(settings, rows, line.lawful(system, settings))[0]
            token = line.choose(system, scores, settings.sampling, rule, guess)
            text = line.add(token, system, settings.sampling)
            if line.finish_reason is None and rooms[i] <= row:  # it could not be evaluated
                text += line.end("context")
            right = guess is not None and token == guess.token
            drafted = right and row < len(draft.guesses)
            accepted += drafted
            step = _describe(line, token, text, rows, scores, system, settings, drafted=drafted)
            watch.stop()
            yield line, step
            watch.start()
            if line.finish_reason or not drafted:
                break
        next_right = right if draft.next and row == len(draft.guesses) else None
        outcomes.append(Outcome(min(row + 1, len(draft.guesses)), accepted, next_right))
        if line.finish_reason is None:
            for name in system.roles:
                slots.rewind(line.slot, name, lengths[i][name] + accepted)
            slots.push(line.slot, system.roles, [token])
    if drafting:
        drafting.length.observe(outcomes)
    watch.stop()
    watch.share(live)


def _drafts(
    slots: Slots, system: System, live: Sequence[Line], rooms: Sequence[int], recipe: Recipe, drafting: Drafting | None
) -> tuple[list[Draft], tuple[str, ...]]:
    """Draft for every live line; return the drafts and the roles that were evaluated for them."""
    most = min(slots.outputs, rows_at_once(recipe)) - 1
    if drafting and drafting.length.begin(len(live), most):
        limits = [
            # A line whose prompt is not evaluated yet gets no draft: its first token's time is the prompt's.
            int(max(0, min(most, room, line.remaining(recipe.sampling) - 1))) if line.tokens else 0
            for line, room in zip(live, rooms, strict=True)
        ]
        if any(limits):
            now = Round(slots, system, live, limits, recipe, drafting.length)
            drafts = drafting.drafter.draft(now, range(len(live)))
            return [drafts[i] for i in range(len(live))], drafting.drafter.roles
    return [Draft() for _ in live], ()


def _describe(
    line: Line,
    token: int,
    text: str,
    rows: Mapping[str, Floats],
    scores: Floats,
    system: System,
    recipe: Recipe,
    *,
    drafted: bool,
) -> Step:
    step = Step(token, text, drafted=drafted, finish_reason=line.finish_reason)
    if not (line.facts or line.top):
        return step
    own = MIXTURE if system.mixture else system.roles[0]
    rows_of_all = {name: row[0] for name, row in rows.items()} | {own: scores}
    ends = partial(line.ends, system=system)
    evidence = Evidence(recipe, rows_of_all, line.top, system.vocabulary.piece, ends)
    if line.later:
        return replace(step, evidence=evidence.kept())
    return known([replace(step, evidence=evidence)])[0]
