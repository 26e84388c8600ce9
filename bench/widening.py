"""Makes of a llama model a larger one that computes the same: a real model's cost with a small one's answers.

Everything that is added is zero, and zeros meet nothing but zeros. What was there comes first and stays together, so
that blocks of 32 weights hold the same values, and quantise to the same bits, in every size. What zeros alone would
change is compensated:

- RMSNorm divides by the mean over all D dimensions, of which d are in use: its weights are multiplied by √(d / D),
  epsilon by d / D.
- Heads may be longer, N dimensions instead of n: queries are multiplied by √(N / n), as scores are divided by √N, and
  RoPE's base is raised, so that pair i turns as before. (Quantised queries may round otherwise then, by 1 / 2048.)
  A shape whose heads are too short gets fewer and longer ones: the same matrices and the same cache.
- Ids beyond the source's vocabulary are tokens like others, but none that can win: one more dimension holds the same
  small c in every embedding, no layer reads or writes it, and their output rows are −1 there and 0 elsewhere. c² is
  taken off epsilon again. How low they are, the output norm's weight for that dimension says.

Layers that are added come after the source's own. Their weights are zero, so they add nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from math import ceil, exp, floor, log, log2, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGUFValueType, TokenType

from eft_local.backends.base import ContextOptions, Floats, Rows
from eft_local.backends.llamacpp import Model
from eft_local.bench.gguf_zeros import Place, Shape, add_shape, row_bytes, write_zeros
from eft_local.errors import UnsupportedModelError, UsageError
from eft_local.gguf.checks import check_gguf

VERSION = 1
"""Of what is written: raised when a source gives other files than before."""

_BLOCK = 32  # weights that are quantised together
_HEAD = 64  # dimensions of the shortest heads: kernels know no shorter ones
_TRIED_TOKENS = 64

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """A llama model in a GGUF file."""

    path: Path
    shape: Shape
    n_vocab: int
    reader: Any  # gguf.GGUFReader

    @classmethod
    def read(cls, path: Path) -> Source:
        """Raises: ModelNotFoundError, ModelFileError, UnsupportedModelError if it is more than a plain llama."""
        check_gguf(path)
        reader = gguf.GGUFReader(path)
        architecture = reader.get_field("general.architecture").contents()
        if architecture != "llama":
            raise UnsupportedModelError(f"{path} is of the architecture {architecture}; only a llama can be widened")
        tensors = {tensor.name for tensor in reader.tensors}

        def key(name: str, default: Any = None) -> Any:
            field = reader.get_field(f"llama.{name}")
            return default if field is None else field.contents()

        n_head = key("attention.head_count")
        shape = Shape(
            n_embd=key("embedding_length"),
            n_layer=key("block_count"),
            n_head=n_head,
            n_head_kv=key("attention.head_count_kv", n_head),
            n_ff=key("feed_forward_length"),
            n_ctx=key("context_length"),
            rope_base=key("rope.freq_base", 10000.0),
            epsilon=key("attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in tensors,
            head=key("attention.key_length"),
        )
        strange = sorted(tensors.symmetric_difference(name for name, _ in shape.tensors(0)))
        if (scaling := key("rope.scaling.type", "none")) != "none":
            strange.append(f"rope.scaling.type {scaling}")
        if strange:
            raise UnsupportedModelError(f"{path} is no plain llama ({strange[0]}); only such a model can be widened")
        return cls(path, shape, len(reader.get_field("tokenizer.ggml.tokens").data), reader)

    def weight(self, name: str) -> Floats:
        """Return a tensor's values, [out, in]; the embeddings' where the output matrix shares them."""
        if name == "output.weight" and self.shape.tied:
            name = "token_embd.weight"
        tensor = next(tensor for tensor in self.reader.tensors if tensor.name == name)
        values: Floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return values

    @property
    def constant(self) -> float:
        """The added dimension's value: a power of two, exact in every type, whose square is half of epsilon's share."""
        return float(2.0 ** floor(log2(self.shape.epsilon * self.shape.n_embd / 2) / 2))


@dataclass(frozen=True)
class Heads:
    """Where the dimensions of a source's heads, one after the other, lie in a shape's.

    n_head, n_head_kv, size: of the shape, in heads of this size.
    queries: of each query dimension. keys: of each key dimension, or value; copied: whose copies they are, as several
    key-value heads do one's work where the shape lets fewer queries share one.
    """

    n_head: int
    n_head_kv: int
    size: int
    queries: Ids
    keys: Ids
    copied: Ids

    @classmethod
    def of(cls, source: Shape, shape: Shape) -> Heads:
        size = max(shape.n_embd_head, _head_size(source))
        n_head = shape.n_embd_head * shape.n_head // size
        sharing = source.n_head // source.n_head_kv

        def copies(n_head_kv: int) -> int:
            return ceil(sharing / ceil(n_head / n_head_kv))

        # A shape with too few key-value heads gets as many as the source needs.
        at_least = max(shape.n_embd_head * shape.n_head_kv // size, 1)
        n_head_kv = next(n for n in count(at_least) if n >= source.n_head_kv * copies(n))
        group = ceil(n_head / n_head_kv)
        n_copies = copies(n_head_kv)
        shared, number = np.divmod(np.arange(source.n_head), sharing)
        own = np.arange(source.n_head_kv * n_copies)
        return cls(
            n_head=group * n_head_kv,
            n_head_kv=n_head_kv,
            size=size,
            queries=_dimensions((shared * n_copies + number // group) * group + number % group, size, source),
            keys=_dimensions(own, size, source),
            copied=_dimensions(own // n_copies, source.n_embd_head, source),
        )


def _dimensions(heads: Ids, size: int, source: Shape) -> Ids:
    """Return the places of the source's dimensions in heads of this size."""
    return (heads[:, None] * size + np.arange(source.n_embd_head)).ravel()


