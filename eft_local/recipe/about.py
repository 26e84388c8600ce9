"""What a recipe says of its models: what they cost to get and to run, and what may be done with them. TOML: [about]."""

from __future__ import annotations

from dataclasses import dataclass

from eft_local.recipe.checks import checked, flag, number, optional, text, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Facts for whoever chooses a recipe; nothing is computed from them.

    licence: of the models.  gated: the hub gives them only to those who accepted conditions.
    download_gb, memory_gb: 10⁹ bytes to download, and of RAM or GPU memory for weights and contexts.
    tested: whether this recipe was run, and what it gives was looked at.  notes: what else one should know.
    Raises: RecipeError.
    """

    licence: str = checked(text(), "")
    gated: bool = checked(flag, False)
    download_gb: float | None = checked(optional(number(minimum=0)), None)
    memory_gb: float | None = checked(optional(number(minimum=0)), None)
    tested: bool | None = checked(optional(flag), None)
    notes: str = checked(text(), "")

    def __post_init__(self) -> None:
        verify(self)
