"""The KV caches: what every model has read so far, for all requests, and the one place where tokens are evaluated.

A context holds several sequences on one model with its adapter and placement; roles that run on the same ones are
sequences of one context, so that their tokens go through the weights together. Contexts live as long as the emulator.
A sequence that no request uses keeps its tokens: the next prompt starts from the longest common prefix of anything
that its context holds, whoever wrote it, and the least recently used sequence gives way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np

from eft_local.backends.base import Evaluator, Floats, Rows
from eft_local.engine.kv import ContextCache, KVSequence, common_prefix
from eft_local.engine.loading import LoadedRole
from eft_local.engine.speculative.costs import MEASURED_ROWS, RowCosts, row_costs
from eft_local.errors import ContextOverflowError

_SHARED = 16
"""Tokens that a prefix must save for it to be copied or waited for: fewer are evaluated as fast."""


class Part(NamedTuple):
    """A sequence's share of an evaluation: its first `tokens` pending ones (None: all), and logits of the last
    `outputs` of them.
    """

    sequence: KVSequence
    outputs: int = 1
    tokens: int | None = None


class _Place(NamedTuple):
    """Where a prompt goes: a free sequence, after a copy of another one's tokens if that saves some."""

    sequence: KVSequence
    source: KVSequence | None


class Cache:
    """The contexts of all roles that are loaded."""

    def __init__(self, context: int) -> None:
        """context: tokens that a role can hold."""
        self.context = context
        self._roles: dict[str, LoadedRole] = {}
        self._contexts: dict[Hashable, list[ContextCache]] = {}
        self._costs: dict[tuple[Hashable, int], RowCosts] = {}
        self._clock = count(1)

    def reserve(
        self, roles: Mapping[str, LoadedRole], *, parallel: int = 1, room: int | None = None, outputs: int = 1
    ) -> None:
        """Make sure that so many requests of these roles fit side by side.

        room: tokens that each role needs; None for as many as the context has. outputs: rows of logits of each at once.
        Contexts that do not suffice are replaced if nobody uses them. Raises: OutOfMemoryError.
        """
        self._roles |= roles
        for names in _by_context(roles):
            contexts = self._contexts.setdefault(roles[names[0]].context_key, [])
            wanted = len(names) * parallel
            needed = min(room or self.context, self.context)
            fitting = [each for each in contexts if each.room >= needed and len(each.sequences) >= wanted]
            if any(each.outputs >= outputs or not each.idle for each in fitting):
                continue
            for each in [each for each in contexts if each.idle and each.room <= max(needed, self.context - 1)]:
                wanted = max(wanted, len(each.sequences)) if each.room == needed == self.context else wanted
                contexts.remove(each)
                each.evaluator.close()
            contexts.append(ContextCache(roles[names[0]], sequences=wanted, room=needed, outputs=outputs))

    @property
    def contexts(self) -> list[ContextCache]:
        """All contexts that are open."""
        return [context for contexts in self._contexts.values() for context in contexts]

    def admit(
        self, prompts: Mapping[str, Sequence[int]], room: Mapping[str, int], outputs: int
    ) -> dict[str, KVSequence] | None:
        """Give each role's prompt a sequence with room for so many tokens; None while there is none.

        That is also while another request evaluates a prefix which these prompts share: it is copied soon.
        outputs: rows of logits that are wanted of each at once; where a context is in use, what it has must do.
        Raises: OutOfMemoryError.
        """
        places: dict[str, _Place] = {}
        for names in _by_context({name: self._roles[name] for name in prompts}):
            needed = max(room[name] for name in names)
            found = self._places({name: prompts[name] for name in names}, needed, outputs)
            if found is None:
                return None
            places |= found
        now = next(self._clock)
        for sequence, source in places.values():
            if source is not None:
                sequence.context.evaluator.copy(source.number, sequence.number)
                sequence.cached = list(source.cached)
        for name, (sequence, _) in places.items():
            sequence.free, sequence.used, sequence.seconds = False, now, 0.0
            sequence.begin(prompts[name])
        return {name: place.sequence for name, place in places.items()}

    def measure(self, sequences: Sequence[KVSequence]) -> None:
        """Measure what several rows cost in these sequences' contexts, where that is not known."""
        for sequence in sequences:
            context = sequence.context
            most = min(context.rows, MEASURED_ROWS[-1])
            key = context.role.context_key, most
            if key not in self._costs:
                self._costs[key] = row_costs(context.role, partial(context.time_rows, sequence), most)
            context.costs = self._costs[key]

    def evaluate(self, parts: Sequence[Part]) -> list[Floats]:
        """Evaluate what is pending; return the logits of each part, [outputs, n_vocab].

        All contexts are given their work before the first is read: on a GPU they overlap. The arrays are views, valid
        until the next call. Raises: Cancelled, EvaluationError, ContextOverflowError; each sequence is then as it was,
        or evaluated.
        """
        contexts: dict[int, list[int]] = {}
        for index, part in enumerate(parts):
            contexts.setdefault(id(part.sequence.context), []).append(index)
        submitted = []
        for indices in contexts.values():
            indices.sort(key=lambda index: parts[index].sequence.number)
            submitted.append(self._submit([parts[index] for index in indices]))
        logits = [_NO_LOGITS] * len(parts)
        for indices, (rows, before) in zip(contexts.values(), submitted, strict=True):
            started = time.perf_counter()
            mine = [parts[index] for index in indices]
            context = mine[0].sequence.context
            given = context.evaluator.logits() if any(part.outputs for part in mine) else None
            start = 0
            for index, part in zip(indices, mine, strict=True):
                if given is not None:
                    logits[index] = given[start : start + part.outputs]
                    start += part.outputs
            seconds = before + _share(mine, started)
            if context.costs and given is not None and rows == len(given) and len({part.outputs for part in mine}) == 1:
                context.costs.learn(rows, seconds)
        return logits

    def _submit(self, parts: Sequence[Part]) -> tuple[int, float]:
        """Submit the parts of one context; return the rows and the seconds."""
        started = time.perf_counter()
        now = [part.sequence.pending[: part.tokens] for part in parts]
        batch = [Rows(part.sequence.number, tokens, part.outputs) for part, tokens in zip(parts, now, strict=True)]
        rows = parts[0].sequence.context.submit(batch)
        for part, tokens in zip(parts, now, strict=True):
            part.sequence.cached += tokens
            del part.sequence.pending[: len(tokens)]
        return rows, _share(parts, started)

    def forget(self) -> None:
        """Forget what sequences hold that nobody uses."""
        for sequence in [each for context in self.contexts for each in context.free]:
            sequence.context.evaluator.rewind(sequence.number, 0)
            sequence.cached = []

    def abort(self) -> None:
        """Stop a running `evaluate`; callable from any thread."""
        self._each(lambda evaluator: evaluator.abort())

    def resume(self) -> None:
        """Allow evaluations again after `abort`."""
        self._each(lambda evaluator: evaluator.resume())

    def close(self) -> None:
        self._each(lambda evaluator: evaluator.close())
        self._contexts.clear()

    def _each(self, act: Callable[[Evaluator], None]) -> None:
        for context in self.contexts:
            act(context.evaluator)

    def _places(self, prompts: Mapping[str, Sequence[int]], room: int, outputs: int) -> dict[str, _Place] | None:
        """Find sequences of one context for the prompts of roles that share one."""
        role = self._roles[next(iter(prompts))]
        contexts = [each for each in self._contexts.get(role.context_key, []) if each.room >= room]
        large_enough = [each for each in contexts if len(each.sequences) >= len(prompts)]
        if not large_enough or all(each.outputs < outputs and each.idle for each in large_enough):
            if any(not each.idle for each in contexts):
                return None
            self.reserve({name: self._roles[name] for name in prompts}, outputs=outputs)
            return self._places(prompts, room, outputs)
        enough = [each for each in large_enough if each.outputs >= outputs] or large_enough
        free = [each for each in enough if len(each.free) >= len(prompts)]
        holding = max(free, key=lambda each: _saved(each, prompts), default=None)
        if holding is None or not _saved(holding, prompts):
            # The smallest that will do, even if it is full: what runs in one context is evaluated together.
            holding = min(enough, key=lambda each: each.room)
        if len(holding.free) < len(prompts):
            # Better now with shorter drafts than later.
            others = [each for each in large_enough if each not in enough and len(each.free) >= len(prompts)]
            if not others:
                return None
            holding = min(others, key=lambda each: each.room)
        return _placed(holding, prompts)


