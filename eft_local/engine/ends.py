"""How answers end where the roles have different end tokens.

A fine-tune may end its turns with a token that it has added or renamed; to the base that id is another token, or none
at all. The event is the same, so it is one token for the mixture: an end token of the base. What a role gives to end
tokens of its own, it gives to that one: as the formula has it, the expert's end stands against the base's and the
antiexpert's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eft_local.backends.base import Floats, Vocabulary
from eft_local.backends.vocabulary import Common


@dataclass(frozen=True, slots=True)
class Ends:
    """token: what ends the mixture's answers for all roles; None where no role has an end of its own.

    of: per role whose end is another: the ids whose probabilities, added up, are its probability to end.
    """

    token: int | None
    of: Mapping[str, list[int]]

    @classmethod
    def among(cls, vocabularies: Mapping[str, Vocabulary], common: Common, expert: str) -> Ends:
        """vocabularies: by role, "base" among them.  expert: the one whose ends come first."""
        strange = {
            name: [token for token in vocabulary.ends() if not common.has(token)]
            for name, vocabulary in vocabularies.items()
        }
        token = _common_end(vocabularies, common, expert)
        if token is None or not any(strange.values()):
            return cls(None, {})
        of = {}
        for name, vocabulary in vocabularies.items():
            own = set(strange[name]) | ({token} if common.has(token) or vocabulary.is_eog(token) else set())
            if own not in ({token}, set()):
                of[name] = sorted(own)
        return cls(token, of)

    def fold(self, name: str, logits: Floats, width: int) -> Floats:
        """Return a role's logits of the ids below `width`, with its own ends in the common one. logits: [rows, n]."""
        if name not in self.of:
            return logits[:, :width]
        folded = logits[:, :width].copy()
        folded[:, self.token] = np.logaddexp.reduce(logits[:, self.of[name]], axis=1)
        return folded


def _common_end(vocabularies: Mapping[str, Vocabulary], common: Common, expert: str) -> int | None:
    """Return an id that ends the base's texts, or else another role's: best one that the expert ends with, too."""
    in_order = [vocabularies["base"], vocabularies[expert], *vocabularies.values()]
    ends = [token for vocabulary in in_order for token in vocabulary.ends() if token < common.width]
    ends.sort(key=lambda token: (not common.has(token), not vocabularies[expert].is_eog(token)))
    return ends[0] if ends else None
