"""`eft inspect`: on the demo models, on answers that are saved, and on fakes whose tokens are odd."""

# ruff: noqa: F811 (fixtures of test_cli come as arguments)

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest

import eft_local.emulator
from eft_local.analysis import CANDIDATES, Inspection, chosen
from eft_local.bench.lockstep import lockstep
from eft_local.chats import History
from eft_local.cli.inspect import JSON_KEYS
from eft_local.cli.inspected import _row
from eft_local.cli.positions import Curve, _as_text
from eft_local.emulator import Emulator
from eft_local.engine.step import Candidate, RoleStatistics, Step
from eft_local.hub.references import find_recipe
from eft_local.recipe import Recipe
from tests.cli.test_commands import Ran, Run, home, run  # noqa: F401
from tests.helpers import fake

PERU = "What is the capital of Peru?"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RECIPE = """
name = "odd"
context = 200
base = { model = "base", prompt = "plain" }
antiexpert = { model = "small", prompt = "plain" }
experts.helpful = { model = "tuned", prompt = "plain" }
[sampling]
temperature = 0
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as small as the demo's gain nothing from threads that wait for each other."""
    load = Emulator.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Emulator, "load", classmethod(lambda cls, recipe, **options: load(cls, recipe.replace(threads=1), **options))
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it to let stdout be a terminal, with these environment variables besides."""

    def become(**variables: str) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", **variables}.items():
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Call it with what the models say to get the name of a recipe made of them."""

    def recipe_of(**tables: fake.Table) -> str:
        def load(_: type[Emulator], recipe: Recipe, **options: Any) -> Emulator:
            return fake.emulator(fake.trio(**tables), recipe.replace(draft="off"))

        monkeypatch.setattr(Emulator, "load", classmethod(load))
        file = tmp_path / "odd.toml"
        file.write_text(RECIPE)
        return str(file)

    return recipe_of


def tables(text: str) -> list[str]:
    """The titles of the tables."""
    return re.findall(r"^token \d+, .*$", text, re.MULTILINE)


# On paper and on terminals


def test_an_answer_in_a_pipe_is_marked_and_explained(run: Run) -> None:
    ran = run("inspect", PERU)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "[The] capital of Peru is Lima.[‹end›]"
    assert lines[1] == "█▁▁▁▁▁▁▁▁█"
    assert lines[2] == "2 of 10 first choices changed (20 %), mean change 0.20"
    assert lines[3] == "in brackets: the experts changed the first choice"
    assert [title.partition(":")[0] for title in tables(ran.out)] == ["token 1, The", "token 6, ␣L", "token 10, ‹end›"]
    assert "\x1b" not in ran.out
    assert max(map(len, lines)) <= 80
    heads = next(line for line in lines if line.startswith("candidate"))
    assert "behaviour" in heads
    assert any(re.match(r"The +100\.0 +1 +<0\.01 +\d+ .* \+\d+\.\d\d +\+\d+\.\d\d$", line) for line in lines)


def test_a_terminal_gets_tints_and_underlines(run: Run, terminal: Callable[..., None]) -> None:
    terminal()
    out = run("inspect", PERU, "--most", "0").out
    first = out.splitlines()[0]
    assert ANSI.sub("", first) == "The capital of Peru is Lima.‹end›"
    assert first.startswith("\x1b[4;")
    assert "48;2;255;171;46m" in first
    assert "38;2;27;27;31" in first, "ink on that paper, whatever the terminal's colours"
    assert "\x1b" not in ANSI.sub("", out)
    assert "change from  0.1  0.25  0.5  0.75 ; underlined: the experts changed" in ANSI.sub("", out)


def test_no_color_leaves_underlines(run: Run, terminal: Callable[..., None]) -> None:
    terminal(NO_COLOR="1")
    out = run("inspect", PERU, "--most", "0").out
    assert set(ANSI.findall(out)) == {"\x1b[4m", "\x1b[0m"}
    assert out.startswith("\x1b[4mThe\x1b[0m capital of Peru is Lima.\x1b[4m‹end›\x1b[0m\n")
    assert "change from" not in ANSI.sub("", out), "there are no tints to explain"


def test_a_dumb_terminal_gets_brackets(run: Run, terminal: Callable[..., None]) -> None:
    terminal(TERM="dumb")
    assert run("inspect", PERU, "--most", "0").out.startswith("[The] capital of Peru is Lima.[‹end›]\n")


def test_tokens_that_are_requested(run: Run) -> None:
    assert [title[:7] for title in tables(run("inspect", PERU, "--token", "3", "--token", "2").out)] == [
        "token 3",
        "token 2",
    ]
    assert [title[:7] for title in tables(run("inspect", PERU, "--token", "3", "--most", "1").out)] == [
        "token 3",
        "token 1",
    ]
    ran = run("inspect", PERU, "--token", "11")
    assert ran.code == 2
    assert ran.err == "eft: --token 11: the answer has 10 tokens, an end token among them\n"


