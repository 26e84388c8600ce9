"""The emulator: recipe to loaded roles, and from there to tokens, answers and scores."""

from eft_local.emulator.emulator import Emulator
from eft_local.emulator.results import Answer, Candidate, RoleTiming, RoleView, Score, Step

__all__ = ["Answer", "Candidate", "Emulator", "RoleTiming", "RoleView", "Score", "Step"]
