"""What evaluating several rows at once costs on this machine: measured once for a context's model, adapter and
placement, then kept. Whose rows they are does not matter: roles that share a context share its costs.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import inf
from pathlib import Path

from eft_local.backends.llamacpp import kernels
from eft_local.engine.loading import LoadedRole
from eft_local.machine import measured

MEASURED_ROWS = (1, 2, 3, 4, 5, 8, 12, 16)
"""Kernels work in fours and eights, so the cost of rows is far from a straight line: these corners are measured."""

_REPEATS = 5
_BUDGET = 2.0
"""Seconds after which measuring is not repeated: a large model's costs show at once, and are learnt as it is used."""

_OF_THESE_ROWS, _OF_THE_MACHINE = 0.2, 0.05
"""How much of a deviation (as a power of the ratio) is put down to the rows, how much to the machine's load."""


_CLEARLY = 1.05
"""How much dearer rows that nobody requested are held to be: what they cost may be a little more than it seems."""


class RowCosts:
    """What evaluating n rows at once costs a context: seconds where known, interpolated between, extended beyond."""

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]) -> None:
        """rows: at least two numbers, ascending."""
        self._rows = list(rows)
        self._seconds = list(seconds)
        self._cheapest: dict[int, int] = {}  # as requested, until new measurements of these rows

    def __call__(self, n: int) -> float:
        """Return the seconds for n rows."""
        rows, seconds = self._rows, self._seconds
        right = bisect_left(rows, n)
        if right < len(rows) and rows[right] == n:
            return seconds[right]
        if right == len(rows):  # beyond what is known the average row counts: the last step may well go down
            slope = max(0.0, seconds[-1] - seconds[0]) / (rows[-1] - rows[0])
            return seconds[-1] + slope * (n - rows[-1])
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (rows[right] - rows[left])
        return seconds[left] + slope * (n - rows[left])

    def cheapest(self, n: int) -> int:
        """Return n, or how many more rows up to a multiple of four cost clearly less."""
        if n not in self._cheapest:
            candidates = range(n, n + -n % 4 + 1) if n > 1 else (n,)
            self._cheapest[n] = min(candidates, key=lambda rows: self(rows) * (1 if rows == n else _CLEARLY))
        return self._cheapest[n]

    def learn(self, n: int, seconds: float) -> None:
        """Take an evaluation of n rows into account that took so long."""
        expected = self(n)
        if expected <= 0 or seconds <= 0:
            return
        deviation = min(max(seconds / expected, 0.5), 2.0)
        place = bisect_left(self._rows, n)
        if place == len(self._rows) or self._rows[place] != n:
            self._rows.insert(place, n)
            self._seconds.insert(place, expected)
            deviation_of_rows = deviation**0.5
        else:
            deviation_of_rows = deviation**_OF_THESE_ROWS
        common = deviation**_OF_THE_MACHINE
        self._seconds = [value * common for value in self._seconds]
        self._seconds[place] *= deviation_of_rows
        points = (0, *self._rows, inf)  # what lies between these is interpolated
        self._cheapest = {
            rows: cheapest
            for rows, cheapest in self._cheapest.items()
            if rows + 3 <= points[place] or points[place + 2] <= rows
        }


def per_role(costs: RowCosts, roles: int) -> Callable[[int], float]:
    """Return what n rows of each of so many roles cost that share the context, or more rows if these cost less."""
    return lambda n: costs(costs.cheapest(roles * n))


def row_costs(role: LoadedRole, evaluate: Callable[[int], float], most: int) -> RowCosts:
    """Return the costs of a role's context: from the cache, or measured now.

    evaluate: returns the seconds of one evaluation of n rows, of at most so many.
    """
    wanted = [rows for rows in MEASURED_ROWS if rows <= most]
    path = _cached(role)
    kept = measured.read(path)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        if kept and kept["rows"][: len(wanted)] == wanted:
            return _between(kept["rows"], [float(value) for value in kept["seconds"]])
    seconds = _measure(wanted, evaluate)
    measured.write(path, {"rows": wanted, "seconds": seconds})
    return _between(wanted, seconds)


def _measure(wanted: Sequence[int], evaluate: Callable[[int], float]) -> list[float]:
    """Return the least seconds per number of rows; what else runs on the machine only ever makes them more."""
    spent = evaluate(1)  # warms caches and thread pools
    seconds = [inf] * len(wanted)
    for repeat in range(_REPEATS):
        if repeat and spent > _BUDGET:
            return seconds if repeat > 1 else _least_line(wanted, seconds)
        for place, rows in enumerate(wanted):
            now = evaluate(rows)
            spent += now
            seconds[place] = min(seconds[place], now)
    return seconds


def _least_line(wanted: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Return seconds that were measured but once, those of multiples of four on the greatest convex line below them.

    One that was disturbed stands above its neighbours' line. A number that seems too dear is never tried again, while
    one that seems too cheap is tried, and learnt.
    """
    fours = [(rows, second) for rows, second in zip(wanted, seconds, strict=True) if rows % 4 == 0]

    def least(rows: int) -> float:
        before = [each for each in fours if each[0] <= rows]
        above = [each for each in fours if each[0] >= rows]
        lines = (RowCosts((n, m), (low, high))(rows) for n, low in before for m, high in above if n < m)
        return min([second for n, second in fours if n == rows] + list(lines))

    return [second if rows % 4 else least(rows) for rows, second in zip(wanted, seconds, strict=True)]


def _between(corners: Sequence[int], seconds: Sequence[float]) -> RowCosts:
    """Return the costs of all rows up to the last that was measured: after a multiple of four each one costs what the
    fifth does.

    On a CPU thirteen rows may well cost more than sixteen.
    """
    by_count = dict(zip(corners, seconds, strict=True))
    fifth = by_count[5] - by_count[4] if 5 in by_count else 0.0
    rows = range(1, corners[-1] + 1)
    return RowCosts(rows, [by_count.get(n) or by_count[n - n % 4] + n % 4 * fifth for n in rows])


def _cached(role: LoadedRole) -> Path | None:
    """Return where the costs of these files, placement, llama.cpp and kernels are kept; None for a model without a
    file.
    """
    parts: list[object] = [repr(role.placement), version("llama-cpp-python"), kernels.installed()]
    for file in (role.model.path, role.adapter.path) if role.adapter else (role.model.path,):
        if file is None:
            return None
        status = file.stat()
        parts += (str(file), status.st_size, status.st_mtime_ns)
    return measured.place("row-costs", *parts)
