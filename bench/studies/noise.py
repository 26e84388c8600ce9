"""Writes recipes whose expert drafts noise: what do drafts cost that are never right? See bench/README.md."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from eft_local.hub.references import find_recipe, model_of
from eft_local.recipe import Recipe

GAINS = {"unsure": 1.0, "sure": 20.0}
"""How much larger than the expert's the logits are: noise that knows that it is noise, and noise that does not."""


def noisy_model(source: Path, path: Path, gain: float) -> Path:
    """Copy a model; shuffle each of its matrices, and multiply its logits. Raises: OSError."""
    shutil.copyfile(source, path)
    generator = np.random.default_rng(0)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name == "output_norm.weight":
            tensor.data[:] *= gain
        elif len(tensor.shape) > 1:
            tensor.data[:] = generator.permutation(tensor.data.ravel()).reshape(tensor.data.shape)
    return path


def noisy_recipe(recipe: Recipe, folder: Path, kind: str) -> Recipe:
    """Return the recipe with its first expert drafting noise; α = 0, so that answers are the base's all the same."""
    name, expert = next(iter(recipe.experts.items()))
    model = noisy_model(model_of(recipe, expert), folder / f"noise-{kind}.gguf", GAINS[kind])
    return recipe.replace(
        name=f"noise-{kind}",
        description=f"An expert that drafts noise and is {kind} of it.",
        experts={name: replace(expert, model=str(model), alpha=0.0)},
        compare={},
    )


def write(folder: Path) -> list[Path]:
    """Write a recipe of each kind, and its expert; return the recipes. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = [folder / f"noise-{kind}.toml" for kind in GAINS]
    for kind, path in zip(GAINS, recipes, strict=True):
        path.write_text(noisy_recipe(find_recipe("demo"), folder, kind).to_toml(), encoding="utf-8")
    return recipes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.noise", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the models and recipes are written")
    for recipe in write(parser.parse_args().folder.absolute()):
        print(f"eft bench --recipe {recipe} --shape 7b --kind long --lengths none")


if __name__ == "__main__":
    main()
