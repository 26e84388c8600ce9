"""The recipe: what is loaded, how it is mixed, and how tokens are chosen. Frozen, one-to-one with its TOML."""

from eft_local.recipe.about import About
from eft_local.recipe.names import RESERVED_NAMES
from eft_local.recipe.roles import Expert, Frame, Placement, Prompt, Role
from eft_local.recipe.sampling import Sampling
from eft_local.recipe.schema import DRAFT_RULES, DRAFT_SOURCES, SAMPLING_KEYS, Recipe

__all__ = [
    "DRAFT_RULES",
    "DRAFT_SOURCES",
    "RESERVED_NAMES",
    "SAMPLING_KEYS",
    "About",
    "Expert",
    "Frame",
    "Placement",
    "Prompt",
    "Recipe",
    "Role",
    "Sampling",
]
