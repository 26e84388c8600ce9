"""Real sizes: what real models are shaped like, and copies of small models in those shapes (see `widening`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TypeVar

from gguf.constants import GGMLQuantizationType

from eft_local import files, locations
from eft_local.bench.gguf_zeros import Shape, row_bytes
from eft_local.bench.widening import VERSION, Source, fitted, narrowest, widen
from eft_local.errors import OutputError, UsageError, nearest, shown
from eft_local.hub.references import resolve_model
from eft_local.recipe import Recipe, Role
from eft_local.recipe.roles import AnyRole

SHAPES: Mapping[str, Shape] = {
    "0.1b": Shape(n_embd=576, n_layer=30, n_head=9, n_head_kv=3, n_ff=1536, n_ctx=32768),  # SmolLM2
    "0.5b": Shape(n_embd=896, n_layer=24, n_head=14, n_head_kv=2, n_ff=4864, n_ctx=32768),  # Qwen2.5
    "1b": Shape(n_embd=2048, n_layer=22, n_head=32, n_head_kv=4, n_ff=5632, n_ctx=32768),  # TinyLlama
    "7b": Shape(n_embd=4096, n_layer=32, n_head=32, n_head_kv=32, n_ff=11008, n_ctx=32768),  # Llama 2
    "70b": Shape(n_embd=8192, n_layer=80, n_head=64, n_head_kv=8, n_ff=28672, n_ctx=32768),  # Llama 2
}
VOCABULARIES: Mapping[str, int] = {"32k": 32_000, "152k": 152_064}
"""Llama 2's and Qwen2.5's."""
QUANTIZATIONS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32")

# About what the logits of added tokens are. What they are differs from model to model and from place to place by a
# factor of 3 or so, and a mixture adds alpha times the difference of two models that are not its base.
_NEVER = -2000.0  # of a base: low enough for any such difference of the others
_UNLIKELY = -30.0  # of the others: low enough for what they choose alone


@dataclass(frozen=True)
class Trio:
    """The shapes of a recipe's models."""

    large: Shape
    small: Shape


TRIOS: Mapping[str, Trio] = {
    "0.5b": Trio(SHAPES["0.5b"], SHAPES["0.1b"]),
    "1b": Trio(SHAPES["1b"], SHAPES["0.1b"]),
    "7b": Trio(SHAPES["7b"], SHAPES["0.5b"]),
    "70b": Trio(SHAPES["70b"], SHAPES["7b"]),
}


def default_folder() -> Path:
    return locations.needed(locations.cached("bench"))


def scaled_model(
    source: Path,
    shape: str | Shape,
    *,
    vocabulary: str | int | None = "32k",
    quantization: str = "Q4_0",
    folder: Path | None = None,
    padding: float = _NEVER,
) -> Path:
    """Return a GGUF file that computes what `source` does, at the cost of a model of this shape.

    Its logits are those of `unwidened` with this quantisation, up to rounding in their last bits.
    source: a llama with any weights. shape: its name in SHAPES, or a shape.
    vocabulary: how many tokens, by name in VOCABULARIES or as a number; None is the source's own.
    quantization: one of QUANTIZATIONS.
    folder: where the file is kept, and looked for first; None is `default_folder()`. A 7B file takes seconds to write
    and little room on disks that can have holes in files.
    padding: about what the logits of added tokens are. For models that are to be mixed use `scaled_recipe`: it chooses
    them so that added tokens have no chance in the mixture either.

    Raises: UsageError (unknown name, source too large), UnsupportedModelError (not a plain llama),
        ModelNotFoundError, ModelFileError, OutputError.
    """
    shape = _named("shape", shape, SHAPES) if isinstance(shape, str) else shape
    model = Source.read(source)
    return _kept(model, shape, _tokens(model, vocabulary), quantization, folder, _label(shape), padding)


def unwidened(source: Path, quantization: str = "Q4_0", *, head: int | None = None, folder: Path | None = None) -> Path:
    """Return the source quantised at its own size: what a scaled copy has to agree with.

    Dimensions that are no whole blocks of 32, and heads of fewer than 64, are filled up with zeros as in every copy.
    head: dimensions of each head, as many as the copy's where not the last bit may differ.
    Raises: as `scaled_model`.
    """
    model = Source.read(source)
    label = f"unwidened-{head}" if head else "unwidened"
    return _kept(model, narrowest(model.shape, head), model.n_vocab, quantization, folder, label, 0.0)


def scaled_recipe(
    recipe: Recipe,
    shape: str | Trio,
    *,
    vocabulary: str | int | None = "32k",
    quantization: str = "Q4_0",
    folder: Path | None = None,
) -> Recipe:
    """Return the recipe with every model replaced by its scaled copy, built where it is not there yet.

    shape: a name in TRIOS, or a trio. The base takes the large shape, experts and antiexperts the small one; where
    the base is the smaller model (down-scaling) it is the other way round. [compare] is left out.
    The rest as in `scaled_model`. The mixture gives the tokens that it gives on the `unwidened_recipe` of this shape.
    """
    shapes = _shapes(recipe, shape)
    label = f"-{shape}" if isinstance(shape, str) else ""

    def scaled(name: str, source: Path) -> Path:
        padding = _NEVER if name == "base" else _UNLIKELY
        return scaled_model(
            source, shapes[name], vocabulary=vocabulary, quantization=quantization, folder=folder, padding=padding
        )

    return _with_models(recipe, scaled).replace(name=f"{recipe.name}{label}")


