"""One context and its sequences: what each has cached, and the evaluations that extend it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from eft_local.backends.base import Evaluator, Rows
from eft_local.engine.loading import LoadedRole
from eft_local.engine.speculative.costs import RowCosts


@dataclass(slots=True, eq=False)
class KVSequence:
    """One sequence of a context: `cached` tokens are in its memory, `pending` ones are evaluated next.

    seconds: spent on evaluating it, since it was last taken. used: when that was; larger is later.
    """

    context: ContextCache
    number: int
    cached: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    free: bool = True
    used: int = 0
    seconds: float = 0.0

    @property
    def length(self) -> int:
        return len(self.cached) + len(self.pending)

    def begin(self, prompt: Sequence[int]) -> int:
        """Make `prompt` the sequence's content; return how many of its tokens must be evaluated."""
        # The last token is always evaluated: its logits choose the first token of the answer.
        kept = min(common_prefix(self.cached, prompt), len(prompt) - 1)
        self.pending = []
        if kept < len(self.cached):
            self._forget(kept)
        self.pending += prompt[self.length :]
        return len(self.pending)

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens; those of them that the evaluator could not keep are pending again."""
        if length >= len(self.cached):
            del self.pending[length - len(self.cached) :]
        else:
            self._forget(length)

    def restore(self, length: int) -> None:
        """After an evaluation that failed: hold the first `length` tokens again, at least the last one pending."""
        self.cached, self.pending = [], (self.cached + self.pending)[:length]
        held = min(self.context.evaluator.length(self.number), length - 1)
        kept = self.context.evaluator.rewind(self.number, held)
        self.cached, self.pending = self.pending[:kept], self.pending[kept:]

    def uncache(self, length: int) -> None:
        """Cache no more than the first `length` tokens; what follows is pending again."""
        if length < len(self.cached):
            kept = self.context.evaluator.rewind(self.number, length)
            self.cached, self.pending = self.cached[:kept], self.cached[kept:] + self.pending

    def release(self) -> None:
        """Let other requests have it; what it has cached stays until then."""
        self.pending = []
        del self.cached[self.context.evaluator.length(self.number) :]  # a failed evaluation may have ended it
        self.free = True

    def _forget(self, length: int) -> None:
        kept = self.context.evaluator.rewind(self.number, length)
        self.pending = self.cached[kept:length]
        del self.cached[kept:]


class ContextCache:
    """One context and its sequences.

    room: tokens that each sequence can hold.  outputs: rows of logits that one evaluation gives of each sequence,
    rows: of all together, at most.  costs: what several rows cost; None until they were measured.
    """

    def __init__(self, role: LoadedRole, *, sequences: int, room: int, outputs: int) -> None:
        """Raises: OutOfMemoryError."""
        self.role = role
        self.room = room
        self.outputs = outputs
        self.rows = min(room, sequences * outputs)
        self.costs: RowCosts | None = None
        self.evaluator: Evaluator = role.open(n_ctx=room, n_seq=sequences, n_outputs=sequences * outputs)
        self.sequences = [KVSequence(self, number) for number in range(sequences)]

    @property
    def idle(self) -> bool:
        return all(sequence.free for sequence in self.sequences)

    @property
    def free(self) -> list[KVSequence]:
        return [sequence for sequence in self.sequences if sequence.free]

    def submit(self, batch: list[Rows]) -> int:
        """Submit a batch; return its rows. Where those of one sequence all give logits there may be more of them, which
        are forgotten at once: kernels work in fours, and four rows may be sooner done than three.
        """
        rows = sum(len(each.tokens) for each in batch)
        if not self.costs or len(batch) > 1 or rows > batch[0].outputs:
            self.evaluator.submit(batch)
            return rows
        sequence, length = batch[0].sequence, self.evaluator.length(batch[0].sequence) + rows
        more = self.costs.cheapest(rows) - rows
        if rows + more > self.rows or length + more > self.room:
            more = 0
        self.evaluator.submit([Rows(sequence, [*batch[0].tokens, *[0] * more], rows + more)])
        if more:
            self.evaluator.rewind(sequence, length)
        return rows + more

    def time_rows(self, sequence: KVSequence, rows: int) -> float:
        """Return the seconds that one evaluation of so many rows takes after what a sequence has cached."""
        sequence.uncache(self.room - rows)
        started = time.perf_counter()
        self.evaluator.submit([Rows(sequence.number, [0] * rows, rows)])
        self.evaluator.logits()
        seconds = time.perf_counter() - started
        self.evaluator.rewind(sequence.number, len(sequence.cached))
        return seconds


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(first), len(second))
    if list(first[:high]) == list(second[:high]):
        return high
    while high - low > 1:  # the first `low` are the same, the first `high` are not
        middle = (low + high) // 2
        if list(first[low:middle]) == list(second[low:middle]):
            low = middle
        else:
            high = middle
    return low
