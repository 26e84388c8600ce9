"""Drafts: small roles write ahead, so that the large one evaluates several tokens at once.

A draft only proposes; `acceptance` holds the rules by which draft tokens become tokens of the answer, without changing
its distribution. A draft token that is accepted needs no evaluation of its own.
(Leviathan et al. 2023 for drafting; Mitchell et al. 2023 for the expert as draft of its own mixture; Saxena 2023 for
prompt lookup.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eft_local.backends.base import Floats
from eft_local.backends.llamacpp import Sampler
from eft_local.engine.cache import Cache, Part
from eft_local.engine.kv import ContextCache, KVSequence
from eft_local.engine.loading import antiexpert_name
from eft_local.engine.request import Request
from eft_local.engine.speculative.acceptance import RULES, DraftToken, Rule
from eft_local.engine.speculative.costs import per_role
from eft_local.engine.speculative.length import AdaptiveLength, Calibration, DraftLength, FixedLength
from eft_local.recipe import Recipe

_NGRAM = 3  # tokens at the end of an answer that are looked up in what came before

_FOUND = (0.0, 0.3, 0.7, 0.9)
"""The confidence in a draft token where so many tokens were found; calibration learns what it is worth."""


@dataclass(slots=True)
class Draft:
    """Proposals for one answer's next tokens.

    ended: whether the last of them is an end token; it is offered like any other, but not evaluated: nothing follows.
    next: the draft token after them, which is not evaluated: nothing is won where it is right, but how good drafts are
        is learnt at no cost.
    rows: the logits [1, n] that drafting has given, per role: one more than there are evaluated tokens.
    """

    draft_tokens: list[DraftToken] = field(default_factory=list)
    ended: bool = False
    next: DraftToken | None = None
    rows: dict[str, list[Floats]] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        """The draft tokens that are evaluated."""
        return [draft_token.token for draft_token in self.draft_tokens[: len(self.draft_tokens) - self.ended]]

    @property
    def offers(self) -> tuple[DraftToken | None, ...]:
        """The draft token at each row of logits."""
        return tuple(self.draft_tokens) if self.ended else (*self.draft_tokens, self.next)


class Writing(Protocol):
    """What drafts are made for: an answer that has begun (`sequence.Sequence`)."""

    @property
    def request(self) -> Request: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def kv(self) -> Mapping[str, KVSequence]: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def position(self) -> int: ...
    @property
    def room(self) -> int: ...
    @property
    def remaining(self) -> float: ...
    @property
    def history(self) -> list[int]: ...
    def draft_sampler(self) -> Sampler: ...


@dataclass(frozen=True, slots=True)
class Round:
    """Answers that are drafted for together, and how many tokens each may get at most."""

    cache: Cache
    answers: Sequence[Writing]
    limits: Sequence[int]
    length: DraftLength


class Drafter(Protocol):
    """A source of drafts. `roles` are evaluated while drafting, and need no evaluation afterwards.

    kinds: whether draft tokens are free, that is, need no evaluation of their own; both, if some are.
    Where a draft stops may depend on anything but the tokens that it leaves out: what was drawn is offered.
    """

    @property
    def roles(self) -> tuple[str, ...]: ...

    @property
    def kinds(self) -> tuple[bool, ...]: ...

    def draft(self, now: Round, which: Sequence[int]) -> dict[int, Draft]:
        """Draft for the answers with these numbers; the tokens are then part of the roles' sequences."""


