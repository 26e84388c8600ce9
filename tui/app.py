"""The app: puts the widgets together, hands what the engine reports to them, and runs actions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from textual import events, on
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Input

from eft_local.analysis.format import printable
from eft_local.chats import History
from eft_local.chats.knobs import steering
from eft_local.chats.presets import Presets
from eft_local.chats.session import Session
from eft_local.chats.typed import Typed
from eft_local.errors import EftError, HistoryError, UsageError, nearest
from eft_local.recipe import Recipe
from eft_local.recipe.names import MIXTURE
from eft_local.tui.actions.registry import BY_ID, Action, bindings
from eft_local.tui.config import Config
from eft_local.tui.engine import Engine, with_threads
from eft_local.tui.framework import let_removed_widgets_go
from eft_local.tui.listener import FIGURES_BEAT, Listener
from eft_local.tui.palette import palette
from eft_local.tui.pulling import Puller
from eft_local.tui.screens.compare import CompareScreen
from eft_local.tui.screens.dialogs import DecisionScreen, NoticeScreen
from eft_local.tui.widgets.chat import ChatPane
from eft_local.tui.widgets.footer import Figures, Footer
from eft_local.tui.widgets.knobs import KnobsPanel
from eft_local.tui.widgets.sidebar import Sidebar

BEAT = 0.05
"""Seconds between two looks at what the engine has written."""

ROOM_FOR_SIDEBAR = 110
"""Columns from which on the saved chats stand beside the chat unasked."""

QUIT_WINDOW = 3.0
"""Seconds in which a second Ctrl+C leaves."""


Handler = Callable[["ChatApp", str], "Coroutine[Any, Any, None] | None"]
"""Does what an action is for; the text is what was typed after its slash command."""

Handlers = Mapping[str, Handler]
"""By action id."""


class ChatApp(App[None], inherit_bindings=False):
    """Chat with an emulated model, and see who decided each token."""

    CSS_PATH = "style.tcss"
    TITLE = "eft-local"
    BINDINGS: ClassVar[list[BindingType]] = bindings("app")
    COMMAND_PALETTE_BINDING = BY_ID["app.palette"].keys
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (ROOM_FOR_SIDEBAR, "-wide")]  # noqa: RUF012 (an instance variable to mypy)

    def __init__(
        self,
        session: Session,
        engine: Engine,
        handlers: Handlers,
        config: Config,
        typed: Typed | None = None,
        *,
        warning: str = "",
        chat: str | None = None,
        own_recipe: bool = False,
    ) -> None:
        """session, engine: the caller closes the history and the engine.  typed: None keeps nothing.

        handlers: for every action of the registry.  warning: said at the start.
        chat: opened at the start, with the session's recipe instead of its own if `own_recipe`.
        """
        let_removed_widgets_go()
        super().__init__()
        self.session = session
        self.engine = engine
        self.handlers = handlers
        self.config = config
        self.presets = Presets()
        self.puller = Puller()
        self.typed = typed or Typed(None)
        self._typed_in = ""  # the chat under which the input's text is kept
        self.loaded: Recipe | None = None
        self.targets: tuple[str, ...] = ()  # who may answer with the loaded recipe
        self._warning = warning
        self._opened_with = chat
        self._own_recipe = own_recipe
        self._unsaved: HistoryError | None = None  # said already
        self.quiet = False  # nothing runs, and all that the engine said is shown
        self._quit_offered_at = -QUIT_WINDOW
        self._sidebar_wanted: bool | None = None if config.sidebar else False
        self._changing = asyncio.Lock()  # beats and actions come from different message loops
        self.sidebar = Sidebar()
        self.chat = ChatPane(session, engine, self.typed.recalled, config.keys)
        self.footer = Footer()
        self.knobs = KnobsPanel(session.recipe)
        self.listener = Listener(self, session, engine, self.chat, self.footer)

    @property
    def history(self) -> History:
        """All that is saved."""
        return self.session.archive

    def compose(self) -> ComposeResult:
        """Lay out chats, chat and knobs, and the footer under them."""
        with Horizontal():
            yield self.sidebar
            yield self.chat
            yield self.knobs
        yield self.footer

    async def on_mount(self) -> None:
        """Show what there is while the models load."""
        self.knobs.display = False
        self.attempt(lambda: self.use_theme(self.config.theme or self.theme))
        self.set_keymap(dict(self.config.keys))
        self._beat = self.set_interval(BEAT, self.beat)
        self.set_interval(FIGURES_BEAT, self.listener.show_figures)
        self.set_interval(1.0, self.keep_typed)
        self._place_sidebar(self.size.width)
        self.chat.composer.focus()
        self._resume(self._opened_with)
        await self.show_chat()
        if self._warning:
            self.complain(self._warning)

    def _resume(self, chat: str | None) -> None:
        """Open the chat that the app was started with; its recipe gives way to one that was requested."""
        requested, system = self.session.recipe, self.session.system
        try:
            if chat is not None:
                self.session.open(chat, requested if self._own_recipe else None)
        except EftError as error:
            self._warning = str(error)
        if system is not None:
            self.session.set_system(system)
        self.load(requested if self._own_recipe else self.session.recipe)

    # What the engine says

    async def beat(self) -> None:
        """Hand on what the engine has said since the last beat."""
        async with self._changing:
            busy = self.engine.busy  # read first: what it says after that is heard by the next beat
            events = self.engine.drain()
            self.quiet = not events and not busy
            if self.quiet:
                self._beat.pause()
            if isinstance(self.screen, CompareScreen):
                await self.screen.heard(events)
            await self.listener.hear(events)

    # Asking

    async def ask(self, text: str) -> None:
        """Send a question, or the edited one."""
        composer, editing = self.chat.composer, self.chat.editing
        if editing is None:
            self.session.ask(text)
            composer.take()
        else:
            self.session.edit(editing, text)
            self.chat.end_edit()
        self.keep_typed()  # what was sent is not typed any more, whatever happens next
        await self.begin()

    async def begin(self) -> None:
        """Let the engine write the answer that the session wants, and show it."""
        self.listener.write()
        await self.chat.begin()
        self.wake()
        unsaved = self.session.unsaved
        if unsaved is not None and unsaved is not self._unsaved:
            self._unsaved = unsaved
            self.complain(f"{unsaved}; this chat continues unsaved")

    def stop(self) -> None:
        """Stop loading or the answer."""
        self.engine.stop()
        self.say("stopped")

    # Chats

    async def open_chat(self, chat: str) -> None:
        """Show a saved chat, and load its recipe's models if other ones are loaded. Raises: EftError."""
        self.keep_typed()
        self.session.open(chat)
        await self.show_chat()
        self.load(self.session.recipe)

    async def show_chat(self) -> None:
        """Show the session's chat from its end, and what was being typed in it."""
        self.chat.end_edit()
        self._typed_in = self._typing_key
        self.chat.composer.restore(self.typed.unsent.get(self._typed_in, ""))
        self.footer.show(Figures())
        await self.chat.show_messages()
        self.show_chats()
        await self.knobs.rebuild(self.session.recipe)
        self.show_state()

    @on(Sidebar.Wanted)
    def show_chats(self) -> None:
        """List the newest chats, as many as are looked at, or those that a search finds."""
        sidebar = self.sidebar
        if sidebar.words:
            self.attempt(lambda: sidebar.show_hits(self.history.search(sidebar.words)))
        else:
            self.attempt(lambda: sidebar.show(self.history.chats(limit=sidebar.room), self._chat_key or None))

    @property
    def _chat_key(self) -> str:
        return self.session.chat.id if self.session.chat else ""

    @property
    def _typing_key(self) -> str:
        """The chat that what is typed belongs to; "" for a new one, and for one that is gone when the app is left."""
        return "" if self.session.unsaved else self._chat_key

    def keep_typed(self) -> None:
        """Save what is typed and not sent, for the chat that is open: a new one may have begun since it was saved."""
        before, self._typed_in = self._typed_in, self._typing_key
        self.typed.keep(self._typed_in, self.chat.unsent, self.chat.composer.recalled, before=before)

    # Models and knobs

    def load(self, recipe: Recipe) -> None:
        """Use a recipe; its models are loaded if they are not. Raises: UsageError."""
        if self.session.writing is not None:
            raise UsageError("an answer is being written; Esc stops it")
        recipe = self.session.recipe = with_threads(recipe, self.config.threads)
        if self.loaded is None or self.loaded.load_key() != recipe.load_key():
            self.loaded = None
            self.engine.load(recipe, self.session.target)
            self.footer.say("loading")
            self.wake()
        self.call_later(self.knobs.rebuild, recipe)
        self.show_state()

    def steer(self, recipe: Recipe) -> None:
        """Use changed knobs, from the next token on."""
        self.session.steer(recipe)
        if self.session.writing is not None:
            self.engine.change(recipe)
        self.knobs.show(recipe)
        self.show_state()

    def show_knobs(self) -> None:
        """Open the knobs; on a narrow screen the chats make room."""
        if self.size.width < ROOM_FOR_SIDEBAR:
            self.show_sidebar(False)
        self.knobs.display = True
        self.attempt(lambda: self.knobs.show_presets(self.presets.of(self.session.recipe)))
        self.knobs.query(Input).first().focus()

    @on(KnobsPanel.Turned)
    def _knob_turned(self, event: KnobsPanel.Turned) -> None:
        self.steer(event.recipe)

    @on(KnobsPanel.Refused)
    def _knob_refused(self, event: KnobsPanel.Refused) -> None:
        self.complain(str(event.error))

    # Saying, doing, leaving

    def say(self, text: str) -> None:
        """Show a line over the input, or where a screen in front has one; "" removes it."""
        if isinstance(self.screen, NoticeScreen):
            self.screen.say(text)
        else:
            self.chat.say(text)

    def complain(self, text: str) -> None:
        """Show what went wrong, until something goes right."""
        if isinstance(self.screen, NoticeScreen):
            self.screen.say(text, problem=True)
        else:
            self.chat.complain(text)

    def attempt(self, do: Callable[[], object]) -> None:
        """Do something; an error becomes a line."""
        try:
            do()
        except EftError as error:
            self.complain(str(error))

    async def perform(self, action: Action, argument: str = "") -> None:
        """Run an action; an error becomes a line."""
        try:
            result = self.handlers[action.id](self, argument)
            if result is not None:
                await result
        except EftError as error:
            self.complain(str(error))

    async def action_perform(self, action: str) -> None:
        """Run an action by its id: what keys and palette call."""
        async with self._changing:
            await self.perform(BY_ID[action])

    def perform_soon(self, action: str) -> None:
        """Run an action by its id, after what is being done now."""
        self.call_later(self.action_perform, action)

    def decide(self, problem: str, choices: Sequence[tuple[str, str]], decided: Callable[[str | None], None]) -> None:
        """Let the user choose what to do; `decided` gets the first of the chosen pair, which is not shown."""
        self.push_screen(DecisionScreen(problem, choices), decided)

    def wake(self) -> None:
        """Listen to the engine again."""
        self.quiet = False
        self._beat.resume()

    def show_state(self) -> None:
        """Say over and under the input who would answer, and how."""
        session = self.session
        who = session.recipe.name if session.target == MIXTURE else f"{session.recipe.name}: {session.target} alone"
        words = [who, steering(session.recipe), *(["system prompt"] if session.system else [])]
        self.chat.composer.border_subtitle = printable(" · ".join(words))

    def show_sidebar(self, shown: bool) -> None:
        """Show or hide the chats; on a narrow screen the knobs make room."""
        self._sidebar_wanted = shown
        if shown and self.size.width < ROOM_FOR_SIDEBAR:
            self.knobs.display = False
        self._place_sidebar(self.size.width)

    def on_resize(self, event: events.Resize) -> None:
        """Fold the chats away where there is no room."""
        self._place_sidebar(event.size.width)  # the app's own size is still the one before

    def _place_sidebar(self, width: int) -> None:
        wanted = self._sidebar_wanted
        self.sidebar.display = width >= ROOM_FOR_SIDEBAR if wanted is None else wanted

    @on(Sidebar.Opened)
    async def _opened(self, event: Sidebar.Opened) -> None:
        async with self._changing:
            try:
                await self.open_chat(event.chat)
                await self._go_to(event.message)
            except EftError as error:
                self.complain(str(error))

    async def _go_to(self, message: int | None) -> None:
        """Show the branch with a message and go there; None is the input."""
        if message is None:
            self.chat.composer.focus()
            return
        self.session.messages = self.history.show(message)
        await self.chat.show_messages()
        view = self.chat.transcript.view(message)
        if view is not None:
            view.focus()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every action in the palette; one that needs words is put into the input."""

        def choose(action: Action) -> None:
            if action.argument and not action.argument.startswith("["):
                self.chat.composer.write(f"/{action.slash} ")
                self.chat.composer.focus()
            else:
                self.perform_soon(action.id)

        return palette(screen, self.config.keys, choose)

    def use_theme(self, name: str) -> None:
        """Change the colours. Raises: UsageError."""
        if name not in self.available_themes:
            raise UsageError(f"there is no theme {name!r}; the nearest one is {nearest(name, self.available_themes)!r}")
        self.theme = name

    @property
    def quit_offered(self) -> bool:
        """Whether Ctrl+C was just pressed with nothing to stop."""
        return time.monotonic() - self._quit_offered_at < QUIT_WINDOW

    def offer_to_quit(self) -> None:
        """Say how to leave."""
        self._quit_offered_at = time.monotonic()
        self.say("Ctrl+C again leaves; what is typed is kept")

    def leave(self) -> None:
        """Stop what runs, keep what is typed, and leave."""
        self.engine.stop()
        self.puller.stop()
        self.chat.end_edit()
        self.keep_typed()
        self.exit()
