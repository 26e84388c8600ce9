"""The command group `eft`: knows its commands by name and imports one only when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, cast

import click

from eft_local.cli.failures import exit_code_of
from eft_local.cli.options import Session, debug_option
from eft_local.version import __version__

COMMANDS = {
    "ask": ("ask", "Answer one question on stdout."),
    "chat": ("chat", "Chat in an app, or line by line."),
    "compare": ("compare", "Compare answers of base, expert and mixture."),
    "inspect": ("inspect", "Show which model decided each token of an answer."),
    "eval": ("evaluate", "Run targets over a question file and count what they get right."),
    "serve": ("serve", "Serve recipes to other programs, by OpenAI's API and Ollama's."),
    "bench": ("bench", "Measure the speed of emulation on this machine."),
    "history": ("history", "List, search, show, export and delete saved chats."),
    "recipes": ("recipes", "List recipes, show one, or write your own."),
    "pull": ("pull", "Download the models of a recipe, or single ones."),
    "ls": ("ls", "List the downloaded models."),
    "show": ("show", "Show the metadata of a model or a recipe."),
    "plan": ("plan", "Estimate the memory and the speed of a recipe."),
    "rm": ("rm", "Delete models."),
    "doctor": ("doctor", "Check this installation: what works and what is missing."),
    "completion": ("completion", "Print the completion script for a shell."),
}
"""Command → (its module in this package and the name in there, one line for `eft --help`)."""

EXIT_CODES = """\b
Exit codes:
  0    ok
  1    failed: a damaged model, no memory, a full disk, a broken pipe, ...
  2    usage: a wrong option, recipe or prompt
  3    a model file is missing
  4    the models do not share a vocabulary
  130  interrupted

\b
Example:
  eft ask "What is the capital of Peru?"
"""


class LazyGroup(click.Group):
    """Lists commands from a table, so that `eft --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        command = cast(click.Command, getattr(import_module(f"eft_local.cli.{module}"), module))
        command.short_help = summary
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name; for an unknown one, the nearest is suggested."""
        if args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, "--version", "-V", message="eft-local %(version)s")
@debug_option
@click.pass_context
def eft(ctx: click.Context) -> Any:
    """Emulated fine-tuning: two small models steer a large one, token by token.

    Without a command, eft opens the chat, with the bundled demo models.
    """
    if ctx.invoked_subcommand is None:
        chat = eft.get_command(ctx, "chat")
        assert chat is not None
        with chat.make_context("chat", [], parent=ctx) as chat_context:
            return chat.invoke(chat_context)
    return None


def run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code."""
    session = Session()
    return exit_code_of(lambda: eft.main(list(arguments), prog_name="eft", standalone_mode=False, obj=session), session)
