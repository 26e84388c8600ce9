"""A llama in a hundred lines: the architecture that llama.cpp calls `llama`, with tied embeddings.

RoPE turns neighbouring pairs (llama.cpp's NORM layout), so that weights go into a GGUF as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
ROPE_BASE = 10000.0
CONTEXT = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `ff` is the width inside the gated MLP."""

    width: int
    layers: int
    heads: int
    ff: int
    vocabulary: int = 4096


LARGE = Shape(width=256, layers=4, heads=4, ff=704)
SMALL = Shape(width=40, layers=3, heads=2, ff=80)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), EPSILON)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, time, size] at positions [time]."""
    half = x.shape[-1] // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = Norm(shape.width)
        self.attn_qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = Norm(shape.width)
        self.ffn_gate_up = nn.Linear(shape.width, 2 * shape.ff, bias=False)
        self.ffn_down = nn.Linear(shape.ff, shape.width, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, time, width = x.shape
        q, k, v = (
            self.attn_qkv(self.attn_norm(x))
            .view(batch, time, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        q, k = rotate(q, positions), rotate(k, positions)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, time, width))
        gate, up = self.ffn_gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.ffn_down(F.silu(gate) * up), (k, v)


class Llama(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and "token_embd" not in name:
                residual = "output" in name or "down" in name
                nn.init.normal_(weight, std=shape.width**-0.5 / ((2 * shape.layers) ** 0.5 if residual else 1.0))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] for ids [batch, time], each row a sequence from position 0."""
        return self.logits(self.hidden(ids)[0])

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, past: Cache | None = None, start: int = 0
    ) -> tuple[Tensor, Cache]:
        """States [batch, time, width] and the cache after them. mask [batch, 1, time, start + time], true = visible."""
        positions = torch.arange(start, start + ids.shape[1])
        x = self.token_embd(ids)
        cache: Cache = []
        for index, block in enumerate(self.blk):
            x, entry = block(x, positions, mask, past[index] if past else None)
            cache.append(entry)
        return x, cache

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def parameters_total(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def save(model: Llama, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"shape": asdict(model.shape), "weights": model.state_dict()}, partial)
    partial.rename(path)


def load(path: Path) -> Llama:
    stored = torch.load(path, weights_only=True)
    model = Llama(Shape(**cast(dict[str, int], stored["shape"])))
    model.load_state_dict(stored["weights"])
    return model
