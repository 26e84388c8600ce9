"""From a recipe's roles to what has to be placed: which weights are loaded, and which contexts are made on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from eft_local.backends.llamacpp import kernels, supports_gpu_offload
from eft_local.backends.llamacpp.estimate import UBATCH_CPU, UBATCH_GPU, EstimateOptions, estimate_memory
from eft_local.backends.llamacpp.exactness import Attention, Question, choose
from eft_local.errors import ModelNotFoundError
from eft_local.gguf.weights import read_weights
from eft_local.hub import HubName
from eft_local.hub.references import adapter_of, hub_name, is_bundled, model_of
from eft_local.placement.planner import ContextEstimate, Load
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
class RoleFiles:
    """The files that one role runs on, and the placement its recipe requests.  scale: of the adapter."""

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


FetchHeader = Callable[[HubName], Path | None]
"""Gets the header of a model that is not downloaded, which is enough for planning, if it can."""


def role_files(
    recipe: Recipe, roles: Mapping[str, Role], fetch_header: FetchHeader | None = None
) -> dict[str, RoleFiles]:
    """Return what each role runs on. roles: as they run, from `Recipe.named_roles`.

    Raises: ModelNotFoundError, which names all files that are missing; what `fetch_header` raises.
    """
    found: dict[str, RoleFiles] = {}
    missing: dict[str, str] = {}
    for name, role in roles.items():
        placement = recipe.placement_of(role)
        try:
            found[name] = RoleFiles(model_of(recipe, role), placement, adapter_of(recipe, role), role.lora_scale)
        except ModelNotFoundError as error:
            reference = hub_name(role.model, recipe.folder)
            header = fetch_header(reference) if fetch_header and reference and not role.lora else None
            if header:
                found[name] = RoleFiles(header, placement)
            else:
                missing.setdefault(str(error), name)
    if len(missing) > 1:
        names = ", ".join(f"{name}: {roles[name].model}" for name in missing.values())
        _, _, remedy = next(iter(missing)).rpartition("; ")
        raise ModelNotFoundError(f"{len(missing)} models are missing ({names}); {remedy.replace('get it', 'get them')}")
    if missing:
        raise ModelNotFoundError(next(iter(missing)))
    return found


def loads(files_by_role: Mapping[str, RoleFiles], context: int, rows: int) -> tuple[Load, ...]:
    """Return what has to be loaded for roles with contexts of so many tokens.

    rows: of logits that each role returns at once. Their models are estimated at the same time.
    Raises: ModelFileError, UsageError.
    """
    contexts: dict[tuple[object, ...], list[str]] = {}
    for name, files in files_by_role.items():
        contexts.setdefault(files.context, []).append(name)

    def estimated(names: list[str]) -> ContextEstimate:
        files, count = files_by_role[names[0]], len(names)
        options = EstimateOptions(
            cells=context,
            n_seq=count,
            n_outputs=rows * count,
            batch=files.placement.batch,
            ubatch=files.placement.ubatch,
            kv_type=files.placement.kv_type,
            flash_attention=_possible(files, files.placement)[-1],
            plain_beyond=SHORT if len(_possible(files, files.placement)) > 1 else None,
        )
        return ContextEstimate(
            tuple(names), count, estimate_memory(files.model, options, trusted=is_bundled(files.model))
        )

    groups = list(contexts.values())
    with ThreadPoolExecutor(max(1, min(4, len(groups)))) as pool:
        estimates = list(pool.map(estimated, groups))
    copies: dict[tuple[object, ...], list[ContextEstimate]] = {}
    for each in estimates:
        copies.setdefault(files_by_role[each.roles[0]].weights, []).append(each)
    return tuple(_load(each, files_by_role) for each in copies.values())


def _load(contexts: list[ContextEstimate], files_by_role: Mapping[str, RoleFiles]) -> Load:
    roles = [files_by_role[name] for each in contexts for name in each.roles]
    adapters = {files.adapter.resolve() for files in roles if files.adapter}
    return Load(
        contexts=tuple(contexts),
        offload=roles[0].placement.offload,
        mmap=roles[0].placement.mmap,
        adapters=sum(path.stat().st_size for path in adapters),
    )


def _attention(files: RoleFiles, placement: Placement, context: int) -> Attention:
    """Return whether contexts use flash attention; "auto" leaves it to llama.cpp, which knows what a GPU can.

    placement: of the role, or as planned.  context: tokens that a role can hold. After long ones a CPU is faster
    without llama.cpp's, up to twice as fast; small models after short ones are a tenth faster with it.
    """
    first, *others = _possible(files, placement)
    return first if not others else context <= SHORT and "auto"


def _possible(files: RoleFiles, placement: Placement) -> tuple[Attention, ...]:
    """Return the kinds of attention that may be the fastest, where a recipe leaves it open."""
    on_cpu = placement.offload == 0 or not supports_gpu_offload()
    if files.placement.flash_attention != "auto" or not on_cpu or placement.kv_type not in PLAIN_KV_TYPES:
        return (files.placement.flash_attention,)
    weights = read_weights(files.model)
    if placement.kv_type == "f16" and weights.sharing > 1 and kernels.attends(weights.heads):
        return (True,)  # what several heads share, ours reads but once; else it is a tie (bench/RESULTS.md)
    return (False, True)


def question(files: RoleFiles, placement: Placement, context: int, split: tuple[int, ...] = ()) -> Question:
    """Return the question by which a role's exactness is looked up: it depends on where the model is and how it is
    evaluated.

    placement: without "auto", from `resolved_placement`.  split: layers on each GPU.
    """
    assert placement.offload != "auto"
    assert placement.mmap != "auto"
    return Question(
        (files.model, files.adapter) if files.adapter else (files.model,),
        _possible(files, placement),
        context,
        placement.kv_type,
        offload=placement.offload,
        split=split,
        mmap=placement.mmap,
        batch=placement.batch,
        ubatch=placement.ubatch or UBATCH_CPU,
        scale=files.scale,
    )


def remembered(
    files_by_role: Mapping[str, RoleFiles], on_gpu: Mapping[str, int], context: int, wish: str
) -> dict[str, str]:
    """Return what is recorded of each role's exactness, without loading anything.

    on_gpu: layers on GPUs, by role; 0 if not named.  wish: a recipe's `exact`.
    """
    verdicts: dict[str, str] = {}
    for name, files in files_by_role.items():
        placement = resolved_placement(files, on_gpu.get(name, 0), True, context)
        ways = question(files, placement, context).recorded()
        verdicts[name] = str(choose(ways, wish)) if ways else "not tested yet; tested when it is first loaded"
    return verdicts


def resolved_placement(files: RoleFiles, on_gpu: int, mmap: bool, context: int) -> Placement:
    """Return a role's placement without "auto": what a plan made of it, for contexts of so many tokens."""
    placement = replace(
        files.placement,
        offload=on_gpu,
        mmap=mmap,
        ubatch=files.placement.ubatch or (UBATCH_GPU if on_gpu else UBATCH_CPU),
    )
    return replace(placement, flash_attention=_attention(files, placement, context))
