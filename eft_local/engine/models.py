"""The models of a recipe that are loaded, who can answer with them, and what is requested of them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from eft_local.backends.tokenize import tokenize_text, verbatim
from eft_local.engine.cache import check_room
from eft_local.engine.loading import Library, LoadedRole, LoadProgress, compared_roles, mixed_roles
from eft_local.engine.request import Options, Record, Request
from eft_local.engine.targets import Target, make_mixture, make_single, roles_of
from eft_local.errors import PromptError, RecipeError, UsageError, shown
from eft_local.prompts.render import conversation
from eft_local.prompts.task import TaskPrompt
from eft_local.recipe import Recipe, checks
from eft_local.recipe.names import MIXTURE

Messages = str | Sequence[Mapping[str, object]]
"""One conversation: messages with `role` and `content`; a bare string is one user turn."""
Text = str | Sequence[int]
"""A raw prompt: text as every role shall read it, without a template, or token ids."""


class Models:
    """The roles of a recipe that are loaded, or that are when they are first needed. Any thread may use them."""

    def __init__(
        self,
        recipe: Recipe,
        roles: Mapping[str, LoadedRole],
        library: Library | None = None,
        on_load: Callable[[Recipe, Mapping[str, LoadedRole]], None] = lambda recipe, roles: None,
    ) -> None:
        """roles: by name, already loaded. on_load: called with the recipe and what was loaded.

        Raises: VocabularyMismatchError.
        """
        self.recipe = recipe
        self.roles = dict(roles)
        self._library = library or Library()
        self._shares_library = library is not None
        self._on_load = on_load
        self._targets: dict[str, Target] = {}
        self._prompted: dict[str, LoadedRole] = {}  # with the prompt of the last recipe that had another one
        self._lock = threading.RLock()
        self._closed = False
        if roles:
            self.target(MIXTURE)

    def prepare(self, targets: Sequence[str], progress: LoadProgress | None = None) -> None:
        """Load what targets need and is not loaded yet. progress, Raises: as `Emulator.load`."""
        if self._closed:
            raise UsageError("the emulator is closed; load it again")
        if self._missing(targets):
            with self._lock:
                self._load(targets, progress)

    def _missing(self, targets: Sequence[str]) -> bool:
        return any(self._names([target]) - self.roles.keys() for target in targets) or (
            MIXTURE in targets and MIXTURE not in self._targets
        )

    def _load(self, targets: Sequence[str], progress: LoadProgress | None) -> None:
        named = mixed_roles(self.recipe) | compared_roles(self.recipe)
        names = [name for name in named if name in self._names(targets)]
        combined = MIXTURE in targets
        loaded = self._library.load(self.recipe, {name: named[name] for name in names}, progress, combined=combined)
        self.roles |= {name: each for name, each in loaded.items() if name not in self.roles}
        if combined and MIXTURE not in self._targets:
            mixed = {name: self.roles[name] for name in mixed_roles(self.recipe)}
            self._targets[MIXTURE] = make_mixture(self.recipe, mixed, self._library.common)
        self._on_load(self.recipe, {name: self.roles[name] for name in names})

    def adopt(self, recipe: Recipe) -> None:
        """Take another recipe of the same models for the default. Raises: RecipeError, PromptError."""
        with self._lock:
            self._check(recipe)
            self.roles |= {name: self._with_prompt_of(recipe, name) for name in self.roles}
            self.recipe = recipe

    def _check(self, recipe: Recipe) -> None:
        if recipe is not self.recipe and recipe.load_key() != self.recipe.load_key():
            raise RecipeError(
                "models, placement and context cannot change while they are loaded; use Emulator.load(recipe)"
            )

    def target(self, name: str) -> Target:
        """Return who answers, by name; its roles must be loaded. Raises: UsageError, VocabularyMismatchError."""
        names = roles_of(self.recipe, name)
        key = name if name == MIXTURE else names[0]
        if key not in self._targets:
            roles = {each: self.roles[each] for each in names}
            self._targets[key] = (
                make_mixture(self.recipe, roles)
                if key == MIXTURE
                else make_single(key, roles[key], self.recipe.context)
            )
        return self._targets[key]

    def request(
        self,
        prompt: Messages | Text | TaskPrompt,
        options: Options,
        prefix: Sequence[int] = (),
        *,
        raw: bool = False,
        record: Record | None = None,
        followed: bool = False,
        given: Text | None = None,
        outputs: int = 0,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Request:
        """Return a request that the engine can run, with each role's prompt; what it needs is loaded.

        raw: whether `prompt` is `Text`, not `Messages`.  given: an answer that is to be scored, text or token ids.
        tools: functions that chat templates are to describe, in OpenAI's form; templates that know none leave them out.
        options, and the others: see `Options` and `Request`.
        Raises: PromptError, UsageError, RecipeError, ContextOverflowError, and what `Emulator.load` raises.
        """
        target = options.get("target", MIXTURE)
        self.prepare([target])
        max_tokens = options.get("max_tokens")
        if max_tokens is not None and checks.given_integer("max_tokens", max_tokens) < 1:
            raise UsageError(f"max_tokens = {max_tokens}: at least 1 token is needed")
        with self._lock:
            who = self.target(target)
            recipe = self._changed(options)
            self._check(recipe)
            roles = {name: self._with_prompt_of(recipe, name) for name in who.roles}
            prompts = _texts(prompt, who, roles) if raw else _turns(prompt, roles, tools)
        for name, tokens in prompts.items():
            if not tokens:
                raise PromptError(f"the prompt of {name} is empty: its template rendered nothing; change it")
        seed = options.get("seed")
        seed = seed if seed is not None else recipe.sampling.seed
        statistics, top = options.get("statistics", False), options.get("top", 0)
        request = Request(
            who,
            prompts,
            recipe,
            seed=secrets.randbits(32) if seed is None else checks.given_integer("seed", seed),
            prefix=_checked_tokens("prefix", prefix, target, who),
            max_tokens=max_tokens,
            record=record or ("statistics" if statistics or top else "nothing"),
            top=top,
            followed=followed,
            given=None if given is None else _given(given, target, who, roles),
            outputs=outputs,
        )
        check_room(request.texts, self.recipe.context, after=len(request.given) - 1 if request.given else 0)
        return request

    def close(self) -> None:
        """Free the models, unless their library is shared; nothing is loaded any more."""
        with self._lock:
            self._closed = True
            if not self._shares_library:
                self._library.close()

    def _names(self, targets: Sequence[str]) -> set[str]:
        return {name for target in targets for name in roles_of(self.recipe, target)}

    def _changed(self, options: Options) -> Recipe:
        recipe = options.get("recipe") or self.recipe
        changes = {"sampling": options.get("sampling"), "alpha": options.get("alpha"), "beta": options.get("beta")}
        given = {key: value for key, value in changes.items() if value is not None}
        return recipe.replace(**given) if given else recipe

    def _with_prompt_of(self, recipe: Recipe, name: str) -> LoadedRole:
        """Return a role with the prompt that it has in a recipe of the same models."""
        loaded = self.roles[name]
        if recipe is self.recipe:
            return loaded
        wanted = (mixed_roles(recipe) | compared_roles(recipe))[name]
        for each in (loaded, self._prompted.get(name)):
            if each is not None and each.role.prompt == wanted.prompt:
                return each
        self._prompted[name] = self._library.load(recipe, {name: wanted})[name]
        return self._prompted[name]


def _texts(prompt: object, target: Target, roles: Mapping[str, LoadedRole]) -> dict[str, list[int]]:
    """Return a raw prompt as every role reads it."""
    if isinstance(prompt, str):
        checks.given_text("prompt", prompt)
        return {name: tokenize_text(role.vocabulary, prompt, add_special=True) for name, role in roles.items()}
    tokens = _checked_tokens("the prompt", prompt, next(iter(roles)), target)
    return {name: list(tokens) for name in roles}


def _turns(
    prompt: Messages | Text | TaskPrompt, roles: Mapping[str, LoadedRole], tools: Sequence[Mapping[str, Any]]
) -> dict[str, list[int]]:
    """Return a conversation, or a benchmark's prompt, as each role reads it. Raises: PromptError."""
    if isinstance(prompt, TaskPrompt):
        return {name: role.task_tokens(prompt) for name, role in roles.items()}
    messages = conversation(prompt)  # type: ignore[arg-type]  # anything: it is checked
    return {name: role.tokens(messages, tools) for name, role in roles.items()}


