"""Drafts: small roles write ahead, so that the large one evaluates several tokens at once.

A draft only guesses. Every token of the answer is drawn from the mixture with noise keyed by (seed, position, token),
exactly as without drafts; a draft drawn with the same noise agrees with it as often as their distributions do, and what
agrees needs no evaluation of its own. So the answer does not depend on drafts, their source or their length.
(Leviathan et al. 2023 for drafting; Mitchell et al. 2023 for the expert as draft of its own mixture.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eft_local.emulator.draft_length import AdaptiveLength, DraftLength, FixedLength
from eft_local.emulator.loading import LoadedRole, antiexpert_name
from eft_local.emulator.row_costs import RowCosts, row_costs
from eft_local.emulator.slots import Slots
from eft_local.protocols import Floats
from eft_local.recipe import Recipe

if TYPE_CHECKING:
    from eft_local.emulator.writing import Line, System

_NGRAM = 3  # tokens at the end of an answer that are looked up in what came before


@dataclass(slots=True)
class Draft:
    """Guessed tokens of one line, and the logits [1, n] that making them gave: per role a row more than tokens."""

    tokens: list[int] = field(default_factory=list)
    rows: dict[str, list[Floats]] = field(default_factory=dict)


class Drafter(Protocol):
    """A source of drafts. `roles` are evaluated while drafting, and need no evaluation afterwards."""

    @property
    def roles(self) -> tuple[str, ...]: ...

    def draft(
        self, slots: Slots, system: System, lines: Sequence[Line], limits: Sequence[int], recipe: Recipe
    ) -> list[Draft]:
        """Guess at most limits[i] tokens for lines[i]; the drafted tokens are then part of the roles' sequences."""


class RoleDrafter:
    """One or two small roles write ahead: the heaviest expert alone, or it and its antiexpert (`proxy`).

    The proxy, antiexpert + α·(expert − antiexpert), is the mixture without what scale knows: closer to it than the
    expert where α is not 1, and an evaluation dearer.
    """

    def __init__(self, expert: str, antiexpert: str | None = None) -> None:
        self._expert = expert
        self._antiexpert = antiexpert
        self.roles = (expert,) if antiexpert is None else (antiexpert, expert)

    def draft(
        self, slots: Slots, system: System, lines: Sequence[Line], limits: Sequence[int], recipe: Recipe
    ) -> list[Draft]:
        drafts = [Draft(rows={name: [] for name in self.roles}) for _ in lines]
        samplers = [line.draft_sampler(system, recipe.sampling) for line in lines]
        active = list(range(len(lines)))
        try:
            while active:
                logits = slots.evaluate([lines[i].slot for i in active], self.roles, [1] * len(active))
                for place, i in enumerate(active):
                    for name in self.roles:
                        # A copy: the view is gone with the next evaluation, and the mixture needs this row later.
                        drafts[i].rows[name].append(logits[name][place][:, : system.n_vocab].copy())
                active = [i for i in active if len(drafts[i].tokens) < limits[i]]
                for i in tuple(active):
                    line, draft = lines[i], drafts[i]
                    guess = self._guess(draft, recipe)
                    token = samplers[i].pick(guess, line.seed, line.position + len(draft.tokens))
                    if system.ends(token):  # nothing follows an end, so its row would be wasted
                        active.remove(i)
                        continue
                    samplers[i].accept(token)
                    draft.tokens.append(token)
                    slots.push(line.slot, self.roles, [token])
        finally:
            for sampler in samplers:
                sampler.close()
        return drafts

    def _guess(self, draft: Draft, recipe: Recipe) -> Floats:
        expert: Floats = draft.rows[self._expert][-1][0]
        if self._antiexpert is None:
            return expert
        antiexpert: Floats = draft.rows[self._antiexpert][-1][0]
        return antiexpert + np.float32(recipe.alphas[self._expert]) * (expert - antiexpert)


class NgramDrafter:
    """Prompt lookup: where the last tokens stood before, what followed them then is the guess. It costs nothing."""

    roles: tuple[str, ...] = ()

    def draft(
        self, slots: Slots, system: System, lines: Sequence[Line], limits: Sequence[int], recipe: Recipe
    ) -> list[Draft]:
        return [
            Draft(list(takewhile(lambda token: not system.ends(token), _continuation(line.history(), limit))))
            for line, limit in zip(lines, limits, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Drafting:
    """Where drafts come from, and how long they are."""

    drafter: Drafter
    length: DraftLength


class DraftingSource:
    """Makes what a recipe asks for; what it learns about acceptance lasts from answer to answer."""

    def __init__(self, roles: Mapping[str, LoadedRole]) -> None:
        self._roles = roles
        self._costs: dict[str, RowCosts] = {}
        self._learnt: dict[tuple[str, ...], AdaptiveLength] = {}

    def choose(self, recipe: Recipe, system: System, slots: Slots) -> Drafting | None:
        """Return how to draft, or None: off, one role alone, or a role whose model cannot rewind.

        slots: where costs are measured when they are not known yet.
        """
        if recipe.draft == "off" or not system.mixture or self._recurrent(system.roles):
            return None
        drafter = _drafter(recipe)
        if recipe.draft != "auto":
            return Drafting(drafter, FixedLength(int(recipe.draft)))
        key = (recipe.draft_source, *drafter.roles)
        if key not in self._learnt:
            costs = {name: self._measured(name, slots) for name in system.roles}
            self._learnt[key] = AdaptiveLength(
                drafting=[costs[name] for name in drafter.roles],
                rest=[costs[name] for name in system.roles if name not in drafter.roles],
            )
        return Drafting(drafter, self._learnt[key])

    def _measured(self, name: str, slots: Slots) -> RowCosts:
        if name not in self._costs:
            self._costs[name] = row_costs(self._roles[name], lambda rows: slots.time_rows(name, rows))
        return self._costs[name]

    def _recurrent(self, roles: Sequence[str]) -> bool:
        return any(getattr(self._roles[name].model, "keeps_recurrent_state", False) for name in roles)


def _drafter(recipe: Recipe) -> Drafter:
    if recipe.draft_source == "ngram":
        return NgramDrafter()
    heaviest = max(recipe.experts, key=lambda name: abs(recipe.experts[name].alpha))
    return RoleDrafter(heaviest, antiexpert_name(recipe, heaviest) if recipe.draft_source == "proxy" else None)


def _continuation(tokens: Sequence[int], limit: int) -> Sequence[int]:
    """What followed the latest earlier place where the last few tokens stood."""
    if limit <= 0:
        return ()
    for size in range(min(_NGRAM, len(tokens) - 1), 0, -1):
        ending = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == ending:
                return tokens[start + size : start + size + limit]
    return ()


def rows_of(draft: Draft, logits: Mapping[str, list[Floats]], line: int, row: int) -> dict[str, Floats]:
    """Return every role's logits [1, n] at one row of one line: from drafting, or from the evaluation after it."""
    rows = {name: parts[line][row : row + 1] for name, parts in logits.items()}
    return rows | {name: kept[row] for name, kept in draft.rows.items()}
