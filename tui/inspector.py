"""The inspector: what each role thought of one token, and of those it could have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import DataTable, Static
from textual.widgets.data_table import RowKey

from eft_local.tui.text import readable

if TYPE_CHECKING:
    from eft_local.engine.step import Candidate, RoleView, Step

_MARK = "▸"


class InspectorPanel(Vertical):
    """A line on the whole answer, and the table of one token's candidates; the tinted text keeps the focus."""

    class Picked(Message):
        """A candidate was clicked on."""

    def __init__(self) -> None:
        super().__init__(id="inspector")
        self.border_title = "inspector"
        self.candidates: Sequence[Candidate] = ()
        self._shown: Step | None = None

    def compose(self) -> ComposeResult:
        """Lay out summary and table."""
        yield Static("", id="inspector-summary", markup=False)
        table: DataTable[str] = DataTable(cursor_type="row", zebra_stripes=True, id="candidates", cell_padding=1)
        table.can_focus = False
        yield table

    @property
    def table(self) -> DataTable[str]:
        """The candidates."""
        return self.query_one("#candidates", DataTable)

    def show_answer(self, steps: Sequence[Step]) -> None:
        """Say how much the experts changed in a whole answer."""
        from eft_local.analysis import Inspection

        summary = Inspection(tuple(steps)).summary()
        if not steps:
            words = "nothing was recorded of this answer"
        elif not summary.tokens and any(step.evidence is not None for step in steps):
            words = "being worked out"
        elif not summary.tokens:
            words = "one role alone wrote this answer: there is nothing to compare"
        else:
            words = (
                f"{len(summary.changed_at)}/{summary.tokens} changed, "
                f"mean {summary.mean_change:.2f} │ ← → n: tokens │ ↑ ↓ Enter: branch │ cells: %, rank"
            )
        self.query_one("#inspector-summary", Static).update(words)

    def clear(self) -> None:
        """Show no token."""
        self.candidates = ()
        self._shown = None
        self.border_title = "inspector"
        self.table.clear(columns=True)

    def show(self, steps: Sequence[Step], index: int) -> None:
        """Show the candidates of one token."""
        self._shown = step = steps[index]
        self.candidates = step.candidates
        change = f" · change {step.change:.2f}" if step.change is not None else ""
        moved = " · the experts changed the top choice" if step.top_changed else ""
        drafted = " · drafted" if step.drafted else ""
        text = readable(step, first=index == 0).replace("\n", "⏎")
        self.border_title = f"token {index + 1}: “{text.strip() or '␣'}”{change}{moved}{drafted}"
        self._fill(step)

    def follow(self, steps: Sequence[Step], index: int | None) -> None:
        """Show what has become known of an answer that is being written, and of its chosen token."""
        self.show_answer(steps)
        if index is not None and index < len(steps) and steps[index] is not self._shown:
            self.show(steps, index)

    def move(self, by: int) -> None:
        """Choose another candidate."""
        table = self.table
        if self.candidates:
            table.move_cursor(row=max(0, min(table.cursor_row + by, len(self.candidates) - 1)))

    @property
    def chosen(self) -> Candidate | None:
        """The chosen candidate."""
        row = self.table.cursor_row
        return self.candidates[row] if 0 <= row < len(self.candidates) else None

    def _fill(self, step: Step) -> None:
        from eft_local.analysis import label

        table = self.table
        table.clear(columns=True)
        if not step.candidates:
            return
        roles = ["eft", *(name for name in step.candidates[0].roles if name != "eft")]
        roles = [name for name in roles if name in step.candidates[0].roles]
        table.add_columns("token", *roles, "Δtuning", "Δscale")
        at = 0
        for row, candidate in enumerate(step.candidates):
            taken = candidate.token == step.token
            at = row if taken else at
            views = [_cell(candidate.roles.get(name)) for name in roles]
            name = f"{_MARK if taken else ' '}{label(candidate)}"
            table.add_row(name, *views, _delta(candidate.behaviour), _delta(candidate.scale))
        table.move_cursor(row=at)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """A click on the chosen candidate is told."""
        event.stop()
        if isinstance(event.row_key, RowKey):
            self.post_message(self.Picked())


def _cell(view: RoleView | None) -> str:
    if view is None:
        return ""
    from math import exp

    return f"{percent(exp(view.logprob)):>5} {view.rank + 1:>4}"


def percent(share: float) -> str:
    """Return a probability in per cent, at most five characters, and never a zero that is none."""
    if 0 < share < 0.0005:
        return "<0.1"
    return f"{100 * share:.1f}"


def _delta(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