def _checked_tokens(what: str, given: object, name: str, target: Target) -> tuple[int, ...]:
    """Return token ids if all exist: llama.cpp ends the process at one that does not. Raises: UsageError."""
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise UsageError(f"{what} = {shown(given)}: a sequence of token ids is needed")
    tokens = tuple(checks.given_integer(f"a token of {what}", token) for token in given)
    for token in tokens:
        if not 0 <= token < target.n_vocab:
            raise UsageError(f"{what} holds the token {token}; the tokens of {name} are 0 … {target.n_vocab - 1}")
    return tokens


def _given(answer: Text, name: str, target: Target, roles: Mapping[str, LoadedRole]) -> Sequence[int]:
    """Return the tokens of an answer that is scored, which all roles must have. Raises: UsageError."""
    if isinstance(answer, str):
        checks.given_text("continuation", answer)
        return _shared(answer, target, roles)
    tokens = _checked_tokens("the continuation", answer, name, target)
    strange = [token for token in tokens if not target.common.has(token)]
    if strange:
        raise UsageError(f"the continuation holds the token {strange[0]}, which not all models have")
    return tokens


def _shared(text: str, target: Target, roles: Mapping[str, LoadedRole]) -> list[int]:
    """Return a text in tokens that all roles have: where one cuts it with tokens of its own, as another one does."""
    vocabularies = [role.vocabulary for role in roles.values()]
    for vocabulary in (vocabularies[-1], *vocabularies):
        tokens = verbatim(vocabulary, text)
        if all(map(target.common.has, tokens)):
            return tokens
    raise UsageError(f"continuation = {shown(text)} holds special tokens that not all models have")


def is_several(prompt: object) -> TypeGuard[list[Messages]]:
    """Whether a prompt is a list of prompts: of texts or lists, while one prompt is a text or lists messages or ids."""
    return isinstance(prompt, list | tuple) and all(isinstance(each, str | Sequence) for each in prompt)
