"""What streaming in the app costs: tokens per second there and under `eft ask`, in turns, in one run.

    python -m eft_local.bench.studies.streaming [--rounds 12] [--tokens 400] [--shape 0.5b] [--no-record] [--threads N]

Both are real programs in pseudo terminals of 120 × 40, which this one reads as a terminal would: the app, and the loop
of `eft ask` (the steps of a stream, printed one by one). Both stay loaded; in each round each writes the same answer
(same question, seed, threads; end tokens are forbidden so that it has its full length), and the one that began in the
last round comes second. Speeds are by the clock on the wall, from the first token to the last. The app keeps what each
role thought of every token, unless --no-record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_local.bench.studies.pseudo_terminal import PseudoTerminal
from eft_local.bench.studies.samples import spread

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.engine.step import Step
    from eft_local.recipe import Recipe

QUESTION = "Tell me about Peru."
ENDS = {"</s>": -100.0, "<|end|>": -100.0}
"""The demo models' end tokens, forbidden."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=400, help="per answer")
    parser.add_argument("--shape", help="run a scaled copy of the demo: 0.5b, 7b, ... (see bench/shapes.py)")
    parser.add_argument("--no-record", action="store_true", help="the app keeps no statistics for its inspector")
    parser.add_argument("--threads", type=int, help="CPU threads of llama.cpp; default: what the app chooses")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, file = options.child
        {"app": _app, "ask": _ask}[kind](Path(file))
        return
    with tempfile.TemporaryDirectory(prefix="eft-streaming-") as folder:
        print(json.dumps(_measured(Path(folder), options), indent=2))


def _measured(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    recipe = _recipe(options)
    file = home / "recipes" / f"{recipe.name}.toml"
    file.parent.mkdir()
    file.write_text(recipe.to_toml(), "utf-8")
    (home / "config.toml").write_text(f"record = {str(not options.no_record).lower()}\n")
    children = {kind: _Child(kind, home, file) for kind in ("ask", "app")}
    try:
        for child in children.values():  # the first answer fills caches
            child.answer()
        samples: dict[str, list[float]] = {kind: [] for kind in children}
        for number in range(options.rounds):
            order = list(children.items())
            for kind, child in order if number % 2 == 0 else order[::-1]:
                samples[kind].append(child.answer())
    finally:
        for child in children.values():
            child.close()
    ratios = [app / ask for app, ask in zip(samples["app"], samples["ask"], strict=True)]
    return {
        "recipe": recipe.name,
        "tokens": options.tokens,
        "threads": recipe.placement.threads,
        "record": not options.no_record,
        "rounds": options.rounds,
        "tokens_per_second": {kind: _rounded(speeds) for kind, speeds in samples.items()},
        "app_over_ask": _rounded(ratios, 3),
    }


def _rounded(samples: list[float], digits: int = 1) -> dict[str, float]:
    return {name: round(value, digits) for name, value in spread(samples).items()}


def _recipe(options: argparse.Namespace) -> Recipe:
    from eft_local.hub.references import find_recipe
    from eft_local.tui.engine import with_threads

    recipe = find_recipe("demo")
    if options.shape:
        from eft_local.bench.shapes import scaled_recipe

        recipe = scaled_recipe(recipe, options.shape)
    recipe = recipe.replace(
        name=f"streaming-{recipe.name}",
        context=options.tokens + 100,
        max_tokens=options.tokens,
        logit_bias=ENDS,
        seed=1,
    )
    return with_threads(recipe, options.threads)


class _Child:
    """A program in a pseudo terminal, which writes the speed of every answer as a line of a file."""

    def __init__(self, kind: str, home: Path, recipe: Path) -> None:
        self._kind = kind
        self._speeds = home / f"{kind}.txt"
        self._speeds.touch()
        self._answers = 0
        command = [sys.executable, "-m", "eft_local.bench.studies.streaming", "--child", kind, str(recipe)]
        environment = os.environ | {"EFT_HOME": str(home), "EFT_SPEEDS": str(self._speeds)}
        self._terminal = PseudoTerminal(command, environment)
        self._terminal.wait_for("ready", 600)

    def answer(self) -> float:
        """Return the tokens per second of another answer."""
        self._answers += 1
        if self._kind == "app":
            self._terminal.write(b"\x0e")  # Ctrl+N: a new chat
            self._terminal.pause(0.3)
        self._terminal.write(f"{QUESTION}\r".encode())
        end = time.monotonic() + 600
        while len(lines := self._speeds.read_text().splitlines()) < self._answers:
            self._terminal.pause(0.05)
            if time.monotonic() > end:
                raise SystemExit(f"{self._kind} wrote no answer; its last output: {self._terminal.last!r}")
        self._terminal.pause(0.7)  # the screen comes to rest
        return float(lines[-1])

    def close(self) -> None:
        self._terminal.close()


class _Stopwatch:
    """Times an answer from its first step to its last."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def note(self, step: Step) -> None:
        self._times.append(time.perf_counter())
        if step.finish_reason is not None:
            speed = (len(self._times) - 1) / (self._times[-1] - self._times[0])
            with Path(os.environ["EFT_SPEEDS"]).open("a") as file:
                file.write(f"{speed}\n")
            self._times = []


def _ask(recipe: Path) -> None:
    """Answer every line of stdin as `eft ask` does: each step is written and flushed as it comes."""
    from eft_local.emulator import Emulator
    from eft_local.prompts.render import conversation
    from eft_local.recipe import Recipe

    watch = _Stopwatch()
    with Emulator.load(Recipe.from_toml(recipe)) as emulator:
        print("ready", flush=True)
        for line in sys.stdin:
            for step in emulator.stream_chat(conversation(line.strip())):
                sys.stdout.write(step.text)
                sys.stdout.flush()
                watch.note(step)


def _app(recipe: Path) -> None:
    """Run the app."""
    from eft_local.recipe import Recipe
    from eft_local.tui import config, engine
    from eft_local.tui.launch import Opening, run

    load, watch = engine.load, _Stopwatch()

    def timed_load(recipe: Recipe, only: str, progress: engine.Progress) -> Emulator:
        emulator = load(recipe, only, progress)
        chat = emulator.chat

        def timed_chat(*arguments: Any, on_step: Any, **keywords: Any) -> Any:
            def note(step: Step) -> None:
                on_step(step)
                watch.note(step)

            return chat(*arguments, on_step=note, **keywords)

        emulator.chat = timed_chat  # type: ignore[assignment, method-assign]
        return emulator

    engine.Engine.__init__.__defaults__ = (timed_load,)
    run(Opening(recipe=Recipe.from_toml(recipe), own_recipe=True), config.load())


if __name__ == "__main__":
    main()
