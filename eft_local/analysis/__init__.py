"""The inspector: who decided each token of an answer. Made of an answer's steps, live or stored; faces draw it.

Names are imported on first use: faces write figures with `eft_local.analysis.format` before a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eft_local.analysis.format import CANDIDATES as CANDIDATES
    from eft_local.analysis.record import Inspection as Inspection
    from eft_local.analysis.record import Place as Place
    from eft_local.analysis.record import Summary as Summary
    from eft_local.analysis.record import by_position as by_position
    from eft_local.analysis.record import chosen as chosen

_HOMES = {
    "CANDIDATES": "format",
    "Inspection": "record",
    "Place": "record",
    "Summary": "record",
    "by_position": "record",
    "chosen": "record",
}

__all__ = ["CANDIDATES", "Inspection", "Place", "Summary", "by_position", "chosen"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
