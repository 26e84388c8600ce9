"""Text as a terminal may show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eft_local.engine.step import Step

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """Return text without control characters, which could do anything to a terminal."""
    return text.translate(_CONTROLS)


def readable(step: Step, *, first: bool = False) -> str:
    """Return a token's text as it can be seen: never empty. first: without the space that begins an answer."""
    text = visible(step.text.lstrip() if first else step.text)
    if text:
        return text
    return "■" if step.finish_reason else "·"
