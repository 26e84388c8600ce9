"""JSON schemas that an answer must match: what llguidance enforces token by token, and what is refused.

llguidance follows draft 2020-12 and raises for most of what it does not implement, but not for all: keywords of other
drafts, keys that repeat, regular expressions of another dialect, calendars. A schema is therefore written anew first,
with nothing in it but keywords that are enforced to the letter. Annotations and unknown words are left out, as JSON
Schema has it; every other keyword is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from eft_local.errors import RecipeError

Schema = Mapping[str, Any] | bool

REFUSED = frozenset(
    """not if contains propertyNames dependentRequired dependentSchemas dependencies unevaluatedItems
    unevaluatedProperties $dynamicRef $recursiveRef extends disallow divisibleBy""".split()
)
"""Keywords that restrict a value in a way that cannot be enforced while it is written. uniqueItems is one as well."""

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

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# llguidance compares float64, and reads those exactly that are one product or quotient of exact numbers.
_EXACT, _DIGITS, _SHIFT = 2**53, 15, 22
_LARGEST_COUNT = 2**31 - 1
_LARGEST_MULTIPLE = 2**32  # llguidance's least common multiples are 32 bits wide
_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")  # JSON writes them as \uXXXX only
_SPACES = r"[\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}]"
_ESCAPES = {r"\s": _SPACES, r"\S": _SPACES.replace("[", "[^", 1)}
_DOT = r"[^\n\r\u{2028}\u{2029}]"


@lru_cache(maxsize=32)
def compiled(schema: str) -> str:
    """Return llguidance's grammar for a JSON schema (text), a value that is JSON on one line.

    Raises: RecipeError naming the keyword that cannot be enforced, or what is no JSON schema, and where it stands.
    """
    try:
        grammar = _compiled(_Rewriting(_parsed(schema)).whole())
    except RecursionError:
        raise _refused("it is nested too deeply; simplify it") from None
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    # A vocabulary of single bytes shows what every vocabulary would: limits, and schemas that nothing matches.
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()
        if not matcher.is_error():
            return grammar
    complaint = one_line(matcher.get_error())
    for sign, said in _COMPLAINTS.items():
        if sign in complaint:
            raise _refused(f"{said}")
    raise _refused(f"{complaint}; remove that, or simplify it")


def _parsed(text: str) -> Any:
    def refuse(word: str) -> float:
        raise _refused(f"{word} is not a number of JSON; correct it")

    def number(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refuse(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except ValueError as error:
        raise _refused(f"it is not JSON ({error}); correct it") from None


def _compiled(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        # llguidance reads the schema as text: lone surrogates and nesting beyond its limit end here.
        return LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False), overrides=_OPTIONS)
    except ValueError as error:
        raise _refused(f"{one_line(str(error))}; simplify it") from None


def one_line(complaint: str) -> str:
    """Return what llguidance says without its drawings of regular expressions and states."""
    complaint = complaint.partition("<non-verbose/>")[0].partition("<backtrace>")[0].removeprefix("Parser Error: ")
    _, error, reason = complaint.rpartition("error: ")
    return " ".join((reason if error else complaint).split())[:200].rstrip(".")


class _Rewriting:
    """One schema, written anew with enforced keywords alone; what $ref names is gathered under $defs."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._definitions: dict[str, dict[str, Any] | bool] = {}
        self._names: dict[str, str] = {}
        self._multiples: set[Fraction] = set()
        self._bounds: set[tuple[str, float | int]] = set()

    def whole(self) -> dict[str, Any]:
        """Return the rewritten schema. Raises: RecipeError."""
        schema = self._schema(self._root, "#")
        self._check_bounds()
        if schema is False:
            raise _refused("false allows nothing; give a schema that something matches")
        return {"$defs": self._definitions} | ({} if schema is True else schema)

    def _schema(self, schema: Any, at: str) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _wrong(at, schema, "a schema (an object, true or false)")
        for keyword in schema:
            if keyword in REFUSED or (keyword == "uniqueItems" and schema[keyword] is not False):
                raise _refused(f"{keyword} at {at} cannot be enforced while an answer is written; remove it")
        if "$id" in schema and at != "#":
            raise _refused(f"$id at {at} names another base for $ref, which is not supported; remove it")
        schema = _with_old_words(schema, at)
        # llguidance goes from left to right: what restricts a value by itself comes before what refers to others.
        known = [keyword for keyword in _KEYWORDS if keyword in schema]
        written = {keyword: _KEYWORDS[keyword](self, schema[keyword], f"{at}/{_segment(keyword)}") for keyword in known}
        self._check_properties(written, at)
        if isinstance(pattern := FORMATS.get(written.get("format", "")), str):
            written["allOf"] = [*written.get("allOf", ()), {"pattern": pattern}]
        return written

    def _bound(self, value: Any, at: str) -> float | int:
        number = _number(value, at)
        self._bounds.add((at.rpartition("/")[2], number))
        return number

    def _check_bounds(self) -> None:
        """Refuse the one kind of range of which llguidance lets the open end in: within one of two whole numbers."""
        for keyword, end in self._bounds:
            # Bounds of several schemas may meet in one, so wherever these stand.
            side = {"exclusiveMinimum": 1, "exclusiveMaximum": -1}.get(keyword, 0)
            if side and end == int(end) and side * end >= 0:
                for other in (number for name, number in self._bounds if ("ax" if side > 0 else "in") in name):
                    if 0 < side * (other - end) < 1:
                        raise _refused(
                            f"{keyword} {end} cannot be enforced up to {other}; "
                            f"use {keyword[9:].lower()} with the first number that is allowed"
                        )

    def _check_properties(self, schema: Mapping[str, Any], at: str) -> None:
        """Refuse to count keys of a free choice: one that is written twice is one key."""
        free = schema.get("minProperties", 0) - len(set(schema.get("required", ())))
        if free > 1 and (schema.get("additionalProperties", True) is not False or "patternProperties" in schema):
            raise _refused(
                f"minProperties at {at} cannot be enforced, as a key may be written twice; name the keys "
                "in properties and required"
            )

    def _list(self, schemas: Any, at: str) -> list[dict[str, Any] | bool]:
        if not isinstance(schemas, list) or not schemas:
            raise _wrong(at, schemas, "a list of schemas")
        return [self._schema(schema, f"{at}/{i}") for i, schema in enumerate(schemas)]

    def _map(self, schemas: Any, at: str) -> dict[str, dict[str, Any] | bool]:
        if not isinstance(schemas, dict):
            raise _wrong(at, schemas, "an object of schemas")
        return {_name(key, at): self._schema(schema, f"{at}/{_segment(key)}") for key, schema in schemas.items()}

    def _patterns(self, schemas: Any, at: str) -> dict[str, dict[str, Any] | bool]:
        return {_pattern(key, at): schema for key, schema in self._map(schemas, at).items()}

    def _multiple_of(self, value: Any, at: str) -> float | int:
        number = _number(value, at)
        if number <= 0:
            raise _wrong(at, value, "a number above 0")
        self._multiples.add(Fraction(str(number)))
        if len(self._multiples) > 1:
            scale = math.lcm(*(each.denominator for each in self._multiples))
            if math.prod(int(each * scale) for each in self._multiples) >= _LARGEST_MULTIPLE:
                raise _refused(f"multipleOf at {at} is too much beside the others; remove it")
        return number

    def _reference(self, pointer: Any, at: str) -> str:
        """Return a reference to a definition of ours; define it where it is not yet."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _refused(
                f"$ref at {at} is {_shown(pointer)}; only references into this schema, as "
                '"#/$defs/NAME", can be followed'
            )
        if pointer not in self._names:
            name = self._names[pointer] = str(len(self._names))
            self._definitions[name] = self._schema(self._target(pointer, at), pointer)
        return f"#/$defs/{self._names[pointer]}"

    def _target(self, pointer: str, at: str) -> Any:
        target = self._root
        for segment in pointer.split("/")[1:]:
            key = unquote(segment).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise _refused(f"$ref at {at} is {_shown(pointer)}, and nothing is there; correct it")
            if isinstance(target, dict) and "$id" in target:
                raise _refused(f"$ref at {at} leads through an $id, which is not supported; remove it")
        return target


def _with_old_words(schema: dict[str, Any], at: str) -> dict[str, Any]:
    """Return a schema in the words of draft 2020-12, where older drafts say the same in others."""
    if isinstance(schema.get("items"), list):
        if "prefixItems" in schema:
            raise _wrong(f"{at}/items", schema["items"], "a schema beside prefixItems")
        schema = schema | {"prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
        if not schema["prefixItems"]:
            del schema["prefixItems"]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(strict := schema.get(exclusive), bool):
            schema = {keyword: value for keyword, value in schema.items() if keyword != exclusive}
            if strict and bound in schema:
                schema[exclusive] = schema.pop(bound)
    return schema


def _type(value: Any, at: str) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in _TYPES for name in names):
        raise _wrong(at, value, f"one of {', '.join(_TYPES)}, or a list of them")
    return names


def _number(value: Any, at: str) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(at, value, "a number")
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    if abs(value) > _EXACT or (isinstance(value, float) and (len(digits) > _DIGITS or abs(int(exponent)) > _SHIFT)):
        raise _refused(f"{at} is {value}, which has too many digits to be enforced; use a rounder number")
    return value


def _count(value: Any, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise _wrong(at, value, "a whole number of at least 0")
    if value > _LARGEST_COUNT:
        raise _refused(f"{at} is {value}; use {_LARGEST_COUNT} at most")
    return int(value)


def _required(value: Any, at: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(at, value, "a list of names")
    return [_name(name, at) for name in value]


def _name(name: str, at: str) -> str:
    if _UNWRITABLE.search(name):
        raise _refused(f"{at} holds a control character ({_shown(name)}), which cannot be written; remove it")
    return name


def _value(value: Any, at: str) -> Any:
    """Return a value of const or enum if it can be written."""
    if isinstance(value, str):
        return _name(value, at)
    if isinstance(value, dict):
        return {_name(key, at): _value(item, at) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item, at) for item in value]
    return value if value is None or isinstance(value, bool) else _number(value, at)


def _values(values: Any, at: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise _wrong(at, values, "a list of values")
    return [_value(value, f"{at}/{i}") for i, value in enumerate(values)]


def _format(name: Any, at: str) -> str:
    if not isinstance(name, str) or name not in FORMATS:
        raise _refused(f"format {_shown(name)} at {at} cannot be enforced; use {', '.join(FORMATS)}, or remove it")
    return name


@lru_cache(maxsize=256)
def _pattern(pattern: str, at: str) -> str:
    """Return a regular expression of ECMA-262 as llguidance must be given it. Raises: RecipeError."""
    from llguidance import LLMatcher

    written = _dialect(pattern, at) if isinstance(pattern, str) else None
    if written is None:
        raise _wrong(at, pattern, "a regular expression")
    complaint = LLMatcher.validate_grammar(_compiled({"type": "string", "pattern": written}))
    if complaint and "Unsatisfiable" not in complaint:
        raise _refused(f"{at} is {_shown(pattern)}: {one_line(complaint)}; write it without that")
    return written


def _dialect(pattern: str, at: str) -> str:
    """Say in the words of Rust's regular expressions what a pattern says in JavaScript's."""
    written, within, start = [], False, False
    for part in re.findall(r"\\.|\[\^?|.", pattern, re.DOTALL):
        if within and start and part == "]":
            raise _refused(f"{at} has an empty [], which is not supported; write it otherwise")
        start = False
        if part[0] == "\\":
            if part[1:].isalpha() and part[1] not in "dDwWsStnrfvxupPbBck":
                raise _refused(f"{at} has {part}, which JavaScript's expressions lack; write it otherwise")
            written.append(_ESCAPES.get(part, part))
        elif not within:
            within = start = part[0] == "["
            written.append(_DOT if part == "." else part)
        elif part == "]":
            within = False
            written.append(part)
        elif part == "-" and written[-1] == "-":
            raise _refused(f"{at} has -- within [], which is not supported; write it otherwise")
        else:  # Rust joins and subtracts classes with these
            written += [f"\\{sign}" if sign in "[&~" else sign for sign in part]
    found = "".join(written)
    if re.search(r"(?<!\\)\{,", found):
        raise _refused(f"{at} has {{,, which is not supported; write {{0,")
    return found


_KEYWORDS: Mapping[str, Callable[[_Rewriting, Any, str], Any]] = {
    "type": lambda _, value, at: _type(value, at),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Rewriting._bound),
    "multipleOf": _Rewriting._multiple_of,
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        lambda _, value, at: _count(value, at),
    ),
    "pattern": lambda _, value, at: _pattern(value, at),
    "format": lambda _, value, at: _format(value, at),
    "prefixItems": _Rewriting._list,
    "items": _Rewriting._schema,
    "properties": _Rewriting._map,
    "patternProperties": _Rewriting._patterns,
    "additionalProperties": _Rewriting._schema,
    "required": lambda _, value, at: _required(value, at),
    "const": lambda _, value, at: _value(value, at),
    "enum": lambda _, value, at: _values(value, at),
    "$ref": _Rewriting._reference,
    "allOf": _Rewriting._list,
    "anyOf": _Rewriting._list,
    "oneOf": _Rewriting._list,
}
"""What is enforced, in the order in which llguidance shall read it, and how each value is written."""


def _segment(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _refused(why: str) -> RecipeError:
    return RecipeError(f"json_schema: {why}")


def _wrong(at: str, value: Any, need: str) -> RecipeError:
    return _refused(f"{at} is {_shown(value)}, not {need}; correct it")
