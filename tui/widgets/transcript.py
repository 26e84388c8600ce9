"""The transcript: the shown branch of a chat, newest at the end, loaded in pieces from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.reactive import reactive
from textual.widgets import Static

from eft_local.tui.widgets.message import AnswerView, MessageView

if TYPE_CHECKING:
    from eft_local.chats import Message

PIECE = 20
"""Messages that are put on the screen at a time."""

MOST = 40
"""Messages on the screen from which on the oldest are taken off again, unless the user has scrolled up."""

WELCOME = """\
Ask something: Enter sends, Ctrl+J breaks the line, Esc stops the answer.

F1 help   F2 chats   F3 knobs   F4 inspector   F5 compare   F9 models
Ctrl+P finds everything
"""


class Transcript(VerticalScroll, can_focus=False):
    """Messages from top to bottom; stays at the end until the user scrolls up."""

    BLANK: ClassVar[bool] = True
    virtual_size = reactive(Size(0, 0), layout=False, repaint=False)  # as in Prose

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._messages: list[Message] = []
        self._stays = True
        self._first = 0  # messages before it are not on the screen yet

    def anchor(self, anchor: bool = True) -> None:
        """Stay at the end, as soon as there is more than fits: Textual would hang a short chat from the bottom."""
        self._stays = anchor
        super().anchor(anchor and self._overflows)

    @property
    def _overflows(self) -> bool:
        return self.virtual_size.height > self.size.height > 0

    def watch_virtual_size(self) -> None:
        """Follow what grows."""
        self._settle()

    def on_resize(self) -> None:
        """Follow what has less room."""
        self._settle()

    def _settle(self) -> None:
        """Keep to the end of what is longer than the screen; what fits begins at the top."""
        if not self._overflows:
            super().anchor(False)
            self.scroll_y = 0
        elif self._stays and not self.is_anchored:
            super().anchor()

    async def show(self, messages: Sequence[Message]) -> None:
        """Show a branch; what it shares with the one that is shown stays as it is."""
        views = self.views
        new = list(messages)
        at_end = self.is_vertical_scroll_end
        shared = 0
        while shared < len(views) and self._first + shared < len(new):
            if views[shared].message.id != new[self._first + shared].id:
                break
            shared += 1
        if not shared:
            self._first = max(0, len(new) - PIECE)
        self._messages = new
        with self.app.batch_update():
            for view in views[shared:]:
                await view.remove()
            for view, message in zip(views[:shared], new[self._first :], strict=False):
                view.renew(message)
            await self.mount_all(_view(message) for message in new[self._first + shared :])
            await self._fold()
            await self._show_rest()
        if at_end or not shared:
            self.anchor()

    async def _fold(self) -> None:
        """Take the oldest messages off the screen where there are too many: each costs time at every change."""
        views = self.views
        if len(views) > MOST and self.is_vertical_scroll_end:
            for view in views[:-PIECE]:
                await view.remove()
            self._first += len(views) - PIECE

    async def _show_rest(self) -> None:
        await self.query("#earlier, #welcome").remove()
        if not self._messages:
            await self.mount(Static(WELCOME, id="welcome", markup=False))
        elif self._first:
            await self.mount(Static(f"↑ {self._first} earlier messages", id="earlier", markup=False), before=0)

    async def load_earlier(self) -> None:
        """Put the piece before the first message on the screen, keeping the view where it is."""
        if not self._first:
            return
        start = max(0, self._first - PIECE)
        piece = [_view(message) for message in self._messages[start : self._first]]
        views = self.views
        height = self.virtual_size.height
        self._first = start
        await self.mount_all(piece, before=views[0] if views else None)
        await self._show_rest()
        self.call_after_refresh(lambda: self.scroll_relative(y=self.virtual_size.height - height, animate=False))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Load earlier messages when the top comes into view."""
        super().watch_scroll_y(old_value, new_value)
        if new_value < 1 and old_value >= 1 and self._first:
            self.run_worker(self.load_earlier(), group="earlier", exclusive=True)

    @property
    def views(self) -> list[MessageView]:
        """The messages on the screen, from top to bottom."""
        return list(self.query(MessageView))

    def view(self, message: int) -> MessageView | None:
        """The view of a message, if it is on the screen."""
        return next((view for view in self.views if view.message.id == message), None)

    @property
    def last_answer(self) -> AnswerView | None:
        """The answer nearest to the end."""
        return next((view for view in reversed(self.views) if isinstance(view, AnswerView)), None)

    @property
    def chosen(self) -> MessageView | None:
        """The message that has the focus, or holds what has it; else the last."""
        focused = self.screen.focused
        for node in focused.ancestors_with_self if focused else ():
            if isinstance(node, MessageView):
                return node
        views = self.views
        return views[-1] if views else None


def _view(message: Message) -> MessageView:
    return AnswerView(message) if message.role == "assistant" else MessageView(message)
