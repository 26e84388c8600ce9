"""From a recipe to loaded roles: each file once, vocabularies compared before anything is generated.

Roles that name the same file, and place its weights alike (offload, mmap, mlock), share one copy of them; an adapter
is loaded once for each copy that it changes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eft_local.backends.base import ContextOptions, Evaluator, LanguageModel, TokenTable, Vocabulary
from eft_local.backends.llamacpp import Adapter, ChatTemplate, Model, kernels
from eft_local.backends.llamacpp.devices import places
from eft_local.backends.llamacpp.estimate import UBATCH_CPU, Estimate
from eft_local.backends.llamacpp.exactness import Choice, Question, choose
from eft_local.backends.llamacpp.exactness_probe import find, find_in_child
from eft_local.backends.tokenize import tokenize_marked, tokenize_text
from eft_local.backends.vocabulary import Common
from eft_local.engine.ends import Ends
from eft_local.errors import Cancelled
from eft_local.hub.references import is_bundled
from eft_local.notices import notice
from eft_local.placement.headers import check_headers
from eft_local.placement.planner import Placed
from eft_local.placement.shortage import check_context, checked_plan
from eft_local.placement.survey import RoleFiles, loads, question, resolved_placement, role_files, rows_at_once
from eft_local.prompts.markup import Template
from eft_local.prompts.render import Message, conversation, introduction, render, template_for
from eft_local.prompts.task import TaskPrompt
from eft_local.recipe import Placement, Recipe, Role

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
    adapter: Adapter | None = None
    estimate: Estimate | None = None
    exactness: Choice | None = None
    header: TokenTable | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    @property
    def is_exact(self) -> bool:
        """Whether its logits do not depend on what is evaluated together."""
        return self.exactness is not None and self.exactness.verdict.exact

    @property
    def table(self) -> TokenTable:
        """The tokens, to be compared with another role's: of the file's header, where that was read."""
        return self.header or self.vocabulary

    @property
    def context_key(self) -> Hashable:
        """What roles that can be sequences of one context have in common: weights, adapter, placement."""
        return id(self.model), id(self.adapter), self.role.lora_scale, self.placement

    def task_tokens(self, task: TaskPrompt) -> list[int]:
        """Return a benchmark's prompt as this role reads it. Raises: PromptError."""
        if self.role.prompt.is_framed and task.text is not None:
            return tokenize_text(self.vocabulary, introduction(self.role.prompt) + task.text, add_special=True)
        return self.tokens(conversation(task.messages), started=task.started)

    def tokens(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        started: Callable[[str], str] = lambda text: "",
    ) -> list[int]:
        """Return the conversation as this role's prompt. Raises: PromptError.

        tools: see `render`.  started: returns what follows a template's text: the start of the answer.
        """
        vocabulary = self.vocabulary
        rendered = render(self.role.prompt, messages, self.template, vocabulary.specials(), tools)
        if rendered.moved:
            notice("the chat template of %s takes no system text: it goes before the first question", self.role.model)
        start = started(rendered.text)
        if rendered.marked is None:
            return tokenize_text(vocabulary, rendered.text + start, add_special=True)
        tokens = tokenize_marked(vocabulary, rendered.text + start, rendered.marked + "\0" * len(start))
        if vocabulary.add_bos and vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
            tokens.insert(0, vocabulary.bos)
        return tokens

    def open(self, *, n_ctx: int, n_seq: int, n_outputs: int, flash_attention: bool | str | None = None) -> Evaluator:
        """Make a context for this role's model. Raises: OutOfMemoryError."""
        placement = self.placement
        if self.estimate and not placement.offload:
            check_context(self.estimate, n_ctx, n_seq, self.role.model)
        return self.model.open(
            ContextOptions(
                n_ctx=n_ctx,
                n_seq=n_seq,
                n_outputs=n_outputs,
                n_batch=placement.batch,
                n_ubatch=placement.ubatch or UBATCH_CPU,
                n_threads=placement.threads,
                n_threads_batch=placement.threads_batch,
                kv_type=placement.kv_type,
                flash_attention=placement.flash_attention if flash_attention is None else flash_attention,
                adapter=self.adapter,
                adapter_scale=self.role.lora_scale,
            )
        )


def mixed_roles(recipe: Recipe) -> dict[str, Role]:
    """The roles that the formula needs, by name: base, antiexpert, experts, and `NAME.antiexpert` for own ones."""
    roles = _roles(recipe)
    antiexperts = {antiexpert_name(recipe, name) for name in recipe.experts}
    shared = [name for name in ("base", "antiexpert") if name in antiexperts or name == "base"]
    own = [name for name in roles if name in antiexperts and name not in shared]
    return {name: roles[name] for name in (*shared, *recipe.experts, *own)}


