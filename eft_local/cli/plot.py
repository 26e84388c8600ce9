"""The picture of an evaluation: shares with their Wilson intervals, over a sweep or per target."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eft_local.cli import output
from eft_local.errors import UsageError
from eft_local.evals.run import SHARES, Report, wilson

FORMATS = ("png", "svg", "pdf")
SWEPT = ("mix", "beta", "alpha", "steer_first")
LABELS = {
    "mix": "λ (weight of the second expert)",
    "beta": "β",
    "alpha": "α",
    "steer_first": "steered tokens",
}


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn later. Raises: UsageError."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(f"--plot {path}: the name must end in .png, .svg or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"--plot needs matplotlib; install it with: {sys.executable} -m pip install matplotlib")


def save_plot(reports: Sequence[Report], path: Path, title: str) -> None:
    """Draw the reports into a file, whole or not at all. Raises: OutputError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 1.4 * len(reports)), 4.5), layout="constrained")
    axes = figure.subplots()
    sweep = _sweep(reports)
    if sweep:
        _draw_curves(axes, reports, *sweep)
    else:
        _draw_bars(axes, reports)
    axes.set(ylim=(-0.02, 1.02), ylabel="share", title=title)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().lstrip("."), dpi=150)
    output.save(path, picture.getvalue())


def _sweep(reports: Sequence[Report]) -> tuple[str, list[tuple[float, Report]]] | None:
    """Return the one setting that was swept, with its values; None if there is none, or more than one."""
    for key in SWEPT:
        points = [(value, r) for r in reports if isinstance(value := r.target.settings().get(key), int | float)]
        if len(points) == len({value for value, _ in points}) > 1:
            return key, sorted(points, key=lambda point: point[0])
    return None


def _draw_curves(axes: Any, reports: Sequence[Report], key: str, points: Sequence[tuple[float, Report]]) -> None:
    """Draw each share over the swept setting with its interval as a band; other targets as dotted lines."""
    xs = [value for value, _ in points]
    for colour, name in enumerate(_judged(reports)):
        counts = [report.overall()[name] for _, report in points]
        low, high = zip(*(wilson(*pair) for pair in counts), strict=True)
        axes.plot(xs, [_share(*pair) for pair in counts], marker="o", color=f"C{colour}", label=name)
        axes.fill_between(xs, low, high, color=f"C{colour}", alpha=0.15)
    swept = {report.target.name for _, report in points}
    for style, report in zip((":", "--", "-.", (0, (1, 4))) * 9, reports, strict=False):
        if report.target.name not in swept and report.ordinary.n:
            share = _share(report.ordinary.both, report.ordinary.n)
            axes.axhline(share, color="grey", linestyle=style, label=f"{report.target.name}: both")
    axes.set_xlabel(LABELS[key])


def _draw_bars(axes: Any, reports: Sequence[Report]) -> None:
    """Draw a group of bars per target, one bar per share, with intervals."""
    shown = _judged(reports)
    width = 0.8 / max(len(shown), 1)
    for index, name in enumerate(shown):
        counts = [report.overall()[name] for report in reports]
        shares = [_share(*pair) for pair in counts]
        bounds = [wilson(*pair) for pair in counts]
        below = [share - low for share, (low, _) in zip(shares, bounds, strict=True)]
        above = [high - share for share, (_, high) in zip(shares, bounds, strict=True)]
        places = [place + (index - (len(shown) - 1) / 2) * width for place in range(len(reports))]
        axes.bar(places, shares, width, yerr=[below, above], capsize=2, label=name)
    axes.set_xticks(range(len(reports)), [r.target.name.replace(" ", "\n") for r in reports])


def _judged(reports: Sequence[Report]) -> list[str]:
    """Return the shares that there are questions for."""
    return [name for name in SHARES if any(report.overall()[name][1] for report in reports)]


def _share(count: int, n: int) -> float:
    return count / n if n else 0.0
