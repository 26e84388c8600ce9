"""How a recipe's values are checked: each dataclass field names its Check, and `verify` runs them all.

Every refusal is a RecipeError of one line, `KEY = VALUE: … is needed`; `within` says where. What a caller gives instead
of a recipe is refused with a UsageError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from operator import index
from types import MappingProxyType
from typing import Any

from eft_local.errors import RecipeError, UsageError, nearest, shown

_LARGEST_INTEGER = 2**31 - 1  # llama.cpp's parameters are 32 bits wide


@dataclass(frozen=True, slots=True)
class Check:
    """What a value must be, in words, and the function that returns it as it is kept.

    accept raises ValueError or TypeError for a value that cannot be used.
    """

    need: str
    accept: Callable[[Any], Any]

    def __call__(self, key: str, value: Any) -> Any:
        """Return the value to keep. Raises: RecipeError naming the key, the value and the need."""
        try:
            return self.accept(value)
        except (TypeError, ValueError, RecursionError):
            raise RecipeError(f"{key} = {shown(value)}: {self.need} is needed") from None


def checked(check: Check, default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """Declare a dataclass field that `verify` checks."""
    if factory is not MISSING:
        return field(default_factory=factory, metadata={"check": check})
    return field(default=default, metadata={"check": check})


def verify(instance: Any) -> None:
    """Check every declared field of a frozen dataclass and keep what its check returns."""
    for each in fields(instance):
        check = each.metadata.get("check")
        if check is not None:
            object.__setattr__(instance, each.name, check(each.name, getattr(instance, each.name)))


def number(
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
) -> Check:
    """Accept a finite real number (integers too), kept as float."""

    def accept(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        try:
            result = float(value)
        except OverflowError:
            raise ValueError from None
        if not (math.isfinite(result) and minimum <= result <= maximum and above < result < below):
            raise ValueError
        return result

    limits = {"of at least": minimum, "above": above, "of at most": maximum, "below": below}
    stated = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))
    return Check(f"a finite number {stated}".rstrip(), accept)


def integer(minimum: int, maximum: int = _LARGEST_INTEGER) -> Check:
    """Accept a whole number in [minimum, maximum]; true and false are none."""

    def accept(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError
        result = int(value)
        if not minimum <= result <= maximum:
            raise ValueError
        return result

    return Check(f"an integer from {minimum} to {maximum}", accept)


def text(*, empty: bool = True) -> Check:
    """Accept a text that can be written as UTF-8."""

    def accept(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        value.encode()  # UnicodeEncodeError is a ValueError
        if not (empty or value):
            raise ValueError
        return value

    return Check("a text" if empty else "a text that is not empty", accept)


def choice(*options: str) -> Check:
    """Accept one of these texts."""

    def accept(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError
        return value

    return Check(" or ".join(f'"{option}"' for option in options), accept)


def instance(kind: type, need: str) -> Check:
    """Accept an instance of `kind`."""

    def accept(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Check(need, accept)


flag = instance(bool, "true or false")


def either(first: Check, second: Check) -> Check:
    """Accept what one of two checks accepts."""

    def accept(value: Any) -> Any:
        try:
            return first.accept(value)
        except (TypeError, ValueError):
            return second.accept(value)

    return Check(f"{first.need} or {second.need}", accept)


def optional(check: Check) -> Check:
    """Accept None too: the key is absent."""
    return Check(check.need, lambda value: None if value is None else check.accept(value))


def texts() -> Check:
    """Accept a list of texts that are not empty, kept as tuple."""
    each = text(empty=False)

    def accept(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):  # a text is a sequence of characters, never meant as a list
            raise TypeError
        return tuple(each.accept(item) for item in value)

    return Check('a list of texts such as ["one", "two"]', accept)


def table_of(check: Check, need: str) -> Check:
    """Accept a table (a mapping from text to what `check` accepts), kept read-only."""

    def accept(value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError
        return MappingProxyType({text().accept(key): check.accept(item) for key, item in value.items()})

    return Check(need, accept)


def toml_value(value: Any) -> Any:
    """Return a copy of what TOML and a template can both hold. Raises: TypeError, ValueError (NaN)."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text().accept(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return number().accept(value)
    if isinstance(value, list | tuple):
        return [toml_value(item) for item in value]
    if isinstance(value, Mapping):
        return {text().accept(key): toml_value(item) for key, item in value.items()}
    raise TypeError


def refuse_unknown(table: Mapping[str, Any], valid: Iterable[str]) -> None:
    """Raise RecipeError for the first key that is not valid, naming the nearest one that is."""
    names = tuple(valid)
    for key in table:
        if key not in names:
            raise RecipeError(f'unknown key {shown(key)}; the nearest valid key is "{nearest(key, names)}"')


@contextmanager
def within(place: str) -> Iterator[None]:
    """Name the place (a file, a table) in front of every RecipeError raised inside."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{place} {error}") from None


def given_text(name: str, value: object) -> str:
    """Return a caller's argument that must be a text. Raises: UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{name} = {value!r}: a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not valid Unicode at character {error.start}; give UTF-8 text") from None
    return value


def given_integer(name: str, value: object) -> int:
    """Return a caller's argument that must be a whole number, NumPy's too. Raises: UsageError."""
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{name} = {value!r}: a whole number is needed") from None
