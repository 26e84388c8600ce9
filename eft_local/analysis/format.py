"""How the inspector's facts are written, whoever draws them."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import exp, inf

from eft_local.engine.step import Candidate

LEVELS = (0.1, 0.25, 0.5, 0.75)
"""The changes at which the tints 1 to 4 begin."""

_BARS = "▁▂▃▄▅▆▇█"
_SEEN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories of characters that show nothing, or move others


def level(change: float | None) -> int:
    """Return the tint of a change (total variation, 0…1): 0, none, to 4."""
    return bisect_right(LEVELS, change or 0.0)


def label(candidate: Candidate) -> str:
    """Return a token as it stands in a table: white space visible, bytes of half a character as \\xe2."""
    if candidate.ends:
        return "‹end›"
    return visible(candidate.text) or "‹control›"


def visible(text: str) -> str:
    """Return a text in which spaces, line ends and characters that show nothing can be seen."""
    return "".join(
        _SEEN.get(char) or (ascii(char)[1:-1] if unicodedata.category(char) in _UNSEEN else char) for char in text
    )


def percent(logprob: float) -> str:
    """Return a log-probability as a probability in per cent, with what digits it deserves."""
    value = 100 * exp(logprob)
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def signed(delta: float) -> str:
    """Return a difference of log-probabilities with its sign."""
    if delta in (inf, -inf):
        return "+∞" if delta > 0 else "−∞"
    rounded = round(delta, 2) + 0.0  # no negative zero
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


def sparkline(changes: Sequence[float], width: int) -> str:
    """Return bars of at most `width` characters: the mean of the changes (0…1) that fall on each."""
    columns = min(width, len(changes))
    edges = [column * len(changes) // columns for column in range(columns + 1)] if columns > 0 else []
    means = [sum(changes[low:high]) / (high - low) for low, high in pairwise(edges)]
    return "".join(_BARS[min(int(mean * len(_BARS)), len(_BARS) - 1)] for mean in means)
