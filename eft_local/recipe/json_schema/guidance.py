"""llguidance: a schema in, a grammar or a complaint out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eft_local.recipe.json_schema.refusals import refused

_OPTIONS: Any = {
    # JSON on one line. A weak model can write white space for ever where more of it is allowed.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # Without \u: llguidance would let "\u0061" pass as a key that is not "a".
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}


def grammar(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        # llguidance reads the schema as text: lone surrogates and nesting beyond its limit end here.
        return LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False), overrides=_OPTIONS)
    except ValueError as error:
        raise refused(f"{one_line(str(error))}; simplify it") from None


def one_line(complaint: str) -> str:
    """Return what llguidance says without its drawings of regular expressions and states."""
    complaint = complaint.partition("<non-verbose/>")[0].partition("<backtrace>")[0].removeprefix("Parser Error: ")
    _, error, reason = complaint.rpartition("error: ")
    return " ".join((reason if error else complaint).split())[:200].rstrip(".")
