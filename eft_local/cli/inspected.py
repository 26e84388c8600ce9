"""An inspected answer on the terminal, as JSON, and as a page."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from eft_local.analysis import Inspection, chosen
from eft_local.analysis.format import (
    LEVELS,
    condition,
    label,
    level,
    notes,
    probability_and_rank,
    share,
    signed,
    sparkline,
    two_digits,
    visible,
)
from eft_local.cli import output
from eft_local.engine.step import Candidate, RoleStatistics, Step
from eft_local.errors import UsageError
from eft_local.recipe import Recipe
from eft_local.recipe.names import MIXTURE

# Ink and paper are both given, so that the text can be read whatever colours the terminal has.
_TINTS = tuple(
    Style(color="#1b1b1f", bgcolor=paper) if paper else Style()
    for paper in ("", "#fff1d6", "#ffdfa8", "#ffc870", "#ffab2e")
)
_CHANGED = Style(underline=True)
_WIDE = 10_000


@dataclass(frozen=True, slots=True)
class Inspected:
    """An answer's statistics with the request. about: recipe, strengths, seed, ..., as they go into JSON."""

    question: str
    inspection: Inspection
    about: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON; the keys are in the command's help."""
        summary = self.inspection.summary()
        return {
            "question": self.question,
            "text": self.inspection.text.lstrip(),
            "tokens": list(self.inspection.tokens),
            "finish_reason": self.inspection.steps[-1].finish_reason,
            **self.about,
            "summary": {
                "tokens": summary.tokens,
                "changed": summary.changed,
                "share": summary.share,
                "mean_change": summary.mean_change,
                "changed_at": list(summary.changed_at),
            },
            "steps": [_step(step) for step in self.inspection.steps],
        }

    def page(self) -> str:
        """Return everything as an HTML page."""
        from eft_local.analysis.page import page

        details = {name: condition(value) for name, value in self.about.items() if value is not None}
        return page(self.inspection, title=f"eft inspect: {self.question}", question=self.question, details=details)


def recipe_entry(recipe: Recipe) -> dict[str, Any]:
    """Return what decided the mixture, by its name in the output; filters only where they are on."""
    filters = ("conservative_filter", "plausibility_mask", "plausibility_top_p")
    on = {name: getattr(recipe, name) for name in filters if getattr(recipe, name) is not None}
    return {"recipe": recipe.name, "alpha": recipe.alphas, "beta": recipe.beta, **on}


def _step(step: Step) -> dict[str, Any]:
    return {
        "token": step.token,
        "text": step.text,
        "logprob": _finite(step.logprob),
        "drafted": step.drafted,
        "change": step.change,
        "top_changed": step.top_changed,
        "finish_reason": step.finish_reason,
        "roles": _statistics(step.roles),
        "candidates": [
            {
                "token": each.token,
                "text": each.text,
                "ends": each.ends,
                "roles": _statistics(each.roles),
                "behaviour": _finite(each.behaviour),
                "scale": _finite(each.scale),
            }
            for each in step.candidates
        ],
    }


