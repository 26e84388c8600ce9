"""An answer while it is being written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from eft_local.chats.records import FinishReason, Snapshot
from eft_local.errors import HistoryError
from eft_local.recipe import Recipe

SAVE_SECONDS = 0.5
"""Text waits so long at most until it is saved, which leaves a busy machine as long again within a second."""


@dataclass(frozen=True, slots=True)
class Draft:
    """How far an answer has come: all of its text and tokens, and the recipes that were not saved yet.

    is_empty: whether nothing was written yet, beyond what the answer was given to begin with.
    """

    text: str
    tokens: Sequence[int]
    recipes: Sequence[tuple[int, Snapshot]]
    is_empty: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of an answer when it has ended."""

    reason: FinishReason
    tokens_per_second: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    statistics: bytes | None = None


Save = Callable[[int, Draft, Ending | None], None]


class AnswerWriter:
    """Takes an answer as it comes and sees to it that it is saved; made by `History.answer`.

    `add` and `steer` only note what is new, so they never wait for the disk; a timer saves within SAVE_SECONDS.
    Where that fails, `error` says why, the text is kept in memory, and the next save tries again. In a `with`, an
    answer that nobody finished is "cancelled", one that an exception ends "failed".

    id: the message.  error: why the last save failed; None if it did not.
    """

    def __init__(self, id: int, save: Save, text: str, tokens: Sequence[int]) -> None:  # noqa: A002
        self.id = id
        self.error: HistoryError | None = None
        self._save = save
        self._given = len(text)
        self._pieces = [text]
        self._tokens = list(tokens)
        self._recipes: dict[int, Snapshot] = {}
        self._noting = threading.Lock()  # held for moments: what is new
        self._saving = threading.Lock()  # held while the disk works: one save at a time, in order
        self._timer: threading.Timer | None = None
        self._finished = False

    @property
    def text(self) -> str:
        """What is written so far."""
        with self._noting:
            return "".join(self._pieces)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids so far, those that it was given to begin with too."""
        with self._noting:
            return tuple(self._tokens)

    @property
    def has_text(self) -> bool:
        """Whether anything is written yet."""
        with self._noting:
            return any(self._pieces)

    def add(self, text: str, token: int | None = None) -> None:
        """Append a piece of text and its token."""
        with self._noting:
            self._pieces.append(text)
            if token is not None:
                self._tokens.append(token)
            self._save_soon()

    def steer(self, recipe: Recipe) -> None:
        """Note that another recipe holds from the next token on."""
        with self._noting:
            self._recipes[len(self._tokens)] = Snapshot.of(recipe)
            self._save_soon()

    def finish(
        self,
        reason: FinishReason,
        *,
        tokens_per_second: float | None = None,
        figures: Mapping[str, Any] | None = None,
        statistics: bytes | None = None,
    ) -> None:
        """End the answer and save it whole; what ended already stays as it is.

        "cancelled" or "failed" before a character was written leaves no message: what was shown before is shown again.
        Raises: HistoryError if it cannot be saved; then it may be called again.
        """
        with self._saving:
            if self._finished:
                return
            self._write(Ending(reason, tokens_per_second, figures or {}, statistics))
            self._finished = True

    def save(self) -> None:
        """Save now what is new. Raises: HistoryError."""
        with self._saving:
            if not self._finished:
                self._write(None)

    def close(self) -> None:
        """Save what there is, for the last time; without `finish` it stays interrupted. Raises: HistoryError."""
        with self._saving:
            if not self._finished:
                self._finished = True
                self._write(None)

    def _save_soon(self) -> None:
        if self._timer is None and not self._finished:
            self._timer = threading.Timer(SAVE_SECONDS, self._save_quietly)
            self._timer.daemon = True
            self._timer.start()

    def _save_quietly(self) -> None:
        try:
            self.save()
        except HistoryError:
            with self._noting:
                self._save_soon()

    def _write(self, ending: Ending | None) -> None:
        with self._noting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._pieces = ["".join(self._pieces)]
            recipes, self._recipes = self._recipes, {}
            text = self._pieces[0]
            draft = Draft(text, tuple(self._tokens), tuple(recipes.items()), len(text) == self._given)
        try:
            self._save(self.id, draft, ending)
        except HistoryError as error:
            self.error = error
            with self._noting:
                self._recipes = recipes | self._recipes
            raise
        self.error = None

    def __enter__(self) -> AnswerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("cancelled")
            return
        with contextlib.suppress(HistoryError):  # the error that ended the answer is the one to report
            self.finish("cancelled" if issubclass(kind, KeyboardInterrupt | GeneratorExit) else "failed")
