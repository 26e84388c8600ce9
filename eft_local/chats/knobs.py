"""The knobs: settings of a recipe that can be turned while an answer is being written, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eft_local.analysis.format import strengths
from eft_local.errors import UsageError

if TYPE_CHECKING:
    from eft_local.recipe import Recipe

OFF = "off"


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting of a recipe.

    key: what `Recipe.replace` calls it.  step: what one press of + or − adds.  off: the value that switches it off,
    which may be typed as "off".  whole: no fractions.
    """

    name: str
    title: str
    help: str
    key: str
    step: float
    slash: str
    argument: str = "X"
    off: float | str | None = None
    whole: bool = False
    optional: bool = False

    def read(self, typed: str) -> Any:
        """Return the value of a typed text. Raises: UsageError."""
        typed = typed.strip()
        if self.optional and typed in ("", OFF):
            return self.off
        if self.key == "draft" and typed in ("auto", OFF):
            return typed
        try:
            return int(typed) if self.whole else float(typed)
        except ValueError:
            kind = "a whole number" if self.whole else "a number"
            words = f' or "{OFF}"' if self.optional or self.key == "draft" else ""
            raise UsageError(f"{self.title} = {typed!r}: {kind}{words} is needed") from None

    def value(self, recipe: Recipe) -> Any:
        """Return how a recipe has it set; for alpha with several experts, the first one's."""
        if self.key == "alpha":
            return next(iter(recipe.alphas.values()))
        return getattr(recipe if hasattr(recipe, self.key) else recipe.sampling, self.key)

    def shown(self, value: Any) -> str:
        """Return a value as the panel shows it."""
        if value is None:
            return OFF
        return f"{value:g}" if isinstance(value, float) else str(value)


KNOBS: tuple[Knob, ...] = (
    Knob("alpha", "alpha", "strength of what tuning changed", "alpha", 0.1, "alpha", "[NAME=]X"),
    Knob("beta", "beta", "strength of what scale knows", "beta", 0.1, "beta"),
    Knob("temperature", "temperature", "how freely is drawn; 0 takes the likeliest", "temperature", 0.1, "temperature"),
    Knob("top-p", "top-p", "draw from the likeliest tokens with this sum; 1 is off", "top_p", 0.05, "top-p"),
    Knob("top-k", "top-k", "draw from so many tokens; 0 is off", "top_k", 5, "top-k", "N", whole=True),
    Knob("min-p", "min-p", "draw what is this × as likely as the top; 0 is off", "min_p", 0.01, "min-p"),
    Knob("repeat", "repeat penalty", "divide by this what was said; 1 is off", "repeat_penalty", 0.05, "repeat"),
    Knob("presence", "presence", "take this from what was said; 0 is off", "presence_penalty", 0.1, "presence"),
    Knob("frequency", "frequency", "take this × its count; 0 is off", "frequency_penalty", 0.1, "frequency"),
    Knob("seed", "seed", "the same seed, the same answer", "seed", 1, "seed", "[N|off]", whole=True, optional=True),
    Knob(
        "max-tokens",
        "max tokens",
        "the answer's longest length",
        "max_tokens",
        50,
        "max-tokens",
        "[N|off]",
        whole=True,
        optional=True,
    ),
    Knob("draft", "draft", "tokens written ahead, from the next answer", "draft", 1, "draft", "off|auto|N", whole=True),
    Knob(
        "filter",
        "filter",
        "EFT's conservative filter: a top-p of the expert",
        "conservative_filter",
        0.05,
        "filter",
        "[X|off]",
        optional=True,
    ),
    Knob(
        "mask",
        "mask",
        "only what the base finds this × as likely as its top",
        "plausibility_mask",
        0.05,
        "mask",
        "[X|off]",
        optional=True,
    ),
)
KNOB = {knob.name: knob for knob in KNOBS}
LAMBDA = Knob("lambda", "λ", "the first expert's share; the second gets the rest", "alpha", 0.1, "mix", "X")


def turned(recipe: Recipe, knob: Knob, typed: str) -> Recipe:
    """Return the recipe with a knob at what was typed; alpha takes NAME=X as well. Raises: UsageError."""
    if knob.key == "alpha":
        name, equals, number = typed.rpartition("=")
        value = knob.read(number)
        return recipe.replace(alpha={name.strip(): value} if equals else value)
    return recipe.replace(**{knob.key: knob.read(typed)})


def mixed(recipe: Recipe, share: float) -> Recipe:
    """Return the recipe with its two experts at `share` and 1 − share: EFT's trade between two behaviours."""
    first, second = recipe.experts
    return recipe.replace(alpha={first: round(share, 6), second: round(1 - share, 6)})


def nudged(recipe: Recipe, knob: Knob, steps: float, expert: str | None = None) -> Recipe:
    """Return the recipe with a knob moved by some of its steps, as far as the recipe allows."""
    if knob.key == "alpha":
        name = expert or next(iter(recipe.experts))
        return recipe.replace(alpha={name: round(recipe.alphas[name] + steps * knob.step, 6)})
    value = knob.value(recipe)
    if not isinstance(value, int | float):
        value = 0
    moved = round(value + steps * knob.step, 6)
    return recipe.replace(**{knob.key: int(moved) if knob.whole else moved})


def steering(recipe: Recipe) -> str:
    """Return in a few words how a recipe mixes its models."""
    return " · ".join([*strengths(recipe.alphas), f"β {recipe.beta:g}", f"temperature {recipe.sampling.temperature:g}"])
