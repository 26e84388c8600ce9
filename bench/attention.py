"""When is flash attention worth its while on a CPU? See bench/README.md."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from eft_local.bench.blank import load
from eft_local.bench.shapes import default_folder
from eft_local.llama import Context
from eft_local.protocols import Rows

SHAPES = {"7b": 4, "0.5b": 24}
"""Layers of each: they are alike, so a few of a large model tell."""
CONTEXTS = (100, 1000, 4000)
ROWS = (1, 4, 8)
REPEATS = 8


def measure(contexts: dict[bool, Context], tokens: int) -> dict[str, dict[bool, float]]:
    """Return the least seconds of a prompt, and of some rows behind it, with flash attention and without."""
    seconds: dict[str, dict[bool, float]] = {name: {} for name in ("prompt", *map(str, ROWS))}
    for flash, context in contexts.items():
        context.rewind(0, 0)
        seconds["prompt"][flash] = _timed(context, [100] * tokens, 1)
    for _ in range(REPEATS):  # in turns: a machine that drifts favours nobody
        for flash, context in contexts.items():
            for rows in ROWS:
                now = _timed(context, [101] * rows, rows)
                context.rewind(0, tokens)
                seconds[str(rows)][flash] = min(now, seconds[str(rows)].get(flash, now))
    return seconds


def _timed(context: Context, tokens: list[int], outputs: int) -> float:
    started = time.perf_counter()
    context.submit([Rows(0, tokens, outputs)])
    context.logits()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.attention", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    if not options.json:
        print(
            "time without flash attention ÷ with it\nshape   tokens   prompt  " + "  ".join(f"{n} rows" for n in ROWS)
        )
    for shape, layers in SHAPES.items():
        with load(default_folder(), shape, "32k", 1, layers) as model:
            for tokens in CONTEXTS:
                contexts = {
                    flash: model.open(n_ctx=tokens + 64, n_outputs=max(ROWS), n_ubatch=128, flash_attention=flash)
                    for flash in (True, False)
                }
                ratios = {name: each[False] / each[True] for name, each in measure(contexts, tokens).items()}
                for context in contexts.values():
                    context.close()
                found.append({"shape": shape, "tokens": tokens, "without_over_with": ratios})
                if not options.json:
                    cells = "  ".join(f"{ratio:6.2f}" for ratio in ratios.values())
                    print(f"{shape:6} {tokens:7}   {cells}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
