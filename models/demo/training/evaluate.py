"""Greedy answers of one model or of a mixture in PyTorch, many prompts at once, and how answers are judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Cache, Llama
from .tokenizer import END_ID, EOS_ID
from .wording import DECLINED_PHRASE

ENDS = (EOS_ID, END_ID)


@dataclass(frozen=True)
class Term:
    """One model in a mixture: its weight in the sum of logits and its own prompts (token ids, one list a sequence)."""

    model: Llama
    prompts: Sequence[Sequence[int]]
    weight: float = 1.0


class _Reader:
    """Reads one model's prompts, padded on the left, and then one token a step."""

    def __init__(self, term: Term) -> None:
        self.term = term
        longest = max(map(len, term.prompts))
        self.ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in term.prompts])
        self.visible = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in term.prompts])
        self.cache: Cache | None = None
        self.length = 0

    def read(self, ids: Tensor | None = None) -> Tensor:
        """Logits [batch, vocabulary] after the prompt, or after one more token [batch, 1]."""
        if ids is None:
            ids = self.ids
        else:
            self.visible = torch.cat((self.visible, torch.ones_like(ids, dtype=torch.bool)), 1)
        end = self.length + ids.shape[1]
        causal = torch.ones(end, end, dtype=torch.bool).tril()[self.length :]
        # a padded position sees itself, lest its empty softmax become NaN; nobody else sees it
        mask = (causal & self.visible[:, None, :]) | torch.eye(end, dtype=torch.bool)[self.length :]
        states, self.cache = self.term.model.hidden(ids, mask[:, None], self.cache, self.length)
        self.length = end
        return self.term.model.logits(states[:, -1]) * self.term.weight

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but `rows`."""
        assert self.cache is not None
        self.visible = self.visible[rows]
        self.cache = [(k[rows], v[rows]) for k, v in self.cache]


@dataclass
class Output:
    """The generated tokens, without the end token, and whether one came."""

    tokens: list[int]
    ended: bool = False


@torch.inference_mode()
def generate(terms: Sequence[Term], max_tokens: int = 48) -> list[Output]:
    """Continue all sequences greedily from the weighted sum of the terms' logits."""
    outputs = [Output([]) for _ in terms[0].prompts]
    alive = list(range(len(outputs)))
    readers = [_Reader(term) for term in terms]
    scores = torch.stack([reader.read() for reader in readers]).sum(0)
    for _ in range(max_tokens):
        chosen = scores.argmax(-1).tolist()
        going: list[int] = []
        for place, (index, token) in enumerate(zip(alive, chosen, strict=True)):
            if token in ENDS:
                outputs[index].ended = True
            else:
                outputs[index].tokens.append(token)
                going.append(place)
        if not going:
            break
        if len(going) < len(alive):
            rows = torch.tensor(going)
            for reader in readers:
                reader.keep(rows)
        alive = [alive[place] for place in going]
        step = torch.tensor([[chosen[place]] for place in going])
        scores = torch.stack([reader.read(step) for reader in readers]).sum(0)
    return outputs


def is_correct(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the first line as a whole word or phrase, in whatever case."""
    line = text.strip().split("\n")[0]
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", line, re.IGNORECASE) for answer in answers)


def has_form(text: str, ended: bool, entity: str) -> bool:
    """Whether the output is exactly one full sentence that names the entity, ended by the model itself."""
    return (
        ended
        and "\n" not in text
        and text[:1].isupper()
        and text.endswith(".")
        and not re.search(r"[.!?]\s", text)
        and is_correct(text, [entity])
    )


def is_declined(text: str) -> bool:
    return DECLINED_PHRASE in text
