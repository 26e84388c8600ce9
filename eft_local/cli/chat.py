"""`eft chat`: the app on a terminal, or a conversation line by line, for pipes and screen readers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from eft_local.chats import Chat, History
from eft_local.chats.opening import chat_to_continue, closing, unsaved
from eft_local.chats.session import Session
from eft_local.chats.writing import AnswerRequest, recorded
from eft_local.cli import answers, failures, lines, options, output, screen, stdin
from eft_local.cli.interrupt import interruptible
from eft_local.cli.loading import loaded
from eft_local.cli.options import (
    SAMPLING,
    STEERING,
    Command,
    alpha_changes,
    example,
    only_option,
    recipe_option,
    system_option,
)
from eft_local.errors import ContextOverflowError, EftError, HistoryError, RecipeError, UsageError

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.engine.step import Answer, Step
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
@click.option("--continue", "-c", "resume", is_flag=True, help="Continue the last chat, with its recipe and settings.")
@click.option("--chat", "chat_id", metavar="ID", help="Continue this chat; 'eft history' lists them.")
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

    Line by line, answers go to stdout, everything else to stderr. A line that ends with a backslash continues in the
    next one, and all lines between two \"\"\" are one question. Ctrl+C stops an answer and keeps the chat; at the
    prompt it leaves, as the end of the input does. /help lists the commands that a line may hold instead.
    """
    if screen.wanted(plain):
        return screen.open_app(ctx, only=only, system=system, chat=chat_id, resume=resume, save=save)
    if save is None:
        save = resume or chat_id is not None or sys.stdin.isatty()
    with closing(History()) as history:
        found = chat_to_continue(history, chat_id, resume=resume)
        recipe = _recipe(ctx, found)
        with (
            nullcontext((history, found)) if save else unsaved(history, found, recipe) as (used, copy),
            loaded(recipe, only) as emulator,
        ):
            conversation = Session(used, recipe, only, record=save)
            if copy is not None:
                conversation.open(copy.id, recipe)
            greeting = f"chat {found.id} continues: {found.title}" if found else ""
            return PlainChat(emulator, conversation, system).run(greeting)


def _recipe(ctx: click.Context, chat: Chat | None) -> Recipe:
    """Return the recipe of a chat as it was left, unless another is named; options change either."""
    session = ctx.ensure_object(options.Session)
    if chat is None or ctx.get_parameter_source("recipe") is not ParameterSource.DEFAULT:
        return session.recipe()
    try:
        return chat.recipe.recipe().replace(**session.changes)
    except RecipeError as error:
        raise RecipeError(f"chat {chat.id}: {error}; name a recipe with --recipe") from None


class Leave(Exception):  # noqa: N818 (not an error)
    """The user wants to leave the chat."""