def _head_size(source: Shape) -> int:
    """The shortest heads that this source's fit into."""
    return int(max(_HEAD, 1 << (source.n_embd_head - 1).bit_length()))


def narrowest(source: Shape, head: int | None = None) -> Shape:
    """Return the smallest shape that holds a source: its own, in whole blocks.

    head: dimensions of each head, at least.
    """
    head = max(head or 0, _head_size(source))
    return replace(source, n_embd=_whole(source.n_embd), n_ff=_whole(source.n_ff), tied=False, head=head)


def fitted(source: Source, shape: Shape, n_vocab: int) -> Shape:
    """Return the shape as it is written for this source: its heads, its numbers, room for what is added.

    Raises: UsageError if the source is too large for it.
    """
    own, heads = source.shape, Heads.of(source.shape, shape)
    needed = {
        "dimensions": (_whole(own.n_embd) + (_BLOCK if n_vocab > source.n_vocab else 0), shape.n_embd),
        "layers": (own.n_layer, shape.n_layer),
        "feed-forward dimensions": (_whole(own.n_ff), shape.n_ff),
        "attention heads": (own.n_head, heads.n_head),
        "tokens": (source.n_vocab, n_vocab),
    }
    for what, (least, given) in needed.items():
        if given < least:
            raise UsageError(
                f"{given} {what} are too few for {source.path}, which needs {least}; choose a larger shape"
            )
    constant = source.constant if n_vocab > source.n_vocab else 0.0
    return replace(
        shape,
        n_head=heads.n_head,
        n_head_kv=heads.n_head_kv,
        head=heads.size,
        n_ctx=own.n_ctx,
        rope_base=_rope_base(source, heads.size),
        epsilon=(own.epsilon * own.n_embd - constant**2) / shape.n_embd,
        tied=False,
    )


def _rope_base(source: Source, size: int) -> float:
    """Return the base with which heads of this size turn the source's pairs as it does. Raises: UsageError."""
    own = source.shape
    if size == own.n_embd_head:
        return own.rope_base
    # Pair i of n dimensions turns by base^(−2i / n): from pair to pair by the same factor, to the last bit of float32.
    step = float(np.float32(own.rope_base ** (-2 / own.n_embd_head)))
    base = exp(-size / 2 * log(step))
    if base > float(np.finfo(np.float32).max):
        raise UsageError(
            f"heads of {size} dimensions are too long for {source.path}, whose own have {own.n_embd_head}; "
            "choose another shape"
        )
    return base


def widen(
    source: Source, shape: Shape, n_vocab: int, quantization: str, path: Path, *, name: str, padding: float
) -> None:
    """Write a copy of the source in this shape.

    n_vocab: at least the source's; quantization: of the matrices, in blocks of 32 or none.
    padding: about what the logits of added ids are (below 0). Raises: UsageError if the source is too large.
    """
    shape = fitted(source, shape, n_vocab)
    padded = n_vocab > source.n_vocab
    gain = padding / _reading(source) * sqrt(source.shape.n_embd / shape.n_embd) if padded else 0.0
    _write(source, shape, n_vocab, quantization, path, name, gain)


