"""The saved chats: a list, newest first, loaded in pieces, and a search over all they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from eft_local.analysis.format import printable
from eft_local.chats import Chat, Hit
from eft_local.tui.actions.registry import bindings

LINE = 26
"""Characters of a line in the list."""

LINES = 2
"""Lines of a chat in the list."""

PIECE = 20
"""Chats that are listed at a time, down to where is looked at: the list's price must not grow with the history."""


class ChatList(OptionList):
    """Chats to choose from."""

    BINDINGS = bindings("sidebar")

    class Looked(Message):
        """Another part of the list is looked at."""

    @property
    def lowest(self) -> int:
        """How many chats there are down to the lowest that is looked at, or is highlighted."""
        seen = (self.scroll_offset.y + self.size.height) // LINES
        return max(seen, (self.highlighted or 0) + 1)

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        """Take another size, and only that: Textual would draw the scrollbar anew, line by line, at every layout."""
        return size != self.outer_size and super()._size_updated(size, virtual_size, container_size, layout)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Tell where is looked at."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Looked())

    def watch_highlighted(self, highlighted: int | None) -> None:
        """Tell where is looked at."""
        super().watch_highlighted(highlighted)
        self.post_message(self.Looked())

    def on_resize(self) -> None:
        """Tell how much is looked at."""
        self.post_message(self.Looked())


class Sidebar(Vertical):
    """Saved chats and their search."""

    class Wanted(Message):
        """Other chats are to be listed: other words are searched for, or older chats are looked at."""

    class Opened(Message):
        """A chat was chosen; message: where its words stand, if it was found by them."""

        def __init__(self, chat: str, message: int | None) -> None:
            super().__init__()
            self.chat = chat
            self.message = message

    def __init__(self) -> None:
        super().__init__(id="sidebar")
        self.border_title = "chats"
        self._rows: list[_Row] = []
        self._complete = False  # there are no older chats

    def compose(self) -> ComposeResult:
        """Lay out search and list."""
        yield Input(placeholder="search all chats", id="search", compact=True)
        yield ChatList(id="chats", compact=True)

    def show(self, chats: Sequence[Chat], current: str | None) -> None:
        """List the newest chats, as many as there is `room` for; the current one is marked."""
        self._complete = len(chats) < self.room
        self._list([_Row(chat, None, _entry(chat, chat.id == current)) for chat in chats])

    def show_hits(self, hits: Sequence[Hit]) -> None:
        """List what a search found."""
        self._list([_Row(hit.chat, hit.message, _found(hit)) for hit in hits])

    @property
    def room(self) -> int:
        """How many chats to list: whole pieces, and always some below what is looked at."""
        return (self.query_one(ChatList).lowest // PIECE + 1) * PIECE

    @property
    def words(self) -> str:
        """What is searched for; "" lists all."""
        return self.query_one("#search", Input).value.strip()

    def search(self, words: str) -> None:
        """Type words into the search."""
        field = self.query_one("#search", Input)
        field.value = words
        field.focus()

    @property
    def chosen(self) -> Chat | None:
        """The highlighted chat."""
        place = self.query_one(ChatList).highlighted
        return self._rows[place].chat if place is not None and place < len(self._rows) else None

    def _list(self, rows: Sequence[_Row]) -> None:
        """List rows. What is listed already stays: nothing here takes as long as to lay out and draw a list anew."""
        chats, listed = self.query_one(ChatList), self._rows
        self._rows = list(rows)
        stays = len(listed) <= len(rows) and all(map(_Row.looks_like, listed, rows))
        if stays and listed:
            chats.add_options(Option(row.content) for row in rows[len(listed) :])
            return
        place = chats.highlighted
        chats.set_options([Option(row.content) for row in rows] or [Option("nothing yet", disabled=True)])
        if rows:
            chats.highlighted = min(place or 0, len(rows) - 1)

    @on(ChatList.Looked)
    def _list_older(self, event: ChatList.Looked) -> None:
        event.stop()
        if not self.words and len(self._rows) < self.room and not self._complete:
            self.post_message(self.Wanted())

    @on(Input.Changed, "#search")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Wanted())

    @on(Input.Submitted, "#search")
    def _to_list(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one(ChatList).focus()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        row = self._rows[event.option_index]
        self.post_message(self.Opened(row.chat.id, row.message))


class _Row(NamedTuple):
    """A line of the list; message: where the words of a search stand."""

    chat: Chat
    message: int | None
    content: Content

    def looks_like(self, other: _Row) -> bool:
        """Whether two rows look the same."""
        return self.content.is_same(other.content)


def cut(text: str) -> str:
    """Return a text that fits on a line of the list."""
    return text if len(text) <= LINE else text[: LINE - 1] + "…"


def _entry(chat: Chat, current: bool) -> Content:
    mark = "▸ " if current else "  "
    title = cut(printable(chat.title) or "(untitled)")
    return Content.assemble(f"{mark}{title}\n", (cut(f"  {_when(chat)} · {chat.id} · {chat.recipe.name}"), "dim"))


def _when(chat: Chat) -> str:
    return chat.updated.astimezone().strftime("%d %b %H:%M")


def _found(hit: Hit) -> Content:
    title = cut(printable(hit.chat.title) or "(untitled)")
    snippet = Content(hit.snippet.replace("\n", " "))
    for start, end in hit.marks:
        snippet = snippet.stylize("bold underline", start, end)
    return Content.assemble(("  " + title + "\n", "bold"), "  ", snippet)