_NO_LOGITS: Floats = np.empty((0, 0), np.float32)


def _saved(context: ContextCache, prompts: Mapping[str, Sequence[int]]) -> int:
    """Return how many tokens of the prompts a context holds; few do not count."""
    saved = [max(common_prefix(each.cached, prompt) for each in context.sequences) for prompt in prompts.values()]
    return sum(tokens for tokens in saved if tokens >= _SHARED)


def _placed(context: ContextCache, prompts: Mapping[str, Sequence[int]]) -> dict[str, _Place] | None:
    """Choose a free sequence of a context for each prompt; None while a prefix of one is being evaluated."""
    common = {
        name: [common_prefix(each.cached, prompt) for each in context.sequences] for name, prompt in prompts.items()
    }
    rewinds = context.role.model.capabilities.rewinds
    places: dict[str, _Place] = {}
    free = context.free
    for name in sorted(prompts, key=lambda name: max(common[name]), reverse=True):
        held = common[name]
        source = max(context.sequences, key=lambda each: held[each.number])
        if rewinds and _promised(context, prompts[name]) - held[source.number] >= _SHARED:
            return None
        own = max(free, key=lambda each: held[each.number])
        if 2 * held[own.number] < max(len(own.cached), 2 * _SHARED):  # most of what it holds would be lost
            own = min(free, key=lambda each: (not _beside_others(each), each.used))
        copies = rewinds and source is not own and held[source.number] - held[own.number] >= _SHARED
        places[name] = _Place(own, source if copies else None)
        free.remove(own)
    copies_to = {place.sequence.number for place in places.values() if place.source}
    return {  # what is written over by a copy cannot be copied
        name: place._replace(source=None) if place.source and place.source.number in copies_to else place
        for name, place in places.items()
    }


