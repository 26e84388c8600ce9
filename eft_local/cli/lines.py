'''What is typed line by line: one line is one message, unless it says that it continues.

- A line that ends with a backslash continues in the next one.
- From a """ at a line's beginning to a """ at a line's end, everything is one message, as it is written.
'''

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from eft_local.errors import UsageError

FENCE = '"""'
FIRST, NEXT = "> ", "... "
"""The prompts for a message's first line and for its others."""


class Message(NamedTuple):
    """What was typed. literal: it stood between fences, so that a slash at its beginning means nothing."""

    text: str
    literal: bool


def read_message(read: Callable[[str], str | None]) -> Message | None:
    """Return the next message, None at the end of the input.

    read: returns the next line without its end, after showing a prompt, and None at the end.
    Raises: UsageError for a fence that is not closed, and what `read` raises.
    """
    line = read(FIRST)
    if line is None:
        return None
    if line.lstrip().startswith(FENCE):
        return Message(_fenced(line.lstrip().removeprefix(FENCE), read), literal=True)
    lines = [line]
    while lines[-1].endswith("\\"):
        more = read(NEXT)
        if more is None:  # nothing follows: the backslash is one
            break
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(more)
    return Message("\n".join(lines).strip(), literal=False)


def _fenced(line: str | None, read: Callable[[str], str | None]) -> str:
    lines = []
    while line is not None:
        if line.rstrip().endswith(FENCE):
            lines.append(line.rstrip().removesuffix(FENCE))
            return "\n".join(lines).strip("\n").rstrip()
        lines.append(line)
        line = read(NEXT)
    raise UsageError(f"the message that begins with {FENCE} does not end with {FENCE}, so it was not sent")
