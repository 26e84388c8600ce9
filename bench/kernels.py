"""What do eft-local's own matrix kernels save, and do they change any bit? See bench/README.md."""

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

from eft_local.bench.blank import words
from eft_local.bench.gguf_factory import ModelSpec, write_model
from eft_local.bench.shapes import SHAPES, VOCABULARIES
from eft_local.errors import EftError
from eft_local.llama import Context, Model, kernels
from eft_local.protocols import Rows

MODELS = (("7b", 4, "Q4_0"), ("7b", 4, "Q4_K"), ("0.5b", 24, "Q4_0"))
"""Shape, layers, kind of weights; layers are alike, so a few of a large model tell."""
ROWS = (1, 2, 4, 5, 8, 12, 16, 64, 256)
REPEATS = 8
BEHIND = 64
"""Tokens that stand before the rows."""


def random_model(path: Path, shape: str, layers: int, kind: str) -> Path:
    """Write a model of this shape whose matrices are noise."""
    spec = ModelSpec(replace(SHAPES[shape], n_layer=layers), words(VOCABULARIES["32k"]), zero=True, quantization=kind)
    write_model(path, spec)
    generator = np.random.default_rng(0)
    scales = {"Q4_0": 1, "Q4_K": 2}[kind]  # F16, at the beginning of each block
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if len(tensor.shape) == 1:
            tensor.data[:] = 1
            continue
        blocks = tensor.data.reshape(-1, gguf.GGML_QUANT_SIZES[tensor.tensor_type][1])
        blocks[:] = np.frombuffer(generator.bytes(blocks.size), np.uint8).reshape(blocks.shape)
        blocks[:, : 2 * scales] = np.frombuffer(np.full(scales, 1e-3, np.float16).tobytes(), np.uint8)
    return path


def measure(context: Context, mine: kernels.Kernels, kind: str) -> dict[int, dict[str, float]]:
    """Return the least seconds of so many rows with llama.cpp's kernel and with ours.

    Raises: EftError if they differ.
    """
    seconds: dict[int, dict[str, float]] = {rows: {} for rows in ROWS}
    context.submit([Rows(0, [100] * BEHIND)])
    for _ in range(REPEATS):  # in turns: a machine that drifts favours nobody
        for rows, best in seconds.items():
            logits = []
            for name in ("theirs", "ours"):
                mine.use(kind, ours=name == "ours")
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
    with tempfile.TemporaryDirectory() as folder:
        for shape, layers, kind in MODELS:
            path = random_model(Path(folder) / f"{shape}-{kind}.gguf", shape, layers, kind)
            with (
                Model.load(path, trusted=True, mmap=False) as model,
                model.open(n_ctx=BEHIND + max(ROWS), flash_attention=True) as context,
            ):
                for rows, seconds in measure(context, mine, kind).items():
                    found.append({"shape": shape, "kind": kind, "rows": rows, **seconds})
            path.unlink()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("all logits are equal to the bit; milliseconds, and rows' cost relative to one row\n")
    print("shape  kind   rows   llama.cpp's       ours              llama.cpp's ÷ ours")
    for each in found:
        if each["rows"] == 1:
            one = each
        cells = (f"{1e3 * each[name]:8.1f} {each[name] / one[name]:6.2f}" for name in ("theirs", "ours"))
        gain = each["theirs"] / each["ours"]
        print(f"{each['shape']:6} {each['kind']} {each['rows']:5}  {'   '.join(cells)}   {gain:6.2f}")


if __name__ == "__main__":
    main()
