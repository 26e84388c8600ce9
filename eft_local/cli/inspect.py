"""`eft inspect`: who decided each token of an answer."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from eft_local.cli import answers, output
from eft_local.cli.failures import INTERRUPTED
from eft_local.cli.interrupt import interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import (
    SAMPLING,
    STEERING,
    Command,
    Option,
    Session,
    example,
    json_option,
    only_option,
    question_text,
    recipe_option,
    system_option,
)
from eft_local.errors import UsageError

if TYPE_CHECKING:
    from eft_local.chats import History, Message
    from eft_local.cli.inspected import Inspected
    from eft_local.engine.step import Step

TABLES = 3

JSON_KEYS = """
\b
JSON of one answer (ranks count from 0; logarithms are natural, null is −∞):
  question, text, tokens, finish_reason; recipe, alpha, beta, target, seed, and
  the filters that are on; of a saved answer chat, message
  summary     tokens, changed, share, mean_change, changed_at (indices of steps)
  steps       token, text, logprob, drafted, change, top_changed, finish_reason,
              roles, candidates
  roles       by name, and "eft" for the mixture: rank, logprob
  candidates  token, text, ends, roles, behaviour, scale
JSON of --questions:
  questions, split, kind, decoding; recipe, alpha, beta, and the filters; answers,
  tokens, changed, share, interval95, mean_change; end_tokens: tokens, changed
  positions   position, answers, changed, share, interval95, mean_change
"""


@click.command(
    cls=Command,
    params=[*STEERING, *SAMPLING],
    epilog=example(
        'eft inspect "What is the capital of Peru?"',
        'eft inspect --html peru.html --alpha 0.8 "Tell me about Peru"',
        "eft inspect --chat k3f --token 2",
        "eft inspect --questions demo --kind long --plot changed.png",
    )
    + JSON_KEYS,
)
@click.argument("question", nargs=-1)
@recipe_option
@only_option
@system_option
@click.option("--token", "numbers", type=click.IntRange(1), multiple=True, metavar="N", help="Show token N's table.")
@click.option(
    "--most",
    type=click.IntRange(0),
    metavar="K",
    help=f"Show the tables of the K most changed tokens. [default: {TABLES}, with --token 0]",
)
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help='Write a page with all tables; "-": stdout.'
)
@click.option("--chat", metavar="ID", help="Inspect an answer of a saved chat: the last one shown.")
@click.option("--message", type=click.IntRange(1, 2**63 - 1), metavar="N", help="Another answer of the --chat.")
@click.option(
    "--questions",
    cls=Option,
    section="Many answers",
    metavar="FILE",
    help='Answer these questions, and count changes by position; "demo": the demo\'s own.',
)
@click.option(
    "--split", cls=Option, section="Many answers", help='Which questions; "all" for both. [default: held-out]'
)
@click.option("--kind", cls=Option, section="Many answers", help='"short", "long" or "all". [default: all]')
@click.option(
    "--limit",
    cls=Option,
    section="Many answers",
    type=click.IntRange(min=1),
    metavar="N",
    help="N questions, spread evenly.",
)
@click.option(
    "--plot",
    cls=Option,
    section="Many answers",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw the share of changed first choices over the position.",
)
@json_option
@click.pass_context
def inspect(
    ctx: click.Context,
    question: tuple[str, ...],
    only: str,
    system: str | None,
    numbers: tuple[int, ...],
    most: int | None,
    html: Path | None,
    chat: str | None,
    message: int | None,
    questions: str | None,
    split: str | None,
    kind: str | None,
    limit: int | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Answer one QUESTION, and show who decided each token.

    Tokens are tinted by how far the experts moved the base's distribution there, and underlined where its first
    choice changed. The tables show what base, antiexpert, experts and mixture think of each candidate, and what
    behaviour and scale added to the antiexpert's log-probability. Text that is piped in is part of the QUESTION, as
    in 'eft ask'; --chat takes an answer that is saved, --questions many.
    """
    session = ctx.ensure_object(Session)
    _check(ctx)
    if questions is not None:
        from eft_local.cli import positions

        return positions.run(session, questions, split, kind, limit, system, plot, as_json=as_json)
    from eft_local.cli import inspected

    to_stdout = html == Path("-")
    if to_stdout and as_json:
        raise UsageError("--html - and --json would both go to stdout; give --html a file")
    if html and not to_stdout:
        output.check_writable(html)
    shown = not (as_json or to_stdout)
    if chat is not None:
        found, code = _stored(chat, message), 0
        if shown:
            inspected.write_answer(found.inspection)
    else:
        found, code = _written(session, question_text(question), only, system, live=shown)
    if as_json:
        output.write_json(found.as_dict())
    if shown:
        inspected.write_statistics(found.inspection, numbers, most if most is not None else 0 if numbers else TABLES)
    if html:
        page = found.page().encode()
        if to_stdout:
            output.write(page.decode())
        else:
            output.save(html, page)
    return code


