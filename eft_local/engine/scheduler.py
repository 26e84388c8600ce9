"""How much of the prompts that come in is read in a round, so that answers which somebody follows do not stall."""

from __future__ import annotations

from collections.abc import Iterable

from eft_local.engine.cache import Part
from eft_local.engine.sequence import Sequence

AT_ONCE = 512
"""Tokens of a prompt that are read in one round where nobody waits for tokens: a new request waits no longer."""

_FIRST, _LEAST = 32, 16
"""Tokens of a part, before its cost is known and where it costs much. Fewer cost a pass through the weights all the
same."""

_SHARE = 0.8
"""Seconds that may go into prompts for each second that answers get: these keep more than half of their speed."""

_PAUSE = 0.25
"""Seconds that a part may take, if not as long as four tokens do: for so long nobody sees a new token. Longer parts
take less time in all."""


class PromptPace:
    """Gives the reading of prompts its share of the time, beside answers that somebody follows."""

    def __init__(self) -> None:
        self._plain: float | None = None  # seconds of a round in which no prompt is read
        self._cost: float | None = None  # seconds that a part of `_tokens` takes besides
        self._tokens = _FIRST
        self._credit = 0.0  # seconds that may go into prompts

    def chunk(self, *, beside: bool) -> int:
        """Return how many tokens may be read now. beside: whether somebody follows an answer meanwhile."""
        if not beside:
            return AT_ONCE
        if self._plain is None or self._credit < (self._cost or 0.0):
            return 0
        return self._tokens

    def learn(self, seconds: float, tokens: int) -> None:
        """Take a round into account in which somebody followed an answer and so many tokens of a prompt were read."""
        if tokens == 0 or self._plain is None:
            self._plain = seconds if self._plain is None else (self._plain + seconds) / 2
            self._credit = min(self._credit + _SHARE * seconds, max(self._cost or 0.0, seconds))  # it is not saved up
            return
        spent = max(0.0, seconds - self._plain)
        self._credit -= spent
        cost = spent * self._tokens / tokens
        self._cost = cost if self._cost is None else (self._cost + cost) / 2
        if spent > self._pause and self._tokens > _LEAST:
            self._resize(self._tokens // 2)
        elif tokens == self._tokens < AT_ONCE and 2 * spent < self._pause:
            self._resize(self._tokens * 2)

    @property
    def _pause(self) -> float:
        return max(4 * (self._plain or 0.0), _PAUSE)

    def _resize(self, tokens: int) -> None:
        self._cost = (self._cost or 0.0) * tokens / self._tokens
        self._tokens = tokens


def divide(running: Iterable[Sequence], chunk: int, *, shared: bool) -> tuple[list[Part], list[Sequence]]:
    """Return the parts of prompts that are read in this round, and the sequences that get tokens in it.

    chunk: tokens that may be read, of each prompt, or of all if it is shared.
    """
    reading: list[Part] = []
    ready: list[Sequence] = []
    left = chunk
    for sequence in running:
        pending = max(len(kv.pending) for kv in sequence.kv.values())
        if sequence.tokens or pending <= left:
            ready.append(sequence)
        else:
            # The last token waits for those of all roles: together they give the answer's first one.
            parts = [Part(kv, 0, min(left, len(kv.pending) - 1)) for kv in sequence.kv.values()]
            reading += [part for part in parts if part.tokens]
        if shared and not sequence.tokens:
            left = max(0, left - pending)
    return reading, ready
