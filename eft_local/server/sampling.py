"""From a request's fields to the recipe that its answer obeys."""

from __future__ import annotations

import json
from typing import Any

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from eft_local.errors import UsageError
from eft_local.recipe import Recipe
from eft_local.recipe.sampling import LARK
from eft_local.server.schema import ResponseFormat, Sampled

GREEDY_BELOW = 1e-6
"""A temperature under it is 0: quotients of logits would not be finite."""

_NAMED = ("temperature", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
          "frequency_penalty", "logit_bias")  # fmt: skip
_MIXED = ("beta", "conservative_filter", "plausibility_mask", "plausibility_top_p", "draft", "alpha")


def changed(recipe: Recipe, request: Sampled, **more: Any) -> Recipe:
    """Return a recipe as a request changes it. more: further changes, which win. Raises: RecipeError, UsageError."""
    changes = {name: getattr(request, name) for name in (*_NAMED, *_MIXED)}
    changes["top_p"] = None if request.top_p is None else max(request.top_p, 1e-9)  # of 0 the likeliest token is left
    if request.stop is not None:
        changes["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.grammar is not None:
        changes["grammar"] = lark(request.grammar)
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes.get("temperature", 1) < GREEDY_BELOW:
        changes["temperature"] = 0
    if ("presence_penalty" in changes or "frequency_penalty" in changes) and "repeat_last_n" not in changes:
        changes["repeat_last_n"] = -1  # OpenAI's penalties look at the whole answer
    changes |= more
    return recipe.replace(**changes) if changes else recipe


def seed_of(request: Sampled, index: int) -> int | None:
    """Return the seed of the answer with this index; None where one is drawn."""
    if request.seed is None or request.seed < 0:
        return None
    return (request.seed + index) % 2**63


def constraint(form: ResponseFormat | None) -> dict[str, str]:
    """Return what an answer's format changes in a recipe. Raises: UsageError."""
    if form is None or form.type == "text":
        return {}
    schema: object = {"type": "object"} if form.schema_ is None else form.schema_
    if form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise UsageError("response_format.json_schema.schema is missing; send the schema, or type json_object")
        schema = form.json_schema.schema_
    return {"json_schema": bounded_json("response_format", schema)}


def bounded_json(what: str, schema: object) -> str:
    """Return a schema as text. Raises: UsageError for one that is too large or too deep."""
    try:
        text = json.dumps(schema, ensure_ascii=False)
    except RecursionError:
        raise UsageError(f"{what}: the schema is nested too deeply; simplify it") from None
    if len(text) > MAX_SCHEMA:
        raise UsageError(f"{what}: the schema has {len(text)} characters; at most {MAX_SCHEMA} are taken")
    return text


MAX_SCHEMA = 1 << 16


def lark(grammar: str) -> str:
    """Return a grammar in Lark, which llguidance enforces within limits: llama.cpp's own may take all memory.

    grammar: GBNF, or Lark that begins with %llguidance. Raises: UsageError.
    """
    if grammar.lstrip().startswith(LARK):
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except (GbnfToLarkError, ValueError, IndexError, KeyError, RecursionError) as error:
        complaint = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UsageError(f"the grammar is not GBNF that can be read: {complaint[:200]}; correct it") from None
