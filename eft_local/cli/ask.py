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
from eft_local.prompts.render import conversation


@click.command(
    cls=Command,
    params=[*STEERING, *SAMPLING],
    epilog=example(
        'eft ask "What is the capital of Peru?"',
        'cat notes.txt | eft ask "Summarise"',
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

    Piped text goes before the QUESTION; a "-" among the words marks another place, and waits for the text as long as
    needed. Without a QUESTION, the text is the question. Ctrl+C ends the answer and keeps what is written so far.
    """
    messages = conversation(question_text(question), system)
    recipe = session.recipe()
    with loaded(recipe, only) as emulator, interruptible(emulator.cancel) as interrupt:
        if as_json:
            answer = emulator.chat(messages, target=only, on_step=answers.heed(interrupt, emulator.cancel))
            output.write_json(answers.as_dict(answer))
            text, reason = answer.text, str(answer.finish_reason)
        else:
            steps, printer = emulator.stream_chat(messages, target=only), answers.Printer()
            reason = answers.stream(steps, printer, interrupt, emulator.cancel)
            text = printer.text
    answers.remark(text, reason)
    if reason == "context":
        output.complain(answers.context_full(recipe.context))
    elif complaint := answers.json_cut_off(recipe, reason, text):
        output.complain(complaint)
    return INTERRUPTED if reason == "cancelled" else 0
