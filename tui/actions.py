"""The one registry of what the app can do: keys, slash commands, the palette and the help screen are made from it.

A key can be changed in the config by its action's id. Scopes say where a key works: everywhere ("app"), or while the
input ("composer"), a message, the list of chats ("sidebar"), a token ("inspector"), a column ("compare") or the
list of models ("models") has the focus.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.binding import Binding, BindingType

from eft_local.checks import nearest
from eft_local.errors import UsageError
from eft_local.tui import deeds, shelf, tools
from eft_local.tui.knobs import KNOBS

if TYPE_CHECKING:
    from eft_local.tui.app import ChatApp

Deed = Callable[["ChatApp", str], "Coroutine[Any, Any, None] | None"]


@dataclass(frozen=True, slots=True)
class Action:
    """Something the user can do.

    id: for the config.  keys: Textual's names, separated by commas.  slash: the command's name, without its slash.
    argument: what may follow the command, for help; it is handed to `deed`.  urgent: the key works before any widget
    sees it.
    """

    id: str
    title: str
    help: str
    deed: Deed
    keys: str = ""
    slash: str = ""
    argument: str = ""
    scope: str = "app"
    urgent: bool = False


ACTIONS: tuple[Action, ...] = (
    # The input
    Action("composer.send", "Send", "send what is written", deeds.send, "enter", scope="composer"),
    Action(
        "composer.newline",
        "New line",
        "break the line",
        deeds.newline,
        "ctrl+j,shift+enter",
        scope="composer",
    ),
    Action(
        "composer.complete",
        "Complete",
        "complete a slash command; otherwise go on to the next part",
        deeds.complete,
        "tab",
        scope="composer",
    ),
    Action("composer.editor", "Editor", "write in $EDITOR", deeds.editor, "ctrl+g", "editor"),
    Action("transcript.up", "Page up", "scroll the chat up", deeds.page_up, "pageup", scope="composer"),
    Action("transcript.down", "Page down", "scroll the chat down", deeds.page_down, "pagedown", scope="composer"),
    Action("composer.focus", "To the input", "go to the input", deeds.focus_composer, "ctrl+k,i", scope="message"),
    # The answer
    Action("answer.stop", "Stop", "stop the answer and keep it; close what is open", deeds.escape, "escape", "stop"),
    Action("answer.regenerate", "Again", "answer the last question again", deeds.regenerate, "ctrl+r", "retry"),
    Action("answer.continue", "Go on", "continue a stopped answer", deeds.go_on, "ctrl+l", "continue"),
    # Messages
    Action("message.focus", "To the messages", "go to the last message", deeds.focus_message, "ctrl+up"),
    Action("message.up", "Message above", "go to the message above", deeds.message_up, "up,k", scope="message"),
    Action("message.down", "Message below", "go to the message below", deeds.message_down, "down,j", scope="message"),
    Action("message.edit", "Edit", "ask this question in other words", deeds.edit, "e", "edit", scope="message"),
    Action("message.retry", "Answer again", "answer again here", deeds.regenerate_here, "r", scope="message"),
    Action("message.copy", "Copy", "copy the message", deeds.copy, "c", "copy", scope="message"),
    Action(
        "message.code",
        "Copy code",
        "copy a block of code: the last one, or the N-th",
        deeds.copy_code,
        "b",
        "code",
        "[N]",
        scope="message",
    ),
    Action(
        "message.previous",
        "Branch before",
        "show the branch before this one",
        deeds.previous_branch,
        "left,h",
        "previous",
        scope="message",
    ),
    Action(
        "message.next",
        "Branch after",
        "show the branch after this one",
        deeds.next_branch,
        "right,l",
        "next",
        scope="message",
    ),
    # Chats
    Action("chat.new", "New chat", "begin a new chat", deeds.new_chat, "ctrl+n", "new"),
    Action("chat.list", "Chats", "show or hide the saved chats", deeds.toggle_sidebar, "f2", "chats"),
    Action("chat.search", "Search", "search all chats for words", deeds.search, "ctrl+s", "search", "[WORDS]"),
    Action("chat.open", "Open chat", "open a saved chat by its id", deeds.open_chat, "", "open", "ID"),
    Action("chat.rename", "Rename", "give the chat another title", deeds.rename, "", "rename", "[TITLE]"),
    Action("chat.delete", "Delete", "delete the chat; /undo brings it back", deeds.delete, "", "delete"),
    Action("chat.remove", "Delete", "delete the chosen chat", deeds.delete_chosen, "delete,d", scope="sidebar"),
    Action("chat.undo", "Undo delete", "bring the last deleted chat back", deeds.undo, "", "undo"),
    Action("chat.undelete", "Undo delete", "bring the last deleted chat back", deeds.undo, "u", scope="sidebar"),
    Action(
        "chat.export",
        "Export",
        "write the chat to a file: Markdown, or JSON with all branches",
        deeds.export,
        "",
        "export",
        "[FILE.md|FILE.json]",
    ),
    Action(
        "chat.system",
        "System prompt",
        "set the system prompt, or edit it",
        deeds.system,
        "f6",
        "system",
        "[TEXT]",
        urgent=True,
    ),
    Action("chat.drop", "Drop oldest turns", "leave the oldest turns out of the prompt", deeds.drop, "", "drop", "[N]"),
    # Models and knobs
    Action("recipe.switch", "Recipe", "load another recipe", tools.recipe, "ctrl+o", "recipe", "[NAME|FILE]"),
    Action("recipe.only", "Who answers", "let one role answer alone, or eft", tools.only, "", "only", "[ROLE]"),
    Action("knobs.panel", "Knobs", "show or hide the knobs", tools.toggle_knobs, "f3", "knobs"),
    Action("knobs.less", "Less tuning", "alpha down by 0.1, from the next token", tools.less_alpha, "f7", urgent=True),
    Action("knobs.more", "More tuning", "alpha up by 0.1, from the next token", tools.more_alpha, "f8", urgent=True),
    Action("preset.load", "Preset", "use a preset of this recipe", tools.preset, "", "preset", "[NAME]"),
    Action("preset.save", "Save preset", "keep the knobs as a preset", tools.save_preset, "", "save-preset", "NAME"),
    Action("preset.forget", "Forget preset", "remove a preset", tools.forget_preset, "", "forget-preset", "NAME"),
    *(
        Action(
            f"knob.{knob.name}",
            knob.title,
            knob.help,
            tools.turn(knob),
            slash=knob.slash,
            argument=knob.argument,
        )
        for knob in KNOBS
    ),
    Action("knobs.mix", "Mix", "two experts: X for the first, 1 − X for the second", tools.mix, "", "mix", "X"),
    # Models on the hub
    Action("models.open", "Models", "list recipes and models: pull, use, remove", shelf.open_models, "f9", "models"),
    Action("models.get", "Pull", "download a recipe's models, or one", shelf.get, "", "pull", "RECIPE|ORG/REPO:LABEL"),
    Action("models.pull", "Pull", "download what the chosen one lacks", shelf.pull, "p", scope="models"),
    Action("models.stop", "Stop pulling", "stop the download; it can go on later", shelf.stop, "x", scope="models"),
    Action("models.use", "Use", "load the chosen recipe", shelf.use, "enter", scope="models"),
    Action(
        "models.remove",
        "Remove",
        "delete the chosen one's files, after asking",
        shelf.remove,
        "delete,d",
        scope="models",
    ),
    # Looking closer
    Action("inspector.panel", "Inspector", "tint tokens by who decided them", tools.toggle_inspector, "f4", "inspect"),
    Action("inspector.left", "Token before", "go to the token before", tools.token_left, "left", scope="inspector"),
    Action("inspector.right", "Token after", "go to the token after", tools.token_right, "right", scope="inspector"),
    Action("inspector.next", "Next change", "go to the next changed choice", tools.next_change, "n", scope="inspector"),
    Action(
        "inspector.branch",
        "Continue from here",
        "let the answer continue from the chosen candidate",
        tools.branch_from_candidate,
        "enter",
        scope="inspector",
    ),
    Action("inspector.up", "Candidate above", "go to the candidate above", tools.candidate_up, "up", scope="inspector"),
    Action(
        "inspector.down",
        "Candidate below",
        "go to the candidate below",
        tools.candidate_down,
        "down",
        scope="inspector",
    ),
    Action(
        "compare.open",
        "Compare",
        "let several answer the last question, side by side",
        tools.compare,
        "f5",
        "compare",
        "[ROLE|ALPHA …]",
    ),
    Action("compare.left", "Column before", "go to the column before", tools.column_left, "left", scope="compare"),
    Action("compare.right", "Column after", "go to the column after", tools.column_right, "right", scope="compare"),
    Action("compare.pick", "Pick", "continue with this answer", tools.pick_column, "enter", scope="compare"),
    # The app
    Action("app.help", "Help", "show keys and commands", tools.show_help, "f1", "help"),
    Action("app.palette", "Palette", "find an action by its name", tools.palette, "ctrl+p", "palette"),
    Action("app.theme", "Theme", "change the colours", tools.theme, "", "theme", "[NAME]"),
    Action(
        "app.interrupt",
        "Interrupt",
        "stop loading, stop the answer, or offer to quit",
        tools.interrupt,
        "ctrl+c",
        urgent=True,
    ),
    Action("app.quit", "Quit", "leave; what is typed is kept", tools.leave, "ctrl+q", "quit"),
)

BY_ID = {action.id: action for action in ACTIONS}
BY_SLASH = {action.slash: action for action in ACTIONS if action.slash}


def bindings(scope: str) -> list[BindingType]:
    """Return the key bindings of a scope."""
    return [
        Binding(
            action.keys,
            f"app.perform('{action.id}')",
            action.title,
            show=False,
            priority=action.urgent,
            id=action.id,
            tooltip=action.help,
        )
        for action in ACTIONS
        if action.scope == scope and action.keys
    ]


def keys_of(scope: str, remapped: Mapping[str, str]) -> dict[str, str]:
    """Return the id of each key's action in a scope. remapped: keys by action id, from the config."""
    return {
        key.strip(): action.id
        for action in ACTIONS
        if action.scope == scope
        for key in remapped.get(action.id, action.keys).split(",")
    }


def read_slash(line: str) -> tuple[Action, str]:
    """Return the action that a line "/name argument" names, and its argument. Raises: UsageError."""
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in BY_SLASH:
        raise UsageError(f"unknown command /{name}; did you mean /{nearest(name, BY_SLASH)}? /help lists them")
    return BY_SLASH[name], argument.strip()


def completions(line: str) -> Iterator[Action]:
    """Yield the actions whose slash command begins as the line does."""
    if line.startswith("/") and "\n" not in line:
        name, space, _ = line[1:].partition(" ")
        for action in BY_SLASH.values():
            if action.slash == name if space else action.slash.startswith(name):
                yield action
