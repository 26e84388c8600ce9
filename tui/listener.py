"""What the app does about each thing that the engine says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from eft_local.errors import ContextOverflowError, EftError
from eft_local.tui.engine import Event, Failed, Finished, Known, Loaded, LoadFailed, Loading, Started, Warned, Wrote
from eft_local.tui.footer import settled
from eft_local.tui.screens import DecisionScreen

if TYPE_CHECKING:
    from eft_local.tui.app import ChatApp
    from eft_local.tui.message import AnswerView
    from eft_local.tui.writing import Writing

FIGURES_BEAT = 0.3
"""Seconds for which live figures stand still: no oftener than they can be read, and seldom drawn together with text."""

NEARLY_FULL = 0.85
"""The share of a context that, once used, the app speaks of."""


class Listener:
    """Shows events in the app's widgets, and saves what they bring."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._unsaved = ""  # said already

    async def hear(self, events: Sequence[Event]) -> None:
        """Show what happened since the last call; the tokens of one call are shown together."""
        session = self._app.session
        text, news = "", False
        for event in events:
            if isinstance(event, Wrote):
                text += session.wrote(event) or ""
            news |= isinstance(event, Wrote) or (isinstance(event, Known) and session.knew(event))
        if news and session.writing is not None:
            await self._show_written(text, session.writing)
        warnings = [event.text for event in events if isinstance(event, Warned)]
        if warnings:
            self._app.say("\n".join(warnings))
        for event in events:
            try:
                await self._hear(event)
            except EftError as error:
                self._app.complain(str(error))

    def show_figures(self) -> None:
        """Show the figures of the answer that is being written."""
        writing, so_far = self._app.session.writing, self._app.engine.written
        if writing is None or so_far is None or not writing.steps:
            return
        written = writing.prefix + len(so_far.tokens)
        used = {name: count + written for name, count in so_far.prompt_tokens.items()}
        now = settled(so_far, writing.drafted, used, self._app.session.recipe.context)
        self._app.footer.show(replace(now, state="writing"))

    async def _show_written(self, text: str, writing: Writing) -> None:
        await self._app.chat.write(text, writing)
        unsaved = writing.writer.error
        if unsaved is not None and str(unsaved) != self._unsaved:
            self._unsaved = str(unsaved)
            self._app.complain(f"{unsaved}; the answer goes on unsaved")

    async def _hear(self, event: Event) -> None:
        app = self._app
        if isinstance(event, Loading):
            app.footer.say(f"loading {event.role} {100 * event.fraction:.0f} %")
        elif isinstance(event, Loaded):
            app.loaded = event.recipe
            app.systems = event.systems
            app.footer.say("")
        elif isinstance(event, LoadFailed):
            app.loaded = None
            app.footer.say("no models")
            app.complain(f"{event.error}; /recipe chooses another recipe")
        elif isinstance(event, Started):
            app.footer.say("reading the prompt")
        elif isinstance(event, Finished):
            await self._finished(event)
        elif isinstance(event, Failed):
            await self._failed(event)

    async def _finished(self, event: Finished) -> None:
        session = self._app.session
        view = self._app.chat.answer_view(session.writing)
        drafted = session.writing.drafted if session.writing else None
        try:
            ours = session.finished(event)
        finally:
            await self._end(view)
        if ours:
            self._app.footer.show(settled(event.answer, drafted, session.used, session.recipe.context))
            self._speak_of_context(event.answer.finish_reason)
            if event.answer.finish_reason != "cancelled" and not "".join(step.text for step in event.steps).strip():
                self._app.say("the answer is empty; /retry writes another one")

    async def _failed(self, event: Failed) -> None:
        view = self._app.chat.answer_view(self._app.session.writing)
        try:
            ours = self._app.session.failed(event)
        finally:
            await self._end(view)
        if ours:
            self._app.complain(str(event.error))
            if isinstance(event.error, ContextOverflowError):
                self._offer_room(str(event.error))

    async def _end(self, view: AnswerView | None) -> None:
        await self._app.chat.end(view)
        self._app.show_chats()
        self._app.footer.say("")

    def _speak_of_context(self, reason: str) -> None:
        session = self._app.session
        used, context = max(session.used.values(), default=0), session.recipe.context
        if reason == "context":
            self._offer_room(f"the context of {context} tokens is full: the answer ends here")
        elif used > NEARLY_FULL * context:
            full = f"the context is nearly full ({used} of {context} tokens)"
            self._app.say(f"{full}: /drop leaves the oldest turn out, /new begins anew")

    def _offer_room(self, problem: str) -> None:
        app, session = self._app, self._app.session

        def decide(answer: str | None) -> None:
            if answer == "drop":
                turns = sum(message.role == "user" for message in session.messages)
                app.attempt(lambda: session.drop((session.dropped + turns) // 2))
                app.call_later(app.action_perform, "answer.regenerate")
            elif answer == "new":
                app.call_later(app.action_perform, "chat.new")

        several = len(session.messages) > 2
        drop = [("drop", "leave the older half of the turns out, and answer again")] if several else []
        app.push_screen(DecisionScreen(problem, [*drop, ("new", "begin a new chat"), ("leave", "leave it")]), decide)
