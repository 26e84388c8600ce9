"""How a token is drawn from the mixture: the recipe's [sampling] table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eft_local.errors import RecipeError, shown
from eft_local.recipe.checks import Check, checked, integer, number, optional, table_of, text, texts, toml_value, verify
from eft_local.recipe.json_schema import compiled


def _schema_text(value: Any) -> str:
    """Return a JSON schema as text; a table of the recipe is turned into one."""
    if isinstance(value, Mapping):
        return json.dumps(toml_value(value), ensure_ascii=False)
    schema = text().accept(value)
    if not isinstance(json.loads(schema), dict | bool):
        raise ValueError
    return str(schema)


def _token_names(value: Any) -> Any:
    """Let token ids be given as integers in Python; TOML's keys are texts anyway."""
    if not isinstance(value, Mapping) or any(key == "" for key in value):
        raise TypeError
    return _BIASES.accept({str(key) if type(key) is int else key: item for key, item in value.items()})


LARK = "%llguidance"
"""What a grammar in llguidance's Lark begins with, for llama.cpp as well."""

_BIAS_NEED = "a table from token ids or token texts to finite numbers (-100 forbids a token)"
_BIASES = table_of(number(), _BIAS_NEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """llama.cpp's sampler chain on the mixed logits, and where an answer ends.

    temperature: 0 is greedy.  top_k: 0 is off.  top_p, typical_p: 1 is off.  min_p: 0 is off.
    repeat_penalty: 1 is off.  presence_penalty, frequency_penalty: 0 is off.
    repeat_last_n: these three look at so many of the answer's last tokens (-1: all, 0: none), never at the prompt.
    dry_multiplier: 0 turns DRY off.  dry_base, dry_allowed_length, dry_penalty_last_n: as in llama.cpp.
    xtc_probability: 0 turns XTC off.  xtc_threshold: as in llama.cpp.
    logit_bias: token id (digits) or token text → what is added to its logit.
    grammar: GBNF text, or Lark that begins with %llguidance.
    json_schema: JSON text, or a table in TOML; only one of the two. The answer is then JSON on one line that matches
        the schema (draft 2020-12); what cannot be enforced is refused by the keyword's name.
    seed: None draws a new one for each answer.  max_tokens: None writes to an end token or the context's end.
    stop: texts that end an answer; they are not part of it.
    Raises: RecipeError for a value outside its range, or a JSON schema that cannot be enforced.
    """

    temperature: float = checked(number(minimum=0), 0.8)
    top_k: int = checked(integer(0), 40)
    top_p: float = checked(number(above=0, maximum=1), 0.95)
    min_p: float = checked(number(minimum=0, maximum=1), 0.05)
    typical_p: float = checked(number(above=0, maximum=1), 1.0)
    repeat_penalty: float = checked(number(above=0), 1.0)
    repeat_last_n: int = checked(integer(-1), 64)
    presence_penalty: float = checked(number(), 0.0)
    frequency_penalty: float = checked(number(), 0.0)
    dry_multiplier: float = checked(number(minimum=0), 0.0)
    dry_base: float = checked(number(minimum=1), 1.75)
    dry_allowed_length: int = checked(integer(0), 2)
    dry_penalty_last_n: int = checked(integer(-1), -1)
    xtc_probability: float = checked(number(minimum=0, maximum=1), 0.0)
    xtc_threshold: float = checked(number(minimum=0, maximum=1), 0.1)
    logit_bias: Mapping[str, float] = checked(Check(_BIAS_NEED, _token_names), factory=dict)
    grammar: str | None = checked(optional(text(empty=False)), None)
    json_schema: str | None = checked(optional(Check("a JSON schema (text or table)", _schema_text)), None)
    seed: int | None = checked(optional(integer(0, 2**63 - 1)), None)
    max_tokens: int | None = checked(optional(integer(1)), None)
    stop: tuple[str, ...] = checked(texts(), ())

    def __post_init__(self) -> None:
        verify(self)
        if self.grammar is not None and self.json_schema is not None:
            raise RecipeError(
                f"grammar = {shown(self.grammar)} and json_schema = {shown(self.json_schema)}: "
                "an answer obeys one of them; remove the other"
            )
        if self.json_schema is not None:
            compiled(self.json_schema)
