"""What actions on the input, answers, messages and chats do; `tools` has the others.

Every deed takes the app and what was typed behind the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from eft_local import locations
from eft_local.errors import OutputError, UsageError
from eft_local.tui import clipboard

if TYPE_CHECKING:
    from eft_local.tui.app import ChatApp
    from eft_local.tui.message import MessageView

# The input


async def send(app: ChatApp, _typed: str) -> None:
    """Send what is in the input: a slash command, or a question."""
    text = app.chat.composer.text
    if text.startswith("/") and not text.startswith("//"):
        from eft_local.tui.actions import read_slash

        action, argument = read_slash(text)
        app.chat.composer.take()
        app.say("")  # the hint on what was typed
        await app.perform(action, argument)
    elif text.strip():
        await app.ask(text[1:] if text.startswith("//") else text)


def newline(app: ChatApp, _typed: str) -> None:
    """Break the line."""
    app.chat.composer.insert("\n")


def complete(app: ChatApp, _typed: str) -> None:
    """Complete a slash command as far as it is clear; otherwise move the focus on."""
    from eft_local.tui.actions import completions

    found = [action.slash for action in completions(app.chat.composer.text)]
    if not found:
        app.action_focus_next()
    elif " " not in app.chat.composer.text:
        common = found[0]
        while not all(name.startswith(common) for name in found):
            common = common[:-1]
        app.chat.composer.write(f"/{common}" + (" " if len(found) == 1 else ""))


def editor(app: ChatApp, _typed: str) -> None:
    """Write in the user's editor. Raises: UsageError if there is none, or it fails."""
    command = app.config.editor or os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not command:
        raise UsageError("no editor is named; set EDITOR, or editor in the config")
    with tempfile.TemporaryDirectory(prefix="eft-") as folder:
        file = Path(folder, "message.md")
        file.write_text(app.chat.composer.text, "utf-8")
        try:
            with app.suspend():
                # stderr is the terminal that Textual draws on: descriptor 2 itself is guarded.
                code = subprocess.run([*shlex.split(command), str(file)], stderr=sys.__stderr__, check=False).returncode
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {command!r} cannot be started ({error}); set EDITOR") from None
        if code:
            raise UsageError(f"the editor {command!r} ended with {code}; the input is as it was")
        app.chat.composer.write(file.read_text("utf-8-sig", errors="replace").rstrip("\n"))
    app.refresh()


def focus_composer(app: ChatApp, _typed: str) -> None:
    """Go to the input."""
    app.chat.composer.focus()


def page_up(app: ChatApp, _typed: str) -> None:
    """Scroll the chat while the input keeps the focus."""
    app.chat.transcript.release_anchor()
    app.chat.transcript.scroll_page_up(animate=False)


def page_down(app: ChatApp, _typed: str) -> None:
    """Scroll the chat back."""
    app.chat.transcript.scroll_page_down(animate=False)


# The answer


def escape(app: ChatApp, _typed: str) -> None:
    """Stop the answer; else leave what is open, from the inside out."""
    from eft_local.tui.compare import CompareScreen
    from eft_local.tui.models import ModelsScreen

    if isinstance(app.screen, CompareScreen):
        app.screen.escape()
    elif isinstance(app.screen, ModelsScreen):
        app.screen.dismiss(None)
    elif app.chat.editing is not None:
        app.chat.end_edit()
    elif app.engine.busy:
        app.stop()
    elif not app.chat.composer.has_focus:
        app.chat.composer.focus()
    elif app.chat.inspecting:
        app.chat.close_inspector()
    elif app.knobs.display:
        app.knobs.display = False
    else:
        app.say("")


async def regenerate(app: ChatApp, _typed: str) -> None:
    """Answer the last question again."""
    app.session.regenerate()
    await app.begin()


async def regenerate_here(app: ChatApp, _typed: str) -> None:
    """Answer the question of the chosen message again."""
    app.session.regenerate(_chosen(app).message.id)
    await app.begin()


