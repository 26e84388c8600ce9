"""Random numbers that depend on their key only: (seed, position, token id), and what they are for.

A draw is argmax over tokens of log-probability + Gumbel noise, which samples from the softmax (Gumbel 1954; Maddison
et al. 2014). As the noise is a pure function of its key, a seed gives the same tokens whatever runs beside it, in
whichever order candidates are looked at, with drafts or without.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CONSTRAINED, DRAFT, ACCEPTANCE, REDRAW = 1, 2, 3, 4
"""Purposes of numbers beside an answer's own draws: none of them depends on another."""

_MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STRIDE = np.uint64(_GOLDEN)
_ROUNDS = tuple((np.uint64(shift), np.uint64(factor)) for shift, factor in ((30, _FIRST), (27, _SECOND)))
_LAST_SHIFT, _UNUSED_BITS = np.uint64(31), np.uint64(12)
_HALF_STEP, _STEP = 0.5, 2.0**-52
"""52 bits, moved by half a step so that neither 0 nor 1 occurs; with 53 the largest would round to 1."""


def scramble(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) on one Python integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def key(seed: int, position: int, *purpose: int) -> int:
    """One 64-bit number for a seed, a position in the answer, and what is drawn there."""
    mixed = scramble(seed + _GOLDEN)
    for part in (position, *purpose):
        mixed = scramble(mixed + (part + 1) * _GOLDEN)
    return mixed


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.int32], *purpose: int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each token id, float64 [n]."""
    bits = tokens.astype(np.uint64)
    bits *= _STRIDE
    bits += np.uint64((key(seed, position, *purpose) + _GOLDEN) & _MASK)
    for shift, factor in _ROUNDS:
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> _LAST_SHIFT
    bits >>= _UNUSED_BITS
    noise = bits.astype(np.float64)
    noise += _HALF_STEP
    noise *= _STEP
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def uniform(seed: int, position: int, *purpose: int) -> float:
    """Return a number between 0 and 1, neither of them included."""
    return ((key(seed, position, *purpose) >> 12) + _HALF_STEP) * _STEP
