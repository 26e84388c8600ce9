"""What an Emulator holds in memory beyond the models that it runs. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Only the standard library up here: each child measures its own imports.

PROMPT = "What is the capital of Peru?"
ALLOWED_MB = 60


def resident() -> dict[str, float]:
    """Return the memory of the process in MB (10⁶ bytes): now, and at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def run_emulator(job: dict[str, Any]) -> dict[str, Any]:
    """Answer with an Emulator; return its memory, and what the bare script needs to do the same."""
    from eft_local.emulator import Emulator
    from eft_local.emulator.loading import Library, mixed_roles
    from eft_local.llama.library import default_threads
    from eft_local.prompts import conversation
    from eft_local.references import find_recipe

    memory = {"after imports": resident()}
    recipe = find_recipe(job["recipe"])
    # As Emulator.load does, but in two steps: the prompts' token ids are wanted below.
    library = Library()
    roles = library.load(recipe, mixed_roles(recipe))
    with Emulator(recipe, roles, library) as emulator:
        memory["after loading"] = resident()
        tokens: list[int] = []
        for step in emulator.stream(
            PROMPT, max_tokens=job["tokens"], seed=0, facts=job["facts"], top=10 if job["facts"] else 0
        ):
            tokens.append(step.token or 0)
        memory["after the answer"] = resident()
        return {
            "memory": memory,
            "context": recipe.context,
            "threads": default_threads(),
            "models": [
                [str(loaded.model.path), loaded.tokens(conversation(PROMPT))]  # type: ignore[attr-defined]
                for loaded in roles.values()
            ],
            "tokens": tokens,
        }


def run_bare(job: dict[str, Any]) -> dict[str, Any]:
    """Load the same files with llama.cpp's own functions and decode the same tokens."""
    import llama_cpp

    memory = {"after imports": resident()}
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    contexts = []
    for path, _ in job["models"]:
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = job["context"]
        params.n_threads = params.n_threads_batch = job["threads"]
        contexts.append(llama_cpp.llama_init_from_model(model, params))
    memory["after loading"] = resident()

    def decode(context: Any, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch does not keep it
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")

    for context, (_, prompt) in zip(contexts, job["models"], strict=True):
        decode(context, prompt)
    for token in job["tokens"][:-1]:
        for context in contexts:
            decode(context, [token])
    memory["after the answer"] = resident()
    return {"memory": memory}


CHILDREN = {"emulator": run_emulator, "bare": run_bare}


def child(kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a fresh process."""
    command = [sys.executable, "-m", "eft_local.bench.memory", "--child", kind]
    done = subprocess.run(command, input=json.dumps(job), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def shape_recipe(folder: Path, shape: str, vocabulary: str) -> Path:
    """Write a recipe for three models of one shape."""
    from eft_local.bench.blank import blank_model

    base, antiexpert, tuned = (blank_model(folder, shape, vocabulary, seed) for seed in (1, 2, 3))
    path = folder / f"{shape}-{vocabulary}.toml"
    roles = {"base": base, "antiexpert": antiexpert, "experts.tuned": tuned}
    tables = [f'[{name}]\nmodel = "{file.name}"\nprompt = "plain"\n' for name, file in roles.items()]
    path.write_text("\n".join(["context = 1024\n", *tables]))
    return path


def compare(recipe: str, tokens: int, facts: bool) -> dict[str, Any]:
    ours = child("emulator", {"recipe": recipe, "tokens": tokens, "facts": facts})
    bare = child("bare", ours)
    return {
        "recipe": recipe,
        "tokens": len(ours["tokens"]),
        "emulator": ours["memory"],
        "bare": bare["memory"],
        "difference": {
            moment: {name: values[name] - bare["memory"][moment][name] for name in values}
            for moment, values in ours["memory"].items()
        },
    }


def report(result: dict[str, Any]) -> None:
    print(f"{result['recipe']}: {result['tokens']} tokens; resident MB now (peak)")
    for moment in result["emulator"]:
        row = "".join(
            f"   {who} {result[who][moment]['now']:7.1f} ({result[who][moment]['peak']:7.1f})"
            for who in ("emulator", "bare", "difference")
        )
        print(f"  {moment:17}{row}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.memory", description=__doc__)
    parser.add_argument("--recipe", action="append", help="recipe to run (default: demo, and --shape)")
    parser.add_argument("--shape", default="0.5b", help="shape of three models with --vocabulary")
    parser.add_argument("--vocabulary", default="152k")
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-facts", action="store_true", help="without the Steps' facts and candidates")
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
        recipes = ["demo", str(shape_recipe(folder, options.shape, options.vocabulary))]
    results = [compare(recipe, options.tokens, not options.no_facts) for recipe in recipes]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        report(result)
    worst = max(result["difference"]["after the answer"][name] for result in results for name in ("now", "peak"))
    print(f"at most {worst:.1f} MB above the bare script; allowed are {ALLOWED_MB} MB")


if __name__ == "__main__":
    main()
