"""What is said of a schema that is refused."""

from __future__ import annotations

import json
from typing import Any

from eft_local.errors import RecipeError


def as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def refused(why: str) -> RecipeError:
    return RecipeError(f"json_schema: {why}")


def wrong(at: str, value: Any, need: str) -> RecipeError:
    return refused(f"{at} is {as_json(value)}, not {need}; correct it")
