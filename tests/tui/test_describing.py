"""Facts that a second thread works out while an answer is being written."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from eft_local.engine import statistics
from eft_local.engine.step import Step
from eft_local.hub.references import find_recipe
from eft_local.tui import describing
from eft_local.tui.describing import Describer


def evidence() -> statistics.Evidence:
    row = np.zeros(4, np.float32)
    return statistics.Evidence(find_recipe("demo"), {"base": row}, 2, lambda token: b"x", lambda token: False)


def test_statistics_are_reported_in_order_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "MOST_WAITING", 3 * evidence().nbytes)
    reported: list[tuple[int, int]] = []
    describer = Describer(lambda start, steps: reported.append((start, len(steps))))
    for token in (0, 1, 2, 3, 2, 1, 0):
        describer.add(Step(token, "x", evidence=evidence()))
    describer.add(Step(None, "", finish_reason="cancelled"))
    found = describer.finish()
    assert [step.token for step in found] == [0, 1, 2, 3, 2, 1, 0, None]
    assert [step.roles["base"].rank for step in found[:-1]] == [0, 1, 2, 3, 2, 1, 0]
    assert [start for start, _ in reported] == [sum(count for _, count in reported[:i]) for i in range(len(reported))]
    assert all(count <= 5 for _, count in reported)


@pytest.mark.parametrize("reason", ["watched", "late", "much"])
def test_statistics_wait_until_there_is_a_reason(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "PACE", 0.001)
    monkeypatch.setattr(describing, "LATEST", 1000.0)
    monkeypatch.setattr(describing, "MOST_WAITING", 4 * evidence().nbytes)
    reported = threading.Event()
    watched = False
    describer = Describer(lambda start, steps: reported.set(), lambda: watched)
    describer.add(Step(0, "x", evidence=evidence()))
    describer.add(Step(1, "x", evidence=evidence()))
    assert not reported.wait(0.05)
    if reason == "watched":
        watched = True
    elif reason == "late":
        monkeypatch.setattr(describing, "LATEST", 0.0)
    else:
        describer.add(Step(2, "x", evidence=evidence()))
    assert reported.wait(20)
    describer.close()


def test_what_goes_wrong_with_statistics_is_reported_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(steps: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(statistics, "compute", fail)
    describer = Describer(lambda start, steps: None)
    describer.add(Step(1, "x"))
    with pytest.raises(ValueError, match="broken"):
        describer.finish()
