"""How many tokens to draft: those that raise the tokens per second, by measured costs and measured acceptance."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, Protocol

Costs = Callable[[int], float]
"""Seconds of an evaluation, from the rows that each answer's tokens are."""

_CONFIDENCE = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
"""Draft tokens are grouped by the draft's confidence: these are the bounds between one group and the next."""

_BELIEVED = (0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.95, 0.97)
"""How often a draft token of each group is believed to be right, before any was seen …"""

_BELIEF = 1.5
"""… as if it had been seen in so many draft tokens."""

_MEMORY = 0.995
"""What is left of an observation one token later."""

_PROPOSING = 5e-5
"""About the seconds that a draft token takes besides its evaluation: they count where models are tiny."""

_PATIENCE = 16
"""Rounds without drafts until it is checked again whether any could pay."""


class Outcome(NamedTuple):
    """Of a draft's tokens: how many were judged, and how many of these accepted; the first refused one is the last.

    next_right: whether the token that the draft was not extended by was right as well; None where nobody knows.
    """

    judged: int
    accepted: int
    next_right: bool | None = None


class DraftLength(Protocol):
    """Decides, token by token, whether a draft continues, and learns what became of it."""

    def begin(self, live: int, most: int) -> bool:
        """Start drafting for `live` answers, numbered from 0, `most` tokens each; return whether any could pay."""

    def extend(self, confidence: Mapping[int, float], *, free: bool = False) -> set[int]:
        """Return the answers whose draft shall get one more token.

        confidence: the draft's highest probability for the next token, by answer. It must not depend on which token is
        drawn: a rule that rejects draft tokens would be biased by those that are held back.
        free: whether proposing needs no evaluation of its own.
        """

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn what became of the drafts, one for each answer; an empty one counts as well."""


class FixedLength:
    """Always the same length."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._lengths: list[int] = []

    def begin(self, live: int, most: int) -> bool:
        self._lengths = [0] * live
        return True

    def extend(self, confidence: Mapping[int, float], *, free: bool = False) -> set[int]:
        longer = {i for i in confidence if self._lengths[i] < self._tokens}
        for i in longer:
            self._lengths[i] += 1
        return longer

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        pass


@dataclass(slots=True)
class Calibration:
    """How often draft tokens turn out right, given the confidence of the draft. What was seen long ago fades."""

    right: list[float] = field(default_factory=lambda: [0.0] * len(_BELIEVED))
    wrong: list[float] = field(default_factory=lambda: [0.0] * len(_BELIEVED))
    _cached: list[float] = field(
        default_factory=list, init=False
    )  # the probabilities, until another draft token is seen

    def probability(self, confidence: float) -> float:
        """Return the probability that a draft token is right where all before it are."""
        return self._probabilities[bisect_right(_CONFIDENCE, confidence)]

    @property
    def mean(self) -> float:
        """The probability for a draft token of unknown confidence."""
        right, wrong = sum(self.right), sum(self.wrong)
        return (right + 0.8 * _BELIEF) / (right + wrong + _BELIEF)

    @property
    def highest(self) -> float:
        """The probability for a draft token of the group that is right most often."""
        return max(self._probabilities)

    def observe(self, confidence: Sequence[float], outcome: Outcome) -> None:
        for place, value in enumerate(confidence[: outcome.judged]):
            (self.right if place < outcome.accepted else self.wrong)[bisect_right(_CONFIDENCE, value)] += 1
        self._cached = []

    def fade(self, tokens: int) -> None:
        left = _MEMORY**tokens
        self.right = [left * value for value in self.right]
        self.wrong = [left * value for value in self.wrong]
        self._cached = []

    @property
    def _probabilities(self) -> list[float]:
        if not self._cached:
            kinds = list(zip(self.right, self.wrong, _BELIEVED, strict=True))
            # How far what is believed has held: a draft that was confident and wrong is believed less whatever its
            # confidence.
            right, expected = sum(self.right), sum((right + wrong) * believed for right, wrong, believed in kinds)
            trust = min(1.0, (right + 2 * _BELIEF) / (expected + 2 * _BELIEF))
            self._cached = [
                (right + _BELIEF * believed * trust) / (right + wrong + _BELIEF) for right, wrong, believed in kinds
            ]
        return self._cached


