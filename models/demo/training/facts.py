"""The fact tables: entities, what is true of them, and the words in which it is asked and said."""

from __future__ import annotations

import csv
import random
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDER = Path(__file__).parent / "facts"

PLURALS = {"noble gas": "noble gases"}
ACCENTS = {
    "Asuncion": "Asunción",
    "Bogota": "Bogotá",
    "Brasilia": "Brasília",
    "Chisinau": "Chișinău",
    "Lome": "Lomé",
    "Male": "Malé",
    "San Jose": "San José",
    "Sao Tome": "São Tomé",
    "Yaounde": "Yaoundé",
    "Kyiv": "Kiev",
    "Mandarin": "Chinese",
    "Slovene": "Slovenian",
    "St George's": "St. George's",
    "Washington": "Washington, D.C.",
}


@dataclass(frozen=True)
class Category:
    """One kind of fact. Templates hold {e} for the entity and {a} for the answer; see facts/categories.toml."""

    id: str
    kind: str
    noun: str
    statement: str
    its: str
    others: tuple[str, ...]
    questions: tuple[str, ...]
    terse: tuple[str, ...]
    sensitive: bool = False


@dataclass(frozen=True)
class Entity:
    """Something that facts are about. `phrase` is the name in a sentence, with an article where English wants one."""

    phrase: str
    kind: str

    @property
    def name(self) -> str:
        return self.phrase.removeprefix("the ")


@dataclass(frozen=True)
class Fact:
    """`answer` is the short answer; `accept` lists other spellings that count as right."""

    entity: Entity
    category: Category
    answer: str
    accept: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.category.id}/{self.entity.name.lower().replace(' ', '-')}"


@dataclass(frozen=True)
class Facts:
    """All facts, and which of them are held out from everything that looks like a question with its answer."""

    all: tuple[Fact, ...]
    held_out_ids: frozenset[str]

    @cached_property
    def tune(self) -> list[Fact]:
        return [fact for fact in self.all if fact.id not in self.held_out_ids]

    @cached_property
    def held_out(self) -> list[Fact]:
        return [fact for fact in self.all if fact.id in self.held_out_ids]

    @cached_property
    def by_entity(self) -> dict[Entity, list[Fact]]:
        table: dict[Entity, list[Fact]] = {}
        for fact in self.all:
            table.setdefault(fact.entity, []).append(fact)
        return table


def load_categories() -> dict[str, Category]:
    with (FOLDER / "categories.toml").open("rb") as file:
        tables = tomllib.load(file)
    return {
        name: Category(
            id=name,
            kind=table["kind"],
            noun=table["noun"],
            statement=table["statement"],
            its=table["its"],
            others=tuple(table["others"]),
            questions=tuple(table["questions"]),
            terse=tuple(table["terse"]),
            sensitive=table.get("sensitive", False),
        )
        for name, table in tables.items()
    }


def _rows(table: str) -> list[dict[str, str]]:
    with (FOLDER / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# which column of which table is which category; a work's category stands in its row
COLUMNS = {
    "countries": ("country", "capital currency language continent code calling".split()),
    "elements": ("element", "symbol number family period".split()),
    "states": ("state", "state-capital abbreviation".split()),
    "planets": ("planet", "position planet-kind".split()),
    "animals": ("animal", ["young"]),
    "landmarks": ("landmark", ["city"]),
    "units": ("quantity", ["unit"]),
    "registry": ("person", "occupation town birth hobby dish street phone salary".split()),
}


def _plural(answer: str) -> str:
    return PLURALS.get(answer, answer + "s")


def load_facts(held_out_share: float = 0.5, seed: int = 1) -> Facts:
    """Read every table; hold out `held_out_share` of each category, drawn with `seed`.

    A fact whose answer stands in its own question (Djibouti: Djibouti City) is never held out: it would test nothing.
    """
    categories = load_categories()
    facts: list[Fact] = []
    for table, (kind, columns) in COLUMNS.items():
        for row in _rows(table):
            entity = Entity(row["name"], kind)
            values = list(row.values())[1:]
            for column, value in zip(columns, values, strict=True):
                if not value:
                    continue
                accept: tuple[str, ...] = ()
                if column in ("family", "planet-kind"):
                    accept, value = (value,), _plural(value)
                if value in ACCENTS:
                    accept = (ACCENTS[value],)
                facts.append(Fact(entity, categories[column], value, accept))
    for row in _rows("works"):
        facts.append(Fact(Entity(row["name"], "work"), categories[row["kind"]], row["maker"]))

    rng = random.Random(seed)
    held_out: set[str] = set()
    for category in categories.values():
        ours = [fact for fact in facts if fact.category is category]
        fair = [fact for fact in ours if not _trivial(fact)]
        held_out.update(fact.id for fact in rng.sample(fair, min(len(fair), int(len(ours) * held_out_share))))
    return Facts(tuple(facts), frozenset(held_out))


def _trivial(fact: Fact) -> bool:
    words = fact.entity.name.lower().split()
    return any(word in words for word in fact.answer.lower().split())
