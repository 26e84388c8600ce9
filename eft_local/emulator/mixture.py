"""One step of the mixture: the roles' logits in, the scores that are sampled from out, and what each role thinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from eft_local import mix
from eft_local.emulator.loading import antiexpert_name
from eft_local.emulator.results import Candidate, RoleView
from eft_local.protocols import Floats
from eft_local.recipe import Recipe

MIXTURE = "eft"

_NEED_NO_SHIFT = 50  # float32 holds the sum of many exp(±50), and what it loses of smaller ones does not count


class Mixture:
    """Applies a recipe's formula to rows of logits; its buffer is reused from step to step."""

    def __init__(self, n_vocab: int, unused: npt.NDArray[np.intp]) -> None:
        """n_vocab: ids that all roles have in common; unused: those of them that are padding and never offered."""
        self.n_vocab = n_vocab
        self._unused = unused
        self._scores = np.empty((0, n_vocab), np.float32)

    def scores(self, recipe: Recipe, logits: Mapping[str, Floats]) -> Floats:
        """Return the mixture's scores, float32 [rows, n_vocab], valid until the next call.

        logits: per role, [rows, at least n_vocab]. A row's scores are log-probabilities up to a constant.
        """
        views = {name: rows[:, : self.n_vocab] for name, rows in logits.items()}
        base = views["base"]
        keep = None
        if recipe.conservative_filter is not None:
            # The filter mixes two scales of one token, so a per-model constant would no longer drop out.
            views = {name: mix.log_softmax(rows) for name, rows in views.items()}
            first = next(iter(recipe.experts))
            keep = mix.top_p_mask(views[first], recipe.conservative_filter)
        scores = mix.mix(
            views["base"],
            [views[name] for name in recipe.experts],
            [views[antiexpert_name(recipe, name)] for name in recipe.experts],
            list(recipe.alphas.values()),
            recipe.beta,
            keep,
            out=self._buffer(len(base)),
        )
        if recipe.plausibility_mask is not None or recipe.plausibility_top_p is not None:
            reference = mix.log_softmax(base) if recipe.plausibility_top_p is not None else base
            scores[~mix.plausible(reference, recipe.plausibility_mask, recipe.plausibility_top_p)] = -np.inf
        if self._unused.size:
            scores[:, self._unused] = -np.inf
        return scores

    def _buffer(self, rows: int) -> Floats:
        if len(self._scores) < rows:
            self._scores = np.empty((rows, self.n_vocab), np.float32)
        return self._scores[:rows]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one step beside its token; the fields are those of `Step`."""

    roles: dict[str, RoleView]
    candidates: tuple[Candidate, ...] = ()
    change: float | None = None
    top_changed: bool | None = None


def facts(
    recipe: Recipe,
    rows: Mapping[str, Floats],
    token: int,
    top: int,
    piece: Callable[[int], bytes],
    ends: Callable[[int], bool],
) -> Facts:
    """Return what each role thinks of a token and of its rivals, and how far the mixture is from the base.

    rows: per role one row of logits [n_vocab], the mixture's under "eft". top: how many of the likeliest are rivals.
    """
    normalisers: dict[str, float] = {}
    compared: dict[str, Floats] = {}
    for name, row in rows.items():  # few arrays at a time: fresh pages cost more than the arithmetic
        exponentials, normalisers[name] = _exponentials(row)
        if name in ("base", MIXTURE):
            exponentials /= exponentials.sum()
            compared[name] = exponentials
    if len(compared) < 2:  # one role alone
        own = next(iter(rows))
        ids = _rivals(rows[own], top, token)
        return Facts(_views(rows, normalisers, token), _candidates(rows, normalisers, ids, piece, ends))
    difference = np.subtract(compared["base"], compared[MIXTURE], out=compared["base"])
    change = min(1.0, 0.5 * float(np.abs(difference, out=difference).sum()))
    favourite = int(rows["base"].argmax())
    ids = _rivals(rows[MIXTURE], top, token, favourite)
    return Facts(
        _views(rows, normalisers, token),
        _candidates(rows, normalisers, ids, piece, ends, _deltas(recipe, rows, normalisers, ids)),
        change,
        favourite != int(rows[MIXTURE].argmax()),
    )


def log_normaliser(row: Floats, scratch: Floats | None = None) -> float:
    """Return log Σ exp(row) of one row of logits: what to subtract to get log-probabilities.

    scratch: as large as the row, to be written over; without one, fresh pages cost more than the arithmetic.
    """
    return _exponentials(row, scratch)[1]


def _exponentials(row: Floats, out: Floats | None = None) -> tuple[Floats, float]:
    """Return exp(row) up to a factor, and log Σ exp(row)."""
    highest = row.max()
    if abs(highest) < _NEED_NO_SHIFT:
        exponentials = np.exp(row, out=out)
        return exponentials, log(exponentials.sum())
    exponentials = np.subtract(row, highest, out=out)
    np.exp(exponentials, out=exponentials)
    return exponentials, float(highest) + log(exponentials.sum())


def _views(rows: Mapping[str, Floats], normalisers: Mapping[str, float], token: int) -> dict[str, RoleView]:
    return {name: RoleView(mix.rank(row, token), float(row[token]) - normalisers[name]) for name, row in rows.items()}


def _rivals(scores: Floats, top: int, *others: int) -> list[int]:
    """Return the ids of the `top` highest scores and of `others`, in the order of `mix.rank`; none if top is 0."""
    if top <= 0:
        return []
    ids: list[int] = mix.best(scores, top).tolist()
    return ids + sorted(set(others).difference(ids), key=lambda token: mix.rank(scores, token))


def _deltas(
    recipe: Recipe, rows: Mapping[str, Floats], normalisers: Mapping[str, float], ids: Sequence[int]
) -> list[tuple[float, float]]:
    """Return what behaviour and scale add to the antiexpert's log-probability of each token.

    As in `mix.mix`, what is infinite because of the antiexpert, or undefined, counts as 0.
    """
    if not ids:
        return []
    logprobs = {name: row[ids] - np.float32(normalisers[name]) for name, row in rows.items()}
    behaviour = np.zeros(len(ids), np.float32)
    with np.errstate(invalid="ignore"):
        for name, alpha in recipe.alphas.items():
            behaviour += _counted(np.float32(alpha) * (logprobs[name] - logprobs[antiexpert_name(recipe, name)]))
        first = next(iter(recipe.experts))
        scale = _counted(np.float32(recipe.beta) * (logprobs["base"] - logprobs[antiexpert_name(recipe, first)]))
    if recipe.conservative_filter is not None:
        kept = mix.top_p_mask(mix.log_softmax(rows[first][None]), recipe.conservative_filter)[0]
        scale[~kept[ids]] = 0
    return list(zip(behaviour.tolist(), scale.tolist(), strict=True))


def _counted(delta: Floats) -> Floats:
    return np.where(delta < np.inf, delta, np.float32(0))


def _candidates(
    rows: Mapping[str, Floats],
    normalisers: Mapping[str, float],
    ids: Sequence[int],
    piece: Callable[[int], bytes],
    ends: Callable[[int], bool],
    deltas: Sequence[tuple[float | None, float | None]] = (),
) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(token, piece(token), ends(token), _views(rows, normalisers, token), behaviour, scale)
        for token, (behaviour, scale) in zip(ids, deltas or [(None, None)] * len(ids), strict=True)
    )
