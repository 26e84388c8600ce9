"""What do our matrix kernels save, and does every row get the logits that it gets alone? See bench/README.md."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Context, Model, kernels
from eft_local.backends.llamacpp.kernels.products import WEIGHTS
from eft_local.bench.shapes import SHAPES, VOCABULARIES
from eft_local.bench.studies.blank import words
from eft_local.bench.studies.gguf_factory import ModelSpec, write_model
from eft_local.errors import EftError

MODELS = (
    ("7b", 4, "Q4_0"),
    ("7b", 4, "Q4_K"),
    ("0.5b", 24, "Q4_0"),
    ("0.5b", 24, "Q8_0"),
    ("0.5b", 24, "Q5_K"),
    ("0.5b", 24, "Q6_K"),
    ("0.5b", 24, "F16"),
)
ROWS = (1, 2, 4, 5, 8, 12, 16, 64, 256)
REPEATS = 8
BEHIND = 64
"""Tokens that stand before the rows."""


def random_model(path: Path, shape: str, layers: int, kind: str) -> Path:
    """Write a model of this shape whose matrices are noise."""
    spec = ModelSpec(replace(SHAPES[shape], n_layer=layers), words(VOCABULARIES["32k"]), zero=True, quantization=kind)
    write_model(path, spec)
    generator = np.random.default_rng(0)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if len(tensor.shape) == 1:
            tensor.data[:] = 1
        elif kind == "F16":
            tensor.data[:] = generator.standard_normal(tensor.data.shape, np.float32) / 50
        else:
            blocks = tensor.data.reshape(-1, WEIGHTS[kind].bytes)
            blocks[:] = np.frombuffer(generator.bytes(blocks.size), np.uint8).reshape(blocks.shape)
            for place in WEIGHTS[kind].scales:
                blocks[:, place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    return path


def measure(context: Context, mine: kernels.Kernels, kind: str) -> dict[int, dict[str, float]]:
    """Return the least seconds of so many rows with llama.cpp's kernels and with ours.

    Raises: EftError if a row's logits are others than it gets alone.
    """
    seconds: dict[int, dict[str, float]] = {rows: {} for rows in ROWS}
    context.submit([Rows(0, [100] * BEHIND)])

    def evaluate(count: int, *, ours: bool) -> float:
        if kind in mine.ours:
            mine.use(kind, ours=ours)
        mine.products.use(exact=ours)
        started = time.perf_counter()
        context.submit([Rows(0, list(range(101, 101 + count)))])
        context.logits()
        return time.perf_counter() - started

    alone = {}
    for length in range(1, max(ROWS) + 1):
        context.submit([Rows(0, [100 + length])])
        if length in ROWS:
            alone[length] = context.logits().copy()
    context.rewind(0, BEHIND)
    for _ in range(REPEATS):  # in turns: a machine that drifts favours nobody
        for rows, best in seconds.items():
            for name in ("theirs", "ours"):
                now = evaluate(rows, ours=name == "ours")
                best[name] = min(now, best.get(name, now))
                if name == "ours" and not np.array_equal(context.logits(), alone[rows]):
                    raise EftError(f"{kind}: after {rows} rows at once the last has other logits than after one by one")
                context.rewind(0, BEHIND)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.kernels", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mine = kernels.load()
    if isinstance(mine, str):
        raise SystemExit(f"there are no kernels to measure: {mine}")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, layers, kind in MODELS:
            path = random_model(Path(folder) / f"{shape}-{kind}.gguf", shape, layers, kind)
            with (
                Model.load(path, trusted=True, mmap=False) as model,
                model.open(ContextOptions(n_ctx=BEHIND + max(ROWS), flash_attention=False)) as context,
            ):
                for rows, seconds in measure(context, mine, kind).items():
                    found.append({"shape": shape, "kind": kind, "rows": rows, **seconds})
            path.unlink()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("every row has the logits that it gets alone, to the bit; milliseconds, and rows' cost relative to one row\n")
    print("shape  kind   rows   llama.cpp's       ours              llama.cpp's ÷ ours")
    for each in found:
        if each["rows"] == 1:
            one = each
        cells = (f"{1e3 * each[name]:8.1f} {each[name] / one[name]:6.2f}" for name in ("theirs", "ours"))
        gain = each["theirs"] / each["ours"]
        print(f"{each['shape']:6} {each['kind']} {each['rows']:5}  {'   '.join(cells)}   {gain:6.2f}")


if __name__ == "__main__":
    main()
