"""The llama architecture in NumPy, written from its papers' equations and independent of llama.cpp.

RMSNorm, rotary positions on neighbouring pairs (as GGUF stores llama's weights), grouped-query attention, SwiGLU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class ReferenceLlama:
    """A llama GGUF file whose logits are computed in float32 by NumPy."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.weights = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float32) for tensor in reader.tensors
        }

        def key(name):
            return reader.fields[f"llama.{name}"].contents()

        self.n_layer = key("block_count")
        self.n_head = key("attention.head_count")
        self.n_head_kv = key("attention.head_count_kv")
        self.epsilon = np.float32(key("attention.layer_norm_rms_epsilon"))
        self.rope_base = key("rope.freq_base") if "llama.rope.freq_base" in reader.fields else 10000.0

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Return the logits after each of the tokens, [len(tokens), n_vocab]."""
        weights = self.weights
        hidden = weights["token_embd.weight"][tokens]
        for layer in range(self.n_layer):
            hidden = hidden + self._attention(layer, self._norm(hidden, f"blk.{layer}.attn_norm"))
            hidden = hidden + self._feed_forward(layer, self._norm(hidden, f"blk.{layer}.ffn_norm"))
        output = weights.get("output.weight", weights["token_embd.weight"])
        return self._norm(hidden, "output_norm") @ output.T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.epsilon) * self.weights[f"{name}.weight"]

    def _linear(self, x: np.ndarray, layer: int, name: str) -> np.ndarray:
        return x @ self.weights[f"blk.{layer}.{name}.weight"].T

    def _attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        n = len(x)
        q = self._rotate(self._linear(x, layer, "attn_q").reshape(n, self.n_head, -1))
        k = self._rotate(self._linear(x, layer, "attn_k").reshape(n, self.n_head_kv, -1))
        v = self._linear(x, layer, "attn_v").reshape(n, self.n_head_kv, -1)
        # Query head h reads key-value head h // group.
        k, v = (np.repeat(part, self.n_head // self.n_head_kv, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(np.float32(q.shape[-1]))
        scores[:, np.triu(np.ones((n, n), dtype=bool), 1)] = -np.inf  # no position sees a later one
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._linear(np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1), layer, "attn_output")

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Turn dimensions (2i, 2i+1) of position t by the angle t · base^(−2i / d)."""
        n, _, d = x.shape
        frequencies = self.rope_base ** (-np.arange(0, d, 2) / d)
        turn = np.exp(1j * np.arange(n)[:, None] * frequencies).astype(np.complex64)[:, None, :]
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape).astype(np.float32)

    def _feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate = self._linear(x, layer, "ffn_gate")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(x, layer, "ffn_up"), layer, "ffn_down")
