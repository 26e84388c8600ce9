"""How likely a given continuation is, under the mixture and under each role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import numpy as np

from eft_local.backends.base import Floats
from eft_local.engine.cache import Slots
from eft_local.engine.step import Score
from eft_local.engine.writing import System
from eft_local.recipe import Recipe


def score(
    slots: Slots, system: System, prompts: Mapping[str, Sequence[int]], tokens: Sequence[int], recipe: Recipe
) -> Score:
    """Evaluate `tokens` after each role's prompt, a few rows of logits at a time.

    Raises: ContextOverflowError, EvaluationError, Cancelled.
    """
    mixture = np.empty(len(tokens), np.float32)
    by_role = {name: np.empty(len(tokens), np.float32) for name in system.roles}
    # A token's probability stands in the row before it: the first in the prompt's last row, none in the last token's.
    slots.begin(0, prompts, room=len(tokens) - 1)
    for start in range(0, len(tokens), slots.outputs):
        chunk = tokens[start : start + slots.outputs]
        slots.push(0, system.roles, chunk[:-1] if start == 0 else tokens[start - 1 : start - 1 + len(chunk)])
        logits = slots.evaluate([0], system.roles, [len(chunk)])
        rows = {name: system.common(name, logits[name][0]) for name in system.roles}
        for name, row in rows.items():
            by_role[name][start : start + len(chunk)] = _logprobs(row, chunk)
        mixture[start : start + len(chunk)] = _logprobs(system.scores(recipe, rows), chunk)
    return Score(tuple(tokens), mixture, by_role)


def _logprobs(rows: Floats, tokens: Sequence[int]) -> list[float]:
    return [float(row[token]) - _log_normaliser(row) for row, token in zip(rows, tokens, strict=True)]


def _log_normaliser(row: Floats) -> float:
    """Return log Σ exp(row) of one row of logits."""
    highest = row.max()
    exponentials = np.subtract(row, highest)
    np.exp(exponentials, out=exponentials)
    return float(highest) + log(exponentials.sum())
