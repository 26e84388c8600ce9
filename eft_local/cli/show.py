"""`eft show`: what a model or a recipe is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eft_local.analysis.format import share
from eft_local.cli import output
from eft_local.cli.options import Command, example, json_option
from eft_local.cli.readiness import readiness
from eft_local.errors import EftError
from eft_local.hub.names import HubName, size_text
from eft_local.hub.references import find_recipe, hub_name, names_recipe, resolve_model

if TYPE_CHECKING:
    from eft_local.gguf.metadata import Metadata
    from eft_local.recipe import Recipe, Role


@click.command(
    cls=Command,
    epilog=example("eft show demo", "eft show demo:base", "eft show Qwen/Qwen3-0.6B-GGUF", "eft show ./model.gguf"),
)
@click.argument("what", metavar="RECIPE|REF|FILE")
@click.option("--template", is_flag=True, help="Print a model's chat template, and nothing else.")
@json_option
def show(what: str, template: bool, as_json: bool) -> None:
    """Show what a RECIPE needs and what is downloaded, the metadata of a model, or the contents of a repository.

    A model is a FILE, demo:NAME or ORG/REPO:Q4_K_M in the cache; its header is read, nothing is loaded. For ORG/REPO
    alone, the hub lists the models in it.
    """
    if names_recipe(what):
        _write(_recipe_entry(find_recipe(what)), _recipe_text, as_json)
        return
    name = hub_name(what, None)
    if name is not None and not (name.label or name.file):
        _write(_repository_entry(name), _repository_text, as_json)
        return
    from eft_local.gguf.metadata import read_metadata

    entry = read_metadata(resolve_model(what, None))
    if template:
        if entry.chat_template is None:
            raise EftError(f"{what} has no chat template")
        output.write(output.safe(entry.chat_template).rstrip("\n") + "\n")
        return
    _write(_model_entry(entry), _model_text, as_json)


def _write(entry: dict[str, Any], as_text: Any, as_json: bool) -> None:
    if as_json:
        output.write_json(entry)
    else:
        output.write(output.safe(as_text(entry)))


def _table(rows: dict[str, str | None]) -> str:
    """Return lines of what is known, aligned."""
    given = {key: value for key, value in rows.items() if value}
    width = max(map(len, given), default=0)
    return "".join(f"{key:<{width}}  {value}\n" for key, value in given.items())


# A model


def _model_entry(entry: Metadata) -> dict[str, Any]:
    return asdict(entry) | {"path": str(entry.path), "shard": list(entry.shard) if entry.shard else None}


def _model_text(entry: dict[str, Any]) -> str:
    if entry["lora"]:
        return _adapter_text(entry)
    heads = f"{entry['heads']} heads ({entry['kv_heads'] or entry['heads']} of keys and values)"
    shape = f"{entry['layers']} layers of {entry['embedding']}, {heads}" if entry["layers"] else None
    ends = ", ".join(f"{key} {entry[key]!r}" for key in ("bos", "eos") if entry[key])
    tokens = f"{entry['tokens']} ({entry['tokenizer']}{', ' + ends if ends else ''})" if entry["tokens"] else None
    template = entry["chat_template"]
    shard = "{} of {}; the weights of this one are counted".format(*entry["shard"]) if entry["shard"] else None
    return _table(
        {
            "file": entry["path"],
            "name": entry["name"],
            "kind": None if entry["kind"] == "model" else entry["kind"],
            "architecture": entry["architecture"],
            "size": _size(entry),
            "part": shard,
            "weights": _weights(entry),
            "shape": shape,
            "context": f"{entry['context']} tokens in training" if entry["context"] else None,
            "tokens": tokens,
            "template": f"{len(template)} characters (--template prints it)" if template else "none",
            "licence": entry["licence"] or "the file names none",
        }
    )


def _adapter_text(entry: dict[str, Any]) -> str:
    lora = entry["lora"]
    low, high = lora["ranks"]
    each = f"alpha {lora['alpha']:g} / rank" if lora["alpha"] else "1"
    scale = f"{lora['alpha'] / low:g} ({each})" if lora["alpha"] and low == high else each
    changed = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in lora["weights"].items())
    return _table(
        {
            "file": entry["path"],
            "name": entry["name"],
            "kind": f"LoRA adapter for {entry['architecture'] or 'unnamed'} models",
            "made for": lora["made_for"],
            "size": _size(entry),
            "weights": _weights(entry),
            "rank": f"{low}" if low == high else f"{low} to {high}",
            "scale": scale,
            "changes": changed,
            "licence": entry["licence"] or "the file names none",
            "use": f'lora = "{Path(entry["path"]).name}" beside the model, in the table of an expert',
        }
    )


def _size(entry: dict[str, Any]) -> str:
    return f"{size_text(entry['size'])}, {_count(entry['parameters'])} parameters"


def _weights(entry: dict[str, Any]) -> str:
    total = entry["parameters"] or 1
    shares = {kind: count / total for kind, count in entry["weights"].items()}
    return ", ".join(f"{kind} {share(part)}" if part >= 0.01 else kind for kind, part in shares.items())


def _count(parameters: int) -> str:
    for unit, power in (("B", 9), ("M", 6), ("k", 3)):
        if parameters >= 10**power:
            return f"{parameters / 10**power:.2f} {unit}"
    return str(parameters)


# A recipe


def _recipe_entry(recipe: Recipe) -> dict[str, Any]:
    roles = [_role_entry(recipe, place, role) for place, role in recipe.named_roles()]
    return {
        "name": recipe.name,
        "description": recipe.description,
        "roles": roles,
        "is_here": all(file["path"] for file in _files(roles)),
        "problem": readiness(recipe).problem,
        "about": asdict(recipe.about),
    }


def _role_entry(recipe: Recipe, place: str, role: Role) -> dict[str, Any]:
    return {
        "role": place,
        "model": role.model,
        **_file_entry(recipe, role.model),
        "lora": {"model": role.lora, **_file_entry(recipe, role.lora), "scale": role.lora_scale} if role.lora else None,
        "prompt": role.prompt.style,
        "alpha": getattr(role, "alpha", None),
    }


def _file_entry(recipe: Recipe, reference: str) -> dict[str, Any]:
    problem, path = None, None
    try:
        path = resolve_model(reference, recipe.folder)
    except EftError as error:
        problem = str(error)
    return {
        "path": str(path) if path else None,
        "size": path.stat().st_size if path else None,
        "problem": problem,
    }


def _recipe_text(entry: dict[str, Any]) -> str:
    about = entry["about"]
    lines = [f"{entry['name']}: {entry['description']}\n" if entry["description"] else f"{entry['name']}\n"]
    rows = []
    seen: dict[str, str] = {}
    for role in entry["roles"]:
        same = seen.setdefault(role["path"], role["role"]) if role["path"] else role["role"]
        here = _state(role) if same == role["role"] else f"the weights of {same}"
        rows.append((role["role"], role["model"], f"prompt {role['prompt']}", here))
        if lora := role["lora"]:
            scale = f"scale {lora['scale']:g}" if lora["scale"] != 1 else ""
            rows.append(("  lora", lora["model"], scale, _state(lora)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        lines.append(f"  {'  '.join(cells)}  {row[3]}\n")
    lines.append(about_text(about))
    if entry["is_here"] and entry["problem"]:
        lines.append(f"cannot be loaded: {entry['problem']}\n")
    if any(file["path"] is None and HubName.parse(file["model"]) for file in _files(entry["roles"])):
        lines.append(f"get the models: eft pull {entry['name']}\n")
    return "".join(lines)


def _files(roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entry of every model and adapter."""
    return [file for role in roles for file in (role, role["lora"]) if file]