class RoleDrafter:
    """One or two small roles write ahead: the heaviest expert alone, or it and its antiexpert (`proxy`).

    The proxy, antiexpert + α·(expert − antiexpert), is the mixture without what scale knows: closer to it than the
    expert where α is not 1, and an evaluation dearer.
    """

    kinds: tuple[bool, ...] = (False,)

    def __init__(self, rule: Rule, expert: str, antiexpert: str | None = None) -> None:
        """rule: draws the draft tokens; the one that decides on them."""
        self._rule = rule
        self._expert = expert
        self._antiexpert = antiexpert
        self.roles = (expert,) if antiexpert is None else (antiexpert, expert)

    def draft(self, now: Round, which: Sequence[int]) -> dict[int, Draft]:
        drafts = {i: Draft(rows={name: [] for name in self.roles}) for i in which}
        samplers = {i: now.answers[i].draft_sampler() for i in which}
        active = list(which)
        try:
            while active:
                _evaluate(now, {i: drafts[i] for i in active}, [1] * len(active))
                scores = {
                    i: self._scores(drafts[i], now.answers[i].recipe)
                    for i in active
                    if len(drafts[i].draft_tokens) < now.limits[i]
                }
                confidence = {i: _confidence(row, now.answers[i].request.target.scratch) for i, row in scores.items()}
                longer = now.length.extend(confidence)
                draft_tokens = {i: self._propose(now, i, drafts[i], samplers[i], row) for i, row in scores.items()}
                for i in draft_tokens.keys() - longer:
                    drafts[i].next = draft_tokens[i]
                active = [i for i in sorted(longer) if self._extend(now, i, drafts[i], samplers[i], draft_tokens[i])]
        finally:
            for sampler in samplers.values():
                sampler.close()
        return drafts

    def _propose(self, now: Round, i: int, draft: Draft, sampler: Sampler, scores: Floats) -> DraftToken:
        answer = now.answers[i]
        position = answer.position
        return self._rule.propose(sampler, scores, answer.request.seed, position + len(draft.draft_tokens), position)

    def _extend(self, now: Round, i: int, draft: Draft, sampler: Sampler, draft_token: DraftToken) -> bool:
        """Add a token to a draft; return whether it may be followed by another."""
        draft.draft_tokens.append(draft_token)
        answer = now.answers[i]
        if answer.request.target.ends(draft_token.token):
            draft.ended = True
            return False
        sampler.accept(draft_token.token)
        for name in self.roles:
            answer.kv[name].pending.append(draft_token.token)
        return True

    def _scores(self, draft: Draft, recipe: Recipe) -> Floats:
        """Return what the next draft token is drawn from, [n_vocab]."""
        expert: Floats = draft.rows[self._expert][-1][0]
        if self._antiexpert is None:
            return expert
        antiexpert: Floats = draft.rows[self._antiexpert][-1][0]
        return antiexpert + np.float32(recipe.alphas[self._expert]) * (expert - antiexpert)


class NgramDrafter:
    """Prompt lookup: where the last tokens stood before, what followed them then is proposed. It costs nothing."""

    roles: tuple[str, ...] = ()
    kinds: tuple[bool, ...] = (True,)

    def draft(self, now: Round, which: Sequence[int]) -> dict[int, Draft]:
        return {i: self._draft(now, i) for i in which}

    def _draft(self, now: Round, i: int) -> Draft:
        draft = Draft()
        target = now.answers[i].request.target
        found, tokens = _continuation(now.answers[i].history, now.limits[i])
        for token in tokens:
            if token >= target.n_vocab:  # a prompt may hold what only its role knows
                break
            draft_token = DraftToken(token)
            if not now.length.extend({i: _FOUND[found]}, free=True):
                draft.next = draft_token
                break
            draft.draft_tokens.append(draft_token)
            if target.ends(token):
                draft.ended = True
                break
        return draft


class FirstOf:
    """Two sources: one that costs nothing, and where it proposes nothing, another one."""

    def __init__(self, free: NgramDrafter, otherwise: Drafter) -> None:
        self._free = free
        self._otherwise = otherwise
        self.roles = otherwise.roles
        self.kinds = (*free.kinds, *otherwise.kinds)

    def draft(self, now: Round, which: Sequence[int]) -> dict[int, Draft]:
        found = {i: draft for i, draft in self._free.draft(now, which).items() if draft.draft_tokens}
        for i, draft in found.items():
            draft.rows = {name: [] for name in self.roles}
            for name in self.roles:
                now.answers[i].kv[name].pending += draft.tokens
        if found:
            _evaluate(now, found, [len(draft.tokens) + 1 for draft in found.values()])
        others = [i for i in which if i not in found]
        return found | (self._otherwise.draft(now, others) if others else {})


@dataclass(frozen=True, slots=True)
class Drafting:
    """Where drafts come from, how long they are, and what becomes of them."""

    drafter: Drafter
    length: DraftLength
    rule: Rule


