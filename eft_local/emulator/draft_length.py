"""How many tokens to draft: as many as give the most tokens per second, by measured costs and measured acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from eft_local.emulator.row_costs import RowCosts

_PRIOR_RIGHT, _PRIOR_WRONG = 1.6, 0.4
"""What is believed before anything was seen, as numbers of right and wrong guesses."""

_MEMORY = 0.98
"""What is left of an observation one token later."""


class DraftLength(Protocol):
    """Decides the length of the next drafts, and hears what became of them."""

    def choose(self, live: int) -> int:
        """Return how many tokens to draft for each of `live` answers."""

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn from one draft; one that was not made counts as well (0, 0)."""


@dataclass(frozen=True, slots=True)
class FixedLength:
    """Always the same length."""

    tokens: int

    def choose(self, live: int) -> int:
        return self.tokens

    def observe(self, drafted: int, accepted: int) -> None:
        pass


@dataclass(slots=True)
class AdaptiveLength:
    """The length with the most expected tokens per second.

    A draft of k tokens, each right with probability a where all before it were, gives (1 − a^(k+1)) / (1 − a) tokens
    (Leviathan et al. 2023, eq. 1). It costs k + 1 evaluations of one row for the drafting roles and one of k + 1 rows
    for the others. a is a running estimate that forgets, so that after a stretch without drafts one is tried again.
    """

    drafting: Sequence[RowCosts]
    rest: Sequence[RowCosts]
    most: int = 15
    _right: float = field(default=0.0, init=False)
    _wrong: float = field(default=0.0, init=False)

    @property
    def acceptance(self) -> float:
        """The estimated probability that a drafted token is right."""
        right, wrong = _PRIOR_RIGHT + self._right, _PRIOR_WRONG + self._wrong
        return right / (right + wrong)

    def choose(self, live: int) -> int:
        return max(range(self.most + 1), key=lambda k: self._speed(k, live))

    def observe(self, drafted: int, accepted: int) -> None:
        fade = _MEMORY ** (accepted + 1)
        self._right = self._right * fade + accepted
        self._wrong = self._wrong * fade + (accepted < drafted)

    def _speed(self, k: int, live: int) -> float:
        a = self.acceptance
        tokens = (1 - a ** (k + 1)) / (1 - a)
        drafting = (k + 1) * sum(costs(live) for costs in self.drafting)
        return tokens / (drafting + sum(costs(live * (k + 1)) for costs in self.rest))
