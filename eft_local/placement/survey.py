"""From a recipe's roles to what has to be placed: which weights are loaded, and which contexts are made on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from eft_local.backends.llamacpp import kernels, supports_gpu_offload
from eft_local.backends.llamacpp.exactness import Attention, Question, choose
from eft_local.backends.llamacpp.needs import UBATCH_CPU, UBATCH_GPU, Asked, ask
from eft_local.errors import ModelNotFoundError
from eft_local.gguf.weights import read_weights
from eft_local.hub import HubName
from eft_local.hub.references import adapter_of, hub_name, is_bundled, model_of
from eft_local.placement.planner import ContextNeed, Load
from eft_local.recipe import Placement, Recipe, Role
from eft_local.recipe.roles import PLAIN_KV_TYPES

SCORED_ROWS = 8
"""Rows of logits that are read at a time where a continuation is scored: a buffer of 8 × n_vocab floats per role."""
DRAFTED_ROWS = 17
"""The longest draft, and the token after it. On a CPU a draft of more than seven hardly pays, and memory is dearer."""
SHORT = 1024
"""Tokens of context up to which llama.cpp's flash attention is worth its while on a CPU."""


def rows_at_once(recipe: Recipe) -> int:
    """Return the rows of logits that the contexts for one answer must return at once."""
    on_cpu = not supports_gpu_offload() or all(
        recipe.placement_of(role).offload == 0 for _, role in recipe.named_roles()
    )
    few = recipe.draft == "off" or (recipe.draft == "auto" and on_cpu)
    return SCORED_ROWS if few else DRAFTED_ROWS


@dataclass(frozen=True, slots=True)
class Seat:
    """What one role runs on: its files and how they are placed.  scale: of the adapter."""

    model: Path
    placement: Placement
    adapter: Path | None = None
    scale: float = 1.0

    @property
    def weights(self) -> tuple[object, ...]:
        """What roles that share a copy of the weights have in common."""
        placement = self.placement
        return self.model.resolve(), placement.offload, placement.mmap, placement.mlock

    @property
    def context(self) -> tuple[object, ...]:
        """What roles that share a context have in common."""
        return self.weights, self.adapter and self.adapter.resolve(), self.scale, self.placement


Elsewhere = Callable[[HubName], Path | None]
"""Gets what planning needs of a model that is not here, if it can."""


def seats(recipe: Recipe, roles: Mapping[str, Role], elsewhere: Elsewhere | None = None) -> dict[str, Seat]:
    """Return what each role runs on. roles: as they run, from `Recipe.named_roles`.

    Raises: ModelNotFoundError, which names all files that are missing; what `elsewhere` raises.
    """
    found: dict[str, Seat] = {}
    missing: dict[str, str] = {}
    for name, role in roles.items():
        placement = recipe.placement_of(role)
        try:
            found[name] = Seat(model_of(recipe, role), placement, adapter_of(recipe, role), role.lora_scale)
        except ModelNotFoundError as error:
            reference = hub_name(role.model, recipe.folder)
            header = elsewhere(reference) if elsewhere and reference and not role.lora else None
            if header:
                found[name] = Seat(header, placement)
            else:
                missing.setdefault(str(error), name)
    if len(missing) > 1:
        names = ", ".join(f"{name}: {roles[name].model}" for name in missing.values())
        _, _, remedy = next(iter(missing)).rpartition("; ")
        raise ModelNotFoundError(f"{len(missing)} models are missing ({names}); {remedy.replace('get it', 'get them')}")
    if missing:
        raise ModelNotFoundError(next(iter(missing)))
    return found


