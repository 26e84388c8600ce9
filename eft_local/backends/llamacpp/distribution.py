"""Tokens that may come next, and how likely each of them is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """ids: tokens that can come, int32 [n], in any order; probabilities: float64 [n], with sum 1."""

    ids: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float64]

    @classmethod
    def softmax(cls, ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> Distribution:
        """Return the distribution that logits [n] stand for."""
        weights = np.exp(np.subtract(logits, logits.max(), dtype=np.float64))
        return cls(ids, weights / weights.sum())

    @classmethod
    def certain(cls, token: int) -> Distribution:
        """Return the distribution in which no other token comes."""
        return cls(np.array([token], np.int32), np.ones(1))

    def of(self, token: int) -> float:
        """Return a token's probability."""
        return float(self.probabilities[self.ids == token].sum())

    def draw(self, point: float) -> int:
        """Return the token at a point between 0 (excluded) and 1, where each has a stretch as long as it is likely."""
        ends = np.cumsum(self.probabilities)
        return int(self.ids[np.searchsorted(ends, point * ends[-1])])

    def beyond(self, other: Distribution) -> Distribution | None:
        """Return the positive part of self − other, scaled to sum 1; None where nothing is positive."""
        theirs = np.zeros(1 + max(self.ids.max(), other.ids.max()))
        theirs[other.ids] = other.probabilities
        rest = np.maximum(self.probabilities - theirs[self.ids], 0)
        total = rest.sum()
        return Distribution(self.ids, rest / total) if total > 0 else None

    def redrawn(self, forbidden: npt.NDArray[np.bool_], again: Distribution) -> Distribution:
        """Return what comes where a token that is forbidden [n] is drawn once more, from `again`."""
        total = np.zeros(1 + max(self.ids.max(), again.ids.max()))
        total[self.ids[~forbidden]] = self.probabilities[~forbidden]
        total[again.ids] += self.probabilities[forbidden].sum() * again.probabilities
        ids = np.flatnonzero(total).astype(np.int32)
        return Distribution(ids, total[ids])
