"""Checks a GGUF file before llama.cpp sees it.

llama.cpp refuses much by itself (tensors that are missing or of the wrong shape, keys of the wrong type), but
some of what a damaged file says makes it end the process: a failed assertion, an exception that leaves its C
interface, arithmetic on a type that has none. Those are what `check_gguf` looks for, beside a broken structure.
It reads the header only, not the weights. `tests/test_fuzz_gguf.py` says whether it looks closely enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from eft_local.errors import ModelFileError, ModelNotFoundError
from eft_local.gguf.reader import BrokenGgufError, Gguf, Tensor, Value, read_gguf

_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
# Architectures with llama's attention: one length for all heads, rotated whole. What llama.cpp asserts of them is
# known and checked here, so that most damage gets its reason; whatever else it asserts, the file probe finds.
FAMILIAR = frozenset(
    "arcee baichuan ernie4_5 exaone granite internlm2 llama minicpm mistral3 "
    "olmo2 qwen2 qwen3 qwen3moe smollm3 xverse".split()
)
_INTEGERS = {24, 25, 26, 27}  # ggml's I8, I16, I32, I64: for tables, llama.cpp cannot multiply by them
_TABLES = ("tid2eid", "d2t")  # expert of each token id (DeepSeek), target id of each draft id (EAGLE)
_F32 = 0
_INTERMEDIATE = {9, 15, 28}  # Q8_1, Q8_K, F64: never weights
_NO_TOKEN = {-1, (1 << 32) - 1}  # what converters write for "there is no such token"


_held: WeakValueDictionary[tuple[object, ...], Gguf] = WeakValueDictionary()
"""Headers that somebody has, by what their files are: of 262,144 tokens, reading one takes a third of a second."""


def check_gguf(path: Path) -> Gguf:
    """Check that a file (with all its shards, if it is the first of several) is a language model in GGUF.

    Returns the header, with the tensors of all shards. While somebody has it, and the file is what it was, it is not
    read again. Raises: ModelNotFoundError, ModelFileError.
    """
    key = _state(path)
    header = _held.get(key)
    if header is None:
        header = _checked(path)
        if "split.count" not in header.metadata:  # other files, too, can change
            _held[key] = header
    return header


def _state(path: Path) -> tuple[object, ...]:
    """Return what changes when a file does; of one that is not there, its name."""
    try:
        status = path.stat()
    except OSError:
        return (path,)
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _checked(path: Path) -> Gguf:
    model = open_gguf(path)
    if model.metadata.get("general.type") == "adapter":
        raise ModelFileError(f"{path} is an adapter, not a model; name it as `lora` beside the model it was made for")
    try:
        tensors = with_shards(path, model)
        keys = _Keys(model.metadata)
        _check_model(keys, tensors)
        _check_tokens(model.metadata)
        _check_tensors(tensors)
    except BrokenGgufError as error:
        raise refusal(path, error) from None
    return Gguf(model.metadata, model.kinds, tensors)


def open_gguf(path: Path, what: str = "GGUF model") -> Gguf:
    """Return the header of a file. what: it should be. Raises: ModelNotFoundError, ModelFileError."""
    if not path.exists():
        raise ModelNotFoundError(f"there is no file {path}; check the path, or download the model")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; name a GGUF file")
    try:
        return read_gguf(path)
    except BrokenGgufError as error:
        raise refusal(path, error, what) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def refusal(
    path: Path, error: BrokenGgufError, what: str = "GGUF model", remedy: str = "download or convert it again"
) -> ModelFileError:
    """Return the error that says what a file is not."""
    return ModelFileError(f"{path} is not a usable {what}: {error}; {remedy}")


# Shards: a large model in several files, NAME-00001-of-00003.gguf, of which the first has all metadata


def with_shards(path: Path, model: Gguf) -> dict[str, Tensor]:
    """Return a model's tensors, by name, from all of its files. Raises: ModelFileError, BrokenGgufError."""
    count = model.metadata.get("split.count", 0)
    tensors = dict(model.tensors)
    for shard in _shards(path, count) if isinstance(count, int) and count > 1 else ():
        _add_shard(tensors, shard)
    return tensors


def _shards(path: Path, count: int) -> list[Path]:
    """Return the other files of a model, given its first."""
    name = _SHARD.fullmatch(path.name)
    if name is not None and int(name[2]) > 1:
        first = path.with_name(f"{name[1]}-00001-of-{name[3]}.gguf")
        gone = "" if first.exists() else ", which is missing"
        part = f"part {int(name[2])} of a model in {count} files"
        raise ModelFileError(f"{path} is {part}; name the first, {first}{gone}")
    if name is None or int(name[2]) != 1 or int(name[3]) != count:
        raise BrokenGgufError(f"it is one of {count} files but not named …-00001-of-{count:05}.gguf")
    return [path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf") for number in range(2, count + 1)]


def _add_shard(tensors: dict[str, Tensor], path: Path) -> None:
    shard = open_gguf(path)
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
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) >= n_layer and value.min() >= 0:
            return [int(number) for number in value[:n_layer]]
        raise BrokenGgufError(f"{key} is not a number, nor one for each of {n_layer} layers")


