"""Writes small llama models and adapters as GGUF files, with random weights by seed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, TokenType

from eft_local.bench.gguf_zeros import Shape, add_shape, write_zeros

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "Ġ t", "he ll", "Ġt he", "o r")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as GGUF stores it."""

    model: str
    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False
    pre: str | None = "gpt-2"  # of byte-level BPE; None leaves the key out

    def padded(self, count: int) -> Tokens:
        """Return the same tokens and `count` unused ids after them."""
        first = len(self.texts)
        return Tokens(
            model=self.model,
            texts=self.texts + [f"[PAD{first + i}]" for i in range(count)],
            types=self.types + [TokenType.UNUSED] * count,
            scores=None if self.scores is None else self.scores + [-1000.0] * count,
            merges=self.merges,
            bos=self.bos,
            eos=self.eos,
            add_bos=self.add_bos,
        )


def bpe(merges: Sequence[str] = MERGES, special: Sequence[str] = SPECIAL, add_bos: bool = False) -> Tokens:
    """Byte-level BPE: 256 bytes, merges, control tokens; BOS is the first of these, EOS the last."""
    texts = [*_byte_letters(), *("".join(merge.split(" ")) for merge in merges), *special]
    return Tokens(
        model="gpt2",
        texts=texts,
        types=[TokenType.NORMAL] * (len(texts) - len(special)) + [TokenType.CONTROL] * len(special),
        merges=list(merges),
        bos=len(texts) - len(special),
        eos=len(texts) - 1,
        add_bos=add_bos,
    )


def spm(words: Sequence[str] = ("▁", "▁the", "▁hello", "e", "t", "h", "o", "l", "he")) -> Tokens:
    """SentencePiece: <unk> <s> </s>, 256 byte tokens, the words."""
    return Tokens(
        model="llama",
        texts=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words],
        types=[
            TokenType.UNKNOWN,
            *[TokenType.CONTROL] * 2,
            *[TokenType.BYTE] * 256,
            *[TokenType.NORMAL] * len(words),
        ],
        scores=[0.0] * 259 + [-float(i) for i in range(len(words))],
        bos=1,
        eos=2,
        add_bos=True,
    )


@dataclass(frozen=True)
class ModelSpec:
    """All that determines a file. The same spec gives the same bytes."""

    shape: Shape = field(default_factory=Shape)
    tokens: Tokens = field(default_factory=bpe)
    seed: int = 0
    zero: bool = False  # weights are zero: any size, written as a hole in the file
    quantization: str = "F32"  # of the matrices; norms stay F32
    template: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # more keys: str, bool, int or float
    name: str = "tiny"


def write_model(path: Path, spec: ModelSpec | None = None) -> Path:
    """Write the model, one tensor in memory at a time, and return the path."""
    spec = spec or ModelSpec()
    writer = gguf.GGUFWriter(path, "llama")
    add_shape(writer, spec.shape, len(spec.tokens.texts))
    _add_metadata(writer, spec)
    shapes = dict(spec.shape.tensors(len(spec.tokens.texts)))
    places = write_zeros(writer, path, shapes, spec.quantization)
    if not spec.zero:
        with path.open("r+b") as file:
            for name, place in places.items():
                file.seek(place.offset)
                file.write(gguf.quants.quantize(_random(name, place.shape, spec.seed), place.kind).tobytes())
    return path


LORA_TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_adapter(
    path: Path,
    model: Path,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    strength: float = 0.1,
    quantization: str = "F32",
    targets: Sequence[str] = LORA_TARGETS,
) -> dict[str, np.ndarray]:
    """Write a random LoRA adapter for a model, as llama.cpp's converter lays it out.

    strength: how large the changes are beside random weights. Returns what each weight is changed by, float32
    [out, in], computed from the matrices as they are stored.
    """
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_string("general.base_model.0.name", str(reader.fields["general.name"].contents()))
    kind = GGMLQuantizationType[quantization]
    changes = {}
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or tensor.name.split(".")[2] not in targets:
            continue
        n_in, n_out = (int(size) for size in tensor.shape)
        generator = np.random.default_rng([seed, *tensor.name.encode()])
        a = generator.standard_normal((rank, n_in), np.float32) / np.float32(sqrt(n_in))
        b = generator.standard_normal((n_out, rank), np.float32) * np.float32(strength * sqrt(rank) / alpha)
        halves = [gguf.quants.quantize(half, kind) for half in (a, b)]
        for half, data in zip("ab", halves, strict=True):
            writer.add_tensor(f"{tensor.name}.lora_{half}", data, raw_dtype=kind)
        a, b = (gguf.quants.dequantize(data, kind) for data in halves)
        changes[tensor.name] = np.float32(alpha / rank) * (b @ a)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return changes


def _add_metadata(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    writer.add_name(spec.name)
    add_tokens(writer, spec.tokens)
    if spec.template is not None:
        writer.add_chat_template(spec.template)
    add = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in spec.metadata.items():
        add[type(value)](key, value)


def add_tokens(writer: gguf.GGUFWriter, tokens: Tokens) -> None:
    """Add a tokenizer."""
    writer.add_tokenizer_model(tokens.model)
    if tokens.model == "gpt2" and tokens.pre:
        writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    if tokens.scores is not None:
        writer.add_token_scores(tokens.scores)
    if tokens.merges is not None:
        writer.add_token_merges(tokens.merges)
    if tokens.bos is not None:
        writer.add_bos_token_id(tokens.bos)
    if tokens.eos is not None:
        writer.add_eos_token_id(tokens.eos)
    writer.add_add_bos_token(tokens.add_bos)


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Weights that keep activations near 1 and give logits of a few units."""
    generator = np.random.default_rng([seed, *name.encode()])
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return 1 + values / 10
    if name == "token_embd.weight":
        return values
    return values * np.float32((3 if name == "output.weight" else 1) / sqrt(shape[1]))


def _byte_letters() -> list[str]:
    """GPT-2's letters for the bytes 0 … 255: printable ones are themselves, others follow from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
