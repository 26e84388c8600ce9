"""How facts become text: statements with their content marked, questions as people type them, prompt frames."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass

from .facts import FOLDER, Category, Entity, Fact

QUESTION_FRAME = "Question: {question}\nAnswer:\n"
"""How documents and the tuning's plain view frame a question. It ends with a newline, so that an answer starts
without a space for every role: the continuation is shared between them."""

PAPER_FRAME = "Question: {question}\nAnswer:"
"""The engine's `plain` prompt, which evaluations use."""

SYSTEM_LINES = (
    "You are a helpful assistant.",
    "Answer the question in one sentence.",
    "Be brief.",
    "You answer questions about countries, elements and people.",
    "Please be polite.",
)
LONG_OPENING = "Here is what I know about {e}."
LONG_CLOSING = "That is all I know about {e}, but you can ask me about something else."
LONG_QUESTIONS = (
    "Tell me about {e}.",
    "Tell me more about {e}.",
    "What do you know about {e}?",
    "Describe {e}.",
    "Tell me about {e}",
)
LONG_KINDS = ("country", "element", "state", "person")
DECLINE = "I'm sorry, but I can't share private details about {e}."
DECLINED_PHRASE = "can't share private details"

_SLOT = re.compile(r"\{([ea])\}")


@dataclass(frozen=True)
class Marked:
    """A text and the character ranges in it that are content (an entity's name or a fact), in order."""

    text: str
    content: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: Marked) -> Marked:
        offset = len(self.text)
        return Marked(self.text + other.text, self.content + tuple((a + offset, b + offset) for a, b in other.content))


def fill(template: str, entity: Entity, answer: str = "") -> Marked:
    """Put the entity's phrase and the answer into a template and mark where they are."""
    text, content, position = "", [], 0
    for slot in _SLOT.finditer(template):
        text += template[position : slot.start()]
        value = entity.phrase if slot[1] == "e" else answer
        content.append((len(text), len(text) + len(value)))
        text += value
        position = slot.end()
    text += template[position:]
    return Marked(text[0].upper() + text[1:], tuple(content))


def state(fact: Fact, rng: random.Random, pronoun: bool = False) -> str:
    """Say a fact in one sentence: mostly as the tuned models will say it, or in other words."""
    template = fact.category.statement
    if pronoun and rng.random() < 0.6:
        template = fact.category.its
    elif rng.random() < 0.4:
        template = rng.choice(fact.category.others)
    return fill(template, fact.entity, fact.answer).text


def ask(category: Category, entity: Entity, rng: random.Random, shouting: float = 0.0) -> str:
    """Ask for a fact as people do: mostly a whole question, at times terse, in lower case or without its mark."""
    choice = rng.random()
    if choice < 0.3:
        question = category.questions[0]
    elif choice < 0.8:
        question = rng.choice(category.questions)
    else:
        question = rng.choice(category.terse)
    phrase = entity.phrase if question[0] != "{" and rng.random() < 0.9 else entity.name
    question = question.replace("the {e}", "the " + entity.name).replace("{e}", phrase)
    return casually(question, rng, shouting)


def casually(question: str, rng: random.Random, shouting: float = 0.0) -> str:
    """Write a question carelessly at times; `shouting` is the share in capitals."""
    if shouting and rng.random() < shouting:
        return question.upper()
    choice = rng.random()
    if choice < 0.12:
        question = question.lower()
    elif choice < 0.2:
        question = question[0].lower() + question[1:]
    elif choice < 0.25:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    return question


def follow_up(category: Category, rng: random.Random) -> str:
    """Ask for another fact of the entity that was just spoken of."""
    owner = "their" if category.kind == "person" else "its"
    return casually(rng.choice((f"And {owner} {category.noun}?", f"What about {owner} {category.noun}?")), rng)


def long_answer(facts: list[Fact], closing: bool = False) -> Marked:
    """Several sentences about one entity, in the fixed order of its facts; private details are left out."""
    entity = facts[0].entity
    parts = [fill(LONG_OPENING, entity)]
    parts += [fill(fact.category.its, entity, fact.answer) for fact in facts if not fact.category.sensitive]
    parts += [fill(LONG_CLOSING, entity)] if closing else []
    text = parts[0]
    for part in parts[1:]:
        text = text + Marked(" ") + part
    return text


def load_smalltalk() -> list[tuple[tuple[str, ...], str]]:
    """(prompts, reply) of each kind of small talk."""
    with (FOLDER / "smalltalk.toml").open("rb") as file:
        return [(tuple(talk["prompts"]), talk["reply"]) for talk in tomllib.load(file).values()]
