"""`eft eval --tasks`: lm-eval's tasks and the papers' on several targets, side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eft_local.cli import output, progress, reports
from eft_local.cli.interrupt import interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import Option
from eft_local.errors import Cancelled, UsageError
from eft_local.evals.run import Target

if TYPE_CHECKING:
    from eft_local.evals.answering import Answering
    from eft_local.evals.benchmarks import Benchmarks, Result
    from eft_local.evals.endpoint import Address
    from eft_local.evals.kept import Kept
    from eft_local.recipe import Recipe

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Benchmarking:
    """What the options under "Benchmarks" say."""

    tasks: tuple[str, ...]
    data: tuple[str, ...]
    fewshot: int | None
    chat_template: bool
    draws: int | None
    execute_code: bool
    samples: int
    tuned: str | None


def benchmark_options(command: Decorated) -> Callable[..., Any]:
    """Add the options under "Benchmarks"; the command gets them as `benchmarking`."""

    @functools.wraps(command)
    def gathered(
        *arguments: Any,
        tasks: str | None,
        data: tuple[str, ...],
        fewshot: int | None,
        chat_template: bool,
        draws: int | None,
        execute_code: bool,
        samples: int,
        tuned: str | None,
        **others: Any,
    ) -> Any:
        named = tuple(dict.fromkeys(name.strip() for name in (tasks or "").split(",") if name.strip()))
        if tasks is not None and not named:
            raise UsageError(f"--tasks {tasks!r}: names no task, as in eft_gsm8k,eft_truthfulqa_mc")
        benchmarking = Benchmarking(named, data, fewshot, chat_template, draws, execute_code, samples, tuned)
        return command(*arguments, benchmarking=benchmarking, **others)

    decorated: Callable[..., Any] = gathered
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=Option, section="Benchmarks", **settings)


_OPTIONS = (
    _option(
        "--tasks",
        metavar="NAMES",
        help="Run these tasks instead of a question file: the papers' eft_gsm8k, eft_truthfulqa_mc, "
        "eft_truthfulqa_mc1, eft_truthfulqa, eft_toxigen, eft_humaneval, eft_alpaca_farm, and all of lm-eval's.",
    ),
    _option(
        "--data",
        multiple=True,
        metavar="[TASK=]FILE",
        help="Items of one of the papers' tasks, in the form in which they are published; otherwise from the hub.",
    ),
    _option("--fewshot", type=click.IntRange(min=0), metavar="N", help="Examples before each item of lm-eval's tasks."),
    _option(
        "--chat-template",
        is_flag=True,
        help="Give lm-eval's tasks to each role in its own template or frame; the papers' have prompts of their own.",
    ),
    _option("--draws", type=click.IntRange(min=1), metavar="N", help="Answers per problem of eft_humaneval. [20]"),
    _option("--execute-code", is_flag=True, help="Run the code that models write, in a child with little rights."),
    _option("--samples", type=click.IntRange(min=0), metavar="N", default=0, help="Show N items with their answers."),
    _option(
        "--tuned", metavar="NAME", help="The target that is the large model tuned directly. [the only one of [compare]]"
    ),
)


def run(
    benchmarking: Benchmarking,
    recipe: Recipe,
    planned: Sequence[Target],
    addresses: Sequence[Address],
    *,
    limit: int | None,
    parallel: int,
    seed: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Run the tasks on all targets and write what came of them. Raises: Cancelled if not all are complete."""
    from eft_local.cli import benchmark_reports
    from eft_local.evals.benchmarks import Benchmarks, Options
    from eft_local.evals.kept import Kept

    options = Options(
        tasks=benchmarking.tasks,
        data=_files(benchmarking),
        limit=limit,
        fewshot=benchmarking.fewshot,
        chat=benchmarking.chat_template,
        seed=seed or 0,
        draws=benchmarking.draws,
        execute=benchmarking.execute_code,
    )
    tuned = _tuned(benchmarking.tuned, recipe, planned)
    with progress.waiting("reading the tasks"):
        benchmarks = Benchmarks(options)
    with Kept(folder / "answers.jsonl" if folder else None) as kept, ExitStack() as opened:
        if len(kept):
            output.note(f"{folder}: {len(kept)} answers are kept from before and are not written again")
        models, stop = answering(recipe, planned, addresses, parallel, opened)
        results = _results(benchmarks, models, stop, kept)
    conditions = {**reports.conditions(recipe), "decoding": "as each task says", "limit": limit, "seed": options.seed}
    if folder:
        benchmark_reports.save(folder, results)
    if as_json:
        output.write_json(benchmark_reports.as_dict(conditions, results, tuned))
    elif results:
        output.write(benchmark_reports.tables(conditions, results, tuned))
        output.write(benchmark_reports.samples(results, benchmarking.samples))
    output.flush()
    if len(results) < len(models):
        again = "; the same command continues" if folder else "; with --output the answers are kept"
        raise Cancelled(f"stopped: {len(results)} of {len(models)} targets are complete{again}")


