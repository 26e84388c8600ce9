"""What Textual does otherwise than it means to, mended from here until it does so itself."""

from __future__ import annotations

from typing import Any

from textual._styles_cache import StylesCache


def let_removed_widgets_go() -> None:
    """Let nothing keep what a widget has drawn once the widget is removed.

    Textual remembers pairs of colours for a widget's styles where it means to for all styles: its cache holds the
    drawn lines of the last 1024 widgets, some 15 MB (https://github.com/Textualize/textual/issues/6665).
    """
    colours: Any = vars(StylesCache).get("get_inner_outer")
    if hasattr(colours, "cache_info"):
        StylesCache.get_inner_outer = classmethod(colours)  # type: ignore[assignment]
