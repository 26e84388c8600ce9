"""`eft chat`: the app on a terminal, or a conversation line by line, for pipes and screen readers."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from eft_local.cli import answers, failures, lines, output, record, screen, stdin
from eft_local.cli.interrupt import interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import (
    SAMPLING,
    STEERING,
    Command,
    Session,
    alpha_changes,
    example,
    only_option,
    recipe_option,
    system_option,
)
from eft_local.errors import ContextOverflowError, EftError, RecipeError, UsageError
from eft_local.prompts import Message, conversation

if TYPE_CHECKING:
    from eft_local.chats import Chat
    from eft_local.emulator import Emulator
    from eft_local.recipe import Recipe


@click.command(
    cls=Command,
    params=[*STEERING, *SAMPLING],
    epilog=example("eft chat", "printf 'Where is Lima?\\nAnd Quito?\\n' | eft chat --plain --temperature 0"),
)
@recipe_option
@only_option
@system_option
@click.option("--plain", is_flag=True, help="Line by line: for pipes and screen readers.")
@click.option("--continue", "-c", "resume", is_flag=True, help="Go on with the last chat, its recipe and settings.")
@click.option("--chat", "chat_id", metavar="ID", help="Go on with this one; 'eft history' lists them.")
@click.option(
    "--save/--no-save", default=None, help="Keep the chat in the history (default: unless it comes through a pipe)."
)
@click.pass_context
def chat(
    ctx: click.Context,
    only: str,
    system: str | None,
    plain: bool,
    resume: bool,
    chat_id: str | None,
    save: bool | None,
) -> int:
    """Chat with a recipe's models: in an app on a terminal, otherwise (or with --plain) one question per line.

    Line by line, answers go to stdout, everything else to stderr. A line that ends with a backslash goes on in the
    next one, and all lines between two \"\"\" are one question. Ctrl+C stops an answer and keeps the chat; at the
    prompt it leaves, as the end of the input does. /help lists the commands that a line may hold instead.
    """
    if screen.wanted(plain):
        return screen.open_app(ctx, only=only, system=system, chat=chat_id, resume=resume, save=save)
    if save is None:
        save = resume or chat_id is not None or sys.stdin.isatty()
    with (
        record.opened(save=save, chat=chat_id, resume=resume) as kept,
        loaded(_recipe(ctx, kept.chat), only) as emulator,
    ):
        return PlainChat(emulator, only, system, kept).run()


def _recipe(ctx: click.Context, chat: Chat | None) -> Recipe:
    """Return the recipe of a chat as it was left, unless another is named; options change either."""
    session = ctx.ensure_object(Session)
    if chat is None or ctx.get_parameter_source("recipe") is not ParameterSource.DEFAULT:
        return session.recipe()
    try:
        return chat.recipe.recipe().replace(**session.changes)
    except RecipeError as error:
        raise RecipeError(f"chat {chat.id}: {error}; name a recipe with --recipe") from None


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to leave the chat."""


