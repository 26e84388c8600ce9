"""Checks a GGUF file before llama.cpp sees it.

llama.cpp refuses much by itself (tensors that are missing or of the wrong shape, keys of the wrong type), but some
of what a damaged file says makes it abort the process: an assertion, an exception that leaves its C interface, a
read beyond the end of the file. Those are what `check_gguf` looks for, in the header alone; weights are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import numpy as np

from eft_local.errors import ModelFileError, ModelNotFoundError
from eft_local.llama.gguf_reader import BrokenGgufError, Gguf, Tensor, Value, read_gguf

_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_NO_TOKEN = {-1, (1 << 32) - 1}  # what converters write for "there is no such token"


def check_gguf(path: Path) -> None:
    """Check that a file (with all its shards, if it is the first of several) is a language model in GGUF.

    Raises: ModelNotFoundError, ModelFileError.
    """
    model = _read(path)
    try:
        count = model.metadata.get("split.count", 0)
        tensors = dict(model.tensors)
        for shard in _shards(path, count) if isinstance(count, int) and count > 1 else ():
            _add_shard(tensors, shard)
        _check_model(_Keys(model.metadata), tensors)
        _check_tokens(model.metadata)
    except BrokenGgufError as error:
        raise _refusal(path, error) from None


def _read(path: Path) -> Gguf:
    if not path.exists():
        raise ModelNotFoundError(f"there is no file {path}; check the path, or download the model")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; name a GGUF file")
    try:
        return read_gguf(path)
    except BrokenGgufError as error:
        raise _refusal(path, error) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _refusal(path: Path, error: BrokenGgufError) -> ModelFileError:
    return ModelFileError(f"{path} is not a usable GGUF model: {error}; download or convert it again")


# Shards: a large model in several files, NAME-00001-of-00003.gguf, of which the first has all metadata


def _shards(path: Path, count: int) -> list[Path]:
    """Return the other files of a model, given its first."""
    name = _SHARD.fullmatch(path.name)
    if name is None or int(name[2]) != 1 or int(name[3]) != count:
        raise BrokenGgufError(f"it is one of {count} files but not named …-00001-of-{count:05}.gguf")
    return [path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf") for number in range(2, count + 1)]


def _add_shard(tensors: dict[str, Tensor], path: Path) -> None:
    shard = _read(path)
    number = shard.metadata.get("split.no")
    if shard.kinds.get("split.no") != 2 or number != int(path.name[-19:-14]) - 1:
        raise BrokenGgufError(f"its part {path.name} has split.no {number}")
    if twice := tensors.keys() & shard.tensors.keys():
        raise BrokenGgufError(f"tensor {min(twice)!r} is in two of its files")
    tensors.update(shard.tensors)


# Hyper-parameters


class _Keys:
    """The metadata of one architecture, read as numbers within bounds."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.metadata = metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise BrokenGgufError("it does not name its architecture (general.architecture)")
        self.architecture = architecture

    def find(self, key: str) -> tuple[str, Value | None]:
        key = f"{self.architecture}.{key}"
        return key, self.metadata.get(key)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        key, value = self.find(key)
        value = default if value is None else value
        if value is None:
            raise BrokenGgufError(f"the key {key} is missing")
        if type(value) is not int or not low <= value <= high:
            raise BrokenGgufError(f"{key} is {value!r}, not a number from {low} to {high}")
        return value

    def per_layer(self, key: str, n_layer: int, default: list[int]) -> list[int]:
        """Read a number that may be given once or for each layer."""
        key, value = self.find(key)
        if value is None:
            return default
        if type(value) is int and value >= 0:
            return [value] * n_layer
        if (
            isinstance(value, np.ndarray)
            and value.dtype.kind in "iu"
            and len(value) >= n_layer
            and value.min() >= 0
        ):
            return [int(number) for number in value[:n_layer]]
        raise BrokenGgufError(f"{key} is not a number, nor one for each of {n_layer} layers")