def test_one_role_alone_has_candidates_and_no_changes(run: Run) -> None:
    out = run("inspect", "--only", "expert", PERU, "--token", "1").out
    assert "[" not in out
    assert "changed" not in out
    assert re.search(r"^ +assistant *\ncandidate +% +#", out, re.MULTILINE)
    assert len(out.splitlines()) == 1 + 4 + CANDIDATES


def test_control_characters_never_reach_a_terminal(
    run: Run, terminal: Callable[..., None], odd: Callable[..., str]
) -> None:
    terminal()
    say = fake.says("a\x1b[2Jb\x07")
    out = run("inspect", "-r", odd(base=say, small=say, tuned=say), "hello", "--token", "2").out
    assert "a\\x1b[2Jb\\x07" in out
    assert "token 2, \\x1b" in out
    assert not {"\x1b[2J", "\x07"} & {out[at : at + length] for at in range(len(out)) for length in (1, 4)}


def test_rows_of_a_table() -> None:
    roles = {"eft": RoleStatistics(0, -0.1), "base": RoleStatistics(4, float("-inf"))}
    candidate = Candidate(7, b" x", False, roles, 1.5, float("-inf"))
    other = Candidate(8, b"y", False, {"eft": RoleStatistics(122, -9.0), "base": RoleStatistics(0, 0.0)}, 0.0, 0.0)
    cells = _row(candidate, ("eft", "base"), [candidate, other], mixed=True)
    assert [cell.plain for cell in cells] == ["␣x", " 90.5   1", " 0.00 5", "+1.50", "−∞"]


def test_a_narrow_terminal_loses_no_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = run("inspect", PERU, "--token", "1").out
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run("inspect", PERU, "--token", "1").out
    assert "…" not in narrow
    figures = re.compile(r"[−+]?\d[\d.]*")
    assert figures.findall(narrow) == figures.findall(wide)


# JSON and HTML


def test_json_holds_everything_and_only_what_the_help_names(run: Run) -> None:
    found = run("inspect", PERU, "--json", "--seed", "4").json
    documented = set(re.findall(r"\w+", JSON_KEYS))
    assert {*found, *found["summary"], *found["steps"][0], *found["steps"][0]["candidates"][0]} <= documented
    assert set(found) == {
        *(
            "question",
            "text",
            "tokens",
            "finish_reason",
            "seed",
            "recipe",
            "alpha",
            "beta",
            "target",
            "summary",
            "steps",
        )
    }
    assert (found["question"], found["text"], found["seed"]) == (PERU, "The capital of Peru is Lima.", 4)
    assert (found["recipe"], found["alpha"], found["beta"], found["target"]) == ("demo", {"assistant": 1.0}, 1.0, "eft")
    assert found["summary"] == {
        "tokens": 10,
        "changed": 2,
        "share": 0.2,
        "mean_change": pytest.approx(sum(step["change"] for step in found["steps"]) / 10),
        "changed_at": [0, 9],
    }
    assert "".join(step["text"] for step in found["steps"]).strip() == found["text"]
    for step in found["steps"]:
        assert list(step["roles"]) == ["base", "antiexpert", "assistant", "eft"]
        own = next(each for each in step["candidates"] if each["token"] == step["token"])
        assert own["roles"] == step["roles"]
        assert sum(exp(each["roles"]["eft"]["logprob"]) for each in step["candidates"]) <= 1 + 1e-5
        assert any(each["roles"]["base"]["rank"] == 0 for each in step["candidates"])
    assert found["steps"][-1]["finish_reason"] == found["finish_reason"] == "stop"


def test_strengths_change_what_is_inspected(run: Run) -> None:
    found = run("inspect", PERU, "--json", "--alpha", "0", "--max-tokens", "5", "--beta", "1").json
    assert found["summary"]["changed"] == 0
    assert found["summary"]["mean_change"] < 1e-5
    assert found["finish_reason"] == "length"
    assert all(each["behaviour"] == 0 for step in found["steps"] for each in step["candidates"])


