"""The same three models in transformers, beside ours, in one run. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from gguf import GGUFReader

from eft_local.backends.vocabulary import common_tokens
from eft_local.bench import shapes
from eft_local.bench.studies import proxy_tuning
from eft_local.bench.studies.peer_results import Row, Written, report, summary
from eft_local.emulator import Emulator
from eft_local.engine.loading import Library, LoadedRole, antiexpert_name, mixed_roles
from eft_local.engine.step import Step
from eft_local.errors import EftError, EvaluationError, OutOfMemoryError, UnsupportedModelError, UsageError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe, resolve_model
from eft_local.prompts.render import conversation
from eft_local.recipe import Recipe

SERVE = "--serve"  # makes this module one of its own processes
WARM_UP = "What is the capital of Peru?"
_PROMPT = 4  # questions that make one long prompt
_VISITS = 2  # of each process, where they do not fit into memory together
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Contender:
    """One process: ours with weights of a quantisation, or the peer with weights of a dtype.

    job: the first line that it reads. drafts: how it writes answers, a recipe's `draft`; the peer has none.
    weights: their bytes.
    """

    name: str
    command: tuple[str, ...]
    job: Mapping[str, Any]
    weights: int
    is_peer: bool = False

    @property
    def drafts(self) -> tuple[str, ...]:
        return ("off",) if self.is_peer else ("off", "auto")

    @property
    def need(self) -> float:
        """Bytes of memory that it may take."""
        return 1.1 * self.weights + 1e9

    def row(self, draft: str) -> str:
        """Return what the tables call this way of writing."""
        return self.name if draft == "off" else f"{self.name}, drafts"


class Worker:
    """A contender's process, loaded, which answers one request after another."""

    def __init__(self, contender: Contender, details: Mapping[str, Any]) -> None:
        """details: what its first line says beside the contender's job. Raises: EvaluationError."""
        self._name = contender.name
        self._process = subprocess.Popen(
            contender.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self.ready = self.ask({**contender.job, **details})
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and return the one that answers it. Raises: EvaluationError."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended; see what it said above"}
        if "error" in answer:
            raise EvaluationError(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve() -> None:
    """Be one of our processes: load the recipe of the first line, answer the others, as `proxy_tuning` does."""

    def write(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    job = json.loads(sys.stdin.readline())
    try:
        recipe = Recipe.from_text(job["recipe"], job["folder"] and Path(job["folder"]))
        library = Library()
        roles = library.load(recipe, mixed_roles(recipe))
        with closing(library), Emulator(recipe, roles, library) as emulator:
            tables = {name: loaded.vocabulary for name, loaded in roles.items()}
            common = common_tokens(tables)
            write({"n_vocab": common.width, "unused": common.hidden.tolist()})
            for line in sys.stdin:
                write(answer(emulator, roles, **json.loads(line)))
    except EftError as error:
        write({"error": str(error)})


def answer(
    emulator: Emulator, roles: Mapping[str, LoadedRole], question: str, max_tokens: int, draft: str
) -> dict[str, Any]:
    """Answer a question and time its first token and the rest."""
    recipe = emulator.recipe.replace(draft=draft)
    times = [time.perf_counter()]
    tokens = []

    def note(step: Step) -> None:
        times.append(time.perf_counter())
        tokens.append(step.token)

    written = emulator.chat(question, recipe=recipe, max_tokens=max_tokens, seed=0, on_step=note)
    return {
        "tokens": tokens,
        "first_seconds": times[1] - times[0],
        "rest_seconds": times[-1] - times[1],
        "evaluated": written.evaluated_tokens["base"],
        "prompts": {name: role.tokens(conversation(question)) for name, role in roles.items()},
        "memory": proxy_tuning.resident(),
    }


def our_contender(recipe: Recipe, quantization: str) -> Contender:
    """recipe: with models of this quantisation."""
    return Contender(
        name=f"eft {quantization}",
        command=(sys.executable, "-m", "eft_local.bench.studies.peer_transformers", SERVE),
        job={"recipe": recipe.to_toml(), "folder": recipe.folder and str(recipe.folder)},
        weights=file_bytes(recipe),
    )


def peer_contender(recipe: Recipe, dtype: str, python: str, threads: int) -> Contender:
    """recipe: with the models to convert. Raises: UsageError for what the published method does not know."""
    filters = (recipe.conservative_filter, recipe.plausibility_mask, recipe.plausibility_top_p)
    if recipe.beta != 1 or filters != (None, None, None):
        raise UsageError(f"recipe {recipe.name}: the peer knows alpha alone; leave beta at 1 and filters and masks out")
    files = model_files(recipe)
    try:
        shapes = [proxy_tuning.read_shape(GGUFReader(path), path.name) for path in set(files.values())]
    except proxy_tuning.PeerError as error:
        raise UnsupportedModelError(str(error)) from error
    deltas = [
        {"expert": name, "antiexpert": antiexpert_name(recipe, name), "alpha": alpha}
        for name, alpha in recipe.alphas.items()
    ]
    models = {name: str(path) for name, path in files.items()}
    return Contender(
        name=f"transformers {dtype}",
        command=(python, "-P", proxy_tuning.__file__),  # -P: its folder holds modules with the names of others
        job={"models": models, "deltas": deltas, "dtype": dtype, "threads": threads},
        weights=sum(shape.parameters for shape in shapes) * _ITEM_BYTES[dtype],
        is_peer=True,
    )


def model_files(recipe: Recipe) -> dict[str, Path]:
    """Return the mixture's files by role. Raises: ModelNotFoundError, UsageError."""
    roles = mixed_roles(recipe)
    if any(role.lora for role in roles.values()):
        raise UsageError(f"recipe {recipe.name} has LoRA adapters, which are not compared with transformers")
    return {name: resolve_model(role.model, recipe.folder) for name, role in roles.items()}


def file_bytes(recipe: Recipe) -> int:
    """Return the size of the mixture's files."""
    return sum(path.stat().st_size for path in {path.resolve() for path in model_files(recipe).values()})


def check_peer(python: str) -> dict[str, str]:
    """Return the versions that the peer runs on. Raises: UsageError if it cannot run with this interpreter."""
    try:
        done = subprocess.run(
            [python, "-P", proxy_tuning.__file__, "--versions"], text=True, capture_output=True, check=False
        )
    except OSError as error:
        raise UsageError(f"--peer-python {python}: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(
            f"{python} cannot run the peer ({reason}); install eft-local[peer] there, or name another interpreter "
            "with --peer-python"
        )
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def fit_together(contenders: Sequence[Contender], available: int) -> bool:
    """Whether all processes may run at once. Raises: OutOfMemoryError if one of them does not fit alone."""
    largest = max(contenders, key=lambda contender: contender.need)
    if largest.need > available:
        raise OutOfMemoryError(
            f"{largest.name} needs {largest.need / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            "choose a smaller --shape, or other --formats and --dtypes"
        )
    return sum(contender.need for contender in contenders) <= available


def plan(contenders: Sequence[Contender], questions: int, together: bool) -> Iterator[tuple[Contender, range]]:
    """Yield who answers which questions next.

    The first contender always begins, as peers follow its answers; the others turn their order each time.
    """
    count = questions if together else min(_VISITS, questions)
    first, *rest = contenders
    for number in range(count):
        part = range(number * questions // count, (number + 1) * questions // count)
        for contender in (first, *(reversed(rest) if number % 2 else rest)):
            yield contender, part


class Run:
    """Lets every contender answer every question, and keeps what was measured: `rows`, by name."""

    def __init__(self, contenders: Sequence[Contender], questions: Sequence[str], max_tokens: int) -> None:
        """contenders: the first is one of ours; peers follow its answers, and learn from it what tokens there are."""
        self.rows = {
            contender.row(draft): Row(contender.weights) for contender in contenders for draft in contender.drafts
        }
        self._contenders = contenders
        self._questions = questions
        self._max_tokens = max_tokens
        self._workers: dict[str, Worker] = {}
        self._vocabulary: dict[str, Any] = {}
        self._prompts: dict[str, dict[str, list[int]]] = {}  # by text and role, as ours makes them

    def measure(self, together: bool) -> None:
        """together: keep every process once it is loaded. Raises: EvaluationError."""
        with ExitStack() as running:
            for contender, part in plan(self._contenders, len(self._questions), together):
                if not together:
                    running.close()
                    self._workers.clear()
                if contender.name not in self._workers:
                    self._start(contender, running)
                self._visit(contender, part)

    def _start(self, contender: Contender, running: ExitStack) -> None:
        """Load a contender and warm it up."""
        print(f"{contender.name}: loading", file=sys.stderr, flush=True)
        worker = self._workers[contender.name] = running.enter_context(Worker(contender, self._vocabulary))
        if not contender.is_peer:
            self._vocabulary = worker.ready
        for draft in contender.drafts:
            self._ask(contender, draft, WARM_UP, 8)

    def _visit(self, contender: Contender, part: range) -> None:
        """Answer these questions, then time a long prompt."""
        leader = next(iter(self.rows.values()))
        for index in part:
            follow = leader.answers[index].tokens if contender.is_peer else ()
            for draft in reversed(contender.drafts) if index % 2 else contender.drafts:
                answer = self._ask(contender, draft, self._questions[index], self._max_tokens, follow)
                written = Written(tuple(answer["tokens"]), answer["rest_seconds"], tuple(answer.get("margins", ())))
                self.rows[contender.row(draft)].answers[index] = written
        count = len(self._questions)
        text = " ".join(self._questions[(part.start + offset) % count] for offset in range(_PROMPT))
        answer = self._ask(contender, contender.drafts[0], text, 1)
        for draft in contender.drafts:
            row = self.rows[contender.row(draft)]
            row.prompts.append(answer["evaluated"] / answer["first_seconds"])
            row.remember(answer["memory"])

    def _ask(
        self, contender: Contender, draft: str, text: str, max_tokens: int, follow: Sequence[int] = ()
    ) -> dict[str, Any]:
        worker = self._workers[contender.name]
        if contender.is_peer:
            prompts = self._prompts[text]
            answer = worker.ask({"prompts": prompts, "max_tokens": max_tokens, "follow": follow})
            return answer | {"evaluated": len(prompts["base"])}
        answer = worker.ask({"question": text, "max_tokens": max_tokens, "draft": draft})
        self._prompts[text] = answer["prompts"]
        return answer


def processor() -> str:
    """Return the processor's name, as Linux reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {psutil.cpu_count()} cores"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line requests. Raises: EftError."""
    from eft_local.backends.llamacpp.library import default_threads

    if options.questions < 1 or options.max_tokens < 2:
        raise UsageError("a speed needs at least one question (--questions) and two tokens (--max-tokens)")
    versions = check_peer(options.peer_python)
    threads = options.threads or default_threads()
    recipe = find_recipe(options.recipe).replace(
        temperature=0, threads=threads, threads_batch=threads, mmap=not options.no_mmap
    )
    chosen = read_questions(demo_questions()).select(split="held-out", kind=options.kind, limit=options.questions)
    recipes = {name: scale(recipe, options.shape, name) for name in options.formats}
    largest, *others = sorted(recipes, key=lambda name: -file_bytes(recipes[name]))
    contenders = [our_contender(recipes[name], name) for name in (largest, *others)]
    contenders += [peer_contender(recipes[largest], dtype, options.peer_python, threads) for dtype in options.dtypes]
    together = fit_together(contenders, psutil.virtual_memory().available)
    measured = Run(contenders, [item.question for item in chosen.items], options.max_tokens)
    measured.measure(together)
    return {
        "recipe": recipe.name,
        "shape": options.shape,
        "kind": options.kind,
        "questions": len(chosen.items),
        "max_tokens": options.max_tokens,
        "threads": threads,
        "mmap": not options.no_mmap,
        "order": "take turns question by question"
        if together
        else "run one by one: together they do not fit into memory",
        "machine": processor(),
        "peer": versions,
        **summary(measured.rows, [contender.name for contender in contenders if contender.is_peer]),
    }


def scale(recipe: Recipe, shape: str, quantization: str) -> Recipe:
    """Return the recipe with copies of its models, of this shape and quantisation."""
    if shape == "none":
        return shapes.unwidened_recipe(recipe, quantization)
    return shapes.scaled_recipe(recipe, shape, quantization=quantization)


def main() -> None:
    if sys.argv[1:] == [SERVE]:
        serve()
        return
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.peer_transformers", description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--shape", default="7b", help=f"{', '.join(shapes.TRIOS)}, or none: the models' own")
    parser.add_argument("--formats", nargs="+", default=["F16", "Q4_0"], help="of our weights")
    parser.add_argument(
        "--dtypes", nargs="+", choices=_ITEM_BYTES, default=["bfloat16", "float16"], help="of the peer's weights"
    )
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--kind", choices=("long", "short"), default="long")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--threads", type=int, help="of both (default: ours chooses)")
    parser.add_argument("--no-mmap", action="store_true", help="read our weights instead of mapping their files")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch and transformers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        result = run(options)
    except EftError as error:
        print(f"peer_transformers: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(result, indent=2) if options.json else report(result))


if __name__ == "__main__":
    main()
