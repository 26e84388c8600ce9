"""What do eft-local's own matrix kernels save, and do they change any bit? See bench/README.md."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from eft_local.bench.blank import load
from eft_local.bench.shapes import default_folder
from eft_local.errors import EftError
from eft_local.llama import Context, kernels
from eft_local.protocols import Rows

SHAPES = {"7b": 4, "0.5b": 24}
"""Layers of each: they are alike, so a few of a large model tell."""
ROWS = (1, 2, 4, 5, 8, 12, 16, 64, 256)
REPEATS = 8
BEHIND = 64
"""Tokens that stand before the rows."""


def measure(context: Context, mine: kernels.Kernels) -> dict[int, dict[str, float]]:
    """Return the least seconds of so many rows with llama.cpp's kernels and with ours.

    Raises: EftError if they differ.
    """
    seconds: dict[int, dict[str, float]] = {rows: {} for rows in ROWS}
    context.submit([Rows(0, [100] * BEHIND)])
    for _ in range(REPEATS):  # in turns: a machine that drifts favours nobody
        for rows, best in seconds.items():
            logits = []
            for name in ("theirs", "ours"):
                mine.use(ours=name == "ours")
                started = time.perf_counter()
                context.submit([Rows(0, list(range(101, 101 + rows)))])
                logits.append(context.logits().copy())
                now = time.perf_counter() - started
                best[name] = min(now, best.get(name, now))
                context.rewind(0, BEHIND)
            if not np.array_equal(logits[0], logits[1]):
                raise EftError(f"{rows} rows: the two kernels' logits differ")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.kernels", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mine = kernels.load()
    if isinstance(mine, str):
        raise SystemExit(f"there are no kernels to measure: {mine}")
    found: list[dict[str, Any]] = []
    for shape, layers in SHAPES.items():
        with (
            load(default_folder(), shape, "32k", 1, layers) as model,
            model.open(n_ctx=BEHIND + max(ROWS), flash_attention=True) as context,
        ):
            for rows, seconds in measure(context, mine).items():
                found.append({"shape": shape, "rows": rows, **seconds})
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("all logits are equal to the bit; milliseconds, and rows' cost relative to one row\n")
    print("shape   rows   llama.cpp's       ours              llama.cpp's ÷ ours")
    ones = {each["shape"]: each for each in found if each["rows"] == 1}
    for each in found:
        one = ones[each["shape"]]
        cells = (f"{1e3 * each[name]:8.1f} {each[name] / one[name]:6.2f}" for name in ("theirs", "ours"))
        print(f"{each['shape']:6} {each['rows']:5}  {'   '.join(cells)}   {each['theirs'] / each['ours']:6.2f}")


if __name__ == "__main__":
    main()
