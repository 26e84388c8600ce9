"""The input: several lines, Enter sends, ↑ recalls, and nothing that was typed is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual import events
from textual.widgets import TextArea

from eft_local.chats.typed import REMEMBERED
from eft_local.tui.actions.registry import keys_of


class Composer(TextArea):
    """Where questions and slash commands are typed."""

    def __init__(self, recalled: Sequence[str] = (), remapped: Mapping[str, str] | None = None) -> None:
        """recalled: questions for ↑, oldest first.  remapped: keys by action id."""
        super().__init__(
            id="composer", soft_wrap=True, show_line_numbers=False, compact=True, placeholder="Ask something, or /help"
        )
        self._recalled = list(recalled)
        self._place = len(self._recalled)
        self._unsent = ""
        self.restored = ""
        self._keys = keys_of("composer", remapped or {})

    async def _on_key(self, event: events.Key) -> None:
        """Tell an action's key. A binding with priority would be heard before the letters typed just ahead of it."""
        action = next((self._keys[key] for key in event.aliases if key in self._keys), None)
        if action is not None:
            event.stop()
            event.prevent_default()
            await self.app.run_action(f"app.perform({action!r})")

    def take(self) -> str:
        """Return what is typed and empty the input; ↑ brings it back."""
        text = self.text
        self.remember(text)
        self.load_text("")
        return text

    def remember(self, text: str) -> None:
        """Let ↑ recall a text."""
        if text.strip() and (not self._recalled or self._recalled[-1] != text):
            self._recalled.append(text)
            del self._recalled[:-REMEMBERED]
        self._place = len(self._recalled)
        self._unsent = ""

    def write(self, text: str) -> None:
        """Put a text into the input, the cursor after it."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def restore(self, text: str) -> None:
        """Put back what was left in the input."""
        self.restored = text
        self.write(text)

    @property
    def recalled(self) -> tuple[str, ...]:
        """What ↑ recalls, oldest first."""
        return tuple(self._recalled)

    def action_cursor_up(self, select: bool = False) -> None:
        """On the first line, recall what was sent before; else go up."""
        if select or self.cursor_location[0] > 0 or self._place == 0:
            super().action_cursor_up(select)
        else:
            if self._place == len(self._recalled):
                self._unsent = self.text
            self._recall(self._place - 1)

    def action_cursor_down(self, select: bool = False) -> None:
        """On the last line, move to what was sent after, and to what was not sent yet; else go down."""
        if select or self.cursor_location[0] < self.document.line_count - 1 or self._place == len(self._recalled):
            super().action_cursor_down(select)
        else:
            self._recall(self._place + 1)

    def _recall(self, place: int) -> None:
        self._place = place
        self.write(self._recalled[place] if place < len(self._recalled) else self._unsent)
