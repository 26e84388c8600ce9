"""An answer as its tokens: tinted by how much the experts changed each, underlined where the choice changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import events
from textual.color import Color
from textual.containers import ScrollableContainer
from textual.content import Content, Span
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from eft_local.analysis.format import in_text, level
from eft_local.tui.actions.registry import bindings

if TYPE_CHECKING:
    from eft_local.engine.step import Step

_UNDERLINE = Style(underline=True)
_CHOSEN = Style(reverse=True)
_META = "token"


class TokenText(Static, can_focus=True):
    """The tokens of one answer; arrows and mouse choose one."""

    BINDINGS = bindings("inspector")

    class Chosen(Message):
        """A token was chosen; index: into the steps that are shown."""

        def __init__(self, view: TokenText, index: int) -> None:
            super().__init__()
            self.view = view
            self.index = index

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self.steps: Sequence[Step] = ()
        self.chosen: int | None = None

    def show(self, steps: Sequence[Step]) -> None:
        """Show steps, which may be more of those that are shown."""
        self.steps = steps
        self.update(self._content())

    def choose(self, index: int) -> None:
        """Choose a token, as near as there is one."""
        if self.steps:
            self.chosen = max(0, min(index, len(self.steps) - 1))
            self.update(self._content())
            self.post_message(self.Chosen(self, self.chosen))
            self.call_after_refresh(self.show_chosen)

    def show_chosen(self) -> None:
        """Scroll to the chosen token, if it is out of sight."""
        box = next((node for node in self.ancestors if isinstance(node, ScrollableContainer)), None)
        if self.chosen is None or box is None or not self.size.width:
            return
        before = "".join(in_text(step, first=i == 0) for i, step in enumerate(self.steps[: self.chosen + 1]))
        line = self.region.y + len(Content(before).wrap(self.size.width)) - 1
        if not box.region.y <= line < box.region.bottom:
            box.scroll_relative(y=line - box.region.y - box.size.height // 2, animate=False)

    def next_change(self) -> None:
        """Choose the next token whose top choice the experts changed, from the start again after the last."""
        start = -1 if self.chosen is None else self.chosen
        places = [index for index, step in enumerate(self.steps) if step.top_changed]
        if places:
            self.choose(next((index for index in places if index > start), places[0]))

    def on_click(self, event: events.Click) -> None:
        """Choose the token under the mouse."""
        index = event.style.meta.get(_META)
        if isinstance(index, int):
            self.choose(index)

    def on_focus(self, event: events.Focus) -> None:
        """A text that is entered has a chosen token."""
        if self.chosen is None and self.steps:
            first = next((index for index, step in enumerate(self.steps) if step.top_changed), 0)
            self.choose(first)

    def _content(self) -> Content:
        warning = Color.parse(self.app.theme_variables["warning"])
        tints = [Style(background=warning.with_alpha(share)) for share in _SHARES]
        texts: list[str] = []
        spans: list[Span] = []
        at = 0
        for index, step in enumerate(self.steps):
            text = in_text(step, first=index == 0)
            end = at + len(text)
            tint = level(step.change)
            if tint:
                spans.append(Span(at, end, tints[tint - 1]))
            if step.top_changed:
                spans.append(Span(at, end, _UNDERLINE))
            if index == self.chosen:
                spans.append(Span(at, end, _CHOSEN))
            spans.append(Span(at, end, Style.from_meta({_META: index})))
            texts.append(text)
            at = end
        return Content("".join(texts), spans)


_SHARES = (0.15, 0.3, 0.45, 0.6)
"""How much of the warning colour each level of tint has."""
