"""Goodness of fit: do sampled continuations come as often as an exact distribution says?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import erfc, exp, lgamma, log, sqrt

import numpy as np
import numpy.typing as npt

Continuation = tuple[int, ...]

END, OTHER = -1, -2
"""In a continuation: an end token, and any token too rare for a cell of its own."""

_LEAST_EXPECTED = 5.0


def cells(
    following: Callable[[Continuation], npt.NDArray[np.float64]],
    ends: Callable[[int], bool],
    length: int,
    least: float,
) -> dict[Continuation, float]:
    """Return continuations of at most `length` tokens with their probabilities, which sum to 1.

    following: how likely each token is after a continuation, [n_vocab]. least: what is rarer is put into OTHER.
    """
    found: dict[Continuation, float] = {}

    def grow(continuation: Continuation, mass: float) -> None:
        if len(continuation) == length:
            found[continuation] = mass
            return
        probabilities = following(continuation)
        common = [int(token) for token in np.flatnonzero(mass * probabilities >= least)]
        going_on = [token for token in common if not ends(token)]
        end = sum(mass * float(probabilities[token]) for token in common if ends(token))
        if end:
            found[*continuation, END] = end
        for token in going_on:
            grow((*continuation, token), mass * float(probabilities[token]))
        found[*continuation, OTHER] = mass * (1 - float(probabilities[common].sum()))

    grow((), 1.0)
    return found


def fit(samples: Iterable[Continuation], expected: dict[Continuation, float]) -> float:
    """Return the p-value of a χ² test: how often chance alone fits as badly as these samples do.

    samples: continuations, with END where an end token came. expected: from `cells`. Cells in which fewer than 5
    samples are expected are counted together.
    """
    inner = {cell[:size] for cell in expected for size in range(len(cell))}
    counts = Counter(_cell(sample, expected, inner) for sample in samples)
    total = counts.total()
    ranked = sorted(expected, key=lambda cell: -expected[cell])
    pairs = [(counts[cell], total * expected[cell]) for cell in ranked if total * expected[cell] >= _LEAST_EXPECTED]
    rest = total - sum(count for count, _ in pairs), total - sum(mean for _, mean in pairs)
    if rest[1] < _LEAST_EXPECTED:
        rest = rest[0] + pairs[-1][0], rest[1] + pairs.pop()[1]
    pairs.append(rest)
    return chi_square_tail(sum((count - mean) ** 2 / mean for count, mean in pairs), len(pairs) - 1)


def chi_square_tail(value: float, freedom: int) -> float:
    """Return the probability that a χ² variable with so many degrees of freedom exceeds `value`."""
    half = value / 2
    if half == 0:
        return 1.0
    # Γ(s + 1, x) = s·Γ(s, x) + xˢ·e⁻ˣ, from Γ(1, x) = e⁻ˣ or Γ(1/2, x) = √π·erfc(√x).
    total = erfc(sqrt(half)) if freedom % 2 else 0.0
    for step in range(freedom // 2):
        power = step + (freedom % 2) / 2
        total += exp(power * log(half) - half - lgamma(power + 1))
    return total


def _cell(sample: Continuation, expected: dict[Continuation, float], inner: set[Continuation]) -> Continuation:
    for size in range(1, len(sample) + 1):
        if sample[:size] in expected:
            return sample[:size]
        if sample[:size] not in inner:
            return (*sample[: size - 1], OTHER)
    return sample
