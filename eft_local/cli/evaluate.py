"""`eft eval`: targets over a question file, benchmarks or prompts for a judge, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from eft_local.cli import benchmarks, output, progress, reports
from eft_local.cli.benchmarks import Benchmarking, benchmark_options
from eft_local.cli.interrupt import Interrupt, interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import Command, Option, Session, context_option, example, json_option, recipe_option
from eft_local.cli.plot import check_plot, save_plot
from eft_local.errors import Cancelled, UsageError
from eft_local.evals import run as evaluation
from eft_local.evals.questions import Questions, read_questions
from eft_local.evals.run import Report, Target
from eft_local.hub.references import demo_questions
from eft_local.recipe.names import COMPARED

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.evals.endpoint import Address
    from eft_local.recipe import Recipe

MAX_TOKENS = {"short": 48, "long": 256}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _alphas(text: str) -> list[float] | list[dict[str, float]]:
    name, equals, values = text.rpartition("=")
    return [{name: value} for value in _numbers(values)] if equals else _numbers(values)


def _sweep(name: str, read: Callable[[str], Any], **settings: Any) -> Callable[[Any], Any]:
    """Return an option whose text `read` turns into a list; ValueError is a wrong text."""

    def values(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return [] if text is None else read(text)
        except ValueError:
            kind = "whole numbers" if read is _whole_numbers else "numbers"
            raise UsageError(f"{name} {text}: needs {kind} separated by commas") from None

    return click.option(name, cls=Option, section="Sweeps", metavar="LIST", callback=values, **settings)


@click.command(
    cls=Command,
    epilog=example(
        "eft eval",
        "eft eval my-questions.jsonl --targets base,eft --alpha 0,0.5,1,1.5 --plot alpha.png",
        "eft eval --recipe demo-two --targets eft --mix 0,0.25,0.5,0.75,1 --json",
        "eft eval --tasks eft_gsm8k,eft_truthfulqa_mc --recipe llama2-laptop --limit 100 --output results",
    ),
)
@click.argument("questions", required=False, type=click.Path(path_type=Path))
@recipe_option
@click.option(
    "--targets",
    "--systems",  # its name before 0.2
    "targets",
    metavar="NAMES",
    help="What to run, separated by commas: eft, base, antiexpert, expert, an expert's or a [compare] name; with "
    "--tasks and --judge also MODEL=URL, an endpoint. [default: base,expert,eft and all of [compare]]",
)
@_sweep("--alpha", _alphas, help="Values of α for eft: 0,0.5,1 or, for one of several experts, NAME=0,0.5,1.")
@_sweep("--beta", _numbers, help="Values of β for eft.")
@_sweep("--mix", _numbers, help="Values of λ for two experts: α = (1−λ, λ).")
@_sweep("--steer-first", _whole_numbers, help="Also run the mixture for so many tokens only, then the base alone.")
@click.option("--split", default="held-out", show_default=True, help='Which questions; "all" for both halves.')
@click.option("--kind", default="short", show_default=True, help='"short", "long" or "all".')
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="N questions, spread evenly; with --tasks and --judge the first N of each file.",
)
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
@click.option(
    "--judge",
    metavar="RECIPE[:TARGET]|[MODEL=]URL",
    help="Let a model judge the targets' answers to the prompts of a file: helpfulness, factual errors, harmlessness, "
    "in pairs with the first target, in both orders, and by counts. An endpoint's key is in EFT_API_KEY.",
)
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="With --tasks and --judge: keep answers as they come, so that the same command continues a run that was "
    "stopped; write lm-eval's own files, or every verdict.",
)
@context_option
@benchmark_options
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    questions: Path | None,
    targets: str | None,
    alpha: list[float | dict[str, float]],
    beta: list[float],
    mix: list[float],
    steer_first: list[int],
    split: str,
    kind: str,
    limit: int | None,
    parallel: int,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    plot: Path | None,
    answers_file: Path | None,
    judge: str | None,
    folder: Path | None,
    as_json: bool,
    benchmarking: Benchmarking,
) -> None:
    """Run targets over a question file; print what they get right, with 95 % Wilson intervals.

    QUESTIONS has one JSON object a line: {"question": "…", "answer": "…"}, or a list of answers that are all right;
    or it is a CSV file with columns of these names. Without it, the held-out questions of the demo. How answers are
    judged is printed: by the words of the answer in the first line, unless the file's own first line says otherwise.
    Decoding is greedy whatever the recipe says. "correct", "form" and "both" are shares of the questions that are not
    sensitive, "declined" of the sensitive ones.

    With --tasks: benchmarks, with the papers' prompts or lm-eval's; figures of all targets side by side with their
    standard errors, and the share of the gap between base and tuned model that each mixture closes.

    With --judge: QUESTIONS holds prompts, one "prompt" a line, and a model judges what the targets answer.
    """
    session = ctx.ensure_object(Session)
    _check_mode(ctx, benchmarking.tasks, judge)
    recipe = session.recipe().replace(temperature=temperature, seed=seed)
    named = evaluation.names(targets) if targets is not None else (*COMPARED, *recipe.compare)
    local, addresses = split_endpoints(named) if benchmarking.tasks or judge else (named, [])
    recipe, planned = _planned(recipe, local, alpha, beta, mix, steer_first)
    if judge:
        from eft_local.cli import judged

        judged.run(
            judge, questions or demo_questions(), recipe, planned, addresses, limit=limit, parallel=parallel,
            max_tokens=max_tokens or MAX_TOKENS["long"], folder=folder, as_json=as_json,
        )  # fmt: skip
    elif benchmarking.tasks:
        benchmarks.run(
            benchmarking, recipe, planned, addresses, limit=limit, parallel=parallel, seed=seed, folder=folder,
            as_json=as_json,
        )  # fmt: skip
    else:
        file = read_questions(questions or demo_questions())
        chosen = file.select(split=None if split == "all" else split, kind=None if kind == "all" else kind, limit=limit)
        tokens = max_tokens or MAX_TOKENS.get(kind, MAX_TOKENS["long"])
        _run_questions(recipe, planned, chosen, tokens, parallel, plot, answers_file, as_json)


def _run_questions(
    recipe: Recipe,
    planned: Sequence[Target],
    chosen: Questions,
    max_tokens: int,
    parallel: int,
    plot: Path | None,
    answers_file: Path | None,
    as_json: bool,
) -> None:
    """Run targets over questions and write what they got right. Raises: Cancelled if not all are complete."""
    for path in (plot, answers_file):
        if path:
            output.check_writable(path)
    if plot:
        check_plot(plot)
    wanted = tuple(dict.fromkeys(target.target for target in planned))
    with loaded(recipe, wanted) as emulator, interruptible(emulator.cancel) as interrupt:
        finished = _run(emulator, chosen, planned, max_tokens, parallel, interrupt)
    if as_json:
        output.write_json(reports.as_dict(recipe, chosen, finished))
    else:
        output.write(reports.tables(recipe, chosen, finished))
    output.flush()
    if answers_file:
        output.save(answers_file, reports.answer_lines(finished).encode())
    if plot and finished:
        save_plot(finished, plot, f"{recipe.name}: {len(chosen.items)} questions")
    if len(finished) < len(planned):
        raise Cancelled(f"stopped: {len(finished)} of {len(planned)} targets are complete")


def _check_mode(ctx: click.Context, tasks: Sequence[str], judge: str | None) -> None:
    """Refuse options that mean nothing in a mode: questions, --tasks or --judge."""
    if tasks and judge:
        raise UsageError("--tasks and --judge are two evaluations; give one of them")
    given = {
        parameter.name: parameter.opts[0]
        for parameter in ctx.command.params
        if ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    }
    mode, refused = "without --tasks", (*_TASKS_ONLY, *(() if judge else ("folder",)))
    if tasks:
        mode, refused = "with --tasks", (*_QUESTIONS_ONLY, "questions", "max_tokens", "temperature")
    elif judge:
        mode, refused = "with --judge", (*_QUESTIONS_ONLY, *_TASKS_ONLY)
    wrong = [option for name, option in given.items() if name in refused]
    if wrong:
        raise UsageError(f"{wrong[0]} means nothing {mode}; leave it out")


_QUESTIONS_ONLY = ("steer_first", "split", "kind", "plot", "answers_file")
_TASKS_ONLY = ("data", "fewshot", "chat_template", "draws", "execute_code", "samples", "tuned")


def split_endpoints(names: Sequence[str]) -> tuple[list[str], list[Address]]:
    """Return the names of targets, and the endpoints among them. Raises: UsageError."""
    from eft_local.evals.endpoint import Address

    found = {name: Address.parse(name) for name in names}
    return [name for name, address in found.items() if address is None], [each for each in found.values() if each]


def _planned(
    recipe: Recipe,
    names: Sequence[str],
    alphas: Sequence[float | dict[str, float]],
    betas: Sequence[float],
    mixes: Sequence[float],
    steer_first: Sequence[int],
) -> tuple[Recipe, tuple[Target, ...]]:
    """Return the recipe and the targets to run. Raises: UsageError, RecipeError."""
    from eft_local.engine.targets import targets_of

    recipe, planned = evaluation.plan(recipe, names, alphas=alphas, betas=betas, mixes=mixes, steer_first=steer_first)
    evaluation.check_targets([target.target for target in planned], targets_of(recipe))
    return recipe, planned


def _run(
    emulator: Emulator,
    questions: Questions,
    targets: Sequence[Target],
    max_tokens: int,
    parallel: int,
    interrupt: Interrupt,
) -> list[Report]:
    """Return the reports of the targets that were completed: all of them unless Ctrl+C was pressed."""
    finished: list[Report] = []
    with progress.bar("count", len(targets) * len(questions.items)) as show:

        def report(done: int) -> None:
            show(len(finished) * len(questions.items) + done, targets[len(finished)].name)
            if interrupt.requested:  # again: a request between two runs found nothing to stop
                emulator.cancel()

        with suppress(Cancelled):
            for target in targets:
                if interrupt.requested:
                    break
                finished.append(
                    evaluation.run(
                        emulator, questions, target, max_tokens=max_tokens, parallel=parallel, progress=report
                    )
                )
    return finished
