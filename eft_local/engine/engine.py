"""The engine: requests join and leave at any time, and every round gives each running answer its next tokens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from eft_local.engine.cache import Cache, Part, check_room
from eft_local.engine.extension import Extension
from eft_local.engine.request import Request
from eft_local.engine.scheduler import PromptPace, divide
from eft_local.engine.sequence import Sequence
from eft_local.engine.speculative.acceptance import DraftToken
from eft_local.engine.speculative.drafters import Draft, DraftingSource, Round
from eft_local.engine.step import Step
from eft_local.errors import Cancelled
from eft_local.placement.survey import rows_at_once
from eft_local.recipe import Recipe


class Output(NamedTuple):
    """What a round has made of a sequence: its next step, or the error that ended it."""

    sequence: Sequence
    step: Step | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a round does.

    extensions: the sequences that get tokens.  reading: parts of the prompts of the others.
    followed: whether somebody waits for tokens of a running answer.
    """

    extensions: list[Extension]
    reading: list[Part]
    others: list[Sequence]
    followed: bool

    @property
    def sequences(self) -> list[Sequence]:
        """All that take part."""
        return [*(each.sequence for each in self.extensions), *self.others]


class Engine:
    """Runs requests side by side. One thread at a time; `abort` alone may be called from another one."""

    def __init__(self, cache: Cache, drafting: DraftingSource | None = None) -> None:
        self.cache = cache
        self._followed: deque[Sequence] = deque()  # that somebody waits for, token by token: they are admitted first
        self._others: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._suspects: list[Sequence] = []  # of an evaluation that failed: each gets a round of its own
        self._drafting = drafting or DraftingSource()
        self._pace = PromptPace()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._followed or self._others or self._running)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The requests that are being answered."""
        return tuple(self._running)

    def add(self, request: Request) -> Sequence:
        """Queue a request. Raises: ContextOverflowError if it can never fit."""
        sequence = Sequence(request)
        check_room(sequence.texts, self.cache.context, after=len(request.given) - 1 if request.given else 0)
        (self._followed if request.followed else self._others).append(sequence)
        return sequence

    def change(self, sequence: Sequence, recipe: Recipe) -> None:
        """Let the next token of a sequence obey another recipe of the same models."""
        sequence.recipe = recipe

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """End sequences soon, with what they have; callable from any thread."""
        for sequence in sequences:
            sequence.cancelled = True
        running = tuple(self._running)
        if running and all(sequence.cancelled for sequence in running):
            self.cache.abort()  # nobody is harmed by it

    def step(self) -> list[Output]:
        """Run one round: schedule → draft → evaluate → mix → choose → commit."""
        started = time.perf_counter()
        outputs, schedule = self._schedule()
        try:
            self._draft(schedule)
            self._evaluate(schedule)
        except Exception as error:
            return outputs + self._undo(schedule, error)
        for extension in schedule.extensions:
            sequence = extension.sequence
            try:
                for position in extension.positions():
                    scores = sequence.request.target.mix(sequence.recipe, position.logits, sequence.lawful)
                    token = sequence.choose(scores, extension.rule, position.draft_token)
                    drafted = position.is_drafted(token)
                    step = sequence.commit(token, position.logits, scores, drafted=drafted)
                    outputs.append(Output(sequence, step))
            except Exception as error:  # it ends alone
                outputs.append(self._fail(sequence, error))
        self._conclude(schedule, time.perf_counter() - started)
        return outputs

    def give_up(self, error: Exception) -> list[Output]:
        """End everything with an error."""
        return [self._fail(sequence, error) for sequence in (*self._running, *self._followed, *self._others)]

    # schedule

    def _schedule(self) -> tuple[list[Output], Schedule]:
        """Let cancelled requests go, and waiting ones in, first come first served; say who does what in this round."""
        self.cache.resume()  # before anybody's wish to end is read: one that comes later stops the evaluation
        everybody = (*self._running, *self._followed, *self._others)
        outputs = [self._end(sequence) for sequence in everybody if sequence.cancelled]
        for waiting in (self._followed, self._others):
            while waiting:
                try:
                    if not self._admit(waiting[0]):
                        break
                except Exception as error:
                    outputs.append(self._fail(waiting[0], error))
                else:
                    self._running.append(waiting.popleft())
        self._suspects = [each for each in self._suspects if each in self._running]
        running = [self._suspects.pop(0)] if self._suspects else self._running
        followed = any(each.tokens and each.request.followed for each in running)
        reading, ready = divide(running, self._pace.chunk(beside=followed), shared=followed)
        others = [each for each in running if each not in ready]
        return outputs, Schedule([Extension(each) for each in ready], reading, others, followed)

    def _admit(self, sequence: Sequence) -> bool:
        """Give a sequence its place in the caches; return whether there is one now."""
        request = sequence.request
        limit = self.cache.context
        room = {name: int(min(limit, len(text) + request.longest)) for name, text in sequence.texts.items()}
        kv = self.cache.admit(sequence.texts, room, request.outputs or rows_at_once(request.recipe))
        if kv is None:
            return False
        sequence.begin(kv)
        return True

    def _end(self, sequence: Sequence) -> Output:
        """End a sequence that is not wanted any more."""
        text = sequence.end("cancelled")
        self._leave(sequence)
        return Output(sequence, Step(None, text, finish_reason="cancelled"))

    def _leave(self, sequence: Sequence) -> None:
        """Free what a sequence holds; what its caches have read stays for others."""
        for each in (self._followed, self._others, self._running):
            if sequence in each:
                each.remove(sequence)
        for kv in sequence.kv.values():
            kv.release()
        sequence.close()

    # draft → evaluate

    def _draft(self, schedule: Schedule) -> None:
        """Let small roles write ahead, for all answers together that are drafted for in the same way."""
        for each in schedule.extensions:
            if each.sequence.request.given is not None:
                each.draft = _given_tokens(each.sequence)
            elif each.sequence.tokens:  # before that it gets no draft: its first token's time is the prompt's
                each.drafting = self._drafting.choose(each.sequence, self.cache)
        for drafting in dict.fromkeys(each.drafting for each in schedule.extensions if each.drafting):
            group = [each for each in schedule.extensions if each.drafting is drafting]
            limits = [each.limit for each in group]
            if drafting.length.begin(len(group), max(each.most for each in group)) and any(limits):
                answers = [each.sequence for each in group]
                drafts = drafting.drafter.draft(Round(self.cache, answers, limits, drafting.length), range(len(group)))
                for number, draft in drafts.items():
                    group[number].draft = draft

    def _evaluate(self, schedule: Schedule) -> None:
        """Evaluate what is pending, for the logits that drafting has not given."""
        wanted: list[tuple[Extension, str, Part]] = []
        for extension in schedule.extensions:
            tokens = extension.draft.tokens
            for name, kv in extension.sequence.kv.items():
                if name not in extension.draft.rows:
                    kv.pending += tokens
                    wanted.append((extension, name, Part(kv, len(tokens) + 1)))
        logits = self.cache.evaluate([*(part for _, _, part in wanted), *schedule.reading])
        for (extension, name, _), rows in zip(wanted, logits, strict=False):
            extension.logits[name] = extension.sequence.request.target.shared(name, rows)

    def _undo(self, schedule: Schedule, error: Exception) -> list[Output]:
        """After an evaluation that failed: hold what was held before, and see who fails alone."""
        for extension in schedule.extensions:
            extension.undo()
        for sequence in schedule.others:
            for kv in sequence.kv.values():
                kv.restore(kv.length)
        sequences = schedule.sequences
        if isinstance(error, Cancelled):  # by all that run: they end with the next round
            return []
        if len(sequences) == 1:
            return [self._fail(sequences[0], error)]
        self._suspects = sequences
        return []

    def _conclude(self, schedule: Schedule, seconds: float) -> None:
        """Learn from what a round took and from what became of its drafts; let go those that have ended."""
        sequences = schedule.sequences
        for drafting in dict.fromkeys(each.drafting for each in schedule.extensions if each.drafting):
            drafting.length.observe([each.outcome for each in schedule.extensions if each.drafting is drafting])
        for sequence in sequences:
            sequence.count(seconds / len(sequences))
            if sequence.finish_reason:
                self._leave(sequence)
        if schedule.followed:
            self._pace.learn(seconds, max((part.tokens or 0 for part in schedule.reading), default=0))

    def _fail(self, sequence: Sequence, error: Exception) -> Output:
        self._leave(sequence)
        return Output(sequence, error=error)


def _given_tokens(sequence: Sequence) -> Draft:
    """Return the tokens that are to be scored next, as a draft that is always right."""
    left = (sequence.request.given or ())[len(sequence.tokens) :]
    outputs = min(kv.context.outputs for kv in sequence.kv.values())
    return Draft([DraftToken(token) for token in left[: max(0, min(outputs, len(left)) - 1)]])
