"""GGUF files of real shapes, written in seconds: layers are holes full of zeros, which cost what weights cost.

Every token runs through all of them; only its embedding comes out, so that the random output matrix gives logits as
a real model's: normally distributed, a few units wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import gguf
import numpy as np
from eft_local.bench.gguf_factory import ModelSpec, Shape, Tokens, bpe, write_model
from gguf.constants import TokenType

from eft_local import locations
from eft_local.llama import Model

SHAPES = {
    "7b": Shape(n_embd=4096, n_layer=32, n_head=32, n_head_kv=32, n_ff=11008, n_ctx=32768),
    "1b": Shape(n_embd=2048, n_layer=22, n_head=32, n_head_kv=4, n_ff=5632, n_ctx=32768),
    "0.5b": Shape(n_embd=896, n_layer=24, n_head=14, n_head_kv=2, n_ff=4864, n_ctx=32768),
    "tiny": Shape(n_embd=256, n_layer=2, n_head=4, n_head_kv=4, n_ff=512, n_ctx=32768),
}
VOCABULARIES = {"32k": 32_000, "152k": 152_064}
"""Llama-2's and Qwen-2.5's."""

_LOGIT_WIDTH = 3.0  # standard deviation
_NIBBLE_WIDTH = 4.61  # of uniform 0…15


def default_folder() -> Path:
    return locations.cache() / "bench"


def model_file(folder: Path, shape: str, vocabulary: str, seed: int, layers: int | None = None) -> Path:
    """Return the Q4_0 file of this shape and seed, with fewer layers if asked; written when it is not there."""
    whole = SHAPES[shape]
    layers = layers or whole.n_layer
    path = folder / f"{shape}-{layers}-layers-{vocabulary}-{seed}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        spec = ModelSpec(
            replace(whole, n_layer=layers),
            _tokens(VOCABULARIES[vocabulary]),
            zero=True,
            quantization="Q4_0",
        )
        write_model(partial, spec)
        _fill(partial, seed)
        partial.rename(path)
    return path


def load(folder: Path, shape: str, vocabulary: str, seed: int, layers: int | None = None) -> Model:
    return Model.load(model_file(folder, shape, vocabulary, seed, layers))


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, extremes."""
    low, middle, high = quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"median": middle, "q1": low, "q3": high, "min": min(samples), "max": max(samples)}


def shown(samples: Sequence[float], unit: str) -> str:
    low, _, high = quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return f"{median(samples):8.3f} {unit}   ({low:.3f} … {high:.3f})"


def _tokens(n_vocab: int) -> Tokens:
    """Bytes, a few merges and control tokens, then words that only a model can choose."""
    tokens = bpe()
    words = [f"w{number}" for number in range(len(tokens.texts), n_vocab)]
    return replace(tokens, texts=tokens.texts + words, types=tokens.types + [TokenType.NORMAL] * len(words))


def _fill(path: Path, seed: int) -> None:
    """Write random embeddings and a random output matrix into a file of zeros, as raw Q4_0 blocks."""
    generator = np.random.default_rng(seed)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name == "output_norm.weight":
            tensor.data[:] = 1
        elif tensor.name in ("token_embd.weight", "output.weight"):
            blocks = tensor.data.reshape(-1, 18)  # one float16 scale, 32 values of half a byte
            blocks[:] = np.frombuffer(generator.bytes(blocks.size), np.uint8).reshape(blocks.shape)
            scale = _LOGIT_WIDTH / _NIBBLE_WIDTH / tensor.shape[0] ** 0.5
            blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
