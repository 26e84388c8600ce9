"""The models screen: what can be run, what is downloaded, and getting or removing it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

from eft_local.analysis.format import printable
from eft_local.errors import EftError, UsageError
from eft_local.hub.names import size_text
from eft_local.tui.actions.registry import bindings
from eft_local.tui.inventory import Entry, Inventory, inventory
from eft_local.tui.pulling import Puller
from eft_local.tui.screens.dialogs import NoticeScreen

LOOK = 0.2
"""Seconds between two looks at a download."""


class ModelList(OptionList):
    """Recipes, models and unfinished downloads to choose from."""

    BINDINGS = bindings("models")


class ModelsScreen(NoticeScreen[None]):
    """Lists what there is; a download continues when the screen is left."""

    def __init__(self, puller: Puller, use: Callable[[str], None]) -> None:
        """use: called with the name of the recipe to load, when the screen has closed."""
        super().__init__()
        self.puller = puller
        self._use = use
        self._inventory: Inventory | None = None
        self._look: Timer | None = None
        self._ended = puller.ended  # downloads whose end this screen knows of

    def compose(self) -> ComposeResult:
        """Lay out list, download and keys."""
        with Vertical(id="models") as box:
            box.border_title = "models"
            yield Static("looking …", id="models-disk", markup=False)
            yield ModelList(id="models-list", markup=False)
            yield Static("", id="models-pull", markup=False)
            yield ProgressBar(total=1.0, show_eta=False, id="models-bar")
        yield Static("", id="notice", markup=False)
        yield Static("p pull   x stop   d remove   Enter use the recipe   Esc back", id="models-hint", markup=False)

    async def on_mount(self) -> None:
        """Read what there is."""
        self.query_one(ModelList).focus()
        self._look = self.set_interval(LOOK, self.look)
        await self.renew()
        await self.look()

    async def renew(self) -> None:
        """Read recipes and cache again."""
        found = await asyncio.to_thread(inventory)
        self._inventory = found
        rows = self.query_one(ModelList)
        place = rows.highlighted or 0
        rows.clear_options()
        rows.add_options(Option(_row(entry)) for entry in found.entries)
        rows.highlighted = min(place, len(found.entries) - 1)
        self.query_one("#models-disk", Static).update(printable(found.disk))

    async def look(self) -> None:
        """Show how the download stands; when it has ended, what there is now."""
        puller, bar = self.puller, self.query_one(ProgressBar)
        bar.display = puller.busy
        bar.update(progress=puller.share or 0.0)
        self.query_one("#models-pull", Static).update(
            printable(f"{puller.title}: {puller.state}" if puller.title else "")
        )
        if self._ended != (ended := puller.ended):  # counted: a short one begins and ends between two looks
            self._ended = ended
            await self.renew()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is listed."""
        return self._inventory.entries if self._inventory else ()

    @property
    def chosen(self) -> Entry:
        """The highlighted entry. Raises: UsageError if there is none."""
        place = self.query_one(ModelList).highlighted
        if place is None or place >= len(self.entries):
            raise UsageError("nothing is listed yet")
        return self.entries[place]

    def choose(self, title: str) -> None:
        """Highlight an entry by its title."""
        titles = [entry.title for entry in self.entries]
        if title in titles:
            self.query_one(ModelList).highlighted = titles.index(title)

    def pull(self) -> None:
        """Get what the chosen entry lacks. Raises: UsageError."""
        entry = self.chosen
        if entry.parts:
            raise UsageError("choose the recipe that needs it, or /pull the model: that continues where it stopped")
        if not entry.missing:
            raise UsageError(f"{entry.title} is already downloaded")
        self.puller.start(entry.title, entry.missing)
        self.say("")

    def use(self) -> None:
        """Load the chosen recipe, and leave. Raises: UsageError."""
        entry = self.chosen
        if entry.recipe is None:
            raise UsageError("only recipes can be used: choose one above")
        if entry.missing:
            raise UsageError(f"{entry.title} is not downloaded yet; p pulls it")
        self.dismiss(None)
        self._use(entry.recipe)

    async def delete(self, entry: Entry) -> None:
        """Delete an entry's files."""
        from eft_local.tui.inventory import removal

        try:
            freed = await asyncio.to_thread(_removed, removal(entry))
        except EftError as error:
            self.say(str(error), problem=True)
        else:
            self.say(f"{size_text(freed)} are free again")
        await self.renew()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click on the chosen entry does what Enter does."""
        event.stop()
        self.run_worker(self.app.run_action("app.perform('models.use')"))


def _removed(planned: object) -> int:
    from eft_local.hub.removal import Removal

    assert isinstance(planned, Removal)
    planned.execute()
    return planned.freed


def _row(entry: Entry) -> Content:
    mark = "•" if entry.recipe else " "
    return Content.assemble((f"{mark} {printable(entry.title)}", "bold"), "\n  ", (printable(entry.details), "dim"))
