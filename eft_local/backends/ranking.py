"""The order of tokens by their scores: the highest first, of equals the lower id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats

_GROUPS = 512
_LOWEST = np.finfo(np.float32).min


def rank(scores: Floats, token: int) -> int:
    """Return the token's place in one row of scores [n], 0 the top; of equals the lower id comes first."""
    own = scores[token]
    return int(np.count_nonzero(scores[:token] >= own) + np.count_nonzero(scores[token:] > own))


def best(scores: Floats, count: int) -> npt.NDArray[np.intp]:
    """Return the ids of the `count` highest of one row of scores [n], in the order of `rank`.

    Fewer where fewer are possible: −inf and NaN are left out.
    """
    groups = scores
    if count <= _GROUPS // 8 and scores.size >= _GROUPS:
        groups = scores[: scores.size // _GROUPS * _GROUPS].reshape(-1, _GROUPS).max(axis=0)
    # At least `count` scores reach the count-th highest of the groups' maxima, and hardly any more.
    place = max(groups.size - count, 0)
    floor = max(np.partition(groups, place)[place], _LOWEST)
    ids = np.flatnonzero(scores >= floor)
    return ids[np.argsort(-scores[ids], kind="stable")][:count]
