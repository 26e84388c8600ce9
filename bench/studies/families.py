"""Models of several architectures as GGUF files: holes full of zeros, for what depends on shapes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from eft_local.bench.gguf_zeros import Shape, add_shape, write_zeros
from eft_local.bench.studies.blank import words
from eft_local.bench.studies.gguf_factory import add_tokens


@dataclass(frozen=True)
class Family:
    """An architecture with the hyper-parameters of one of its models.

    head_norm: queries and keys are normalised; after_norm: so are the outputs of attention and feed-forward.
    biased: projections of attention have biases.  window: tokens that every other layer or so sees at most.
    experts: (in all, used for a token, their width).  latent: (rank, rotated, plain) dimensions of keys in MLA.
    convolution: tokens that layers without attention see; those are all but every third.
    """

    architecture: str
    shape: Shape
    head_norm: bool = False
    after_norm: bool = False
    biased: bool = False
    window: int = 0
    experts: tuple[int, int, int] = (0, 0, 0)
    latent: tuple[int, int, int] = (0, 0, 0)
    convolution: int = 0

    def tensors(self, n_vocab: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors, [out, in], by name."""
        tensors = dict(self.shape.tensors(n_vocab))
        for layer in range(self.shape.n_layer):
            for name, shape in self._changes(layer):
                full = f"blk.{layer}.{name}"
                if shape is None:
                    del tensors[full]
                else:
                    tensors[full] = shape
        if self.convolution:
            tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
        return tensors

    def _changes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...] | None]]:
        """Yield what one layer has other than a llama's, or (None) has not."""
        shape, head = self.shape, self.shape.n_embd_head
        if self.convolution and not self._attends(layer):
            yield from ((f"attn_{name}.weight", None) for name in ("q", "k", "v", "output"))
            yield "shortconv.conv.weight", (shape.n_embd, self.convolution)
            yield "shortconv.in_proj.weight", (3 * shape.n_embd, shape.n_embd)
            yield "shortconv.out_proj.weight", (shape.n_embd, shape.n_embd)
        elif self.head_norm:
            yield from ((f"attn_{name}_norm.weight", (head,)) for name in ("q", "k"))
        if self.after_norm:
            yield from ((f"post_{name}_norm.weight", (shape.n_embd,)) for name in ("attention", "ffw"))
        if self.biased:
            yield "attn_q.bias", (head * shape.n_head,)
            yield from ((f"attn_{name}.bias", (head * shape.n_head_kv,)) for name in ("k", "v"))
        if self.experts[0]:
            yield from self._expert_tensors()
        if self.latent[0]:
            yield from self._latent_tensors()

    def _attends(self, layer: int) -> bool:
        return not self.convolution or layer % 3 == 2

    def _expert_tensors(self) -> Iterator[tuple[str, tuple[int, ...] | None]]:
        count, _, width = self.experts
        yield "ffn_gate_inp.weight", (count, self.shape.n_embd)
        for name in ("gate", "up", "down"):
            yield f"ffn_{name}.weight", None
            matrix = (self.shape.n_embd, width) if name == "down" else (width, self.shape.n_embd)
            yield f"ffn_{name}_exps.weight", (count, *matrix)

    def _latent_tensors(self) -> Iterator[tuple[str, tuple[int, ...] | None]]:
        rank, rotated, plain = self.latent
        n_embd, n_head = self.shape.n_embd, self.shape.n_head
        yield from ((f"attn_{name}.weight", None) for name in ("k", "v"))
        yield "attn_q_a.weight", (rank, n_embd)
        yield "attn_q_a_norm.weight", (rank,)
        yield "attn_q_b.weight", (n_head * (plain + rotated), rank)
        yield "attn_q.weight", None
        yield "attn_kv_a_mqa.weight", (rank + rotated, n_embd)
        yield "attn_kv_a_norm.weight", (rank,)
        yield "attn_k_b.weight", (n_head, rank, plain)
        yield "attn_v_b.weight", (n_head, plain, rank)
        yield "attn_output.weight", (n_embd, n_head * plain)

    def keys(self) -> dict[str, Any]:
        """Return the hyper-parameters that a llama has not."""
        keys: dict[str, Any] = {}
        if self.window:
            keys["attention.sliding_window"] = self.window
        if self.experts[0]:
            count, used, width = self.experts
            keys |= {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}
        if self.latent[0]:
            rank, rotated, plain = self.latent
            keys |= {
                "attention.q_lora_rank": rank,
                "attention.kv_lora_rank": rank,
                "attention.key_length": rank + rotated,
                "attention.value_length": rank,
                "attention.key_length_mla": plain + rotated,
                "attention.value_length_mla": plain,
                "rope.dimension_count": rotated,
                "attention.head_count_kv": 1,
                "leading_dense_block_count": self.shape.n_layer,
                "expert_feed_forward_length": 64,
                "expert_shared_count": 1,
            }
        if self.convolution:
            layers = range(self.shape.n_layer)
            keys |= {
                "shortconv.l_cache": self.convolution,
                "attention.head_count_kv": [self.shape.n_head_kv * self._attends(layer) for layer in layers],
            }
        return keys


