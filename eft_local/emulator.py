"""The Emulator: a recipe's roles, loaded and ready to answer."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from eft_local import checks, memory
from eft_local.backends.llamacpp import Sampler
from eft_local.engine.cache import Slots
from eft_local.engine.ends import Ends
from eft_local.engine.loading import (
    Library,
    LoadedRole,
    LoadProgress,
    compared_roles,
    exactness,
    mixed_roles,
    warn_of_capped_logits,
    warn_of_own_tokens,
)
from eft_local.engine.mixture import MIXTURE, Mixture
from eft_local.engine.scoring import score
from eft_local.engine.speculative.drafters import DraftingSource
from eft_local.engine.step import Answer, Score, Step
from eft_local.engine.targets import roles_of, systems_of
from eft_local.engine.writing import Line, System, write
from eft_local.errors import BusyError, PromptError, RecipeError, UsageError
from eft_local.markup import verbatim
from eft_local.placement.survey import rows_at_once
from eft_local.prompts import conversation
from eft_local.recipe import Recipe
from eft_local.references import find_recipe
from eft_local.vocabulary import Common, common_tokens

Prompt = str | Sequence[Mapping[str, object]]
"""A bare string is one user turn; otherwise messages with `role` and `content`."""

_BATCH_ROWS = 64
"""Rows that the answers of a batch share: beyond them drafts gain little, and each is a buffer of logits."""


class Emulator:
    """Answers as the base would if it had been tuned as the experts were.

    One answer at a time; `cancel` alone may be called from another thread. Close it, or use it in a `with`.
    """

    def __init__(self, recipe: Recipe, roles: Mapping[str, LoadedRole], library: Library | None = None) -> None:
        """roles: what the formula needs, by name (see `mixed_roles`), loaded; or none: then each system gets its own
        when it is first asked.

        Raises: VocabularyMismatchError, OutOfMemoryError.
        """
        self._recipe = recipe
        self._library = library or Library()
        self._roles = dict(roles)
        self._mixed = tuple(mixed_roles(recipe))
        self._busy = threading.Lock()
        self._running: Slots | None = None
        self._written: Line | None = None
        self._common: dict[str, Common] = {}
        self._mixture: Mixture | None = None
        self._ends = Ends(None, {})
        self._slots: dict[str, Slots] = {}
        self._closed = False
        self._drafting = DraftingSource(self._roles)
        if roles:
            self._combine()
            memory.trim()

    @classmethod
    def load(
        cls,
        recipe: Recipe | str | Path,
        *,
        only: str | Iterable[str] = MIXTURE,
        progress: LoadProgress | None = None,
    ) -> Emulator:
        """Load a recipe, given itself, by name or by path.

        only: what is to answer (see `systems`), one or several; roles that they do without are not loaded.
        progress: called with a role's name and 0…1, by several threads; returning False cancels.
        Raises: RecipeError, UsageError, ModelNotFoundError, ModelFileError, UnsupportedModelError, PromptError,
            VocabularyMismatchError, OutOfMemoryError, Cancelled.
        """
        if not isinstance(recipe, Recipe):
            recipe = find_recipe(recipe)
        with ExitStack() as cleanup:
            emulator = cls(recipe, {})
            cleanup.callback(emulator.close)
            emulator.prepare(*((only,) if isinstance(only, str) else only), progress=progress)
            cleanup.pop_all()
        return emulator

    def prepare(self, *systems: str, progress: LoadProgress | None = None) -> None:
        """Load what systems need and is not loaded yet; asked unprepared, they do it themselves.

        progress, Raises: as `load`; BusyError.
        """
        names = dict.fromkeys(name for system in systems for name in roles_of(self._recipe, system))
        combined = MIXTURE in systems and self._mixture is None
        if not combined and self._roles.keys() >= names.keys():
            return
        named = mixed_roles(self._recipe) | compared_roles(self._recipe)
        roles = {name: named[name] for name in names}
        with self._held():
            loaded = self._library.load(self._recipe, roles, progress, combined=combined)
            self._roles |= {name: each for name, each in loaded.items() if name not in self._roles}
            if combined:
                self._combine()
            elif self._mixture is None:
                for name in names:
                    self._open_slots(name)
        memory.trim()

    def _combine(self) -> None:
        """Make the mixture of roles that are loaded."""
        roles = {name: self._role(name) for name in self._mixed}
        common = self._library.common or common_tokens({name: loaded.table for name, loaded in roles.items()})
        vocabularies = {name: loaded.vocabulary for name, loaded in roles.items()}
        self._ends = Ends.among(vocabularies, common, next(iter(self._recipe.experts)))
        warn_of_own_tokens(common, self._ends, vocabularies)
        warn_of_capped_logits(roles)
        for name in self._slots.keys() & roles.keys():  # from now on they share the mixture's
            self._slots.pop(name).close()
        self._open_slots(MIXTURE)
        self._common[MIXTURE] = common
        self._mixture = Mixture(common.width, common.hidden[common.hidden != self._ends.token], self._ends)

    @property
    def recipe(self) -> Recipe:
        """What is run. Assign a changed one (`emulator.recipe = emulator.recipe.replace(beta=1.2)`) and the next token
        obeys, also in the middle of an answer; changed prompts act from the next answer on.

        Raises: RecipeError if the change needs other models or contexts; PromptError.
        """
        return self._recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        if recipe.load_key() != self._recipe.load_key():
            raise RecipeError(
                "models, placement and context cannot change while they are loaded; use Emulator.load(recipe)"
            )
        named = mixed_roles(recipe) | compared_roles(recipe)
        prompted = {
            name: named[name] for name, loaded in self._roles.items() if named[name].prompt != loaded.role.prompt
        }
        self._roles |= self._library.load(recipe, prompted)
        self._recipe = recipe

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the mixture: base, antiexpert, the experts, and own antiexperts as `NAME.antiexpert`."""
        return self._mixed

    @property
    def exact(self) -> str:
        """Whether answers of the mixture are the same alone and in company, with drafts and without: "yes", or
        "no, because …".
        """
        return exactness({name: self._roles[name] for name in self._mixed if name in self._roles})

    @property
    def systems(self) -> tuple[str, ...]:
        """What `only` accepts."""
        return systems_of(self._recipe)

    def stream(
        self,
        messages_or_prompt: Prompt,
        *,
        only: str = MIXTURE,
        max_tokens: int | None = None,
        seed: int | None = None,
        top: int = 0,
        facts: bool = True,
        prefix: Sequence[int] = (),
    ) -> Iterator[Step]:
        """Write one answer, token by token; stop reading at any time.

        only: run one role alone (see `systems`). max_tokens, seed: in place of the recipe's.
        facts: what each role thinks of every token (`Step.logprob`, `roles`, `change`); top: so many candidates.
        prefix: token ids that the answer already has, to be continued.
        Raises: PromptError, UsageError, ContextOverflowError, EvaluationError, BusyError.
        """
        return self._steps(only, self._line(only, messages_or_prompt, max_tokens, seed, prefix, facts, top))

    def chat(
        self,
        messages_or_prompt: Prompt,
        *,
        only: str = MIXTURE,
        max_tokens: int | None = None,
        seed: int | None = None,
        top: int = 0,
        facts: bool = False,
        later: bool = False,
        prefix: Sequence[int] = (),
        on_step: Callable[[Step], None] | None = None,
    ) -> Answer:
        """Write one answer and return it whole; arguments and errors as in `stream`.

        on_step: called with each step as it is made; it has facts only if asked for. later: it has evidence in their
        place, which `facts.known` makes facts of while another thread writes on.
        """
        line = self._line(only, messages_or_prompt, max_tokens, seed, prefix, facts, top)
        line.later = later
        self._written = line
        for step in self._steps(only, line):
            if on_step:
                on_step(step)
        return line.answer()

    def generate(
        self,
        prompts: Iterable[Prompt],
        *,
        only: str = MIXTURE,
        max_tokens: int | None = None,
        seed: int | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
        parallel: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer many prompts, `parallel` of them side by side: one batch per role and step.

        Each gets what it would get alone (the same seed for all). prefixes: one per prompt.
        progress: called with the number of finished answers. After `cancel`, unfinished answers have the finish
        reason "cancelled". Raises: as `stream`.
        """
        prompts = list(prompts)
        if parallel < 1:
            raise UsageError(f"parallel = {parallel}: at least 1 answer must be written at a time")
        if prefixes is not None and len(prefixes) != len(prompts):
            raise UsageError(f"{len(prefixes)} prefixes were given for {len(prompts)} prompts")
        max_tokens = max_tokens or self._recipe.sampling.max_tokens  # the batch's contexts are sized by it
        lines = [
            self._line(only, prompt, max_tokens, seed, prefixes[index] if prefixes else ())
            for index, prompt in enumerate(prompts)
        ]
        if not lines:
            return []
        with self._answering(only, lines, min(parallel, len(lines))) as (slots, system):
            for line in lines:
                slots.check(line.sequences)
            finished = 0
            drafting = self._drafting.choose(self._recipe, system, slots)
            steps = write(
                slots, system, lines, lambda: self._recipe, parallel=min(parallel, len(lines)), drafting=drafting
            )
            for _, step in steps:
                if step.finish_reason:
                    finished += 1
                    if progress:
                        progress(finished)
        return [line.answer() for line in lines]

    def score(self, messages_or_prompt: Prompt, continuation: str, *, only: str = MIXTURE) -> Score:
        """Return how likely a given continuation is: verbatim, tokenised once without special tokens.

        Raises: PromptError, UsageError, ContextOverflowError, EvaluationError, BusyError, Cancelled.
        """
        line = self._line(only, messages_or_prompt, None, 0, ())
        checks.given_text("continuation", continuation)
        with self._answering(only) as (slots, system):
            tokens = _shared(continuation, self._common_of(only), [self._roles[name] for name in system.roles])
            return score(slots, system, line.prompts, tokens, self._recipe)

    @property
    def written(self) -> Answer | None:
        """The last answer of `chat`; while it is being written, as if it were stopped now. From any thread."""
        return self._written.answer() if self._written else None

    def cancel(self) -> None:
        """Stop what is running, soon, from any thread; the answer keeps its partial text."""
        running = self._running
        if running:
            running.abort()

    def close(self) -> None:
        """Free all contexts and models."""
        for slots in self._slots.values():
            slots.close()
        self._slots = {}
        self._closed = True
        self._library.close()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steps(self, only: str, line: Line) -> Iterator[Step]:
        with self._answering(only) as (slots, system):
            drafting = self._drafting.choose(self._recipe, system, slots)
            for _, step in write(slots, system, [line], lambda: self._recipe, drafting=drafting):
                yield step

    def _line(
        self,
        only: str,
        messages_or_prompt: Prompt,
        max_tokens: int | None,
        seed: int | None,
        prefix: Sequence[int],
        facts: bool = False,
        top: int = 0,
    ) -> Line:
        self._check_open()
        if max_tokens is not None and checks.given_integer("max_tokens", max_tokens) < 1:
            raise UsageError(f"max_tokens = {max_tokens}: at least 1 token must be asked for")
        messages = conversation(messages_or_prompt)
        self.prepare(only)
        prompts = {}
        for name in roles_of(self._recipe, only):
            prompts[name] = self._role(name).tokens(messages)
            if not prompts[name]:
                raise PromptError(f"the prompt of {name} is empty: its template rendered nothing; change it")
        seed = seed if seed is not None else self._recipe.sampling.seed
        return Line(
            prompts,
            seed=secrets.randbits(32) if seed is None else checks.given_integer("seed", seed),
            max_tokens=max_tokens,
            prefix=self._checked_prefix(only, prefix),
            facts=facts,
            top=top,
        )

    def _checked_prefix(self, only: str, prefix: Sequence[int]) -> tuple[int, ...]:
        """Return the prefix if all its tokens exist: llama.cpp ends the process at one that does not."""
        n_vocab = self._common_of(only).width
        tokens = tuple(checks.given_integer("a token of prefix", token) for token in prefix)
        for token in tokens:
            if not 0 <= token < n_vocab:
                raise UsageError(f"prefix holds the token {token}; the tokens of {only} are 0 … {n_vocab - 1}")
        return tokens

    def _role(self, name: str) -> LoadedRole:
        """A role that was prepared."""
        return self._roles[name]

    def _system(self, only: str) -> System:
        names = roles_of(self._recipe, only)
        loaded = {name: self._role(name) for name in names}
        # What the tuned model calls an end is an end; so is what the base does.
        speakers = [loaded[name] for name in names if name == "base" or name in self._recipe.experts] or [
            loaded[names[0]]
        ]
        end = self._ends.token if only == MIXTURE else None
        voice = speakers[-1] if only != MIXTURE else loaded[next(iter(self._recipe.experts))]
        if end is not None and not voice.vocabulary.is_eog(end):
            voice = loaded["base"]  # a grammar must know what ends the answer
        common = self._common_of(only)
        return System(
            roles=names,
            mixture=self._mixture if only == MIXTURE else None,
            vocabulary=voice.vocabulary,
            n_vocab=common.width,
            unused=common.hidden,
            scratch=np.empty(common.width, np.float32),
            ends=lambda token: token == end or any(speaker.vocabulary.is_eog(token) for speaker in speakers),
            exact=exactness(loaded),
            sampler=lambda sampling: Sampler(voice.vocabulary, sampling, common.width, self._recipe.context),
        )

    def _common_of(self, only: str) -> Common:
        """The ids that a system can be sampled from: of one role alone, all that its own model has."""
        name = only if only == MIXTURE else roles_of(self._recipe, only)[0]
        if name not in self._common:
            self._common[name] = common_tokens({"base": self._role(name).table})
        return self._common[name]

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the emulator is closed; load it again")

    @contextmanager
    def _answering(
        self, only: str, lines: Sequence[Line] | None = None, parallel: int = 1
    ) -> Iterator[tuple[Slots, System]]:
        """Hold the emulator for one call, with the contexts that it needs. Raises: BusyError."""
        with self._held():
            self._check_open()
            system = self._system(only)
            slots = self._own_slots(system) if lines is None else self._batch_slots(system, lines, parallel)
            self._running = slots
            slots.resume()
            try:
                yield slots, system
            finally:
                self._running = None
                if lines is not None:
                    slots.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the emulator. Raises: BusyError."""
        if not self._busy.acquire(blocking=False):
            raise BusyError("another answer is being written; close its stream, or wait, or load a second Emulator")
        try:
            yield
        finally:
            self._busy.release()

    def _own_slots(self, system: System) -> Slots:
        """The contexts that stay open from turn to turn."""
        name = MIXTURE if self._mixture and system.roles[0] in self._mixed else system.roles[0]
        if name in self._slots and self._slots[name].outputs < rows_at_once(self._recipe):  # drafts were switched on
            self._slots.pop(name).close()
        return self._open_slots(name)

    def _open_slots(self, name: str) -> Slots:
        """Return the contexts of the mixture, which its roles use alone, too; or of one role."""
        if name not in self._slots:
            roles = {role: self._role(role) for role in (self._mixed if name == MIXTURE else (name,))}
            self._slots[name] = Slots(roles, context=self._recipe.context, outputs=rows_at_once(self._recipe))
        return self._slots[name]

    def _batch_slots(self, system: System, lines: Sequence[Line], parallel: int) -> Slots:
        """Contexts for one batch, as large as its longest answer can get and no larger."""
        limit = self._recipe.context

        def longest(name: str) -> int:
            return max(
                min(limit, len(line.prompts[name]) + len(line.prefix) + (line.max_tokens or limit)) for line in lines
            )

        return Slots(
            {name: self._role(name) for name in system.roles},
            context=limit,
            slots=parallel,
            longest={name: longest(name) for name in system.roles},
            outputs=_batch_rows(self._recipe, parallel),
        )


def _shared(text: str, common: Common, roles: Sequence[LoadedRole]) -> list[int]:
    """Return a text in tokens that all roles have: where one cuts it with tokens of its own, as another one does."""
    for loaded in (roles[-1], *roles):
        tokens = verbatim(loaded.vocabulary, text)
        if all(map(common.has, tokens)):
            return tokens
    raise UsageError(f"continuation = {checks.shown(text)} holds special tokens that not all models have")


def _batch_rows(recipe: Recipe, parallel: int) -> int:
    """Rows of logits that each answer of a batch may need at once; "auto" gets by with less where there are many."""
    if recipe.draft == "off":
        return 1
    rows = rows_at_once(recipe)
    return rows if recipe.draft != "auto" else min(rows, max(4, _BATCH_ROWS // parallel))
