"""Small screens over the chat: help, choosing from a list, and writing a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen, ScreenResultType
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option

from eft_local.analysis.format import printable


class NoticeScreen(Screen[ScreenResultType]):
    """A whole screen with a line of its own for notices: a Static called `notice`."""

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show a line; "" removes it."""
        notice = self.query_one("#notice", Static)
        notice.set_class(problem, "-problem")
        notice.update(printable(" ".join(text.split())))
        notice.display = bool(text)


class _Fitted(Static):
    """A text that is made for the width there is."""

    def __init__(self, text: Callable[[int], str]) -> None:
        super().__init__("", markup=False)
        self._text = text

    def on_resize(self, event: events.Resize) -> None:
        """Use the room there is."""
        self.update(self._text(event.size.width))


class HelpScreen(ModalScreen[None]):
    """All actions with their keys and commands."""

    BINDINGS = [Binding("escape,ctrl+c,f1,q", "dismiss", "Close", show=False)]  # noqa: RUF012 (Textual's way)

    def __init__(self, text: Callable[[int], str]) -> None:
        """text: makes it for lines of so many characters."""
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay out the text."""
        with VerticalScroll(classes="dialog", id="help") as box:
            box.border_title = "help"
            box.border_subtitle = "Esc closes"
            yield _Fitted(self._text)

    def on_mount(self) -> None:
        """Let arrows scroll."""
        self.query_one("#help").focus()


class ChoiceScreen(ModalScreen[str | None]):
    """Choose one of some texts; None if none was chosen."""

    BINDINGS = [Binding("escape,ctrl+c", "dismiss(None)", "Close", show=False)]  # noqa: RUF012

    def __init__(self, title: str, choices: Sequence[tuple[str, str]]) -> None:
        """choices: what is returned, and what is shown."""
        super().__init__()
        self._title = title
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Lay out the list."""
        with Vertical(classes="dialog", id="choice") as box:
            box.border_title = self._title
            yield OptionList(*(Option(shown) for _, shown in self._choices), markup=False)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._choices[event.option_index][0])


class TextScreen(ModalScreen[str | None]):
    """Write a text; None if it was left as it is."""

    BINDINGS = [  # noqa: RUF012
        Binding("escape,ctrl+c", "dismiss(None)", "Cancel", show=False, priority=True),
        Binding("ctrl+s,f10", "accept", "Accept", show=False, priority=True),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay out the input."""
        with Vertical(classes="dialog", id="text") as box:
            box.border_title = self._title
            box.border_subtitle = "Ctrl+S accepts · Esc leaves it as it was"
            yield TextArea(self._text, soft_wrap=True)

    def action_accept(self) -> None:
        """Return the text."""
        self.dismiss(self.query_one(TextArea).text)


class DecisionScreen(ModalScreen[str]):
    """A question with some answers; Esc gives the last one."""

    BINDINGS = [Binding("escape,ctrl+c", "leave", "Close", show=False)]  # noqa: RUF012

    def __init__(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        """answers: what is returned, and what is shown."""
        super().__init__()
        self._question = question
        self._answers = answers

    def compose(self) -> ComposeResult:
        """Lay out question and answers."""
        with Vertical(classes="dialog", id="decision"):
            yield Static(self._question, markup=False)
            yield OptionList(*(Option(shown) for _, shown in self._answers), markup=False)

    def action_leave(self) -> None:
        """Give the last answer."""
        self.dismiss(self._answers[-1][0])

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._answers[event.option_index][0])