def loads(seated: Mapping[str, Seat], context: int, rows: int) -> tuple[Load, ...]:
    """Return what has to be loaded for roles with contexts of so many tokens.

    rows: of logits that each role returns at once. Their models are asked at the same time.
    Raises: ModelFileError, UsageError.
    """
    contexts: dict[tuple[object, ...], list[str]] = {}
    for name, seat in seated.items():
        contexts.setdefault(seat.context, []).append(name)

    def need(names: list[str]) -> ContextNeed:
        seat, count = seated[names[0]], len(names)
        asked = Asked(
            cells=context,
            n_seq=count,
            n_outputs=rows * count,
            batch=seat.placement.batch,
            ubatch=seat.placement.ubatch,
            kv_type=seat.placement.kv_type,
            flash_attention=_possible(seat, seat.placement)[-1],
            plain_beyond=SHORT if len(_possible(seat, seat.placement)) > 1 else None,
        )
        return ContextNeed(tuple(names), count, ask(seat.model, asked, trusted=is_bundled(seat.model)))

    groups = list(contexts.values())
    with ThreadPoolExecutor(max(1, min(4, len(groups)))) as pool:
        needs = list(pool.map(need, groups))
    copies: dict[tuple[object, ...], list[ContextNeed]] = {}
    for each in needs:
        copies.setdefault(seated[each.roles[0]].weights, []).append(each)
    return tuple(_load(each, seated) for each in copies.values())


def _load(contexts: list[ContextNeed], seated: Mapping[str, Seat]) -> Load:
    roles = [seated[name] for each in contexts for name in each.roles]
    adapters = {seat.adapter.resolve() for seat in roles if seat.adapter}
    return Load(
        contexts=tuple(contexts),
        offload=roles[0].placement.offload,
        mmap=roles[0].placement.mmap,
        adapters=sum(path.stat().st_size for path in adapters),
    )


def _attention(seat: Seat, placement: Placement, context: int) -> Attention:
    """Return whether contexts use flash attention; "auto" leaves it to llama.cpp, which knows what a GPU can.

    placement: of the seat, or as it is planned.  context: tokens that a role can hold. Behind long ones a CPU is faster
    without llama.cpp's, up to twice as fast; small models behind short ones are a tenth faster with it.
    """
    first, *others = _possible(seat, placement)
    return first if not others else context <= SHORT and "auto"


def _possible(seat: Seat, placement: Placement) -> tuple[Attention, ...]:
    """Return the kinds of attention that may be the fastest, where a recipe leaves it open."""
    on_cpu = placement.offload == 0 or not supports_gpu_offload()
    if seat.placement.flash_attention != "auto" or not on_cpu or placement.kv_type not in PLAIN_KV_TYPES:
        return (seat.placement.flash_attention,)
    weights = read_weights(seat.model)
    if placement.kv_type == "f16" and weights.sharing > 1 and kernels.attends(weights.heads):
        return (True,)  # what several heads share, ours reads but once; else it is a tie (bench/RESULTS.md)
    return (False, True)


def question(seat: Seat, placement: Placement, context: int, split: tuple[int, ...] = ()) -> Question:
    """Return what a role's exactness is asked by: it depends on where the model is and how it is evaluated.

    placement: as settled.  split: layers on each GPU.
    """
    assert placement.offload != "auto"
    assert placement.mmap != "auto"
    return Question(
        (seat.model, seat.adapter) if seat.adapter else (seat.model,),
        _possible(seat, placement),
        context,
        placement.kv_type,
        offload=placement.offload,
        split=split,
        mmap=placement.mmap,
        batch=placement.batch,
        ubatch=placement.ubatch or UBATCH_CPU,
        scale=seat.scale,
    )


def remembered(seated: Mapping[str, Seat], on_gpu: Mapping[str, int], context: int, wish: str) -> dict[str, str]:
    """Return what is known of each role's exactness, without loading anything.

    on_gpu: layers on GPUs, by role; 0 if not named.  wish: a recipe's `exact`.
    """
    told: dict[str, str] = {}
    for name, seat in seated.items():
        placement = settled(seat, on_gpu.get(name, 0), True, context)
        ways = question(seat, placement, context).known()
        told[name] = str(choose(ways, wish)) if ways else "not tried yet; it will be when it is first loaded"
    return told


def settled(seat: Seat, on_gpu: int, mmap: bool, context: int) -> Placement:
    """Return a seat's placement without "auto": what a plan made of it, for contexts of so many tokens."""
    placement = replace(
        seat.placement,
        offload=on_gpu,
        mmap=mmap,
        ubatch=seat.placement.ubatch or (UBATCH_GPU if on_gpu else UBATCH_CPU),
    )
    return replace(placement, flash_attention=_attention(seat, placement, context))
