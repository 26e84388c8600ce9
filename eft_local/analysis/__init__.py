"""The inspector: who decided each token of an answer. Made of an answer's steps, live or stored; faces draw it."""

from eft_local.analysis.format import LEVELS, label, level, percent, signed, sparkline, visible
from eft_local.analysis.record import CANDIDATES, Inspection, Place, Summary, by_position, chosen

__all__ = [
    "CANDIDATES",
    "LEVELS",
    "Inspection",
    "Place",
    "Summary",
    "by_position",
    "chosen",
    "label",
    "level",
    "percent",
    "signed",
    "sparkline",
    "visible",
]
