"""What the keys of the input do.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from eft_local.errors import UsageError
from eft_local.tui.actions.registry import completions, read_slash
from eft_local.tui.app import ChatApp, Handlers


async def send(app: ChatApp, _typed: str) -> None:
    """Send what is in the input: a slash command, or a question."""
    text = app.chat.composer.text
    if text.startswith("/") and not text.startswith("//"):
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


HANDLERS: Handlers = {
    "composer.send": send,
    "composer.newline": newline,
    "composer.complete": complete,
    "composer.editor": editor,
    "transcript.up": page_up,
    "transcript.down": page_down,
    "composer.focus": focus_composer,
}
