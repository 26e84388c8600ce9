"""An inspected answer as one HTML page that needs nothing else: no network, no other file, hardly any script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from eft_local.analysis.format import label, level, notes, percent, share, signed, two_digits, visible
from eft_local.analysis.record import Inspection, chosen
from eft_local.engine.step import Step
from eft_local.recipe.names import MIXTURE

PRINTED = 3  # tables that stand on paper, where nothing can be pointed at


@dataclass(frozen=True, slots=True)
class _Token:
    """One step as the page shows it.

    number: from 1. name: the token as tables write it. mark: what can be seen of a token that is no visible text.
    """

    number: int
    name: str
    text: str
    mark: str
    step: Step
    tint: int
    printed: bool

    @property
    def description(self) -> str:
        """What the tint says, in words."""
        return ", ".join([f"token {self.number}", *notes(self.step)])


def page(inspection: Inspection, *, title: str, question: str, details: Mapping[str, str]) -> str:
    """Return the page. details: what else to say about the answer, by name, in this order."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(percent=percent, share=share, signed=signed, two_digits=two_digits, label=label)
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=_safe(title),
        question=_safe(question),
        details={name: _safe(value) for name, value in details.items()},
        summary=inspection.summary(),
        tokens=_tokens(inspection),
        rest=_safe("".join(step.text for step in inspection.steps if step.token is None)),
        columns=(inspection.target, *(role for role in inspection.roles if role != inspection.target)),
        mixed=inspection.target == MIXTURE,
    )


def _tokens(inspection: Inspection) -> list[_Token]:
    printed = inspection.most_changed(PRINTED)
    tokens: list[_Token] = []
    begun = False
    for index, step in enumerate(inspection.steps):
        if step.token is None:
            continue
        text = step.text if begun else step.text.lstrip()  # a frame may end where a space belongs
        begun = begun or bool(text)
        candidate = chosen(step)
        name = label(candidate) if candidate else visible(step.text)
        mark = "⏎" if "\n" in text else "" if text else name or "·"
        tokens.append(_Token(index + 1, name, _safe(text), mark, step, level(step.change), index in printed))
    return tokens


def _safe(text: str) -> str:
    """Return a text without the control characters that HTML forbids, and with lone surrogates spelt out."""
    kept = "".join(char if char in "\n\t" or char.isprintable() or char.isspace() else visible(char) for char in text)
    return kept.encode("utf-8", "backslashreplace").decode()