_OF_ONE_ANSWER = {"numbers", "most", "html"}
_OF_A_SAVED_ONE = {"chat", "message"}
_OF_MANY = {"questions", "split", "kind", "limit", "plot"}
_OF_A_NEW_ONE = {"question", "only", "system", "recipe", *(str(option.name) for option in (*STEERING, *SAMPLING))}
_SPELT = {"numbers": "--token", "question": "a QUESTION"}


def _check(ctx: click.Context) -> None:
    """Refuse options that do not go together, whichever of the three ways to inspect is meant. Raises: UsageError."""
    given = {
        name
        for name in (str(parameter.name) for parameter in ctx.command.params)
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }

    def refuse(names: set[str], why: str) -> None:
        for name in sorted(names & given):
            raise UsageError(f"{_SPELT.get(name, '--' + name.replace('_', '-'))} {why}")

    if "questions" in given:
        refuse({"question", "only", *_OF_ONE_ANSWER, *_OF_A_SAVED_ONE}, "does not go with --questions")
        return
    refuse(_OF_MANY, "goes with --questions")
    if "chat" in given:
        refuse(_OF_A_NEW_ONE, "does not go with --chat: what is saved is shown as it was written")
    else:
        refuse(_OF_A_SAVED_ONE, "goes with --chat")


def _written(session: Session, question: str, only: str, system: str | None, *, live: bool) -> tuple[Inspected, int]:
    """Answer a question, on the terminal while it is written if `live`; return the statistics and the exit code."""
    from eft_local.analysis import CANDIDATES, Inspection
    from eft_local.cli.inspected import Inspected, Printer, recipe_entry
    from eft_local.prompts.render import conversation

    messages = conversation(question, system)
    recipe = session.recipe()
    seed = recipe.sampling.seed if recipe.sampling.seed is not None else secrets.randbits(32)
    printer = Printer() if live else None
    steps: list[Step] = []
    with loaded(recipe, only) as emulator, interruptible(emulator.cancel) as interrupt:
        stop_if_requested = answers.heed(interrupt, emulator.cancel)
        stream = emulator.stream_chat(messages, target=only, seed=seed, top=CANDIDATES)
        with closing(cast("Generator[Step]", stream)):
            for step in stream:
                steps.append(step)
                if printer:
                    printer.write(step)
                stop_if_requested(step)
    if printer:
        printer.end()
    reason = str(steps[-1].finish_reason)
    answers.remark("".join(step.text for step in steps), reason)
    if reason == "context":
        output.complain(answers.context_full(recipe.context))
    about: Mapping[str, Any] = {**recipe_entry(recipe), "target": only, "seed": seed}
    return Inspected(question, Inspection(tuple(steps)), about), INTERRUPTED if reason == "cancelled" else 0


def _stored(chat: str, message: int | None) -> Inspected:
    """Return a saved answer's statistics. Raises: UsageError if there is none, HistoryError."""
    from eft_local.analysis import Inspection
    from eft_local.chats import History
    from eft_local.cli.inspected import Inspected, recipe_entry
    from eft_local.errors import RecipeError

    with History() as history:
        answer = _answer(history, chat, message)
        statistics = history.statistics(answer.id)
        question = history.message(answer.parent).text if answer.parent is not None else ""
    written = answer.answer
    if statistics is None or written is None:
        raise UsageError(
            f"message {answer.id} of chat {answer.chat} was written without statistics; nothing to inspect"
        )
    try:
        about = recipe_entry(written.recipe.recipe())
    except RecipeError:  # of another version, which named it otherwise
        about = {"recipe": written.recipe.name}
    stored = {"target": written.written_by, "seed": written.seed, "chat": answer.chat, "message": answer.id}
    return Inspected(question, Inspection.loads(statistics), about | stored)


def _answer(history: History, chat: str, message: int | None) -> Message:
    """Return an answer of a chat: this one, or the last that is shown."""
    found = history.chat(chat)
    if message is None:
        shown = [each for each in history.shown(found.id) if each.role == "assistant"]
        if not shown:
            raise UsageError(f"chat {found.id} has no answer yet")
        return next((each for each in reversed(shown) if each.answer and each.answer.has_statistics), shown[-1])
    answer = history.message(message)
    if answer.chat != found.id:
        raise UsageError(f"message {message} is not in chat {found.id} but in {answer.chat}")
    if answer.role != "assistant":
        raise UsageError(f"message {message} is a question; 'eft history show {found.id}' lists the answers")
    return answer
