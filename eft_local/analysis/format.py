"""How tokens, probabilities, changes and endings are written, whoever shows them: terminal, app, page or file."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import exp, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eft_local.engine.step import Answer, Candidate, RoleStatistics, Step

CANDIDATES = 10
"""How many candidates a table shows beside the chosen token and the base's first choice: `top` of a stream."""

LEVELS = (0.1, 0.25, 0.5, 0.75)
"""The changes at which the tints 1 to 4 begin."""

ENDINGS = {
    "stop": "ended by itself",
    "length": "cut off at max tokens",
    "context": "context full",
    "cancelled": "stopped",
    "failed": "failed",
    "interrupted": "interrupted",
    None: "being written",
}
"""What each finish reason means."""

_BARS = "▁▂▃▄▅▆▇█"
_SEEN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories of characters that show nothing, or move others
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


# Texts and tokens


def printable(text: str) -> str:
    """Return text without control characters, which could do anything to a terminal."""
    return text.translate(_CONTROLS)


def visible(text: str) -> str:
    """Return a text in which spaces, line ends and characters that show nothing can be seen."""
    return "".join(
        _SEEN.get(char) or (ascii(char)[1:-1] if unicodedata.category(char) in _UNSEEN else char) for char in text
    )


def label(candidate: Candidate) -> str:
    """Return a token as it stands in a table: white space visible, bytes of half a character as \\xe2."""
    if candidate.ends:
        return "‹end›"
    return visible(candidate.text) or "‹control›"


def in_text(step: Step, *, first: bool = False) -> str:
    """Return a token as it stands in its answer, never empty. first: without the space that begins an answer."""
    text = printable(step.text.lstrip() if first else step.text)
    if text:
        return text
    return "■" if step.finish_reason else "·"


def notes(step: Step) -> list[str]:
    """Return what there is to say about a token: how much the experts changed, and whether it was drafted."""
    words = [f"change {two_digits(step.change)}"] if step.change is not None else []
    words += ["the experts changed the first choice"] if step.top_changed else []
    return [*words, "drafted"] if step.drafted else words


# Figures


def percent(logprob: float) -> str:
    """Return a log-probability as a probability in per cent, with what digits it deserves: at most five characters."""
    value = 100 * exp(logprob)
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def probability_and_rank(statistics: RoleStatistics, width: int) -> str:
    """Return what a role thinks of a token as a table's cell: per cent, and the rank from 1. width: of the rank."""
    return f"{percent(statistics.logprob):>5} {statistics.rank + 1:>{width}}"


def signed(delta: float) -> str:
    """Return a difference of log-probabilities with its sign."""
    if delta in (inf, -inf):
        return "+∞" if delta > 0 else "−∞"
    rounded = round(delta, 2) + 0.0  # no negative zero
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"


def two_digits(change: float) -> str:
    """Return a change (0…1), or a mean of some."""
    return f"{change:.2f}"


def share(part: float, digits: int = 0) -> str:
    """Return a share (0…1) in per cent, with the sign."""
    return f"{100 * part:.{digits}f} %"


def interval(part: float, low: float, high: float, *, digits: int = 0, sign: str = "") -> str:
    """Return a share in per cent with one digit, and its interval in brackets. sign: " %" where no heading has it."""
    return f"{100 * part:.1f}{sign} [{100 * low:.{digits}f}-{100 * high:.{digits}f}]"


def speed(tokens_per_second: float) -> str:
    """Return how fast an answer was written."""
    return f"{tokens_per_second:.0f} tokens/s"


def outcome(answer: Answer) -> list[str]:
    """Return how long an answer is, how fast it came, how it ended, and whether it is empty."""
    words = [f"{len(answer.tokens)} tokens", speed(answer.tokens_per_second), ENDINGS[answer.finish_reason]]
    return words if answer.text.strip() else [*words, "empty"]


def strengths(alphas: Mapping[str, float]) -> list[str]:
    """Return how strongly each expert steers, by its name where there are several."""
    return [f"α {alpha:g}" if len(alphas) == 1 else f"{name} α {alpha:g}" for name, alpha in alphas.items()]


def condition(value: object) -> str:
    """Return a condition of an answer (a strength, a filter, a seed …) as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each:g}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


# Changes


def level(change: float | None) -> int:
    """Return the tint of a change (total variation, 0…1): 0, none, to 4."""
    return bisect_right(LEVELS, change or 0.0)


def sparkline(changes: Sequence[float], width: int) -> str:
    """Return bars of at most `width` characters: the mean of the changes (0…1) that fall on each."""
    columns = min(width, len(changes))
    edges = [column * len(changes) // columns for column in range(columns + 1)] if columns > 0 else []
    means = [sum(changes[low:high]) / (high - low) for low, high in pairwise(edges)]
    return "".join(_BARS[min(int(mean * len(_BARS)), len(_BARS) - 1)] for mean in means)
