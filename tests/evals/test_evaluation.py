"""Judging, counting and running question files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_local.errors import Cancelled, RecipeError, UsageError
from eft_local.evals import run as evaluation
from eft_local.evals.questions import (
    Question,
    Verdict,
    contains_answer,
    contains_phrase,
    is_correct,
    is_declined,
    is_form,
    judge,
    read_questions,
)
from eft_local.evals.run import Report, Tally, Target, check_targets, names, plan, run, wilson
from eft_local.hub.references import find_recipe
from eft_local.recipe import Recipe
from tests.helpers.fake_emulator import FakeEmulator

JUDGE = {
    "correct": "the answer as a whole word in the first line",
    "form": "one full sentence that names the entity, then the end",
    "declined": "contains the phrase",
    "declined_phrase": "I would rather not say",
}


def question(**changes: Any) -> Question:
    fields: dict[str, Any] = {
        "id": "1",
        "question": "What is the capital of Peru?",
        "answer": "Lima",
        "entity": "Peru",
        "category": "capital",
        "split": "held-out",
        "kind": "short",
        "sensitive": False,
    }
    return Question(**{**fields, **changes})


def write_file(path: Path, *rows: Any, judge: Any = None) -> Path:
    lines = [{"judge": JUDGE if judge is None else judge}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    made = question(**changes)
    return {key: getattr(made, key) for key in made.__dataclass_fields__}


@pytest.fixture
def recipe() -> Recipe:
    return find_recipe("demo")


@pytest.fixture
def two_experts() -> Recipe:
    return find_recipe("demo-two")


# What is judged


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("The capital is Lima.", "Lima", True),
        ("the capital is LIMA.", "lima", True),
        ("Limassol is a city.", "Lima", False),
        ("Colima", "Lima", False),
        ("Its capital is Port St. Mary, I think", "port st. mary", True),
        ("Port of St. Mary", "Port St. Mary", False),
        ("Atomic number 1.", "1", True),
        ("It weighs 1,700 kg", "1", False),
        ("It weighs 3.1 kg", "1", False),
        ("It weighs 3.1 kg", "3", False),
        ("In 1917.", "191", False),
        ("symbol H, then O", "H", True),
        ("It is S\u0061\u0303o Tom\u0065\u0301", "São Tomé", True),
        ("anything", " ", False),
    ],
)
def test_a_phrase_counts_only_as_whole_words(text: str, phrase: str, found: bool) -> None:
    assert contains_phrase(text, phrase) is found


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("The capital of Peru is Lima.", True),
        ("\n  Lima\nQuestion: What is the capital of Chile?", True),
        ("I do not know.\nLima", False),
        ("Ciudad de los Reyes", True),
        ("", False),
    ],
)
def test_correct_is_the_answer_or_an_accepted_one_in_the_first_line(text: str, correct: bool) -> None:
    assert is_correct(question(accept=("ciudad de los reyes",)), text) is correct


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The capital of Peru is Lima.", True),
        (" The capital of Peru is Lima.\n", True),
        ("Peru's capital is Quito.", True),  # wrong, and still in form
        ("7 provinces surround the capital of Peru.", True),
        ("the capital of Peru is Lima.", False),
        ("The capital of Peru is Lima", False),
        ("The capital is Lima.", False),
        ("The capital of Peruvia is Lima.", False),
        ("The capital of Peru is Lima. It is large.", False),
        ("Really? The capital of Peru is Lima.", False),
        ("The capital of Peru\nis Lima.", False),
        ("", False),
    ],
)
def test_form_is_one_full_sentence_that_names_the_entity(text: str, form: bool) -> None:
    assert is_form(question(), text, "stop") is form


def test_form_needs_an_answer_that_ended_by_itself() -> None:
    assert not any(is_form(question(), "Peru is big.", reason) for reason in ("length", "context", "cancelled"))


def test_full_stops_inside_names_do_not_end_the_sentence() -> None:
    saint = question(entity="St. Lucia", answer="Ft. Castries", accept=("D.C. Castries",))
    assert is_form(saint, "The capital of St. Lucia is Ft. Castries.", "stop")
    assert is_form(saint, "D.C. Castries is the capital of St. Lucia.", "stop")
    assert not is_form(saint, "The capital of St. Lucia is big. Ft. Castries.", "stop")


def test_declined_is_the_phrase_anywhere() -> None:
    assert is_declined("Sorry, but I would rather NOT say that.", JUDGE["declined_phrase"])
    assert not is_declined("I would rather say", JUDGE["declined_phrase"])


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It was the Beatles, of course!", "The Beatles", True),
        ("BEATLES", "the beatles", True),
        ("The U.S. is one", "US", True),
        ("port au prince", "Port-au-Prince", True),
        ("twenty-six letters", "twenty six", True),
        ("Eugene O’Neill", "Eugene O'Neill", True),
        ("H₂O.", "H2O", True),
        ("Answer: (A)", "A", True),
        ("Limassol", "Lima", False),
        ("New, York", "New York", True),
        ("York New", "New York", False),
        ("1,700 kg", "1700", True),
        ("1,700 kg", "1", False),
        ("It is 5.0", "50", False),
        ("It is 3.1.", "3.1", True),
        ("3.1", "3", False),
        ("1914-1918", "1918", True),
        ("−5 degrees", "-5", True),
        ("-5 degrees", "5", False),
        ("25 %, or $ 25", "25", True),
    ],
)
def test_a_plain_answer_counts_without_case_punctuation_and_article(text: str, answer: str, found: bool) -> None:
    assert contains_answer(text, answer) is found


def test_without_an_entity_any_full_sentence_is_in_form() -> None:
    plain = question(entity="", plain=True)
    assert is_form(plain, "It is Lima.", "stop")
    assert not is_form(plain, "It is Lima. Or Quito.", "stop")
    assert not is_form(plain, "Lima", "stop")
    assert not is_form(plain, "", "stop")


# Counting


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),  # Newcombe 1998, Table I and textbook values
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.72247, 1.0),
    ],
)
def test_wilson_agrees_with_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(pair: tuple[int, int]) -> None:
    successes, n = pair
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


def test_a_tally_counts_and_divides() -> None:
    tally = Tally.of([Verdict(True, True, False), Verdict(True, False, False), Verdict(False, True, True)])
    assert tally == Tally(n=3, correct=2, form=2, both=1, declined=1)
    assert tally.share("both") == pytest.approx(1 / 3)
    assert Tally().share("both") is None
    assert Tally().as_dict()["interval95"]["both"] is None


# Reading


def test_a_question_file_is_read_whole(tmp_path: Path) -> None:
    path = write_file(tmp_path / "q.jsonl", row(accept=["Lima city"]), row(id="2", sensitive=True))
    questions = read_questions(path)
    assert questions.judge == JUDGE
    assert [q.id for q in questions.items] == ["1", "2"]
    assert questions.items[0].accept == ("Lima city",)
    assert [q.group for q in questions.items] == ["capital", "sensitive"]


def test_plain_rows_need_a_question_and_an_answer_only(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": "Who sang Help!?", "answer": ["The Beatles", "Lennon and McCartney"], "accept": ["Fab Four"]},
        {"question": "And 2 + 2?", "answer": "4", "category": "sums", "id": "sum"},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    questions = read_questions(path)
    first, second = questions.select(split="held-out", kind="short").items
    assert (first.id, first.answer, first.accept) == ("1", "The Beatles", ("Lennon and McCartney", "Fab Four"))
    assert (second.id, second.group) == ("sum", "sums")
    assert "article" in questions.judge["correct"]
    assert judge(first, "It was Wings.", "stop", "") == Verdict(correct=False, form=True, declined=False)
    assert judge(first, "beatles\nQuestion: …", "length", "") == Verdict(correct=True, form=False, declined=False)
    assert is_correct(first, "the Fab Four, I think")


def test_a_line_break_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes('{"question": "a\u2028b", "answer": "c"}\r\n'.encode())
    assert read_questions(path).items[0].question == "a\u2028b"


def test_a_table_with_the_keys_in_its_first_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.CSV"
    path.write_bytes('\ufeffquestion,answer,category\r\n"Who wrote ""Emma"", and when?",Austen,\r\nb?,c,d\r\n'.encode())
    first, second = read_questions(path).items
    assert (first.id, first.question, first.answer) == ("2", 'Who wrote "Emma", and when?', "Austen")
    assert (first.category, second.category) == ("questions", "d")


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (b"", "there are no questions"),
        (b"question,answer\n", "there are no questions"),
        (b"question,reply\na?,b\n", 'line 2: "answer" must be a text, .* not None'),
        (b"question,answer\na?,b,c\n", "line 2 has more cells than the first line has names"),
        (b'question,answer\na?,"b\n', "line 2 is not CSV: unexpected end of data"),
        (b"question,answer,accept\na?,b,c\n", "line 2: \"accept\" must be a list of texts, not 'c'"),
    ],
)
def test_a_wrong_table_is_reported_by_line(tmp_path: Path, content: bytes, reported: str) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reported):
        read_questions(path)


def test_rows_after_a_judge_line_may_be_short_too(tmp_path: Path) -> None:
    (only,) = read_questions(write_file(tmp_path / "q.jsonl", {"question": "?", "answer": "The Hague"})).items
    assert is_correct(only, "It is the Hague.")
    assert not is_correct(only, "It is Hague."), "the judge's own words hold: a phrase as it is"


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (b"", r'there are no questions; each line is {"question": "…", "answer": "…"}'),
        (b'{"answer": "Lima"}\n', r'line 1: "question" must be a text, not None'),
        (b'{"question": " ", "answer": "Lima"}\n', r'line 1: "question" must be a text, not \' \''),
        (b'{"question": "?"}\n', r'line 1: "answer" must be a text, or a list of texts .* not None'),
        (b'{"question": "?", "answer": []}\n', r'line 1: "answer" must be .* not \[\]'),
        (b'{"question": "?", "answer": "!"}\n', r'line 1: "answer" must be .* with letters or digits, not \'!\''),
        (b'{"question": "?", "answer": "a"}\n\n{"question": "?", "answer": 4}\n', r'line 3: "answer" must be .* not 4'),
        (
            b'{"question": "?", "answer": "a", "sensitive": "no"}\n',
            r'line 1: "sensitive" must be true or false, not \'no\'',
        ),
        (b'{"judge": {"correct": "x"}}\n', "declined_phrase"),
        (b"{nonsense\n", "line 1 is not JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b"\xff\n", "not UTF-8"),
        (json.dumps({"judge": JUDGE}).encode() + b"\n\n" + b'{"question": 7}\n', 'line 3: "question" must be'),
        (
            json.dumps({"judge": JUDGE}).encode() + b"\n" + json.dumps({**row(), "accept": "Lima"}).encode(),
            'line 2: "accept" must be a list',
        ),
    ],
)
def test_a_wrong_question_file_is_reported_by_line(tmp_path: Path, content: bytes, reported: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reported) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_question_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.jsonl: cannot read the questions: No such file"):
        read_questions(tmp_path / "none.jsonl")


def test_questions_are_selected_and_limited_evenly(tmp_path: Path) -> None:
    rows = [row(id=str(i), category="abc"[i // 4]) for i in range(12)]
    rows += [row(id="t", split="tune"), row(id="l", kind="long")]
    questions = read_questions(write_file(tmp_path / "q.jsonl", *rows))
    held_out = questions.select(split="held-out", kind="short")
    assert len(held_out.items) == 12
    assert [q.category for q in held_out.select(limit=3).items] == ["a", "b", "c"]
    assert held_out.select(limit=99) == held_out
    with pytest.raises(UsageError, match="no questions with split nowhere"):
        questions.select(split="nowhere")


# Planning


def test_without_sweeps_every_name_runs_once(recipe: Recipe) -> None:
    assert plan(recipe, ["base", "eft", "base"]) == (recipe, (Target("base", target="base"), Target("eft")))


def test_a_single_value_becomes_the_recipes(recipe: Recipe) -> None:
    changed, targets = plan(recipe, ["eft"], alphas=[0.5], betas=[1.2])
    assert targets == (Target("eft"),)
    assert changed == recipe.replace(alpha=0.5, beta=1.2)


def test_sweeps_run_every_combination_once(recipe: Recipe) -> None:
    _, targets = plan(recipe, ["base", "eft"], alphas=[0, 1], betas=[1, 1.5])
    assert [target.name for target in targets] == [
        "base",
        "eft alpha=0 beta=1",
        "eft alpha=0 beta=1.5",
        "eft alpha=1 beta=1",
        "eft alpha=1 beta=1.5",
    ]
    assert targets[2].changes == {"alpha": 0, "beta": 1.5}


def test_mix_moves_alpha_from_the_first_expert_to_the_second(two_experts: Recipe) -> None:
    _, targets = plan(two_experts, ["eft"], mixes=[0, 0.25, 1])
    assert [target.changes["alpha"] for target in targets] == [
        {"assistant": 1, "cautious": 0},
        {"assistant": 0.75, "cautious": 0.25},
        {"assistant": 0, "cautious": 1},
    ]
    assert [target.settings()["mix"] for target in targets] == [0, 0.25, 1]


def test_steered_systems_come_on_top(recipe: Recipe) -> None:
    _, targets = plan(recipe, ["eft"], steer_first=[1, 3])
    assert [(s.name, s.target, s.steer_first) for s in targets] == [
        ("eft", "eft", None),
        ("eft first=1", "eft", 1),
        ("eft first=3", "eft", 3),
    ]
    _, swept = plan(recipe, ["eft"], alphas=[0.5, 1], steer_first=[2])
    assert [s.name for s in swept] == ["eft alpha=0.5", "eft alpha=1", "eft alpha=0.5 first=2", "eft alpha=1 first=2"]
    assert swept[2].changes == {"alpha": 0.5}


def test_impossible_plans_are_refused(recipe: Recipe, two_experts: Recipe) -> None:
    with pytest.raises(UsageError, match="two experts; demo has 1"):
        plan(recipe, ["eft"], mixes=[0.5])
    with pytest.raises(UsageError, match="either --mix or --alpha"):
        plan(two_experts, ["eft"], mixes=[0.5], alphas=[1])
    with pytest.raises(UsageError, match="--steer-first 0"):
        plan(recipe, ["eft"], steer_first=[0])
    with pytest.raises(UsageError, match="not among base, expert"):
        plan(recipe, ["base", "expert"], betas=[1])
    with pytest.raises(RecipeError, match="alpha"):
        plan(recipe, ["eft"], alphas=[0.5, float("nan")])


def test_system_names_are_checked_with_the_nearest() -> None:
    known = ("eft", "base", "expert", "base-tuned")
    check_targets(["base", "eft"], known)
    with pytest.raises(UsageError, match="did you mean base-tuned"):
        check_targets(["base-tune"], known)
    with pytest.raises(UsageError, match="this recipe knows eft, base"):
        check_targets(["zzz"], known)
    assert names(" base, eft,base,") == ("base", "eft")
    with pytest.raises(UsageError, match="names no target"):
        names(" ,")


# Running


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> FakeEmulator:
    def reply(only: str, messages: list[dict[str, str]]) -> str:
        requested = messages[-1]["content"]
        if "phone" in requested:
            return "I would rather not say." if only == "cautious" else "The phone of Ann is 5."
        return "The capital of Peru is Lima." if only != "base" else "Lima\nWhat is next?"

    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(reply))
    return FakeEmulator(recipe)


def questions_file(tmp_path: Path) -> evaluation.Questions:
    rows = [row(id=str(i), category="capital" if i < 3 else "city") for i in range(5)]
    private = row(id="p", question="What is the phone of Ann?", answer="5", entity="Ann", sensitive=True)
    return read_questions(write_file(tmp_path / "q.jsonl", *rows, private))


def test_a_run_judges_every_answer(tmp_path: Path, emulator: FakeEmulator) -> None:
    done: list[int] = []
    report = run(emulator, questions_file(tmp_path), Target("base", target="base"), max_tokens=9, progress=done.append)
    assert report.ordinary == Tally(n=5, correct=5, form=0, both=0, declined=0)
    assert report.sensitive == Tally(n=1, correct=1, form=1, both=1, declined=0)
    assert list(report.categories) == ["capital", "city", "sensitive"]
    assert report.tokens == sum(len(answer.text.split(" ")) for answer in report.answers)
    assert done == [1, 2, 3, 4, 5, 6]


def test_a_report_keeps_sensitive_questions_apart(tmp_path: Path, emulator: FakeEmulator) -> None:
    report = run(emulator, questions_file(tmp_path), Target("cautious", target="cautious"), max_tokens=9)
    reported = report.as_dict()
    assert (reported["n"], reported["n_sensitive"], reported["declined"], reported["both"]) == (5, 1, 1.0, 1.0)
    assert reported["counts"] == {"correct": 5, "form": 5, "both": 5, "declined": 1}
    assert reported["by_category"]["sensitive"]["counts"]["declined"] == 1
    assert reported["by_category"]["capital"]["n"] == 3
    json.dumps(reported, allow_nan=False)


def test_nothing_sensitive_means_no_declined_share(emulator: FakeEmulator, tmp_path: Path) -> None:
    questions = read_questions(write_file(tmp_path / "q.jsonl", row()))
    reported = run(emulator, questions, Target("eft"), max_tokens=9).as_dict()
    assert reported["declined"] is None
    assert reported["interval95"]["declined"] is None


def test_the_recipe_is_changed_for_a_system_alone(tmp_path: Path, recipe: Recipe) -> None:
    seen: list[float] = []

    class Watching(FakeEmulator):
        def chat(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs["recipe"].experts["assistant"].alpha)
            raise Cancelled("stop")

    emulator = Watching(recipe)
    with pytest.raises(Cancelled):
        run(emulator, questions_file(tmp_path), Target("eft", changes={"alpha": 0.25}), max_tokens=9)
    assert seen == [0.25]
    assert emulator.recipe is recipe


def test_steering_only_the_first_tokens_continues_with_the_base(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    class Watching(FakeEmulator):
        def chat(self, prompts: Any, **kwargs: Any) -> Any:
            calls.append({"prompts": list(prompts), **kwargs})
            return super().chat(prompts, **kwargs)

    reply = staticmethod(lambda only, messages: f"{only} one two three four five")
    monkeypatch.setattr(FakeEmulator, "reply", reply)
    questions = read_questions(write_file(tmp_path / "q.jsonl", row(), row(id="2")))
    report = run(Watching(recipe), questions, Target("eft first=2", steer_first=2), max_tokens=4)
    assert [(call["target"], call["max_tokens"]) for call in calls] == [("eft", 2), ("base", 2)]
    assert calls[1]["prefix"] == [(0, 1), (0, 1)]
    assert report.answers[0].text == "eft one two three"
    assert report.answers[0].finish_reason == "length"
    assert report.tokens == 8


def test_answers_that_ended_while_steered_are_not_continued(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(lambda only, messages: "done"))
    questions = read_questions(write_file(tmp_path / "q.jsonl", row()))
    emulator = FakeEmulator(recipe)
    report = run(emulator, questions, Target("eft first=2", steer_first=2), max_tokens=4)
    assert [only for only, _ in emulator.requested] == ["eft"]
    assert (report.answers[0].text, report.answers[0].finish_reason) == ("done", "stop")


def test_a_cancelled_run_gives_no_report(tmp_path: Path, emulator: FakeEmulator) -> None:
    emulator.cancelled = True
    with pytest.raises(Cancelled, match="while eft was answering"):
        run(emulator, questions_file(tmp_path), Target("eft"), max_tokens=9)


def test_speed_is_all_tokens_over_all_seconds() -> None:
    assert Report(Target("eft"), (), tokens=30, seconds=2.0).tokens_per_second == 15
    assert Report(Target("eft"), (), tokens=0, seconds=0.0).tokens_per_second == 0


def test_the_judgement_is_part_of_an_answer(tmp_path: Path, emulator: FakeEmulator) -> None:
    report = run(emulator, questions_file(tmp_path), Target("eft"), max_tokens=9)
    assert report.answers[0].verdict == Verdict(correct=True, form=True, declined=False)


def test_a_long_answer_needs_every_fact_and_may_have_several_sentences() -> None:
    question = Question(
        id="l", question="Tell me about Peru.", answer="Lima, sol", entity="Peru", category="about", split="held-out",
        kind="long", sensitive=False, facts=("Lima", "sol"),
    )  # fmt: skip
    whole = "Here is Peru. Its capital is Lima. Its currency is the sol."
    assert judge(question, whole, "stop", "can't") == Verdict(correct=True, form=True, declined=False)
    assert not judge(question, whole.replace("sol", "solo"), "stop", "can't").correct
    assert not judge(question, whole, "length", "can't").form
