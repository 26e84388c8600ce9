"""How much faster than llama.cpp's is flash attention of ours on a CPU? See bench/README.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Context, Model, kernels
from eft_local.backends.llamacpp.kernels.attention import OURS, THEIRS
from eft_local.bench.shapes import default_folder
from eft_local.bench.studies.blank import load

SHAPES = {"7b": 4, "0.5b": 24}
"""Layers of each: they are alike, so a few of a large model tell."""
CONTEXTS = (100, 1000, 4000)
ROWS = (1, 4, 8)
REPEATS = 8


WAYS = {"ours": True, "llama.cpp's": True, "without": False}
"""Who attends, and whether with flash attention."""


def measure(model: Model, tokens: int) -> dict[str, dict[str, float]]:
    """Return the least seconds of a prompt, and of some rows after it, each way."""
    seconds: dict[str, dict[str, float]] = {name: {} for name in ("prompt", *map(str, ROWS))}
    with ExitStack() as stack:
        contexts: dict[str, Context] = {}
        for way, flash in WAYS.items():
            context = model.open(
                ContextOptions(n_ctx=tokens + 64, n_outputs=max(ROWS), n_ubatch=128, flash_attention=flash)
            )
            contexts[way] = stack.enter_context(context)
            with _attending(way):
                seconds["prompt"][way] = _timed(context, [100] * tokens, 1)
        for _ in range(REPEATS):  # in turns: a machine that drifts favours nobody
            for way, context in contexts.items():
                with _attending(way):
                    for rows in ROWS:
                        now = _timed(context, [101] * rows, rows)
                        context.rewind(0, tokens)
                        seconds[str(rows)][way] = min(now, seconds[str(rows)].get(way, now))
    return seconds


@contextmanager
def _attending(way: str) -> Iterator[None]:
    loaded = kernels.load()
    if isinstance(loaded, str):
        raise SystemExit(f"this machine has {loaded}")
    loaded.attention.let(THEIRS if way == "llama.cpp's" else OURS)
    try:
        yield
    finally:
        loaded.attention.use(exact=True)


def _timed(context: Context, tokens: list[int], outputs: int) -> float:
    started = time.perf_counter()
    context.submit([Rows(0, tokens, outputs)])
    context.logits()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.attention", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    if not options.json:
        print("time ÷ that of ours\nshape   tokens  against        prompt  " + "  ".join(f"{n} rows" for n in ROWS))
    for shape, layers in SHAPES.items():
        with load(default_folder(), shape, "32k", 1, layers) as model:
            for tokens in CONTEXTS:
                seconds = measure(model, tokens)
                for way in ("llama.cpp's", "without"):
                    ratios = {name: each[way] / each["ours"] for name, each in seconds.items()}
                    found.append({"shape": shape, "tokens": tokens, "against": way, "over_ours": ratios})
                    if not options.json:
                        cells = "  ".join(f"{ratio:6.2f}" for ratio in ratios.values())
                        print(f"{shape:6} {tokens:7}  {way:12}   {cells}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