def _statistics(by_role: Mapping[str, RoleStatistics]) -> dict[str, dict[str, float | None]]:
    return {name: {"rank": role.rank, "logprob": _finite(role.logprob)} for name, role in by_role.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


class Printer:
    """Writes an answer's tokens to stdout as they come, tinted and underlined; without styles, in brackets."""

    def __init__(self) -> None:
        self._console = _console()
        self._begun = False
        self._at_line_start = True

    def write(self, step: Step) -> None:
        """Write one token at once, without the space that a frame may put before the first."""
        text = output.safe(step.text if self._begun else step.text.lstrip())
        self._begun = self._begun or bool(text)
        candidate = chosen(step)
        tint = level(step.change)
        if not text and candidate and (step.top_changed or tint):
            text = label(candidate)  # a token without a text of its own: an end, or half a character
        if not text:
            return
        if step.top_changed and self._console.color_system is None:
            text = f"[{text}]"
        style = _TINTS[tint] + _CHANGED if step.top_changed else _TINTS[tint]
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._at_line_start = text.endswith("\n")
        _pass_on(self._console)

    def end(self) -> None:
        """End the answer's last line."""
        if not self._at_line_start:
            output.write("\n")
        output.flush()


def write_answer(inspection: Inspection) -> None:
    """Write a whole answer to stdout, tinted."""
    printer = Printer()
    for step in inspection.steps:
        printer.write(step)
    printer.end()


def write_statistics(inspection: Inspection, numbers: Iterable[int], most: int) -> None:
    """Write what stands below an answer: the strip, the figures, the legend, and tables.

    numbers: tokens, from 1, whose tables are wanted; most: of how many of the most changed, besides.
    Raises: UsageError if there is no such token.
    """
    count = sum(step.token is not None for step in inspection.steps)
    for number in numbers:
        if number > count:
            raise UsageError(f"--token {number}: the answer has {count} tokens, an end token among them")
    console = _console()
    if inspection.target == MIXTURE:
        _print_overview(console, inspection)
    wanted = dict.fromkeys([*(number - 1 for number in numbers), *sorted(inspection.most_changed(most))])
    for index in wanted:
        _print_table(console, inspection, index)
    _pass_on(console)


def _print_overview(console: Console, inspection: Inspection) -> None:
    summary = inspection.summary()
    changes = [step.change for step in inspection.steps if step.change is not None]
    console.print(sparkline(changes, console.width), soft_wrap=True)
    console.print(
        f"{summary.changed} of {summary.tokens} first choices changed ({share(summary.share)}), "
        f"mean change {two_digits(summary.mean_change)}"
    )
    legend = Text("change from ")
    if console.color_system is not None and not console.no_color:
        for tint, begin in zip(_TINTS[1:], LEVELS, strict=True):
            legend.append(f" {begin:g} ", tint)
        legend.append("; ")
    else:
        legend = Text()
    legend.append("in brackets" if console.color_system is None else "underlined", _CHANGED)
    legend.append(": the experts changed the first choice")
    console.print(legend)


def _print_table(console: Console, inspection: Inspection, index: int) -> None:
    """Print who thought what of a token and its candidates."""
    step = inspection.steps[index]
    roles = (inspection.target, *(role for role in inspection.roles if role != inspection.target))
    mixed = inspection.target == MIXTURE
    candidate = chosen(step)
    title = f"token {index + 1}, {label(candidate) if candidate else visible(step.text)}"
    console.print()
    console.print(Text(": ".join([title, *([", ".join(notes(step))] if notes(step) else [])])))
    table = _table(step.candidates, step.token, roles, mixed=mixed)
    # Where it does not fit, the terminal breaks its lines: a figure that is cut off would be another.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDE)).maximum)
    console.print(table)


def _table(candidates: Sequence[Candidate], token: int | None, roles: Sequence[str], *, mixed: bool) -> Table:
    """Return a row per candidate: its probability and rank under each role, and the two deltas."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\ncandidate", no_wrap=True)
    for role in roles:
        width = max((len(str(each.roles[role].rank + 1)) for each in candidates), default=1)
        table.add_column(f"{role}\n    % {'#':>{width}}", justify="right", no_wrap=True)
    for name in ("behaviour", "scale") if mixed else ():
        table.add_column(f"\n{name}", justify="right", no_wrap=True)
    for each in candidates:
        table.add_row(*_row(each, roles, candidates, mixed=mixed), style="bold" if each.token == token else "")
    return table


def _row(candidate: Candidate, roles: Sequence[str], candidates: Sequence[Candidate], *, mixed: bool) -> list[Text]:
    """Return a candidate's cells; its ranks are as wide as the widest of all candidates."""
    cells = [label(candidate)]
    for role in roles:
        width = max(len(str(each.roles[role].rank + 1)) for each in candidates)
        cells.append(probability_and_rank(candidate.roles[role], width))
    if mixed:
        cells += [signed(cast(float, candidate.behaviour)), signed(cast(float, candidate.scale))]
    return [Text(cell) for cell in cells]


def _console() -> Console:
    """Return a console that collects what is then written to stdout, with the styles that the terminal has."""
    return Console(
        file=io.StringIO(),
        width=shutil.get_terminal_size().columns,
        force_terminal=sys.stdout.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
    )


def _pass_on(console: Console) -> None:
    collected = cast(io.StringIO, console.file)
    output.write(collected.getvalue())
    output.flush()
    collected.seek(0)
    collected.truncate()