def _check_model(keys: _Keys, tensors: Mapping[str, Tensor]) -> None:
    kind = keys.metadata.get("general.type", "model")
    if kind in ("mmproj", "imatrix") or keys.architecture == "clip":
        raise BrokenGgufError(f"it holds no language model but an extension to one ({kind}, {keys.architecture})")
    n_layer = keys.integer("block_count", 1, _MAX_LAYERS)
    n_embd = keys.integer("embedding_length", 1, 1 << 20)
    keys.integer("context_length", 1, (1 << 32) - 1)
    keys.integer("nextn_predict_layers", 0, n_layer, 0)
    _check_heads(keys, n_layer, n_embd, tensors)
    _check_experts(keys, n_layer)
    _check_numbers(keys)


def _check_heads(keys: _Keys, n_layer: int, n_embd: int, tensors: Mapping[str, Tensor]) -> None:
    heads = keys.per_layer("attention.head_count", n_layer, [0] * n_layer)
    kv_heads = keys.per_layer("attention.head_count_kv", n_layer, heads)
    for n_head, n_head_kv in zip(heads, kv_heads, strict=True):
        if n_head_kv and n_head % n_head_kv:
            raise BrokenGgufError(f"{n_head} attention heads cannot share {n_head_kv} key-value heads")
    if not heads[0]:
        if "blk.0.attn_q.weight" in tensors:
            raise BrokenGgufError("it has attention weights but no attention heads")
        return
    if keys.find("attention.key_length")[1] is None and n_embd % heads[0]:
        raise BrokenGgufError(f"{n_embd} dimensions cannot be divided among {heads[0]} attention heads")
    length = keys.integer("attention.key_length", 1, 1 << 16, n_embd // heads[0])
    rotated = keys.integer("rope.dimension_count", 1, length, length)
    if keys.architecture in FAMILIAR:
        value_length = keys.integer("attention.value_length", 1, 1 << 16, n_embd // heads[0])
        if not length == value_length == rotated or length % 2:
            raise BrokenGgufError(
                f"its attention heads have {length} dimensions for keys, {value_length} for values, "
                f"{rotated} for positions; these must be one even number"
            )
        _check_attention(tensors, n_embd, [n * length for n in heads], [n * length for n in kv_heads])


def _check_attention(
    tensors: Mapping[str, Tensor], n_embd: int, queries: list[int], keys_and_values: list[int]
) -> None:
    """Compare the weights' shapes, where present, with the widths of all heads together, per layer."""
    for layer, (query, key) in enumerate(zip(queries, keys_and_values, strict=True)):
        shapes = {"q": (n_embd, query), "k": (n_embd, key), "v": (n_embd, key), "output": (query, n_embd)}
        for name, shape in shapes.items():
            tensor = tensors.get(f"blk.{layer}.attn_{name}.weight")
            if tensor is not None and tensor.shape != shape:
                raise BrokenGgufError(f"tensor {tensor.name!r} has the shape {tensor.shape}, not {shape}")


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
    tokens = [text.partition(b"\0")[0] for text in tokens]  # llama.cpp reads them as C strings
    texts = set(tokens)
    if n_tokens - len(texts) > max(tokens.count(b"") - 1, 0):  # llama.cpp gives each empty one a name
        raise BrokenGgufError("two of its tokens have the same text")
    if model == "llama":
        _check_bytes(texts)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        values = metadata.get(key)
        if values is not None and not (isinstance(values, np.ndarray) and len(values) >= n_tokens):
            raise BrokenGgufError(f"{key} is not a list for {n_tokens} tokens")
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        token = metadata.get(key, 0)
        if type(token) is not int or not (0 <= token < n_tokens or token in _NO_TOKEN):
            raise BrokenGgufError(f"{key} is {token!r}, with {n_tokens} tokens")


def _check_bytes(texts: set[bytes]) -> None:
    """SentencePiece spells unknown characters with byte tokens: all are there, or the model has none."""
    missing = [b for b in range(256) if b"<0x%02X>" % b not in texts and bytes((b,)) not in texts]
    if missing and any(b"<0x%02X>" % b in texts for b in range(256)):
        raise BrokenGgufError(f"its vocabulary lacks the byte token <0x{missing[0]:02X}>")


# Tensors


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise BrokenGgufError("it has no weights")
    for name, tensor in tensors.items():
        check_weight(tensor, is_table=any(table in name for table in _TABLES))
        if name.endswith(("norm.weight", ".bias")) and tensor.kind != _F32:
            raise BrokenGgufError(
                f"tensor {name!r} has type {tensor.kind}, not F32: ggml cannot combine it with activations"
            )


def check_weight(tensor: Tensor, *, is_table: bool = False) -> None:
    """Check that ggml can multiply by a tensor, or look numbers up in it. Raises: BrokenGgufError."""
    if tensor.kind in _INTERMEDIATE or (tensor.kind in _INTEGERS and not is_table):
        raise BrokenGgufError(f"tensor {tensor.name!r} has type {tensor.kind}, which weights cannot have")
