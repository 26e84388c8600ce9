"""Slots: a context for each role, with room for several answers that are being written at the same time.

A role's prompt in a slot is one sequence of a context. Roles on the same weights and adapter are sequences of one
context, so that their rows go through the weights together. What a sequence's cache holds is kept as a list of token
ids: the next prompt in that slot evaluates only what follows the longest common prefix.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from eft_local.backends.base import Evaluator, Floats, Rows
from eft_local.engine.loading import LoadedRole
from eft_local.errors import ContextOverflowError


@dataclass(slots=True)
class _Sequence:
    """One role's tokens in one slot: `cached` are in the context's memory, `pending` are to be evaluated next."""

    evaluator: Evaluator
    number: int
    cached: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.cached) + len(self.pending)

    def begin(self, prompt: Sequence[int]) -> int:
        """Make `prompt` the sequence's content; return how many of its tokens must be evaluated."""
        # The evaluator knows best what it holds: a failed evaluation ends a recurrent sequence, and an interrupt may
        # come before `settle`.
        held = self.evaluator.length(self.number)
        del self.cached[held:]
        # The last token is always evaluated: its logits choose the first token of the answer.
        kept = min(common_prefix(self.cached, prompt), len(prompt) - 1)
        self.pending = []
        if kept < held:
            self._forget(kept)
        self.pending += prompt[self.length :]
        return len(self.pending)

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens; those of them that the evaluator could not keep are pending again."""
        if length >= len(self.cached):
            del self.pending[length - len(self.cached) :]
        else:
            self._forget(length)

    def _forget(self, length: int) -> None:
        kept = self.evaluator.rewind(self.number, length)
        self.pending = self.cached[kept:length]
        del self.cached[kept:]

    def settle(self) -> None:
        """What was pending has been evaluated."""
        self.cached += self.pending
        self.pending = []


@dataclass(slots=True)
class _Group:
    """Roles on the same weights and adapter: one context, whose sequences are numbered role by role.

    room: tokens that each sequence can hold.  rows: of logits that one evaluation can give at most.
    """

    evaluator: Evaluator
    roles: list[str]
    room: int
    rows: int


class RowAdvice(Protocol):
    """Knows what several rows cost."""

    def cheapest(self, name: str, rows: int) -> int:
        """Return how many rows of a role's context to evaluate, at least so many, to have these soonest."""

    def learn(self, name: str, rows: int, seconds: float) -> None:
        """Hear of an evaluation that gave logits of all its rows."""


