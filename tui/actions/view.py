"""What is looked at: inspector, comparison, help, palette and theme; and leaving, step by step.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

from eft_local.analysis.format import CANDIDATES
from eft_local.errors import UsageError
from eft_local.tui.actions.help import help_text
from eft_local.tui.app import ChatApp, Handlers
from eft_local.tui.screens.compare import CompareScreen, Picked, contenders
from eft_local.tui.screens.dialogs import HelpScreen
from eft_local.tui.screens.models import ModelsScreen


def escape(app: ChatApp, _typed: str) -> None:
    """Stop the answer; else leave what is open, from the inside out."""
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


def toggle_inspector(app: ChatApp, _typed: str) -> None:
    """Open the inspector on the chosen answer, or close it."""
    if app.chat.inspecting:
        app.chat.close_inspector()
    else:
        app.chat.open_inspector()


def token_left(app: ChatApp, _typed: str) -> None:
    """Go to the token before."""
    app.chat.move_token(-1)


def token_right(app: ChatApp, _typed: str) -> None:
    """Go to the token after."""
    app.chat.move_token(+1)


def next_change(app: ChatApp, _typed: str) -> None:
    """Go to the next token whose choice the experts changed."""
    if app.chat.inspected is not None:
        app.chat.inspected.tokens.next_change()


def candidate_up(app: ChatApp, _typed: str) -> None:
    """Go to the candidate above."""
    app.chat.inspector.move(-1)


def candidate_down(app: ChatApp, _typed: str) -> None:
    """Go to the candidate below."""
    app.chat.inspector.move(+1)


async def branch_from_candidate(app: ChatApp, _typed: str) -> None:
    """Let the answer continue from the chosen candidate. Raises: UsageError."""
    view, candidate = app.chat.inspected, app.chat.inspector.chosen
    if view is None or candidate is None or view.tokens.chosen is None:
        raise UsageError("choose a token and a candidate first")
    if view.tokens.steps[view.tokens.chosen].token == candidate.token:
        raise UsageError("this candidate was the one taken; choose another one with ↑ ↓")
    app.session.branch_from(view.message, view.tokens.chosen, candidate.token)
    await app.begin()


def compare(app: ChatApp, typed: str) -> None:
    """Let several answer the last question. Raises: UsageError."""
    session = app.session
    question = session.question_of()
    entries = contenders(session.recipe, typed.split() or app.config.compare, app.targets)

    async def adopt(picked: Picked | None) -> None:
        if picked is not None:
            contender, finished = picked.contender, picked.finished
            session.adopt(
                question.id, contender.recipe, contender.target, finished.answer, finished.steps, finished.statistics
            )
            await app.chat.show_messages()

    if app.engine.busy:
        raise UsageError("an answer is being written; Esc stops it")
    candidates = CANDIDATES if app.config.record else 0
    app.push_screen(CompareScreen(app.engine, session.turns(question.id), entries, candidates, app.wake), adopt)


def column_left(app: ChatApp, _typed: str) -> None:
    """Go to the column before."""
    _compare_screen(app).move(-1)


def column_right(app: ChatApp, _typed: str) -> None:
    """Go to the column after."""
    _compare_screen(app).move(+1)


def pick_column(app: ChatApp, _typed: str) -> None:
    """Continue with the chosen column. Raises: UsageError."""
    _compare_screen(app).pick()


def _compare_screen(app: ChatApp) -> CompareScreen:
    if not isinstance(app.screen, CompareScreen):
        raise UsageError("there is no comparison open; F5 opens one")
    return app.screen


def show_help(app: ChatApp, _typed: str) -> None:
    """Show keys and commands."""
    app.push_screen(HelpScreen(lambda width: help_text(app.config.keys, width)))


def palette(app: ChatApp, _typed: str) -> None:
    """Open the command palette."""
    app.action_command_palette()


def theme(app: ChatApp, typed: str) -> None:
    """Change the theme; without a name, choose one. Raises: UsageError."""
    if not typed:
        app.search_themes()
        return
    app.use_theme(typed)


def interrupt(app: ChatApp, _typed: str) -> None:
    """Climb the ladder: stop what runs; copy what is selected; offer to quit; quit."""
    if app.engine.busy:
        app.stop()
    elif _copy_selection(app):
        pass
    elif app.quit_offered:
        app.leave()
    else:
        app.offer_to_quit()


def _copy_selection(app: ChatApp) -> bool:
    """Copy what is selected; return whether anything is."""
    text = getattr(app.focused, "selected_text", "") or app.screen.get_selected_text() or ""
    if text:
        app.copy_to_clipboard(text)
        app.screen.clear_selection()
    return bool(text)


def leave(app: ChatApp, _typed: str) -> None:
    """Leave; what is typed is kept."""
    app.leave()


HANDLERS: Handlers = {
    "answer.stop": escape,
    "inspector.panel": toggle_inspector,
    "inspector.left": token_left,
    "inspector.right": token_right,
    "inspector.next": next_change,
    "inspector.branch": branch_from_candidate,
    "inspector.up": candidate_up,
    "inspector.down": candidate_down,
    "compare.open": compare,
    "compare.left": column_left,
    "compare.right": column_right,
    "compare.pick": pick_column,
    "app.help": show_help,
    "app.palette": palette,
    "app.theme": theme,
    "app.interrupt": interrupt,
    "app.quit": leave,
}
