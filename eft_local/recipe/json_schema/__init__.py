"""JSON schemas that an answer must match: what llguidance enforces token by token, and what is refused.

llguidance follows draft 2020-12 and raises for most of what it does not implement, but not for all: keywords of other
drafts, keys that repeat, regular expressions of another dialect, calendars. A schema is therefore written anew first,
with nothing in it but keywords that are enforced to the letter. Annotations and unknown words are left out, as JSON
Schema has it; every other keyword is refused by its name.
"""

from __future__ import annotations

from eft_local.recipe.json_schema.compiling import compiled
from eft_local.recipe.json_schema.guidance import one_line
from eft_local.recipe.json_schema.patterns import FORMATS
from eft_local.recipe.json_schema.rewriting import REFUSED

__all__ = ["FORMATS", "REFUSED", "compiled", "one_line"]
