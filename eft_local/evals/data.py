"""The papers' items: from a file in the form in which they are published, or from the hub.

Nothing of them is bundled. `--data FILE` reads JSON lines, a JSON list, CSV, or plain lines, each also as .gz.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from eft_local.errors import DownloadError, UsageError, shown
from eft_local.evals import papers

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task's items come from.

    hub: arguments of `datasets.load_dataset`.  split: the one that is read; "" for all, an item of each by turns.
    read: makes an item of a row; KeyError, TypeError, ValueError or IndexError mean that it is none.
    form: what a row must have, for errors.
    """

    hub: Mapping[str, str]
    split: str
    read: Callable[[Row], dict[str, Any]]
    form: str


def _gsm8k(row: Row) -> dict[str, Any]:
    answer = row["upstream_answer"] if "upstream_answer" in row else row["answer"]
    float(papers.gsm8k_answer({"answer": answer}))
    question = row["question"] if "question" in row else row["prompt"]
    return {"question": _text(question), "answer": answer}


def _truthfulqa(row: Row) -> dict[str, Any]:
    if "Question" in row:  # TruthfulQA.csv
        wrong = row["Incorrect Answers"].strip().split(";")
        return {"question": _text(row["Question"]), "best": _text(row["Best Answer"]), "wrong": wrong}
    if "best_answer" in row:  # the hub's "generation"
        return {
            "question": _text(row["question"]),
            "best": _text(row["best_answer"]),
            "wrong": list(row["incorrect_answers"]),
        }
    item = _choices(row)
    others = [choice for index, choice in enumerate(item["choices"]) if index != item["gold"]]
    return {"question": item["question"], "best": item["choices"][item["gold"]], "wrong": others}


def _choices(row: Row) -> dict[str, Any]:
    question = _text(row["question"])
    if "mc1_targets" in row:
        targets = row["mc1_targets"]  # the hub's lists, or the published {answer: 0 or 1}
        choices = list(targets["choices"] if "labels" in targets else targets)
        labels = list(targets["labels"] if "labels" in targets else targets.values())
        return {"question": question, "choices": choices, "gold": labels.index(1)}
    choices = [_text(choice) for choice in row["choices"]]
    _ = choices[row["expected_index"]]
    return {"question": question, "choices": choices, "gold": int(row["expected_index"])}


def _toxigen(row: Row) -> dict[str, Any]:
    return {"text": papers.toxigen_prompt(_text(row["text"] if "text" in row else row["prompt"]))}


def _humaneval(row: Row) -> dict[str, Any]:
    return {key: _text(row[key]) for key in ("task_id", "prompt", "test", "entry_point")}


def _alpaca(row: Row) -> dict[str, Any]:
    return {"instruction": _text(row["instruction"])}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


SOURCES: Mapping[str, Source] = {
    "eft_gsm8k": Source(
        {"path": "openai/gsm8k", "name": "main"}, "test", _gsm8k, '"question", and "answer" with #### before the number'
    ),
    "eft_truthfulqa": Source(
        {"path": "truthfulqa/truthful_qa", "name": "generation"},
        "validation",
        _truthfulqa,
        "Question, Best Answer and Incorrect Answers, as TruthfulQA.csv has them",
    ),
    "eft_truthfulqa_mc1": Source(
        {"path": "truthfulqa/truthful_qa", "name": "multiple_choice"},
        "validation",
        _choices,
        '"question" and "mc1_targets", or "question", "choices" and "expected_index"',
    ),
    "eft_toxigen": Source(
        {"path": "toxigen/toxigen-data", "name": "prompts"}, "", _toxigen, 'a prompt a line, or "text"'
    ),
    "eft_humaneval": Source(
        {"path": "openai/openai_humaneval"}, "test", _humaneval, '"task_id", "prompt", "test" and "entry_point"'
    ),
    "eft_alpaca_farm": Source(
        {"path": "json", "data_files": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"},
        "train",
        _alpaca,
        '"instruction"',
    ),
}
SOURCES = {**SOURCES, "eft_truthfulqa_mc": SOURCES["eft_truthfulqa"]}


def items(task: str, file: Path | None) -> list[dict[str, Any]]:
    """Return a task's items, of a file or of the hub. Raises: UsageError, DownloadError."""
    source = SOURCES[task]
    rows, where = (read_rows(file), str(file)) if file else (_from_hub(task, source), source.hub["path"])
    if not rows:
        raise UsageError(f"{where}: there are no items for {task}; each needs {source.form}")
    made = []
    for number, row in enumerate(rows, start=1):
        try:
            made.append(source.read(row))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise UsageError(
                f"{where}: item {number} is none of {task}: it needs {source.form}, not {shown(dict(row))}"
            ) from None
    return papers.draw_choices(made) if task == "eft_truthfulqa_mc" else made


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file: JSON lines, a JSON list, CSV by its suffix, or {"text": line} of plain lines.

    Raises: UsageError.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    kind = Path(file.stem if file.suffix == ".gz" else file.name).suffix.lower()
    try:
        if kind == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        if kind == ".txt":
            return [{"text": line} for line in text.splitlines() if line.strip()]
        if text.lstrip().startswith("["):
            rows: list[dict[str, Any]] = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error, RecursionError) as error:
        raise UsageError(f"{file}: is not {kind.lstrip('.') or 'JSON lines'}: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{file}: each item must be a JSON object")
    return rows


def _from_hub(task: str, source: Source) -> Sequence[Row]:
    import datasets

    try:
        found = datasets.load_dataset(**source.hub)
        splits: list[list[Row]] = [found[name].to_list() for name in ([source.split] if source.split else found)]
    except Exception as error:  # of the hub, the network, the data set's own code
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(
            f"the items of {task} ({source.hub['path']}) could not be had from the hub: {reason}; "
            f"give a file with --data {task}=FILE"
        ) from None
    return [row for turn in zip_longest(*splits) for row in turn if row is not None]
