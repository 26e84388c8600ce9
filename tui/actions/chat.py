"""Saved chats: begun, found, named, deleted, exported, and their system prompt.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

from eft_local import files, locations
from eft_local.chats import Chat
from eft_local.errors import OutputError, UsageError
from eft_local.tui.app import ChatApp, Handlers
from eft_local.tui.screens.dialogs import TextScreen


async def new_chat(app: ChatApp, _typed: str) -> None:
    """Begin a new chat."""
    app.keep_typed()
    app.session.new()
    await app.show_chat()


def toggle_sidebar(app: ChatApp, _typed: str) -> None:
    """Show the saved chats and go there, or hide them."""
    if app.sidebar.display and app.sidebar.query_one("#chats").has_focus:
        app.show_sidebar(False)
        app.chat.composer.focus()
    else:
        app.show_sidebar(True)
        app.sidebar.query_one("#chats").focus()


def search(app: ChatApp, typed: str) -> None:
    """Search all chats."""
    app.show_sidebar(True)
    app.sidebar.search(typed)


async def open_chat(app: ChatApp, typed: str) -> None:
    """Open a saved chat by its id. Raises: UsageError."""
    if not typed:
        raise UsageError("/open: needs a chat's id; F2 lists them")
    await app.open_chat(typed)


def rename(app: ChatApp, typed: str) -> None:
    """Rename the chat; without a title, ask for one. Raises: UsageError."""
    if app.session.chat is None:
        raise UsageError("this chat has no title yet: it begins with its first question")
    if typed:
        app.session.rename(typed)
        app.show_chats()
        app.say(f"renamed to {typed}")
    else:
        app.chat.composer.write(f"/rename {app.session.chat.title}")
        app.chat.composer.focus()


async def delete(app: ChatApp, _typed: str) -> None:
    """Delete the chat that is open. Raises: UsageError."""
    if app.session.chat is None:
        raise UsageError("there is nothing to delete: this chat is empty")
    await _delete(app, app.session.chat)


async def delete_chosen(app: ChatApp, _typed: str) -> None:
    """Delete the chat that is chosen in the sidebar."""
    chat = app.sidebar.chosen
    if chat is not None:
        await _delete(app, chat)


async def _delete(app: ChatApp, chat: Chat) -> None:
    """Delete a chat; it can be brought back, with what was being typed in it."""
    app.keep_typed()
    if app.session.chat is not None and chat.id == app.session.chat.id:
        if app.session.unsaved:
            raise UsageError("this chat is not saved: there is nothing to delete")
        app.session.new()
        await app.show_chat()
    app.history.delete(chat.id)
    app.show_chats()
    app.say(f"{chat.title or chat.id} is deleted; /undo brings it back")


async def undo(app: ChatApp, _typed: str) -> None:
    """Bring the last deleted chat back and open it."""
    chat = app.history.restore()
    await app.open_chat(chat.id)
    app.say(f"{chat.title or chat.id} is back")


def export(app: ChatApp, typed: str) -> None:
    """Write the chat to a file that does not exist yet. Raises: UsageError, OutputError."""
    chat = app.session.chat
    if chat is None:
        raise UsageError("there is nothing to export: this chat is empty")
    file = locations.expanded(typed or f"chat-{chat.id}.md")
    if file.suffix not in (".md", ".json"):
        raise UsageError(f"/export {typed}: the name must end in .md or .json")
    if file.exists():
        raise UsageError(f"{file} exists already; name another file")
    try:
        files.write(file, app.session.exported(as_json=file.suffix == ".json").encode())
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from None
    app.say(f"written to {file.absolute()}")


def system(app: ChatApp, typed: str) -> None:
    """Set the system prompt; without a text, edit it."""

    def accept(text: str | None) -> None:
        if text is not None:
            app.session.set_system(text.strip())
            app.say(f"system prompt: {app.session.system}" if app.session.system else "no system prompt")
            app.show_state()

    if typed:
        accept(typed)
    else:
        app.push_screen(TextScreen("system prompt of this chat", app.session.system or ""), accept)


async def drop(app: ChatApp, typed: str) -> None:
    """Leave the oldest turns out of the prompt; 0 takes them all in again. Raises: UsageError."""
    if typed and not typed.isdecimal():
        raise UsageError(f"/drop {typed}: needs a whole number of turns; 0 drops none")
    app.session.drop(int(typed) if typed else app.session.dropped + 1)
    await app.chat.show_messages()
    dropped = app.session.dropped
    app.say(f"the oldest {dropped} turns are not in the prompt any more" if dropped else "all turns are in the prompt")


HANDLERS: Handlers = {
    "chat.new": new_chat,
    "chat.list": toggle_sidebar,
    "chat.search": search,
    "chat.open": open_chat,
    "chat.rename": rename,
    "chat.delete": delete,
    "chat.remove": delete_chosen,
    "chat.undo": undo,
    "chat.undelete": undo,
    "chat.export": export,
    "chat.system": system,
    "chat.drop": drop,
}
