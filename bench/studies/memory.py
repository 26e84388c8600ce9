"""What an Emulator holds in memory beyond the models that it runs. See bench/README.md."""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

# Only the standard library up here: each child measures its own imports.

PROMPT = "What is the capital of Peru?"
ALLOWED_MB = 60
SMALL = "0.1b"  # shape of the antiexpert where experts have no models of their own


def resident() -> dict[str, float]:
    """Return the memory of the process in MB (10⁶ bytes): now, and at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def run_emulator(job: dict[str, Any]) -> dict[str, Any]:
    """Answer with an Emulator; return its memory, and what the bare script needs to do the same."""
    from eft_local.backends.llamacpp import Model
    from eft_local.backends.llamacpp.library import default_threads
    from eft_local.emulator import Emulator
    from eft_local.engine.loading import Library, mixed_roles
    from eft_local.hub.references import find_recipe
    from eft_local.prompts.render import conversation

    memory = {"after imports": resident()}
    recipe = find_recipe(job["recipe"])
    # As Emulator.load does, but in two steps: the prompts' token ids are wanted below.
    library = Library()
    roles = library.load(recipe, mixed_roles(recipe))
    with closing(library), Emulator(recipe, roles, library) as emulator:
        memory["after loading"] = resident()
        tokens: list[int] = []
        for step in emulator.stream_chat(
            PROMPT, max_tokens=job["tokens"], seed=0, statistics=job["statistics"], top=10 if job["statistics"] else 0
        ):
            tokens.append(step.token or 0)
        memory["after the answer"] = resident()
        contexts: dict[Any, dict[str, Any]] = {}
        for loaded in roles.values():
            model, adapter = cast(Model, loaded.model), loaded.adapter
            files = {"model": str(model.path), "lora": str(adapter.path) if adapter else None}
            context = contexts.setdefault(
                loaded.context_key, files | {"mmap": loaded.placement.mmap is True, "prompts": []}
            )
            context["prompts"].append(loaded.tokens(conversation(PROMPT)))
        return {
            "memory": memory,
            "context": recipe.context,
            "threads": default_threads(),
            "contexts": list(contexts.values()),
            "tokens": tokens,
        }


def run_bare(job: dict[str, Any]) -> dict[str, Any]:
    """Load the same files, each once, with llama.cpp's own functions and decode the same tokens."""
    import llama_cpp

    memory = {"after imports": resident()}
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    models: dict[str, Any] = {}
    contexts = []
    for each in job["contexts"]:
        path, count = each["model"], len(each["prompts"])
        if path not in models:
            loading = llama_cpp.llama_model_default_params()
            modes = {True: llama_cpp.LLAMA_LOAD_MODE_MMAP, False: llama_cpp.LLAMA_LOAD_MODE_NONE}
            loading.load_mode = modes[each["mmap"]]
            models[path] = llama_cpp.llama_model_load_from_file(path.encode(), loading)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = job["context"] * count
        params.n_seq_max = count
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = job["threads"]
        contexts.append(llama_cpp.llama_init_from_model(models[path], params))
        if each["lora"]:
            adapter = llama_cpp.llama_adapter_lora_init(models[path], each["lora"].encode())
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
            llama_cpp.llama_set_adapters_lora(contexts[-1], adapters, 1, (ctypes.c_float * 1)(1.0))
    memory["after loading"] = resident()

    def decode(context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: token, position, sequence, whether its logits are wanted."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_batch_free(batch)

    for context, each in zip(contexts, job["contexts"], strict=True):
        for sequence, prompt in enumerate(each["prompts"]):
            ends = (*[False] * (len(prompt) - 1), True)
            decode(context, [(token, i, sequence, ends[i]) for i, token in enumerate(prompt)])
    for step, token in enumerate(job["tokens"][:-1]):
        for context, each in zip(contexts, job["contexts"], strict=True):
            prompts = enumerate(each["prompts"])
            decode(context, [(token, len(prompt) + step, sequence, True) for sequence, prompt in prompts])
    memory["after the answer"] = resident()
    return {"memory": memory}


CHILDREN = {"emulator": run_emulator, "bare": run_bare}


def child(kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a fresh process."""
    command = [sys.executable, "-m", "eft_local.bench.studies.memory", "--child", kind]
    done = subprocess.run(command, input=json.dumps(job), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def shape_recipe(folder: Path, shape: str, vocabulary: str) -> Path:
    """Write a recipe for three models of one shape."""
    from eft_local.bench.studies.blank import blank_model

    base, antiexpert, tuned = (blank_model(folder, shape, vocabulary, seed) for seed in (1, 2, 3))
    path = folder / f"{shape}-{vocabulary}.toml"
    roles = {"base": base, "antiexpert": antiexpert, "experts.tuned": tuned}
    tables = [f'[{name}]\nmodel = "{file.name}"\nprompt = "plain"\n' for name, file in roles.items()]
    path.write_text("\n".join(["context = 1024\n", *tables]))
    return path


def expert_recipe(folder: Path, shape: str, vocabulary: str, kind: str) -> Path:
    """Write a recipe whose expert has no model of its own: a LoRA adapter of rank 16 ("lora"), or a prompt."""
    from eft_local.bench.studies.blank import blank_model
    from eft_local.bench.studies.gguf_factory import write_adapter

    base, small = blank_model(folder, shape, vocabulary, 1), blank_model(folder, SMALL, vocabulary, 2)
    expert = 'model = "@antiexpert"\nprompt = "few-shot"\nexamples = [["What is the capital of Italy?", "Rome."]]'
    if kind == "lora":
        adapter = folder / f"lora-{SMALL}.gguf"
        write_adapter(adapter, small, rank=16, alpha=16, strength=0.01, quantization="F16")
        expert = f'model = "@antiexpert"\nlora = "{adapter.name}"\nprompt = "plain"'
    path = folder / f"{kind}-{shape}-{vocabulary}.toml"
    roles = {"base": f'model = "{base.name}"', "antiexpert": f'model = "{small.name}"', f"experts.{kind}": expert}
    path.write_text("\n".join(["context = 1024\n", *(f"[{name}]\n{table}\n" for name, table in roles.items())]))
    return path


def compare(recipe: str, tokens: int, statistics: bool) -> dict[str, Any]:
    ours = child("emulator", {"recipe": recipe, "tokens": tokens, "statistics": statistics})
    bare = child("bare", ours)
    return {
        "recipe": recipe,
        "tokens": len(ours["tokens"]),
        "files": sorted({Path(file) for each in ours["contexts"] for file in (each["model"], each["lora"]) if file}),
        "sequences": [len(each["prompts"]) for each in ours["contexts"]],
        "emulator": ours["memory"],
        "bare": bare["memory"],
        "difference": {
            moment: {name: values[name] - bare["memory"][moment][name] for name in values}
            for moment, values in ours["memory"].items()
        },
    }


def report(result: dict[str, Any]) -> None:
    size = sum(file.stat().st_size for file in result["files"]) / 1e6
    print(f"{result['recipe']}: {result['tokens']} tokens; {len(result['files'])} files of {size:.1f} MB, "
          f"{result['sequences']} sequences in their contexts; resident MB now (peak)")  # fmt: skip
    for moment in result["emulator"]:
        row = "".join(
            f"   {who} {result[who][moment]['now']:7.1f} ({result[who][moment]['peak']:7.1f})"
            for who in ("emulator", "bare", "difference")
        )
        print(f"  {moment:17}{row}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.memory", description=__doc__)
    parser.add_argument("--recipe", action="append", help="recipe to run (default: demo, and --shape)")
    parser.add_argument("--shape", default="0.5b", help="shape of three models with --vocabulary")
    parser.add_argument("--vocabulary", default="152k")
    parser.add_argument("--lora", action="store_true", help="experts without a model of their own: LoRA, and a prompt")
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-statistics", action="store_true", help="without the Steps' statistics and candidates")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](json.load(sys.stdin))))
        return
    recipes = options.recipe
    if not recipes:
        from eft_local.bench.shapes import default_folder

        folder = options.folder or default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        shape = options.shape, options.vocabulary
        if options.lora:
            recipes = [str(expert_recipe(folder, *shape, kind)) for kind in ("lora", "prompt")]
        else:
            recipes = ["demo", str(shape_recipe(folder, *shape))]
    results = [compare(recipe, options.tokens, not options.no_statistics) for recipe in recipes]
    if options.json:
        print(json.dumps(results, indent=2, default=str))
        return
    for result in results:
        report(result)
    worst = max(result["difference"]["after the answer"][name] for result in results for name in ("now", "peak"))
    print(f"at most {worst:.1f} MB above the bare script; allowed are {ALLOWED_MB} MB")


if __name__ == "__main__":
    main()
