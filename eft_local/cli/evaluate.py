"""`eft eval`: systems over a question file, and what they get right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.interrupt import Interrupt, interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import Command, Option, Session, example, json_option, recipe_option
from eft_local.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.evaluation import Report, System
    from eft_local.questions import Questions

MAX_TOKENS = {"short": 48, "long": 256}


def _sweep(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=Option, section="Sweeps", metavar="LIST", **settings)


@click.command(
    cls=Command,
    epilog=example(
        "eft eval",
        "eft eval my-questions.jsonl --systems base,eft --alpha 0,0.5,1,1.5 --plot alpha.png",
        "eft eval --recipe demo-two --systems eft --mix 0,0.25,0.5,0.75,1 --json",
    ),
)
@click.argument("questions", required=False, type=click.Path(path_type=Path))
@recipe_option
@click.option(
    "--systems",
    metavar="NAMES",
    help="What to run, separated by commas: eft, base, antiexpert, expert, an expert's or a [compare] name. "
    "[default: base,expert,eft and all of [compare]]",
)
@_sweep("--alpha", help="Values of α for eft: 0,0.5,1 or, for one of several experts, NAME=0,0.5,1.")
@_sweep("--beta", help="Values of β for eft.")
@_sweep("--mix", help="Values of λ for two experts: α = (1−λ, λ).")
@_sweep("--steer-first", help="Also run the mixture for so many tokens only, then the base alone.")
@click.option("--split", default="held-out", show_default=True, help='Which questions; "all" for both halves.')
@click.option("--kind", default="short", show_default=True, help='"short", "long" or "all".')
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="N questions, spread evenly.")
@click.option("--parallel", type=click.IntRange(min=1), metavar="N", default=8, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="[default: 48 for short, else 256]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, metavar="N", help="For a temperature above 0.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the shares.")
@click.option(
    "--answers",
    "answers_file",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Write every answer and how it was judged.",
)
@json_option
@click.pass_obj
def evaluate(
    session: Session,
    questions: Path | None,
    systems: str | None,
    alpha: str | None,
    beta: str | None,
    mix: str | None,
    steer_first: str | None,
    split: str,
    kind: str,
    limit: int | None,
    parallel: int,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    plot: Path | None,
    answers_file: Path | None,
    as_json: bool,
) -> None:
    """Run systems over a question file; print what they get right, with 95 % Wilson intervals.

    Without QUESTIONS, the held-out questions of the demo. The file says how answers are judged, and that is
    printed. Decoding is greedy whatever the recipe says. "correct", "form" and "both" are shares of the
    questions that are not sensitive, "declined" of the sensitive ones.
    """
    from eft_local import evaluation
    from eft_local.questions import read_questions
    from eft_local.references import demo_questions

    if plot:
        from eft_local.cli.plot import check_plot

        check_plot(plot)
    if answers_file:
        output.check_writable(answers_file)
    file = read_questions(questions or demo_questions())
    chosen = file.select(split=None if split == "all" else split, kind=None if kind == "all" else kind, limit=limit)
    recipe = session.recipe().replace(temperature=temperature, seed=seed)
    default = ("base", "expert", "eft", *recipe.compare)
    planned = evaluation.plan(
        recipe,
        evaluation.names(systems) if systems is not None else default,
        alphas=_alphas(alpha),
        betas=_numbers("--beta", beta),
        mixes=_numbers("--mix", mix),
        steer_first=[_whole("--steer-first", value) for value in _numbers("--steer-first", steer_first)],
    )
    tokens = max_tokens or MAX_TOKENS.get(kind, MAX_TOKENS["long"])
    with loaded(recipe) as emulator, interruptible(emulator.cancel) as interrupt:
        evaluation.check_systems((system.only for system in planned), emulator.systems)
        finished, stopped = _run(emulator, chosen, planned, tokens, parallel, interrupt)
    if as_json:
        output.write_json(reports.as_dict(recipe, chosen, finished))
    else:
        output.write(reports.tables(recipe, chosen, finished))
    output.flush()
    if answers_file:
        output.save(answers_file, reports.answer_lines(finished).encode())
    if plot and finished:
        from eft_local.cli.plot import save_plot

        save_plot(finished, plot, f"{recipe.name}: {len(chosen.items)} questions")
    if stopped:
        raise Cancelled(f"stopped: {len(finished)} of {len(planned)} systems are complete")


def _numbers(option: str, text: str | None) -> list[float]:
    """Read a comma list of numbers; recipes refuse the values that make no sense. Raises: UsageError."""
    try:
        return [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise UsageError(f"{option} {text}: needs numbers separated by commas, as 0,0.5,1") from None


def _whole(option: str, value: float) -> int:
    if not value.is_integer():
        raise UsageError(f"{option} {value:g}: needs whole numbers of tokens")
    return int(value)


def _alphas(text: str | None) -> list[float | dict[str, float]]:
    """Read 0,0.5,1 or NAME=0,0.5,1."""
    name, equals, values = (text or "").rpartition("=")
    numbers = _numbers("--alpha", values if text is not None else None)
    return [{name: value} for value in numbers] if equals else list(numbers)


def _run(
    emulator: Emulator,
    questions: Questions,
    systems: Sequence[System],
    max_tokens: int,
    parallel: int,
    interrupt: Interrupt,
) -> tuple[list[Report], bool]:
    """Return the reports of the systems that were completed, and whether Ctrl+C left some out."""
    from eft_local import evaluation

    finished: list[Report] = []
    with _progress(len(systems) * len(questions.items)) as progress:
        for index, system in enumerate(systems):
            if interrupt.asked:
                return finished, True
            before = index * len(questions.items)

            def report(done: int, before: int = before, name: str = system.name) -> None:
                progress(before + done, name)
                if interrupt.asked:
                    emulator.cancel()

            try:
                finished.append(
                    evaluation.run(
                        emulator,
                        questions,
                        system,
                        max_tokens=max_tokens,
                        parallel=parallel,
                        progress=report,
                    )
                )
            except Cancelled:
                return finished, True
    return finished, False


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """Yield a callback (questions answered, system); it draws a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, name: bar.update(task, completed=done, description=name)
