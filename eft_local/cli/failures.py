"""What becomes of an error: one line on stderr, and the documented exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from eft_local.cli import output
from eft_local.cli.options import Session
from eft_local.errors import EftError

INTERRUPTED = 130


def exit_code_of(call: Callable[[], Any], session: Session) -> int:
    """Run a command and return its exit code; every failure ends in one line on stderr.

    A command returns None for success, or the code that the process should end with.
    """
    try:
        output.prepare()
        code = call()
        output.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        output.abandon()  # the reader has gone: nothing to say, and nobody to say it to
        return 1
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:
        if session.debug:
            import traceback

            traceback.print_exc()
        else:
            output.complain(message(error))
        output.abandon()
        return exit_code(error)


def exit_code(error: Exception) -> int:
    """Return the documented exit code for an error."""
    if isinstance(error, EftError | click.ClickException):
        return error.exit_code
    return 1


def message(error: Exception) -> str:
    """Return one line: what went wrong, with the value, and what to do."""
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "eft"
        text = f"{error.format_message()} See '{where} --help'."
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, EftError):
        text = str(error)
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}{error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = "not enough memory; close other programs, or choose smaller models or a smaller context"
    else:
        text = f"unexpected {type(error).__name__}: {error}; run again with --debug to see where"
    return " ".join(text.split())
