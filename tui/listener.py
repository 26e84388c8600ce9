"""What the app does about each thing that the engine reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from eft_local.analysis.format import share
from eft_local.errors import ContextOverflowError, EftError
from eft_local.tui.engine import (
    Computed,
    Engine,
    Event,
    Failed,
    Finished,
    Loaded,
    LoadFailed,
    Loading,
    Request,
    Started,
    Warned,
    Wrote,
)
from eft_local.tui.widgets.footer import Footer, figures_of

if TYPE_CHECKING:
    from eft_local.chats.session import Session
    from eft_local.chats.writing import Writing
    from eft_local.engine.step import Answer
    from eft_local.recipe import Recipe
    from eft_local.tui.widgets.chat import ChatPane
    from eft_local.tui.widgets.message import AnswerView

FIGURES_BEAT = 0.3
"""Seconds for which live figures stand still: no oftener than they can be read, and seldom drawn together with text."""

NEARLY_FULL = 0.85
"""The share of a context that, once used, the app speaks of."""


class Face(Protocol):
    """What the listener needs of the app. loaded: the recipe whose models are ready; targets: who may answer then."""

    loaded: Recipe | None
    targets: tuple[str, ...]

    def say(self, text: str) -> None: ...
    def complain(self, text: str) -> None: ...
    def attempt(self, do: Callable[[], object]) -> None: ...
    def show_chats(self) -> None: ...
    def decide(
        self, problem: str, choices: Sequence[tuple[str, str]], decided: Callable[[str | None], None]
    ) -> None: ...
    def perform_soon(self, action: str) -> None: ...


class Listener:
    """Hands the session's answers to the engine, saves what it reports of them, and shows that."""

    def __init__(self, face: Face, session: Session, engine: Engine, chat: ChatPane, footer: Footer) -> None:
        self._face = face
        self._session = session
        self._engine = engine
        self._chat = chat
        self._footer = footer
        self._number = -1  # the engine's own, for the answer that the session waits for
        self._unsaved = ""  # said already

    def write(self) -> None:
        """Let the engine write the answer that the session wants, if it wants one."""
        writing = self._session.writing
        if writing is not None:
            wanted = writing.request
            request = Request(
                wanted.messages,
                wanted.recipe,
                only=wanted.target,
                prefix=wanted.prefix,
                seed=wanted.seed,
                candidates=wanted.candidates,
                kept=wanted.kept,
            )
            self._number = self._engine.write(request)

    async def hear(self, events: Sequence[Event]) -> None:
        """Show what happened since the last call; the tokens of one call are shown together."""
        text, news = "", False
        for event in events:
            if isinstance(event, Wrote | Computed) and (writing := self._writing(event)) is not None:
                news = True
                if isinstance(event, Wrote):
                    text += writing.add(event.step)
                else:
                    writing.describe(event.start, event.steps)
        if news and self._session.writing is not None:
            await self._show_written(text, self._session.writing)
        warnings = [event.text for event in events if isinstance(event, Warned)]
        if warnings:
            self._face.say("\n".join(warnings))
        for event in events:
            try:
                await self._hear(event)
            except EftError as error:
                self._face.complain(str(error))

    def _writing(self, event: Wrote | Computed | Finished | Failed) -> Writing | None:
        """Return the session's answer, if the event is of it."""
        return self._session.writing if event.number == self._number else None

    def show_figures(self) -> None:
        """Show the figures of the answer that is being written."""
        writing, so_far = self._session.writing, self._engine.written
        if writing is None or so_far is None or not writing.steps:
            return
        now = figures_of(so_far, writing.drafted, _used(so_far, writing), self._session.recipe.context)
        self._footer.show(replace(now, state="writing"))

    async def _show_written(self, text: str, writing: Writing) -> None:
        await self._chat.write(text, writing)
        unsaved = writing.writer.error
        if unsaved is not None and str(unsaved) != self._unsaved:
            self._unsaved = str(unsaved)
            self._face.complain(f"{unsaved}; the answer continues unsaved")

    async def _hear(self, event: Event) -> None:
        face, footer = self._face, self._footer
        if isinstance(event, Loading):
            footer.say(f"loading {event.role} {share(event.fraction)}")
        elif isinstance(event, Loaded):
            face.loaded = event.recipe
            face.targets = event.targets
            footer.say("")
        elif isinstance(event, LoadFailed):
            face.loaded = None
            footer.say("no models")
            face.complain(f"{event.error}; /recipe chooses another recipe")
        elif isinstance(event, Started):
            footer.say("reading the prompt")
        elif isinstance(event, Finished):
            await self._finished(event)
        elif isinstance(event, Failed):
            await self._failed(event)

    async def _finished(self, event: Finished) -> None:
        session, answer = self._session, event.answer
        writing, view = self._writing(event), self._chat.answer_view(session.writing)
        try:
            if writing is not None:
                session.finish(answer, event.steps, event.statistics)
        finally:
            await self._end(view)
        if writing is not None:
            used = _used(answer, writing)
            self._footer.show(figures_of(answer, writing.drafted, used, session.recipe.context))
            self._speak_of_context(answer.finish_reason, max(used.values(), default=0))
            if answer.finish_reason != "cancelled" and not "".join(step.text for step in event.steps).strip():
                self._face.say("the answer is empty; /retry writes another one")

    async def _failed(self, event: Failed) -> None:
        writing, view = self._writing(event), self._chat.answer_view(self._session.writing)
        try:
            if writing is not None:
                self._session.fail()
        finally:
            await self._end(view)
        if writing is not None:
            self._face.complain(str(event.error))
            if isinstance(event.error, ContextOverflowError):
                self._offer_room(str(event.error))

    async def _end(self, view: AnswerView | None) -> None:
        await self._chat.end(view)
        self._face.show_chats()
        self._footer.say("")

    def _speak_of_context(self, reason: str, used: int) -> None:
        context = self._session.recipe.context
        if reason == "context":
            self._offer_room(f"the context of {context} tokens is full: the answer ends here")
        elif used > NEARLY_FULL * context:
            full = f"the context is nearly full ({used} of {context} tokens)"
            self._face.say(f"{full}: /drop leaves the oldest turn out, /new begins anew")

    def _offer_room(self, problem: str) -> None:
        face, session = self._face, self._session

        def decided(answer: str | None) -> None:
            if answer == "drop":
                turns = sum(message.role == "user" for message in session.messages)
                face.attempt(lambda: session.drop((session.dropped + turns) // 2))
                face.perform_soon("answer.regenerate")
            elif answer == "new":
                face.perform_soon("chat.new")

        several = len(session.messages) > 2
        drop = [("drop", "leave the older half of the turns out, and answer again")] if several else []
        face.decide(problem, [*drop, ("new", "begin a new chat"), ("leave", "leave it")], decided)


def _used(answer: Answer, writing: Writing) -> dict[str, int]:
    """Return how many tokens are in each role's context after an answer, or so far."""
    written = len(writing.request.prefix) + len(answer.tokens)
    return {role: count + written for role, count in answer.prompt_tokens.items()}
