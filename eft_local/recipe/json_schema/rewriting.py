"""A schema written anew, with nothing in it but keywords that are enforced to the letter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from eft_local.recipe.json_schema.patterns import FORMATS, read_format, read_pattern
from eft_local.recipe.json_schema.refusals import as_json, refused, wrong
from eft_local.recipe.json_schema.values import (
    read_count,
    read_name,
    read_number,
    read_required,
    read_types,
    read_value,
    read_values,
)

REFUSED = frozenset(
    """not if contains propertyNames dependentRequired dependentSchemas dependencies unevaluatedItems
    unevaluatedProperties $dynamicRef $recursiveRef extends disallow divisibleBy""".split()
)
"""Keywords that restrict a value in a way that cannot be enforced while it is written. uniqueItems is one as well."""

_LARGEST_MULTIPLE = 2**32  # llguidance's least common multiples are 32 bits wide


class Rewriting:
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
            raise refused("false allows nothing; give a schema that something matches")
        return {"$defs": self._definitions} | ({} if schema is True else schema)

    def _schema(self, schema: Any, at: str) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise wrong(at, schema, "a schema (an object, true or false)")
        for keyword in schema:
            if keyword in REFUSED or (keyword == "uniqueItems" and schema[keyword] is not False):
                raise refused(f"{keyword} at {at} cannot be enforced while an answer is written; remove it")
        if "$id" in schema and at != "#":
            raise refused(f"$id at {at} names another base for $ref, which is not supported; remove it")
        schema = _with_old_words(schema, at)
        # llguidance goes from left to right: what restricts a value by itself comes before what refers to others.
        supported = [keyword for keyword in _KEYWORDS if keyword in schema]
        written = {
            keyword: _KEYWORDS[keyword](self, schema[keyword], f"{at}/{segment(keyword)}") for keyword in supported
        }
        self._check_properties(written, at)
        if isinstance(pattern := FORMATS.get(written.get("format", "")), str):
            written["allOf"] = [*written.get("allOf", ()), {"pattern": pattern}]
        return written

    def _bound(self, value: Any, at: str) -> float | int:
        number = read_number(value, at)
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
                        raise refused(
                            f"{keyword} {end} cannot be enforced up to {other}; "
                            f"use {keyword[9:].lower()} with the first number that is allowed"
                        )

    def _check_properties(self, schema: Mapping[str, Any], at: str) -> None:
        """Refuse to count keys of a free choice: one that is written twice is one key."""
        free = schema.get("minProperties", 0) - len(set(schema.get("required", ())))
        if free > 1 and (schema.get("additionalProperties", True) is not False or "patternProperties" in schema):
            raise refused(
                f"minProperties at {at} cannot be enforced, as a key may be written twice; name the keys "
                "in properties and required"
            )

    def _list(self, schemas: Any, at: str) -> list[dict[str, Any] | bool]:
        if not isinstance(schemas, list) or not schemas:
            raise wrong(at, schemas, "a list of schemas")
        return [self._schema(schema, f"{at}/{i}") for i, schema in enumerate(schemas)]

    def _map(self, schemas: Any, at: str) -> dict[str, dict[str, Any] | bool]:
        if not isinstance(schemas, dict):
            raise wrong(at, schemas, "an object of schemas")
        return {read_name(key, at): self._schema(schema, f"{at}/{segment(key)}") for key, schema in schemas.items()}

    def _patterns(self, schemas: Any, at: str) -> dict[str, dict[str, Any] | bool]:
        return {read_pattern(key, at): schema for key, schema in self._map(schemas, at).items()}

    def _multiple_of(self, value: Any, at: str) -> float | int:
        number = read_number(value, at)
        if number <= 0:
            raise wrong(at, value, "a number above 0")
        self._multiples.add(Fraction(str(number)))
        if len(self._multiples) > 1:
            scale = math.lcm(*(each.denominator for each in self._multiples))
            if math.prod(int(each * scale) for each in self._multiples) >= _LARGEST_MULTIPLE:
                raise refused(f"multipleOf at {at} is too much beside the others; remove it")
        return number

    def _reference(self, pointer: Any, at: str) -> str:
        """Return a reference to a definition of ours; define it where it is not yet."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise refused(
                f"$ref at {at} is {as_json(pointer)}; only references into this schema, as "
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
                raise refused(f"$ref at {at} is {as_json(pointer)}, and nothing is there; correct it")
            if isinstance(target, dict) and "$id" in target:
                raise refused(f"$ref at {at} leads through an $id, which is not supported; remove it")
        return target


def _with_old_words(schema: dict[str, Any], at: str) -> dict[str, Any]:
    """Return a schema in the words of draft 2020-12, where older drafts say the same in others."""
    if isinstance(schema.get("items"), list):
        if "prefixItems" in schema:
            raise wrong(f"{at}/items", schema["items"], "a schema beside prefixItems")
        schema = schema | {"prefixItems": schema["items"], "items": schema.get("additionalItems", True)}
        if not schema["prefixItems"]:
            del schema["prefixItems"]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(strict := schema.get(exclusive), bool):
            schema = {keyword: value for keyword, value in schema.items() if keyword != exclusive}
            if strict and bound in schema:
                schema[exclusive] = schema.pop(bound)
    return schema


_KEYWORDS: Mapping[str, Callable[[Rewriting, Any, str], Any]] = {
    "type": lambda _, value, at: read_types(value, at),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), Rewriting._bound),
    "multipleOf": Rewriting._multiple_of,
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        lambda _, value, at: read_count(value, at),
    ),
    "pattern": lambda _, value, at: read_pattern(value, at),
    "format": lambda _, value, at: read_format(value, at),
    "prefixItems": Rewriting._list,
    "items": Rewriting._schema,
    "properties": Rewriting._map,
    "patternProperties": Rewriting._patterns,
    "additionalProperties": Rewriting._schema,
    "required": lambda _, value, at: read_required(value, at),
    "const": lambda _, value, at: read_value(value, at),
    "enum": lambda _, value, at: read_values(value, at),
    "$ref": Rewriting._reference,
    "allOf": Rewriting._list,
    "anyOf": Rewriting._list,
    "oneOf": Rewriting._list,
}
"""What is enforced, in the order in which llguidance shall read it, and how each value is written."""


def segment(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