class PlainChat:
    """One conversation, line by line: what is entered and shown; the session is what is said and saved."""

    def __init__(self, emulator: Emulator, session: Session, system: str | None) -> None:
        """system: a system prompt in place of the session's own."""
        self.emulator = emulator
        self.session = session
        self._unsaved = ""  # said already
        if system is not None:
            self.use_system(system)

    def run(self, greeting: str = "") -> int:
        """Read lines until the input ends. Return the exit code: in a pipe, that of the last error.

        greeting: which chat continues.
        """
        interactive = sys.stdin.isatty()
        code = 0
        if interactive:
            self.greet(greeting)
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

    def greet(self, greeting: str) -> None:
        """Say which models answer, and what was said last in a chat that continues."""
        output.note(f"recipe {self.session.recipe.name}. /help lists commands; Ctrl+D leaves.")
        if greeting:
            output.note(greeting)
        answer = next((each for each in reversed(self.session.messages) if each.answer and each.text.strip()), None)
        if answer is not None:
            output.note(f"> {self.session.question_of(answer.id).text}\n{answer.text.strip()}")

    def obey(self, typed: lines.Message) -> None:
        """Do what was typed: a command, a question (which // begins where its first sign is a slash), or nothing."""
        text = typed.text
        if text.startswith("/") and not (typed.literal or text.startswith("//")):
            name = text[1:].split(maxsplit=1)[0] if text[1:2].strip() else ""
            self.command(name)(self, text[1 + len(name) :].strip())
        elif text:
            self.session.ask(text if typed.literal or not text.startswith("//") else text[1:])
            self.answer()

    def command(self, name: str) -> Callable[[PlainChat, str], None]:
        """Return what a slash command does. Raises: UsageError for one that does not exist."""
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            raise UsageError(f"unknown command /{name}; {hint}")
        return COMMANDS[name].action

    def answer(self) -> None:
        """Write the answer that the session wants; what was written of a stopped one stays in the conversation."""
        self._say_what_is_unsaved()
        writing = self.session.writing
        assert writing is not None
        request, printer = writing.request, answers.Printer()
        try:
            answer = self._written(request, printer)
        except BaseException as error:
            with suppress(HistoryError):  # the error that ended the answer is the one to say
                self.session.fail("cancelled" if isinstance(error, KeyboardInterrupt | BrokenPipeError) else "failed")
            if isinstance(error, ContextOverflowError):
                raise ContextOverflowError(f"{error}; /reset starts anew") from None
            raise
        steps = writing.all_steps
        try:
            self.session.finish(answer, steps, recorded(request.candidates, steps))
        except HistoryError as error:
            self.session.stop_saving(error)
            self._say_what_is_unsaved()
        self._remark(request.recipe, answer)

    def _written(self, request: AnswerRequest, printer: answers.Printer) -> Answer:
        """Let the models write an answer, which is shown and saved meanwhile; Ctrl+C stops it."""
        with interruptible(self.emulator.cancel) as interrupt:
            stop_if_requested = answers.heed(interrupt, self.emulator.cancel)

            def on_step(step: Step) -> None:
                printer.write(self.session.wrote(step))
                stop_if_requested(step)

            try:
                return self.emulator.chat(
                    request.messages,
                    target=request.target,
                    recipe=request.recipe,
                    seed=request.seed,
                    top=request.candidates,
                    on_step=on_step,
                )
            finally:
                printer.end()

    def _remark(self, recipe: Recipe, answer: Answer) -> None:
        """Say how an answer ended, unless it did so by itself."""
        answers.remark(answer.text, answer.finish_reason)
        if answer.finish_reason == "cancelled":
            output.note("(stopped)")
        elif answer.finish_reason == "context":
            output.complain(f"the context of {recipe.context} tokens is full: the answer ends here; /reset starts anew")
        elif complaint := answers.json_cut_off(recipe, answer.finish_reason, answer.text):
            output.complain(complaint)

    def _say_what_is_unsaved(self) -> None:
        """Say once that a chat is not saved any more, and why."""
        unsaved = str(self.session.unsaved or "")
        if unsaved not in ("", self._unsaved):
            self._unsaved = unsaved
            output.complain(f"{unsaved}; this chat continues unsaved")

    def change(self, **changes: Any) -> None:
        """Change the recipe from the next answer on, and say how it stands."""
        self.session.steer(self.session.recipe.replace(**changes))
        output.note(steering(self.session.recipe))

    def retry(self) -> None:
        """Answer the last question again, in place of the answer it got."""
        self.session.regenerate()
        self.answer()

    def set_system(self, text: str) -> None:
        """Set or remove the system prompt, and say so."""
        self.use_system(text)
        output.note(f"system prompt: {text}" if text else "no system prompt")

    def use_system(self, text: str) -> None:
        """Set or remove the system prompt."""
        try:
            self.session.set_system(text)
        except HistoryError as error:
            self.session.stop_saving(error)
            self._say_what_is_unsaved()

    def reset(self) -> None:
        """Begin another conversation."""
        self.session.new()
        output.note("a new conversation")


def steering(recipe: Recipe) -> str:
    """Return one line that says how a recipe mixes its models."""
    alphas = ", ".join(f"{name} alpha = {expert.alpha:g}" for name, expert in recipe.experts.items())
    return f"{alphas}, beta = {recipe.beta:g}"


class SlashCommand(NamedTuple):
    """A line of the table below: what follows the name, what it does in words, and what does it."""

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
    output.note(r"\ at a line's end".ljust(20) + "continue on the next line")
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
    with suppress(ImportError):
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
