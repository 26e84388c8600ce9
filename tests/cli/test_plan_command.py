"""`eft plan`: what it says, to people and to scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eft_local.cli.app import run
from eft_local.machine.cores import CoreUse
from eft_local.placement import speed

GB = 10**9
Eft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def eft(capsys: pytest.CaptureFixture[str]) -> Eft:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["plan", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def planned(eft: Eft) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str) -> dict[str, Any]:
        _, out, _ = eft(*arguments, "--json", "--bandwidth", "10")
        found: dict[str, Any] = json.loads(out)
        return found

    return call


def test_the_demo_fits_and_the_text_says_so(eft: Eft) -> None:
    code, out, err = eft("demo", "--bandwidth", "10", "--memory", "8")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "demo: 512 tokens of context for each role"
    assert lines[1].split() == "weights KV cache per 1k tokens compute other place".split()
    assert [line.split()[0] for line in lines[2:5]] == ["base", "antiexpert", "assistant"]
    assert all(line.endswith("RAM, mapped") for line in lines[2:5])
    assert lines[5].startswith("RAM: ")
    assert " of 8.0 GB that are free" in lines[5]
    assert lines[6] == "longest context: 2048 tokens, all that the models were trained with"
    assert lines[7].startswith("speed: ")


def test_json_has_every_figure(planned: Callable[..., dict[str, Any]]) -> None:
    figures = planned("demo", "--memory", "8")
    assert (figures["name"], figures["context"], figures["fits"], figures["problem"]) == ("demo", 512, True, None)
    assert [model["roles"] for model in figures["models"]] == [["base"], ["antiexpert"], ["assistant"]]
    base = figures["models"][0]
    assert base["total"] == sum(base[key] for key in ("weights", "cache", "compute", "other"))
    assert base["cache_per_1000_tokens"] == pytest.approx(base["cache"] / 512 * 1000, abs=1)
    (ram,) = figures["devices"]
    assert ram["used"] == sum(model["total"] for model in figures["models"])
    assert ram["free"] == 8 * GB
    assert figures["speed"]["bandwidths"] == {"CPU": 10 * GB}
    assert planned("demo", "--memory", "ram=8GB") == figures
    assert figures["speed"]["when_full"] < figures["speed"]["tokens_per_second"]
    longer = planned("demo", "--context", "2048")
    assert longer["models"][0]["cache"] == 4 * base["cache"]


def test_a_gpu_that_is_not_there_can_be_planned_for(eft: Eft, planned: Callable[..., dict[str, Any]]) -> None:
    figures = planned("demo", "--memory", "toy=4")
    assert [model["on_gpus"] for model in figures["models"]] == [
        {"toy": model["layers"] + 1} for model in figures["models"]
    ]
    assert figures["speed"]["tokens_per_second"] is None
    assert planned("demo", "--memory", "toy=4", "--bandwidth", "toy=1000")["speed"]["tokens_per_second"] > 0
    _, out, _ = eft("demo", "--memory", "toy=4", "--bandwidth", "1")
    assert "toy, whole" in out
    assert "speed: not known without --bandwidth of every GPU" in out


def test_what_does_not_fit_ends_with_1_and_one_line(eft: Eft, planned: Callable[..., dict[str, Any]]) -> None:
    code, out, err = eft("demo", "--memory", "0.05", "--bandwidth", "10")
    assert code == 1
    assert out.startswith("demo: ")
    assert "longest context: none fits" in out
    assert err.startswith("eft: not enough memory for base, antiexpert, assistant: ")
    assert err.count("\n") == 1
    assert planned("demo", "--memory", "50M")["problem"] in err


def test_a_model_alone_can_be_planned(planned: Callable[..., dict[str, Any]], ggufs: Path) -> None:
    figures = planned(str(ggufs / "base.gguf"))
    assert [model["roles"] for model in figures["models"]] == [["model"]]
    assert (figures["context"], figures["trained_context"], figures["longest_context"]) == (512, 512, 512)
    assert planned("demo:base", "--context", "100")["context"] == 100


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing.toml",), 2, "no such recipe"),
        (("demo", "--memory", "much"), 2, "--memory much: needs [DEVICE=]GB"),
        (("demo", "--memory", "gpu=nan"), 2, "needs [DEVICE=]GB"),
        (("demo", "--bandwidth", "-1"), 2, "--bandwidth -1: needs [DEVICE=]GB"),
        (("demo", "--context", "0"), 2, "--context"),
    ],
)
def test_what_cannot_be_planned_is_one_line(eft: Eft, arguments: tuple[str, ...], code: int, words: str) -> None:
    got, out, err = eft(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("eft: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("cores", "reported"),
    [
        (None, "(RAM at 9 GB/s, measured)"),
        (CoreUse(0.3, 2), "(RAM at 9 GB/s, measured)"),
        (CoreUse(1.44, 2), "(RAM at 9 GB/s, measured while other programs used 1.4 of 2 cores)"),
    ],
)
def test_a_bandwidth_that_was_measured_beside_others_is_reported_so(
    eft: Eft, monkeypatch: pytest.MonkeyPatch, cores: CoreUse | None, reported: str
) -> None:
    monkeypatch.setattr(speed, "measured_bandwidth", lambda threads: (9e9, cores))
    assert reported in eft("demo", "--memory", "8")[1]
    found = json.loads(eft("demo", "--memory", "8", "--json")[1])["speed"]
    assert found["bandwidths"] == {"CPU": 9e9}
    assert found["cores"] == (cores and cores.as_dict())


def test_a_bandwidth_is_measured_with_what_others_use() -> None:
    bandwidth, cores = speed.measured_bandwidth(1)
    assert bandwidth > 1e8
    assert cores is not None
