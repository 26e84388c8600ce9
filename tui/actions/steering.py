"""Who answers and how: recipe, target, knobs and presets.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

from eft_local.chats.knobs import KNOB, KNOBS, Knob, mixed, nudged, steering, turned
from eft_local.errors import UsageError
from eft_local.hub.references import find_recipe, recipe_names
from eft_local.tui.app import ChatApp, Handler, Handlers
from eft_local.tui.screens.dialogs import ChoiceScreen


def recipe(app: ChatApp, typed: str) -> None:
    """Load another recipe; without a name, choose one. Raises: RecipeError."""
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
    targets = app.targets
    if not typed:
        app.say(f"{app.session.target} answers; /only takes {', '.join(targets)}")
        return
    if targets and typed not in targets:
        raise UsageError(f"/only {typed}: there is no such role; use {', '.join(targets)}")
    app.session.target = typed
    app.show_state()


def toggle_knobs(app: ChatApp, _typed: str) -> None:
    """Show the knobs and go there, or hide them."""
    if app.knobs.display and app.knobs.has_focus_within:
        app.knobs.display = False
        app.chat.composer.focus()
    else:
        app.show_knobs()


def turn(knob: Knob) -> Handler:
    """Return the handler that turns one knob; without a value it says how the knob stands."""

    def handler(app: ChatApp, typed: str) -> None:
        if typed:
            app.steer(turned(app.session.recipe, knob, typed))
        else:
            app.say(f"{knob.title} = {knob.shown(knob.value(app.session.recipe))}: {knob.help}")

    return handler


def mix(app: ChatApp, typed: str) -> None:
    """Trade two experts: the first gets X, the second 1 − X. Raises: UsageError."""
    if len(app.session.recipe.experts) != 2:
        raise UsageError(f"/mix needs a recipe with two experts; {app.session.recipe.name} is none")
    app.steer(mixed(app.session.recipe, KNOB["alpha"].read(typed)))


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
    app.steer(changed)


def preset(app: ChatApp, typed: str) -> None:
    """Use a preset; without a name, list them. Raises: UsageError."""
    if typed:
        app.steer(app.presets.load(app.session.recipe, typed))
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


HANDLERS: Handlers = {
    "recipe.switch": recipe,
    "recipe.only": only,
    "knobs.panel": toggle_knobs,
    "knobs.less": less_alpha,
    "knobs.more": more_alpha,
    "preset.load": preset,
    "preset.save": save_preset,
    "preset.forget": forget_preset,
    "knobs.mix": mix,
    **{f"knob.{knob.name}": turn(knob) for knob in KNOBS},
}
