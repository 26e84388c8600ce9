"""Writes llama models of any size as GGUF files whose weights are zeros, and says where each weight then is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)


@dataclass(frozen=True)
class Shape:
    """A llama model's hyper-parameters."""

    n_embd: int = 32
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 64
    n_ctx: int = 512
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    tied: bool = False  # the output shares the embedding's weights
    head: int | None = None  # dimensions of each head, if they are not n_embd / n_head

    @property
    def n_embd_head(self) -> int:
        """Dimensions of each head."""
        return self.head or self.n_embd // self.n_head

    def tensors(self, n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name, shape as NumPy has it: [out, in]) of every tensor."""
        n_q, n_kv = self.n_embd_head * self.n_head, self.n_embd_head * self.n_head_kv
        yield "token_embd.weight", (n_vocab, self.n_embd)
        yield "output_norm.weight", (self.n_embd,)
        if not self.tied:
            yield "output.weight", (n_vocab, self.n_embd)
        for layer in range(self.n_layer):
            for name, shape in {
                "attn_norm": (self.n_embd,),
                "attn_q": (n_q, self.n_embd),
                "attn_k": (n_kv, self.n_embd),
                "attn_v": (n_kv, self.n_embd),
                "attn_output": (self.n_embd, n_q),
                "ffn_norm": (self.n_embd,),
                "ffn_gate": (self.n_ff, self.n_embd),
                "ffn_up": (self.n_ff, self.n_embd),
                "ffn_down": (self.n_embd, self.n_ff),
            }.items():
                yield f"blk.{layer}.{name}.weight", shape


@dataclass(frozen=True)
class Place:
    """Where a tensor's data lies in its file."""

    offset: int  # bytes
    shape: tuple[int, ...]  # [out, in]
    kind: GGMLQuantizationType

    @property
    def size(self) -> int:
        """Bytes."""
        return row_bytes(prod(self.shape), self.kind)


def write_zeros(
    writer: gguf.GGUFWriter, path: Path, shapes: Mapping[str, tuple[int, ...]], quantization: str
) -> dict[str, Place]:
    """Write the file with all its metadata; its tensors are one hole, which takes no space and reads as zeros.

    quantization: of the matrices; vectors are F32. Returns where each tensor is.
    """
    kinds = {
        name: GGMLQuantizationType[quantization] if len(shape) > 1 else GGMLQuantizationType.F32
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        # NumPy's dtype is not read when the raw one is given, but for its size.
        size = row_bytes(prod(shape), kinds[name])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    places = {}
    with path.open("r+b") as file:
        end = _aligned(file.seek(0, 2))
        for name, shape in shapes.items():
            places[name] = Place(end, shape, kinds[name])
            end = _aligned(end + places[name].size)
        file.truncate(end)
    return places


def row_bytes(values: int, kind: GGMLQuantizationType) -> int:
    """Return the bytes of so many values, which are whole blocks of this type."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(values // block * size)


def add_shape(writer: gguf.GGUFWriter, shape: Shape, n_vocab: int, own_attention: bool = False) -> None:
    """Add a llama model's hyper-parameters. own_attention: without those of key-value heads and their lengths."""
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    if not own_attention:
        writer.add_head_count_kv(shape.n_head_kv)
        writer.add_rope_dimension_count(shape.n_embd_head)
    if shape.head and not own_attention:
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(n_vocab)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
