"""How much of its speed an answer keeps while another request's long prompt comes in. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from eft_local.emulator import Emulator
from eft_local.hub.references import find_recipe
from eft_local.prompts.render import conversation
from eft_local.recipe import Recipe, Role

TEXT = "The river rises in the hills, passes three towns and a mill, and reaches the sea after some ninety miles. "


def measure(emulator: Emulator, words: int) -> tuple[list[float], list[float], int]:
    """Follow an answer while a prompt of so many words comes in.

    Return the seconds between its tokens before, and meanwhile; and the tokens of the prompt.
    """
    engine = emulator.engine
    followed = engine.add(
        emulator.models.request(
            "Tell me a long story.", {"target": "base", "max_tokens": 4000, "seed": 1}, followed=True
        )
    )
    before: list[float] = []
    beside: list[float] = []
    while len(followed.tokens) < 4:
        engine.step()
    reading = None
    while not followed.finish_reason and (reading is None or not reading.tokens):
        started, had = time.perf_counter(), len(followed.tokens)
        engine.step()
        seconds = (time.perf_counter() - started) / max(1, len(followed.tokens) - had)
        (beside if reading else before).append(seconds)
        if len(before) == 24 and reading is None:
            long = " ".join((TEXT * words).split()[:words])
            reading = engine.add(
                emulator.models.request(conversation(long), {"target": "base", "max_tokens": 1, "seed": 1})
            )
    engine.abort(engine.running)
    while not engine.idle:
        engine.step()
    tokens = max(map(len, reading.texts.values())) if reading else 0
    return before, beside, tokens


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.beside", description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--model", type=Path, help="a GGUF file that is all roles, in place of a recipe")
    parser.add_argument("--words", type=int, default=300, help="of the prompt that comes in")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = find_recipe(options.recipe)
    if options.model:
        role = Role(model=str(options.model.absolute()), prompt=recipe.base.prompt)
        text = f'[base]\nmodel = "{role.model}"\n[antiexpert]\nmodel = "@base"\n[experts.own]\nmodel = "@base"'
        recipe = Recipe.from_text(text)
    recipe = recipe.replace(context=options.context, draft="off", threads=options.threads)
    # No end: a story that stops too early would leave nothing to follow.
    shares = []
    with Emulator.load(recipe, target="base", parallel=2) as emulator:
        ends = emulator.models.roles["base"].vocabulary.ends()
        emulator.recipe = recipe.replace(logit_bias={str(token): -100.0 for token in ends})
        for _ in range(options.rounds):
            emulator.forget()
            before, beside, tokens = measure(emulator, options.words)
            shares.append(statistics.mean(before) / statistics.mean(beside))
            if not options.json:
                print(
                    f"prompt of {tokens} tokens in {len(beside)} rounds: {1 / statistics.mean(before):.1f} tokens/s "
                    f"before, {1 / statistics.mean(beside):.1f} meanwhile: {shares[-1]:.2f} of its speed"
                )
    if options.json:
        print(json.dumps({"shares": shares, "median": statistics.median(shares)}))


if __name__ == "__main__":
    main()
