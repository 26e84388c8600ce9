"""How long OpenMP's threads wait: switched by what others use of the cores, with meters and a clock that are given."""

import threading

import pytest

from eft_local.backends.llamacpp import waits
from eft_local.backends.llamacpp.waits import PERIOD, Waits, Watch
from eft_local.machine.cores import CoreMeter, CoreUse


class Crowd:
    """Counts the threads that OpenMP would have beside ours."""

    def __init__(self) -> None:
        self.teams: list[tuple[int, threading.Thread]] = []

    def __call__(self, threads: int) -> None:
        self.teams.append((threads, threading.current_thread()))

    def alive(self) -> list[int]:
        return [size for size, thread in self.teams if thread.is_alive()]


def test_a_team_makes_waits_brief_and_its_end_makes_them_long() -> None:
    crowd = Crowd()
    made = Waits(crowd, cores=4)
    made.make(brief=False)
    assert (made.brief, crowd.teams) == (False, [])
    made.make(brief=True)
    made.make(brief=True)
    assert (made.brief, crowd.alive()) == (True, [5]), "one more than there are cores"
    made.make(brief=False)
    crowd.teams[0][1].join(10)
    assert (made.brief, crowd.alive()) == (False, [])
    made.make(brief=True)
    assert (made.brief, crowd.alive()) == (True, [5])
    made.make(brief=False)


def test_without_openmp_nothing_is_done() -> None:
    made = Waits(None, cores=4)
    made.make(brief=True)
    assert not made.brief


class Meter(CoreMeter):
    """Says what it is told to."""

    others: float | None = None

    def __init__(self) -> None:
        pass

    def use(self) -> CoreUse | None:
        return None if self.others is None else CoreUse(self.others, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(Meter, "others", None)
    return [100.0]


def test_waits_are_brief_while_others_use_cores(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Waits(Crowd(), cores=2)
    watch = Watch(made, Meter, lambda: clock[0])
    found = []
    for others in (0.1, 0.6, None, 2.0, 0.4):
        monkeypatch.setattr(Meter, "others", others)
        clock[0] += 0.9 * PERIOD
        before = made.brief
        watch.look()
        assert made.brief is before, "it is not time yet"
        clock[0] += 0.2 * PERIOD
        watch.look()
        found.append(made.brief)
    assert found == [False, True, True, True, False]


def test_who_comes_while_another_looks_continues(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "others", 2.0)
    made = Waits(Crowd(), cores=2)
    watch = Watch(made, Meter, lambda: clock[0])
    clock[0] += PERIOD
    with watch._looking:
        watch.look()
    assert not made.brief
    watch.look()
    assert made.brief
    made.make(brief=False)


def test_llama_cpps_openmp_can_be_crowded() -> None:
    """Where llama.cpp is built with GCC's OpenMP, a team of three does nothing and comes back."""
    parallel = waits.openmp()
    if parallel is None:
        pytest.skip("llama.cpp is built without GCC's OpenMP")
    parallel(3)
