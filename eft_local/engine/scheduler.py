"""How much of the prompts that come in is read in a round, so that answers which people follow do not stall."""

from __future__ import annotations

from collections.abc import Iterable

from eft_local.engine.cache import Part
from eft_local.engine.sequence import Sequence

AT_ONCE = 512
"""Tokens of a prompt that are read in one round where nobody waits for tokens: a new request waits no longer."""

_FIRST = 16
"""Tokens that are read before their cost is known."""

_SLOWER = 0.8
"""How much longer a round may take for the prompt that is read in it: answers keep more than half of their speed."""


class PromptPace:
    """Measures rounds with and without a part of a prompt, and tells how long that part may be."""

    def __init__(self) -> None:
        self._plain: float | None = None  # seconds of a round without
        self._per_token: float | None = None

    def chunk(self, *, beside: bool) -> int:
        """Return how many tokens may be read. beside: whether somebody follows an answer meanwhile."""
        if not beside:
            return AT_ONCE
        if self._plain is None:
            return 0  # one round without, to compare with
        if self._per_token is None:
            return _FIRST
        return int(min(AT_ONCE, max(1, _SLOWER * self._plain / max(self._per_token, 1e-9))))

    def learn(self, seconds: float, tokens: int) -> None:
        """Take a round into account in which somebody followed an answer and so many tokens of a prompt were read."""
        if tokens == 0:
            self._plain = seconds if self._plain is None else (self._plain + seconds) / 2
        elif self._plain is not None:
            now = max(0.0, seconds - self._plain) / tokens
            self._per_token = now if self._per_token is None else (self._per_token + now) / 2


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
