"""The help screen's text, made from the registry of actions."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING

from eft_local.tui.actions.registry import ACTIONS, BY_ID, Action

if TYPE_CHECKING:
    from eft_local.chats import Message

HEADINGS = {
    "app": "Everywhere",
    "composer": "In the input",
    "message": "On a message (Shift+Tab or Ctrl+Up goes there)",
    "sidebar": "In the list of chats (F2)",
    "inspector": "In the inspector (F4)",
    "compare": "In a comparison (F5)",
    "models": "In the list of models (F9)",
}

MIN_COLUMN = 20
"""Characters of what an action does that stand on a line at least."""

_KEYS = {
    "ctrl": "Ctrl",
    "shift": "Shift",
    "escape": "Esc",
    "enter": "Enter",
    "tab": "Tab",
    "delete": "Del",
    "pageup": "PgUp",
    "pagedown": "PgDn",
}
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def help_text(remapped: Mapping[str, str] | None = None, width: int = 200) -> str:
    """Return all actions by scope, with keys, commands and ids.

    remapped: keys by action id, from the config.  width: characters of a line; what is longer wraps below its column.
    """
    blocks = []
    for scope, heading in HEADINGS.items():
        rows = [
            _row(action, (remapped or {}).get(action.id, action.keys)) for action in ACTIONS if action.scope == scope
        ]
        keys = max(len(row[0]) for row in rows)
        commands = max(len(row[1]) for row in rows)
        column = 2 + keys + 2 + commands + 2
        lines = [heading]
        for key, command, words in rows:
            first, *rest = wrap(words, max(MIN_COLUMN, width - column))
            lines += [f"  {key:{keys}}  {command:{commands}}  {first}", *(" " * column + line for line in rest)]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, _CONFIG])


_CONFIG = """\
Keys can be changed in config.toml (`eft doctor` names its folder), by action:
  [keys]
  "answer.stop" = "escape,f12"
The actions: """ + ", ".join(action.id for action in ACTIONS)


def _row(action: Action, keys: str) -> tuple[str, str, str]:
    command = f"/{action.slash} {action.argument}".rstrip() if action.slash else ""
    return ", ".join(key_name(key) for key in keys.split(",") if key), command, action.help


def key_name(key: str) -> str:
    """Return a key as people write it: ctrl+up as Ctrl+↑."""
    *modifiers, last = key.split("+")
    name = _KEYS.get(last) or _ARROWS.get(last) or _plain(last)
    return "+".join([*(_KEYS.get(part, part) for part in modifiers), name.upper() if modifiers else name])


def message_keys(message: Message, remapped: Mapping[str, str]) -> str:
    """Return what can be done with a message that has the focus, each with its shortest key."""
    names = ["message.edit" if message.role == "user" else "message.retry", "message.copy"]
    names += ["message.code"] if "```" in message.text else []
    names += ["message.previous", "message.next"] if len(message.siblings) > 1 else []
    actions = [BY_ID[name] for name in (*names, "composer.focus")]
    keys = [[key_name(key) for key in remapped.get(each.id, each.keys).split(",") if key] for each in actions]
    return " · ".join(
        f"{min(names, key=len)} {each.title.lower()}" for names, each in zip(keys, actions, strict=True) if names
    )


def _plain(part: str) -> str:
    return part.upper() if part[0] == "f" and part[1:].isdecimal() else part
