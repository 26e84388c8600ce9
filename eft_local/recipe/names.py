"""What roles and targets are called, in recipes, on the command line, and in all that is stored."""

from __future__ import annotations

BASE = "base"
ANTIEXPERT = "antiexpert"

EXPERT = "expert"
"""The first expert, whatever the recipe calls it."""

MIXTURE = "eft"
"""The target that is no role: all of them, mixed."""

AS_BASE = "@base"
AS_ANTIEXPERT = "@antiexpert"

SAME_WEIGHTS = (AS_BASE, AS_ANTIEXPERT)
"""Models that are another role's: its weights, and its adapter where the role has none of its own."""

RESERVED_NAMES = (BASE, ANTIEXPERT, EXPERT, MIXTURE, "system", "all")
"""What no expert and no model under [compare] may be called."""

COMPARED = (BASE, EXPERT, MIXTURE)
"""The targets that are shown side by side where none are named."""
