"""What the task files beside this one call; lm-eval loads it by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from eft_local.evals import papers, sandbox
from eft_local.evals.data import items


def _read(task: str, **settings: Any) -> dict[str, Any]:
    """Return the items of a task as lm-eval wants them, `test` being the split.

    settings: lm-eval's metadata, with `eft_data`, the files by task, and `eft_execute`, whether code may be run.
    """
    file = (settings.get("eft_data") or {}).get(task)
    made = items(task, Path(file) if file else None)
    execute = bool(settings.get("eft_execute"))
    return {"test": datasets.Dataset.from_list([{**item, "execute": execute} for item in made])}


def gsm8k(**settings: Any) -> dict[str, Any]:
    return _read("eft_gsm8k", **settings)


def truthfulqa(**settings: Any) -> dict[str, Any]:
    return _read("eft_truthfulqa", **settings)


def truthfulqa_mc(**settings: Any) -> dict[str, Any]:
    return _read("eft_truthfulqa_mc", **settings)


def truthfulqa_mc1(**settings: Any) -> dict[str, Any]:
    return _read("eft_truthfulqa_mc1", **settings)


def toxigen(**settings: Any) -> dict[str, Any]:
    return _read("eft_toxigen", **settings)


def humaneval(**settings: Any) -> dict[str, Any]:
    return _read("eft_humaneval", **settings)


def alpaca_farm(**settings: Any) -> dict[str, Any]:
    return _read("eft_alpaca_farm", **settings)


gsm8k_text, gsm8k_answer, gsm8k_score = papers.gsm8k_text, papers.gsm8k_answer, papers.gsm8k_score
truthfulqa_text = papers.truthfulqa_text
truthfulqa_mc_text, truthfulqa_mc_score = papers.truthfulqa_mc_text, papers.truthfulqa_mc_score
answered = papers.answered


def all_answers(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Let a task see all its answers to an item, not the first alone."""
    return list(answers)


def humaneval_score(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Return pass@1 and, from ten answers on, pass@10; nothing of both where code must not be run."""
    answers = results[0]
    if not doc["execute"]:
        return {"answered": float(bool(answers[0].strip()))}
    right = sum(sandbox.run(papers.program(doc, answer)).passed for answer in answers)
    return {f"pass@{k}": papers.pass_at(k, len(answers), right) for k in (1, 10) if len(answers) >= k}
