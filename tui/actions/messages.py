"""Answers and messages: again, continued, in other words, copied, on another branch.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

import asyncio

from eft_local.errors import UsageError
from eft_local.tui import clipboard
from eft_local.tui.app import ChatApp, Handlers
from eft_local.tui.widgets.message import AnswerView, MessageView


async def regenerate(app: ChatApp, _typed: str) -> None:
    """Answer the last question again."""
    app.session.regenerate()
    await app.begin()


async def regenerate_here(app: ChatApp, _typed: str) -> None:
    """Answer the question of the chosen message again."""
    app.session.regenerate(_chosen(app).message.id)
    await app.begin()


async def continue_answer(app: ChatApp, _typed: str) -> None:
    """Continue a stopped answer."""
    app.session.continue_answer()
    await app.begin()


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


HANDLERS: Handlers = {
    "answer.regenerate": regenerate,
    "answer.continue": continue_answer,
    "message.focus": focus_message,
    "message.up": message_up,
    "message.down": message_down,
    "message.edit": edit,
    "message.retry": regenerate_here,
    "message.copy": copy,
    "message.code": copy_code,
    "message.previous": previous_branch,
    "message.next": next_branch,
}
