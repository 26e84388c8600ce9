"""How long OpenMP's threads look for each other before they sleep: long on an idle machine, briefly on a busy one.

GCC's OpenMP looks 300,000 times, some 8 ms; but a hundred times where a process has more OpenMP threads than there are
cores (see GOMP_SPINCOUNT in its manual). The first is fastest as long as every thread has a core. Beside other programs
it keeps these, and with them the very thread that is waited for, from work. It can be chosen only before the library
is loaded; so a thread that has a team of its own, which does nothing, makes it the one or the other.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from functools import cache

import llama_cpp
import psutil

from eft_local.machine.cores import CoreMeter

SHARED = 0.5
"""Cores that other programs use when waits become brief: all threads wait for the one that shares its core."""

PERIOD = 0.25
"""Seconds between two looks at what others use."""

Parallel = Callable[[int], None]
"""Lets a team of so many OpenMP threads do nothing; they exist until the thread that calls ends."""


def openmp() -> Parallel | None:
    """Return how to make a team with the OpenMP library that llama.cpp uses; None if it uses none, or not GCC's."""
    run = getattr(llama_cpp.llama_cpp._lib, "GOMP_parallel", None)
    if run is None:
        return None
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of a null pointer
    return lambda threads: run(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))


class Waits:
    """Makes all waits of this process long or brief."""

    def __init__(self, parallel: Parallel | None, cores: int) -> None:
        """parallel: None where nothing can be done. cores: of the machine."""
        self._parallel, self._cores = parallel, cores
        self._enough: threading.Event | None = None

    @property
    def brief(self) -> bool:
        """Whether threads wait briefly."""
        return self._enough is not None

    def make(self, *, brief: bool) -> None:
        """Let threads wait briefly from now on, or long."""
        if self._parallel is None or brief == self.brief:
            return
        if self._enough is not None:
            self._enough.set()
            self._enough = None
            return
        made, self._enough = threading.Event(), threading.Event()
        threading.Thread(target=self._crowd, args=(made, self._enough), name="openmp", daemon=True).start()
        made.wait()

    def _crowd(self, made: threading.Event, enough: threading.Event) -> None:
        assert self._parallel is not None
        self._parallel(self._cores + 1)
        made.set()
        enough.wait()


class Watch:
    """Makes waits brief while other programs use cores, and long when they do not."""

    def __init__(
        self,
        waits: Waits,
        meter: Callable[[], CoreMeter] = CoreMeter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waits, self._new_meter, self._clock = waits, meter, clock
        self._looking = threading.Lock()
        self._meter, self._due = meter(), clock() + PERIOD

    def look(self) -> None:
        """Look again if it is time to; called before each evaluation, by any thread."""
        if self._clock() < self._due or not self._looking.acquire(blocking=False):
            return
        try:
            use = self._meter.use()
            self._meter, self._due = self._new_meter(), self._clock() + PERIOD
            if use is not None:
                self._waits.make(brief=use.others >= SHARED)
        finally:
            self._looking.release()


@cache
def watch() -> Watch:
    """Return this process's watch."""
    return Watch(Waits(openmp(), psutil.cpu_count() or 1))
