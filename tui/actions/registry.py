"""The one registry of what the app can do: keys, slash commands, the palette and the help screen are made from it.

It holds words and keys only, so that widgets can bind theirs; `handlers` has what an action does. A key can be changed
in the config by its action's id. Scopes say where a key works: everywhere ("app"), or while the input ("composer"), a
message, the list of chats ("sidebar"), a token ("inspector"), a column ("compare") or the list of models ("models") has
the focus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

from eft_local.chats.knobs import KNOBS
from eft_local.errors import UsageError, nearest


@dataclass(frozen=True, slots=True)
class Action:
    """Something the user can do.

    id: for the config.  keys: Textual's names, separated by commas.  slash: the command's name, without its slash.
    argument: what may follow the command, for help; the handler gets it.  urgent: the key works before any widget sees
    it.
    """

    id: str
    title: str
    help: str
    keys: str = ""
    slash: str = ""
    argument: str = ""
    scope: str = "app"
    urgent: bool = False


ACTIONS: tuple[Action, ...] = (
    # The input
    Action("composer.send", "Send", "send the message", "enter", scope="composer"),
    Action(
        "composer.newline",
        "New line",
        "insert a line break",
        "ctrl+j,shift+enter",
        scope="composer",
    ),
    Action(
        "composer.complete",
        "Complete",
        "complete a slash command; otherwise move to the next part",
        "tab",
        scope="composer",
    ),
    Action("composer.editor", "Editor", "write in $EDITOR", "ctrl+g", "editor"),
    Action("transcript.up", "Page up", "scroll the chat up", "pageup", scope="composer"),
    Action("transcript.down", "Page down", "scroll the chat down", "pagedown", scope="composer"),
    Action("composer.focus", "To the input", "go to the input", "ctrl+k,i", scope="message"),
    # The answer
    Action("answer.stop", "Stop", "stop the answer and keep it; close what is open", "escape", "stop"),
    Action("answer.regenerate", "Regenerate", "answer the last question again", "ctrl+r", "retry"),
    Action("answer.continue", "Continue", "continue a stopped answer", "ctrl+l", "continue"),
    # Messages
    Action("message.focus", "To the messages", "go to the last message", "ctrl+up"),
    Action("message.up", "Message above", "go to the message above", "up,k", scope="message"),
    Action("message.down", "Message below", "go to the message below", "down,j", scope="message"),
    Action("message.edit", "Edit", "edit this question and send it again", "e", "edit", scope="message"),
    Action("message.retry", "Answer again", "answer again here", "r", scope="message"),
    Action("message.copy", "Copy", "copy the message", "c", "copy", scope="message"),
    Action(
        "message.code",
        "Copy code",
        "copy a block of code: the last one, or the N-th",
        "b",
        "code",
        "[N]",
        scope="message",
    ),
    Action(
        "message.previous",
        "Branch before",
        "show the branch before this one",
        "left,h",
        "previous",
        scope="message",
    ),
    Action(
        "message.next",
        "Branch after",
        "show the branch after this one",
        "right,l",
        "next",
        scope="message",
    ),
    # Chats
    Action("chat.new", "New chat", "begin a new chat", "ctrl+n", "new"),
    Action("chat.list", "Chats", "show or hide the saved chats", "f2", "chats"),
    Action("chat.search", "Search", "search all chats for words", "ctrl+s", "search", "[WORDS]"),
    Action("chat.open", "Open chat", "open a saved chat by its id", "", "open", "ID"),
    Action("chat.rename", "Rename", "give the chat another title", "", "rename", "[TITLE]"),
    Action("chat.delete", "Delete", "delete the chat; /undo restores it", "", "delete"),
    Action("chat.remove", "Delete", "delete the chosen chat", "delete,d", scope="sidebar"),
    Action("chat.undo", "Undo delete", "restore the last deleted chat", "", "undo"),
    Action("chat.undelete", "Undo delete", "restore the last deleted chat", "u", scope="sidebar"),
    Action(
        "chat.export",
        "Export",
        "write the chat to a file: Markdown, or JSON with all branches",
        "",
        "export",
        "[FILE.md|FILE.json]",
    ),
    Action(
        "chat.system",
        "System prompt",
        "set the system prompt, or edit it",
        "f6",
        "system",
        "[TEXT]",
        urgent=True,
    ),
    Action("chat.drop", "Drop oldest turns", "leave the oldest turns out of the prompt", "", "drop", "[N]"),
    # Models and knobs
    Action("recipe.switch", "Recipe", "load another recipe", "ctrl+o", "recipe", "[NAME|FILE]"),
    Action("recipe.only", "Who answers", "let one role answer alone, or eft", "", "only", "[ROLE]"),
    Action("knobs.panel", "Knobs", "show or hide the knobs", "f3", "knobs"),
    Action("knobs.less", "Less tuning", "alpha down by 0.1, from the next token", "f7", urgent=True),
    Action("knobs.more", "More tuning", "alpha up by 0.1, from the next token", "f8", urgent=True),
    Action("preset.load", "Preset", "use a preset of this recipe", "", "preset", "[NAME]"),
    Action("preset.save", "Save preset", "keep the knobs as a preset", "", "save-preset", "NAME"),
    Action("preset.forget", "Forget preset", "remove a preset", "", "forget-preset", "NAME"),
    *(
        Action(
            f"knob.{knob.name}",
            knob.title,
            knob.help,
            slash=knob.slash,
            argument=knob.argument,
        )
        for knob in KNOBS
    ),
    Action("knobs.mix", "Mix", "two experts: X for the first, 1 − X for the second", "", "mix", "X"),
    # Models on the hub
    Action("models.open", "Models", "list recipes and models: pull, use, remove", "f9", "models"),
    Action("models.get", "Pull", "download a recipe's models, or one", "", "pull", "RECIPE|ORG/REPO:LABEL"),
    Action("models.pull", "Pull", "download the missing models of the chosen entry", "p", scope="models"),
    Action("models.stop", "Stop pulling", "stop the download; it can be continued", "x", scope="models"),
    Action("models.use", "Use", "load the chosen recipe", "enter", scope="models"),
    Action(
        "models.remove",
        "Remove",
        "delete the chosen entry's files, after confirmation",
        "delete,d",
        scope="models",
    ),
    # Looking closer
    Action("inspector.panel", "Inspector", "tint tokens by who decided them", "f4", "inspect"),
    Action("inspector.left", "Token before", "go to the token before", "left", scope="inspector"),
    Action("inspector.right", "Token after", "go to the token after", "right", scope="inspector"),
    Action("inspector.next", "Next change", "go to the next changed choice", "n", scope="inspector"),
    Action(
        "inspector.branch",
        "Continue from here",
        "let the answer continue from the chosen candidate",
        "enter",
        scope="inspector",
    ),
    Action("inspector.up", "Candidate above", "go to the candidate above", "up", scope="inspector"),
    Action(
        "inspector.down",
        "Candidate below",
        "go to the candidate below",
        "down",
        scope="inspector",
    ),
    Action(
        "compare.open",
        "Compare",
        "answer the last question with several targets, side by side",
        "f5",
        "compare",
        "[ROLE|ALPHA …]",
    ),
    Action("compare.left", "Column before", "go to the column before", "left", scope="compare"),
    Action("compare.right", "Column after", "go to the column after", "right", scope="compare"),
    Action("compare.pick", "Pick", "continue with this answer", "enter", scope="compare"),
    # The app
    Action("app.help", "Help", "show keys and commands", "f1", "help"),
    Action("app.palette", "Palette", "find an action by its name", "ctrl+p", "palette"),
    Action("app.theme", "Theme", "change the colours", "", "theme", "[NAME]"),
    Action(
        "app.interrupt",
        "Interrupt",
        "stop loading, stop the answer, or offer to quit",
        "ctrl+c",
        urgent=True,
    ),
    Action("app.quit", "Quit", "quit; the draft message is kept", "ctrl+q", "quit"),
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
