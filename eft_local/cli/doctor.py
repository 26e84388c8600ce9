"""`eft doctor`: what this installation can do, and what is missing."""

from __future__ import annotations

import importlib.util
import platform
import shlex
import shutil
import sys
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option
from eft_local.cli.readiness import Readiness, readiness

if TYPE_CHECKING:
    from eft_local.recipe import Recipe

PACKAGES = ("llama-cpp-python", "numpy", "jinja2", "rich", "matplotlib")
REBUILD = "python -m pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
BUNDLED = Path(str(resources.files("eft_local.models")))
FOLDERS = ("recipes", "models", "chats", "cache")


@click.command(cls=Command, epilog=example("eft doctor", "eft doctor --json"))
@json_option
def doctor(as_json: bool) -> int:
    """Check this installation: report what works and what is missing, with the command that fixes it.

    Exits with 1 if something that the demo needs is missing.
    """
    report = _report()
    if as_json:
        output.write_json(report)
    else:
        output.write(_text(report))
    return int(any(item["needed"] for item in report["missing"]))


def _report() -> dict[str, Any]:
    """Return everything that doctor reports, ready for JSON. Memory in bytes."""
    report: dict[str, Any] = {
        "versions": {"eft-local": _version("eft-local"), "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "machine": _machine(),
        "llama.cpp": _llama(),
        "folders": _folders(),
        "recipes": _recipes(),
    }
    report["missing"] = list(_missing(report))
    return report


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import psutil

    from eft_local.machine.memory import available

    ours = available()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "ram": psutil.virtual_memory().total,
        "ram_available": ours.free,
        "ram_limit": ours.limit,
    }


def _llama() -> dict[str, Any]:
    """Return what llama.cpp says of itself and of its devices, or why it cannot be loaded."""
    try:
        from eft_local.backends.llamacpp import devices
    except (ImportError, OSError, RuntimeError) as error:
        return {"error": " ".join(str(error).split()), "devices": []}
    build = asdict(devices.build())
    return {**build, "devices": [asdict(device) for device in devices.devices()]}


def _folders() -> dict[str, dict[str, Any]]:
    from eft_local import locations

    paths: dict[str, Path | None] = {name: getattr(locations, name)() for name in FOLDERS}
    return {
        name: {"path": str(path) if path else None, "exists": path is not None and path.is_dir()}
        for name, path in paths.items()
    }


def _recipes() -> dict[str, dict[str, str | bool | None]]:
    """Return for every named recipe its file, what is wrong with it or its models (None: nothing), its state, and
    whether its answers are exact, as far as that is known (None: its models are not downloaded, or there may be a GPU).
    """
    from eft_local.errors import EftError
    from eft_local.hub.references import find_recipe, recipe_names

    found: dict[str, dict[str, str | bool | None]] = {}
    for name, path in recipe_names().items():
        exact = None
        try:
            recipe = find_recipe(name)
            ready = readiness(recipe)
            exact = _exact(recipe) if ready.problem is None else None
        except EftError as error:
            ready = Readiness(str(error))
        found[name] = {
            "path": str(path),
            "problem": ready.problem,
            "pullable": ready.pullable,
            "state": ready.state,
            "exact": exact,
        }
    return found


def _exact(recipe: Recipe) -> str | None:
    """Return whether a recipe's answers are exact, as far as that is known where all its models are in RAM."""
    from eft_local.errors import EftError

    try:
        from eft_local.backends.llamacpp import supports_gpu_offload
        from eft_local.engine.loading import mixed_roles
        from eft_local.placement.survey import remembered, role_files
    except (ImportError, OSError, RuntimeError):  # reported under llama.cpp
        return None
    if supports_gpu_offload():
        return None
    try:
        verdicts = remembered(role_files(recipe, mixed_roles(recipe)), {}, recipe.context, recipe.exact)
    except EftError:
        return None
    return next((each for each in verdicts.values() if not each.startswith("yes")), "yes")


