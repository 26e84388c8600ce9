"""The formula: how base, experts and antiexperts become one distribution. Arrays in, arrays out.

    z = antiexpert + β·m·(base − antiexpert) + Σᵢ αᵢ·(expertᵢ − antiexpertᵢ)         p = softmax(z)

Arrays are float32, [rows, n]: one row per position, one column per token of the common vocabulary.
Sources: Mitchell et al. 2023 (arXiv 2310.12962) for up-scaling, amplification and the conservative filter;
Liu et al. 2024 (arXiv 2401.08565), equation 1, at β = 1; Li et al. 2023 (arXiv 2210.15097) for the
plausibility mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats

Mask = npt.NDArray[np.bool_]


def mix(
    base: Floats,
    experts: Sequence[Floats],
    antiexperts: Sequence[Floats],
    alphas: Sequence[float],
    beta: float = 1.0,
    keep: Mask | None = None,
    out: Floats | None = None,
) -> Floats:
    """Return the mixture's scores [rows, n]; per row they matter up to a constant.

    base, experts[i], antiexperts[i]: float32 [rows, n], logits or (always with `keep`) log-probabilities.
    The scale delta is base − antiexperts[0].
    keep: tokens whose scale delta counts (EFT's conservative filter); None keeps all.
    out: where to write the scores; it may be none of the inputs.

    Infinities: what is −inf under the base stays −inf. A delta against an antiexpert's −inf says nothing: it
    counts as 0 and the base's score stands. An expert's −inf at a positive alpha gives −inf. An infinite gain
    counts as 0.

    Raises: ValueError if shapes or numbers of arrays differ, a factor is not finite, or beta is negative.
    """
    _check(base, experts, antiexperts, alphas, beta, keep)
    out = np.empty_like(base) if out is None else out
    # alpha = 0 is no summand: with beta = 1 the base is given to the last bit.
    tunings = [each for each in zip(experts, antiexperts, alphas, strict=True) if each[2]]
    with np.errstate(invalid="ignore", over="ignore"):
        if beta != 1.0 or keep is not None:
            np.subtract(base, antiexperts[0], out=out)
            out *= beta
            if keep is not None:
                out *= keep
            out += antiexperts[0]
        elif tunings:
            _delta(*tunings.pop(0), out=out)
            out += base
        else:
            np.copyto(out, base)
        scratch = np.empty_like(base) if tunings else out
        for tuning in tunings:
            out += _delta(*tuning, out=scratch)
        if not out.max(initial=-np.inf) < np.inf:  # the one pass that finds NaN and +inf
            _mend(out, base, experts, antiexperts, alphas, beta, keep)
    return out


def _delta(expert: Floats, antiexpert: Floats, alpha: float, out: Floats) -> Floats:
    np.subtract(expert, antiexpert, out=out)
    if alpha != 1.0:
        out *= alpha
    return out


def _check(
    base: Floats,
    experts: Sequence[Floats],
    antiexperts: Sequence[Floats],
    alphas: Sequence[float],
    beta: float,
    keep: Mask | None,
) -> None:
    if not len(experts) == len(antiexperts) == len(alphas):
        raise ValueError(
            f"{len(experts)} experts need as many antiexperts and alphas, not {len(antiexperts)} and {len(alphas)}"
        )
    if not experts and (beta != 1.0 or keep is not None):
        raise ValueError("the scale delta needs an antiexpert, and there is none")
    for name, arrays in (("experts", experts), ("antiexperts", antiexperts)):
        for i, array in enumerate(arrays):
            if array.shape != base.shape:
                raise ValueError(f"{name}[{i}] has shape {array.shape}, the base {base.shape}")
    if keep is not None and keep.shape != base.shape:
        raise ValueError(f"keep has shape {keep.shape}, the base {base.shape}")
    if not all(isfinite(alpha) for alpha in alphas):
        raise ValueError(f"alphas must be finite, not {tuple(alphas)}")
    if not (isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and at least 0, not {beta}")


def _mend(
    out: Floats,
    base: Floats,
    experts: Sequence[Floats],
    antiexperts: Sequence[Floats],
    alphas: Sequence[float],
    beta: float,
    keep: Mask | None,
) -> None:
    """Give the entries of `out` that are NaN or +inf what `mix` promises where inputs are infinite.

    Base-first here: z = base + (β·m − 1)·(base − antiexpert) + Σ α·(expert − antiexpert), undefined terms 0.
    """
    broken = ~(out < np.inf)
    own = base[broken]
    scores = own.copy()
    if beta != 1.0 or keep is not None:
        factor = (beta * keep[broken] if keep is not None else np.float32(beta)) - np.float32(1)
        scale = factor * (own - antiexperts[0][broken])
        scores += np.where(np.isfinite(scale), scale, 0)
    for expert, antiexpert, alpha in zip(experts, antiexperts, alphas, strict=True):
        if alpha:
            tuning = np.float32(alpha) * (expert[broken] - antiexpert[broken])
            scores += np.where(tuning < np.inf, tuning, 0)
    out[broken] = scores


def log_softmax(logits: Floats, out: Floats | None = None) -> Floats:
    """Return log-probabilities of logits, both [rows, n]; each row needs a finite maximum.

    out: where to write them; it may be `logits`.
    """
    out = np.subtract(logits, logits.max(axis=-1, keepdims=True), out=out)
    out -= np.log(np.exp(out).sum(axis=-1, keepdims=True))
    return out


def top_p_mask(logprobs: Floats, p: float) -> Mask:
    """Mark, per row, the smallest set of tokens whose probability reaches p; of equals the lower id is first.

    logprobs: normalised, [rows, n]. p: in (0, 1]; 1 marks every possible token. Raises: ValueError.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top-p must be above 0 and at most 1, not {p}")
    mask = np.empty(logprobs.shape, dtype=np.bool_)
    for row, chosen in zip(logprobs, mask, strict=True):
        values = _nucleus(row, p)
        np.greater(row, values[-1], out=chosen)
        equal = np.flatnonzero(row == values[-1])
        chosen[equal[: values.size - np.count_nonzero(chosen)]] = True
    return mask


def _nucleus(logprobs: Floats, p: float) -> Floats:
    """Return the log-probabilities of one row's top-p set, largest first.

    Sorts only what it must: of a normalised row at most e⁵ tokens have a log-probability of −5 or more.
    """
    for floor in (-5.0, -8.0, -11.0, None) if p < 1 else (None,):
        values = -np.sort(-logprobs[logprobs >= floor if floor is not None else logprobs > -np.inf])
        mass = np.cumsum(np.exp(values), dtype=np.float64)
        if values.size and mass[-1] >= p:
            break
    # The last floor may fall short of p by rounding: a float32 row sums to 1 only to about 1e-6.
    return values[: np.searchsorted(mass, p) + 1] if p < 1 else values


def plausible(base: Floats, tau: float | None = None, top_p: float | None = None) -> Mask:
    """Mark the tokens that the base finds plausible, [rows, n]; at least one per row.

    base: log-probabilities [rows, n]; logits do as well for tau alone.
    tau: in (0, 1], tokens with p_base ≥ tau · max p_base. top_p: in (0, 1], the base's top-p set. Both: both.
    Raises: ValueError.
    """
    if tau is not None and not 0 < tau <= 1:
        raise ValueError(f"tau must be above 0 and at most 1, not {tau}")
    mask = np.ones(base.shape, dtype=np.bool_) if top_p is None else top_p_mask(base, top_p)
    if tau is not None:
        mask &= base >= base.max(axis=-1, keepdims=True) + np.float32(log(tau))
    return mask
