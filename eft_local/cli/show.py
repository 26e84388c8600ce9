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
    from eft_local.gguf.metadata import Facts
    from eft_local.recipe import Recipe, Role


@click.command(
    cls=Command,
    epilog=example("eft show demo", "eft show demo:base", "eft show Qwen/Qwen3-0.6B-GGUF", "eft show ./model.gguf"),
)
@click.argument("what", metavar="RECIPE|REF|FILE")
@click.option("--template", is_flag=True, help="Print a model's chat template, and nothing else.")
@json_option
def show(what: str, template: bool, as_json: bool) -> None:
    """Show what a RECIPE needs and what of it is here, what a model says of itself, or what a repository holds.

    A model is a FILE, demo:NAME or ORG/REPO:Q4_K_M in the cache; its header is read, nothing is loaded. For ORG/REPO
    alone the hub is asked which models are in it.
    """
    if names_recipe(what):
        _write(_recipe_facts(find_recipe(what)), _recipe_text, as_json)
        return
    name = hub_name(what, None)
    if name is not None and not (name.label or name.file):
        _write(_repository_facts(name), _repository_text, as_json)
        return
    from eft_local.gguf.metadata import read_facts

    facts = read_facts(resolve_model(what, None))
    if template:
        if facts.chat_template is None:
            raise EftError(f"{what} has no chat template")
        output.write(output.safe(facts.chat_template).rstrip("\n") + "\n")
        return
    _write(_model_facts(facts), _model_text, as_json)


def _write(facts: dict[str, Any], as_text: Any, as_json: bool) -> None:
    if as_json:
        output.write_json(facts)
    else:
        output.write(output.safe(as_text(facts)))


def _table(rows: dict[str, str | None]) -> str:
    """Return lines of what is known, aligned."""
    known = {key: value for key, value in rows.items() if value}
    width = max(map(len, known), default=0)
    return "".join(f"{key:<{width}}  {value}\n" for key, value in known.items())


# A model


def _model_facts(facts: Facts) -> dict[str, Any]:
    return asdict(facts) | {"path": str(facts.path), "shard": list(facts.shard) if facts.shard else None}


def _model_text(facts: dict[str, Any]) -> str:
    if facts["lora"]:
        return _adapter_text(facts)
    heads = f"{facts['heads']} heads ({facts['kv_heads'] or facts['heads']} of keys and values)"
    shape = f"{facts['layers']} layers of {facts['embedding']}, {heads}" if facts["layers"] else None
    ends = ", ".join(f"{key} {facts[key]!r}" for key in ("bos", "eos") if facts[key])
    tokens = f"{facts['tokens']} ({facts['tokenizer']}{', ' + ends if ends else ''})" if facts["tokens"] else None
    template = facts["chat_template"]
    shard = "{} of {}; the weights of this one are counted".format(*facts["shard"]) if facts["shard"] else None
    return _table(
        {
            "file": facts["path"],
            "name": facts["name"],
            "kind": None if facts["kind"] == "model" else facts["kind"],
            "architecture": facts["architecture"],
            "size": _size(facts),
            "part": shard,
            "weights": _weights(facts),
            "shape": shape,
            "context": f"{facts['context']} tokens in training" if facts["context"] else None,
            "tokens": tokens,
            "template": f"{len(template)} characters (--template prints it)" if template else "none",
            "licence": facts["licence"] or "the file names none",
        }
    )


def _adapter_text(facts: dict[str, Any]) -> str:
    lora = facts["lora"]
    low, high = lora["ranks"]
    each = f"alpha {lora['alpha']:g} / rank" if lora["alpha"] else "1"
    scale = f"{lora['alpha'] / low:g} ({each})" if lora["alpha"] and low == high else each
    changed = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in lora["weights"].items())
    return _table(
        {
            "file": facts["path"],
            "name": facts["name"],
            "kind": f"LoRA adapter for {facts['architecture'] or 'unnamed'} models",
            "made for": lora["made_for"],
            "size": _size(facts),
            "weights": _weights(facts),
            "rank": f"{low}" if low == high else f"{low} to {high}",
            "scale": scale,
            "changes": changed,
            "licence": facts["licence"] or "the file names none",
            "use": f'lora = "{Path(facts["path"]).name}" beside the model, in the table of an expert',
        }
    )


