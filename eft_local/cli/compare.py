"""`eft compare`: what each target answers to one question, side by side."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from eft_local.analysis.format import outcome
from eft_local.cli import answers, output, progress
from eft_local.cli.failures import INTERRUPTED
from eft_local.cli.interrupt import Interrupt, interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import (
    SAMPLING,
    STEERING,
    Command,
    Session,
    example,
    json_option,
    question_text,
    recipe_option,
    system_option,
)
from eft_local.evals.run import check_targets, names
from eft_local.prompts.render import Message, conversation
from eft_local.recipe.names import COMPARED

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.engine.step import Answer

DEFAULT_TARGETS = ",".join(COMPARED)
DEFAULT_MAX_TOKENS = 200
NARROWEST_COLUMN = 24  # characters in which prose can still be read


@click.command(
    cls=Command,
    params=[*STEERING, *SAMPLING],
    epilog=example(
        'eft compare "What is the capital of Peru?"',
        'cat notes.txt | eft compare "Summarise"',
        'eft compare --targets base,expert,eft,base-tuned --json "What is the capital of Peru?"',
    ),
)
@click.argument("question", nargs=-1)
@recipe_option
@click.option(
    "--targets",
    "--systems",  # its name before 0.2
    "targets",
    metavar="NAMES",
    default=DEFAULT_TARGETS,
    show_default=True,
    help="Who answers, separated by commas: eft, base, antiexpert, expert, an expert's or a [compare] name.",
)
@system_option
@json_option
@click.pass_obj
def compare(session: Session, question: tuple[str, ...], targets: str, system: str | None, as_json: bool) -> int:
    """Show the answers of base, expert and mixture to one QUESTION, side by side.

    They answer one after the other, each up to 200 tokens unless the recipe or --max-tokens says otherwise:
    an untuned base seldom ends by itself. Text that is piped in is part of the QUESTION, as in 'eft ask'.
    """
    text = question_text(question)
    messages = conversation(text, system)
    recipe = session.recipe()
    if recipe.sampling.max_tokens is None:
        recipe = recipe.replace(max_tokens=DEFAULT_MAX_TOKENS)
    chosen = names(targets)
    from eft_local.engine.targets import targets_of

    check_targets(chosen, targets_of(recipe))
    with loaded(recipe, chosen) as emulator, interruptible(emulator.cancel) as interrupt:
        answered = dict(_answers(emulator, messages, chosen, interrupt))
    if as_json:
        output.write_json({"question": text, "targets": {name: answers.as_dict(a) for name, a in answered.items()}})
    else:
        output.write(_side_by_side(answered))
    for name, answer in answered.items():
        answers.remark(answer.text, answer.finish_reason, f"{name}: ")
    return INTERRUPTED if interrupt.requested else 0


def _answers(
    emulator: Emulator, messages: Sequence[Message], targets: Sequence[str], interrupt: Interrupt
) -> Iterator[tuple[str, Answer]]:
    """Yield each target's answer; Ctrl+C ends with the partial answer of the one that writes."""
    for name in targets:
        if interrupt.requested:
            return
        with progress.waiting(f"{name} answers"):
            yield name, emulator.chat(messages, target=name, on_step=answers.heed(interrupt, emulator.cancel))


def _side_by_side(answered: dict[str, Answer]) -> str:
    """Return the answers as columns of a table, or below one another where the terminal is too narrow."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    if width < NARROWEST_COLUMN * len(answered):
        tables = [{name: answer} for name, answer in answered.items()]
    else:
        tables = [answered]
    for columns in tables:
        table = Table(expand=True, show_lines=True)
        for name in columns:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*(Text(output.safe(answer.text.strip())) for answer in columns.values()))
        table.add_row(*(Text(_outcome(answer), style="dim") for answer in columns.values()))
        console.print(table)
    file: Any = console.file
    return str(file.getvalue())


def _outcome(answer: Answer) -> str:
    length, pace, *ending = outcome(answer)
    return f"{length}, {pace}\n{', '.join(ending)}"