def _results(benchmarks: Benchmarks, models: Sequence[Answering], stop: Callable[[], None], kept: Kept) -> list[Result]:
    """Run the tasks on one model after the other; Ctrl+C leaves it at those that are complete."""
    results: list[Result] = []
    with interruptible(stop) as interrupt, progress.bar("share", len(models)) as show, suppress(Cancelled):
        for model in models:
            if interrupt.requested:
                break

            def report(done: int, wanted: int, name: str = model.name) -> None:
                show(len(results) + done / max(1, wanted), f"{name}: {done} of {wanted}")
                if interrupt.requested:  # again: a request between two runs found nothing to stop
                    stop()

            results.append(benchmarks.run(model, kept, report))
    return results


def answering(
    recipe: Recipe, planned: Sequence[Target], addresses: Sequence[Address], parallel: int, opened: ExitStack
) -> tuple[list[Answering], Callable[[], None]]:
    """Return all who answer, targets of a loaded recipe and endpoints, and what stops them. opened: what is closed."""
    from eft_local.evals.answering import LocalTarget
    from eft_local.evals.endpoint import Endpoint, RemoteTarget

    models: list[Answering] = []
    endpoints = [Endpoint(address, parallel=parallel) for address in addresses]
    cancels = [endpoint.cancel for endpoint in endpoints]
    remote = [RemoteTarget(endpoint) for endpoint in endpoints]  # connected first: loading takes longer
    if planned:
        emulator = opened.enter_context(loaded(recipe, tuple(dict.fromkeys(target.target for target in planned))))
        models += [LocalTarget(emulator, target, parallel) for target in planned]
        cancels.append(emulator.cancel)
    models += remote
    names = [model.name for model in models]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"two targets are called {twice[0]}; evaluate them one after the other")

    def stop() -> None:
        for cancel in cancels:
            cancel()

    return models, stop


def _files(benchmarking: Benchmarking) -> dict[str, Path]:
    """Return the files that were given, by task. Raises: UsageError."""
    from eft_local.evals.benchmarks import TASKS

    own = [task for task in benchmarking.tasks if task in TASKS]
    files: dict[str, Path] = {}
    for text in benchmarking.data:
        task, equals, file = text.partition("=")
        if not equals or task not in TASKS:
            if len(own) != 1:
                raise UsageError(f"--data {text}: for which task? Give TASK=FILE, TASK being one of {', '.join(TASKS)}")
            task, file = own[0], text
        if not Path(file).is_file():
            raise UsageError(f"--data {text}: there is no file {file}")
        files[task] = Path(file)
    unused = [task for task in files if task not in own]
    if unused:
        raise UsageError(f"--data for {unused[0]}, which is not among --tasks {','.join(benchmarking.tasks)}")
    return files


def _tuned(name: str | None, recipe: Recipe, planned: Sequence[Target]) -> str | None:
    """Return the target that is the directly tuned large model, None if there is none. Raises: UsageError."""
    run = [target.name for target in planned]
    if name is not None:
        if name not in run:
            raise UsageError(f"--tuned {name}: is not among the targets {', '.join(run)}")
        return name
    compared = [each for each in run if each in recipe.compare]
    return compared[0] if len(compared) == 1 else None
