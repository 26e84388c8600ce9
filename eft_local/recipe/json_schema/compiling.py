"""From the text of a schema to the grammar that enforces it."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from eft_local.recipe.json_schema.guidance import grammar, one_line
from eft_local.recipe.json_schema.refusals import refused
from eft_local.recipe.json_schema.rewriting import Rewriting

_COMPLAINTS = {
    "oneOf": "oneOf cannot be enforced where a value may match several of its schemas; use anyOf, or let them differ "
    "in type or in a required const",
    "patternProperty": "patternProperties cannot be enforced where a key may match several of its patterns; let the "
    "patterns differ",
    "min/maxProperties": "minProperties and maxProperties cannot be enforced beside properties that are not required; "
    "remove them, or name those in required",
    "'multipleOf'": "multipleOf has a number that cannot be enforced; use one with fewer digits",
    "Unsatisfiable": "nothing matches it; correct it",
    "NoExtension": "nothing matches it, or nothing that can be written; correct it",
}
"""What llguidance complains of, by a word of its own, and what is said instead."""


@lru_cache(maxsize=32)
def compiled(schema: str) -> str:
    """Return llguidance's grammar for a JSON schema (text), a value that is JSON on one line.

    Raises: RecipeError naming the keyword that cannot be enforced, or what is no JSON schema, and where it stands.
    """
    try:
        found = grammar(Rewriting(_parsed(schema)).whole())
    except RecursionError:
        raise refused("it is nested too deeply; simplify it") from None
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    # A vocabulary of single bytes shows what every vocabulary would: limits, and schemas that nothing matches.
    matcher = LLMatcher(LLTokenizer("byte"), found, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()
        if not matcher.is_error():
            return found
    complaint = one_line(matcher.get_error())
    for sign, said in _COMPLAINTS.items():
        if sign in complaint:
            raise refused(f"{said}")
    raise refused(f"{complaint}; remove that, or simplify it")


def _parsed(text: str) -> Any:
    def refuse(word: str) -> float:
        raise refused(f"{word} is not a number of JSON; correct it")

    def number(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refuse(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except ValueError as error:
        raise refused(f"it is not JSON ({error}); correct it") from None