def test_a_page_is_written_whole_beside_the_answer(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "peru.html"
    ran = run("inspect", PERU, "--html", str(file), "--most", "0", "--draft", "3")
    assert ran.out.startswith("[The] capital")
    html = file.read_text()
    assert html.startswith("<!doctype html>")
    assert html.endswith("</html>\n")
    assert html.count('class="detail') == 10
    assert html.count('class="detail printed"') == 3
    assert "<dt>alpha</dt><dd>assistant 1</dd>" in html
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["peru.html"]
    out = run("inspect", PERU, "--html", "-", "--draft", "3").out
    assert re.sub(r"<dd>\d+</dd>", "", out) == re.sub(r"<dd>\d+</dd>", "", html), "but for the seed"
    assert run("inspect", PERU, "--html", str(file), "--json").json["tokens"]


def test_a_page_that_cannot_be_written_is_reported_before_the_work(run: Run, tmp_path: Path) -> None:
    ran = run("inspect", PERU, "--html", str(tmp_path / "no" / "peru.html"))
    assert (ran.code, ran.out) == (1, "")
    assert "folder" in ran.err


# Saved chats


def saved(home: Path, *, statistics: bool = True) -> tuple[str, list[int], list[Inspection]]:
    """Save a chat of two answers; return its id, the answers' ids and their statistics."""
    recipe = find_recipe("demo").replace(alpha=0.9, seed=3)
    ids, inspections = [], []
    with History(home / "chats" / "chats.db") as history, Emulator.load(recipe) as emulator:
        chat = history.create(recipe).id
        for question in (PERU, "What is the currency of Japan?"):
            requested = history.ask(chat, question)
            inspection = Inspection(tuple(emulator.stream_chat(question, top=CANDIDATES)))
            with history.answer(requested.id, recipe, seed=3) as writer:
                for step in inspection.steps:
                    end = chosen(step)
                    writer.add(step.text, None if end and end.ends else step.token)
                writer.finish("stop", statistics=inspection.dumps() if statistics else None)
            ids.append(writer.id)
            inspections.append(inspection)
    return chat, ids, inspections


def test_a_saved_answer_is_inspected_without_models(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, (first, last), inspections = saved(home)
    monkeypatch.setattr(eft_local.emulator, "Emulator", None)
    ran = run("inspect", "--chat", chat, "--json")
    found = ran.json
    assert (found["question"], found["text"]) == ("What is the currency of Japan?", inspections[1].text.strip())
    assert (found["chat"], found["message"], found["seed"], found["target"]) == (chat, last, 3, "eft")
    assert (found["recipe"], found["alpha"]) == ("demo", {"assistant": 0.9})
    assert found["tokens"] == list(inspections[1].tokens)
    assert found["steps"][0]["change"] == pytest.approx(inspections[1].steps[0].change, abs=1e-3)
    documented = set(re.findall(r"\w+", JSON_KEYS))
    assert set(found) <= documented
    assert run("inspect", "--chat", chat[:4], "--message", str(first)).out.startswith("[The] capital of Peru is Lima.")
    assert "<h1>" in run("inspect", "--chat", chat, "--html", "-").out


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--message", "1"], "message 1 is a question"),
        (["--message", "99"], "99"),
        ([], "message 4 of chat .* was written without statistics"),
    ],
)
def test_what_is_saved_and_cannot_be_inspected(run: Run, home: Path, arguments: list[str], reported: str) -> None:
    chat, _, _ = saved(home, statistics=False)
    ran = run("inspect", "--chat", chat, *arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert re.search(reported, ran.err)


def test_a_chat_without_an_answer_and_an_answer_of_another_chat(run: Run, home: Path) -> None:
    _, (first, _), _ = saved(home, statistics=False)
    with History(home / "chats" / "chats.db") as history:
        empty = history.create(find_recipe("demo")).id
    assert "has no answer yet" in run("inspect", "--chat", empty).err
    assert f"message {first} is not in chat {empty}" in run("inspect", "--chat", empty, "--message", str(first)).err
    assert run("inspect", "--chat", "zzzzzz").code == 2


# Many answers


def test_questions_are_counted_by_position(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "changed.png"
    ran = run("inspect", "--questions", "demo", "--limit", "6", "--json", "--plot", str(picture), "--kind", "short")
    found = ran.json
    assert set(found) <= set(re.findall(r"\w+", JSON_KEYS))
    assert (found["answers"], found["decoding"], found["split"], found["kind"]) == (6, "greedy", "held-out", "short")
    assert found["positions"][0] == {
        "position": 1,
        "answers": 6,
        "changed": 6,
        "share": 1.0,
        "interval95": [pytest.approx(0.61, abs=0.01), 1.0],
        "mean_change": pytest.approx(1.0, abs=0.01),
    }
    assert found["end_tokens"]["tokens"] == 6
    assert sum(place["answers"] for place in found["positions"]) == found["tokens"]
    assert sum(place["changed"] for place in found["positions"]) == found["changed"]
    assert found["share"] == found["changed"] / found["tokens"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_counts_on_paper(run: Run) -> None:
    out = run("inspect", "--questions", "demo", "--limit", "2", "--kind", "long", "-n", "25").out
    assert "\n2 answers: first choices changed at 2 of 50 tokens, 4.0 % [" in out
    assert "\n  end tokens: 0 of 0; all others: 2 of 50 (4.0 %)\n" in out
    rows = re.findall(r"^(\d+(?:-\d+)?) +(\d+) +([\d.]+) %", out, re.MULTILINE)
    assert [row[0] for row in rows] == [*map(str, range(1, 11)), "11-20", "21-25"]
    assert rows[0] == ("1", "2", "100.0")
    assert rows[-1] == ("21-25", "10", "0.0")
    assert out.count("█" * 40) == 1


def test_a_curve_from_steps() -> None:
    def step(*, changed: bool, ends: bool = False) -> Step:
        candidate = Candidate(1, b"x", ends, {})
        return Step(1, "x", candidates=(candidate,), change=0.5, top_changed=changed)

    answers = [
        Inspection((step(changed=True), step(changed=True, ends=True))),
        Inspection((step(changed=False), step(changed=False), step(changed=False, ends=True))),
    ]
    curve = Curve.of(answers)
    assert (curve.answers, curve.tokens, curve.changed, curve.ends, curve.ends_changed) == (2, 5, 2, 2, 1)
    reported = _as_text(curve, {"alpha": {"helpful": 1.0}, "kind": "all"})
    assert reported.startswith(
        "alpha: helpful 1\nkind: all\n\n2 answers: first choices changed at 2 of 5 tokens, 40.0 %"
    )
    assert "end tokens: 1 of 2 (50.0 %); all others: 1 of 3 (33.3 %)" in reported
    assert re.findall(r"^\d  .*$", reported, re.MULTILINE) == [
        "1               2   50.0 %  " + "█" * 20,
        "2               2   50.0 %  " + "█" * 20,
        "3               1    0.0 %",
    ]


# Usage


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["x", "--questions", "demo"], "a QUESTION does not go with --questions"),
        (["--questions", "demo", "--html", "x.html"], "--html does not go with --questions"),
        (["--questions", "demo", "--token", "1"], "--token does not go with --questions"),
        (["--questions", "demo", "--only", "base"], "--only does not go with --questions"),
        (["--questions", "no.jsonl"], "no.jsonl"),
        (["--questions", "demo", "--kind", "middling"], "middling"),
        (["--questions", "demo", "--plot", "x.gif"], "must end in .png"),
        (["x", "--limit", "3"], "--limit goes with --questions"),
        (["x", "--plot", "x.png"], "--plot goes with --questions"),
        (["x", "--message", "3"], "--message goes with --chat"),
        (["--chat", "abc", "x"], "a QUESTION does not go with --chat"),
        (["--chat", "abc", "--alpha", "2"], "--alpha does not go with --chat"),
        (["--chat", "abc", "--recipe", "demo"], "--recipe does not go with --chat"),
        (["x", "--html", "-", "--json"], "both go to stdout"),
        (["x", "--token", "0"], "--token"),
        (["x", "--only", "bass"], "no target 'bass'"),
        ([""], "empty prompt"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], reported: str) -> None:
    ran = run("inspect", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("eft: ")
    assert ran.err.count("\n") == 1
    assert reported in ran.err


def test_ctrl_c_keeps_what_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Emulator, *arguments: Any, **options: Any) -> Any:
        made = lockstep(self, *arguments, **options)
        for number, step in enumerate(made):
            yield step
            if number == 2:
                self.engine.abort(self.engine.running)

    monkeypatch.setattr(Emulator, "stream_chat", interrupted)
    ran = run("inspect", PERU, "--draft", "off")
    assert ran.code == 130
    assert ran.out.startswith("[The] capital of\n")
    assert "1 of 3 first choices changed" in ran.out
    found = json.loads(run("inspect", PERU, "--draft", "off", "--json").out)
    assert (found["text"], found["finish_reason"]) == ("The capital of", "cancelled")


def test_questions_that_were_stopped_report_what_was_answered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from eft_local.cli.interrupt import Interrupt

    original = Emulator.stream_chat
    answered = []

    def counted(self: Emulator, *arguments: Any, **options: Any) -> Any:
        answered.append(1)
        if len(answered) == 3:
            Interrupt.requested = True
        return original(self, *arguments, **options)

    monkeypatch.setattr(Emulator, "stream_chat", counted)
    monkeypatch.setattr(Interrupt, "requested", False)
    ran = run("inspect", "--questions", "demo", "--limit", "5", "--kind", "short")
    assert ran.code == 130
    assert "2 answers: first choices changed" in ran.out
    assert ran.err == "eft: stopped: 2 of 5 questions are answered\n"
