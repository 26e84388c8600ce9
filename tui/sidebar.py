"""The saved chats: a list, newest first, and a search over all they hold."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from eft_local.history import Chat, Hit
from eft_local.tui.actions import bindings
from eft_local.tui.text import visible

LINE = 26
"""Characters of a line in the list."""


LISTED = 200
"""Chats in the list: it is made anew after every answer."""


class ChatList(OptionList):
    """Chats to choose from."""

    BINDINGS = bindings("sidebar")


class Sidebar(Vertical):
    """Saved chats and their search."""

    class Searched(Message):
        """The words that are searched for have changed."""

    class Opened(Message):
        """A chat was chosen; message: where its words stand, if it was found by them."""

        def __init__(self, chat: str, message: int | None) -> None:
            super().__init__()
            self.chat = chat
            self.message = message

    def __init__(self) -> None:
        super().__init__(id="sidebar")
        self.border_title = "chats"
        self._found: list[tuple[Chat, int | None]] = []

    def compose(self) -> ComposeResult:
        """Lay out search and list."""
        yield Input(placeholder="search all chats", id="search", compact=True)
        yield ChatList(id="chats", compact=True)

    def show(self, chats: Sequence[Chat], current: str | None) -> None:
        """List chats, at most LISTED of them; the current one is marked."""
        self._list([(chat, None, _entry(chat, chat.id == current)) for chat in chats[:LISTED]])
        if len(chats) > LISTED:
            self.query_one(ChatList).add_option(Option("  older chats: search finds them", disabled=True))

    def show_hits(self, hits: Sequence[Hit]) -> None:
        """List what a search found."""
        self._list([(hit.chat, hit.message, _found(hit)) for hit in hits])

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
        return self._found[place][0] if place is not None and place < len(self._found) else None

    def _list(self, rows: Sequence[tuple[Chat, int | None, Content]]) -> None:
        chats = self.query_one(ChatList)
        place = chats.highlighted
        self._found = [(chat, message) for chat, message, _ in rows]
        chats.clear_options()
        chats.add_options([Option(content) for _, _, content in rows] or [Option("nothing yet", disabled=True)])
        if rows:
            chats.highlighted = min(place or 0, len(rows) - 1)

    @on(Input.Changed, "#search")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Searched())

    @on(Input.Submitted, "#search")
    def _to_list(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one(ChatList).focus()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        chat, message = self._found[event.option_index]
        self.post_message(self.Opened(chat.id, message))


def cut(text: str) -> str:
    """Return a text that fits on a line of the list."""
    return text if len(text) <= LINE else text[: LINE - 1] + "…"


def _entry(chat: Chat, current: bool) -> Content:
    mark = "▸ " if current else "  "
    when = chat.updated.astimezone().strftime("%d %b %H:%M")
    title = cut(visible(chat.title) or "(untitled)")
    return Content.assemble(f"{mark}{title}\n", (cut(f"  {when} · {chat.id} · {chat.recipe.name}"), "dim"))


def _found(hit: Hit) -> Content:
    title = cut(visible(hit.chat.title) or "(untitled)")
    snippet = Content(hit.snippet.replace("\n", " "))
    for start, end in hit.marks:
        snippet = snippet.stylize("bold underline", start, end)
    return Content.assemble(("  " + title + "\n", "bold"), "  ", snippet)
