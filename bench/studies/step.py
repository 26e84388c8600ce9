"""What one emulated token costs beyond its three evaluations. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import llama_cpp

from eft_local.backends.llamacpp import Model
from eft_local.backends.llamacpp.library import default_threads
from eft_local.bench.lockstep import lockstep
from eft_local.bench.shapes import default_folder
from eft_local.bench.studies.blank import load
from eft_local.bench.studies.samples import shown, spread
from eft_local.emulator import Emulator
from eft_local.engine.loading import LoadedRole
from eft_local.engine.step import Step
from eft_local.prompts.render import conversation
from eft_local.recipe import Expert, Prompt, Recipe, Role, Sampling

PROMPT = "What is the capital of Peru?"
PLAIN = Prompt("plain")
ROLES = ("base", "antiexpert", "tuned")
GREEDY, DEFAULT = Sampling(temperature=0), Sampling()
Steps = Generator[Step, None, None]
Samples = dict[str, list[float]]


class BareContext:
    """One model evaluated row by row with llama.cpp's own functions and nothing else."""

    def __init__(self, model: Model, prompt: Sequence[int], context: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = default_threads()
        self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        self._batch = llama_cpp.llama_batch_init(len(prompt), 0, 1)
        self._length = 0
        self.evaluate(prompt)

    def evaluate(self, tokens: Sequence[int]) -> float:
        """Append tokens; return the milliseconds that llama.cpp took."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = self._length + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.logits[row] = row == len(tokens) - 1
        started = time.perf_counter()
        status = llama_cpp.llama_decode(self._handle, batch)
        llama_cpp.llama_synchronize(self._handle)
        elapsed = time.perf_counter() - started
        if status:
            raise SystemExit(f"llama_decode failed with status {status}")
        self._length += len(tokens)
        return 1000 * elapsed

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._handle)


class Stopwatch:
    """Adds up the milliseconds inside llama.cpp (its evaluations and samplers), whoever calls it.

    clock: gives seconds, of the wall or of this thread's own computing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.inside = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        clock, decode, synchronize = self.clock, llama_cpp.llama_decode, llama_cpp.llama_synchronize
        apply = llama_cpp.llama_sampler_apply

        def timed_decode(handle: object, batch: object) -> object:
            started = clock()
            status = decode(handle, batch)
            synchronize(handle)
            self.inside += 1000 * (clock() - started)
            return status

        def timed_apply(sampler: object, candidates: object) -> None:
            started = clock()
            apply(sampler, candidates)
            self.inside += 1000 * (clock() - started)

        llama_cpp.llama_decode, llama_cpp.llama_sampler_apply = timed_decode, timed_apply
        try:
            yield
        finally:
            llama_cpp.llama_decode, llama_cpp.llama_sampler_apply = decode, apply

    def time(self, steps: Steps) -> tuple[float, int]:
        """Take the next step; return its milliseconds and its token."""
        started = self.clock()
        step = next(steps)
        elapsed = self.clock() - started
        if step.token is None or step.finish_reason:
            raise SystemExit(f"the answer ended early ({step.finish_reason}); ask for fewer tokens")
        return 1000 * elapsed, step.token


def emulator(models: Sequence[Model], context: int, sampling: Sampling = DEFAULT) -> Emulator:
    """Make an Emulator on models that are loaded already: what is compared runs on the same weights."""
    base, antiexpert, tuned = (Role(model=model.path.name, prompt=PLAIN) for model in models)
    recipe = Recipe(
        base=base,
        antiexpert=antiexpert,
        experts={"tuned": Expert(model=tuned.model, prompt=PLAIN)},
        context=context,
        sampling=sampling,
        draft="off",
    )
    placement = recipe.placement_of(base)
    roles = (base, antiexpert, recipe.experts["tuned"])
    return Emulator(
        recipe,
        {name: LoadedRole(role, placement, model) for name, role, model in zip(ROLES, roles, models, strict=True)},
    )


def measure_ratio(models: Sequence[Model], rounds: int, context: int, clock: Callable[[], float]) -> Samples:
    """Milliseconds of bare calls and of whole emulated steps, round by round, and the quotient of each round."""
    with ExitStack() as cleanup:
        emulated = cleanup.enter_context(emulator(models, context))
        placement = emulated.recipe.placement_of(emulated.recipe.base)
        prompt = LoadedRole(emulated.recipe.base, placement, models[0]).tokens(conversation(PROMPT))
        bare = {name: BareContext(model, prompt, context) for name, model in zip(ROLES, models, strict=True)}
        for each in bare.values():
            cleanup.callback(each.close)
        steps = lockstep(emulated, PROMPT, max_tokens=rounds + 2, seed=0)
        cleanup.callback(steps.close)
        token = next(steps).token  # the prompt, with the first token
        watch = Stopwatch(clock)
        samples: Samples = {name: [] for name in (*ROLES, "sum", "emulated", "ratio")}
        for number in range(rounds):
            if number % 2:  # whoever comes second finds the caches as the other left them
                step_ms, following = watch.time(steps)
            for name in ROLES:
                samples[name].append(bare[name].evaluate([token or 0]))
            if not number % 2:
                step_ms, following = watch.time(steps)
            token = following
            samples["sum"].append(sum(samples[name][-1] for name in ROLES))
            samples["emulated"].append(step_ms)
            samples["ratio"].append(step_ms / samples["sum"][-1])
    return samples


def measure_overhead(models: Sequence[Model], rounds: int, context: int, clock: Callable[[], float]) -> Samples:
    """Milliseconds per token outside llama_decode, the four ways of asking in turn, token by token."""
    ways = {
        f"{name}, statistics {'on, top 10' if statistics else 'off'}": (sampling, statistics)
        for name, sampling in (("greedy", GREEDY), ("default sampling", DEFAULT))
        for statistics in (False, True)
    }
    samples: Samples = {name: [] for name in ways}
    watch = Stopwatch(clock)
    with watch.running(), ExitStack() as cleanup:
        streams = {}
        for name, (sampling, statistics) in ways.items():
            emulated = cleanup.enter_context(emulator(models, context, sampling))
            steps = lockstep(emulated, PROMPT, seed=0, statistics=statistics, top=10 if statistics else 0)
            cleanup.callback(steps.close)
            streams[name] = steps
            next(steps)  # the prompt, with the first token
        for _ in range(rounds):
            for name, steps in streams.items():
                watch.inside = 0.0
                elapsed, _ = watch.time(steps)
                samples[name].append(elapsed - watch.inside)
    return samples


def report(title: str, samples: Samples, units: dict[str, str]) -> None:
    print(title)
    for name, values in samples.items():
        print(f"  {name:32} {shown(values, units.get(name, 'ms'))}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.step", description=__doc__)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where the models are written")
    parser.add_argument("--base", default="7b", help="shape of the base in the ratio run (see shapes.py)")
    parser.add_argument("--small", default="0.5b", help="shape of all other models")
    parser.add_argument("--rounds", type=int, default=30, help="emulated steps in the ratio run")
    parser.add_argument("--tokens", type=int, default=50, help="tokens per way of asking in the overhead run")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--only", choices=("ratio", "overhead"))
    parser.add_argument("--cpu-time", action="store_true", help="count our thread's computing only (overhead)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    results = {}
    plans = {
        "ratio": ((options.base, options.small, options.small), "32k", measure_ratio, options.rounds),
        "overhead": ((options.small,) * 3, "152k", measure_overhead, options.tokens),
    }
    for kind, (shapes, vocabulary, measure, rounds) in plans.items():
        if options.only in (None, kind):
            with ExitStack() as cleanup:
                models = [
                    cleanup.enter_context(load(options.folder, shape, vocabulary, seed))
                    for seed, shape in enumerate(shapes, 1)
                ]
                samples = measure(models, rounds, options.context, clock)
            results[kind] = {name: spread(values) for name, values in samples.items()}
            if not options.json:
                report(f"{kind}: {', '.join(shapes)}; vocabulary {vocabulary}", samples, {"ratio": "  "})
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
