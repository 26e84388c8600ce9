"""`eft inspect --questions`: where in an answer the experts change the base's first choice, over many answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eft_local.analysis import Inspection, Place, by_position, chosen
from eft_local.analysis.format import condition, interval, share
from eft_local.cli import output, progress
from eft_local.cli.inspected import recipe_entry
from eft_local.cli.interrupt import Interrupt, interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import Session
from eft_local.cli.plot import check_plot
from eft_local.errors import Cancelled
from eft_local.evals.questions import Questions, read_questions
from eft_local.evals.run import wilson
from eft_local.hub.references import demo_questions
from eft_local.prompts.render import conversation

if TYPE_CHECKING:
    from collections.abc import Generator

    from eft_local.emulator import Emulator
    from eft_local.engine.step import Step
    from eft_local.recipe import Recipe

MAX_TOKENS = 256
ALONE = 10  # so many positions have a line of their own; then ten share one


@dataclass(frozen=True, slots=True)
class Curve:
    """Changes by position over many answers. ends, ends_changed: end tokens, and those where the choice changed."""

    answers: int
    places: tuple[Place, ...]
    ends: int
    ends_changed: int

    @classmethod
    def of(cls, answers: Sequence[Inspection]) -> Curve:
        """Count over answers."""
        steps = [step for answer in answers for step in answer.steps]
        ends = [step for step in steps if (candidate := chosen(step)) is not None and candidate.ends]
        return cls(len(answers), by_position(answers), len(ends), sum(bool(step.top_changed) for step in ends))

    @property
    def tokens(self) -> int:
        """Positions of all answers, end tokens among them."""
        return sum(place.answers for place in self.places)

    @property
    def changed(self) -> int:
        """Positions whose first choice changed."""
        return sum(place.changed for place in self.places)


def run(
    session: Session,
    questions: str,
    split: str | None,
    kind: str | None,
    limit: int | None,
    system: str | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> int:
    """Answer the questions, greedily unless a temperature is given, and report. Raises: UsageError, Cancelled."""
    if plot:
        output.check_writable(plot)
        check_plot(plot)
    split, kind = split or "held-out", kind or "all"
    chosen_questions = read_questions(demo_questions() if questions == "demo" else Path(questions)).select(
        split=None if split == "all" else split, kind=None if kind == "all" else kind, limit=limit
    )
    session.changes.setdefault("temperature", 0.0)
    recipe = session.recipe()
    recipe = recipe.replace(max_tokens=recipe.sampling.max_tokens or MAX_TOKENS)
    with loaded(recipe) as emulator, interruptible(emulator.cancel) as interrupt:
        answers = _answers(emulator, chosen_questions, system, interrupt)
    curve = Curve.of(answers)
    about = {"questions": str(chosen_questions.path), "split": split, "kind": kind, **_conditions(recipe)}
    if answers:
        output.write_json(_as_dict(curve, about)) if as_json else output.write(_as_text(curve, about))
        output.flush()
        if plot:
            _save_plot(curve, plot, f"{recipe.name}: {curve.answers} answers")
    if len(answers) < len(chosen_questions.items):
        raise Cancelled(f"stopped: {len(answers)} of {len(chosen_questions.items)} questions are answered")
    return 0


def _answers(emulator: Emulator, questions: Questions, system: str | None, interrupt: Interrupt) -> list[Inspection]:
    """Return the answers that were completed: all of them unless Ctrl+C was pressed."""
    answers: list[Inspection] = []
    with progress.bar("count", len(questions.items), "answers") as show:
        for question in questions.items:
            stream = emulator.stream_chat(conversation(question.question, system), top=1)
            with closing(cast("Generator[Step]", stream)):
                steps = tuple(stream) if not interrupt.requested else ()
            if interrupt.requested:
                break
            answers.append(Inspection(steps))
            show(len(answers), "answers")
    return answers


def _conditions(recipe: Recipe) -> dict[str, Any]:
    sampling = recipe.sampling
    greedy = sampling.temperature == 0
    return {
        **recipe_entry(recipe),
        "decoding": "greedy" if greedy else f"temperature {sampling.temperature:g}, seed {sampling.seed}",
    }


def _as_dict(curve: Curve, about: dict[str, Any]) -> dict[str, Any]:
    return {
        **about,
        "answers": curve.answers,
        "tokens": curve.tokens,
        "changed": curve.changed,
        "share": curve.changed / curve.tokens,
        "interval95": wilson(curve.changed, curve.tokens),
        "mean_change": sum(place.mean_change * place.answers for place in curve.places) / curve.tokens,
        "end_tokens": {"tokens": curve.ends, "changed": curve.ends_changed},
        "positions": [
            {
                "position": place.position,
                "answers": place.answers,
                "changed": place.changed,
                "share": place.share,
                "interval95": wilson(place.changed, place.answers),
                "mean_change": place.mean_change,
            }
            for place in curve.places
        ],
    }


def _as_text(curve: Curve, about: dict[str, Any]) -> str:
    """Return the conditions, the figures, and a bar per position (ten of them, further on)."""
    low, high = wilson(curve.changed, curve.tokens)
    others, others_changed = curve.tokens - curve.ends, curve.changed - curve.ends_changed
    lines = [f"{name.replace('_', ' ')}: {condition(value)}" for name, value in about.items()]
    lines += [
        "",
        f"{curve.answers} answers: first choices changed at {curve.changed} of {curve.tokens} tokens, "
        f"{interval(curve.changed / curve.tokens, low, high, digits=1, sign=' %')}",
        f"  end tokens: {_of(curve.ends_changed, curve.ends)}; all others: {_of(others_changed, others)}",
        "",
        "position   tokens  changed",
    ]
    for places in _grouped(curve.places):
        tokens, changed = sum(place.answers for place in places), sum(place.changed for place in places)
        first, last = places[0].position, places[-1].position
        name = str(first) if first == last else f"{first}-{last}"
        part = changed / tokens
        lines.append(f"{name:<9} {tokens:>7} {share(part, digits=1):>8}  {_bar(part)}".rstrip())
    return "\n".join(lines) + "\n"


def _grouped(places: Sequence[Place]) -> list[Sequence[Place]]:
    alone = [places[index : index + 1] for index in range(min(ALONE, len(places)))]
    return alone + [places[start : start + 10] for start in range(ALONE, len(places), 10)]


def _of(count: int, n: int) -> str:
    return f"{count} of {n}" + (f" ({share(count / n, digits=1)})" if n else "")


def _bar(part: float, width: int = 40) -> str:
    """Return a bar of eighths of a character. part: 0…1."""
    eighths = round(8 * width * part)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _save_plot(curve: Curve, path: Path, title: str) -> None:
    """Draw the share over the position, its 95 % interval as a band, and how many answers are that long."""
    from eft_local.bench.figure import empty_figure, picture

    figure = empty_figure(8, 4.5)
    axes = figure.subplots()
    xs = [place.position for place in curve.places]
    low, high = zip(*(wilson(place.changed, place.answers) for place in curve.places), strict=True)
    axes.plot(xs, [place.share for place in curve.places], marker=".", color="C0", label="first choice changed")
    axes.fill_between(xs, low, high, color="C0", alpha=0.15, label="95 % interval")
    axes.plot(xs, [place.mean_change for place in curve.places], color="C1", label="mean change (total variation)")
    reach = [place.answers / curve.answers for place in curve.places]
    axes.plot(xs, reach, color="grey", linestyle=":", label="answers that reach it")
    axes.set(ylim=(-0.02, 1.02), xlabel="position in the answer", ylabel="share", title=title)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper")
    output.save(path, picture(figure, path))
