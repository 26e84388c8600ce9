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
    from eft_local.engine.step import Answer as Answer
    from eft_local.engine.step import Candidate as Candidate
    from eft_local.engine.step import RoleView as RoleView
    from eft_local.engine.step import Score as Score
    from eft_local.engine.step import Step as Step
    from eft_local.errors import EftError as EftError
    from eft_local.recipe import Recipe as Recipe
    from eft_local.recipe import Sampling as Sampling

_HOMES = {
    "Answer": "eft_local.engine.step",
    "Candidate": "eft_local.engine.step",
    "EftError": "eft_local.errors",
    "Emulator": "eft_local.emulator",
    "Recipe": "eft_local.recipe",
    "RoleView": "eft_local.engine.step",
    "Sampling": "eft_local.recipe",
    "Score": "eft_local.engine.step",
    "Step": "eft_local.engine.step",
}

__all__ = [
    "Answer",
    "Candidate",
    "EftError",
    "Emulator",
    "Recipe",
    "RoleView",
    "Sampling",
    "Score",
    "Step",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
