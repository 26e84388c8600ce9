"""The help screen's text, made from the registry of actions."""

from __future__ import annotations

from collections.abc import Mapping

from eft_local.tui.actions import ACTIONS, Action

HEADINGS = {
    "app": "Everywhere",
    "composer": "In the input",
    "message": "On a message (Shift+Tab or Ctrl+Up goes there)",
    "sidebar": "In the list of chats (F2)",
    "inspector": "In the inspector (F4)",
    "compare": "In a comparison (F5)",
    "models": "In the list of models (F9)",
}

_KEYS = {"ctrl": "Ctrl", "shift": "Shift", "escape": "Esc", "enter": "Enter", "tab": "Tab", "delete": "Del"}
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def help_text(remapped: Mapping[str, str] | None = None) -> str:
    """Return all actions by scope, with keys, commands and ids. remapped: keys by action id, from the config."""
    blocks = []
    for scope, heading in HEADINGS.items():
        rows = [
            _row(action, (remapped or {}).get(action.id, action.keys)) for action in ACTIONS if action.scope == scope
        ]
        keys = max(len(row[0]) for row in rows)
        commands = max(len(row[1]) for row in rows)
        lines = [f"  {key:{keys}}  {command:{commands}}  {words}" for key, command, words in rows]
        blocks.append("\n".join([heading, *lines]))
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


def _plain(part: str) -> str:
    return part.upper() if part[0] == "f" and part[1:].isdecimal() else part
