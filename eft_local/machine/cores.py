"""What other programs take of the machine's cores: what keeps a model slower than the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

BUSY = 0.25
"""The share of all cores that other programs use on a machine that is called busy."""

_LEAST = 0.1  # seconds; the system counts in hundredths


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds so far: of the clock, of all cores at work, of this process at work."""

    clock: float
    machine: float
    own: float


def read() -> Reading:
    """Ask the system; takes a tenth of a millisecond. Time that a hypervisor gives to others counts as work."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted as user and nice already
    return Reading(time.perf_counter(), sum(times) - idle - guests, time.process_time())


@dataclass(frozen=True, slots=True)
class CoreUse:
    """How many cores other programs used, of all, on average over some time."""

    others: float
    cores: int

    @property
    def busy(self) -> bool:
        """Whether that makes models slower than they are on an idle machine."""
        return self.others >= BUSY * self.cores

    def as_dict(self) -> dict[str, float | int | bool]:
        """Return it ready for JSON."""
        return {"cores": self.cores, "used_by_others": round(self.others, 2), "busy": self.busy}

    def __str__(self) -> str:
        return f"{self.others:.1f} of {self.cores} cores"


class CoreMeter:
    """Measures what other programs use from the moment it is made."""

    def __init__(self, read: Callable[[], Reading] = read, cores: int | None = None) -> None:
        """cores: of the machine, as its system counts them."""
        self._read = read
        self._cores = cores or psutil.cpu_count() or 1
        self._first = read()

    def use(self) -> CoreUse | None:
        """Return what others used until now; None if that was too short a time to measure."""
        now, first = self._read(), self._first
        seconds = now.clock - first.clock
        if seconds < _LEAST:
            return None
        others = (now.machine - first.machine - (now.own - first.own)) / seconds
        return CoreUse(min(max(others, 0.0), float(self._cores)), self._cores)