def unwidened_recipe(
    recipe: Recipe, quantization: str = "Q4_0", *, shape: str | Trio | None = None, folder: Path | None = None
) -> Recipe:
    """Return the recipe with every model quantised at its own size (see `unwidened`); [compare] is left out.

    shape: with heads as long as in this shape's copies.
    """
    heads = {name: each.n_embd_head for name, each in _shapes(recipe, shape).items()} if shape else {}
    return _with_models(
        recipe, lambda name, source: unwidened(source, quantization, head=heads.get(name), folder=folder)
    )


def scaled_bytes(
    recipe: Recipe, shape: str | Trio, *, vocabulary: str | int | None = "32k", quantization: str = "Q4_0"
) -> int:
    """Return the bytes of all weights that `scaled_recipe`'s models have, without building them. Raises: as it does."""
    shapes = _shapes(recipe, shape)
    # The base has a file of its own: see `padding`.
    copies = {(source, shapes[name], name == "base") for name, source in _sources(recipe).items()}
    return sum(_size(Source.read(source), each, vocabulary, quantization) for source, each, _ in copies)


def _size(model: Source, shape: Shape, vocabulary: str | int | None, quantization: str) -> int:
    n_vocab, matrices = _tokens(model, vocabulary), GGMLQuantizationType[_checked_type(quantization)]
    return sum(
        row_bytes(prod(dimensions), matrices if len(dimensions) > 1 else GGMLQuantizationType.F32)
        for _, dimensions in fitted(model, shape, n_vocab).tensors(n_vocab)
    )


def _kept(
    model: Source, shape: Shape, n_vocab: int, quantization: str, folder: Path | None, label: str, padding: float
) -> Path:
    """Return the file of this copy, written now if it is not there."""
    folder = folder or default_folder()
    parts = (VERSION, fitted(model, shape, n_vocab), n_vocab, _checked_type(quantization), padding)
    with model.path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    key = hashlib.sha256(repr((content, *parts)).encode()).hexdigest()[:12]
    path = folder / f"{model.path.stem}-{label}-{quantization}-{key}.gguf"
    if path.exists():
        return path
    try:
        with files.replacing(path, make_folder=True) as partial:
            widen(model, shape, n_vocab, quantization, partial, name=f"{model.path.stem} {label}", padding=padding)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; name another folder") from error
    return path


def _tokens(model: Source, vocabulary: str | int | None) -> int:
    if vocabulary is None:
        return model.n_vocab
    return _named("vocabulary", vocabulary, VOCABULARIES) if isinstance(vocabulary, str) else vocabulary


def _checked_type(quantization: str) -> str:
    return _named("quantization", quantization, {kind: kind for kind in QUANTIZATIONS})


_Value = TypeVar("_Value")


def _named(what: str, name: str, choices: Mapping[str, _Value]) -> _Value:
    """Return what this name stands for. Raises: UsageError."""
    if name not in choices:
        raise UsageError(
            f'{what} {shown(name)} is unknown; the nearest one is "{nearest(name, choices)}" '
            f"(there are {', '.join(choices)})"
        )
    return choices[name]


def _label(shape: Shape) -> str:
    names = (name for name, choices in SHAPES.items() if choices == shape)
    return next(names, f"{shape.n_embd}x{shape.n_layer}")


# Recipes


def _sources(recipe: Recipe) -> dict[str, Path]:
    """Return the files of the roles that have models of their own, by name. Raises: UsageError."""
    roles: dict[str, Role | None] = {"base": recipe.base, "antiexpert": recipe.antiexpert, **recipe.experts}
    roles |= {f"{name}.antiexpert": expert.antiexpert for name, expert in recipe.experts.items()}
    for name, role in roles.items():
        if role and role.lora:
            raise UsageError(f"{name} has a LoRA adapter, {role.lora}, which fits its own model only: it has no shapes")
    return {name: resolve_model(role.model, recipe.folder) for name, role in roles.items() if role and not role.follows}


def _shapes(recipe: Recipe, shape: str | Trio) -> dict[str, Shape]:
    """Return the shape of each role of the mixture, by name."""
    trio = _named("shape", shape, TRIOS) if isinstance(shape, str) else shape
    sizes = {name: source.stat().st_size for name, source in _sources(recipe).items()}
    base = sizes.pop("base")
    large, small = (trio.large, trio.small) if base >= max(sizes.values(), default=0) else (trio.small, trio.large)
    return {"base": large} | dict.fromkeys(sizes, small)


def _with_models(recipe: Recipe, copy: Callable[[str, Path], Path]) -> Recipe:
    """Return the recipe on copies of its models. copy: from a role's name and file to the copy."""
    files = {name: str(copy(name, source)) for name, source in _sources(recipe).items()}

    def on_copy(role: AnyRole, name: str) -> AnyRole:
        return role if role.follows else replace(role, model=files[name])

    experts = {
        name: replace(
            on_copy(expert, name),
            antiexpert=expert.antiexpert and on_copy(expert.antiexpert, f"{name}.antiexpert"),
        )
        for name, expert in recipe.experts.items()
    }
    return replace(
        recipe,
        base=on_copy(recipe.base, "base"),
        antiexpert=recipe.antiexpert and on_copy(recipe.antiexpert, "antiexpert"),
        experts=experts,
        compare={},
    )