def _promised(context: ContextCache, prompt: Sequence[int]) -> int:
    """Return how many of a prompt's first tokens a request that runs will have cached."""
    return max(
        (common_prefix(each.cached + each.pending, prompt) for each in context.sequences if each.pending), default=0
    )


def _beside_others(sequence: KVSequence) -> bool:
    """Whether a neighbour is in use: neighbours are evaluated in one pass."""
    around = sequence.context.sequences[max(0, sequence.number - 1) : sequence.number + 2]
    return any(not each.free for each in around)


def _share(parts: Sequence[Part], started: float) -> float:
    """Share the time since `started` among parts; return it."""
    seconds = time.perf_counter() - started
    for part in parts:
        part.sequence.seconds += seconds / len(parts)
    return seconds


def check_room(prompts: Mapping[str, Sequence[int]], context: int, *, after: int = 0) -> None:
    """Raise ContextOverflowError if a role's prompt, and so many tokens after it, do not fit."""
    for name, prompt in prompts.items():
        if len(prompt) + after > context:
            more = f" and {after} follow" if after > 0 else ""
            raise ContextOverflowError(
                f"the prompt of {name} has {len(prompt)} tokens{more}; the context holds {context}: "
                "shorten the conversation or raise `context` in the recipe"
            )


def _by_context(roles: Mapping[str, LoadedRole]) -> list[list[str]]:
    """Names of roles that can share a context."""
    groups: dict[Hashable, list[str]] = {}
    for name, role in roles.items():
        groups.setdefault(role.context_key, []).append(name)
    return list(groups.values())