def compared_roles(recipe: Recipe) -> dict[str, Role]:
    """The roles under [compare], by name."""
    return {name: role for name, role in _roles(recipe).items() if name in recipe.compare}


def _roles(recipe: Recipe) -> dict[str, Role]:
    return {place.split(".", 1)[-1]: role for place, role in recipe.named_roles()}


def antiexpert_name(recipe: Recipe, expert: str) -> str:
    """The role that this expert is compared with: the base itself, where its antiexpert is no more than that."""
    own = recipe.experts[expert].antiexpert
    role = own or recipe.antiexpert
    if role and recipe.is_base(role):
        return "base"
    return f"{expert}.antiexpert" if own else "antiexpert"


class Library:
    """The models and adapters that are open, each file once however many roles use it."""

    def __init__(self) -> None:
        self._models: dict[Hashable, Model] = {}
        self._placed: dict[Hashable, Placed] = {}
        self._adapters: dict[tuple[Hashable, Path], Adapter] = {}
        self._exact = False
        self.common: Common | None = None  # of the roles that were last loaded to be combined
        self._cleanup = ExitStack()

    def load(
        self,
        recipe: Recipe,
        roles: Mapping[str, Role],
        progress: LoadProgress | None = None,
        *,
        combined: bool = False,
    ) -> dict[str, LoadedRole]:
        """Load roles by name, their models at the same time, then their adapters.

        combined: whether their logits are combined, so that their tokens must agree; headers show it, before anything
            is loaded.
        Raises: ModelNotFoundError, PromptError, VocabularyMismatchError, OutOfMemoryError if they do not fit into what
            is free, and what `Model.load` and `Adapter.load` raise; nothing stays open of what failed.
        """
        files_by_role = role_files(recipe, roles)
        headers = check_headers(recipe, roles, files_by_role, combined=combined)
        self.common = headers.common or self.common
        new = {name: files for name, files in files_by_role.items() if files.weights not in self._models}
        if new:
            self._place(recipe, new)
            self._probe(recipe, new, progress)
            self._open(new, progress)
            _warn_of_copies(files_by_role)
        loaded = {
            name: replace(self._loaded(recipe, roles[name], files, progress), header=headers.vocabularies[name])
            for name, files in files_by_role.items()
        }
        self._exact |= any(role.is_exact for role in loaded.values())
        if new:  # for the whole process
            kernels.use_exact(self._exact)
        return loaded

    def _place(self, recipe: Recipe, files_by_role: Mapping[str, RoleFiles]) -> None:
        """Find a place for the weights that are not loaded yet. Raises: OutOfMemoryError."""
        wanted = loads(files_by_role, recipe.context, rows_at_once(recipe))
        planned = checked_plan(wanted, places(), recipe.context)
        for name, files in files_by_role.items():
            self._placed[files.weights] = planned.of(name)

    def _probe(self, recipe: Recipe, files_by_role: Mapping[str, RoleFiles], progress: LoadProgress | None) -> None:
        """Try files that are new in a child process, one after the other; ours are tried when they are loaded."""

        def waiting_for(name: str) -> Callable[[], None]:
            def ask() -> None:
                if progress is not None and progress(name, 0.0) is False:
                    raise Cancelled("loading was cancelled")

            return ask

        for name, files in files_by_role.items():
            if not is_bundled(files.model):
                find_in_child(self._question(recipe, files), waiting_for(files.adapter.name if files.adapter else name))

    def _question(self, recipe: Recipe, files: RoleFiles) -> Question:
        placed = self._placed[files.weights]
        placement = resolved_placement(files, placed.on_gpu, placed.mmap, recipe.context)
        return question(files, placement, recipe.context, tuple(placed.layers))

    def _open(self, files_by_role: Mapping[str, RoleFiles], progress: LoadProgress | None) -> None:
        """Open models, each in a thread of its own, for the first role that runs on it, whose progress is reported."""
        stopped = threading.Event()
        first: dict[Hashable, tuple[str, RoleFiles]] = {}
        for each in files_by_role.items():
            first.setdefault(each[1].weights, each)

        def load(name: str, files: RoleFiles) -> None:
            def report(fraction: float) -> bool:
                return not stopped.is_set() and (progress is None or progress(name, fraction) is not False)

            try:
                model = _load_model(files, self._placed[files.weights], report)
                self._models[files.weights] = self._cleanup.enter_context(model)
            except BaseException:
                stopped.set()  # the others need not continue
                raise

        with ThreadPoolExecutor(len(first)) as pool:
            try:
                opened = [pool.submit(load, name, files) for name, files in first.values()]
                failures = [failure for each in opened if (failure := each.exception())]
            except BaseException:
                stopped.set()
                raise
        if failures:  # those that were merely stopped come last
            raise min(failures, key=lambda failure: isinstance(failure, Cancelled))

    def _adapter(self, files: RoleFiles, progress: LoadProgress | None) -> Adapter | None:
        """Return a model's adapter; one after the other, as llama.cpp keeps a list of them."""
        path = files.adapter
        if path is None:
            return None
        key = files.weights, path.resolve()

        def ask() -> None:
            if progress is not None and progress(path.name, 0.0) is False:
                raise Cancelled("loading was cancelled")

        if key not in self._adapters:
            adapter = Adapter.load(self._models[files.weights], path, trusted=is_bundled(path), waiting=ask)
            self._adapters[key] = self._cleanup.enter_context(adapter)
        return self._adapters[key]

    def _loaded(self, recipe: Recipe, role: Role, files: RoleFiles, progress: LoadProgress | None) -> LoadedRole:
        model, placed = self._models[files.weights], self._placed[files.weights]
        if recipe.context > model.n_ctx_train:
            notice(
                "context = %d, but %s was trained with %d tokens: beyond them it may ramble",
                recipe.context, model.path.name, model.n_ctx_train,
            )  # fmt: skip
        template = template_for(role.prompt, model.chat_template, _compiler(model), recipe.folder, str(model.path))
        placement = resolved_placement(files, placed.on_gpu, placed.mmap, recipe.context)
        loaded = LoadedRole(role, placement, model, template, self._adapter(files, progress), placed.load.estimate)
        choice = choose(find(model, self._question(recipe, files), loaded.open), recipe.exact)
        placement = replace(placement, flash_attention=choice.way.flash)
        return replace(loaded, placement=placement, exactness=choice)

    def close(self) -> None:
        self._cleanup.close()


