"""From a recipe to loaded roles: each file once, vocabularies compared before anything is generated."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eft_local.errors import Cancelled
from eft_local.llama import ChatTemplate, Model, supports_gpu_offload
from eft_local.prompts import Message, Template, render, template_for
from eft_local.protocols import Evaluator, LanguageModel, Vocabulary
from eft_local.recipe import Placement, Recipe, Role
from eft_local.references import is_bundled, model_of
from eft_local.vocabulary import UNUSED, compare

log = logging.getLogger("eft_local")

LoadProgress = Callable[[str, float], bool | None]
"""Called with a role's name and 0…1 while its weights are loaded, by one thread per file; returning False cancels."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedRole:
    """A role with its model: all it needs to see a conversation and to evaluate tokens."""

    role: Role
    placement: Placement
    model: LanguageModel
    template: Template | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the conversation as this role's prompt. Raises: PromptError."""
        rendered = render(self.role.prompt, messages, self.template)
        tokens = self.vocabulary.tokenize(
            rendered.text, add_special=rendered.add_special, parse_special=rendered.parse_special
        )
        bos = self.vocabulary.bos
        if rendered.ensure_bos and self.vocabulary.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def open(self, *, n_ctx: int, n_seq: int, n_outputs: int) -> Evaluator:
        """Make a context for this role's model. Raises: OutOfMemoryError."""
        placement = self.placement
        return self.model.open(
            n_ctx=n_ctx,
            n_seq=n_seq,
            n_outputs=n_outputs,
            n_batch=placement.batch,
            n_ubatch=placement.ubatch or (512 if _layers_on_gpu(placement) else 128),
            n_threads=placement.threads,
            n_threads_batch=placement.threads_batch,
            kv_type=placement.kv_type,
            flash_attention=placement.flash_attention,
        )


def mixed_roles(recipe: Recipe) -> dict[str, Role]:
    """The roles that the formula needs, by name: base, antiexpert, experts, and `NAME.antiexpert` for own ones."""
    roles = {"base": recipe.base}
    if recipe.antiexpert:
        roles["antiexpert"] = recipe.antiexpert
    roles.update(recipe.experts)
    for name, expert in recipe.experts.items():
        if expert.antiexpert:
            roles[f"{name}.antiexpert"] = expert.antiexpert
    return roles


def antiexpert_name(recipe: Recipe, expert: str) -> str:
    """The role that this expert is compared with."""
    return f"{expert}.antiexpert" if recipe.experts[expert].antiexpert else "antiexpert"


def _layers_on_gpu(placement: Placement) -> int:
    """How many layers of a model go to the GPU; -1 is all of them."""
    if placement.offload == "auto":
        return -1 if supports_gpu_offload() else 0
    return placement.offload


@dataclass(frozen=True, slots=True)
class _File:
    """A file and how it is loaded: roles that agree in this share their weights."""

    path: Path = field(compare=False)  # as it is named: the name tells where the other shards are
    content: Path
    layers_on_gpu: int
    mmap: bool
    mlock: bool

    @classmethod
    def of(cls, recipe: Recipe, role: Role) -> _File:
        """Raises: ModelNotFoundError."""
        placement = recipe.placement_of(role)
        path = model_of(recipe, role)
        return cls(path, path.resolve(), _layers_on_gpu(placement), placement.mmap, placement.mlock)

    def load(self, progress: Callable[[float], bool]) -> Model:
        return Model.load(
            self.path,
            n_gpu_layers=self.layers_on_gpu,
            mmap=self.mmap,
            mlock=self.mlock,
            trusted=is_bundled(self.path),
            progress=progress,
        )