def _missing(report: dict[str, Any]) -> Any:
    """Yield what is missing, whether it is needed, and the command that mends it."""
    llama = report["llama.cpp"]
    if "error" in llama:
        yield _item(f"llama.cpp cannot be loaded: {llama['error']}", REBUILD, needed=True)
    for name, recipe in report["recipes"].items():
        if recipe["problem"] is not None:
            bundled = Path(recipe["path"]).parent == BUNDLED
            mend = _restore() if bundled else f"edit {recipe['path']}"
            if recipe["pullable"]:
                yield _item(f"models of recipe {name}", f"eft pull {name}", needed=False)
                continue
            yield _item(f"recipe {name}: {recipe['problem']}", mend, needed=name == "demo")
    if "demo" not in report["recipes"]:
        yield _item("the bundled recipe demo", _restore(), needed=True)
    if importlib.util.find_spec("matplotlib") is None:
        yield _item("matplotlib, for eft eval --plot", f"{sys.executable} -m pip install matplotlib", needed=False)
    if llama.get("gpu_offload") is False:
        yield from _missing_gpu()


def _restore() -> str:
    """Return the command that brings back bundled files: from the clone, or from the package index."""
    if (BUNDLED.parent / ".git").exists():
        return f"git -C {shlex.quote(str(BUNDLED.parent))} checkout -- {BUNDLED.name}"
    return "python -m pip install --force-reinstall --no-deps eft-local"


def _missing_gpu() -> Any:
    """Yield the rebuild that would use a GPU which is there."""
    if shutil.which("nvidia-smi"):
        yield _item(
            "llama.cpp was built without CUDA; there is an NVIDIA GPU",
            f'CMAKE_ARGS="-DGGML_CUDA=on" {REBUILD}',
            needed=False,
        )
    if sys.platform == "darwin" and platform.machine() == "arm64":
        yield _item("llama.cpp was built without Metal", f'CMAKE_ARGS="-DGGML_METAL=on" {REBUILD}', needed=False)


def _item(what: str, mend: str, *, needed: bool) -> dict[str, Any]:
    return {"what": what, "mend": mend, "needed": needed}


def _text(report: dict[str, Any]) -> str:
    """Return the report as lines that a person or a screen reader can go through."""
    machine, llama = report["machine"], report["llama.cpp"]
    versions = (f"{name} {version or 'not installed'}" for name, version in report["versions"].items())
    lines = [
        *_section("Versions", versions),
        *_section(
            "Machine",
            [
                machine["system"],
                f"{machine['cores']} cores, {machine['threads']} threads",
                _ram_line(machine),
            ],
        ),
        *_section("llama.cpp", _llama_lines(llama)),
        *_section("Devices", (_device_line(device) for device in llama["devices"])),
        *_section("Folders", (_folder_line(name, folder) for name, folder in report["folders"].items())),
        *_section(
            "Recipes",
            (f"{name}: {_recipe_line(recipe)}" for name, recipe in report["recipes"].items()),
        ),
        *_section("Missing", (f"{item['what']}\n    {item['mend']}" for item in report["missing"])),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Any) -> list[str]:
    return [title, *([f"  {line}" for line in lines] or ["  nothing"])]


def _llama_lines(llama: dict[str, Any]) -> list[str]:
    if "error" in llama:
        return [f"cannot be loaded: {llama['error']}"]
    abilities = {"gpu_offload": "GPU offload", "mmap": "mmap", "mlock": "mlock", "rpc": "RPC"}
    return [
        f"version {llama['llama']}, ggml {llama['ggml']}",
        ", ".join(f"{name} {'yes' if llama[key] else 'no'}" for key, name in abilities.items()),
        *(f"{backend}: {', '.join(names)}" for backend, names in llama["features"].items()),
        f"matrix kernels: {llama['kernels']}",
    ]


def _recipe_line(recipe: dict[str, Any]) -> str:
    return f"{recipe['state']}; exact: {recipe['exact']}" if recipe["exact"] else recipe["state"]


def _device_line(device: dict[str, Any]) -> str:
    memory = f"{_gigabytes(device['free'])} of {_gigabytes(device['total'])} free"
    return f"{device['name']} ({device['kind']}): {device['description']}, {memory}"


def _folder_line(name: str, folder: dict[str, Any]) -> str:
    if folder["path"] is None:
        return f"{name}: none, as there is no home folder; set EFT_HOME"
    return f"{name}: {folder['path']}" + ("" if folder["exists"] else " (not created yet)")


def _ram_line(machine: dict[str, Any]) -> str:
    bound = "" if machine["ram_limit"] == "RAM" else f", bounded by the {machine['ram_limit']} limit"
    return f"{_gigabytes(machine['ram_available'])} of {_gigabytes(machine['ram'])} RAM available{bound}"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