async def go_on(app: ChatApp, _typed: str) -> None:
    """Continue a stopped answer."""
    app.session.go_on()
    await app.begin()


# Messages


def focus_message(app: ChatApp, _typed: str) -> None:
    """Go to the last message. Raises: UsageError if there is none."""
    views = app.chat.transcript.views
    if not views:
        raise UsageError("there is no message yet; ask something")
    views[-1].focus()


async def message_up(app: ChatApp, _typed: str) -> None:
    """Go to the message above; earlier ones are fetched."""
    view = _chosen(app)
    if view is app.chat.transcript.views[0]:
        await app.chat.transcript.load_earlier()
    views = app.chat.transcript.views
    views[max(0, views.index(view) - 1)].focus()


def message_down(app: ChatApp, _typed: str) -> None:
    """Go to the message below, and from the last one to the input."""
    views = app.chat.transcript.views
    place = views.index(_chosen(app)) + 1
    if place < len(views):
        views[place].focus()
    else:
        app.chat.composer.focus()


def edit(app: ChatApp, _typed: str) -> None:
    """Put the chosen question, or the last one, into the input to ask it in other words."""
    view = app.chat.transcript.chosen
    question = app.session.question_of(view.message.id if view else None)
    app.chat.begin_edit(question)


async def copy(app: ChatApp, _typed: str) -> None:
    """Copy the chosen message, or the last one."""
    await _copy(app, _chosen(app).message.text)


async def copy_code(app: ChatApp, typed: str) -> None:
    """Copy a block of code of the chosen answer, or of the last one. Raises: UsageError."""
    from eft_local.tui.message import AnswerView

    chosen = _chosen(app)
    view = chosen if isinstance(chosen, AnswerView) else app.chat.transcript.last_answer
    blocks = view.code_blocks() if view is not None else []
    if not blocks:
        raise UsageError("this message has no block of code; /copy takes the whole message")
    if typed and not (typed.isdecimal() and 1 <= int(typed) <= len(blocks)):
        raise UsageError(f"/code {typed}: there are blocks 1 to {len(blocks)}")
    await _copy(app, blocks[int(typed) - 1 if typed else -1])


async def previous_branch(app: ChatApp, _typed: str) -> None:
    """Show the branch before this one."""
    await _switch(app, -1)


async def next_branch(app: ChatApp, _typed: str) -> None:
    """Show the branch after this one."""
    await _switch(app, +1)


async def _switch(app: ChatApp, by: int) -> None:
    view = _chosen(app)
    if not app.session.switch(view.message, by):
        raise UsageError("there is no other branch on this side")
    place = app.chat.transcript.views.index(view)
    await app.chat.show_messages()
    app.chat.transcript.views[place].focus()


def _chosen(app: ChatApp) -> MessageView:
    view = app.chat.transcript.chosen
    if view is None:
        raise UsageError("there is no message yet; ask something")
    return view


async def _copy(app: ChatApp, text: str) -> None:
    command = clipboard.native_command()
    if await asyncio.to_thread(clipboard.copy_native, text, command):
        app.say(f"copied {len(text)} characters")
    elif clipboard.understands_osc52():
        app.copy_to_clipboard(text)
        app.say(f"sent {len(text)} characters to the terminal's clipboard (OSC 52)")
    else:
        raise UsageError(
            "nothing was copied: there is no wl-copy, xclip or xsel, and this terminal takes no OSC 52; "
            "install one of them, or use /export"
        )


# Chats


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
    await app.delete_chat(app.session.chat)


async def delete_chosen(app: ChatApp, _typed: str) -> None:
    """Delete the chat that is chosen in the sidebar."""
    chat = app.sidebar.chosen
    if chat is not None:
        await app.delete_chat(chat)


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
        file.write_text(app.session.exported(as_json=file.suffix == ".json"), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from None
    app.say(f"written to {file.absolute()}")


def system(app: ChatApp, typed: str) -> None:
    """Set the system prompt; without a text, edit it."""
    from eft_local.tui.screens import TextScreen

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
