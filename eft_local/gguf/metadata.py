"""What a GGUF file says of itself, read from its header; without llama.cpp."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

from eft_local.errors import ModelFileError, ModelNotFoundError
from eft_local.gguf.adapter import lora_pairs, pair_rank
from eft_local.gguf.checks import refusal
from eft_local.gguf.reader import BrokenGgufError, Gguf, Value, read_gguf

Kind = TypeVar("Kind", str, int, float)


@dataclass(frozen=True, slots=True)
class LoraMetadata:
    """What a LoRA adapter changes. A weight becomes W + alpha / rank · B·A.

    alpha: None where the file has none, and B·A is added as it is.  ranks: from the lowest to the highest.
    weights: how many weights of each kind it changes ("attn_q", "ffn_up", …).  made_for: the model's name.
    """

    alpha: float | None
    ranks: tuple[int, int]
    weights: dict[str, int]
    made_for: str | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """A file's own words; None where it says nothing, or nothing that can be believed.

    kind: "model", "adapter", …  size: bytes.  parameters: of the weights in these files.
    weights: how many parameters each type of weights has, by ggml's name, the most first.
    context: tokens that it was trained with.  tokens: of its vocabulary.  bos, eos: their texts.
    chat_template: Jinja.  shard: (number, count) if this is one of several files.
    lora: None if this is no LoRA adapter.
    """

    path: Path
    size: int
    kind: str
    architecture: str | None
    name: str | None
    licence: str | None
    parameters: int
    weights: dict[str, int]
    layers: int | None
    embedding: int | None
    heads: int | None
    kv_heads: int | None
    context: int | None
    tokenizer: str | None
    tokens: int | None
    bos: str | None
    eos: str | None
    chat_template: str | None
    shard: tuple[int, int] | None
    lora: LoraMetadata | None


def read_metadata(path: Path) -> Metadata:
    """Return what a file says. Raises: ModelNotFoundError, ModelFileError."""
    if not path.exists():
        raise ModelNotFoundError(f"there is no file {path}; check the path, or download the model")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file; name a GGUF file")
    try:
        header = read_gguf(path)
        return _metadata(path, header)
    except BrokenGgufError as error:
        raise refusal(path, error, "GGUF file") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _metadata(path: Path, header: Gguf) -> Metadata:
    metadata = header.metadata

    def text(key: str) -> str | None:
        return _of(metadata.get(key), str)

    def number(key: str) -> int | None:
        return _of(metadata.get(f"{text('general.architecture')}.{key}"), int)

    tokens = metadata.get("tokenizer.ggml.tokens")
    texts = tokens if isinstance(tokens, list) else None
    weights = Counter[str]()
    for tensor in header.tensors.values():
        weights[_kind_name(tensor.kind)] += prod(tensor.shape)
    return Metadata(
        path=path,
        size=path.stat().st_size,
        kind=text("general.type") or "model",
        architecture=text("general.architecture"),
        name=text("general.name"),
        licence=text("general.license.name") or text("general.license"),
        parameters=weights.total(),
        weights=dict(weights.most_common()),
        layers=number("block_count"),
        embedding=number("embedding_length"),
        heads=number("attention.head_count"),
        kv_heads=number("attention.head_count_kv"),
        context=number("context_length"),
        tokenizer=text("tokenizer.ggml.pre") or text("tokenizer.ggml.model"),
        tokens=None if texts is None else len(texts),
        bos=_token(texts, metadata.get("tokenizer.ggml.bos_token_id")),
        eos=_token(texts, metadata.get("tokenizer.ggml.eos_token_id")),
        chat_template=text("tokenizer.chat_template"),
        shard=_shard(metadata.get("split.no"), metadata.get("split.count")),
        lora=_lora(header) if metadata.get("adapter.type") == "lora" else None,
    )


def _lora(header: Gguf) -> LoraMetadata:
    pairs = lora_pairs(header)
    ranks = [pair_rank(name, pair) for name, pair in pairs.items()]
    kinds = Counter(name.removesuffix(".weight").split(".")[-1] for name in pairs)
    made_for = _of(header.metadata.get("general.base_model.0.name"), str)
    return LoraMetadata(
        alpha=_of(header.metadata.get("adapter.lora.alpha"), float) or None,
        ranks=(min(ranks), max(ranks)),
        weights=dict(kinds),
        made_for=made_for or _of(header.metadata.get("general.basename"), str),
    )


def _of(value: Value | None, kind: type[Kind]) -> Kind | None:
    return value if type(value) is kind else None


def _token(texts: list[bytes] | None, token: Value | None) -> str | None:
    if texts is None or type(token) is not int or not 0 <= token < len(texts):
        return None
    return texts[token].decode("utf-8", "backslashreplace")


def _shard(number: Value | None, count: Value | None) -> tuple[int, int] | None:
    if type(number) is not int or type(count) is not int or count < 2:
        return None
    return number + 1, count


def _kind_name(kind: int) -> str:
    from gguf.constants import GGMLQuantizationType

    try:
        return str(GGMLQuantizationType(kind).name)
    except ValueError:
        return f"type {kind}"
