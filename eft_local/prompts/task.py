"""Prompts as benchmarks give them: each role reads its own, and the answer begins alike for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """One item of a benchmark.

    messages: what a role with a chat template reads.
    text: what a role with a plain or few-shot prompt reads as it stands, after its instructions and examples; it ends
        with `start`, if there is one. None: such a role writes the messages in its own frame.
    start: what the answer begins with ("Answer:"): it follows the template's text, after a space unless that ends
        in white space. Source: proxy-tuning's code, whose chat models get "[INST] … [/INST] Answer:".
    """

    messages: Sequence[Mapping[str, object]]
    text: str | None = None
    start: str = ""

    def started(self, text: str) -> str:
        """Return what follows a template's text: the start of the answer, and a space before it where one lacks."""
        return f" {self.start}" if self.start and text[-1:] not in ("\n", " ") else self.start
