"""Pictures of measurements, drawn with matplotlib; only what draws one needs it installed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_local.bench.results import AUTO, BASE, PLAIN, Answers, Benchmark, Spread, fixed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIMIT = {"color": "black", "linestyle": "--", "linewidth": 1}


def picture(figure: Figure, path: Path) -> bytes:
    """Return the figure as a file of the kind that the path's suffix names."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower().lstrip("."), dpi=150)
    return content.getvalue()


def empty_figure(width: float, height: float) -> Figure:
    """Return a figure that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw(benchmark: Benchmark) -> Figure:
    """Draw a row per kind of answers: tokens per second of every contender, and over the length of drafts."""
    kinds = list(benchmark.answers.values())
    figure = empty_figure(11, 4 * len(kinds))
    for answers, (bars, curve) in zip(kinds, figure.subplots(len(kinds), 2, squeeze=False), strict=True):
        _draw_systems(bars, answers)
        _draw_lengths(curve, answers)
        for axes in (bars, curve):
            axes.set_ylim(bottom=0)
            axes.set_ylabel("tokens per second")
            axes.grid(axis="y", alpha=0.3)
    about = benchmark.about
    shape = f" at shape {about['shape']}, {about['quantization']}" if about["shape"] else ""
    figure.suptitle(f"{about['recipe']}{shape}: medians and quartiles", x=0.02, ha="left")
    figure.legend(*curve.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _draw_systems(axes: Any, answers: Answers) -> None:
    colours = {BASE: "C7", PLAIN: "C0", AUTO: "C2"}
    for place, name in enumerate(answers.contenders):
        speed = answers.speed(name)
        axes.bar(place, speed.median, color=colours.get(name, "C1"), yerr=_bars(speed), capsize=3)
    axes.axhline(1000 / answers.role_ms("base").median, **_LIMIT)
    axes.set_xticks(
        range(len(answers.contenders)), ["base\nalone" if name == BASE else name for name in answers.contenders]
    )
    axes.set_title(f"{answers.kind} answers, {len(answers.questions)} questions")


def _draw_lengths(axes: Any, answers: Answers) -> None:
    """Tokens per second over the fixed lengths; `auto` stands where its mean length is."""
    lengths = [length for length in range(17) if fixed(length) in answers.contenders]
    speeds = [answers.speed(fixed(length)) for length in lengths]
    axes.plot(lengths, [speed.median for speed in speeds], marker="o", color="C1", label="fixed length")
    axes.fill_between(lengths, [s.low for s in speeds], [s.high for s in speeds], color="C1", alpha=0.15)
    auto, drafts = answers.speed(AUTO), answers.drafts(AUTO)
    mean = drafts.drafted / max(sum(drafts.lengths.values()), 1)
    axes.errorbar(mean, auto.median, yerr=_bars(auto), marker="*", markersize=14, color="C2", capsize=3, label="auto")
    axes.axhline(1000 / answers.role_ms("base").median, label="llama.cpp, base alone", **_LIMIT)
    axes.set_xticks(lengths)
    axes.set_xlabel("tokens drafted at a time")


def _bars(speed: Spread) -> list[list[float]]:
    return [[speed.median - speed.low], [speed.high - speed.median]]
