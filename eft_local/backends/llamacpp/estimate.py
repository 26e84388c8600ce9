"""Estimates the memory of a model and its contexts with llama.cpp, which allocates nothing for it.

llama.cpp can build a model and its contexts without memory for them (`no_alloc`) and logs how large each buffer would
be: the KV cache, a recurrent state, the compute buffers of this backend. It aborts at some damaged files all the same,
so a file that has not proved sound is measured in a child process. Estimates are kept until the file changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp

from eft_local import errors
from eft_local.backends.base import ContextOptions
from eft_local.backends.llamacpp import library
from eft_local.backends.llamacpp.context import KV_TYPES, context_params, unsuitable_cache
from eft_local.backends.llamacpp.file_probe import identity
from eft_local.errors import EftError, ModelFileError, UnsupportedModelError, UsageError
from eft_local.gguf.weights import Weights, read_weights
from eft_local.machine import measured

_LADDER = (256, 1024, 4096, 16384, 65536, 262144)
"""Contexts that are measured, up to what the model was trained with. The sizes are convex, so that a straight line
between two of them is never too low."""

_MOST_CELLS = 1 << 20  # that are measured where nobody requests more

UBATCH_CPU, UBATCH_GPU = 128, 512
"""Rows of one physical batch, where a recipe does not say: see `Placement`."""

_ROUNDED = 256  # llama.cpp makes contexts of whole multiples of this
_PATIENCE = 60.0  # seconds
_CHILD_SECONDS = 10  # of computing; the largest vocabularies take one
_CHILD_BYTES = 4 << 30  # more than a process without weights can need
_SIZE = re.compile(r"(?:(?P<what>\w+) buffer |[:,] )size = +(?P<mib>\d+\.\d+) MiB")
_BUFFER = re.compile(r"(?P<name>\S+) +(?P<what>model|compute) buffer size = +(?P<mib>\d+\.\d+) MiB")
_HOST = re.compile(r"CPU|.*_Host$")


@dataclass(frozen=True, slots=True)
class EstimateOptions:
    """A context as `Model.open` makes it. ubatch None: what suits where the model is.

    cells: tokens that each of its sequences has room for.  plain_beyond: cells beyond which contexts go without
    flash attention, whatever `flash_attention` says of the others; None for no such bound.
    """

    cells: int
    n_seq: int = 1
    n_outputs: int = 1
    batch: int = 2048
    ubatch: int | None = None
    kv_type: str = "f16"
    flash_attention: bool | str = "auto"
    plain_beyond: int | None = None

    def of(self, cells: int) -> EstimateOptions:
        """Return the options where there is room for so many tokens."""
        plain = self.plain_beyond is not None and cells > self.plain_beyond
        return replace(self, cells=cells, flash_attention=False if plain else self.flash_attention)


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes of a context with so many cells for each sequence.

    cache: keys and values, in proportion to the cells.  state: of recurrent layers, whatever the cells.
    outputs: rows of logits.  host, gpu: compute buffers in RAM and on each GPU.
    """

    cells: int
    cache: int
    state: int
    outputs: int
    host: int
    gpu: int

    def toward(self, other: Figures, cells: int) -> Figures:
        """Return the figures on the straight line from these to `other`."""
        distance, whole = cells - self.cells, other.cells - self.cells

        def along(start: int, end: int) -> int:
            return max(0, start - (start - end) * distance // whole)

        return Figures(
            cells=cells,
            cache=along(self.cache, other.cache),
            state=along(self.state, other.state),
            outputs=along(self.outputs, other.outputs),
            host=along(self.host, other.host),
            gpu=along(self.gpu, other.gpu),
        )


Curve = tuple[Figures, ...]
"""Figures for several numbers of cells, ascending."""


def at(curve: Curve, cells: int) -> Figures:
    """Return the figures of a context with room for `cells` tokens in each sequence."""
    cells = -(-cells // _ROUNDED) * _ROUNDED
    for low, high in pairwise(curve):
        if cells <= high.cells:
            return low.toward(high, cells) if cells != high.cells else high
    if len(curve) == 1:
        return curve[0]
    return curve[-2].toward(curve[-1], cells)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of a model with one context.

    repacks: whether this CPU gets weights in another order, which are copies even where the file is mapped.
    copied: bytes of embeddings that it gets in both orders, as they serve as output matrix too.
    on_cpu, on_gpu, on_both: a context where all layers are in RAM, on GPUs, or some here and some there.
    sequences: that the context has.
    """

    weights: Weights
    repacks: bool
    copied: int
    on_cpu: Curve
    on_gpu: Curve
    on_both: Curve
    sequences: int = 1


def estimate_memory(path: Path, options: EstimateOptions, *, trusted: bool = False) -> Estimate:
    """Return the memory that a model needs with a context like this.

    trusted: a file that cannot harm this process.
    Raises: ModelNotFoundError, ModelFileError, UnsupportedModelError if llama.cpp cannot make such a context for it.
    """
    if options.kv_type not in KV_TYPES:
        raise UsageError(f"unknown KV cache type {options.kv_type!r}; use one of {', '.join(KV_TYPES)}")
    kept = _kept(path, options) if path.is_file() else None
    with contextlib.suppress(TypeError, KeyError):
        if (found := measured.read(kept)) is not None:
            return _from_json(found)
    weights = read_weights(path)
    found = _measure(path, options, weights) if trusted else _measure_in_child(path, options, weights)
    estimate = _from_json(found | {"weights": asdict(weights), "sequences": options.n_seq})
    measured.write(kept, asdict(estimate))
    return estimate


def _kept(path: Path, options: EstimateOptions) -> Path | None:
    return measured.place("estimates", identity((path,)), "streams", asdict(options), library.supports_gpu_offload())


def _from_json(found: dict[str, Any]) -> Estimate:
    weights = found["weights"]
    curves = {name: tuple(Figures(**each) for each in found[name]) for name in ("on_cpu", "on_gpu", "on_both")}
    copied = weights["tied"] if found["repacks"] and weights["table_kind"] in _repacked_kinds() else 0
    read = Weights.from_dict(weights)
    return Estimate(read, found["repacks"], copied, **curves, sequences=found["sequences"])


def _repacked_kinds() -> frozenset[int]:
    """Ggml's types of weights that its kernels for this processor want in another order (ggml-cpu/repack.cpp)."""
    q4_0, q8_0, q4_k, q5_k, q6_k, iq4_nl, mxfp4 = 2, 8, 12, 13, 14, 20, 39
    arm = {q8_0, q5_k, q6_k} if platform.machine().lower() in ("arm64", "aarch64") else set()
    return frozenset({q4_0, q4_k, iq4_nl, mxfp4} | arm)


# Measuring


def _measure_in_child(path: Path, options: EstimateOptions, weights: Weights) -> dict[str, Any]:
    """Measure in a process of its own, where a crash can be caught."""
    question = {"path": os.fspath(path), "options": asdict(options), "weights": asdict(weights)}
    try:
        child = subprocess.run(
            [sys.executable, "-c", "from eft_local.backends.llamacpp import estimate; estimate.answer()"],
            input=json.dumps(question).encode(),
            capture_output=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # otherwise it would start a debugger
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{path} hangs llama.cpp as it is read; download or convert it again") from None
    noise = child.stderr.decode("utf-8", "replace").strip().splitlines()
    if child.returncode:
        reason = noise[-1] if noise else f"status {child.returncode}"
        raise ModelFileError(f"{path} crashes llama.cpp ({reason}); download or convert it again")
    measured: dict[str, Any] = json.loads(child.stdout)
    if "refusal" in measured:
        raise getattr(errors, measured["kind"])(measured["refusal"])
    return measured


def answer() -> None:
    """Answer the question on stdin; a refusal is an answer."""
    _bound_resources()
    question = json.load(sys.stdin)
    weights = question["weights"]
    try:
        measured = _measure(
            Path(question["path"]),
            EstimateOptions(**question["options"]),
            Weights.from_dict(weights),
        )
    except EftError as error:
        measured = {"refusal": str(error), "kind": type(error).__name__}
    json.dump(measured, sys.stdout)


def _bound_resources() -> None:
    """Let a file that makes llama.cpp loop or allocate without end end this process."""
    try:
        import resource

        import psutil
    except ImportError:  # Windows
        return
    for limit, bound in (
        (resource.RLIMIT_CPU, _CHILD_SECONDS),
        (resource.RLIMIT_AS, int(psutil.Process().memory_info().vms) + _CHILD_BYTES),
    ):
        with contextlib.suppress(OSError, ValueError):  # a lower one is set already
            resource.setrlimit(limit, (bound, resource.getrlimit(limit)[1]))


def _measure(path: Path, options: EstimateOptions, weights: Weights) -> dict[str, Any]:
    """Return the curves, ready for JSON. Raises: ModelFileError, UnsupportedModelError."""
    gpu = library.supports_gpu_offload()
    on_cpu = replace(options, ubatch=options.ubatch or UBATCH_CPU)
    on_gpu = replace(options, ubatch=options.ubatch or UBATCH_GPU)
    curves: dict[str, list[Figures]] = {}
    with _dry_model(path, 0) as (model, buffers):
        curves["on_cpu"] = _curve(model, path, on_cpu, weights)
        if not gpu:  # a GPU that is only imagined computes as this CPU does
            imagined = _curve(model, path, on_gpu, weights)
            curves["on_both"] = curves["on_gpu"] = [replace(each, gpu=each.host) for each in imagined]
        repacks = any(name not in ("CPU", "CPU_Mapped") for name in buffers)
    for name, layers in (("on_both", max(1, len(weights.layers) // 2)), ("on_gpu", -1)) if gpu else ():
        with _dry_model(path, layers) as (model, _):
            curves[name] = _curve(model, path, on_gpu, weights)
    return {"repacks": repacks} | {name: [asdict(each) for each in curve] for name, curve in curves.items()}


@contextlib.contextmanager
def _dry_model(path: Path, layers: int) -> Iterator[tuple[int, list[str]]]:
    """Yield a model without memory, and its buffers' names."""
    library.start()
    library.forget_complaints()
    params = library.fill(
        llama_cpp.llama_model_default_params(),
        no_alloc=True,
        load_mode=llama_cpp.LLAMA_LOAD_MODE_NONE,  # the others abort without memory
        **library.gpu_params(layers),
    )
    with library.listening() as heard:
        handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if handle is None:
        reason = library.last_complaint() or "no reason given"
        raise ModelFileError(f"llama.cpp refused {path}: {reason}; download or convert the file again")
    try:
        yield handle, list(read_buffers(heard))
    finally:
        llama_cpp.llama_model_free(handle)


def _curve(model: int, path: Path, options: EstimateOptions, weights: Weights) -> list[Figures]:
    trained = min(weights.trained, _MOST_CELLS)
    rungs = {_LADDER[0], _LADDER[1], *(cells for cells in _LADDER if cells < trained), trained, options.cells}
    if options.plain_beyond:  # one step, which no straight line may cross, and a second point for the line after it
        rungs |= {options.plain_beyond, options.plain_beyond + _ROUNDED, 2 * options.plain_beyond}
    rounded = sorted({-(-cells // _ROUNDED) * _ROUNDED for cells in rungs if cells})
    return [_figures(model, path, options.of(cells)) for cells in rounded]


def _figures(model: int, path: Path, options: EstimateOptions) -> Figures:
    params = context_params(
        ContextOptions(
            n_ctx=options.cells,
            n_seq=options.n_seq,
            n_outputs=options.n_outputs,
            n_batch=options.batch,
            n_ubatch=options.ubatch or UBATCH_CPU,
            kv_type=options.kv_type,
            flash_attention=options.flash_attention,
        )
    )
    library.forget_complaints()
    with library.listening() as heard:
        context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        reason = library.last_complaint() or "no reason given"
        raise unsuitable_cache(path) or UnsupportedModelError(
            f"llama.cpp cannot make a context of {options.cells} tokens for {path} ({reason}); "
            'try kv_type = "f16", or flash_attention = "auto"'
        )
    llama_cpp.llama_free(context)
    return read_figures(heard, options.cells, options.n_seq, options.n_outputs)


def read_buffers(lines: Sequence[str]) -> dict[str, int]:
    """Read the sizes of a model's buffers, by name, from what llama.cpp logs as it loads one."""
    found = [each for line in lines if (each := _BUFFER.search(line)) and each["what"] == "model"]
    sizes = dict.fromkeys((each["name"] for each in found), 0)
    for each in found:
        sizes[each["name"]] += round(float(each["mib"]) * (1 << 20))
    return sizes


def read_figures(lines: Sequence[str], cells: int, n_seq: int = 1, n_outputs: int = 1) -> Figures:
    """Read the sizes of a context's buffers from what llama.cpp logs as it makes one.

    It first makes room for one row of logits per sequence, and for n_outputs when they are requested.
    """
    sizes = {"cache": 0.0, "state": 0.0, "outputs": 0.0, "host": 0.0, "gpu": 0.0}
    for line in lines:
        found = _SIZE.search(line) if " size = " in line else None
        if found is None:
            continue
        size = float(found["mib"]) * (1 << 20)
        match found["what"]:
            case None:
                sizes["state" if "recurrent" in line else "cache"] += size
            case "output":
                sizes["outputs"] += size * n_outputs / n_seq
            case "compute":
                name = _BUFFER.search(line)
                on_host = name is None or _HOST.match(name["name"])
                key = "host" if on_host else "gpu"
                sizes[key] = sizes[key] + size if on_host else max(sizes[key], size)
    return Figures(cells=cells, **{name: round(size) for name, size in sizes.items()})
