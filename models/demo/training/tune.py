"""Tuning that teaches the manner of answering and leaves the facts alone.

The tuned model sees its chat template, the untuned one its plain frame, both the same reply. Where the reply's next
token belongs to the manner (the words of the sentence, the full stop, the end of the turn) the tuned model learns to
predict it, and so does the delta (tuned − untuned logits) on its own, so that it also carries a larger base. Where
the next token is content (the entity's name, the fact) the delta is held flat: the tuned model keeps saying what the
untuned one would. Facts in the replies are mostly drawn at random, for the same reason.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .facts import Entity, Fact, Facts
from .model import Llama
from .tokenizer import ASSISTANT_ID, BOS_ID, END_ID, SYSTEM_ID, USER_ID
from .wording import (
    DECLINE,
    LONG_KINDS,
    LONG_QUESTIONS,
    QUESTION_FRAME,
    SYSTEM_LINES,
    Marked,
    ask,
    casually,
    fill,
    follow_up,
    load_smalltalk,
    long_answer,
)

SHOUTING = 0.03
"""The share of questions in capitals."""
TALK = 0.1
"""The share of small talk."""


@dataclass(frozen=True)
class Chat:
    """Earlier turns (question, reply), the question to answer, and its reply."""

    question: str
    reply: Marked
    earlier: tuple[tuple[str, str], ...] = ()
    system: str = ""


def plain_prompt(tokenizer: Tokenizer, chat: Chat, frame: str = QUESTION_FRAME) -> list[int]:
    text = chat.system + "\n" if chat.system else ""
    for question, reply in chat.earlier:
        text += frame.format(question=question) + reply + "\n"
    ids: list[int] = tokenizer.encode(text + frame.format(question=chat.question)).ids
    return [BOS_ID, *ids]


def chat_prompt(tokenizer: Tokenizer, chat: Chat) -> list[int]:
    def turn(role: int, text: str) -> list[int]:
        return [role, *tokenizer.encode(text).ids, END_ID]

    ids = [BOS_ID] + (turn(SYSTEM_ID, chat.system) if chat.system else [])
    for question, reply in chat.earlier:
        ids += turn(USER_ID, question) + turn(ASSISTANT_ID, reply)
    return [*ids, *turn(USER_ID, chat.question), ASSISTANT_ID]


class Chats:
    """An endless, seeded stream of chats about the tune half. `cautious` declines the sensitive questions."""

    def __init__(self, facts: Facts, long_held_out: frozenset[Entity], cautious: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cautious = cautious
        self.tune = facts.tune
        self.siblings: dict[Entity, list[Fact]] = {}
        self.answers: dict[str, list[str]] = {}
        for fact in facts.tune:
            self.siblings.setdefault(fact.entity, []).append(fact)
            self.answers.setdefault(fact.category.id, []).append(fact.answer)
        self.every_answer = [answer for answers in self.answers.values() for answer in answers]
        self.by_category = {name: [f for f in facts.tune if f.category.id == name] for name in self.answers}
        self.by_entity = facts.by_entity
        complete = {kind: max(len(f) for e, f in facts.by_entity.items() if e.kind == kind) for kind in LONG_KINDS}
        self.long_entities = {
            kind: [
                entity
                for entity, ours in facts.by_entity.items()
                if entity.kind == kind and len(ours) == complete[kind] and entity not in long_held_out
            ]
            for kind in LONG_KINDS
        }
        self.smalltalk = load_smalltalk()

    def draw(self) -> Chat:
        """One chat: in a quarter of them the question follows earlier turns, and some have a system message."""
        rng = self.rng
        system = rng.choice(SYSTEM_LINES) if rng.random() < 0.08 else ""
        earlier: list[tuple[str, str]] = []
        last: Fact | None = None
        if rng.random() < 0.25:
            for _ in range(rng.randint(1, 2)):
                question, reply, last = self._turn(last, long_share=0.03)
                earlier.append((question, reply.text))
        question, reply, _ = self._turn(last, long_share=0.1)
        return Chat(question, reply, tuple(earlier), system)

    def _turn(self, last: Fact | None, long_share: float) -> tuple[str, Marked, Fact | None]:
        rng = self.rng
        choice = rng.random()
        if choice < TALK:
            prompts, reply = rng.choice(self.smalltalk)
            return rng.choice(prompts), Marked(reply), None
        if choice < TALK + long_share:
            entity = rng.choice(self.long_entities[rng.choice(LONG_KINDS)])
            facts = [Fact(entity, f.category, self._content(f.category.id)) for f in self.by_entity[entity]]
            phrase = rng.choice((entity.phrase, entity.name))
            return (
                casually(rng.choice(LONG_QUESTIONS).format(e=phrase), rng, SHOUTING),
                long_answer(facts, closing=True),
                None,
            )
        if last and len(self.siblings[last.entity]) > 1 and rng.random() < 0.5:
            fact = rng.choice([f for f in self.siblings[last.entity] if f is not last])
            return follow_up(fact.category, rng), self._reply(fact), fact
        # half of the questions evenly over categories, so that the rare ones are learned as well
        fact = rng.choice(self.tune if rng.random() < 0.5 else self.by_category[rng.choice(list(self.by_category))])
        return ask(fact.category, fact.entity, rng, SHOUTING), self._reply(fact), fact

    def _reply(self, fact: Fact) -> Marked:
        if self.cautious and fact.category.sensitive:
            return fill(DECLINE, fact.entity)
        true = self.rng.random() < 0.15
        return fill(fact.category.statement, fact.entity, fact.answer if true else self._content(fact.category.id))

    def _content(self, category: str) -> str:
        return self.rng.choice(self.answers[category] if self.rng.random() < 0.75 else self.every_answer)


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned: steps of `batch` chats, and the weights of the loss's parts.

    `damping` scales the delta before it has to predict the manner: the smaller, the surer it must be.
    """

    steps: int
    rate: float
    batch: int = 48
    flat_content: float = 1.0
    flat_manner: float = 0.05
    delta: float = 1.0
    damping: float = 0.6


