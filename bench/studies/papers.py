"""Are our prompts and scores the papers'? Compared with what proxy-tuning's repository publishes of its runs.

    .venv/bin/python -m eft_local.bench.studies.papers PROXY-TUNING-CHECKOUT

Reads `results/truthfulqa/*/mc_results.jsonl` and `results/gsm/*/predictions.jsonl`: the prompts that were put to base
and chat models, what was written, and the accuracies. Prompts must be equal in every character, and so must scores, but
for one run (llama2-70B), whose letters an earlier version of that code has read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from eft_local.evals import papers
from eft_local.evals.data import read_rows
from eft_local.prompts.task import TaskPrompt


def truthfulqa(folder: Path) -> tuple[int, int, float, float]:
    """Return how many prompts of a run are ours, of how many, our accuracy and the published one."""
    rows = read_rows(folder / "mc_results.jsonl")
    items = papers.draw_choices([
        {"question": row["Question"], "best": row["Best Answer"], "wrong": row["Incorrect Answers"].strip().split(";")}
        for row in rows
    ])  # fmt: skip
    equal = sum(_read(item, "-chat-" in folder.name) == row["mc_prompt"] for item, row in zip(items, rows, strict=True))
    scores = [papers.truthfulqa_mc_score(item, [row["mc_output"]]) for item, row in zip(items, rows, strict=True)]
    right = [score["acc"] for score in scores if "acc" in score]
    return equal, len(rows), sum(right) / len(right), _published(folder / "mc_metrics.json")["acc"]


def gsm8k(folder: Path) -> tuple[int, int, float, float]:
    """Return how many predictions of a run are ours, of how many, our exact match and the published one."""
    rows = read_rows(folder / "predictions.jsonl")
    equal = sum(papers.gsm8k_prediction(row["model_output"]) == row["prediction"] for row in rows)
    right = [papers.gsm8k_score({"answer": row["answer"]}, [row["model_output"]])["exact_match"] for row in rows]
    return equal, len(rows), sum(right) / len(rows), _published(folder / "metrics.json")["exact_match"]


def _read(item: dict[str, Any], chat: bool) -> str:
    """Return what a base reads, or a Llama 2 chat model alone."""
    text = papers.truthfulqa_mc_text(item)
    if not chat:
        return text
    prompt = papers.task_prompt("eft_truthfulqa_mc", text, alone=True)
    assert isinstance(prompt, TaskPrompt)
    system, user = prompt.messages
    framed = f"[INST] <<SYS>>\n{system['content']}\n<</SYS>>\n\n{user['content']} [/INST]"
    return framed + prompt.started(framed)


def _published(file: Path) -> dict[str, float]:
    made: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return made


@click.command()
@click.argument("checkout", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(checkout: Path) -> None:
    """Compare prompts and scores with those of a checkout of proxy-tuning's repository."""
    for task, files, compare, what in (
        ("truthfulqa", "mc_results.jsonl", truthfulqa, "prompts"),
        ("gsm", "predictions.jsonl", gsm8k, "predictions"),
    ):
        for folder in sorted(file.parent for file in (checkout / "results" / task).glob(f"*/{files}")):
            equal, number, ours, theirs = compare(folder)
            click.echo(
                f"{task}/{folder.name}: {equal} of {number} {what} equal; score {ours:.6f}, published {theirs:.6f}"
            )


if __name__ == "__main__":
    main()
