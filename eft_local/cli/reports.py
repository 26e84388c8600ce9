"""An evaluation's reports, as a person reads them and as JSON."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from eft_local.evaluation import Report
    from eft_local.questions import Questions
    from eft_local.recipe import Recipe


def _conditions(recipe: Recipe) -> dict[str, Any]:
    """Return what all systems were run with, by its name in the output."""
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
        **_conditions(recipe),
        "systems": {report.system.name: report.as_dict() for report in reports},
    }


def answer_lines(reports: Sequence[Report]) -> str:
    """Return one JSON line per answer."""
    rows = [
        {
            "system": report.system.name,
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
    """Return what a person reads: the conditions, how answers were judged, and the two tables."""
    from rich.console import Console

    width = max(shutil.get_terminal_size().columns, 80)
    console = Console(file=io.StringIO(), width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    told = {name: value for name, value in _conditions(recipe).items() if value is not None}
    told["alpha"] = ", ".join(f"{name} {value:g}" for name, value in recipe.alphas.items())
    for name, value in {"questions": f"{len(questions.items)} of {questions.path}", **told}.items():
        console.print(f"{name.replace('_', ' ')}: {value}", markup=False, soft_wrap=True)
    for name in ("correct", "form", "declined"):
        console.print(f"{name}: {questions.judge[name]}", markup=False, soft_wrap=True)
    console.print("\nPer cent [95 % Wilson interval]", markup=False)
    console.print(_summary(reports))
    console.print("By category", markup=False)
    console.print(_by_category(reports))
    file: Any = console.file
    return "\n".join(line.rstrip() for line in str(file.getvalue()).splitlines()) + "\n"


def _summary(reports: Sequence[Report]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("system", box=None, pad_edge=False)
    for heading in ("n", "correct", "form", "both", "declined", "tokens/s"):
        table.add_column(heading, justify="right")
    for report in reports:
        cells = [_cell(*pair) for pair in report.overall().values()]
        n, speed = str(report.ordinary.n), f"{report.tokens_per_second:.0f}"
        table.add_row(*(Text(cell) for cell in (report.system.name, n, *cells, speed)))
    return table


def _by_category(reports: Sequence[Report]) -> Table:
    """Return the table of categories, the systems below one another in each."""
    from rich.table import Table
    from rich.text import Text

    from eft_local.evaluation import SHARES

    table = Table("category", "system", box=None, pad_edge=False)
    for heading in ("n", *SHARES):
        table.add_column(heading, justify="right")
    for category in reports[0].categories if reports else ():
        for index, report in enumerate(reports):
            tally = report.categories[category]
            cells = [_cell(getattr(tally, name), tally.n) for name in SHARES]
            first = category if index == 0 else ""
            table.add_row(*(Text(cell) for cell in (first, report.system.name, str(tally.n), *cells)))
    return table


def _cell(count: int, n: int) -> str:
    """Return a share with its interval, in per cent."""
    from eft_local.evaluation import wilson

    if n == 0:
        return "-"
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.0f}-{100 * high:.0f}]"
