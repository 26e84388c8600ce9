"""Which draft tokens are accepted: two rules that keep the mixture's distribution, whatever the drafts are.

With p the mixture's and q the draft's distribution at a position, both after the same samplers:

- `shared-noise`: the token is the argmax of log p + noise, as without drafts; the draft token was that of log q + the
  same noise, and is taken as often as the two agree. So a seed gives the same answer with and without drafts, whatever
  their source and length.
- `rejection`: the draft token, drawn from q with noise of its own, is accepted with probability min(1, p/q); otherwise
  the token is drawn from the positive part of p − q (Leviathan et al. 2023, sections 2.3 and A.1; Chen et al. 2023). No
  rule that decides token by token takes more of them. A seed gives the same answer with the same drafts only.

Numbers are keyed by what they are for, and none is used twice: what decides a position knows nothing of the draft
tokens there, and a new draft for it has new noise. So both rules are exact even where the length of a draft depends on
what was seen before. XTC's coin is keyed by seed and position alone, so p and q obey the same one: given the coin the
rules are exact, so they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from eft_local.backends.base import Floats
from eft_local.backends.llamacpp import Distribution, Sampler
from eft_local.backends.llamacpp.noise import ACCEPTANCE, DRAFT, REDRAW, uniform


@dataclass(frozen=True, slots=True)
class DraftToken:
    """A proposed token, and the distribution that it was drawn from; None if nothing else could come."""

    token: int
    distribution: Distribution | None = None


class Rule(Protocol):
    """Draws draft tokens, and decides on them. Both read the sampler and leave it as it is."""

    def propose(self, sampler: Sampler, scores: Floats, seed: int, position: int, start: int) -> DraftToken:
        """Propose the token at `position` from a draft's scores [n_vocab]; the draft begins at `start`.

        Raises: EvaluationError.
        """

    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        """Return the answer's token at `position`, from the mixture's scores [n_vocab] and the draft token there.

        Where both are the same, the draft token is accepted. Raises: EvaluationError.
        """


class SharedNoise:
    """The rule whose answers do not depend on drafts."""

    def propose(self, sampler: Sampler, scores: Floats, seed: int, position: int, start: int) -> DraftToken:
        return DraftToken(sampler.pick(scores, seed, position))

    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        return sampler.pick(scores, seed, position)


class Rejection:
    """The rule of speculative sampling, which accepts as many draft tokens as possible."""

    def propose(self, sampler: Sampler, scores: Floats, seed: int, position: int, start: int) -> DraftToken:
        distribution = sampler.distribution(scores, seed, position)
        return DraftToken(distribution.draw(uniform(seed, position, DRAFT, start)), distribution)

    def choose(self, sampler: Sampler, scores: Floats, seed: int, position: int, draft_token: DraftToken | None) -> int:
        if draft_token is None:
            return sampler.pick(scores, seed, position)
        mixture = sampler.distribution(scores, seed, position)
        draft = draft_token.distribution or Distribution.certain(draft_token.token)
        if uniform(seed, position, ACCEPTANCE) * draft.of(draft_token.token) < mixture.of(draft_token.token):
            return draft_token.token
        # Where p and q differ by rounding alone, a draft token may be rejected although nothing is left of p − q.
        return (mixture.beyond(draft) or mixture).draw(uniform(seed, position, REDRAW))


RULES: dict[str, Rule] = {"shared-noise": SharedNoise(), "rejection": Rejection()}
"""By the recipe's `draft_rule`."""
