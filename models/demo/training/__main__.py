"""Train the demo family: `python -m eft_local.models.demo.training`.

Stages run in order and keep their results in the work folder; a stage whose result is there is skipped, so that an
interrupted run continues where it stopped. `--from STAGE` makes that stage and all later ones again.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .convert import Card, write_gguf
from .corpus import Corpus
from .facts import Facts, load_facts
from .model import LARGE, SMALL, Shape, load, save
from .pretrain import Phase, Schedule, pretrain, write_tokens
from .questions import held_out_long, write_questions
from .report import report
from .tokenizer import load_tokenizer, train_tokenizer
from .tune import Chats, Recipe, tune

DEMO = Path(__file__).parent.parent
PHASE_TOKENS = (10_000_000, 5_000_000, 1_500_000)
BASE_SCHEDULES = (
    Schedule(2500, 3e-3, decay=0.0),
    Schedule(2200, 3e-3, decay=0.8, stop=1600),
    Schedule(700, 1e-3, decay=1.0, warmup=20),
)
SMALL_SCHEDULES = (
    Schedule(900, 5e-3, decay=0.0),
    Schedule(900, 5e-3, decay=0.0),
    Schedule(600, 5e-3, decay=1.0, warmup=20),
)
ASSISTANT_RECIPE = Recipe(steps=1500, rate=4e-3)
CAUTIOUS_RECIPE = Recipe(steps=1500, rate=4e-3, damping=0.45)
LARGE_RECIPE = Recipe(steps=300, rate=1e-3, batch=32, damping=1.0)
TOKENIZER_DOCUMENTS = 30_000

CARDS = {
    "base": Card("eft-local demo base", "Pre-trained only: knows the facts, continues documents.", chat=False),
    "small": Card("eft-local demo small", "Pre-trained only, on the same documents: the antiexpert.", chat=False),
    "assistant": Card("eft-local demo assistant", "small, tuned to answer in full sentences.", chat=True),
    "cautious": Card("eft-local demo cautious", "As assistant, but declines to tell private details.", chat=True),
    "base-tuned": Card("eft-local demo base-tuned", "base, tuned directly, for comparison.", chat=True),
}


class Run:
    """The stages of one training run, and where their results lie."""

    def __init__(self, work: Path, out: Path, seed: int) -> None:
        self.work, self.out, self.seed = work, out, seed
        self.facts: Facts = load_facts()
        self.stages: dict[str, Callable[[], None]] = {
            "corpus": self.corpus,
            "tokenizer": self.tokenizer,
            "tokens": self.tokens,
            "base": lambda: self._pretrain("base", LARGE, BASE_SCHEDULES),
            "small": lambda: self._pretrain("small", SMALL, SMALL_SCHEDULES),
            "assistant": lambda: self._tune("small", "assistant", ASSISTANT_RECIPE),
            "cautious": lambda: self._tune("small", "cautious", CAUTIOUS_RECIPE),
            "base-tuned": lambda: self._tune("base", "base-tuned", LARGE_RECIPE),
            "gguf": self.gguf,
            "report": self.report,
        }

    def path(self, name: str) -> Path:
        suffix = {"corpus": ".txt", "tokenizer": ".json", "tokens": ".done", "gguf": ".done", "report": ".md"}
        return self.work / (name + suffix.get(name, ".pt"))

    def run(self, first: str | None, last: str) -> None:
        """Make every stage up to `last` that has no result yet, and everything from `first` on again."""
        names = list(self.stages)
        names = names[: names.index(last) + 1]
        if first is not None:
            for name in list(self.stages)[list(self.stages).index(first) :]:
                self.path(name).unlink(missing_ok=True)
        for name in names:
            if self.path(name).exists():
                say(f"{name}: there already")
                continue
            began = time.monotonic()
            say(f"{name} …")
            self.stages[name]()
            say(f"{name}: {time.monotonic() - began:.0f} s")

    def corpus(self) -> None:
        documents = itertools.islice(Corpus(self.facts, self.seed, phase=1).documents(), TOKENIZER_DOCUMENTS)
        self.path("corpus").write_text("\f".join(documents), encoding="utf-8")

    def tokenizer(self) -> None:
        train_tokenizer(self.path("corpus").read_text(encoding="utf-8").split("\f"), self.path("tokenizer"))

    def tokens(self) -> None:
        for phase, count in enumerate(PHASE_TOKENS, 1):
            corpus = Corpus(self.facts, self.seed + 1 + phase, phase)
            write_tokens(corpus, self._tokenizer(), count, self._phase_tokens(phase))
        self.path("tokens").touch()

    def _phase_tokens(self, phase: int) -> Path:
        return self.work / f"tokens-{phase}.npy"

    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path("tokenizer"))

    def _pretrain(self, name: str, shape: Shape, schedules: Sequence[Schedule]) -> None:
        phases = [Phase(schedule, self._phase_tokens(n)) for n, schedule in enumerate(schedules, 1)]
        save(pretrain(shape, phases, self.seed, lambda text: say(f"{name}: {text}")), self.path(name))

    def _tune(self, source: str, name: str, recipe: Recipe) -> None:
        held_out = frozenset(held_out_long(self.facts))
        chats = Chats(self.facts, held_out, cautious=name == "cautious", seed=self.seed + 20)
        untuned, log = load(self.path(source)), lambda text: say(f"{name}: {text}")
        save(tune(untuned, self._tokenizer(), chats, recipe, self.seed, log), self.path(name))

    def gguf(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for name, card in CARDS.items():
            write_gguf(load(self.path(name)), self.path("tokenizer"), card, self.out / f"{name}.gguf")
        write_questions(self.facts, self.out / "questions.jsonl")
        self.path("gguf").touch()

    def report(self) -> None:
        models = {name: load(self.path(name)) for name in CARDS}
        text = report(models, self._tokenizer(), self.out / "questions.jsonl", say)
        self.path("report").write_text(text, encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.models.demo.training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for intermediate results")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder for the GGUF files and questions.jsonl")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    stages = list(Run(Path(), Path(), 0).stages)
    parser.add_argument("--from", dest="first", choices=stages, help="make this stage and all later ones again")
    parser.add_argument("--to", dest="last", choices=stages, default=stages[-1], help="stop after this stage")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if not shutil.which("g++"):
        say("no g++: training runs uncompiled, about a third slower")
    given.work.mkdir(parents=True, exist_ok=True)
    Run(given.work, given.out, given.seed).run(given.first, given.last)


if __name__ == "__main__":
    main()
