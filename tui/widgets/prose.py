"""Markdown that grows: an answer while it is being written, drawn with as little work as can be."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from markdown_it import MarkdownIt
from textual.geometry import Size
from textual.reactive import reactive
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownParagraph  # which textual.widgets.markdown leaves out
from textual.widgets.markdown import MarkdownBlock


class _Paragraph(MarkdownParagraph):
    virtual_size = reactive(Size(0, 0), layout=False, repaint=False)


class Prose(Markdown):
    """Textual's Markdown, laid out once for each piece of text.

    A widget whose height follows its content was just laid out when its virtual size changes; Textual then lays out the
    whole screen again, and draws the widget twice, which is right only for what scrolls by itself.
    """

    BLANK: ClassVar[bool] = True
    BLOCKS: dict[str, type[MarkdownBlock]] = Markdown.BLOCKS | {"paragraph_open": _Paragraph}
    virtual_size = reactive(Size(0, 0), layout=False, repaint=False)

    def __init__(self, markdown: str, *, classes: str = "") -> None:
        super().__init__(markdown, classes=classes, parser_factory=_parser)


@cache
def _parser() -> MarkdownIt:
    """Return the parser that all share: it keeps nothing of what it has read."""
    return MarkdownIt("gfm-like")
