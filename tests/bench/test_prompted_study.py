"""The study of prompted experts: its questions, its order, going on where it ended, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from eft_local.bench.studies import prompted
from eft_local.bench.studies.prompted import (
    EXAMPLES,
    QUESTIONS,
    SHOWN,
    contenders,
    missing,
    read_answers,
    sign_test,
    table,
)
from eft_local.evals.questions import contains_answer, is_form, read_questions
from tests.helpers.fake_emulator import FakeEmulator


def test_its_questions_are_two_hundred_and_can_be_answered_in_form() -> None:
    questions = read_questions(QUESTIONS)
    assert len(questions.items) == 200
    assert len({question.question for question in questions.items}) == 200
    for question in questions.items:
        assert contains_answer(question.question, question.entity)
        assert is_form(question, f"It is {question.answer}, and that is {question.entity}.", "stop")
        assert not contains_answer(question.question, question.answer), "no answer is given away"
    for requested, _ in EXAMPLES:
        assert all(requested != question.question for question in questions.items)


def test_what_the_study_is_about_comes_first_and_block_by_block() -> None:
    questions = read_questions(QUESTIONS)
    everything = missing(questions, contenders(), {})
    assert sum(len(block.items) for _, block in everything) == 200 * len(contenders())
    first = [each.first for each, _ in everything]
    assert first == sorted(first, reverse=True)
    blocks = [frozenset(question.id for question in block.items) for each, block in everything if each.first]
    assert [blocks.index(block) for block in blocks] == sorted(blocks.index(block) for block in blocks)
    answered = {(each.name, question.id): ("", "stop") for each, block in everything[:3] for question in block.items}
    assert missing(questions, contenders(), answered) == everything[3:]


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1), (3, 3, 1), (0, 5, 0.0625), (5, 0, 0.0625), (1, 8, 20 / 512), (2, 1, 1)]
)
def test_the_sign_test_is_the_binomials(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)


def test_the_table_counts_what_each_system_has_answered_and_compares_what_both_have() -> None:
    questions = read_questions(QUESTIONS).select(limit=4)
    studied = [each for each in contenders() if each.name in (SHOWN, "the base alone")]
    answers = {}
    for number, question in enumerate(questions.items):
        answers[SHOWN, question.id] = f"It is {question.answer} for {question.entity}.", "stop"
        if number < 2:
            answers["the base alone", question.id] = question.answer, "stop"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(questions, studied, answers).splitlines()
    ]
    assert rows[2] == [
        "the base alone",
        "2",
        "100.0 [34–100]",
        "0.0 [0–66]",
        "0.0 [0–66]",
        "+0 −0, p = 1",
        "+0 −2, p = 0.5",
    ]
    assert rows[3] == [SHOWN, "4", "100.0 [51–100]", "100.0 [51–100]", "100.0 [51–100]", "", ""]


def test_a_run_that_ended_early_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEmulator, "loaded", [], raising=False)
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(lambda only, messages: "It is so."))
    monkeypatch.setattr(prompted, "Emulator", FakeEmulator)
    path = tmp_path / "answers.jsonl"
    models = ["--base", "large.gguf", "--weak", "small.gguf"]
    command = [*models, "--questions", "3", "--answers", str(path)]
    stopped = CliRunner().invoke(prompted.main, [*command, "--seconds", "0"])
    assert stopped.exit_code == 1
    assert "are missing: run again to continue" in stopped.stderr
    path.write_text(json.dumps({"contender": SHOWN, "id": "1", "text": "x", "finish_reason": "stop"}) + '\n{"syst')
    ran = CliRunner().invoke(prompted.main, command)
    assert ran.exit_code == 0, ran.output
    found = read_answers(path)
    assert len(found) == 3 * len(contenders())
    assert found[SHOWN, "1"][0] == "x", "not asked again"
    assert [each.closed for each in FakeEmulator.loaded] == [True, True]
    weak, aware = (each.recipe for each in sorted(FakeEmulator.loaded, key=lambda each: each.recipe.name, reverse=True))
    assert (Path(weak.base.model).name, Path(weak.antiexpert.model).name) == ("large.gguf", "small.gguf")
    assert aware.is_base(aware.antiexpert)
    kept = path.read_text()
    assert CliRunner().invoke(prompted.main, command).exit_code == 0
    assert path.read_text() == kept, "a finished study only prints its table"


def test_unknown_models_are_reported(tmp_path: Path) -> None:
    ran = CliRunner().invoke(prompted.main, ["--base", "gemma:Q9", "--answers", str(tmp_path / "x")])
    assert ran.exit_code == 1
    assert ran.stderr.startswith("Error: quantisation 'Q9': there are F16")
