"""Who answers: the mixture, or one role alone, with all that is needed to sample from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eft_local.backends.base import Floats, Vocabulary
from eft_local.backends.llamacpp import Sampler
from eft_local.backends.vocabulary import Common, common_tokens
from eft_local.engine.ends import Ends
from eft_local.engine.loading import (
    LoadedRole,
    exactness,
    mixed_roles,
    warn_of_capped_logits,
    warn_of_own_tokens,
)
from eft_local.engine.mixture import Mixture
from eft_local.errors import UsageError
from eft_local.recipe import Recipe, Sampling
from eft_local.recipe.names import MIXTURE


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Who answers: the mixture, or one role alone.

    roles: names of those that are evaluated; mixture: None for one role alone.
    common: the ids that can be sampled.
    vocabulary: gives tokens their text; scratch: a row to compute in.
    ends: whether a token ends the answer.
    exact: "yes", or "no, because …": see `Answer.exact`.
    sampler: makes one.
    """

    roles: tuple[str, ...]
    mixture: Mixture | None
    common: Common
    vocabulary: Vocabulary
    scratch: Floats
    ends: Callable[[int], bool]
    exact: str
    sampler: Callable[[Sampling], Sampler]

    @property
    def n_vocab(self) -> int:
        """Width of the logits that are sampled from."""
        return self.common.width

    def shared(self, name: str, logits: Floats) -> Floats:
        """Return a role's logits of the ids that may be sampled, [rows, n_vocab], from all that its model gave."""
        return self.mixture.common(name, logits) if self.mixture else logits[:, : self.n_vocab]

    def mix(self, recipe: Recipe, logits: Mapping[str, Floats], lawful: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Return what the next token is sampled from, [n_vocab]. logits: per role [1, n_vocab], from `shared`.

        lawful: see `Mixture.scores`.
        """
        if self.mixture:
            scores: Floats = self.mixture.scores(recipe, logits, lawful)[0]
            return scores
        scores = logits[self.roles[0]][0, : self.n_vocab]
        if self.common.hidden.size:
            scores = scores.copy()
            scores[self.common.hidden] = -np.inf
        return scores


def make_mixture(recipe: Recipe, roles: Mapping[str, LoadedRole], common: Common | None = None) -> Target:
    """Return the mixture of roles that are loaded. common: what their tokens have in common, where that is known.

    Raises: VocabularyMismatchError.
    """
    common = common or common_tokens({name: loaded.table for name, loaded in roles.items()})
    vocabularies = {name: loaded.vocabulary for name, loaded in roles.items()}
    first = next(iter(recipe.experts))
    ends = Ends.among(vocabularies, common, first)
    warn_of_own_tokens(common, ends, vocabularies)
    warn_of_capped_logits(roles)
    voice = roles[first]
    if ends.token is not None and not voice.vocabulary.is_eog(ends.token):
        voice = roles["base"]  # a grammar must know what ends the answer
    mixture = Mixture(common.width, common.hidden[common.hidden != ends.token], ends)
    # What the tuned model calls an end is an end; so is what the base does.
    speakers = [loaded for name, loaded in roles.items() if name == "base" or name in recipe.experts]
    return _target(roles, mixture, common, voice, speakers, ends.token, recipe.context)


def make_single(name: str, role: LoadedRole, context: int) -> Target:
    """Return one role alone, with all the ids that its own model has. context: tokens that it can hold."""
    return _target({name: role}, None, common_tokens({"base": role.table}), role, [role], None, context)


def _target(
    roles: Mapping[str, LoadedRole],
    mixture: Mixture | None,
    common: Common,
    voice: LoadedRole,
    speakers: list[LoadedRole],
    end: int | None,
    context: int,
) -> Target:
    return Target(
        roles=tuple(roles),
        mixture=mixture,
        common=common,
        vocabulary=voice.vocabulary,
        scratch=np.empty(common.width, np.float32),
        ends=lambda token: token == end or any(speaker.vocabulary.is_eog(token) for speaker in speakers),
        exact=exactness(roles),
        sampler=lambda sampling: Sampler(voice.vocabulary, sampling, common.width, context),
    )


def roles_of(recipe: Recipe, target: str) -> tuple[str, ...]:
    """Return the roles that a target evaluates: all of the formula, or one alone. Raises: UsageError."""
    mixed = tuple(mixed_roles(recipe))
    if target == MIXTURE:
        return mixed
    if target == "expert":
        return (next(iter(recipe.experts)),)
    if target in mixed or target in recipe.compare:
        return (target,)
    raise UsageError(
        f"there is no target {target!r} in recipe {recipe.name!r}; use one of {', '.join(targets_of(recipe))}"
    )


def targets_of(recipe: Recipe) -> tuple[str, ...]:
    """Return who can answer: the mixture, each of its roles alone, and the models under [compare]."""
    return (MIXTURE, *mixed_roles(recipe), "expert", *recipe.compare)
