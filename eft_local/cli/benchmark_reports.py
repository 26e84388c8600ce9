"""Benchmarks' results, as a person reads them, as JSON, and as lm-eval's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eft_local.analysis.format import printable
from eft_local.cli import output
from eft_local.cli.reports import aligned, listed
from eft_local.evals.benchmarks import Result, gap_closed, keys_of
from eft_local.recipe.names import BASE

_PERCENT = re.compile(r"acc|exact_match|pass@|answered|invalid|f1|em\b|mc\d|rouge|bleu_acc")
"""Metrics that are shares of the items, and written in per cent."""


def as_dict(conditions: Mapping[str, Any], results: Sequence[Result], tuned: str | None) -> dict[str, Any]:
    """Return the results ready for JSON: of each task and metric what every target did; gap_closed where there is one.

    conditions: what all were run with.  tuned: the name of the directly tuned large model.
    """
    tasks: dict[str, Any] = {}
    for key in keys_of(results):
        figures = {result.name: figure for result in results for figure in result.figures if figure.key == key}
        tasks.setdefault(key[0], {})[key[1]] = {
            "targets": {
                name: {"value": figure.value, "stderr": figure.stderr, "n": figure.n}
                for name, figure in figures.items()
            },
            "gap_closed": _gaps(results, key, tuned),
        }
    cut = {result.name: result.cut_short for result in results if result.cut_short}
    return {**conditions, "tuned": tuned, "tasks": tasks, "cut_short": cut}


def tables(conditions: Mapping[str, Any], results: Sequence[Result], tuned: str | None) -> str:
    """Return what a person reads: the conditions, every metric of all targets side by side, and the gaps closed."""
    lines = listed(conditions)
    lines += ["", "Each figure ± its standard error; per cent where it is a share of the items"]
    rows = []
    for key in keys_of(results):
        figures = [next((figure for figure in result.figures if figure.key == key), None) for result in results]
        items = max(figure.n for figure in figures if figure)
        rows.append((*key, str(items), *(_cell(key[1], figure) for figure in figures)))
    lines += aligned(("task", "metric", "n", *(result.name for result in results)), rows)
    gaps = [(key, _gaps(results, key, tuned)) for key in keys_of(results)]
    mixtures = list(dict.fromkeys(name for _, each in gaps for name in each))
    if mixtures:
        lines += ["", f"Share of the gap between {BASE} and {tuned} that is closed"]
        body = [(*key, *(_share(each.get(name)) for name in mixtures)) for key, each in gaps if each]
        lines += aligned(("task", "metric", *mixtures), body)
    for result in results:
        if result.cut_short:
            lines += ["", f"{result.name}: {result.cut_short} answers ended where the context was full; see --context"]
    return "\n".join(lines) + "\n"


def samples(results: Sequence[Result], limit: int) -> str:
    """Return so many items of each task with what every target answered."""
    lines = []
    tasks = list(dict.fromkeys(task for result in results for task in result.samples()))
    for task in tasks:
        for number in range(limit):
            rows = {result.name: result.samples().get(task, [])[number : number + 1] for result in results}
            found = next((row[0] for row in rows.values() if row), None)
            if found is None:
                break
            question = _question(found)
            lines += ["", f"{task}, item {found['doc_id']}: {printable(question)}"]
            lines += [f"expected: {printable(str(found['target']))}"] if str(found["target"]) else []
            lines += [f"{name}: {printable(_answered(row[0]))}" for name, row in rows.items() if row]
    return "\n".join(lines) + "\n" if lines else ""


def save(folder: Path, results: Sequence[Result]) -> None:
    """Write lm-eval's own files into a folder for each target: results.json, samples_TASK.jsonl.

    Raises: OutputError.
    """
    from lm_eval.utils import handle_non_serializable

    for result in results:
        own = folder / _file_name(result.name)
        raw = {key: value for key, value in result.raw.items() if key != "samples"}
        text = json.dumps(raw, indent=2, default=handle_non_serializable, ensure_ascii=False)
        output.save(own / "results.json", text.encode("utf-8", "backslashreplace"), make_folder=True)
        for task, rows in result.samples().items():
            lines = [json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n" for row in rows]
            content = "".join(lines).encode("utf-8", "backslashreplace")
            output.save(own / f"samples_{_file_name(task)}.jsonl", content)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=,-]", "_", name)


def _gaps(results: Sequence[Result], key: tuple[str, str], tuned: str | None) -> dict[str, float]:
    """Return the share of the gap that each target but base and tuned model closes."""
    values = {result.name: result.value(key) for result in results}
    gaps = {
        name: gap_closed(value, values.get(BASE), values.get(tuned or ""))
        for name, value in values.items()
        if name.split(" ")[0] == "eft"
    }
    return {name: gap for name, gap in gaps.items() if gap is not None}


def _cell(metric: str, figure: Any) -> str:
    if figure is None:
        return "-"
    scale, digits = (100, 1) if _PERCENT.match(metric) else (1, 3)
    error = f" ± {figure.stderr * scale:.{digits}f}" if figure.stderr is not None else ""
    return f"{figure.value * scale:.{digits}f}{error}"


def _share(gap: float | None) -> str:
    return "-" if gap is None else f"{round(100 * gap)} %"


def _question(row: Mapping[str, Any]) -> str:
    return str(row["arguments"][0][0])


def _answered(row: Mapping[str, Any]) -> str:
    """Return what was written; of choices, each one's log-probability."""
    if len(row["arguments"][0]) > 1 and isinstance(row["arguments"][0][1], str):
        pairs = zip(row["arguments"], row["resps"], strict=True)
        return "; ".join(f"{pair[1].strip()} {float(answers[0][0]):.2f}" for pair, answers in pairs)
    return " | ".join(str(answer) for answers in row["resps"] for answer in answers)