class PlainChat:
    """One conversation: its turns, and what a line typed by the user does."""

    def __init__(self, emulator: Emulator, only: str, system: str | None, kept: record.Record) -> None:
        self.emulator = emulator
        self.recipe = emulator.recipe
        self.only = only
        self.system = system
        self.record = kept
        self.turns = kept.turns  # question and answer
        self.last_question: str | None = kept.last_question.text if kept.last_question else None
        if kept.chat and system is None:
            self.system = kept.chat.system_prompt
        elif kept.chat:
            kept.set_system_prompt(system)

    def run(self) -> int:
        """Read lines until the input ends. Return the exit code: in a pipe, that of the last error."""
        interactive = sys.stdin.isatty()
        code = 0
        if interactive:
            self.greet()
        while True:
            try:
                typed = lines.read_message(reader(interactive))
                if typed is None:
                    return code
                self.obey(typed)
            except Leave:
                return code
            except EftError as error:
                output.complain(failures.message(error))
                code = 0 if interactive else error.exit_code

    def greet(self) -> None:
        """Say which models answer, and what was said last in a chat that goes on."""
        output.note(f"recipe {self.emulator.recipe.name}. /help lists commands; Ctrl+D leaves.")
        if self.record.chat:
            output.note(f"chat {self.record.chat.id} goes on: {self.record.chat.title}")
        if self.turns:
            question, answer = self.turns[-1]
            output.note(f"> {question}\n{answer.rstrip()}")

    def obey(self, typed: lines.Message) -> None:
        """Do what was typed: a command, a question (which // begins where its first sign is a slash), or nothing."""
        text = typed.text
        if text.startswith("/") and not (typed.literal or text.startswith("//")):
            name = text[1:].split(maxsplit=1)[0] if text[1:2].strip() else ""
            self.command(name)(self, text[1 + len(name) :].strip())
        elif text:
            self.answer(text if typed.literal or not text.startswith("//") else text[1:])

    def command(self, name: str) -> Callable[[PlainChat, str], None]:
        """Return what a slash command does. Raises: UsageError for one that does not exist."""
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            raise UsageError(f"unknown command /{name}; {hint}")
        return COMMANDS[name].action

    def answer(self, question: str, *, again: bool = False) -> None:
        """Answer a question and keep it in the conversation, also what was written of a stopped answer.

        again: it is the last one, for another answer.
        """
        self.last_question = question
        printer = answers.Printer()
        recipe = self.recipe
        seed = secrets.randbits(32) if recipe.sampling.seed is None else recipe.sampling.seed
        try:
            with interruptible(self.emulator.cancel) as interrupt:
                stream = self.emulator.stream_chat(
                    self.messages(question), target=self.only, recipe=recipe, seed=seed, top=self.record.candidates
                )
                steps = self.record.saved(stream, record.Asked(question, recipe, self.system, self.only, seed, again))
                reason = answers.stream(steps, printer, interrupt, self.emulator.cancel)
        except ContextOverflowError as error:
            raise ContextOverflowError(f"{error}; /reset starts anew") from None
        finally:
            if printer.text.strip():
                self.turns.append((question, printer.text))
        answers.remark(printer.text, reason)
        if reason == "cancelled":
            output.note("(stopped)")
        elif reason == "context":
            context = self.emulator.recipe.context
            output.complain(f"the context of {context} tokens is full: the answer ends here; /reset starts anew")
        elif complaint := answers.json_cut_off(recipe, reason, printer.text):
            output.complain(complaint)

    def messages(self, question: str) -> tuple[Message, ...]:
        """Return the whole conversation with a new question at its end. Raises: PromptError."""
        turns = [
            {"role": role, "content": text}
            for turn in self.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return conversation([*turns, {"role": "user", "content": question}], self.system)

    def change(self, **changes: Any) -> None:
        """Change the recipe from the next answer on, and say how it stands."""
        self.recipe = self.recipe.replace(**changes)
        self.tell()

    def tell(self) -> None:
        """Say how the models are mixed."""
        output.note(steering(self.recipe))

    def retry(self) -> None:
        """Answer the last question again, in place of the answer it got."""
        if self.last_question is None:
            raise UsageError("/retry: there is no question yet")
        if self.turns and self.turns[-1][0] == self.last_question:
            self.turns.pop()
        self.answer(self.last_question, again=True)

    def set_system(self, text: str) -> None:
        """Set or remove the system prompt."""
        self.system = text or None
        self.record.set_system_prompt(self.system)
        output.note(f"system prompt: {text}" if text else "no system prompt")

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns.clear()
        self.last_question = None
        self.record.reset()
        output.note("a new conversation")


def steering(recipe: Recipe) -> str:
    """Return one line that says how a recipe mixes its models."""
    alphas = ", ".join(f"{name} alpha = {expert.alpha:g}" for name, expert in recipe.experts.items())
    return f"{alphas}, beta = {recipe.beta:g}"


class SlashCommand(NamedTuple):
    """A line of the table below: what follows the name, what it does in words, and the deed."""

    argument: str
    help: str
    action: Callable[[PlainChat, str], None]


def _number(argument: str, command: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise UsageError(f"/{command} {argument}: needs a number") from None


def _seed(chat: PlainChat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise UsageError(f"/seed {argument}: needs a whole number, or nothing for a new draw each time")
    chat.change(seed=int(argument) if argument else None)


def _help(_chat: PlainChat, _argument: str) -> None:
    for name, command in COMMANDS.items():
        output.note(f"/{name} {command.argument}".ljust(20) + command.help)
    output.note(r"\ at a line's end".ljust(20) + "go on in the next line")
    output.note(f"{lines.FENCE} … {lines.FENCE}".ljust(20) + "several lines as they are, as one question")
    output.note("//".ljust(20) + "a question that begins with a slash")


def _leave(_chat: PlainChat, _argument: str) -> None:
    raise Leave


COMMANDS = {
    "help": SlashCommand("", "list these commands", _help),
    "alpha": SlashCommand(
        "[NAME=]X",
        "strength of what tuning changed",
        lambda chat, x: chat.change(**{"alpha": alpha_changes((x,))} if x else {}),
    ),
    "beta": SlashCommand("X", "strength of what scale knows", lambda chat, x: chat.change(beta=_number(x, "beta"))),
    "system": SlashCommand("[TEXT]", "set the system prompt, or remove it", PlainChat.set_system),
    "seed": SlashCommand("[N]", "the same seed gives the same answer", _seed),
    "retry": SlashCommand("", "answer the last question again", lambda chat, _: chat.retry()),
    "reset": SlashCommand("", "forget the conversation", lambda chat, _: chat.reset()),
    "quit": SlashCommand("", "leave", _leave),
}


def reader(interactive: bool) -> Callable[[str], str | None]:
    """Return a function that returns the next line of stdin, None at its end; on a terminal after a prompt.

    The prompt never lands in a redirected stdout. It raises UsageError for a line that is not UTF-8.
    """

    def read(prompt: str) -> str | None:
        if interactive and sys.stdout.isatty():
            return _edited_line(prompt)
        if interactive:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.buffer.readline()
        return stdin.line(line) if line else None

    return read


def _edited_line(prompt: str) -> str | None:
    with contextlib.suppress(ImportError):
        import readline  # gives input() editing and recall

        if "libedit" not in (readline.__doc__ or ""):  # which cannot
            readline.parse_and_bind("set enable-bracketed-paste on")  # several pasted lines are one question
    try:
        return input(prompt)
    except UnicodeDecodeError as error:
        raise UsageError(f"this line is not UTF-8 text: {error.object!r}") from None
    except EOFError:
        output.note("")
        return None
