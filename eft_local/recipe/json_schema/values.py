"""The values of keywords: what each must be, and what of it can be written or compared exactly."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from eft_local.recipe.json_schema.refusals import as_json, refused, wrong

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# llguidance compares float64, and reads those exactly that are one product or quotient of exact numbers.
_EXACT, _DIGITS, _SHIFT = 2**53, 15, 22
_LARGEST_COUNT = 2**31 - 1
_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")  # JSON writes them as \uXXXX only


def read_types(value: Any, at: str) -> str | list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in _TYPES for name in names):
        raise wrong(at, value, f"one of {', '.join(_TYPES)}, or a list of them")
    return names


def read_number(value: Any, at: str) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(at, value, "a number")
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    if abs(value) > _EXACT or (isinstance(value, float) and (len(digits) > _DIGITS or abs(int(exponent)) > _SHIFT)):
        raise refused(f"{at} is {value}, which has too many digits to be enforced; use a rounder number")
    return value


def read_count(value: Any, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise wrong(at, value, "a whole number of at least 0")
    if value > _LARGEST_COUNT:
        raise refused(f"{at} is {value}; use {_LARGEST_COUNT} at most")
    return int(value)


def read_required(value: Any, at: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(at, value, "a list of names")
    return [read_name(name, at) for name in value]


def read_name(name: str, at: str) -> str:
    if _UNWRITABLE.search(name):
        raise refused(f"{at} holds a control character ({as_json(name)}), which cannot be written; remove it")
    return name


def read_value(value: Any, at: str) -> Any:
    """Return a value of const or enum if it can be written."""
    if isinstance(value, str):
        return read_name(value, at)
    if isinstance(value, dict):
        return {read_name(key, at): read_value(item, at) for key, item in value.items()}
    if isinstance(value, list):
        return [read_value(item, at) for item in value]
    return value if value is None or isinstance(value, bool) else read_number(value, at)


def read_values(values: Any, at: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise wrong(at, values, "a list of values")
    return [read_value(value, f"{at}/{i}") for i, value in enumerate(values)]
