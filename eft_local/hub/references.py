"""From the names that people write to files: models ("demo:base", a path, "org/repo:Q4_K_M") and recipes."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from eft_local import locations
from eft_local.errors import ModelNotFoundError, RecipeError, nearest, shown
from eft_local.hub import HubName
from eft_local.recipe import Recipe
from eft_local.recipe.roles import Role

_BUNDLED = Path(str(resources.files("eft_local.models")))
_DEMO = _BUNDLED / "demo"
DEMO_PREFIX = "demo:"


def resolve_model(reference: str, folder: Path | None, recipe: str | None = None) -> Path:
    """Return the file that a recipe's `model` or `lora` names.

    reference: "demo:NAME" for a bundled model; a path, where a relative one is looked for in `folder` (None: the
    working directory), then in the user's folder of models; or, where no such file exists, a model on the hub,
    "org/repo:LABEL" or "org/repo/file.gguf" with an optional "@revision", which is looked for in the cache only.
    recipe: what to name in `eft pull`, for the error; None is the reference itself.
    Raises: ModelNotFoundError saying where it looked, UsageError if several models in the cache are meant.
    """
    if reference.startswith(DEMO_PREFIX):
        return _demo_model(reference)
    places = _places(reference, folder)
    for place in places:
        if _is_file(place):
            return place
    if _is_folder(places[0]):
        raise ModelNotFoundError(f"model {shown(reference)} is a folder, {places[0]}; name the GGUF file in it")
    name = HubName.parse(reference)
    if name is not None:
        return _pulled_model(name, recipe)
    looked = " or ".join(str(place) for place in places)
    raise ModelNotFoundError(f"model {shown(reference)} is not at {looked}; correct the path or put it there")


def model_of(recipe: Recipe, role: Role) -> Path:
    """Return the model's file of a role, like `resolve_model`; an error names the recipe for `eft pull`.

    role: as it runs, from `Recipe.named_roles`.
    """
    return resolve_model(role.model, recipe.folder, _pull_name(recipe))


def adapter_of(recipe: Recipe, role: Role) -> Path | None:
    """Return the file of a role's LoRA adapter, None if it has none; as `model_of`."""
    return resolve_model(role.lora, recipe.folder, _pull_name(recipe)) if role.lora else None


def hub_names(recipe: Recipe) -> dict[str, HubName]:
    """Return the models and adapters that a recipe has from the hub; those that are files of the user are none.

    By role ("base", "experts.NAME"), adapters by their role and key ("experts.NAME.lora").
    """
    names = {}
    for place, role in recipe.named_roles():
        for key, reference in role.references.items():
            name = hub_name(reference, recipe.folder)
            if name is not None:
                names[place if key == "model" else f"{place}.{key}"] = name
    return names


def hub_name(reference: str, folder: Path | None) -> HubName | None:
    """Return what a model's reference names on the hub, None if it names a bundled model or a file or folder here."""
    if reference.startswith(DEMO_PREFIX):
        return None
    places = _places(reference, folder)
    if any(map(_is_file, places)) or _is_folder(places[0]):
        return None
    return HubName.parse(reference)


def _places(reference: str, folder: Path | None) -> list[Path]:
    """Return where the file of a path may be; an absolute path is one place."""
    path = locations.expanded(reference)
    places = (folder or Path.cwd(), locations.models())
    return list(dict.fromkeys(place / path for place in places if place))


def _pulled_model(name: HubName, recipe: str | None) -> Path:
    if not (name.label or name.file):
        raise ModelNotFoundError(
            f"model {shown(str(name))} names a repository, not a model; `eft show {name}` lists the models in it"
        )
    from eft_local.hub import cache

    path = cache.find(name)
    if path is None:
        raise ModelNotFoundError(
            f"model {shown(str(name))} is not downloaded yet; get it with: eft pull {recipe or name}"
        )
    return path


def _pull_name(recipe: Recipe) -> str | None:
    """Return what the command line calls this recipe: its name, or its file; None if it comes from neither."""
    folder = recipe.folder
    if folder is None:
        return None
    file = recipe_names().get(recipe.name)
    if file is not None and file.parent == folder:
        return recipe.name
    path = folder / f"{recipe.name}.toml"
    return shlex.quote(str(path)) if _is_file(path) else None


def is_bundled(path: Path) -> bool:
    """Whether this file came with eft-local."""
    return path.resolve().is_relative_to(_BUNDLED.resolve())


def _demo_model(reference: str) -> Path:
    path = _DEMO / f"{reference.removeprefix(DEMO_PREFIX)}.gguf"
    if path.parent == _DEMO and _is_file(path):
        return path
    there = ", ".join(DEMO_PREFIX + file.stem for file in sorted(_DEMO.glob("*.gguf")))
    what = f"there are {there}" if there else "none are there; reinstall eft-local"
    raise ModelNotFoundError(f"model {shown(reference)} is no demo model in {_DEMO}; {what}")


def _is_file(path: Path) -> bool:
    """Whether this is a file that exists; a path that cannot even be looked up is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def recipe_names() -> dict[str, Path]:
    """Return every recipe that has a name: the bundled ones and the user's, which win over namesakes."""
    folders = [folder for folder in (_BUNDLED, locations.recipes()) if folder]
    files = [file for folder in folders for file in sorted(folder.glob("*.toml"))]
    return {file.stem: file for file in files}


def find_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of this name, or in this file.

    A text that is no recipe's name is a path if it looks like one (a separator, ".toml") or is a file's.
    Raises: RecipeError, which names the nearest recipe.
    """
    names = recipe_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        return Recipe.from_toml(names[name_or_path])
    if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
        return Recipe.from_toml(locations.expanded(name_or_path))
    raise RecipeError(
        f'recipe {shown(name_or_path)} is unknown; the nearest one is "{nearest(name_or_path, names)}" '
        f"(recipes: {', '.join(sorted(names))}; or give a .toml file)"
    )


def names_recipe(text: str) -> bool:
    """Whether a text that may name a recipe or a model names a recipe: by its name, or by a .toml file."""
    return text in recipe_names() or text.endswith(".toml")


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith(".toml") or _is_file(Path(text))


def demo_questions() -> Path:
    """Return the file of questions about what the demo models know."""
    return _DEMO / "questions.jsonl"
