"""Showing one answer: piece by piece as it comes, or as one JSON object."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from eft_local.analysis.format import ENDINGS
from eft_local.cli import output
from eft_local.cli.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from eft_local.engine.step import Answer, Step
    from eft_local.recipe import Recipe


class Printer:
    """Writes an answer to stdout while it comes, without the space that a frame may put before it.

    `text` holds what was written, also after an error.
    """

    def __init__(self) -> None:
        self.text = ""

    def write(self, piece: str) -> None:
        """Write the next piece at once."""
        shown = piece if self.text else piece.lstrip()
        if shown:
            self.text += shown
            output.write(output.safe(shown))
            output.flush()

    def end(self) -> None:
        """End the answer's last line."""
        if self.text and not self.text.endswith("\n"):
            output.write("\n")
        output.flush()


def heed(interrupt: Interrupt, cancel: Callable[[], None]) -> Callable[[Step], None]:
    """Return a function for each step of an answer that stops it after Ctrl+C.

    A Ctrl+C that came before the answer began found nothing to stop, so it is checked again.
    """

    def stop_if_requested(step: Step) -> None:
        if interrupt.requested and step.finish_reason is None:
            cancel()

    return stop_if_requested


def stream(steps: Iterator[Step], printer: Printer, interrupt: Interrupt, cancel: Callable[[], None]) -> str:
    """Write an answer as it comes and return its finish reason; Ctrl+C ends it as "cancelled"."""
    reason = None
    stop_if_requested = heed(interrupt, cancel)
    # Closed here, not by the garbage collector: after an error that may come later than the emulator's own end.
    with closing(cast("Generator[Step]", steps)):
        try:
            for step in steps:
                printer.write(step.text)
                reason = step.finish_reason or reason
                stop_if_requested(step)
        finally:
            printer.end()
    return reason or "cancelled"


def remark(text: str, reason: str, whose: str = "") -> None:
    """Say on stderr that an answer is empty, so that nobody waits for it; whoever stopped it knows."""
    if not text.strip() and reason != "cancelled":
        output.complain(f"{whose}the answer is empty ({ENDINGS[reason]})")


def as_dict(answer: Answer) -> dict[str, Any]:
    """Return an answer ready for JSON; prompts are counted per role, since each has its own."""
    return {
        "text": answer.text.lstrip(),
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": dict(answer.prompt_tokens),
        "evaluated_prompt_tokens": dict(answer.evaluated_tokens),
        "generated_tokens": len(answer.tokens),
        "tokens_per_second": answer.tokens_per_second,
        "seed": answer.seed,
        "exact": answer.exact,
        "cores": answer.cores and answer.cores.as_dict(),
        "milliseconds": {
            "roles": {
                role: {"prompt": timing.prompt_ms, "generation": timing.generation_ms}
                for role, timing in answer.timings.items()
            },
            "overhead": answer.overhead_ms,
        },
    }


def json_cut_off(recipe: Recipe, reason: str, text: str) -> str | None:
    """Return the line for JSON that ends before it is complete; None for all other answers."""
    if reason != "length" or recipe.sampling.json_schema is None:
        return None
    try:
        json.loads(text)
    except ValueError:
        limit = recipe.sampling.max_tokens
        return f"the JSON is cut off at {limit} tokens: raise --max-tokens, or use a schema that allows less"
    return None


def context_full(context: int) -> str:
    """Return the line for an answer that the context's end cut off."""
    return f"the context of {context} tokens is full: the answer ends here; set a larger context in the recipe"