def _check_model(keys: _Keys, tensors: Mapping[str, Tensor]) -> None:
    kind = keys.metadata.get("general.type", "model")
    if kind in ("adapter", "mmproj", "imatrix") or keys.architecture == "clip":
        raise BrokenGgufError(
            f"it holds no language model but an extension to one ({kind}, {keys.architecture})"
        )
    n_layer = keys.integer("block_count", 1, _MAX_LAYERS)
    n_embd = keys.integer("embedding_length", 1, 1 << 20)
    keys.integer("context_length", 1, (1 << 32) - 1)
    keys.integer("nextn_predict_layers", 0, n_layer, 0)
    _check_heads(keys, n_layer, n_embd)
    _check_experts(keys, n_layer)
    _check_numbers(keys)
    if not tensors:
        raise BrokenGgufError("it has no weights")


def _check_heads(keys: _Keys, n_layer: int, n_embd: int) -> None:
    heads = keys.per_layer("attention.head_count", n_layer, [0] * n_layer)
    kv_heads = keys.per_layer("attention.head_count_kv", n_layer, heads)
    for n_head, n_head_kv in zip(heads, kv_heads, strict=True):
        if n_head_kv and n_head % n_head_kv:
            raise BrokenGgufError(f"{n_head} attention heads cannot share {n_head_kv} key-value heads")
    if heads[0]:
        _, given = keys.find("attention.key_length")
        if given is None and n_embd % heads[0]:
            raise BrokenGgufError(f"{n_embd} dimensions cannot be divided among {heads[0]} attention heads")
        length = keys.integer("attention.key_length", 1, 1 << 16, n_embd // heads[0])
        rotated = keys.integer("rope.dimension_count", 0, 1 << 16, length - length % 2)
        if rotated % 2 or rotated > length:
            raise BrokenGgufError(f"{rotated} of {length} dimensions per head cannot be rotated in pairs")


def _check_experts(keys: _Keys, n_layer: int) -> None:
    n_expert = keys.integer("expert_count", 0, _MAX_EXPERTS, 0)
    used = max(keys.per_layer("expert_used_count", n_layer, [0] * n_layer))
    groups = keys.integer("expert_group_count", 0, _MAX_EXPERTS, 0)
    if not used <= n_expert or (n_expert and not used):
        raise BrokenGgufError(f"{used} of {n_expert} experts cannot be used for a token")
    if groups and (groups >= n_expert or n_expert % groups):
        raise BrokenGgufError(f"{n_expert} experts cannot form {groups} groups")
    if groups > 1:
        keys.integer("expert_group_used_count", 1, groups - 1)


def _check_numbers(keys: _Keys) -> None:
    for key in (
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.group_norm_epsilon",
    ):
        name, value = keys.find(key)
        if value is not None and not (isinstance(value, float) and isfinite(value) and value >= 0):
            raise BrokenGgufError(f"{name} is {value!r}, not a small positive number")
    name, base = keys.find("rope.freq_base")
    if base is not None and not (isinstance(base, float) and isfinite(base) and base > 0):
        raise BrokenGgufError(f"{name} is {base!r}, not a positive number")
    name, scaling = keys.find("rope.scaling.type")
    if scaling not in (None, "none", "linear", "yarn", "longrope"):
        raise BrokenGgufError(f"{name} is {scaling!r}, not none, linear, yarn or longrope")


# Tokens


def _check_tokens(metadata: Mapping[str, Value]) -> None:
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise BrokenGgufError("it has no tokenizer (tokenizer.ggml.model)")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if model in ("none", "no_vocab") and tokens is None:
        return
    if not isinstance(tokens, list) or not tokens:
        raise BrokenGgufError("it has no tokens (tokenizer.ggml.tokens)")
    n_tokens = len(tokens)
    distinct = set(tokens)
    if n_tokens - len(distinct) > max(tokens.count(b"") - 1, 0):  # llama.cpp gives each empty one a name
        raise BrokenGgufError("two of its tokens have the same text")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        values = metadata.get(key)
        if values is not None and not (isinstance(values, np.ndarray) and len(values) >= n_tokens):
            raise BrokenGgufError(f"{key} is not a list for {n_tokens} tokens")
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        token = metadata.get(key, 0)
        if type(token) is not int or not (0 <= token < n_tokens or token in _NO_TOKEN):
            raise BrokenGgufError(f"{key} is {token!r}, with {n_tokens} tokens")
