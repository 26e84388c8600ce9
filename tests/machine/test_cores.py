"""What other programs take of the cores, with readings that are given."""

import time
from collections.abc import Callable

import pytest

from eft_local.machine.cores import CoreMeter, CoreUse, Reading, read


def readings(*values: Reading) -> Callable[[], Reading]:
    return iter(values).__next__


@pytest.mark.parametrize(
    ("machine", "own", "others", "busy"),
    [
        (4.0, 4.0, 0.0, False),
        (4.0, 2.0, 1.0, True),
        (0.8, 0.0, 0.4, False),
        (1.0, 0.0, 0.5, True),
        (9.0, 1.0, 2.0, True),
    ],
)
def test_others_use_what_we_do_not(machine: float, own: float, others: float, busy: bool) -> None:
    meter = CoreMeter(readings(Reading(5.0, 100.0, 7.0), Reading(7.0, 100.0 + machine, 7.0 + own)), cores=2)
    use = meter.use()
    assert use == CoreUse(pytest.approx(others), 2)
    assert use.busy is busy


def test_counters_that_disagree_are_nobody() -> None:
    meter = CoreMeter(readings(Reading(0.0, 0.0, 0.0), Reading(1.0, 0.9, 1.0)), cores=4)
    assert meter.use() == CoreUse(0.0, 4)


def test_a_moment_says_nothing() -> None:
    meter = CoreMeter(readings(Reading(0.0, 0.0, 0.0), Reading(0.09, 0.2, 0.0), Reading(0.5, 0.5, 0.0)), cores=2)
    assert meter.use() is None
    assert meter.use() == CoreUse(1.0, 2)


def test_it_is_written_for_people_and_for_scripts() -> None:
    assert str(CoreUse(1.94, 2)) == "1.9 of 2 cores"
    assert CoreUse(1.946, 2).as_dict() == {"cores": 2, "used_by_others": 1.95, "busy": True}


def test_the_system_is_read() -> None:
    before, now = read(), time.perf_counter()
    after = read()
    assert before.clock <= now <= after.clock
    assert 0 < before.machine <= after.machine
    assert 0 < before.own <= after.own <= after.machine + 1, "a program works on the machine's cores"
