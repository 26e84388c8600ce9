"""Proxy-tuning in PyTorch and transformers, as it is published: three models, their caches, one sum of logits.

A program of its own, started by `peer_transformers` with an interpreter that has torch, transformers and gguf: nothing
here knows eft_local. It reads one JSON object per line and answers each with one: first the models to load, then
prompts, as token ids, until its input ends. Weights come from the GGUF files that llama.cpp runs.
Source: Liu et al. 2024 (arXiv 2401.08565), eq. 1, and the structure of its code: a forward pass of each model per
token, caches of their own, logits cut to the base's vocabulary.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

_CHUNK = 4096  # rows of a matrix that are converted at a time
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_UNSUPPORTED = ("attention.scale", "expert_count", "rope.scaling.type", "logit_scale", "residual_scale")


class PeerError(Exception):
    """A model that this implementation cannot run."""


@dataclass(frozen=True)
class Shape:
    """What a `LlamaConfig` needs to know of a GGUF file; inv_freq [head_dim / 2] are its rotary frequencies."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    inv_freq: tuple[float, ...]

    @property
    def parameters(self) -> int:
        """Weights of all matrices."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.intermediate_size)
        outer = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + outer


def read_shape(reader: GGUFReader, name: str) -> Shape:
    """Return the shape of a GGUF file, called `name` in errors. Raises: PeerError."""
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
    architecture = fields["general.architecture"].contents()
    if architecture != "llama":
        raise PeerError(f"{name} has the architecture {architecture}; the peer runs llama alone")
    values: dict[str, Any] = {
        key.removeprefix("llama."): field.contents() for key, field in fields.items() if key.startswith("llama.")
    }
    if peculiar := [key for key in _UNSUPPORTED if values.get(key) not in (None, 0, "none")]:
        raise PeerError(f"{name} sets {', '.join(peculiar)}, which the peer does not know")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = values["attention.head_count"]
    head_dim = values.get("attention.key_length", values["embedding_length"] // heads)
    if values.get("attention.value_length", head_dim) != head_dim:
        raise PeerError(f"{name} has keys and values of different lengths; the peer needs equal ones")
    factors = tensors.get("rope_freqs.weight")
    return Shape(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=values["embedding_length"],
        intermediate_size=values["feed_forward_length"],
        num_hidden_layers=values["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=values["attention.layer_norm_rms_epsilon"],
        max_position_embeddings=values["context_length"],
        tie_word_embeddings="output.weight" not in tensors,
        inv_freq=frequencies(
            head_dim,
            values.get("rope.dimension_count", head_dim),
            values.get("rope.freq_base", 10000.0),
            None if factors is None else np.array(factors.data),
        ),
    )


def frequencies(
    head_dim: int, rotated: int, base: float, factors: NDArray[np.float32] | None = None
) -> tuple[float, ...]:
    """Return the rotary frequency of each pair of a head's dimensions; pairs beyond `rotated` stand still."""
    turning = base ** (-np.arange(0, rotated, 2) / rotated)
    if factors is not None:
        turning = turning / factors
    return (*turning.tolist(), *[0.0] * ((head_dim - rotated) // 2))


def halves_from_pairs(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Reorder the rows [heads × head_dim, n] of a query or key matrix.

    GGUF files of llamas rotate neighbouring rows (0 and 1, 2 and 3, …), transformers a row of the first half of a head
    with one of the second half.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def transformers_name(tensor: str) -> str | None:
    """Return what transformers calls a tensor of a GGUF file; None for one that is no weight of its own.

    Raises: PeerError.
    """
    if tensor == "rope_freqs.weight":
        return None
    stem, _, kind = tensor.rpartition(".")
    if kind == "weight" and stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if kind == "weight" and block.isdecimal() and part in _LAYER:
        return f"model.layers.{block}.{_LAYER[part]}.weight"
    raise PeerError(f"the tensor {tensor} has no place in transformers' llama")


def chunks(path: Path, tensor: Any, head_dim: int) -> Iterator[NDArray[Any]]:
    """Yield a tensor's values, some rows at a time, as transformers orders them.

    They are read and not mapped, so that the file does not count as memory of this process.
    """
    rows = int(np.prod(tensor.shape[1:], dtype=np.int64)) if len(tensor.shape) > 1 else 1
    step = max(1, _CHUNK // head_dim) * head_dim
    paired = ".attn_q." in tensor.name or ".attn_k." in tensor.name
    with path.open("rb") as file:
        file.seek(int(tensor.data_offset))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            raw = np.fromfile(file, np.uint8, count * int(tensor.n_bytes) // rows).reshape(count, -1)
            halves = tensor.tensor_type.name == "F16"
            values = raw.view(np.float16) if halves else dequantize(raw, tensor.tensor_type)
            yield halves_from_pairs(values, head_dim) if paired else values


def load(path: Path, dtype: str) -> Any:
    """Return a GGUF file as a LlamaForCausalLM; beside its weights only some rows are in memory. Raises: PeerError."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found, unused-ignore]
    from transformers.models.llama.modeling_llama import (  # type: ignore[import-not-found, unused-ignore]
        LlamaRotaryEmbedding,
    )

    reader = GGUFReader(path)
    shape = read_shape(reader, path.name)
    config = LlamaConfig(**{name: value for name, value in vars(shape).items() if name != "inv_freq"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {}
    for tensor in reader.tensors:
        if name := transformers_name(tensor.name):
            kind = getattr(torch, "float32" if name == "model.norm.weight" else dtype)
            weights[name] = weight = torch.empty(tensor.shape[::-1].tolist(), dtype=kind)
            start = 0
            for values in chunks(path, tensor, shape.head_dim):
                target = weight[start : start + len(values)] if weight.dim() > 1 else weight
                target.copy_(torch.from_numpy(values.reshape(target.shape)))
                start += len(values)
    if shape.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    else:
        hold(weights, "model.norm.weight", "lm_head.weight", getattr(torch, dtype))
    weights["model.norm.weight"] = weights["model.norm.weight"].to(getattr(torch, dtype))
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.model.rotary_emb.inv_freq = torch.tensor(shape.inv_freq)
    return model.eval()


def hold(weights: dict[str, Any], norm: str, matrix: str, dtype: Any) -> None:
    """Move powers of two from a norm's weights to the matrix that reads it, where the dtype could not hold them.

    float16 ends at 65504, and a scaled copy's output norm does not.
    """
    import torch

    excess = weights[norm].abs() / torch.finfo(dtype).max
    for column in (excess >= 1).nonzero().flatten().tolist():
        factor = 2.0 ** (1 + math.ceil(math.log2(excess[column])))
        weights[norm][column] /= factor
        weights[matrix][:, column] *= factor


@dataclass(frozen=True)
class Delta:
    """What one expert adds: alpha × (expert − antiexpert); the names of two roles."""

    expert: str
    antiexpert: str
    alpha: float


class ProxyTuning:
    """Models by role, and the published loop on them, for one prompt at a time and greedy."""

    def __init__(self, models: Mapping[str, Any], deltas: Sequence[Delta], n_vocab: int, unused: Sequence[int]) -> None:
        """n_vocab: ids that all models have in common; unused: those of them that are padding."""
        import torch

        self._models = models
        self._deltas = deltas
        self._n_vocab = n_vocab
        self._unused = torch.tensor(unused, dtype=torch.long)

    def generate(
        self,
        prompts: Mapping[str, Sequence[int]],
        max_tokens: int,
        ends: Sequence[int] = (),
        follow: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Write an answer, its end token included; time its first token and the rest.

        prompts: token ids by role. follow: an answer to keep to, token by token, whatever is chosen here.
        Returns `tokens`, the choices; `margins`, by how much each was preferred to the token that was followed;
        `first_seconds` and `rest_seconds`. Raises: PeerError if scores are not numbers: the dtype does not hold them.
        """
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            started = time.perf_counter()
            caches = {name: DynamicCache() for name in prompts}
            inputs = {name: torch.tensor([tokens]) for name, tokens in prompts.items()}
            tokens: list[int] = []
            margins: list[float] = []
            first = 0.0
            for position in range(len(follow) or max_tokens):
                scores = self._scores(inputs, caches)
                choice = int(scores.argmax())
                if scores[choice].isnan():
                    raise PeerError(f"scores at position {position} are not numbers: this dtype cannot hold them")
                taken = follow[position] if follow else choice
                tokens.append(choice)
                margins.append(float(scores[choice] - scores[taken]) if choice != taken else 0.0)
                first = first or time.perf_counter()
                if taken in ends:
                    break
                following = torch.tensor([[taken]])
                inputs = dict.fromkeys(inputs, following)
            ended = time.perf_counter()
        return {
            "tokens": tokens,
            "margins": margins,
            "first_seconds": first - started,
            "rest_seconds": ended - first,
        }

    def _scores(self, inputs: Mapping[str, Any], caches: Mapping[str, Any]) -> Any:
        """Evaluate every model and return the mixture's scores for the next token, float32 [n_vocab]."""
        rows = {}
        for name, tokens in inputs.items():
            output = self._models[name](
                input_ids=tokens, past_key_values=caches[name], use_cache=True, logits_to_keep=1
            )
            rows[name] = output.logits[0, -1, : self._n_vocab].float()
        scores = rows["base"]
        for delta in self._deltas:
            scores = scores + delta.alpha * (rows[delta.expert] - rows[delta.antiexpert])
        if len(self._unused):
            scores[self._unused] = float("-inf")
        return scores


def resident() -> dict[str, float]:
    """Return this process's memory in MB (10⁶ bytes), mapped files included: at its highest, now, and of that mapped.

    Mapped files are libraries, and weights that llama.cpp runs from the file or has copied into an order of its own.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"peak": "VmHWM", "now": "VmRSS", "mapped": "RssFile"}
    return {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in names.items()}


def versions() -> dict[str, str]:
    """Return what runs here."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    """Load the models that the first line names, then answer prompt after prompt."""
    import torch

    if "--versions" in sys.argv:
        print(json.dumps(versions()))
        return
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    try:
        files = {path: load(Path(path), job["dtype"]) for path in dict.fromkeys(job["models"].values())}
        models = {name: files[path] for name, path in job["models"].items()}
        tuning = ProxyTuning(models, [Delta(**delta) for delta in job["deltas"]], job["n_vocab"], job["unused"])
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(tuning.generate(**json.loads(line)) | {"memory": resident()}), flush=True)
    except PeerError as error:
        print(json.dumps({"error": str(error)}), flush=True)


if __name__ == "__main__":
    main()
