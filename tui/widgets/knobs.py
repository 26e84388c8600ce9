"""The panel of knobs: what can be turned while an answer is being written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Static

from eft_local.chats.knobs import KNOBS, LAMBDA, Knob, mixed, nudged, turned
from eft_local.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from eft_local.recipe import Recipe


class KnobInput(Input):
    """The value of one knob: type it, or turn it with ↑ and ↓."""

    class Nudged(Message):
        """↑ or ↓ was pressed."""

        def __init__(self, input_: KnobInput, steps: int) -> None:
            super().__init__()
            self.input = input_
            self.steps = steps

    def __init__(self, knob: Knob, expert: str | None = None) -> None:
        super().__init__(id=f"knob-{knob.name}" + (f"-{expert}" if expert else ""), compact=True, select_on_focus=True)
        self.knob = knob
        self.expert = expert

    def key_up(self) -> None:
        """One step more."""
        self.post_message(self.Nudged(self, 1))

    def key_down(self) -> None:
        """One step less."""
        self.post_message(self.Nudged(self, -1))


class KnobsPanel(VerticalScroll, can_focus=False):
    """All knobs of the recipe; a change is posted as `Turned` and acts from the next token."""

    class Turned(Message):
        """The user changed a knob."""

        def __init__(self, recipe: Recipe) -> None:
            super().__init__()
            self.recipe = recipe

    class Refused(Message):
        """What was typed cannot be used."""

        def __init__(self, error: RecipeError | UsageError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(id="knobs")
        self.border_title = "knobs"
        self.recipe = recipe

    def compose(self) -> ComposeResult:
        """Lay out one line per knob; alpha has one per expert, and λ for two."""
        yield Static("", id="knobs-presets", markup=False)
        for knob in KNOBS:
            experts: list[str | None] = list(self.recipe.experts) if knob.key == "alpha" else [None]
            if knob.key == "alpha" and len(experts) == 2:
                yield self._line("λ", KnobInput(LAMBDA))
            for expert in experts:
                title = f"α {expert}" if expert else knob.title
                yield self._line(title, KnobInput(knob, expert))
        yield Static("↑ ↓ turn, Enter sets;\nthe next token obeys", classes="hint")

    def _line(self, title: str, value: KnobInput) -> Horizontal:
        return Horizontal(Label(title, markup=False), value, classes="knob")

    def on_mount(self) -> None:
        """Show the values."""
        self.show(self.recipe)

    def show(self, recipe: Recipe) -> None:
        """Show a recipe's values, without posting a change; its experts are those that the panel was made for."""
        self.recipe = recipe
        for value in self.query(KnobInput):
            text = _shown(recipe, value)
            if value.value != text:
                with value.prevent(Input.Changed):
                    value.value = text

    async def rebuild(self, recipe: Recipe) -> None:
        """Show a recipe that may have other experts."""
        if list(recipe.experts) != list(self.recipe.experts):
            self.recipe = recipe
            await self.recompose()
        self.show(recipe)

    def show_presets(self, names: Mapping[str, object]) -> None:
        """List the presets of the recipe."""
        self.query_one("#knobs-presets", Static).update("presets: " + (", ".join(names) or "none yet"))

    @on(Input.Submitted)
    @on(Input.Blurred)
    def _typed(self, event: Input.Submitted | Input.Blurred) -> None:
        event.stop()
        value = event.input
        if isinstance(value, KnobInput) and value.value != _shown(self.recipe, value):
            self._turn(lambda: _typed(self.recipe, value))

    @on(KnobInput.Nudged)
    def _nudged(self, event: KnobInput.Nudged) -> None:
        event.stop()
        value = event.input
        if value.knob is LAMBDA:
            first = next(iter(self.recipe.alphas.values()))
            self._turn(lambda: mixed(self.recipe, first + event.steps * LAMBDA.step))
        else:
            self._turn(lambda: nudged(self.recipe, value.knob, event.steps, value.expert))

    def _turn(self, change: Callable[[], Recipe]) -> None:
        try:
            recipe = change()
        except UsageError as error:
            self.post_message(self.Refused(error))
            self.show(self.recipe)
            return
        self.show(recipe)
        self.post_message(self.Turned(recipe))


def _shown(recipe: Recipe, value: KnobInput) -> str:
    if value.expert:
        return value.knob.shown(recipe.alphas[value.expert])
    return value.knob.shown(value.knob.value(recipe))


def _typed(recipe: Recipe, value: KnobInput) -> Recipe:
    if value.knob is LAMBDA:
        return mixed(recipe, LAMBDA.read(value.value))
    typed = f"{value.expert}={value.value}" if value.expert else value.value
    return turned(recipe, value.knob, typed)
