"""Models on the hub: listing, pulling, using and removing them.

Every handler takes the app and what was typed after the slash command.

Raises: EftError, which the app shows as one line.
"""

from __future__ import annotations

from eft_local.errors import UsageError
from eft_local.hub.names import HubName, size_text
from eft_local.hub.references import find_recipe, hub_name, hub_names, names_recipe
from eft_local.tui.app import ChatApp, Handlers
from eft_local.tui.inventory import removal
from eft_local.tui.screens.dialogs import DecisionScreen
from eft_local.tui.screens.models import ModelsScreen


async def open_models(app: ChatApp, _typed: str) -> None:
    """Show the models screen, or leave it."""
    if isinstance(app.screen, ModelsScreen):
        app.screen.dismiss(None)
    else:
        await app.push_screen(ModelsScreen(app.puller, lambda name: app.attempt(lambda: app.load(find_recipe(name)))))


async def get(app: ChatApp, typed: str) -> None:
    """Download a recipe's models, or one model, and show how it goes. Raises: UsageError, RecipeError."""
    if not typed:
        raise UsageError("/pull: needs a recipe, or a model as ORG/REPO:Q4_K_M; /models lists recipes")
    names = _wanted(typed)
    if not names:
        app.say(f"{typed}: nothing to download, its models are already downloaded")
        return
    app.puller.start(typed, names)
    await open_models(app, "")


def _wanted(typed: str) -> list[HubName]:
    if names_recipe(typed) or ("/" not in typed and ":" not in typed):
        return list(dict.fromkeys(hub_names(find_recipe(typed)).values()))
    name = hub_name(typed, None)
    if name is None:
        raise UsageError(f"/pull {typed}: names neither a recipe nor a model on the hub, such as ORG/REPO:Q4_K_M")
    return [name]


def pull(app: ChatApp, _typed: str) -> None:
    """Download what the chosen entry lacks. Raises: UsageError."""
    _screen(app).pull()


def stop(app: ChatApp, _typed: str) -> None:
    """Stop the download. Raises: UsageError if there is none."""
    if not app.puller.busy:
        raise UsageError("nothing is being pulled")
    app.puller.stop()


def use(app: ChatApp, _typed: str) -> None:
    """Load the chosen recipe. Raises: UsageError."""
    _screen(app).use()


def remove(app: ChatApp, _typed: str) -> None:
    """Ask, then delete the chosen entry's files. Raises: UsageError, OutputError."""
    screen = _screen(app)
    entry = screen.chosen
    if not (entry.models or entry.parts):
        raise UsageError(f"{entry.title} has no files in the cache")
    freed = size_text(removal(entry).freed)
    files = ", ".join([*(model.reference for model in entry.models), *(str(part.path.name) for part in entry.parts)])

    async def decide(answer: str | None) -> None:
        if answer == "delete":
            await screen.delete(entry)

    choices = [("delete", f"delete, which frees {freed}"), ("leave", "leave it")]
    app.push_screen(DecisionScreen(f"delete {files}?", choices), decide)


def _screen(app: ChatApp) -> ModelsScreen:
    if not isinstance(app.screen, ModelsScreen):
        raise UsageError("the list of models is not open; F9 opens it")
    return app.screen


HANDLERS: Handlers = {
    "models.open": open_models,
    "models.get": get,
    "models.pull": pull,
    "models.stop": stop,
    "models.use": use,
    "models.remove": remove,
}
