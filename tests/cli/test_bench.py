"""`eft bench` on the demo models as they are: what is printed where, and what is refused before any work."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eft_local.bench import machine, measure
from eft_local.bench.studies import noise
from eft_local.cli import bench as command
from eft_local.cli import main
from eft_local.errors import Cancelled

QUICK = ("bench", "--shape", "none", "--limit", "1", "--minutes", "0.001")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_json_and_a_picture(run: Any, tmp_path: Path) -> None:
    import json

    plot = tmp_path / "speed.png"
    code, out, err = run(*QUICK, "--kind", "short", "--draft-source", "ngram", "--json", "--plot", str(plot))
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["kind"] == "short"
    assert found["questions"] == 1
    assert found["short"] is None
    assert found["draft_source"] == "ngram"
    assert found["shape"] is None
    assert found["command"] == (
        f"eft bench --shape none --kind short --draft-source ngram --limit 1 --minutes 0.001 --plot {plot} --json"
    )
    assert set(found["contenders"]) == {"base", "plain", "k=1", "k=3", "k=7", "k=15", "auto"}
    assert found["contenders"]["k=3"]["same_as_plain"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_text(run: Any) -> None:
    code, out, err = run(*QUICK)
    assert (code, err) == (0, "")
    for heading in (
        "llama.cpp alone",
        "Long answers: 1 question,",
        "Short answers: 1 question,",
        "Answers side by side",
    ):
        assert f"\n{heading}" in out


@pytest.mark.parametrize("lengths", ["none", "7", "2,7"])
def test_the_command_that_is_reported_can_be_given_again(
    run: Any, monkeypatch: pytest.MonkeyPatch, lengths: str
) -> None:
    calls: list[tuple[measure.Plan, str]] = []

    def planned(recipe: Any, plan: measure.Plan, about: dict[str, Any], *_: object) -> None:
        calls.append((plan, about["command"]))
        raise Cancelled("enough")

    monkeypatch.setattr(command, "_measured", planned)
    run("bench", "--shape", "none", "--lengths", lengths, "--minutes", "2")
    run(*shlex.split(calls[0][1])[1:])
    (given, reported), (again, told_again) = calls
    assert reported == told_again
    assert list(given.lengths) == list(again.lengths)


def test_full_tries_every_length(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[measure.Plan] = []

    def planned(recipe: Any, plan: measure.Plan, *_: object) -> None:
        plans.append(plan)
        raise Cancelled("enough")

    monkeypatch.setattr(command, "_measured", planned)
    for options in ((), ("--full",), ("--kind", "long", "--limit", "3", "--minutes", "2", "--lengths", "7,2,7")):
        run("bench", "--shape", "none", *options)
    default, full, small = plans
    assert list(small.lengths) == [2, 7]
    assert list(default.lengths) == [1, 3, 7, 15]
    assert list(full.lengths) == list(range(1, 17))
    assert (default.kinds, default.limit) == (("long", "short"), None)
    assert (small.kinds, small.limit) == (("long",), 3)
    assert 100 < small.seconds < 120 < default.seconds < 600 < full.seconds


@pytest.mark.parametrize(
    ("options", "shape"),
    [((), "7b"), (("--recipe", "demo-two"), None), (("--recipe", "demo-two", "--shape", "1b"), "1b")],
)
def test_the_demo_alone_is_scaled_unless_requested(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], shape: str | None
) -> None:
    scaled: list[str] = []
    monkeypatch.setattr(machine, "check_memory", lambda *_: None)
    monkeypatch.setattr(command, "_scaled", lambda recipe, shape, *_: scaled.append(shape) or recipe)
    monkeypatch.setattr(command, "_measured", lambda *_: (_ for _ in ()).throw(Cancelled("enough")))
    assert run("bench", *options)[0] == 130
    assert scaled == ([shape] if shape else [])


def test_what_was_complete_before_an_interrupt_is_printed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interleave = measure.interleave

    def interrupted(*arguments: Any, **options: Any) -> None:
        interleave(*arguments, **options)
        raise Cancelled("the benchmark was stopped")

    monkeypatch.setattr(measure, "interleave", interrupted)
    code, out, err = run(*QUICK, "--kind", "short")
    assert code == 130
    assert "Short answers: 1 question," in out
    assert err == "eft: stopped: fewer questions than requested were measured\n"


def test_an_interrupt_before_there_is_a_result_prints_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise Cancelled("the benchmark was stopped")

    monkeypatch.setattr(measure.Measurement, "run", interrupted)
    assert run(*QUICK) == (130, "", "eft: stopped before there was a result\n")


@pytest.mark.parametrize(
    ("options", "code", "reported"),
    [
        (("--shape", "7c"), 2, "7b"),
        (("--shape", "7b", "--quantization", "Q4"), 2, "Q4_0"),
        (("--kind", "medium"), 2, "--kind"),
        (("--limit", "0"), 2, "--limit"),
        (("--minutes", "0"), 2, "--minutes"),
        (("--draft-source", "oracle"), 2, "oracle"),
        (("--lengths", "1,x"), 2, "1,3,7. See"),
        (("--lengths", "0,3"), 2, "can have. See"),
        (("--lengths", "3,17"), 2, "1 … 16"),
        (("--lengths", "3", "--full"), 2, "--full"),
        (("--plot", "speed.gif"), 2, ".png"),
        (("--plot", "nowhere/speed.png"), 1, "nowhere"),
        (("--recipe", "demu"), 2, "demo"),
    ],
)
def test_wrong_usage_is_reported_before_any_work(run: Any, options: tuple[str, ...], code: int, reported: str) -> None:
    ended, out, err = run("bench", *options)
    assert (ended, out) == (code, "")
    assert err.startswith("eft: ")
    assert err.count("\n") == 1
    assert reported in err


def test_an_expert_of_noise_slows_nothing_that_is_written(run: Any, tmp_path: Path, capsys: Any) -> None:
    """With α = 0 its drafts are refused, all but those that happen to be right, and answers are the base's."""
    import json

    noise.write(tmp_path)
    for kind in noise.GAINS:
        recipe = str(tmp_path / f"noise-{kind}.toml")
        code, out, _ = run("bench", "--recipe", recipe, *QUICK[1:], "--kind", "short", "--lengths", "3", "--json")
        found = json.loads(out)
        assert code == 0
        assert set(found["contenders"]) == {"base", "plain", "k=3", "auto"}
        assert found["contenders"]["k=3"]["drafted"] > 20
        assert found["contenders"]["k=3"]["acceptance"] < 0.1
        assert found["contenders"]["k=3"]["same_as_plain"] == 1


def test_help_loads_no_engine() -> None:
    program = (
        "import sys\nfrom eft_local.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'llama_cpp', 'textual', 'gguf', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
