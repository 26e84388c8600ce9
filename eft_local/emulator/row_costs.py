"""What evaluating several rows at once costs on this machine: measured once for a model and a placement, then kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from eft_local import locations
from eft_local.emulator.loading import LoadedRole

MEASURED_ROWS = (1, 2, 3, 4, 5, 8, 12, 16)
"""Kernels work in fours and eights, so the cost of rows is far from a straight line: these corners are measured."""

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class RowCosts:
    """What evaluating n rows at once costs a role: seconds at `rows`, interpolated between and extended beyond."""

    rows: Sequence[int]
    seconds: Sequence[float]

    def __call__(self, n: int) -> float:
        """Return the seconds for n rows."""
        right = bisect_left(self.rows, n)
        if right < len(self.rows) and self.rows[right] == n:
            return self.seconds[right]
        right = min(max(right, 1), len(self.rows) - 1)
        left = right - 1
        slope = (self.seconds[right] - self.seconds[left]) / (self.rows[right] - self.rows[left])
        return self.seconds[left] + slope * (n - self.rows[left])


def row_costs(role: LoadedRole, evaluate: Callable[[int], float]) -> RowCosts:
    """Return a role's costs: from the cache, or measured now with `evaluate`, which times one evaluation of n rows."""
    path = _cached(role)
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = json.loads(path.read_text()) if path else None
        if kept and kept["rows"] == list(MEASURED_ROWS):
            return RowCosts(kept["rows"], [float(value) for value in kept["seconds"]])
    evaluate(1)  # the first run warms caches and thread pools
    seconds = [min(evaluate(n) for _ in range(_REPEATS)) for n in MEASURED_ROWS]
    if path:
        with contextlib.suppress(OSError):  # it is measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps({"rows": MEASURED_ROWS, "seconds": seconds}))
            partial.replace(path)
    return RowCosts(MEASURED_ROWS, seconds)


def _cached(role: LoadedRole) -> Path | None:
    """Return where the costs of this file, placement and llama.cpp are kept; None for a model without a file."""
    file = getattr(role.model, "path", None)
    if file is None:
        return None
    status = Path(file).stat()
    facts = (str(file), status.st_size, status.st_mtime_ns, repr(role.placement), version("llama-cpp-python"))
    return locations.cache() / "row-costs" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
