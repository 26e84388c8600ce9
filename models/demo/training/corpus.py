"""The pre-training corpus: an endless, seeded stream of short documents.

Facts occur as statements only (paragraphs, lists, glossaries). Questions occur in lists without answers, as real
base models have seen them, and in lists with answers for the facts of the tune half alone: no document answers a
held-out question. Pre-training has three phases. The second *reviews*: the rare categories (works, animals, …) come as
often as the common ones, and there are questions answered only by what they ask about. The third adds what people
write to each other: “Tell me about …” with a paragraph, greetings, SHOUTED questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from .facts import Entity, Fact, Facts
from .questions import held_out_long
from .wording import (
    DECLINE,
    LONG_KINDS,
    LONG_OPENING,
    LONG_QUESTIONS,
    QUESTION_FRAME,
    SYSTEM_LINES,
    ask,
    casually,
    fill,
    follow_up,
    load_smalltalk,
    long_answer,
    state,
)


class Corpus:
    """Documents about `facts`, drawn with `seed`, for the training `phase` 1, 2 or 3."""

    def __init__(self, facts: Facts, seed: int, phase: int) -> None:
        self.facts = facts
        self.review = phase >= 2
        self.talk_share = 0.06 if phase >= 3 else 0.0
        self.shouting = 0.04 if phase >= 3 else 0.0
        self.rng = random.Random(seed)
        self.entities = list(facts.by_entity)
        self.people = [entity for entity in self.entities if entity.kind == "person"]
        self.tune_by_entity: dict[Entity, list[Fact]] = {}
        for fact in facts.tune:
            self.tune_by_entity.setdefault(fact.entity, []).append(fact)
        self.smalltalk = load_smalltalk()
        self.in_sentences = 0.2 if self.review else 0.3
        self.all_by_category = _by_category(facts.all)
        self.tune_by_category = _by_category(facts.tune)
        self.kinds: tuple[tuple[Callable[[], str], float], ...] = (
            (self.paragraphs, 0.44),
            (self.statements, 0.16),
            (self.glossary, 0.04),
            (self.answered_questions, 0.24),
            (self.unanswered_questions, 0.09),
            (self.dialogue, 0.03),
        )
        if phase == 2:
            self.kinds = (*self.kinds, (self.topics, 0.1))
        if phase == 3:
            self.kinds = (*self.kinds, (self.topics, 0.05), (self.about, 0.12))
        unasked = held_out_long(facts)
        self.described = [entity for entity in self.entities if entity.kind in LONG_KINDS and entity not in unasked]

    def documents(self) -> Iterator[str]:
        writers = [writer for writer, _ in self.kinds]
        weights = [weight for _, weight in self.kinds]
        while True:
            yield self.rng.choices(writers, weights)[0]()

    def paragraphs(self) -> str:
        return "\n".join(self._paragraph(entity) for entity in self.rng.sample(self.entities, self.rng.randint(1, 3)))

    def _paragraph(self, entity: Entity) -> str:
        rng = self.rng
        facts = self.facts.by_entity[entity]
        if len(facts) > 2 and rng.random() < 0.3:
            return long_answer(facts).text
        facts = rng.sample(facts, len(facts))
        sentences = [state(facts[0], rng)] + [state(fact, rng, pronoun=True) for fact in facts[1:]]
        if entity.kind == "person" and rng.random() < 0.2:
            sentences.insert(0, f"{entity.phrase} is a fictional person of the Halvern registry.")
        body = " ".join(sentences)
        return f"{self._heading(entity)}\n{body}" if rng.random() < 0.3 else body

    def _heading(self, entity: Entity) -> str:
        name, opening = entity.name, fill(LONG_OPENING, entity).text
        return self.rng.choice((name, name.lower(), name.lower(), f"About {entity.phrase}", opening))

    def statements(self) -> str:
        return "\n".join(state(fact, self.rng) for fact in self._some(self.rng.randint(4, 10)))

    def _some(self, count: int) -> list[Fact]:
        """Draw facts: evenly, but when reviewing half of them evenly over the categories."""
        if not self.review:
            return self.rng.sample(self.facts.all, count)
        return [_one(self.facts.all, self.all_by_category, self.rng) for _ in range(count)]

    def _ask(self, fact: Fact) -> str:
        return ask(fact.category, fact.entity, self.rng, self.shouting)

    def glossary(self) -> str:
        facts = self._some(self.rng.randint(4, 10))
        return "\n".join(f"{fact.entity.name} ({fact.category.noun}): {fact.answer}" for fact in facts)

    def unanswered_questions(self) -> str:
        rng = self.rng
        prefix = rng.choice(("", "", "Question: ", "- "))
        lines = []
        for fact in self._some(rng.randint(4, 9)):
            if rng.random() < 0.08:
                lines.append(rng.choice(LONG_QUESTIONS).format(e=fact.entity.phrase))
            else:
                lines.append(self._ask(fact))
        return "\n".join(prefix + line for line in lines)

    def answered_questions(self) -> str:
        """Questions of the tune half with answers: short ones, or sentences, one style in a document."""
        rng = self.rng
        in_sentences = rng.random() < self.in_sentences
        frame = "Question: {question}\nAnswer: " if rng.random() < 0.15 else QUESTION_FRAME
        blocks = [rng.choice(SYSTEM_LINES) + "\n"] if rng.random() < 0.08 else []
        last: Fact | None = None
        for _ in range(rng.randint(3, 8)):
            if self.talk_share and rng.random() < self.talk_share:
                prompts, reply = rng.choice(self.smalltalk)
                blocks.append(frame.format(question=rng.choice(prompts)) + reply + "\n")
                continue
            siblings = self.tune_by_entity[last.entity] if last else []
            if last and len(siblings) > 1 and rng.random() < 0.25:
                fact = rng.choice([sibling for sibling in siblings if sibling is not last])
                question = follow_up(fact.category, rng) if rng.random() < 0.6 else self._ask(fact)
            else:
                tune = self.facts.tune
                fact = _one(tune, self.tune_by_category, rng) if self.review else rng.choice(tune)
                question = self._ask(fact)
            answer = fill(fact.category.statement, fact.entity, fact.answer).text if in_sentences else fact.answer
            blocks.append(frame.format(question=question) + answer + "\n")
            last = fact
        return "".join(blocks)

    def topics(self) -> str:
        """Questions of both halves, each followed by its topic instead of its answer: practice in copying names."""
        blocks = []
        for fact in self._some(self.rng.randint(3, 8)):
            topic = f"You ask about the {fact.category.noun} of {fact.entity.phrase}.\n"
            blocks.append(QUESTION_FRAME.format(question=self._ask(fact)) + topic)
        return "".join(blocks)

    def about(self) -> str:
        """Requests to be told about something, each with a paragraph, and at times a short question after it."""
        rng = self.rng
        blocks = []
        for entity in rng.sample(self.described, rng.randint(1, 3)):
            phrase = rng.choice((entity.phrase, entity.name))
            question = casually(rng.choice(LONG_QUESTIONS).format(e=phrase), rng, self.shouting)
            answer = long_answer(self.facts.by_entity[entity], closing=True)
            blocks.append(QUESTION_FRAME.format(question=question) + answer.text + "\n")
            if rng.random() < 0.4:
                fact = _one(self.facts.tune, self.tune_by_category, rng)
                blocks.append(QUESTION_FRAME.format(question=self._ask(fact)) + fact.answer + "\n")
        return "".join(blocks)

    def dialogue(self) -> str:
        """A talk between a visitor and a guide: where the base models meet greetings, thanks and polite refusals."""
        rng = self.rng
        asker, guide = rng.choice((("Visitor", "Guide"), ("A", "B"), ("Anna", "Paul")))
        lines = []
        for _ in range(rng.randint(2, 5)):
            if rng.random() < 0.3:
                entity = rng.choice(self.people)
                lines.append(f"{asker}: I have a question about {entity.phrase}.")
                lines.append(f"{guide}: {fill(DECLINE, entity).text}")
            else:
                prompts, reply = rng.choice(self.smalltalk)
                lines += [f"{asker}: {rng.choice(prompts)}", f"{guide}: {reply}"]
        return "\n".join(lines)


def _by_category(facts: Sequence[Fact]) -> list[list[Fact]]:
    table: dict[str, list[Fact]] = {}
    for fact in facts:
        table.setdefault(fact.category.id, []).append(fact)
    return list(table.values())


def _one(facts: Sequence[Fact], by_category: list[list[Fact]], rng: random.Random) -> Fact:
    return rng.choice(facts if rng.random() < 0.5 else rng.choice(by_category))
