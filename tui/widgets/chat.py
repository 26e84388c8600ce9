"""The chat's pane: transcript, inspector, notice and input, and how they work together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static, TextArea

from eft_local.analysis.format import printable
from eft_local.chats.session import Session
from eft_local.chats.writing import Writing
from eft_local.errors import UsageError
from eft_local.tui.actions.help import message_keys
from eft_local.tui.actions.registry import completions
from eft_local.tui.engine import Engine
from eft_local.tui.pace import Pace
from eft_local.tui.widgets.composer import Composer
from eft_local.tui.widgets.inspector import InspectorPanel
from eft_local.tui.widgets.message import AnswerView, MessageView
from eft_local.tui.widgets.tokens import TokenText
from eft_local.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from eft_local.chats import Message


class ChatPane(Vertical):
    """Shows a session's chat; changes nothing in it."""

    BLANK: ClassVar[bool] = True

    def __init__(self, session: Session, engine: Engine, recalled: Sequence[str], keys: Mapping[str, str]) -> None:
        """recalled: earlier questions for ↑.  keys: remapped ones, by action id."""
        super().__init__(id="chat")
        self.session = session
        self._engine = engine
        self.transcript = Transcript()
        self.inspector = InspectorPanel()
        self.composer = Composer(recalled, keys)
        self.editing: int | None = None
        self.inspecting = False
        self.inspected: AnswerView | None = None
        self._notice = Static("", id="notice", markup=False)
        self._before_edit = ""
        self._keys = keys
        self._pace = Pace()

    def compose(self) -> ComposeResult:
        """Lay out from top to bottom."""
        yield self.transcript
        yield self.inspector
        yield self._notice
        yield self.composer

    def on_mount(self) -> None:
        """The inspector opens on request."""
        self.inspector.display = False

    # Notices

    def say(self, text: str) -> None:
        """Show a line over the input; "" removes it."""
        self._notice.remove_class("-problem")
        self._notice.update(printable(text))
        self._notice.display = bool(text)

    def complain(self, text: str) -> None:
        """Show what went wrong, until something goes right."""
        self.say(" ".join(text.split()))
        self._notice.add_class("-problem")

    @property
    def notice(self) -> str:
        """The line over the input."""
        return str(self._notice.content) if self._notice.display else ""

    @on(TextArea.Changed, "#composer")
    def _typed(self) -> None:
        """Make way for the next key, and say what a slash command may become, unless it was left there before."""
        self._pace.typed()
        if self.composer.text == self.composer.restored:
            return
        found = list(completions(self.composer.text))
        if len(found) == 1:
            self.say(f"/{found[0].slash} {found[0].argument}".rstrip() + f"   {found[0].help}")
        elif found:
            self.say("   ".join(f"/{action.slash}" for action in found))

    # Messages

    async def show_messages(self) -> None:
        """Show the branch that the session shows; what is not in the prompt any more is dimmed."""
        messages = self.session.messages
        if self.editing is not None and all(message.id != self.editing for message in messages):
            self.end_edit()  # another branch is shown, without this question
        await self.transcript.show(messages)
        dropped = {message.id for message in messages[: 2 * self.session.dropped]}
        for view in self.transcript.views:
            view.set_class(view.message.id in dropped, "-dropped")
        if self.inspected is not None and not self.inspected.is_attached:
            self.inspect(self.transcript.last_answer)

    async def begin(self) -> None:
        """Show the answer that begins."""
        self.say("")
        before = self.inspected
        entered = before is not None and before.is_attached and before.tokens.has_focus
        await self.show_messages()
        self.transcript.anchor()
        if self.inspecting:
            view = self.transcript.last_answer
            if entered and view is not None and before is not None:  # stay at the place of the branch
                view.tokens.chosen = before.tokens.chosen
                view.add_class("-tinted")
                view.call_after_refresh(view.tokens.focus)
            self.inspect(view)

    async def write(self, text: str, writing: Writing) -> None:
        """Add to the answer that is being written, and draw it when it is time."""
        view = self.answer_view(writing)
        if view is None:
            return
        view.write(text)
        if not self._pace.due():
            return
        await view.draw()
        view.show_live(writing.strip)
        if self.inspecting:
            steps = writing.all_steps
            view.tint(steps)
            if view is self.inspected:
                self.inspector.follow(steps, view.tokens.chosen)

    async def end(self, view: AnswerView | None) -> None:
        """The answer is complete."""
        if view is not None:
            await view.end()
        await self.show_messages()
        if self.inspecting:
            self.inspect(self.transcript.last_answer)

    def answer_view(self, writing: Writing | None) -> AnswerView | None:
        """Return the view of the answer that is being written."""
        view = self.transcript.view(writing.writer.id) if writing else None
        return view if isinstance(view, AnswerView) else None

    @on(events.DescendantFocus)
    def _entitle(self) -> None:
        """Say over the input what it is for, or what keys do to the message that has the focus."""
        focused = self.screen.focused
        if isinstance(focused, MessageView):
            self.composer.border_title = message_keys(focused.message, self._keys)
        else:
            editing = self.editing is not None
            self.composer.border_title = "edit: Enter sends it again, Esc cancels" if editing else ""

    # Editing a question

    def begin_edit(self, question: Message) -> None:
        """Put a question into the input."""
        if self.editing is None:
            self._before_edit = self.composer.text
        self.editing = question.id
        self.composer.write(question.text)
        self.composer.focus()
        self._entitle()

    def end_edit(self) -> None:
        """Put back what was in the input before; what was typed of the question can be recalled."""
        if self.editing is not None:
            self.editing = None
            self._entitle()
            self.composer.remember(self.composer.text)
            self.composer.write(self._before_edit)
            self._before_edit = ""

    @property
    def unsent(self) -> str:
        """What is typed and not sent."""
        return self._before_edit if self.editing is not None else self.composer.text

    # The inspector

    def open_inspector(self) -> None:
        """Tint the chosen answer, or the last one. Raises: UsageError if there is none."""
        chosen = self.transcript.chosen
        view = chosen if isinstance(chosen, AnswerView) else self.transcript.last_answer
        if view is None:
            raise UsageError("there is no answer to inspect yet; ask something")
        self.inspecting = self._engine.watched = True
        self.inspector.display = True
        self.inspect(view)
        if view.tokens.steps:
            view.tokens.focus()
        view.scroll_visible(animate=False)

    def close_inspector(self) -> None:
        """Show Markdown again."""
        self.inspecting = self._engine.watched = False
        self.inspector.display = False
        self.inspect(None)
        self.composer.focus()

    def inspect(self, view: AnswerView | None) -> None:
        """Tint an answer, and none beside it."""
        if self.inspected is not None and self.inspected is not view and self.inspected.is_attached:
            self.inspected.untint()
        self.inspected = view
        if view is not None and view.is_attached:
            steps = self.session.steps(view.message)
            view.tint(steps)
            self.inspector.show_answer(steps)
            chosen = view.tokens.chosen
            if chosen is not None and chosen < len(steps):
                self.inspector.show(steps, chosen)
            else:
                self.inspector.clear()
        else:
            self.inspector.show_answer(())
            self.inspector.clear()

    def move_token(self, by: int) -> None:
        """Choose a token beside the chosen one."""
        if self.inspected is not None:
            tokens = self.inspected.tokens
            tokens.choose((tokens.chosen or 0) + by)

    @on(TokenText.Chosen)
    def _token_chosen(self, event: TokenText.Chosen) -> None:
        self.inspector.show(event.view.steps, event.index)

    @on(MessageView.Chosen)
    def _message_chosen(self, event: MessageView.Chosen) -> None:
        if self.inspecting and isinstance(event.view, AnswerView) and event.view is not self.inspected:
            self.inspect(event.view)