def write_family(path: Path, family: Family, n_vocab: int, quantization: str = "F16") -> Path:
    """Write the model and return the path."""
    writer = gguf.GGUFWriter(path, family.architecture)
    own_attention = bool(family.latent[0] or family.convolution)
    add_shape(writer, family.shape, n_vocab, own_attention=own_attention)
    for key, value in family.keys().items():
        name = f"{family.architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)
    add_tokens(writer, words(n_vocab))
    write_zeros(writer, path, family.tensors(n_vocab), quantization)
    return path


FAMILIES: Mapping[str, Family] = {
    "llama-0.5b": Family("llama", Shape(n_embd=896, n_layer=24, n_head=14, n_head_kv=2, n_ff=4864, n_ctx=32768)),
    "llama-1b": Family("llama", Shape(n_embd=2048, n_layer=22, n_head=32, n_head_kv=4, n_ff=5632, n_ctx=32768)),
    "llama-7b": Family("llama", Shape(n_embd=4096, n_layer=32, n_head=32, n_head_kv=32, n_ff=11008, n_ctx=32768)),
    "qwen2-0.5b": Family(
        "qwen2",
        Shape(n_embd=896, n_layer=24, n_head=14, n_head_kv=2, n_ff=4864, n_ctx=32768, tied=True),
        biased=True,
    ),
    "qwen3-1.7b": Family(
        "qwen3",
        Shape(n_embd=2048, n_layer=28, n_head=16, n_head_kv=8, n_ff=6144, n_ctx=40960, tied=True, head=128),
        head_norm=True,
    ),
    "gemma2-2b": Family(
        "gemma2",
        Shape(n_embd=2304, n_layer=26, n_head=8, n_head_kv=4, n_ff=9216, n_ctx=8192, tied=True, head=256),
        after_norm=True,
        window=4096,
    ),
    "gemma3-1b": Family(
        "gemma3",
        Shape(n_embd=1152, n_layer=26, n_head=4, n_head_kv=1, n_ff=6912, n_ctx=32768, tied=True, head=256),
        head_norm=True,
        after_norm=True,
        window=512,
    ),
    "qwen3moe": Family(
        "qwen3moe",
        Shape(n_embd=1024, n_layer=12, n_head=16, n_head_kv=4, n_ff=2048, n_ctx=32768, head=128),
        head_norm=True,
        experts=(32, 4, 512),
    ),
    "deepseek2": Family(
        "deepseek2",
        Shape(n_embd=1024, n_layer=16, n_head=16, n_head_kv=16, n_ff=4096, n_ctx=32768),
        latent=(512, 64, 128),
    ),
    "lfm2-350m": Family(
        "lfm2",
        Shape(n_embd=1024, n_layer=16, n_head=16, n_head_kv=8, n_ff=4608, n_ctx=32768, tied=True),
        head_norm=True,
        convolution=3,
    ),
}