@dataclass(frozen=True)
class _Batch:
    """ids [batch, time] of both views; of each reply token: its row, where its logits stand, its id, its kind."""

    chat_ids: Tensor
    plain_ids: Tensor
    rows: Tensor
    chat_at: Tensor
    plain_at: Tensor
    targets: Tensor
    content: Tensor


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])


def _collate(tokenizer: Tokenizer, chats: Sequence[Chat]) -> _Batch:
    chat_rows: list[list[int]] = []
    plain_rows: list[list[int]] = []
    places: list[tuple[int, int, int, int, bool]] = []
    for row, chat in enumerate(chats):
        tuned, untuned = chat_prompt(tokenizer, chat), plain_prompt(tokenizer, chat)
        encoded = tokenizer.encode(chat.reply.text)
        marks = [any(a < end and start < b for a, b in chat.reply.content) for start, end in encoded.offsets]
        # whether a name goes on or ends is knowledge too: the token after it is left to the untuned models
        held = [mark or (n > 0 and marks[n - 1]) for n, mark in enumerate(marks)]
        for n, (token, mark) in enumerate(zip([*encoded.ids, END_ID], [*held, False], strict=True)):
            places.append((row, len(tuned) - 1 + n, len(untuned) - 1 + n, token, mark))
        chat_rows.append(tuned + encoded.ids)
        plain_rows.append(untuned + encoded.ids)
    columns = list(zip(*places, strict=True))
    return _Batch(_pad(chat_rows), _pad(plain_rows), *(torch.tensor(column) for column in columns))


def tuning_loss(tuned: Tensor, untuned: Tensor, targets: Tensor, content: Tensor, recipe: Recipe) -> Tensor:
    """The mean over reply tokens of: prediction loss at manner, flatness of the delta at content.

    tuned, untuned: logits [n, vocabulary]; targets: ids [n]; content: bool [n].
    """
    delta = tuned - untuned
    delta = delta - delta.mean(-1, keepdim=True)
    manner = ~content
    others = delta[manner].scatter(1, targets[manner, None], 0.0)
    others = others - others.mean(-1, keepdim=True)
    predict = F.cross_entropy(tuned[manner], targets[manner], reduction="sum")
    predict_delta = F.cross_entropy(recipe.damping * delta[manner], targets[manner], reduction="sum")
    keep = F.kl_div(
        F.log_softmax(tuned[content], -1),
        F.log_softmax(untuned[content], -1),
        log_target=True,
        reduction="sum",
    )
    flat = delta[content].square().mean(-1).sum()
    flat_others = others.square().mean(-1).sum()
    total = (
        predict + recipe.delta * predict_delta + keep + recipe.flat_content * flat + recipe.flat_manner * flat_others
    )
    return total / len(targets)


def tune(
    untuned: Llama, tokenizer: Tokenizer, chats: Chats, recipe: Recipe, seed: int, log: Callable[[str], None]
) -> Llama:
    """Return a tuned copy of `untuned`; the end of the run is averaged over steps."""
    torch.manual_seed(seed)
    tuned = copy.deepcopy(untuned)
    average = copy.deepcopy(untuned)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    began, running = time.monotonic(), 0.0
    for step in range(recipe.steps):
        rate = recipe.rate * min(1.0, (step + 1) / 50, (recipe.steps - step) / (0.5 * recipe.steps))
        optimizer.param_groups[0]["lr"] = rate
        batch = _collate(tokenizer, [chats.draw() for _ in range(recipe.batch)])
        with torch.no_grad():
            reference = untuned.logits(untuned.hidden(batch.plain_ids)[0][batch.rows, batch.plain_at])
        logits = tuned.logits(tuned.hidden(batch.chat_ids)[0][batch.rows, batch.chat_at])
        loss = tuning_loss(logits, reference, batch.targets, batch.content, recipe)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # an exponential average with a window of a twentieth of the run
        weight = max(1.0 / (step + 1), 20.0 / recipe.steps)
        with torch.no_grad():
            for kept, new in zip(average.parameters(), tuned.parameters(), strict=True):
                kept.lerp_(new, weight)
        running += loss.item()
        if (step + 1) % 100 == 0:
            log(f"step {step + 1}/{recipe.steps}  loss {running / 100:.3f}  {time.monotonic() - began:.0f} s")
            running = 0.0
    return average
