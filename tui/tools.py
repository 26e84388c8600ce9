"""What actions on models, knobs, inspector, comparison and the app itself do; `deeds` has those on chats.

Every deed takes the app and what was typed behind the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eft_local.errors import UsageError
from eft_local.tui.knobs import KNOB, Knob, mixed, nudged, steering, turned

if TYPE_CHECKING:
    from eft_local.tui.app import ChatApp
    from eft_local.tui.compare import CompareScreen

# Models and knobs


def recipe(app: ChatApp, typed: str) -> None:
    """Load another recipe; without a name, choose one. Raises: RecipeError."""
    from eft_local.references import find_recipe, recipe_names
    from eft_local.tui.screens import ChoiceScreen

    if typed:
        app.load(find_recipe(typed))
        return
    choices = [(name, name) for name in sorted(recipe_names())]

    def choose(name: str | None) -> None:
        if name is not None:
            app.attempt(lambda: app.load(find_recipe(name)))

    app.push_screen(ChoiceScreen("recipe", choices), choose)


def only(app: ChatApp, typed: str) -> None:
    """Let one role answer alone, or the mixture. Raises: UsageError."""
    known = app.systems
    if not typed:
        app.say(f"{app.session.only} answers; /only takes {', '.join(known)}")
        return
    if known and typed not in known:
        raise UsageError(f"/only {typed}: there is no such role; use {', '.join(known)}")
    app.session.only = typed
    app.show_state()


def toggle_knobs(app: ChatApp, _typed: str) -> None:
    """Show the knobs and go there, or hide them."""
    if app.knobs.display and app.knobs.has_focus_within:
        app.knobs.display = False
        app.chat.composer.focus()
    else:
        app.show_knobs()


def turn(knob: Knob) -> Callable[[ChatApp, str], None]:
    """Return the deed that turns one knob; without a value it says how the knob stands."""

    def deed(app: ChatApp, typed: str) -> None:
        if typed:
            app.turn(turned(app.session.recipe, knob, typed))
        else:
            app.say(f"{knob.title} = {knob.shown(knob.value(app.session.recipe))}: {knob.help}")

    return deed


def mix(app: ChatApp, typed: str) -> None:
    """Trade two experts: the first gets X, the second 1 − X. Raises: UsageError."""
    if len(app.session.recipe.experts) != 2:
        raise UsageError(f"/mix needs a recipe with two experts; {app.session.recipe.name} is none")
    app.turn(mixed(app.session.recipe, KNOB["alpha"].read(typed)))


def less_alpha(app: ChatApp, _typed: str) -> None:
    """Turn every alpha down."""
    _nudge(app, -1)


def more_alpha(app: ChatApp, _typed: str) -> None:
    """Turn every alpha up."""
    _nudge(app, +1)


def _nudge(app: ChatApp, steps: int) -> None:
    changed = app.session.recipe
    for expert in changed.experts:
        changed = nudged(changed, KNOB["alpha"], steps, expert)
    app.turn(changed)


def preset(app: ChatApp, typed: str) -> None:
    """Use a preset; without a name, list them. Raises: UsageError."""
    if typed:
        app.turn(app.presets.load(app.session.recipe, typed))
        app.say(f"preset {typed}: {steering(app.session.recipe)}")
    else:
        names = ", ".join(app.presets.of(app.session.recipe))
        app.say(f"presets of {app.session.recipe.name}: {names or 'none; /save-preset NAME makes one'}")


def save_preset(app: ChatApp, typed: str) -> None:
    """Keep the knobs under a name. Raises: UsageError, OutputError."""
    app.presets.save(app.session.recipe, typed)
    app.knobs.show_presets(app.presets.of(app.session.recipe))
    app.say(f"preset {typed} is kept; /preset {typed} brings it back")


def forget_preset(app: ChatApp, typed: str) -> None:
    """Remove a preset. Raises: UsageError, OutputError."""
    app.presets.forget(app.session.recipe, typed)
    app.knobs.show_presets(app.presets.of(app.session.recipe))
    app.say(f"preset {typed} is gone")


# Looking closer


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
    app.compare(typed.split() or list(app.config.compare))


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
    from eft_local.tui.compare import CompareScreen

    if not isinstance(app.screen, CompareScreen):
        raise UsageError("there is no comparison open; F5 opens one")
    return app.screen


# The app


def show_help(app: ChatApp, _typed: str) -> None:
    """Show keys and commands."""
    from eft_local.tui.help import help_text
    from eft_local.tui.screens import HelpScreen

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
    elif app.copy_selection():
        pass
    elif app.quit_offered:
        app.leave()
    else:
        app.offer_to_quit()


def leave(app: ChatApp, _typed: str) -> None:
    """Leave; what is typed is kept."""
    app.leave()