def _write(source: Source, shape: Shape, n_vocab: int, quantization: str, path: Path, name: str, gain: float) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    add_shape(writer, shape, n_vocab)
    _add_tokens(writer, source, n_vocab)
    places = write_zeros(writer, path, dict(shape.tensors(n_vocab)), quantization)
    data = np.memmap(path, np.uint8, "r+")
    for tensor, rows, columns, values in _tensors(source, shape):
        _put(data, places[tensor], rows, columns, values)
    if n_vocab > source.n_vocab:
        place, every = _whole(source.shape.n_embd), np.arange(source.n_vocab)
        column = np.array([place])
        _put(data, places["token_embd.weight"], every, column, np.full((len(every), 1), source.constant))
        _put(data, places["output.weight"], np.arange(source.n_vocab, n_vocab), column, np.full((1, 1), -1.0))
        _put(data, places["output_norm.weight"], np.array([0]), column, np.full((1, 1), gain))
    data.flush()


def _tensors(source: Source, shape: Shape) -> Iterator[tuple[str, Ids, Ids, Floats]]:
    """Yield the source's tensors as the shape has them: name, the rows and columns where they lie, values."""
    own, heads = source.shape, Heads.of(source.shape, shape)
    tokens, hidden, inner = (np.arange(n) for n in (source.n_vocab, own.n_embd, own.n_ff))
    places = {
        "token_embd": (tokens, hidden),
        "output": (tokens, hidden),
        "attn_q": (heads.queries, hidden),
        "attn_k": (heads.keys, hidden),
        "attn_v": (heads.keys, hidden),
        "attn_output": (hidden, heads.queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    factors = {"attn_q": sqrt(heads.size / own.n_embd_head)}
    for name, dimensions in replace(own, tied=False).tensors(source.n_vocab):
        values, kind = source.weight(name), name.split(".")[-2]
        if len(dimensions) == 1:
            yield name, np.array([0]), hidden, values[None] * np.float32(sqrt(own.n_embd / shape.n_embd))
            continue
        if kind in ("attn_k", "attn_v"):
            values = values[heads.copied]
        yield name, *places[kind], values * np.float32(factors.get(kind, 1))


def _put(data: npt.NDArray[np.uint8], place: Place, rows: Ids, columns: Ids, values: npt.NDArray[Any]) -> None:
    """Write values [rows or 1, columns] into a tensor, with zeros in what is left of their blocks."""
    width = place.shape[-1]
    first, last = int(columns[0]) // _BLOCK * _BLOCK, min(_whole(int(columns[-1]) + 1), width)
    dense = np.zeros((len(values), last - first), np.float32)
    dense[:, columns - first] = values
    raw = np.ascontiguousarray(gguf.quants.quantize(dense, place.kind)).view(np.uint8).reshape(len(values), -1)
    tensor = data[place.offset : place.offset + place.size].reshape(-1, row_bytes(width, place.kind))
    start = row_bytes(first, place.kind)
    tensor[rows, start : start + raw.shape[1]] = raw


def _whole(n: int) -> int:
    """Round up to whole blocks."""
    return -(-n // _BLOCK) * _BLOCK


def _add_tokens(writer: gguf.GGUFWriter, source: Source, n_vocab: int) -> None:
    """Copy the tokenizer, with the chat template, and add tokens that no text is made of."""
    added = range(source.n_vocab, n_vocab)
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": [f"<extra_{token}>" for token in added],
        "tokenizer.ggml.token_type": [int(TokenType.NORMAL)] * len(added),
        "tokenizer.ggml.scores": [-1e9] * len(added),
    }
    for name, field in source.reader.fields.items():
        if name.startswith("tokenizer."):
            value, kind = field.contents(), field.types[0]
            if kind == GGUFValueType.ARRAY:
                writer.add_key_value(name, value + more.get(name, []), kind, sub_type=field.types[-1])
            else:
                writer.add_key_value(name, value, kind)


def _reading(source: Source) -> float:
    """Return the logit (below 0) that an added id typically has where the output norm's weight for it makes up for
    the width alone: it varies with the size of the hidden state, which only running the model shows.
    """
    n_vocab = source.n_vocab + 1
    shape = narrowest(source.shape)
    shape = fitted(source, replace(shape, n_embd=shape.n_embd + _BLOCK), n_vocab)
    tokens = np.random.default_rng(0).integers(source.n_vocab, size=_TRIED_TOKENS).tolist()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reading.gguf"
        _write(source, shape, n_vocab, "F32", path, "reading", sqrt(source.shape.n_embd / shape.n_embd))
        with (
            Model.load(path, trusted=True) as model,
            model.open(ContextOptions(n_ctx=len(tokens), n_outputs=len(tokens))) as context,
        ):
            context.submit([Rows(0, tokens, outputs=len(tokens))])
            return float(np.median(context.logits()[:, source.n_vocab]))
