"""Models that know nothing, of real shapes: their layers are holes full of zeros, which cost what weights cost.

Every token runs through all of them; only its embedding comes out, so that the random output matrix gives logits as
a real model's: normally distributed, a few units wide. Their answers never end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import TokenType

from eft_local import files
from eft_local.backends.llamacpp import Model
from eft_local.bench.shapes import SHAPES, VOCABULARIES
from eft_local.bench.studies.gguf_factory import ModelSpec, Tokens, bpe, write_model

_LOGIT_WIDTH = 3.0  # standard deviation
_NIBBLE_WIDTH = 4.61  # of uniform 0…15


def blank_model(folder: Path, shape: str, vocabulary: str, seed: int, layers: int | None = None) -> Path:
    """Return the Q4_0 file of this shape and seed, with fewer layers if requested; written when it is not there."""
    whole = SHAPES[shape]
    layers = layers or whole.n_layer
    path = folder / f"blank-{shape}-{layers}-layers-{vocabulary}-{seed}.gguf"
    if not path.exists():
        spec = ModelSpec(
            replace(whole, n_layer=layers),
            words(VOCABULARIES[vocabulary]),
            zero=True,
            quantization="Q4_0",
        )
        with files.replacing(path, make_folder=True) as partial:
            write_model(partial, spec)
            _fill(partial, seed)
    return path


def load(folder: Path, shape: str, vocabulary: str, seed: int, layers: int | None = None) -> Model:
    return Model.load(blank_model(folder, shape, vocabulary, seed, layers), trusted=True)


def words(n_vocab: int) -> Tokens:
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