def _state(file: dict[str, Any]) -> str:
    if file["path"]:
        return f"downloaded, {size_text(file['size'])}"
    return "not downloaded" if HubName.parse(file["model"]) else str(file["problem"])


def about_text(about: dict[str, Any]) -> str:
    """Return what a recipe says of its models, as lines."""
    tested = {True: "run by us", False: "not run by us", None: None}[about["tested"]]
    gated = " (gated: the hub asks you to accept conditions)" if about["gated"] else ""
    return _table(
        {
            "licence": about["licence"] + gated if about["licence"] else None,
            "download": f"about {about['download_gb']:g} GB" if about["download_gb"] else None,
            "memory": f"about {about['memory_gb']:g} GB of RAM or GPU memory" if about["memory_gb"] else None,
            "tested": tested,
            "notes": about["notes"],
        }
    )


# A repository


def _repository_entry(name: HubName) -> dict[str, Any]:
    from eft_local.hub import cache
    from eft_local.hub.pull import models_on_hub

    repository, models = models_on_hub(name)
    rows = []
    for reference, model in name.references(models).items():
        named = HubName.parse(reference)
        path: Path | None = cache.find(named) if named else None
        rows.append(
            {
                "reference": reference,
                "size": model.size,
                "files": list(model.files),
                "path": str(path) if path else None,
            }
        )
    return {
        "repository": name.repo,
        "commit": repository.commit,
        "gated": repository.gated,
        "licence": repository.licence,
        "models": rows,
    }


def _repository_text(entry: dict[str, Any]) -> str:
    gated = ", gated" if entry["gated"] else ""
    licence = entry["licence"] or "no licence named"
    lines = [f"{entry['repository']} at {entry['commit'][:12]} ({licence}{gated})\n"]
    width = max((len(row["reference"]) for row in entry["models"]), default=0)
    for row in entry["models"]:
        state = "downloaded" if row["path"] else ""
        lines.append(f"  {row['reference']:<{width}}  {size_text(row['size']):>8}  {state}".rstrip() + "\n")
    return "".join(lines) + ("" if entry["models"] else "  no GGUF models\n")