class Slots:
    """Contexts for `roles`, each with `slots` sequences of at most `context` tokens."""

    def __init__(
        self,
        roles: Mapping[str, LoadedRole],
        *,
        context: int,
        slots: int = 1,
        longest: Mapping[str, int] | None = None,
        outputs: int = 1,
    ) -> None:
        """longest: tokens that a slot of a role needs room for, by role, if fewer than `context`.
        outputs: rows of logits that `evaluate` can return per slot.

        Raises: OutOfMemoryError.
        """
        self.context = context
        self.outputs = outputs
        self._slots = slots
        self.seconds: dict[str, float] = dict.fromkeys(roles, 0.0)
        self.advice: RowAdvice | None = None
        self._groups: list[_Group] = []
        self._sequences: dict[tuple[str, int], _Sequence] = {}
        with ExitStack() as cleanup:
            for names in _by_context(roles):
                room = max(longest[name] for name in names) if longest else context
                rows = len(names) * slots * outputs
                evaluator = roles[names[0]].open(n_ctx=room, n_seq=len(names) * slots, n_outputs=rows)
                cleanup.callback(evaluator.close)
                self._groups.append(_Group(evaluator, names, room, min(room, rows)))
                for index, name in enumerate(names):
                    for slot in range(slots):
                        self._sequences[name, slot] = _Sequence(evaluator, index * slots + slot)
            self._cleanup = cleanup.pop_all()

    def begin(self, slot: int, prompts: Mapping[str, Sequence[int]], room: int = 0) -> dict[str, int]:
        """Give a slot a prompt per role; return how many tokens of each must be evaluated.

        room: tokens that must fit behind each prompt. Raises: ContextOverflowError if they do not.
        """
        self.check(prompts, room)
        return {name: self._sequences[name, slot].begin(prompt) for name, prompt in prompts.items()}

    def check(self, prompts: Mapping[str, Sequence[int]], room: int = 0) -> None:
        """Raise ContextOverflowError if a role's prompt, and `room` tokens behind it, do not fit."""
        for name, prompt in prompts.items():
            if len(prompt) + room > self.context:
                behind = f" and {room} follow" if room > 0 else ""
                raise ContextOverflowError(
                    f"the prompt of {name} has {len(prompt)} tokens{behind}; the context holds {self.context}: "
                    "shorten the conversation or raise `context` in the recipe"
                )

    def push(self, slot: int, roles: Sequence[str], tokens: Sequence[int]) -> None:
        """Append tokens to a slot's sequences; they are evaluated with the next `evaluate`."""
        for name in roles:
            self._sequences[name, slot].pending += tokens

    def room(self, slot: int, roles: Sequence[str]) -> int:
        """How many more tokens fit into the slot's sequence of every role."""
        return min(self.context - self._sequences[name, slot].length for name in roles)

    def length(self, slot: int, name: str) -> int:
        """Tokens of a role's sequence, evaluated or pending."""
        return self._sequences[name, slot].length

    def rewind(self, slot: int, name: str, length: int) -> None:
        """Keep the first `length` tokens of a role's sequence."""
        self._sequences[name, slot].rewind(length)

    def evaluate(self, slots: Sequence[int], roles: Sequence[str], outputs: Sequence[int]) -> dict[str, list[Floats]]:
        """Evaluate what is pending in these slots; return per role and slot the logits [outputs of it, n_vocab].

        All roles are submitted before the first is read: on a GPU they overlap. The arrays are views, valid until
        the next call. Adds to `seconds`.
        Raises: Cancelled, EvaluationError, ContextOverflowError; each sequence is then as it was, or evaluated.
        """
        active = [(group, [name for name in group.roles if name in roles]) for group in self._groups]
        active = [(group, names) for group, names in active if names]
        evaluated: list[int] = []
        submitted: list[float] = []
        for group, names in active:
            started = time.perf_counter()
            sequences = [self._sequences[name, slot] for name in names for slot in slots]
            batch = [
                Rows(each.number, each.pending, rows)
                for each, rows in zip(sequences, [*outputs] * len(names), strict=True)
            ]
            evaluated.append(self._submit(group, names[0], batch))
            for each in sequences:
                each.settle()
            submitted.append(self._count(names, started))
        logits: dict[str, list[Floats]] = {}
        for (group, names), evaluated_rows, before in zip(active, evaluated, submitted, strict=True):
            started = time.perf_counter()
            rows, wanted = group.evaluator.logits(), [*outputs] * len(names)
            parts = [rows[end - count : end] for end, count in zip(accumulate(wanted), wanted, strict=True)]
            for index, name in enumerate(names):
                logits[name] = parts[index * len(slots) : (index + 1) * len(slots)]
            seconds = before + self._count(names, started)
            if self.advice and evaluated_rows == len(rows) and len(set(wanted)) == 1:
                self.advice.learn(names[0], evaluated_rows, seconds)
        return logits

    def _submit(self, group: _Group, name: str, batch: list[Rows]) -> int:
        """Submit a batch; return its rows. Where those of one sequence all give logits there may be more of them, which
        are forgotten at once: kernels work in fours, and four rows may be sooner done than three.
        """
        rows = sum(len(each.tokens) for each in batch)
        if not self.advice or len(batch) > 1 or rows > batch[0].outputs:
            group.evaluator.submit(batch)
            return rows
        sequence, length = batch[0].sequence, group.evaluator.length(batch[0].sequence) + rows
        more = self.advice.cheapest(name, rows) - rows
        if rows + more > group.rows or length + more > group.room:
            more = 0
        group.evaluator.submit([Rows(sequence, [*batch[0].tokens, *[0] * more], rows + more)])
        if more:
            group.evaluator.rewind(sequence, length)
        return rows + more

    def most_rows(self, name: str) -> int:
        """Return how many rows one evaluation of a role's empty context can have."""
        return self._group(name).rows

    def time_rows(self, name: str, rows: int) -> float:
        """Return the seconds that one evaluation of so many rows takes in a role's context, behind what it holds.

        What it holds stays, as far as there is room behind it.
        """
        group, sequence = self._group(name), self._sequences[name, 0]
        evaluator = group.evaluator
        if evaluator.length(sequence.number) + rows > group.room:
            sequence.rewind(group.room - rows)
        length = evaluator.length(sequence.number)
        started = time.perf_counter()
        evaluator.submit([Rows(sequence.number, [0] * rows, rows)])
        evaluator.logits()
        seconds = time.perf_counter() - started
        evaluator.rewind(sequence.number, length)
        return seconds

    def abort(self) -> None:
        """Stop a running `evaluate`; callable from any thread."""
        for group in self._groups:
            group.evaluator.abort()

    def resume(self) -> None:
        """Allow evaluations again after `abort`."""
        for group in self._groups:
            group.evaluator.resume()

    def close(self) -> None:
        self._cleanup.close()

    def _group(self, name: str) -> _Group:
        return next(group for group in self._groups if name in group.roles)

    def _count(self, names: Sequence[str], started: float) -> float:
        """Share the time since `started` among roles; return it."""
        seconds = time.perf_counter() - started
        for name in names:
            self.seconds[name] += seconds / len(names)
        return seconds


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def _by_context(roles: Mapping[str, LoadedRole]) -> list[list[str]]:
    """Names of roles that can share a context."""
    groups: dict[Hashable, list[str]] = {}
    for name, role in roles.items():
        groups.setdefault(role.context_key, []).append(name)
    return list(groups.values())
