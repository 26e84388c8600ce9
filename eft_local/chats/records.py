"""What the history hands out: frozen, and free of SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from eft_local.recipe import Recipe

FinishReason = Literal["stop", "length", "context", "cancelled", "failed", "interrupted"]
"""Why an answer ends. failed: an error cut it off. interrupted: nobody ended it, as its process died (or another
process writes it still); this is never stored, it is how an answer without a reason reads."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A recipe as it was: its TOML with every key that had a value, and the folder where its paths start."""

    name: str
    toml: str
    folder: Path | None

    @classmethod
    def of(cls, recipe: Recipe) -> Snapshot:
        """Return how a recipe stands now."""
        return cls(recipe.name, recipe.to_toml(defaults=True), recipe.folder)

    def recipe(self) -> Recipe:
        """Return the recipe. Raises: RecipeError if it is one that this version cannot read."""
        return Recipe.from_text(self.toml, self.folder)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat, without its messages.

    id: six letters and digits; methods of History take any beginning of it that no other chat shares.
    title: the first question's first line, until it is renamed; empty before.
    recipe: as it stood at the last answer.  created, updated, deleted: with time zone, UTC.
    """

    id: str
    title: str
    recipe: Snapshot
    system_prompt: str | None
    created: datetime
    updated: datetime
    deleted: datetime | None


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """How an answer was written.

    written_by: "eft", or the role that wrote it alone.
    recipes: (index of the first token that it chose, recipe), more than one if a knob was turned meanwhile.
    system_prompt: with which it was written.
    finish_reason: None while it is being written by this process.
    tokens: all token ids, as `Emulator.stream(prefix=…)` takes them; the first `prefix_tokens` were given.
    figures: whatever the face measured, as JSON has it.
    has_statistics: whether `History.statistics` has what the inspector shows.
    """

    written_by: str
    recipes: tuple[tuple[int, Snapshot], ...]
    system_prompt: str | None
    finish_reason: FinishReason | None
    tokens: tuple[int, ...]
    prefix_tokens: int
    seed: int | None
    tokens_per_second: float | None
    figures: Mapping[str, Any]
    has_statistics: bool

    @property
    def recipe(self) -> Snapshot:
        """The recipe at the answer's end."""
        return self.recipes[-1][1]


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer; `parent` is what it follows, None for a first question.

    siblings: ids of everything that follows the same parent, oldest first, this message among them.
    answer: None for a question.
    """

    id: int
    chat: str
    parent: int | None
    role: Literal["user", "assistant"]
    text: str
    created: datetime
    siblings: tuple[int, ...]
    answer: AnswerRecord | None = None

    @property
    def position(self) -> int:
        """Its place among its siblings, from 1."""
        return self.siblings.index(self.id) + 1


@dataclass(frozen=True, slots=True)
class Hit:
    """A chat that a search found, and its message that holds most of the words; None if its title holds more.

    marks: where words stand in the snippet, as (start, end).
    """

    chat: Chat
    message: int | None
    snippet: str
    marks: tuple[tuple[int, int], ...]
