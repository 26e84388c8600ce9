"""One step of the mixture: the roles' logits in, the scores that are sampled from out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats
from eft_local.engine import mix
from eft_local.engine.ends import Ends
from eft_local.engine.loading import antiexpert_name
from eft_local.recipe import Recipe


class Mixture:
    """Applies a recipe's formula to rows of logits; its buffer is reused from step to step."""

    def __init__(self, n_vocab: int, unused: npt.NDArray[np.intp], ends: Ends | None = None) -> None:
        """n_vocab: ids that all roles have; unused: those of them that are never offered; ends: of the roles."""
        self.n_vocab = n_vocab
        self._unused = unused
        self._ends = ends or Ends(None, {})
        self._scores = np.empty((0, n_vocab), np.float32)

    def common(self, name: str, logits: Floats) -> Floats:
        """Return a role's logits of the ids that all roles have, [rows, n_vocab], from all that its model gave."""
        return self._ends.fold(name, logits, self.n_vocab)

    def scores(
        self, recipe: Recipe, logits: Mapping[str, Floats], lawful: npt.NDArray[np.bool_] | None = None
    ) -> Floats:
        """Return the mixture's scores, float32 [rows, n_vocab], valid until the next call.

        logits: per role, from `common`. A row's scores are log-probabilities up to a constant.
        lawful: the tokens that a grammar or schema allows, [n_vocab]; plausible is then what is so among them.
        """
        trimmed = {name: rows[:, : self.n_vocab] for name, rows in logits.items()}
        base = trimmed["base"]
        keep = None
        if recipe.conservative_filter is not None:
            # The filter mixes two scales of one token, so a per-model constant would no longer drop out.
            trimmed = {name: mix.log_softmax(rows) for name, rows in trimmed.items()}
            first = next(iter(recipe.experts))
            keep = mix.top_p_mask(trimmed[first], recipe.conservative_filter)
        scores = mix.mix(
            trimmed["base"],
            [trimmed[name] for name in recipe.experts],
            [trimmed[antiexpert_name(recipe, name)] for name in recipe.experts],
            list(recipe.alphas.values()),
            recipe.beta,
            keep,
            out=self._buffer(len(base)),
        )
        if recipe.plausibility_mask is not None or recipe.plausibility_top_p is not None:
            if lawful is not None and lawful.any():
                base = np.where(lawful, base, np.float32(-np.inf))
            reference = mix.log_softmax(base) if recipe.plausibility_top_p is not None else base
            scores[~mix.plausible(reference, recipe.plausibility_mask, recipe.plausibility_top_p)] = -np.inf
        if self._unused.size:
            scores[:, self._unused] = -np.inf
        return scores

    def _buffer(self, rows: int) -> Floats:
        if len(self._scores) < rows:
            self._scores = np.empty((rows, self.n_vocab), np.float32)
        return self._scores[:rows]
