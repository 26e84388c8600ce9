"""lm-eval over HTTP: what its clients score and write is what it scores and writes in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from eft_local.emulator import Emulator
from eft_local.evals.answering import LocalTarget
from eft_local.evals.benchmarks import quiet
from eft_local.evals.harness import EftLM
from eft_local.evals.run import Target
from tests.server.conftest import KEY, Served

CHOICES = [
    {"question": "The capital of Peru is", "choices": ["Lima", "Cusco", "Oslo"], "gold": 0},
    {"question": "The capital of Kenya is", "choices": ["Paris", "Nairobi", "Lima"], "gold": 1},
    {"question": "Question: What is the capital of France?\nAnswer:", "choices": ["Rome", "Paris"], "gold": 1},
    {"question": "The capital of Norway is ", "choices": ["Oslo", "Bergen"], "gold": 0},
]
MULTIPLE_CHOICE = """\
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITING = """\
task: toy_writing
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match, ignore_case: true}]
"""
PERPLEXITY = """\
task: toy_perplexity
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices[gold]}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    for name, text in (("choice", MULTIPLE_CHOICE), ("writing", WRITING), ("perplexity", PERPLEXITY)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(data))))
    return folder


def evaluated(model: Any, folder: Path, *names: str, chat: bool = False) -> Any:
    quiet()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, apply_chat_template=chat
    )


def over_http(
    served: Served, model: str, kind: type = LocalCompletionsAPI, path: str = "completions", **more: Any
) -> Any:
    options = {"tokenizer_backend": "remote", "tokenized_requests": False, "auth_token": KEY, "max_length": 512}
    header = {"Authorization": f"Bearer {KEY}"}
    return kind(**(options | {"base_url": f"{served.url}/v1/{path}", "model": model, "header": header} | more))


def answers(results: Any, task: str) -> list[Any]:
    """What the model gave for each item."""
    return [row["resps"] for row in sorted(results["samples"][task], key=lambda row: row["doc_id"])]


def metrics(results: Any, task: str) -> dict[str, float]:
    return {name: value for name, value in results["results"][task].items() if isinstance(value, float)}


@pytest.mark.parametrize("target", ["eft", "base", "expert"])
@pytest.mark.parametrize("batch", [1, 4])
def test_scores_over_http_are_those_in_process(
    served: Served, alone: Emulator, tasks: Path, target: str, batch: int
) -> None:
    name = "demo" if target == "eft" else f"demo:{target}"
    there = evaluated(over_http(served, name, batch_size=batch), tasks, "toy_choice")
    here = evaluated(EftLM(LocalTarget(alone, Target(target, target))), tasks, "toy_choice")
    for item, expected in zip(answers(there, "toy_choice"), answers(here, "toy_choice"), strict=True):
        for [(logprob, greedy)], [(value, best)] in zip(item, expected, strict=True):
            assert float(logprob) == pytest.approx(float(value), abs=1e-5)
            assert greedy == best
    assert metrics(there, "toy_choice") == metrics(here, "toy_choice")


def test_answers_over_http_are_those_in_process(served: Served, alone: Emulator, tasks: Path) -> None:
    there = evaluated(over_http(served, "demo"), tasks, "toy_writing")
    here = evaluated(EftLM(LocalTarget(alone, Target("eft", "eft"))), tasks, "toy_writing")
    assert answers(there, "toy_writing") == answers(here, "toy_writing")
    assert metrics(there, "toy_writing") == metrics(here, "toy_writing")


def test_chats_over_http_are_those_in_process(served: Served, alone: Emulator, tasks: Path) -> None:
    model = over_http(served, "demo", LocalChatCompletion, "chat/completions", tokenizer_backend=None)
    there = evaluated(model, tasks, "toy_writing", chat=True)
    here = evaluated(EftLM(LocalTarget(alone, Target("eft", "eft"))), tasks, "toy_writing", chat=True)
    assert answers(there, "toy_writing") == answers(here, "toy_writing")


def test_token_ids_score_as_they_are(served: Served, alone: Emulator, tasks: Path) -> None:
    """Without a BOS, which lm-eval does not send: not what the model was trained on, but what was asked for."""
    results = evaluated(over_http(served, "demo:base", tokenized_requests=True), tasks, "toy_choice")
    vocabulary = alone.models.target("base").vocabulary
    row = CHOICES[0]
    [[(logprob, _)], *_] = answers(results, "toy_choice")[0]
    ids = vocabulary.tokenize(row["question"], add_special=False, parse_special=False)
    given = vocabulary.tokenize(f" {row['choices'][0]}", add_special=False, parse_special=False)
    request = alone.models.request(ids, {"target": "base", "seed": 0}, raw=True, given=given)
    [task] = alone.run([request])
    assert float(logprob) == pytest.approx(float(task.score.logprobs.sum(dtype="float64")), abs=1e-5)


def test_whole_texts_score_alike(served: Served, alone: Emulator, tasks: Path) -> None:
    # The token before a text: lm-eval takes the end token where BOS is the token 0.
    bos = alone.models.target("base").vocabulary.bos
    model = over_http(served, "demo:base", tokenized_requests=True, custom_prefix_token_id=bos)
    there = evaluated(model, tasks, "toy_perplexity")
    here = evaluated(EftLM(LocalTarget(alone, Target("base", "base"))), tasks, "toy_perplexity")
    assert answers(there, "toy_perplexity")[0][0] == pytest.approx(answers(here, "toy_perplexity")[0][0], abs=1e-4)
