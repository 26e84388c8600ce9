"""Writes questions.jsonl: what the models are asked in an evaluation, and in words how answers are judged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .facts import Entity, Fact, Facts
from .wording import DECLINED_PHRASE, LONG_KINDS, ask

JUDGE = {
    "correct": "The answer, or one of `accept`, stands in the first line of the output as a whole "
    "word or phrase, in any case. Of a long question, every one of its facts does.",
    "form": "The output is exactly one full sentence: one line that starts with a capital, ends with a full "
    "stop, names the entity, and the model then ended by itself. A long answer may have several sentences.",
    "declined": f"The output contains the phrase “{DECLINED_PHRASE}”.",
    "declined_phrase": DECLINED_PHRASE,
}
PER_CATEGORY = 32
PER_SENSITIVE_CATEGORY = 50
TUNE_PER_CATEGORY = 8
LONG_PER_KIND = {"country": 40, "element": 25, "state": 10, "person": 40}


def held_out_long(facts: Facts, seed: int = 5) -> list[Entity]:
    """Entities that no tuning chat asks to be told about."""
    rng = random.Random(seed)
    chosen: list[Entity] = []
    for kind in LONG_KINDS:
        entities = [e for e in facts.by_entity if e.kind == kind and e.name.lower() not in AMBIGUOUS]
        chosen += rng.sample(entities, LONG_PER_KIND[kind])
    return chosen


AMBIGUOUS = {"mercury"}
"""A planet and an element: only asked where the question says which."""


def write_questions(facts: Facts, path: Path, seed: int = 11) -> None:
    """Write the judge's words, then one question a line: short ones of both halves, long ones held out."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    categories = {fact.category.id: fact.category for fact in facts.all}
    for split, pool in (("held-out", facts.held_out), ("tune", facts.tune)):
        for category in categories.values():
            most = PER_SENSITIVE_CATEGORY if category.sensitive else PER_CATEGORY
            ours = [fact for fact in pool if fact.category.id == category.id]
            count = min(len(ours), most if split == "held-out" else TUNE_PER_CATEGORY)
            rows += [_short(fact, split, rng) for fact in rng.sample(ours, count)]
    rows += [_long(facts, entity) for entity in held_out_long(facts)]
    lines = [json.dumps(row, ensure_ascii=False) for row in ({"judge": JUDGE}, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _short(fact: Fact, split: str, rng: random.Random) -> dict[str, Any]:
    question = ask(fact.category, fact.entity, rng)
    if fact.entity.name.lower() in AMBIGUOUS:
        question = fact.category.questions[0].replace("{e}", fact.entity.phrase)
    row: dict[str, Any] = {
        "id": fact.id,
        "question": question,
        "answer": fact.answer,
        "entity": fact.entity.name,
        "category": fact.category.id,
        "split": split,
        "kind": "short",
        "sensitive": fact.category.sensitive,
    }
    if fact.accept:
        row["accept"] = list(fact.accept)
    return row


def _long(facts: Facts, entity: Entity) -> dict[str, Any]:
    known = [fact.answer for fact in facts.by_entity[entity] if not fact.category.sensitive]
    return {
        "id": f"about/{entity.name.lower().replace(' ', '-')}",
        "question": f"Tell me about {entity.phrase}.",
        "answer": ", ".join(known),
        "facts": known,
        "entity": entity.name,
        "category": f"about-{entity.kind}",
        "split": "held-out",
        "kind": "long",
        "sensitive": False,
    }
