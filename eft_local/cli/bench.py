"""`eft bench`: what emulation costs on this machine, beside what its models cost alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from eft_local.cli import output, progress
from eft_local.cli.interrupt import interruptible
from eft_local.cli.options import Command, Session, example, json_option, recipe_option
from eft_local.cli.plot import check_plot
from eft_local.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from eft_local.bench.measure import Plan
    from eft_local.bench.results import Benchmark
    from eft_local.recipe import Recipe

DEFAULT_SHAPE = "7b"
AS_IS = "none"
MINUTES, FULL_MINUTES = 9.0, 30.0
MOST_DRAFTED = 16

Show = Callable[[str], None]


class Lengths(click.ParamType[tuple[int, ...]]):
    """Numbers of drafted tokens with commas between, or `none`."""

    name = "K,…|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if value == "none":
            return ()
        try:
            lengths = sorted({int(number) for number in value.split(",")})
        except ValueError:
            self.fail(f"{value!r} is not none or a list of whole numbers like 1,3,7.", param, ctx)
        if not 1 <= lengths[0] <= lengths[-1] <= MOST_DRAFTED:
            self.fail(f"{value!r} reaches beyond 1 … {MOST_DRAFTED}, what a draft can have.", param, ctx)
        return tuple(lengths)


@click.command(
    cls=Command,
    epilog=example(
        "eft bench",
        "eft bench --shape 1b --minutes 3 --plot speed.png",
        "eft bench --recipe my-recipe.toml --kind long --json",
    ),
)
@recipe_option
@click.option(
    "--shape",
    metavar="NAME",
    help="Scale the recipe's models to these sizes: 0.5b, 1b, 7b or 70b; none takes them as they are. "
    f"[default: {DEFAULT_SHAPE} without --recipe, none with it]",
)
@click.option("--quantization", metavar="TYPE", default="Q4_0", show_default=True, help="Of scaled models.")
@click.option("--kind", type=click.Choice(["long", "short"]), help="Only answers of this kind. [default: both]")
@click.option("--draft-source", metavar="NAME", help="Who drafts. [default: the recipe's]")
@click.option(
    "--lengths",
    type=Lengths(),
    help="Fixed draft lengths to measure beside auto; none for auto alone. [default: 1,3,7,15]",
)
@click.option("--full", is_flag=True, help="Every draft length from 0 to 16, and more time for it.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N questions of each kind.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M",
    help=f"How long it may take. [default: {MINUTES:g}, with --full {FULL_MINUTES:g}]",
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the speeds.")
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    shape: str | None,
    quantization: str,
    kind: str | None,
    draft_source: str | None,
    lengths: tuple[int, ...] | None,
    full: bool,
    limit: int | None,
    minutes: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure on this machine, in one interleaved run: each role in llama.cpp alone, plain emulation, emulation
    with drafts of fixed and of chosen lengths, answers side by side, and the reading of prompts.

    The models of the demo are scaled to real sizes: they write what they write, at a real model's cost. Questions
    are the demo's held-out ones, answered greedily, as many as fit into the time. With --json, plain_over_roles is
    a ratio of times; speculative_over_plain, speculative_over_base, auto_over_best_fixed, batch8_over_1 and
    prompt_over_llama are ratios of speeds; overhead_ms is the time of a plain token outside llama.cpp. They are
    medians over the long answers; "short" holds those of the short ones, "spread" the quartiles.
    """
    started = time.perf_counter()
    if full and lengths is not None:
        raise UsageError("--full measures every length; leave out --lengths, or --full")
    if plot:
        output.check_writable(plot)
        check_plot(plot)
    session = ctx.ensure_object(Session)
    if shape is None and ctx.get_parameter_source("recipe") is ParameterSource.DEFAULT:
        shape = DEFAULT_SHAPE
    shape = None if shape == AS_IS else shape
    changes = {"temperature": 0.0} | ({"draft_source": draft_source} if draft_source else {})
    recipe = session.recipe().replace(**changes)
    # Only now: help needs no engine.
    from eft_local.bench import report
    from eft_local.bench.machine import check_memory, machine
    from eft_local.bench.measure import ALL_LENGTHS, KINDS, LENGTHS, Plan

    about = {
        "command": _command(ctx, session),
        "recipe": recipe.name,
        "shape": shape,
        "quantization": quantization if shape else None,
        "alpha": recipe.alphas,
        "beta": recipe.beta,
        "draft_source": recipe.draft_source,
        "machine": machine(recipe),
    }
    seconds = 60 * (minutes or (FULL_MINUTES if full else MINUTES))
    with _progress(seconds) as show:
        if shape:
            check_memory(recipe, shape, quantization)
            recipe = _scaled(recipe, shape, quantization, show)
        plan = Plan(
            kinds=(kind,) if kind else KINDS,
            lengths=ALL_LENGTHS if full else LENGTHS if lengths is None else lengths,
            seconds=seconds - (time.perf_counter() - started),
            limit=limit,
        )
        result, stopped = _measured(recipe, plan, about, show, started)
    if as_json:
        output.write_json(report.as_dict(result))
    else:
        output.write(report.text(result))
    output.flush()
    if plot:
        from eft_local.bench.figure import draw, picture

        output.save(plot, picture(draw(result), plot))
    if stopped:
        raise Cancelled("stopped: fewer questions than requested were measured")


def _command(ctx: click.Context, session: Session) -> str:
    """Return the command line that was given."""
    words = ctx.command_path.split()
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = session.recipe_name if name == "recipe" else ctx.params.get(name)
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], _word(value)]
    return shlex.join(words)


def _word(value: object) -> str:
    """Return an option's value as it is given: `Lengths` are read from words and kept as numbers."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _scaled(recipe: Recipe, shape: str, quantization: str, show: Show) -> Recipe:
    """Return the recipe on models of a shape; they are built when they are not in the cache folder yet."""
    from eft_local.bench.shapes import scaled_recipe

    show(f"building models of shape {shape}")
    return scaled_recipe(recipe, shape, quantization=quantization)


def _measured(recipe: Recipe, plan: Plan, about: dict[str, Any], show: Show, started: float) -> tuple[Benchmark, bool]:
    """Load the models and measure; return the result, and whether Ctrl+C cut it short.

    Raises: Cancelled if it did so before there was a sample for every figure.
    """
    from eft_local.bench.measure import Measurement
    from eft_local.engine.loading import Library, mixed_roles
    from eft_local.evals.questions import read_questions
    from eft_local.hub.references import demo_questions

    with ExitStack() as cleanup:
        library = Library()
        cleanup.callback(library.close)
        show("loading models")
        with interruptible() as interrupt:
            roles = library.load(recipe, mixed_roles(recipe), lambda role, fraction: not interrupt.requested)
        measurement = cleanup.enter_context(Measurement(recipe, roles, read_questions(demo_questions()), plan))
        stopped = True
        with interruptible(measurement.cancel) as second, suppress(Cancelled):
            if not interrupt.requested:
                measurement.run(show)
                stopped = second.requested
        if not measurement.is_complete:
            if stopped:
                raise Cancelled("stopped before there was a result")
            raise UsageError("every answer ended with its first token: there is nothing to measure")
        about = about | {"exact": {name: str(role.exactness) for name, role in roles.items()}}
        return measurement.result(about, time.perf_counter() - started), stopped


@contextmanager
def _progress(seconds: float) -> Iterator[Show]:
    """Yield a callback that says what is being done; it draws a bar of the time on stderr if that is a terminal."""
    started = time.perf_counter()
    with progress.bar("time", seconds) as show:
        yield lambda text: show(time.perf_counter() - started, text)
