"""How a conversation begins: empty, or as the continuation of a saved chat, saved or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from eft_local.chats.copying import copied
from eft_local.chats.history import History
from eft_local.chats.records import Chat
from eft_local.errors import HistoryError, UsageError
from eft_local.recipe import Recipe


def chat_to_continue(history: History, chat: str | None, *, resume: bool) -> Chat | None:
    """Return the chat named `chat`, or (resume) the last one; None begins a new chat.

    Raises: UsageError if there is no such chat, HistoryError if it cannot be read.
    """
    if chat is None and not resume:
        return None
    if chat is not None and resume:
        raise UsageError("--continue resumes the last chat, --chat ID a chosen one; give only one of them")
    found = history.latest() if chat is None else history.chat(chat)
    if found is None:
        raise UsageError("there is no chat to continue yet; start one with `eft chat`")
    if found.deleted:
        raise UsageError(f"chat {found.id} is deleted; `eft history undo {found.id}` brings it back")
    return found


@contextmanager
def unsaved(history: History, chat: Chat | None, recipe: Recipe) -> Iterator[tuple[History, Chat | None]]:
    """Yield a history that is forgotten, with a copy of what is shown of a chat; recipe: with which it continues."""
    with History.unsaved() as memory:
        if chat is None:
            yield memory, None
        else:
            shown = history.shown(chat.id)
            prompt = chat.system_prompt
            copy = copied(shown, memory, recipe, system_prompt=prompt, title=chat.title, statistics=history.statistics)
            yield memory, copy


@contextmanager
def closing(history: History) -> Iterator[History]:
    """Close a history at the end; what could not be saved has been said."""
    try:
        yield history
    finally:
        with suppress(HistoryError):
            history.close()
