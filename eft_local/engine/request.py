"""A request: everything about one answer, or about the score of a given one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from eft_local.engine.targets import Target
from eft_local.recipe import Recipe, Sampling

Record = Literal["nothing", "evidence", "statistics"]
"""What steps report besides their token: nothing, the evidence that `statistics.compute` works from, or statistics."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One answer.

    target: who answers.  prompts: per role of the target, its token ids; prefix: those that the answer already has.
    recipe: how the roles are mixed (strengths, filters), drafted and sampled, and what ends the answer.
    seed: of the draws.  max_tokens: None for the recipe's.
    record: see `Record`; top: so many candidates of each token are recorded, too.
    given: the answer's tokens, if they are only to be scored; None for an answer that is written.
    followed: whether somebody reads the tokens as they are made, so that other requests' prompts must not hold them up.
    outputs: rows of logits that are wanted of each role at once; 0 for what suits the recipe.
    """

    target: Target
    prompts: Mapping[str, Sequence[int]]
    recipe: Recipe
    seed: int
    prefix: Sequence[int] = ()
    max_tokens: int | None = None
    record: Record = "nothing"
    top: int = 0
    given: Sequence[int] | None = None
    followed: bool = False
    outputs: int = 0

    @property
    def texts(self) -> dict[str, list[int]]:
        """What each role reads before the next token is chosen: its prompt, then the prefix."""
        return {name: [*prompt, *self.prefix] for name, prompt in self.prompts.items()}

    @property
    def longest(self) -> float:
        """How many tokens the answer may get."""
        if self.given is not None:
            return len(self.given)
        return self.max_tokens or self.recipe.sampling.max_tokens or float("inf")


class Options(TypedDict, total=False):
    """How one answer is made. What is left out is as the recipe says.

    target: who answers: "eft", the mixture, or one role alone (see `Emulator.targets`).
    recipe: another recipe of the same models.
    sampling: in place of the recipe's.  seed, max_tokens: in place of the sampling's.
    alpha: strength of the behaviour delta: a number where there is one expert, otherwise {"NAME": number}.
    beta: strength of the scale delta.
    statistics: whether steps report what each role thinks of their token, and the answer its log-probabilities.
    top: how many of the likeliest tokens are reported with it.
    """

    target: str
    recipe: Recipe
    sampling: Sampling
    seed: int | None
    max_tokens: int | None
    alpha: float | Mapping[str, float]
    beta: float
    statistics: bool
    top: int
