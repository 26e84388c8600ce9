"""Where a model's bytes are, read from its header: in each layer, before the first, and after the last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from eft_local.gguf.checks import check_gguf
from eft_local.gguf.reader import Gguf, Tensor

_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")
_TABLE = "token_embd.weight"
_HEAD_LENGTH = re.compile(r"\.attention\.(?:key|value)_length(?:_swa)?$")
_EXPERTS = re.compile(r"_(?:ch)?exps\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of one model's tensors.

    layers: of each repeating layer.  input: of the token embeddings, which llama.cpp never puts on a GPU.
    output: of all else, the output matrix above all.  tied: of the embeddings that serve as output matrix too, 0 if
    they do not: a GPU gets a copy.
    table_kind: ggml's type of the embeddings.
    active, active_output: what evaluating one token reads of all layers, of a mixture of experts a part, and of the
    output.
    trained: tokens of context in training.
    heads: lengths of keys and values in one head; 0 if the header does not say.
    sharing: heads of queries that share one of keys; 0 if the header does not say, or it is not the same everywhere.
    """

    layers: tuple[int, ...]
    input: int
    output: int
    tied: int
    table_kind: int
    active: int
    active_output: int
    trained: int
    heads: tuple[int, ...]
    sharing: int

    @property
    def total(self) -> int:
        """All bytes, as they are in the file."""
        return sum(self.layers) + self.input + self.output

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Weights:
        """Return what `dataclasses.asdict` made of it, perhaps by way of JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)


def read_weights(path: Path) -> Weights:
    """Return where a model's bytes are. Raises: ModelNotFoundError, ModelFileError."""
    return weights_of(check_gguf(path))


def weights_of(header: Gguf) -> Weights:
    """Return where the bytes of a header that passed `check_gguf` are."""
    architecture = header.metadata["general.architecture"]

    def number(key: str) -> int:
        value = header.metadata.get(f"{architecture}.{key}", 0)
        return value if type(value) is int else 0

    layers = [0] * number("block_count")
    used, experts = number("expert_used_count"), number("expert_count")
    share = used / experts if used and experts else 1.0
    before, after, active = 0, 0, 0.0
    for name, tensor in header.tensors.items():
        size, layer = _size(tensor), _LAYER.match(name)
        if layer is not None and int(layer[1]) < len(layers):
            layers[int(layer[1])] += size
            active += size * (share if _EXPERTS.search(name) else 1.0)
        elif name.startswith(_INPUT):
            before += size
        else:
            after += size
    usual = number("embedding_length") // max(1, number("attention.head_count"))
    heads = {value for key, value in header.metadata.items() if _HEAD_LENGTH.search(key) and type(value) is int} | {
        number(f"attention.{part}_length") or usual for part in ("key", "value")
    }
    of_keys = number("attention.head_count_kv")
    table = header.tensors.get(_TABLE)
    tied = _size(table) if table is not None and "output.weight" not in header.tensors else 0
    return Weights(
        layers=tuple(layers),
        input=before,
        output=after,
        tied=tied,
        table_kind=-1 if table is None else table.kind,
        active=round(active),
        active_output=after + tied,
        trained=number("context_length"),
        heads=tuple(sorted(heads)),
        sharing=number("attention.head_count") // of_keys if of_keys else 0,
    )


def _size(tensor: Tensor) -> int:
    """Bytes; a type that is newer than our table counts as if each weight took two."""
    size = tensor.size()
    return 2 * prod(tensor.shape) if size is None else size
