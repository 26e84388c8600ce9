"""An answer while it is being written, as far as the app has heard, and what is kept of its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eft_local.chats import AnswerWriter

if TYPE_CHECKING:
    from eft_local.engine.step import Answer, Step
    from eft_local.recipe import Recipe

STRIP_WIDTH = 60
"""Characters of the strip over an answer."""


@dataclass(slots=True)
class Writing:
    """The answer that is being written, as far as the app has heard.

    prefix: tokens that it began with.  kept: their steps.  changes: how much the experts changed each token so far.
    drafts: tokens that a draft had guessed.
    """

    number: int
    writer: AnswerWriter
    recipe: Recipe
    prefix: int = 0
    kept: tuple[Step, ...] = ()
    steps: list[Step] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    drafts: int = 0
    began: float | None = None
    last: float = 0.0

    def __post_init__(self) -> None:
        self.note(self.kept)

    def note(self, steps: Sequence[Step]) -> None:
        """Count what is known of some more tokens."""
        self.changes += [step.change for step in steps if step.change is not None]
        self.drafts += sum(step.drafted for step in steps)

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token so far."""
        if self.began is None or self.last <= self.began:
            return 0.0
        return (len(self.steps) - 1) / (self.last - self.began)

    @property
    def drafted(self) -> float | None:
        """The share of tokens that a draft had guessed, None when none was drafted."""
        return self.drafts / (len(self.kept) + len(self.steps)) if self.drafts else None


def add(writer: AnswerWriter, step: Step) -> str:
    """Add a step to what is saved, and return its text, without the space that begins an answer.

    A token that ended the answer is no part of it: a `prefix` must not hold it.
    """
    text = step.text if writer.has_text else step.text.lstrip()
    writer.add(text, None if step.finish_reason == "stop" else step.token)
    return text


def figures(answer: Answer, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what is kept of an answer's measurements, ready for JSON."""
    from eft_local.analysis import sparkline

    changes = [step.change for step in steps if step.change is not None]
    moved = [step.top_changed for step in steps if step.top_changed is not None]
    drafted = sum(step.drafted for step in steps)
    return {
        "prompt_tokens": dict(answer.prompt_tokens),
        "milliseconds": {
            role: round(timing.prompt_ms + timing.generation_ms, 3) for role, timing in answer.timings.items()
        },
        "overhead_milliseconds": round(answer.overhead_ms, 3),
        "drafted": round(drafted / len(steps), 4) if drafted else None,
        "changed": round(sum(moved) / len(moved), 4) if moved else None,
        "strip": sparkline(changes, STRIP_WIDTH) if changes else "",
    }