class Library:
    """The models that are open, each file once however many roles use it."""

    def __init__(self) -> None:
        self._models: dict[_File, Model] = {}
        self._cleanup = ExitStack()

    def load(
        self, recipe: Recipe, roles: Mapping[str, Role], progress: LoadProgress | None = None
    ) -> dict[str, LoadedRole]:
        """Load roles by name, their files at the same time.

        Raises: ModelNotFoundError, PromptError, and what `Model.load` raises; nothing stays open of what failed.
        """
        files = {name: _File.of(recipe, role) for name, role in roles.items()}
        first: dict[_File, str] = {}
        for name, file in files.items():
            if file not in self._models:
                first.setdefault(file, name)
        if first:
            self._open(first, progress)
        return {name: self._loaded(recipe, roles[name], self._models[file]) for name, file in files.items()}

    def _open(self, files: Mapping[_File, str], progress: LoadProgress | None) -> None:
        """Open files, each in a thread of its own; `files` names the role that is told of the progress."""
        stopped = threading.Event()

        def load(file: _File, name: str) -> None:
            def report(fraction: float) -> bool:
                return not stopped.is_set() and (progress is None or progress(name, fraction) is not False)

            try:
                self._models[file] = self._cleanup.enter_context(file.load(report))
            except BaseException:
                stopped.set()  # the others need not go on
                raise

        with ThreadPoolExecutor(len(files)) as pool:
            try:
                loads = [pool.submit(load, file, name) for file, name in files.items()]
                failures = [failure for each in loads if (failure := each.exception())]
            except BaseException:
                stopped.set()
                raise
        if failures:  # those that were merely stopped come last
            raise min(failures, key=lambda failure: isinstance(failure, Cancelled))

    def _loaded(self, recipe: Recipe, role: Role, model: Model) -> LoadedRole:
        if recipe.context > model.n_ctx_train:
            log.info(
                "context = %d, but %s was trained with %d tokens: beyond them it may ramble",
                recipe.context, model.path.name, model.n_ctx_train,
            )  # fmt: skip
        template = template_for(role.prompt, model.chat_template, _compiler(model), recipe.folder, str(model.path))
        return LoadedRole(role, recipe.placement_of(role), model, template)

    def close(self) -> None:
        self._cleanup.close()


def _compiler(model: Model) -> Callable[[str], Template]:
    vocabulary = model.vocabulary
    return lambda source: ChatTemplate(
        source, bos=vocabulary.text(vocabulary.bos), eos=vocabulary.text(vocabulary.eos), origin=model.path.name
    )


def common_width(roles: Mapping[str, LoadedRole]) -> int:
    """Compare all roles' vocabularies with the base's; return how many ids they have in common.

    Raises: VocabularyMismatchError.
    """
    base, distinct = roles["base"], _distinct(roles)
    widths = [compare(base.vocabulary, loaded.vocabulary, ("base", name)) for name, loaded in distinct.items()]
    # A tuned model may give a meaning to ids that the others still call padding: the widest counts.
    return min(max(widths), *(loaded.vocabulary.n_tokens for loaded in distinct.values()))


def unused_tokens(roles: Mapping[str, LoadedRole], width: int) -> npt.NDArray[np.intp]:
    """Ids below `width` that stand for nothing in every role: padding inside a vocabulary, which is never offered."""
    attributes = [loaded.vocabulary.attributes()[:width] for loaded in _distinct(roles).values()]
    return np.flatnonzero(np.bitwise_and.reduce(attributes) & UNUSED)


def warn_of_capped_logits(roles: Mapping[str, LoadedRole]) -> None:
    """Warn where logits are soft-capped in some roles only: their deltas are on another scale."""
    capped = {name for name, loaded in roles.items() if getattr(loaded.model, "caps_logits", False)}
    if capped and capped != set(roles):
        log.warning("%s cap their logits and the other roles do not: deltas are on different scales", sorted(capped))


def _distinct(roles: Mapping[str, LoadedRole]) -> dict[str, LoadedRole]:
    """One role per model; the base always, as its own comparison gives its width."""
    seen: dict[int, str] = {}
    for name, loaded in roles.items():
        seen.setdefault(id(loaded.model), name)
    return {name: roles[name] for name in seen.values()}
