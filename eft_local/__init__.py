"""Emulated fine-tuning and proxy-tuning on quantised GGUF models.

    from eft_local import Emulator

    with Emulator.load("demo") as emulator:
        print(emulator.chat("What is the capital of Peru?").text)

Names are imported on first use, so that `import eft_local` stays instant and loads no llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eft_local.version import __version__

if TYPE_CHECKING:
    from eft_local.emulator import Emulator as Emulator
    from eft_local.engine.request import Options as Options
    from eft_local.engine.request import Request as Request
    from eft_local.engine.step import Answer as Answer
    from eft_local.engine.step import Candidate as Candidate
    from eft_local.engine.step import RoleStatistics as RoleStatistics
    from eft_local.engine.step import RoleTiming as RoleTiming
    from eft_local.engine.step import Score as Score
    from eft_local.engine.step import Step as Step
    from eft_local.engine.stream import Stream as Stream
    from eft_local.errors import Cancelled as Cancelled
    from eft_local.errors import ConstraintError as ConstraintError
    from eft_local.errors import ContextOverflowError as ContextOverflowError
    from eft_local.errors import DownloadError as DownloadError
    from eft_local.errors import EftError as EftError
    from eft_local.errors import EvaluationError as EvaluationError
    from eft_local.errors import HistoryError as HistoryError
    from eft_local.errors import ModelFileError as ModelFileError
    from eft_local.errors import ModelNotFoundError as ModelNotFoundError
    from eft_local.errors import OutOfMemoryError as OutOfMemoryError
    from eft_local.errors import OutputError as OutputError
    from eft_local.errors import PromptError as PromptError
    from eft_local.errors import RecipeError as RecipeError
    from eft_local.errors import UnsupportedModelError as UnsupportedModelError
    from eft_local.errors import UsageError as UsageError
    from eft_local.errors import VocabularyMismatchError as VocabularyMismatchError
    from eft_local.recipe import About as About
    from eft_local.recipe import Expert as Expert
    from eft_local.recipe import Frame as Frame
    from eft_local.recipe import Placement as Placement
    from eft_local.recipe import Prompt as Prompt
    from eft_local.recipe import Recipe as Recipe
    from eft_local.recipe import Role as Role
    from eft_local.recipe import Sampling as Sampling

_HOMES = {
    "About": "eft_local.recipe",
    "Answer": "eft_local.engine.step",
    "Cancelled": "eft_local.errors",
    "Candidate": "eft_local.engine.step",
    "ConstraintError": "eft_local.errors",
    "ContextOverflowError": "eft_local.errors",
    "DownloadError": "eft_local.errors",
    "EftError": "eft_local.errors",
    "Emulator": "eft_local.emulator",
    "EvaluationError": "eft_local.errors",
    "Expert": "eft_local.recipe",
    "Frame": "eft_local.recipe",
    "HistoryError": "eft_local.errors",
    "ModelFileError": "eft_local.errors",
    "ModelNotFoundError": "eft_local.errors",
    "Options": "eft_local.engine.request",
    "OutOfMemoryError": "eft_local.errors",
    "OutputError": "eft_local.errors",
    "Placement": "eft_local.recipe",
    "Prompt": "eft_local.recipe",
    "PromptError": "eft_local.errors",
    "Recipe": "eft_local.recipe",
    "RecipeError": "eft_local.errors",
    "Request": "eft_local.engine.request",
    "Role": "eft_local.recipe",
    "RoleTiming": "eft_local.engine.step",
    "RoleStatistics": "eft_local.engine.step",
    "Sampling": "eft_local.recipe",
    "Score": "eft_local.engine.step",
    "Step": "eft_local.engine.step",
    "Stream": "eft_local.engine.stream",
    "UnsupportedModelError": "eft_local.errors",
    "UsageError": "eft_local.errors",
    "VocabularyMismatchError": "eft_local.errors",
}

__all__ = [
    "About",
    "Answer",
    "Cancelled",
    "Candidate",
    "ConstraintError",
    "ContextOverflowError",
    "DownloadError",
    "EftError",
    "Emulator",
    "EvaluationError",
    "Expert",
    "Frame",
    "HistoryError",
    "ModelFileError",
    "ModelNotFoundError",
    "Options",
    "OutOfMemoryError",
    "OutputError",
    "Placement",
    "Prompt",
    "PromptError",
    "Recipe",
    "RecipeError",
    "Request",
    "Role",
    "RoleStatistics",
    "RoleTiming",
    "Sampling",
    "Score",
    "Step",
    "Stream",
    "UnsupportedModelError",
    "UsageError",
    "VocabularyMismatchError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
