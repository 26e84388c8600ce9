"""Compare: several targets answer the same question side by side, one after the other; one can be kept."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Markdown, Static

from eft_local.analysis.format import outcome, printable
from eft_local.errors import UsageError
from eft_local.prompts.render import Message
from eft_local.recipe.names import MIXTURE
from eft_local.tui.actions.registry import bindings
from eft_local.tui.engine import Engine, Failed, Finished, Request, Started, Wrote
from eft_local.tui.pace import Pace
from eft_local.tui.screens.dialogs import NoticeScreen

if TYPE_CHECKING:
    from eft_local.recipe import Recipe

LONGEST = 200
"""Tokens per answer where the recipe sets no limit: an untuned base seldom ends by itself."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who answers, and with which knobs."""

    title: str
    target: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Picked:
    """The answer to continue with."""

    contender: Contender
    finished: Finished


def contenders(recipe: Recipe, names: Sequence[str], targets: Sequence[str]) -> list[Contender]:
    """Read what is to be compared: targets, and numbers, which are alphas of the mixture. Raises: UsageError."""
    if recipe.sampling.max_tokens is None:
        recipe = recipe.replace(max_tokens=LONGEST)
    found = []
    for name in names:
        try:
            alpha = float(name)
        except ValueError:
            if name not in targets:
                raise UsageError(
                    f"/compare {name}: there is no such role; use {', '.join(targets)}, or a number for alpha"
                ) from None
            found.append(Contender(name, name, recipe))
        else:
            alphas = (
                {expert: alpha * own for expert, own in recipe.alphas.items()} if len(recipe.experts) > 1 else alpha
            )
            found.append(Contender(f"eft α {alpha:g}", MIXTURE, recipe.replace(alpha=alphas)))
    return found


class Column(VerticalScroll, can_focus=True):
    """One contender's answer; stays at its end while it is written, and is then shown from its beginning."""

    BINDINGS = bindings("compare")

    def __init__(self, contender: Contender, number: int) -> None:
        super().__init__(classes="column")
        self.contender = contender
        self.number = number
        self.finished: Finished | None = None
        self.border_title = contender.title
        self._text = ""

    def compose(self) -> ComposeResult:
        """Lay out status and text."""
        yield Static("waits", classes="status", markup=False)
        yield Markdown("")

    def say(self, status: str) -> None:
        """Show how it stands."""
        self.query_one(".status", Static).update(status)

    def write(self, text: str) -> None:
        """Add text."""
        self._text += text if self._text else text.lstrip()

    async def draw(self) -> None:
        """Show the text so far."""
        await self.query_one(Markdown).update(printable(self._text))
        if self.finished is None:
            self.scroll_end(animate=False)
        else:
            self.scroll_home(animate=False)


class CompareScreen(NoticeScreen[Picked | None]):
    """Columns of answers; ← → choose, Enter continues with one, Esc stops and leaves."""

    BINDINGS = bindings("compare")

    def __init__(
        self,
        engine: Engine,
        turns: tuple[Message, ...],
        contenders: Sequence[Contender],
        candidates: int,
        wake: Callable[[], None],
    ) -> None:
        """candidates: to record per token.  wake: called when there is something to hear from the engine."""
        super().__init__()
        self._wake = wake
        self._engine = engine
        seed = contenders[0].recipe.sampling.seed
        seed = secrets.randbits(32) if seed is None else seed  # one for all: they draw the same noise
        self._requests = [
            Request(turns, each.recipe, only=each.target, seed=seed, candidates=candidates, follows=False)
            for each in contenders
        ]
        self._columns = {
            request.number: Column(each, request.number)
            for request, each in zip(self._requests, contenders, strict=True)
        }
        self._question = turns[-1]["content"]
        self._undrawn: set[Column] = set()
        self._pace = Pace()

    def compose(self) -> ComposeResult:
        """Lay out the question and a column per contender."""
        yield Static(printable(self._question), id="compare-question", markup=False)
        with Horizontal(id="columns"):
            yield from self._columns.values()
        yield Static("", id="notice", markup=False)
        yield Static("← → choose   ↑ ↓ scroll   Enter continues with it   Esc stops, then leaves", id="compare-hint")

    def on_mount(self) -> None:
        """Start."""
        next(iter(self._columns.values())).focus()
        for request in self._requests:
            self._engine.write(request)
        self._wake()

    async def heard(self, events: Sequence[object]) -> None:
        """Show what the engine says."""
        for event in events:
            column = self._columns.get(getattr(event, "number", -1))
            if column is None:
                continue
            if isinstance(event, Started):
                column.say("writes …")
            elif isinstance(event, Wrote):
                column.write(event.step.text)
                self._undrawn.add(column)
            elif isinstance(event, Finished):
                column.finished = event
                self._undrawn.add(column)
                column.say(" · ".join(outcome(event.answer)))
            elif isinstance(event, Failed):
                column.say(str(event.error))
        if self._undrawn and (self._pace.due() or any(column.finished for column in self._undrawn)):
            for column in self._undrawn:
                await column.draw()
            self._undrawn.clear()

    def move(self, by: int) -> None:
        """Go to another column."""
        columns = list(self._columns.values())
        here = next((place for place, column in enumerate(columns) if column.has_focus), 0)
        columns[(here + by) % len(columns)].focus()

    def pick(self) -> None:
        """Continue with the column that has the focus. Raises: UsageError while it is not written."""
        column = next((each for each in self._columns.values() if each.has_focus), None)
        if column is None or column.finished is None:
            raise UsageError("this answer is not written yet; wait for it, or choose another one")
        self._engine.stop()
        self.dismiss(Picked(column.contender, column.finished))

    def escape(self) -> None:
        """Stop what is being written; leave when nothing is."""
        if any(column.finished is None for column in self._columns.values()) and self._engine.busy:
            self._engine.stop()
        else:
            self.dismiss(None)
