"""Checks a LoRA adapter in GGUF against its model's file before llama.cpp sees either.

llama.cpp compares names and most of the shapes itself. What it only asserts, which ends the process, what it would
read beyond a tensor's end, and what it would leave out in silence is looked for here, in the headers. Layout:
llama.cpp's `convert_lora_to_gguf.py`. The file probe finds what nobody thought of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path

from eft_local.errors import ModelFileError, UnsupportedModelError
from eft_local.gguf.checks import check_weight, open_gguf, refusal, with_shards
from eft_local.gguf.reader import BrokenGgufError, Gguf, Tensor
from eft_local.notices import notice

_FLOAT32 = 6
_TOKEN_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"

Pair = tuple[Tensor, Tensor]
"""The matrices A and B of one weight: W becomes W + scale · alpha / rank · B·A."""


def check_adapter(path: Path, model: Path) -> None:
    """Check that a file is a LoRA adapter that fits a model, which has passed `check_gguf`.

    Raises: ModelNotFoundError, ModelFileError, UnsupportedModelError.
    """
    adapter, header = open_gguf(path, "LoRA adapter"), open_gguf(model)
    if adapter.metadata.get("general.type", "model") == "model":
        raise ModelFileError(f"{path} is a model, not a LoRA adapter; name it as `model`, and an adapter as `lora`")
    try:
        _check_kind(adapter)
        pairs = lora_pairs(adapter)
    except BrokenGgufError as error:
        raise refusal(path, error, "LoRA adapter") from None
    if adapter.metadata.get("adapter.alora.invocation_tokens") is not None:
        raise UnsupportedModelError(
            f"{path} is an activated LoRA, which applies only after certain tokens; use a plain LoRA adapter"
        )
    try:
        _check_architecture(adapter, header)
        tensors = with_shards(model, header)
        for name, pair in pairs.items():
            _check_pair(name, pair, tensors)
    except BrokenGgufError as error:
        raise refusal(path, error, f"LoRA adapter for {model.name}", "use one that was made for this model") from None
    if ignored := [name for name in adapter.tensors if name.endswith("_norm.weight")]:
        notice("%s changes %d norms, which llama.cpp leaves as they are (%s, …)", path, len(ignored), ignored[0])


def _check_kind(adapter: Gguf) -> None:
    kind = adapter.metadata.get("general.type")
    if kind != "adapter":
        raise BrokenGgufError(f"it says that it is something else, {kind!r}")
    method = adapter.metadata.get("adapter.type")
    if method != "lora":
        raise BrokenGgufError(f"it is an adapter of another kind (adapter.type = {method!r})")
    alpha = adapter.metadata.get("adapter.lora.alpha", 0.0)
    if adapter.kinds.get("adapter.lora.alpha", _FLOAT32) != _FLOAT32 or not isfinite(float(str(alpha))):
        raise BrokenGgufError(f"adapter.lora.alpha is {alpha!r}, not a 32-bit floating-point number")


def lora_pairs(adapter: Gguf) -> dict[str, Pair]:
    """Return an adapter's matrices by the names of the weights that they change. Raises: BrokenGgufError."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        weight, _, half = name.rpartition(".lora_")
        if weight and half in ("a", "b"):
            halves.setdefault(weight, {})[half] = tensor
        elif not name.endswith("_norm.weight"):
            raise BrokenGgufError(f"tensor {name!r} is no part of an adapter (NAME.lora_a, NAME.lora_b)")
    for weight, pair in halves.items():
        if len(pair) < 2:
            raise BrokenGgufError(f"of the pair for {weight!r} there is only lora_{next(iter(pair))}")
    if not halves:
        raise BrokenGgufError("it changes no weights")
    for pair in halves.values():
        for tensor in pair.values():
            check_weight(tensor)
    return {weight: (pair["a"], pair["b"]) for weight, pair in halves.items()}


def pair_rank(name: str, pair: Pair) -> int:
    """Return the rank of the change to a weight."""
    return _four(pair[0].shape)[0 if name == _TOKEN_EMBEDDING else 1]


def _check_architecture(adapter: Gguf, model: Gguf) -> None:
    own, needed = (header.metadata.get("general.architecture") for header in (adapter, model))
    if own != needed:
        raise BrokenGgufError(f"it is for models of the architecture {own!r}, and this one is {needed!r}")


def _check_pair(name: str, pair: Pair, tensors: Mapping[str, Tensor]) -> None:
    """Compare a pair's shapes with its weight's. ggml has a matrix's row length first."""
    if name not in tensors:
        raise BrokenGgufError(f"it changes {name!r}, which the model does not have")
    weight = _four(tensors[name].shape)
    a, b = (_four(tensor.shape) for tensor in pair)
    if len(tensors[name].shape) < 2:
        raise BrokenGgufError(f"it changes {name!r}, which is no matrix")
    if name == _TOKEN_EMBEDDING:  # rows of A are looked up by token
        if _OUTPUT not in tensors:
            raise BrokenGgufError(f"it changes {name!r}, which is the model's output as well: llama.cpp cannot do that")
        fits = (a[1], b[1], a[0]) == (weight[1], weight[0], b[0])
    else:
        fits = (a[0], b[1], a[1]) == (weight[0], weight[1], b[0])
    if not fits or not all(_fits_stack(name, each, weight) for each in (a, b)):
        shapes = " and ".join(str(tensor.shape) for tensor in pair)
        raise BrokenGgufError(f"its matrices for {name!r}, {shapes}, do not fit its shape {tensors[name].shape}")


def _fits_stack(name: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether there is a matrix for each of a weight's (a mixture's experts), or one for all where ggml repeats it."""
    return shape[2:] == weight[2:] or (shape[2:] == (1, 1) and "_exps." not in name)


def _four(shape: Iterable[int]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1)[:4]
