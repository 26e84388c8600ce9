"""Regular expressions and formats: JSON Schema has JavaScript's, llguidance has Rust's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from eft_local.recipe.json_schema.guidance import grammar, one_line
from eft_local.recipe.json_schema.refusals import as_json, refused, wrong

_SPACES = r"[\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}]"
_ESCAPES = {r"\s": _SPACES, r"\S": _SPACES.replace("[", "[^", 1)}
_DOT = r"[^\n\r\u{2028}\u{2029}]"

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
FORMATS: Mapping[str, str | None] = {
    # llguidance takes any 29 February and a leap second at any hour.
    "date": f"^(?:{_LEAP_YEAR}-02-29|[0-9]{{4}}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{{2}}))$",
    "date-time": f"^(?:{_LEAP_YEAR}-02-29|[0-9]{{4}}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{{2}}))"
    "[tT][0-9]{2}:[0-9]{2}:[0-5]",
    "time": "^[0-9]{2}:[0-9]{2}:[0-5]",
    "duration": None,
    "email": None,
    "ipv4": None,
    "ipv6": None,
    "uri": None,
    "uuid": None,
}
"""The formats that are enforced, with a pattern that must match as well."""


def read_format(name: Any, at: str) -> str:
    if not isinstance(name, str) or name not in FORMATS:
        raise refused(f"format {as_json(name)} at {at} cannot be enforced; use {', '.join(FORMATS)}, or remove it")
    return name


@lru_cache(maxsize=256)
def read_pattern(pattern: str, at: str) -> str:
    """Return a regular expression of ECMA-262 as llguidance must be given it. Raises: RecipeError."""
    from llguidance import LLMatcher

    written = _dialect(pattern, at) if isinstance(pattern, str) else None
    if written is None:
        raise wrong(at, pattern, "a regular expression")
    complaint = LLMatcher.validate_grammar(grammar({"type": "string", "pattern": written}))
    if complaint and "Unsatisfiable" not in complaint:
        raise refused(f"{at} is {as_json(pattern)}: {one_line(complaint)}; write it without that")
    return written


def _dialect(pattern: str, at: str) -> str:
    """Say in the words of Rust's regular expressions what a pattern says in JavaScript's."""
    written, within, start = [], False, False
    for part in re.findall(r"\\.|\[\^?|.", pattern, re.DOTALL):
        if within and start and part == "]":
            raise refused(f"{at} has an empty [], which is not supported; write it otherwise")
        start = False
        if part[0] == "\\":
            if part[1:].isalpha() and part[1] not in "dDwWsStnrfvxupPbBck":
                raise refused(f"{at} has {part}, which JavaScript's expressions lack; write it otherwise")
            written.append(_ESCAPES.get(part, part))
        elif not within:
            within = start = part[0] == "["
            written.append(_DOT if part == "." else part)
        elif part == "]":
            within = False
            written.append(part)
        elif part == "-" and written[-1] == "-":
            raise refused(f"{at} has -- within [], which is not supported; write it otherwise")
        else:  # Rust joins and subtracts classes with these
            written += [f"\\{sign}" if sign in "[&~" else sign for sign in part]
    found = "".join(written)
    if re.search(r"(?<!\\)\{,", found):
        raise refused(f"{at} has {{,, which is not supported; write {{0,")
    return found