def _load_model(files: RoleFiles, placed: Placed, progress: Callable[[float], bool]) -> Model:
    return Model.load(
        files.model,
        n_gpu_layers=placed.on_gpu,
        split=placed.layers,
        mmap=placed.mmap,
        mlock=files.placement.mlock,
        trusted=is_bundled(files.model),
        progress=progress,
    )


def _warn_of_copies(files_by_role: Mapping[str, RoleFiles]) -> None:
    """Warn where roles name the same file but place it differently: each place gets its own copy of the weights."""
    copies: dict[Path, dict[Hashable, str]] = {}
    for name, files in files_by_role.items():
        copies.setdefault(files.model.resolve(), {}).setdefault(files.weights, name)
    for path, names in copies.items():
        if len(names) > 1:
            log.warning(
                "%s is loaded %d times, as %s place it differently: give them the same offload, mmap and mlock",
                path.name, len(names), " and ".join(names.values()),
            )  # fmt: skip


def _compiler(model: Model) -> Callable[[str], Template]:
    vocabulary = model.vocabulary
    return lambda source: ChatTemplate(
        source, bos=vocabulary.text(vocabulary.bos), eos=vocabulary.text(vocabulary.eos), origin=model.path.name
    )


def exactness(roles: Mapping[str, LoadedRole]) -> str:
    """Return "yes" if an answer of these roles is the same alone and in company, or "no, because …"."""
    for name, loaded in roles.items():
        if loaded.exactness is None:
            return f"no, because {name} was not tried"
        if not loaded.is_exact:
            return f"no, because of {name}: {loaded.exactness.verdict.reason}"
    return "yes"


def warn_of_capped_logits(roles: Mapping[str, LoadedRole]) -> None:
    """Warn where logits are soft-capped in some roles only: their deltas are on another scale."""
    capped = {name for name, loaded in roles.items() if loaded.model.capabilities.caps_logits}
    if capped and capped != set(roles):
        log.warning("%s cap their logits and the other roles do not: deltas are on different scales", sorted(capped))


def warn_of_own_tokens(common: Common, ends: Ends, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Warn where a role has special tokens that are not the base's: no answer of the mixture holds them."""
    for name, difference in common.differences.items():
        own = [token for token in vocabularies[name].ends() if not common.has(token)]
        texts = vocabularies[name].texts() if own else []
        ending = " and ".join(repr(texts[token].decode("utf-8", "replace")) for token in own)
        notice(
            "%s has special tokens of its own: %s; these are never offered%s",
            name, difference, f", but {ending} ends the answer" if own and ends.token is not None else "",
        )  # fmt: skip
