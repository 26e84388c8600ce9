"""The inspector: what each role thought of one token, and of those it could have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import DataTable, Static
from textual.widgets.data_table import RowKey

from eft_local.analysis.format import in_text, label, notes, probability_and_rank, signed, two_digits
from eft_local.recipe.names import MIXTURE

if TYPE_CHECKING:
    from eft_local.engine.step import Candidate, Step

RANK_WIDTH = 4
"""Characters of a rank in the table."""

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
                f"mean {two_digits(summary.mean_change)} │ ← → n: tokens │ ↑ ↓ Enter: branch │ cells: %, rank"
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
        text = in_text(step, first=index == 0).replace("\n", "⏎")
        self.border_title = " · ".join([f"token {index + 1}: “{text.strip() or '␣'}”", *notes(step)])
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
        table = self.table
        table.clear(columns=True)
        if not step.candidates:
            return
        roles = [MIXTURE, *(name for name in step.candidates[0].roles if name != MIXTURE)]
        roles = [name for name in roles if name in step.candidates[0].roles]
        table.add_columns("token", *roles, "Δtuning", "Δscale")
        at = 0
        for row, candidate in enumerate(step.candidates):
            taken = candidate.token == step.token
            at = row if taken else at
            views = [
                probability_and_rank(candidate.roles[name], RANK_WIDTH) if name in candidate.roles else ""
                for name in roles
            ]
            name = f"{_MARK if taken else ' '}{label(candidate)}"
            table.add_row(
                name,
                *views,
                *(signed(each) if each is not None else "" for each in (candidate.behaviour, candidate.scale)),
            )
        table.move_cursor(row=at)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Report a click on the chosen candidate."""
        event.stop()
        if isinstance(event.row_key, RowKey):
            self.post_message(self.Picked())