class AdaptiveLength:
    """A draft continues while the tokens that it may win are worth more than the time that it takes.

    One more draft token wins a token with the probability that it and all before it are right, which is estimated from
    its confidence. It costs an evaluation of the drafting roles and one more row for the others; a token is worth
    the time that one takes at the present speed, so that the rule maximises tokens per second (the renewal–reward
    theorem). As kernels work in fours, a fourth row may be cheaper than a third: costs are weighed some tokens ahead,
    for all answers that are being written together. Drafts are judged by the tokens that are not worth their
    row as well: the roles that draft have made them anyway, and the answer shows what is right. So a bad draft stops
    costing anything, and one that becomes good is seen.
    """

    def __init__(
        self,
        drafting: Sequence[Costs],
        rest: Sequence[Costs],
        calibrations: Mapping[bool, Calibration] | None = None,
    ) -> None:
        """drafting, rest: costs, by context, of the roles that draft and of those that check.
        calibrations: by whether draft tokens are free; default, of a source whose are not.
        """
        self._drafting_costs = tuple(drafting)
        self._rest_costs = tuple(rest)
        self._calibrations = {False: Calibration()} if calibrations is None else calibrations
        self._tokens = 0.0
        self._seconds = 0.0
        self._idle = self._live = 0
        self._confidence: list[list[float]] = []
        self.begin(1, 1)

    def begin(self, live: int, most: int) -> bool:
        self._most = most
        drafted = self._rows > len(self._confidence)
        self._idle = max(0, self._idle - 1) if live == self._live else 0
        self._live = live
        self._confidence = [[] for _ in range(live)]
        self._odds = [1.0] * live  # that all draft tokens so far are right
        self._free = [False] * live
        self._next: list[tuple[float, bool] | None] = [
            None
        ] * live  # the token not drafted: its confidence, whether free
        self._spent = self._drafting(live)
        if not (self._idle or drafted) and not any(self._could_pay(live, free) for free in self._calibrations):
            self._idle = _PATIENCE
        return not self._idle

    def extend(self, confidence: Mapping[int, float], *, free: bool = False) -> set[int]:
        calibration = self._calibrations[free]
        odds = {
            i: self._odds[i] * calibration.probability(value)
            for i, value in confidence.items()
            if len(self._confidence[i]) < self._most
        }
        likeliest = sorted(odds, key=lambda i: odds[i], reverse=True)
        longer = likeliest[: self._best([odds[i] for i in likeliest], calibration.mean, free)]
        rows = self._rows
        self._next = [
            (confidence[i], free) if i in confidence else draft_token for i, draft_token in enumerate(self._next)
        ]
        for i in longer:
            self._confidence[i].append(confidence[i])
            self._odds[i] = odds[i]
            self._free[i] = free
            self._next[i] = None
        if free:
            self._spent += self._drafting(self._rows) - self._drafting(rows)
        elif longer:
            self._spent += self._drafting(len(longer)) + len(longer) * _PROPOSING
        return set(longer)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        tokens = len(outcomes) + sum(outcome.accepted for outcome in outcomes)
        for calibration in self._calibrations.values():
            calibration.fade(tokens)
        for i, outcome in enumerate(outcomes):
            if self._confidence[i]:
                self._calibrations[self._free[i]].observe(self._confidence[i], outcome)
            if (draft_token := self._next[i]) and outcome.next_right is not None:
                confidence, free = draft_token
                self._calibrations[free].observe([confidence], Outcome(1, int(outcome.next_right)))
        left = _MEMORY ** (2 * tokens)
        self._tokens = left * self._tokens + tokens
        self._seconds = left * self._seconds + self._spent + self._rest(self._rows)

    @property
    def _rows(self) -> int:
        """Rows that the other roles must evaluate for the drafts as they are."""
        return len(self._confidence) + sum(map(len, self._confidence))

    def _best(self, odds: Sequence[float], mean: float, free: bool) -> int:
        """Return how many of the drafts should continue, the likeliest first; they may continue several times."""
        best, most = 0, 0.0
        rows, worth = self._rows, self._tokens_per_second()
        done = min((len(confidence) for confidence in self._confidence), default=0)
        before = self._checking(rows, free)
        for count, won_now in enumerate(accumulate(odds), 1):
            won = 0.0
            proposing = 0.0 if free else self._drafting(count) + count * _PROPOSING
            for times in range(1, self._most - done + 1):
                won += won_now * mean ** (times - 1)
                spent = self._checking(rows + count * times, free) - before + times * proposing
                if won - worth * spent > most:
                    best, most = count, won - worth * spent
        return best

    def _could_pay(self, live: int, free: bool) -> bool:
        """Return whether drafts would pay if every draft token were as good as the best ones are."""
        odds = self._calibrations[free].highest
        return self._best([odds] * live, odds, free) > 0

    def _tokens_per_second(self) -> float:
        """Return the present speed: never below that without drafts, with which it begins."""
        live = len(self._confidence)
        plain = self._drafting(live) + self._rest(live)
        return max(live / plain, (self._tokens + 2 * live) / (self._seconds + 2 * plain))

    def _drafting(self, rows: int) -> float:
        return _seconds(self._drafting_costs, rows)

    def _rest(self, rows: int) -> float:
        return _seconds(self._rest_costs, rows)

    def _checking(self, rows: int, free: bool) -> float:
        """Return the seconds of evaluating drafted rows: where these are free, for the drafting roles as well."""
        return self._rest(rows) + (self._drafting(rows) if free else 0.0)


def _seconds(costs: Iterable[Costs], rows: int) -> float:
    return sum([cost(rows) for cost in costs])
