"""An evaluation's reports, as a person reads them and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eft_local.analysis.format import condition, interval
from eft_local.evals.run import SHARES, Report, wilson

if TYPE_CHECKING:
    from eft_local.evals.questions import Questions
    from eft_local.recipe import Recipe


def conditions(recipe: Recipe) -> dict[str, Any]:
    """Return what all targets were run with, by its name in the output."""
    sampling = recipe.sampling
    temperature = sampling.temperature
    return {
        "recipe": recipe.name,
        "alpha": recipe.alphas,
        "beta": recipe.beta,
        "conservative_filter": recipe.conservative_filter,
        "plausibility_mask": recipe.plausibility_mask,
        "plausibility_top_p": recipe.plausibility_top_p,
        "decoding": "greedy" if temperature == 0 else f"temperature {temperature:g}, seed {sampling.seed}",
    }


def as_dict(recipe: Recipe, questions: Questions, reports: Sequence[Report]) -> dict[str, Any]:
    """Return the evaluation ready for JSON."""
    return {
        "questions": str(questions.path),
        "judge": dict(questions.judge),
        **conditions(recipe),
        "targets": {report.target.name: report.as_dict() for report in reports},
    }


def answer_lines(reports: Sequence[Report]) -> str:
    """Return one JSON line per answer."""
    rows = [
        {
            "target": report.target.name,
            "id": answer.question.id,
            "question": answer.question.question,
            "expected": answer.question.answer,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "correct": answer.verdict.correct,
            "form": answer.verdict.form,
            "declined": answer.verdict.declined,
        }
        for report in reports
        for answer in report.answers
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tables(recipe: Recipe, questions: Questions, reports: Sequence[Report]) -> str:
    """Return what a person reads: the conditions, how answers were judged, then all questions and each category."""
    judged = {name: questions.judge[name] for name in ("correct", "form", "declined")}
    lines = listed({"questions": f"{len(questions.items)} of {questions.path}", **conditions(recipe), **judged})
    lines += ["", "Per cent [95 % Wilson interval]; declined counts sensitive questions, the rest the others"]
    lines += aligned(("target", "n", *SHARES, "tokens/s"), [_summary(report) for report in reports])
    for category in reports[0].categories if reports else ():
        lines += ["", category]
        lines += aligned(("target", "n", *SHARES), [_row(report, category) for report in reports])
    return "\n".join(lines) + "\n"


def listed(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that there is."""
    return [f"{name.replace('_', ' ')}: {condition(value)}" for name, value in values.items() if value is not None]


def _summary(report: Report) -> tuple[str, ...]:
    cells = (_cell(*pair) for pair in report.overall().values())
    return report.target.name, str(report.ordinary.n), *cells, f"{report.tokens_per_second:.0f}"


def _row(report: Report, category: str) -> tuple[str, ...]:
    tally = report.categories[category]
    return report.target.name, str(tally.n), *(_cell(getattr(tally, name), tally.n) for name in SHARES)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the first column to the left and numbers to the right."""
    table = [headings, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]


def _cell(count: int, n: int) -> str:
    """Return a share with its interval, in per cent."""
    if n == 0:
        return "-"
    low, high = wilson(count, n)
    return interval(count / n, low, high)
