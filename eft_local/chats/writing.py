"""One answer of a saved chat: what is to be written, how far it has come, and what is kept of its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eft_local.analysis.format import sparkline

if TYPE_CHECKING:
    from eft_local.chats.writer import AnswerWriter
    from eft_local.engine.step import Answer, Step
    from eft_local.prompts.render import Message
    from eft_local.recipe import Recipe

STRIP_WIDTH = 60
"""Characters of the strip over an answer."""


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What an engine is to write.

    messages: the conversation up to the question.  target: the mixture, or one role alone.
    prefix: token ids that the answer begins with; kept: their steps.
    candidates: to record per token; 0 records nothing of what each role thought.
    """

    messages: tuple[Message, ...]
    recipe: Recipe
    target: str
    seed: int
    prefix: tuple[int, ...] = ()
    kept: tuple[Step, ...] = ()
    candidates: int = 0


@dataclass(slots=True)
class Writing:
    """The answer that is being written, as far as its steps have arrived.

    changes: how much the experts changed each token so far.  drafts: tokens that a draft had proposed.
    """

    request: AnswerRequest
    writer: AnswerWriter
    steps: list[Step] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    drafts: int = 0

    def __post_init__(self) -> None:
        self._count(self.request.kept)

    def add(self, step: Step) -> str:
        """Save a step; return its text, without the space that begins an answer."""
        self.steps.append(step)
        return add(self.writer, step)

    def describe(self, start: int, steps: Sequence[Step]) -> None:
        """Replace the steps from the `start`-th on, which had only their tokens, by the same with statistics."""
        self.steps[start : start + len(steps)] = steps
        self._count(steps)

    def _count(self, steps: Sequence[Step]) -> None:
        self.changes += [step.change for step in steps if step.change is not None]
        self.drafts += sum(step.drafted for step in steps)

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps of the whole answer, those that it began with too."""
        return (*self.request.kept, *self.steps)

    @property
    def strip(self) -> str:
        """The strip of changes so far."""
        return sparkline(self.changes, STRIP_WIDTH)

    @property
    def drafted(self) -> float | None:
        """The share of tokens that a draft had proposed, None when none was drafted."""
        return self.drafts / len(self.all_steps) if self.drafts else None


def add(writer: AnswerWriter, step: Step) -> str:
    """Add a step to what is saved; return its text, without the space that begins an answer.

    A token that ended the answer is no part of it: a `prefix` must not hold it.
    """
    text = step.text if writer.has_text else step.text.lstrip()
    writer.add(text, None if step.finish_reason == "stop" else step.token)
    return text


def recorded(candidates: int, steps: Sequence[Step]) -> bytes | None:
    """Return what the history keeps of an answer's steps for the inspector; None if nothing was."""
    from eft_local.analysis import Inspection

    return Inspection(tuple(steps)).recorded() if candidates else None


def figures(answer: Answer, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what is kept of an answer's measurements, ready for JSON."""
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
        "strip": sparkline(changes, STRIP_WIDTH),
    }
