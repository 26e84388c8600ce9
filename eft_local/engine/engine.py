"""The engine: requests join and leave at any time, and every round gives each running answer its next tokens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from eft_local.backends.base import Floats
from eft_local.engine.cache import Cache, Part
from eft_local.engine.request import Request
from eft_local.engine.scheduler import PromptPace, divide
from eft_local.engine.sequence import Sequence
from eft_local.engine.speculative.acceptance import RULES, DraftToken
from eft_local.engine.speculative.drafters import Draft, Drafting, DraftingSource, Round
from eft_local.engine.speculative.length import Outcome
from eft_local.engine.step import Step
from eft_local.errors import Cancelled
from eft_local.placement.survey import rows_at_once
from eft_local.recipe import Recipe


class Output(NamedTuple):
    """What a round has made of a sequence: its next step, or the error that ended it."""

    sequence: Sequence
    step: Step | None = None
    error: Exception | None = None


class Turn(NamedTuple):
    """A sequence that gets tokens in this round.

    drafting: how its draft is judged.  lengths: tokens that each role held before; room: how many more fitted.
    """

    sequence: Sequence
    draft: Draft
    drafting: Drafting | None
    lengths: Mapping[str, int]
    room: int


class Engine:
    """Runs requests side by side. One thread at a time; `abort` alone may be called from another one."""

    def __init__(self, cache: Cache, drafting: DraftingSource | None = None) -> None:
        self.cache = cache
        self._followed: deque[Sequence] = deque()  # that somebody waits for, token by token: they are admitted first
        self._others: deque[Sequence] = deque()
        self._running: list[Sequence] = []
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
        self.cache.check(sequence.texts, len(request.given) - 1 if request.given else 0)
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
        self.cache.resume()  # before anybody's wish to end is read: one that comes later stops the evaluation
        outputs = self._schedule()
        running = tuple(self._running)
        if running:
            outputs += self._round(running, started)
        for sequence in [each for each in self._running if each.finish_reason]:
            self._leave(sequence)
        return outputs

    def give_up(self, error: Exception) -> list[Output]:
        """End everything with an error."""
        return [self._fail(sequence, error) for sequence in (*self._running, *self._followed, *self._others)]

    # schedule

    def _schedule(self) -> list[Output]:
        """Let cancelled requests go, and waiting ones in, first come first served."""
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
        return outputs

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

    # draft → evaluate → mix → choose → commit

    def _round(self, running: tuple[Sequence, ...], started: float) -> list[Output]:
        """Read a part of the prompts that come in, and give all other sequences their next tokens."""
        followed = any(each.tokens and each.request.followed for each in running)
        reading, ready = divide(running, self._pace.chunk(beside=followed), shared=followed)
        lengths = {id(each): {name: kv.length for name, kv in each.kv.items()} for each in running}
        try:
            turns = self._draft(ready, lengths)
            logits = self._evaluate(turns, reading)
        except Cancelled:  # by all that run: they end with the next round
            _restore(running, lengths)
            return []
        except Exception as error:
            return self._find_fault(running, lengths, error)
        outputs = self._write(turns, logits)
        seconds = time.perf_counter() - started
        for sequence in running:
            sequence.count(seconds / len(running))
        if followed:
            self._pace.learn(seconds, max((part.tokens or 0 for part in reading), default=0))
        return outputs

    def _draft(self, ready: list[Sequence], lengths: Mapping[int, Mapping[str, int]]) -> list[Turn]:
        """Let small roles write ahead, for all answers together that are drafted for in the same way."""
        drafts = {id(each): _given_tokens(each) for each in ready}
        # An answer that has not begun gets no draft: its first token's time is the prompt's.
        chosen = {id(each): self._drafting.choose(each, self.cache) if each.tokens else None for each in ready}
        rooms = {id(each): each.room for each in ready}
        for drafting in dict.fromkeys(each for each in chosen.values() if each):
            group = [each for each in ready if chosen[id(each)] is drafting]
            most = [_most_drafted(each) for each in group]
            limits = [int(max(0, min(n, each.room, each.remaining - 1))) for n, each in zip(most, group, strict=True)]
            if drafting.length.begin(len(group), max(most)) and any(limits):
                made = drafting.drafter.draft(Round(self.cache, group, limits, drafting.length), range(len(group)))
                drafts |= {id(each): made[i] for i, each in enumerate(group)}
        return [Turn(each, drafts[id(each)], chosen[id(each)], lengths[id(each)], rooms[id(each)]) for each in ready]

    def _evaluate(self, turns: list[Turn], reading: list[Part]) -> dict[tuple[int, str], Floats]:
        """Evaluate what is pending; return the logits that drafting has not given, by sequence and role."""
        wanted: list[tuple[Turn, str, Part]] = []
        for turn in turns:
            tokens = turn.draft.tokens
            for name, kv in turn.sequence.kv.items():
                if name not in turn.draft.rows:
                    kv.pending += tokens
                    wanted.append((turn, name, Part(kv, len(tokens) + 1)))
        logits = self.cache.evaluate([*(part for _, _, part in wanted), *reading])
        return {
            (id(turn.sequence), name): turn.sequence.request.target.shared(name, rows)
            for (turn, name, _), rows in zip(wanted, logits, strict=False)
        }

    def _write(self, turns: list[Turn], logits: Mapping[tuple[int, str], Floats]) -> list[Output]:
        """Give every sequence its next tokens; one that fails ends alone."""
        outputs: list[Output] = []
        outcomes: dict[Drafting, list[Outcome]] = {}
        for turn in turns:
            outcome = Outcome(0, 0)
            try:
                steps, outcome = _next_tokens(turn, logits)
            except Exception as error:
                outputs.append(self._fail(turn.sequence, error))
            else:
                outputs += (Output(turn.sequence, step) for step in steps)
            if turn.drafting:
                outcomes.setdefault(turn.drafting, []).append(outcome)
        for drafting, made in outcomes.items():
            drafting.length.observe(made)
        return outputs

    def _find_fault(
        self, running: tuple[Sequence, ...], lengths: Mapping[int, Mapping[str, int]], error: Exception
    ) -> list[Output]:
        """After an evaluation that failed: run the sequences one by one, so that only those end that fail alone."""
        _restore(running, lengths)
        if len(running) == 1:
            return [self._fail(running[0], error)]
        return [output for each in running for output in self._round((each,), time.perf_counter())]

    def _fail(self, sequence: Sequence, error: Exception) -> Output:
        self._leave(sequence)
        return Output(sequence, error=error)


def _next_tokens(turn: Turn, logits: Mapping[tuple[int, str], Floats]) -> tuple[list[Step], Outcome]:
    """Mix, choose and commit a sequence's next token, and those after it as long as its draft is right."""
    sequence, draft = turn.sequence, turn.draft
    rule = turn.drafting.rule if turn.drafting else RULES["shared-noise"]
    steps: list[Step] = []
    accepted = 0
    for row, draft_token in enumerate(draft.offers):
        rows = {
            name: draft.rows[name][row] if name in draft.rows else logits[id(sequence), name][row : row + 1]
            for name in sequence.kv
        }
        scores = sequence.request.target.scores(sequence.recipe, rows, sequence.lawful)[0]
        token = sequence.choose(scores, rule, draft_token)
        text = sequence.add(token)
        if sequence.finish_reason is None and turn.room <= row:  # it could not be evaluated
            text += sequence.end("context")
        right = draft_token is not None and token == draft_token.token
        drafted = right and row < len(draft.draft_tokens)
        accepted += drafted
        steps.append(sequence.step(token, text, rows, scores, drafted=drafted))
        if sequence.finish_reason or not drafted:
            break
    if sequence.finish_reason is None:
        for name, kv in sequence.kv.items():
            kv.rewind(turn.lengths[name] + accepted)
            kv.pending.append(token)
    next_right = right if draft.next and row == len(draft.draft_tokens) else None
    return steps, Outcome(min(row + 1, len(draft.draft_tokens)), accepted, next_right)


def _most_drafted(sequence: Sequence) -> int:
    """Return how many tokens a draft may have: the rows of logits that its contexts give, but for one."""
    outputs = min(kv.context.outputs for kv in sequence.kv.values())
    return min(outputs, rows_at_once(sequence.recipe)) - 1


def _given_tokens(sequence: Sequence) -> Draft:
    """Return the tokens that are to be scored next, as a draft that is always right; an empty one for an answer."""
    left = (sequence.request.given or ())[len(sequence.tokens) :]
    outputs = min(kv.context.outputs for kv in sequence.kv.values())
    return Draft([DraftToken(token) for token in left[: max(0, min(outputs, len(left)) - 1)]])


def _restore(running: Iterable[Sequence], lengths: Mapping[int, Mapping[str, int]]) -> None:
    """Let all roles hold what they held before the round."""
    for sequence in running:
        for name, kv in sequence.kv.items():
            kv.restore(lengths[id(sequence)][name])
