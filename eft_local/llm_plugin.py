"""A plugin of `llm` (https://llm.datasette.io): every recipe is a model, as in `llm -m eft/demo "…"`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import llm
from pydantic import Field

from eft_local.hub.references import find_recipe, recipe_names

if TYPE_CHECKING:
    from eft_local.emulator import Emulator


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Register a model for each recipe."""
    for name in recipe_names():
        register(RecipeModel(name))


@lru_cache(maxsize=1)
def _emulator(name: str) -> Emulator:
    """Return a recipe's emulator, loaded once for a process."""
    from eft_local.emulator import Emulator

    return Emulator.load(name)


class RecipeModel(llm.Model):
    """A recipe's mixture."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """What can be set by `-o NAME VALUE`; the recipe has the defaults."""

        alpha: float | None = Field(default=None, description="Strength of what tuning changed; 0 is the base alone")
        beta: float | None = Field(default=None, description="Strength of what scale knows")
        temperature: float | None = Field(default=None, ge=0, description="0 is greedy")
        top_p: float | None = Field(default=None, gt=0, le=1, description="The smallest set of this mass")
        max_tokens: int | None = Field(default=None, ge=1, description="The longest answer")
        seed: int | None = Field(default=None, ge=0, description="Reproduces an answer")
        target: str | None = Field(default=None, description="Who answers: eft, or one role alone")

    def __init__(self, recipe: str) -> None:
        self.model_id = f"eft/{recipe}"
        self._recipe = recipe

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Answer a prompt. Raises: llm.ModelError."""
        from eft_local.errors import EftError

        options = prompt.options.model_dump(exclude_none=True)
        sampling: dict[str, Any] = {name: options.pop(name) for name in ("temperature", "top_p") if name in options}
        if prompt.schema:
            sampling["json_schema"] = json.dumps(prompt.schema)
        try:
            recipe = find_recipe(self._recipe).replace(**sampling)
            steps = _emulator(self._recipe).stream_chat(_messages(prompt, conversation), recipe=recipe, **options)
            yield from (step.text for step in steps)
        except EftError as error:
            raise llm.ModelError(str(error)) from None


def _messages(prompt: llm.Prompt, conversation: llm.Conversation | None) -> list[dict[str, Any]]:
    """Return a prompt with the turns before it; the system text is the last one that was given."""
    turns: list[dict[str, Any]] = []
    system = prompt.system
    for earlier in conversation.responses if conversation else ():
        system = system or earlier.prompt.system
        turns += [
            {"role": "user", "content": earlier.prompt.prompt},
            {"role": "assistant", "content": cast(llm.Response, earlier).text()},
        ]
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *turns, {"role": "user", "content": prompt.prompt}]