def _size(facts: dict[str, Any]) -> str:
    return f"{size_text(facts['size'])}, {_count(facts['parameters'])} parameters"


def _weights(facts: dict[str, Any]) -> str:
    total = facts["parameters"] or 1
    shares = {kind: count / total for kind, count in facts["weights"].items()}
    return ", ".join(f"{kind} {share(part)}" if part >= 0.01 else kind for kind, part in shares.items())


def _count(parameters: int) -> str:
    for unit, power in (("B", 9), ("M", 6), ("k", 3)):
        if parameters >= 10**power:
            return f"{parameters / 10**power:.2f} {unit}"
    return str(parameters)


# A recipe


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    roles = [_role_facts(recipe, place, role) for place, role in recipe.named_roles()]
    return {
        "name": recipe.name,
        "description": recipe.description,
        "roles": roles,
        "is_here": all(file["path"] for file in _files(roles)),
        "problem": readiness(recipe).problem,
        "about": asdict(recipe.about),
    }


def _role_facts(recipe: Recipe, place: str, role: Role) -> dict[str, Any]:
    return {
        "role": place,
        "model": role.model,
        **_file_facts(recipe, role.model),
        "lora": {"model": role.lora, **_file_facts(recipe, role.lora), "scale": role.lora_scale} if role.lora else None,
        "prompt": role.prompt.style,
        "alpha": getattr(role, "alpha", None),
    }


def _file_facts(recipe: Recipe, reference: str) -> dict[str, Any]:
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


def _recipe_text(facts: dict[str, Any]) -> str:
    about = facts["about"]
    lines = [f"{facts['name']}: {facts['description']}\n" if facts["description"] else f"{facts['name']}\n"]
    rows = []
    seen: dict[str, str] = {}
    for role in facts["roles"]:
        same = seen.setdefault(role["path"], role["role"]) if role["path"] else role["role"]
        here = _here(role) if same == role["role"] else f"the weights of {same}"
        rows.append((role["role"], role["model"], f"prompt {role['prompt']}", here))
        if lora := role["lora"]:
            scale = f"scale {lora['scale']:g}" if lora["scale"] != 1 else ""
            rows.append(("  lora", lora["model"], scale, _here(lora)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        lines.append(f"  {'  '.join(cells)}  {row[3]}\n")
    lines.append(about_text(about))
    if facts["is_here"] and facts["problem"]:
        lines.append(f"cannot be loaded: {facts['problem']}\n")
    if any(file["path"] is None and HubName.parse(file["model"]) for file in _files(facts["roles"])):
        lines.append(f"get the models: eft pull {facts['name']}\n")
    return "".join(lines)


def _files(roles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the facts of every model and adapter."""
    return [file for role in roles for file in (role, role["lora"]) if file]


def _here(file: dict[str, Any]) -> str:
    if file["path"]:
        return f"here, {size_text(file['size'])}"
    return "not pulled" if HubName.parse(file["model"]) else str(file["problem"])


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


def _repository_facts(name: HubName) -> dict[str, Any]:
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


def _repository_text(facts: dict[str, Any]) -> str:
    gated = ", gated" if facts["gated"] else ""
    licence = facts["licence"] or "no licence named"
    lines = [f"{facts['repository']} at {facts['commit'][:12]} ({licence}{gated})\n"]
    width = max((len(row["reference"]) for row in facts["models"]), default=0)
    for row in facts["models"]:
        here = "here" if row["path"] else ""
        lines.append(f"  {row['reference']:<{width}}  {size_text(row['size']):>8}  {here}".rstrip() + "\n")
    return "".join(lines) + ("" if facts["models"] else "  no GGUF models\n")
