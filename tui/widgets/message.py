"""One message of the transcript: a question, or an answer that may be streaming, as Markdown or as tinted tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.geometry import Region, Size
from textual.message import Message as TextualMessage
from textual.reactive import reactive
from textual.strip import Strip
from textual.widgets import Static
from textual.widgets.markdown import MarkdownStream

from eft_local.analysis.format import ENDINGS, printable, share, speed, strengths
from eft_local.errors import RecipeError
from eft_local.recipe.names import MIXTURE
from eft_local.tui.actions.registry import bindings
from eft_local.tui.widgets.prose import Prose
from eft_local.tui.widgets.tokens import TokenText

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eft_local.chats import Message, Snapshot
    from eft_local.engine.step import Step


@lru_cache(maxsize=256)
def _alphas(snapshot: Snapshot) -> Mapping[str, float]:
    """Return a saved recipe's alphas; none where this version cannot read it."""
    try:
        return snapshot.recipe().alphas
    except RecipeError:
        return {}


class MessageView(Vertical, can_focus=True):
    """A message with its header; keys work on it while it has the focus."""

    BINDINGS = bindings("message")
    virtual_size = reactive(Size(0, 0), layout=False, repaint=False)  # as in Prose

    class Chosen(TextualMessage):
        """The message got the focus."""

        def __init__(self, view: MessageView) -> None:
            super().__init__()
            self.view = view

    def __init__(self, message: Message) -> None:
        super().__init__(classes=message.role)
        self.message = message
        self._heading = Static(self.heading(), classes="heading", markup=False)

    def compose(self) -> ComposeResult:
        """Lay out header and text."""
        yield self._heading
        yield Static(printable(self.message.text), classes="body", markup=False)

    def heading(self) -> str:
        """Return the line over the message."""
        return " ".join(["you", *self._branches()])

    def _branches(self) -> list[str]:
        count = len(self.message.siblings)
        return [f"‹ {self.message.position}/{count} ›"] if count > 1 else []

    def renew(self, message: Message) -> None:
        """Show what has changed of a message that is shown already."""
        if message == self.message:
            return
        self.message = message
        self._heading.update(self.heading())

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw the border while the focus is here; otherwise nothing can be seen of this widget but its children."""
        if self.has_focus_within:
            return super().render_lines(crop)
        return [Strip.blank(crop.width, self.visual_style.rich_style)] * crop.height

    def on_focus(self, event: events.Focus) -> None:
        """Tell who has the focus."""
        self.post_message(self.Chosen(self))


class AnswerView(MessageView):
    """An answer: Markdown to read, tokens to inspect, and over them the strip of changes."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self._stream: MarkdownStream | None = None
        self._text = message.text
        self._undrawn = ""
        self._strip = Static(self.strip(), classes="strip", markup=False)
        self._markdown = Prose(printable(message.text), classes="body")
        self.tokens = TokenText()

    def compose(self) -> ComposeResult:
        """Lay out header, strip, Markdown and (hidden at first) tokens."""
        yield self._heading
        yield self._strip
        yield self._markdown
        yield self.tokens

    def heading(self) -> str:
        """Return who answered, how strongly steered, how fast, and how it ended."""
        answer = self.message.answer
        if answer is None:
            return "answer"
        words = [answer.written_by]
        if answer.written_by == MIXTURE:
            words += strengths(_alphas(answer.recipe))
        if answer.tokens_per_second:
            words.append(speed(answer.tokens_per_second))
        changed = answer.figures.get("changed")
        if isinstance(changed, float):
            words.append(f"{share(changed)} changed")
        if answer.finish_reason not in (None, "stop"):
            words.append(ENDINGS[answer.finish_reason])
        if answer.finish_reason and not self.message.text.strip():
            words.append("empty")
        return " · ".join([*words, *self._branches()])

    def strip(self) -> str:
        """Return the finished answer's strip of changes."""
        answer = self.message.answer
        return str(answer.figures.get("strip", "")) if answer else ""

    def renew(self, message: Message) -> None:
        """Show the final figures."""
        super().renew(message)
        strip = self.strip()
        if strip:
            self._strip.update(strip)

    def write(self, text: str) -> None:
        """Add text, to be drawn with the next `draw`."""
        self._text += text
        self._undrawn += text

    async def draw(self) -> None:
        """Show what was added."""
        text, self._undrawn = self._undrawn, ""
        if not text:  # a stream that is stopped before it begins would cancel whoever stops it
            return
        if self._stream is None:
            self._stream = Prose.get_stream(self._markdown)
        await self._stream.write(printable(text))

    def show_live(self, strip: str) -> None:
        """Show the strip of an answer that is being written."""
        if strip != self._strip.content:
            self._strip.update(strip, layout=False)

    async def end(self) -> None:
        """The answer is complete: render it once more as a whole, which settles what half a text had looked like."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()
        if self.is_attached:
            await self._markdown.update(printable(self._text))

    def tint(self, steps: Sequence[Step]) -> None:
        """Show tinted tokens in place of Markdown."""
        self.add_class("-tinted")
        self.tokens.show(steps)

    def untint(self) -> None:
        """Show Markdown again."""
        self.remove_class("-tinted")

    def code_blocks(self) -> list[str]:
        """Return the text of each block of code."""
        from markdown_it import MarkdownIt

        return [token.content for token in MarkdownIt("gfm-like").parse(self.message.text) if token.type == "fence"]
