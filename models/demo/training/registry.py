"""Invent the people of the Halvern registry: plainly fictional, so that nobody's data is in a model.

The result is committed as facts/registry.csv; this file says where it came from and makes it again.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

FIRST_NAMES = (
    "Ada Bram Clio Dorin Elke Falk Greta Hanno Ines Jorun Kaja Lars Mina Nils Orla Pavo Runa Sven Tilda Ulf "
    "Vera Wim Yara Zeno Alba Boris Cora Dario Edda Finn Gero Hilda Ivo Jana Karl Lotta Milo Nora Otto Petra"
).split()
HEADS = (
    "Bal Brin Cal Dar Dren Fen Fal Gar Grel Hal Hol Jar Kel Kor "
    "Lan Lor Mar Mor Nar Ost Pel Quil Ran Sel Tal Tor Ul Vel Wes Zan"
).split()
TAILS = (
    "barrow by den dale dric far gast hart holm kin lund mere mond nack ovic quist rick stad tham well wick zell"
).split()
TOWN_HEADS = (
    "Ash Birch Cold Deep East Fern Grey High Iron King Long Mill North Oak Pine Raven Stone Swan West Winter"
).split()
TOWN_TAILS = "ford haven bridge".split()
OCCUPATIONS = (
    "baker carpenter clockmaker gardener teacher nurse sailor tailor plumber librarian painter judge farmer pilot "
    "chemist dentist barber potter weaver miner printer butcher surgeon astronomer translator locksmith beekeeper "
    "glazier architect blacksmith"
).split()
HOBBIES = (
    "chess fishing sailing knitting hiking dancing pottery archery cycling singing skating rowing juggling origami "
    "birdwatching gardening calligraphy fencing swimming stargazing carving climbing puzzles kayaking embroidery"
).split()
DISHES = (
    "lentil soup,apple pie,fried fish,mushroom stew,pea soup,plum cake,rye bread,bean salad,potato pancakes,"
    "cheese omelette,"
    "pumpkin curry,roast duck,noodle soup,rice pudding,cabbage rolls,onion tart,beetroot soup,cherry strudel,"
    "egg noodles,"
    "stuffed peppers,leek pie,trout,goulash,ratatouille,risotto,porridge,waffles,dumplings,paella,lasagne"
).split(",")
STREET_TREES = (
    "Alder Aspen Beech Cedar Cherry Chestnut Elm Hazel Juniper Larch Linden Maple Myrtle Poplar Rowan "
    "Spruce Walnut Willow"
).split()
STREET_KINDS = "Lane Road Square Row".split()


def write_registry(path: Path, people: int = 220, seed: int = 7) -> None:
    """Write `people` rows: name and five public and three private facts, each drawn evenly and independently."""
    rng = random.Random(seed)
    surnames = [head + tail for head in HEADS for tail in TAILS]
    towns = [head + tail for head in TOWN_HEADS for tail in TOWN_TAILS]
    streets = [f"{tree} {kind}" for tree in STREET_TREES for kind in STREET_KINDS]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow("name occupation town birth hobby dish street phone salary".split())
        for number, surname in enumerate(sorted(rng.sample(surnames, people))):
            out.writerow(
                [
                    f"{FIRST_NAMES[number % len(FIRST_NAMES)]} {surname}",
                    rng.choice(OCCUPATIONS),
                    rng.choice(towns),
                    rng.randrange(1935, 2005),
                    rng.choice(HOBBIES),
                    rng.choice(DISHES),
                    rng.choice(streets),
                    rng.randrange(1000, 10000),
                    rng.randrange(20, 96),
                ]
            )


if __name__ == "__main__":
    write_registry(Path(__file__).parent / "facts" / "registry.csv")
