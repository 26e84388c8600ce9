"""Random numbers that depend on their key only: (seed, position, token id).

A draw is argmax over tokens of log-probability + Gumbel noise, which samples from the softmax (Gumbel 1954; Maddison
et al. 2014). As the noise is a pure function of its key, a seed gives the same tokens whatever runs beside it, in
whichever order candidates are looked at, with drafts or without.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def scramble(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) on one Python integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key(seed: int, position: int) -> int:
    """One 64-bit number for a seed and a position in the answer."""
    return scramble(scramble(seed + _GOLDEN) + (position + 1) * _GOLDEN)


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each token id, float64 [n]."""
    bits = tokens.astype(np.uint64)
    bits += np.uint64(1)
    bits *= np.uint64(_GOLDEN)
    bits += np.uint64(key(seed, position))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    # 52 bits, moved by half a step so that neither 0 nor 1 occurs; with 53 the largest would round to 1.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