class DraftingSource:
    """Makes what a recipe requests; what it learns about acceptance lasts from answer to answer."""

    def __init__(self) -> None:
        self._calibrations: dict[Hashable, dict[bool, Calibration]] = {}  # by source
        self._made: dict[Hashable, Drafting] = {}  # by source, and the contexts that it is used with

    def choose(self, answer: Writing, cache: Cache) -> Drafting | None:
        """Return how to draft for an answer, or None: off, one role alone, or a role whose model cannot rewind.

        Answers for which it is the same object are drafted for together. cache: where costs are measured when they are
        not known yet.
        """
        recipe, kv = answer.recipe, answer.kv
        if recipe.draft == "off" or answer.request.given is not None or not answer.request.target.mixture:
            return None
        if not all(each.context.role.model.capabilities.rewinds for each in kv.values()):
            return None
        rule = RULES[recipe.draft_rule]
        drafter = _drafter(recipe, rule)
        source = recipe.draft_rule, recipe.draft_source, drafter.roles
        contexts = tuple((name, id(each.context)) for name, each in kv.items())
        key = source, recipe.draft, contexts
        if key not in self._made:
            self._made[key] = Drafting(drafter, self._length(recipe, source, drafter, kv, cache), rule)
        return self._made[key]

    def _length(
        self, recipe: Recipe, source: Hashable, drafter: Drafter, kv: Mapping[str, KVSequence], cache: Cache
    ) -> DraftLength:
        if recipe.draft != "auto":
            return FixedLength(int(recipe.draft))
        cache.measure(list(kv.values()))
        return AdaptiveLength(
            drafting=_costs([kv[name].context for name in drafter.roles]),
            rest=_costs([each.context for name, each in kv.items() if name not in drafter.roles]),
            calibrations=self._calibrations.setdefault(source, {free: Calibration() for free in drafter.kinds}),
        )


def _costs(contexts: Sequence[ContextCache]) -> list[Callable[[int], float]]:
    """Return what a row of each of some roles costs, by context: those that share one are evaluated at once."""
    return [per_role(context.costs, roles) for context, roles in Counter(contexts).items() if context.costs]


def _drafter(recipe: Recipe, rule: Rule) -> Drafter:
    free, _, source = recipe.draft_source.rpartition("+")
    if source == "ngram":
        return NgramDrafter()
    heaviest = max(recipe.experts, key=lambda name: abs(recipe.experts[name].alpha))
    drafter = RoleDrafter(rule, heaviest, antiexpert_name(recipe, heaviest) if source == "proxy" else None)
    return FirstOf(NgramDrafter(), drafter) if free else drafter


def _evaluate(now: Round, drafts: Mapping[int, Draft], rows: Sequence[int]) -> None:
    """Evaluate what is pending of the drafting roles, and keep so many last rows of each answer in its draft."""
    roles = tuple(next(iter(drafts.values())).rows)
    wanted = [(i, name, count) for name in roles for i, count in zip(drafts, rows, strict=True)]
    logits = now.cache.evaluate([Part(now.answers[i].kv[name], count) for i, name, count in wanted])
    for (i, name, _), part in zip(wanted, logits, strict=True):
        # A copy: the view is gone with the next evaluation, and the mixture needs these rows later.
        shared = now.answers[i].request.target.shared(name, part).copy()
        drafts[i].rows[name] += np.split(shared, len(part))


def _confidence(scores: Floats, scratch: Floats) -> float:
    """Return the highest probability of one row of scores, before any sampler."""
    exponentials = np.exp(np.subtract(scores, scores.max(), out=scratch), out=scratch)
    return 1.0 / float(exponentials.sum())


def _continuation(tokens: Sequence[int], limit: int) -> tuple[int, Sequence[int]]:
    """Return how many of the last tokens stood somewhere before, and what followed them at the latest such place."""
    if limit <= 0:
        return 0, ()
    for size in range(min(_NGRAM, len(tokens) - 1), 0, -1):
        ending = tokens[-size:]
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == ending:
                return size, tokens[start + size : start + size + limit]
    return 0, ()
