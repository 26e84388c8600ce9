"""How many threads evaluate a model: as many as are fastest now.

llama.cpp's threads wait for each other after every node of a graph, hundreds of times a token. Small models are
fastest with one thread, large ones with a thread per core; and where another program uses a core too, all threads wait
for the one that shares it. So the number is found by comparing, for each number of rows apart: now and then a few calls
are made with the next number up or down, more often when calls suddenly take longer or shorter than they did. What
calls take is remembered, so that the next process begins with the right number. Logits do not depend on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from eft_local.backends.llamacpp import kernels
from eft_local.backends.llamacpp.file_probe import identity
from eft_local.machine import measured

Times = Mapping[int, Mapping[int, float]]
"""Seconds per row, by kind of call and number of threads."""

_SINGLE = 16  # up to so many rows each number is a kind of its own: kernels work in fours and eights
_WINDOW = 0.03  # seconds that are compared; a turn of another program takes some 3 ms
_JUMP = 1.4  # times longer or shorter, and the machine must have changed
_CLEARLY = 0.95  # what takes less of the time is faster
_MOST = 4.0  # a number of threads that takes so much longer is tried no more rarely than this requires
_CALM, _ALARMED = 0.01, 0.1  # how much of the time may be spent on trying: usually; if unknown, or after a jump
_PAUSE, _SHORT_PAUSE = 10, 3  # windows between two tests at least
_BEGIN = 1.0  # seconds of calls that a new process has to its credit


def kind(rows: int) -> int:
    """Return what calls of so many rows are compared with: those of as many, or, for prompts, of about as many."""
    return rows if rows <= _SINGLE else 1 << (rows - 1).bit_length()


def ladder(most: int) -> tuple[int, ...]:
    """Return the numbers of threads that are tried, ascending: 1, 2, 3, 4, 6, 8, 12, …, and the greatest."""
    steps = {1 << power for power in range(most.bit_length())} | {3 << power for power in range(most.bit_length())}
    return tuple(sorted({n for n in steps | {most} if n <= most}))


@dataclass(slots=True)
class _Window:
    """Calls in a row with the same number of threads."""

    seconds: float = 0.0
    rows: int = 0

    def add(self, rows: int, seconds: float) -> float | None:
        """Add a call; return the seconds per row once the window is full, which empties it."""
        self.seconds += seconds
        self.rows += rows
        if self.seconds < _WINDOW:
            return None
        pace = self.seconds / self.rows
        self.seconds, self.rows = 0.0, 0
        return pace


@dataclass(slots=True)
class Choice:
    """The number of threads for one kind of call.

    threads: in use.  ratios: of other numbers, how much longer calls took when they were last compared; what is not
    there is unknown.  usual: seconds per row, slowly averaged.  fastest: seconds per row of each number at best.
    """

    most: int
    threads: int
    ratios: dict[int, float] = field(default_factory=dict)
    usual: float | None = None
    fastest: dict[int, float] = field(default_factory=dict)
    _tested: int | None = None
    _urgent: set[int] = field(default_factory=set)  # numbers to try soon: the machine has changed
    _rising: bool = False  # which of them first: more threads, or fewer
    _since: float = _BEGIN  # seconds of calls since the last test
    _lately: float = inf
    _span: float = _WINDOW  # seconds that the last window took
    _window: _Window = field(default_factory=_Window)

    def now(self) -> int:
        """Return how many threads the next call shall have."""
        return self._tested or self.threads

    def learn(self, rows: int, seconds: float) -> None:
        """Take into account that a call of so many rows took so long, with `now()` threads."""
        tested = self._tested
        if tested is None:
            self._since += seconds
        self._span = max(_WINDOW, self._window.seconds + seconds)
        pace = self._window.add(rows, seconds)
        if pace is None:
            return
        self.fastest[self.now()] = min(pace, self.fastest.get(self.now(), inf))
        if tested is None:
            self._note(pace)
            self._tested = self._due()
        else:
            self._tested = None
            self._compare(tested, pace)

    def _note(self, pace: float) -> None:
        """Compare the pace of the number in use with what it was."""
        usual = pace if self.usual is None else self.usual
        if not usual / _JUMP < pace < usual * _JUMP:
            self._urgent, self._rising = set(self._neighbours()), pace < usual
            usual = pace
        self.usual = usual + 0.2 * (pace - usual)
        self._lately = pace

    def _due(self) -> int | None:
        """Return which other number is worth testing now."""

        def order(n: int) -> tuple[bool, bool, float]:
            return n not in self._urgent, (n > self.threads) != self._rising, self._expected(n)

        for n in sorted(self._neighbours(), key=order):
            share = _ALARMED if n in self._urgent or n not in self.ratios else _CALM
            pause = _SHORT_PAUSE if n in self._urgent else _PAUSE
            if self._since >= pause * self._span and share * self._since >= (self._expected(n) - 1) * self._span:
                return n
        return None

    def _neighbours(self) -> list[int]:
        """Return the next lower and the next higher number of threads."""
        steps = ladder(self.most)
        place = steps.index(self.threads)
        return [steps[at] for at in (place - 1, place + 1) if 0 <= at < len(steps)]

    def _expected(self, n: int) -> float:
        """Return how much longer calls are expected to take with n threads; of what is unknown the worst."""
        return min(_MOST, self.ratios.get(n, max(self.threads / n, 1.0)))

    def _compare(self, n: int, pace: float) -> None:
        """Take what a test has shown: the better number stays."""
        ratio = pace / self._lately
        if ratio < _CLEARLY:
            before, self._rising = self.threads, n > self.threads
            self.ratios = {before: 1 / ratio}  # of what lies further on nothing is known
            self.threads, self.usual, self._lately = n, pace, pace
            self._urgent = set(self._neighbours()) - {before}  # perhaps the next number is better still
        else:
            self.ratios[n] = ratio
            self._urgent.discard(n)
            self._since = 0.0

    @classmethod
    def remembered(cls, most: int, times: Mapping[int, float]) -> Choice:
        """Begin with what each number of threads took at best in other processes."""
        by_count = {n: seconds for n, seconds in times.items() if n in ladder(most)}
        if not by_count:
            return cls(most, most)
        best = min(by_count, key=by_count.__getitem__)
        ratios = {n: seconds / by_count[best] for n, seconds in by_count.items() if n != best}
        return cls(most, best, ratios, usual=by_count[best], fastest=by_count)


class Threads:
    """Chooses the number of threads for the calls on one model. Not for two threads at once."""

    def __init__(self, most: int, times: Times | None = None) -> None:
        """most: threads that may be used.  times: what is remembered of this model."""
        self.most = most
        self._choices = {each: Choice.remembered(most, by_count) for each, by_count in (times or {}).items()}

    def choose(self, rows: int) -> int:
        """Return the number of threads for a call of so many rows."""
        return self._choice(rows).now()

    def learn(self, rows: int, seconds: float) -> None:
        """Take into account how long a call took for which `choose` was called just before."""
        self._choice(rows).learn(rows, seconds)

    @property
    def times(self) -> dict[int, dict[int, float]]:
        """Seconds per row at best, by kind of call and number of threads."""
        return {each: dict(choice.fastest) for each, choice in self._choices.items() if choice.fastest}

    def ordered(self, single: int | None, several: int | None) -> Ordered:
        """Return the same with orders: threads for calls of one row, and of more."""
        return Ordered(self, single, several)

    def _choice(self, rows: int) -> Choice:
        wanted = kind(rows)
        if wanted not in self._choices:
            # What is best for nearly as many rows is likely best for these; a prompt gains more by threads than a row.
            alike = [each for each in self._choices if (each > _SINGLE) == (wanted > _SINGLE)]
            near = min(alike, key=lambda each: abs(each - wanted), default=None)
            first = self._choices[near] if near is not None else Choice(self.most, self.most)
            self._choices[wanted] = Choice(self.most, first.threads, dict(first.ratios))
        return self._choices[wanted]


class Ordered:
    """What a recipe orders, and `Threads` where it orders nothing."""

    def __init__(self, free: Threads, single: int | None, several: int | None) -> None:
        """single: threads for calls of one row; several: for all others."""
        self._free, self._single, self._several = free, single, several

    def choose(self, rows: int) -> int:
        """Return the number of threads for a call of so many rows."""
        return self._order(rows) or self._free.choose(rows)

    def learn(self, rows: int, seconds: float) -> None:
        """Take into account how long a call took for which `choose` was called just before."""
        if self._order(rows) is None:
            self._free.learn(rows, seconds)

    def _order(self, rows: int) -> int | None:
        return self._single if rows == 1 else self._several


def times_file(path: Path, most: int) -> Path | None:
    """Return where it is kept what calls on a model take on this machine; None where nothing can be kept."""
    return measured.place("threads", identity((path,)), kernels.installed(), most)


def read_times(path: Path | None) -> dict[int, dict[int, float]]:
    """Return what `write_times` kept, or nothing."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        kept = measured.read(path) or {}
        return {int(each): {int(n): float(s) for n, s in times.items()} for each, times in kept.items()}
    return {}


def write_times(path: Path, times: Times) -> None:
    """Keep what calls took at best; where that cannot be written it is measured again next time."""
    remembered = read_times(path)
    if not any(
        seconds < 0.9 * remembered.get(each, {}).get(n, inf)
        for each, found in times.items()
        for n, seconds in found.items()
    ):
        return
    measured.write(path, times)
