"""`eft ask`: one answer on stdout."""

from __future__ import annotations

import click

from eft_local.cli import answers, output
from eft_local.cli.failures import INTERRUPTED
from eft_local.cli.interrupt import interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import (
    SAMPLING,
    STEERING,
    Command,
    Session,
    example,
    json_option,
    only_option,
    question_text,
    recipe_option,
    system_option,
)
from eft_local.prompts import conversation


@click.command(
    cls=Command,
    params=[*STEERING, *SAMPLING],
    epilog=example(
        'eft ask "What is the capital of Peru?"',
        'echo "Tell me about Peru" | eft ask --alpha 0.8 --temperature 0 --json',
    ),
)
@click.argument("question", nargs=-1)
@recipe_option
@only_option
@system_option
@json_option
@click.pass_obj
def ask(session: Session, question: tuple[str, ...], only: str, system: str | None, as_json: bool) -> int:
    """Answer one QUESTION on stdout, and write nothing else there.

    Without a QUESTION, or with "-", the question is read from stdin. Ctrl+C ends the answer and keeps what is
    written.
    """
    messages = conversation(question_text(question), system)
    recipe = session.recipe()
    with loaded(recipe) as emulator, interruptible(emulator.cancel) as interrupt:
        if as_json:
            answer = emulator.chat(messages, only=only, on_step=answers.heed(interrupt, emulator.cancel))
            output.write_json(answers.as_dict(answer))
            reason: str = answer.finish_reason
        else:
            steps = emulator.stream(messages, only=only, facts=False)
            reason = answers.stream(steps, answers.Printer(), interrupt, emulator.cancel)
    if reason == "context":
        output.complain(answers.context_full(recipe.context))
    return INTERRUPTED if reason == "cancelled" else 0
