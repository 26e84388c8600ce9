"""One interleaved run of everything that `eft bench` reports: roles alone, plain, with drafts, batches, prompts.

All of it runs on the same loaded models. Answers are greedy, so every contender writes the same ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import psutil

from eft_local.backends.llamacpp import Model
from eft_local.bench.bare import BareContext, Watch, watched
from eft_local.bench.lockstep import lockstep
from eft_local.bench.results import (
    AUTO,
    BASE,
    PLAIN,
    Answers,
    Benchmark,
    Memory,
    PromptTime,
    Run,
    TokenTime,
    fixed,
)
from eft_local.bench.schedule import Part, interleave, rotated
from eft_local.emulator import Emulator
from eft_local.engine.kv import common_prefix
from eft_local.engine.loading import LoadedRole
from eft_local.engine.step import Step
from eft_local.errors import Cancelled
from eft_local.evals.questions import Questions
from eft_local.machine.cores import CoreMeter
from eft_local.prompts.render import conversation
from eft_local.recipe import Recipe

KINDS = ("long", "short")
MAX_TOKENS = {"long": 96, "short": 48}
LENGTHS = (1, 3, 7, 15)
ALL_LENGTHS = tuple(range(1, 17))
BATCHES = (1, 2, 4, 8)
BATCH_TOKENS = 16  # so few that no long answer ends before: all of a batch write to the last step
STEP_TOKENS = 24  # of each answer that are evaluated both ways
PROMPT_TOKENS = 256  # of the base's prompt where the reading of prompts is measured
PRIMER = "?"
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long.

    kinds: of answers, the main one first. lengths: of fixed drafts. seconds: that may pass before the last block
    begins; what a ratio needs at least is measured in any case. limit: questions of a kind at most.
    """

    kinds: Sequence[str] = KINDS
    lengths: Sequence[int] = LENGTHS
    seconds: float = 480.0
    limit: int | None = None


@dataclass(slots=True)
class _Samples:
    """What one kind of answers has given so far."""

    questions: list[Mapping[str, Run]] = field(default_factory=list)
    tokens: list[TokenTime] = field(default_factory=list)
    skipped: int = 0


class Measurement:
    """Loaded roles, the contexts to run them in, and the samples so far. Close it, or use it in a `with`."""

    def __init__(self, recipe: Recipe, roles: Mapping[str, LoadedRole], questions: Questions, plan: Plan) -> None:
        """recipe: with the sampling that the answers shall have, greedy for comparable ones.

        questions: of every kind in the plan, and long ones for batches and prompts.
        Raises: VocabularyMismatchError, OutOfMemoryError, UsageError.
        """
        self._recipe, self._roles, self._plan = recipe, dict(roles), plan
        self._texts = {kind: _shuffled(questions, kind) for kind in {*plan.kinds, "long"}}
        self._stopped = False
        self._running: Emulator | None = None
        self._samples = {kind: _Samples() for kind in plan.kinds}
        self._batches: list[Mapping[tuple[str, int], float]] = []
        self._prompts: list[PromptTime] = []
        self._parts = self._planned()
        self._cores = CoreMeter()
        with ExitStack() as cleanup:
            # One Emulator per kind and one for batches: what `auto` has learnt in one does not help it in another.
            self._emulators = {name: cleanup.enter_context(self._emulator()) for name in (*plan.kinds, "batches")}
            self._bare = {
                name: cleanup.enter_context(BareContext.of(role, recipe.context)) for name, role in roles.items()
            }
            self._cleanup = cleanup.pop_all()

    def run(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Measure until the plan's time is over. progress: called with what is done, before each block.

        Raises: Cancelled after `cancel`; what was complete then is kept.
        """
        started = time.perf_counter()
        self._cores = CoreMeter()
        progress("warming up")
        self._warm_up()
        left = self._plan.seconds - (time.perf_counter() - started)
        interleave(self._parts, left, on_block=lambda: progress(self._done()))

    def cancel(self) -> None:
        """Stop soon; callable from another thread."""
        self._stopped = True
        if running := self._running:
            running.cancel()

    @property
    def is_complete(self) -> bool:
        """Whether there are samples for every figure."""
        answers = all(samples.questions and samples.tokens for samples in self._samples.values())
        return bool(answers and self._batches and self._prompts)

    def result(self, about: Mapping[str, Any], seconds: float) -> Benchmark:
        """Return what was measured. about: what was run and where; seconds: that all of it took."""
        models = {name: _model(role) for name, role in self._roles.items()}
        return Benchmark(
            about=about,
            answers={
                kind: Answers(kind, tuple(samples.questions), tuple(samples.tokens), samples.skipped)
                for kind, samples in self._samples.items()
            },
            batches=tuple(self._batches),
            prompts=tuple(self._prompts),
            memory=Memory(
                roles={name: model.size for name, model in models.items()},
                models=sum({id(model): model.size for model in models.values()}.values()),
                process=psutil.Process().memory_info().rss,
            ),
            parts={part.name: tuple(part.seconds) for part in self._parts},
            seconds=seconds,
            cores=self._cores.use(),
        )

    def close(self) -> None:
        """Free all contexts; the models belong to whoever loaded them."""
        self._cleanup.close()

    def __enter__(self) -> Measurement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _done(self) -> str:
        """Say how many questions have been answered by every contender."""
        return ", ".join(f"{len(samples.questions)} {kind}" for kind, samples in self._samples.items()) + " answers"

    def _emulator(self) -> Emulator:
        # Contexts that have room for drafts from the start: all contenders then run in the same ones.
        return Emulator(_recipe_of(self._recipe, AUTO), self._roles)

    def _planned(self) -> list[Part]:
        parts = []
        for kind in self._plan.kinds:
            most = min(len(self._texts[kind]), self._plan.limit or MOST)
            answers, tokens = (0.5, 0.1) if kind == "long" else (0.15, 0.05)
            parts += [
                Part(f"{kind} answers", answers, min(3, most), most, partial(self._measure_answer, kind)),
                Part(f"{kind} tokens", tokens, min(3, most), most, partial(self._measure_tokens, kind)),
            ]
        blocks = self._plan.limit or MOST
        return [
            *parts,
            Part("batches", 0.2, 1, blocks, self._measure_batches),
            Part("prompts", 0.05, 1, blocks, self._measure_prompt),
        ]

    def _warm_up(self) -> None:
        """Touch all weights and let the costs of rows be measured, on an Emulator that is then thrown away."""
        with self._emulator() as emulator:
            self._running = emulator
            question = self._texts[self._plan.kinds[0]][-1]
            for contender in (PLAIN, AUTO):
                recipe = _recipe_of(emulator.recipe, contender)
                self._check(emulator.chat(question, recipe=recipe, max_tokens=4).finish_reason)

    def _measure_answer(self, kind: str, number: int) -> None:
        """One question, answered by every contender: the mixtures in turned order, the base alone somewhere between."""
        question, emulator = self._texts[kind][number], self._emulators[kind]
        contenders = [PLAIN, *map(fixed, self._plan.lengths), AUTO]
        order = rotated(contenders, number)
        order.insert(1 + number % len(order), BASE)  # not first: it writes as many tokens as the others did
        runs: dict[str, Run] = {}
        with watched("base") as watch:
            for contender in order:
                length = runs[order[0]].steps + 1 if contender == BASE else MAX_TOKENS[kind]
                run = self._answer(emulator, contender, question, length, watch)
                if run.steps == 0:
                    self._samples[kind].skipped += 1
                    return
                runs[contender] = run
        self._samples[kind].questions.append({contender: runs[contender] for contender in (BASE, *contenders)})

    def _answer(self, emulator: Emulator, contender: str, question: str, max_tokens: int, watch: Watch) -> Run:
        """Write one answer and time it from its first token on."""
        self._running = emulator
        recipe = _recipe_of(emulator.recipe, contender)
        times: list[float] = []
        drafted: list[bool] = []

        def on_step(step: Step) -> None:
            if not times:
                watch.clear()  # the prompt's rows say nothing of drafts
            times.append(time.perf_counter())
            drafted.append(step.drafted)
            if self._stopped:  # again: a request between two answers found nothing to stop
                emulator.cancel()

        target = "base" if contender == BASE else "eft"
        answer = emulator.chat(question, target=target, recipe=recipe, max_tokens=max_tokens, on_step=on_step)
        self._check(answer.finish_reason)
        drafts = [rows - 1 for rows in watch.rows]
        if drafted[-1] and len(answer.tokens) < len(times):
            drafts[-1] += 1  # the draft token that ended the answer: nothing follows it, so it had no row
        return Run(answer.tokens, len(times) - 1, times[-1] - times[0], tuple(drafts), sum(drafted))

    def _measure_tokens(self, kind: str, number: int) -> None:
        """Token by token of a plain answer: a step, and the roles' bare evaluations of the token before, in turns."""
        question, emulator = self._texts[kind][number], self._emulators[kind]
        self._running = emulator
        recipe = _recipe_of(emulator.recipe, PLAIN)
        for name, bare in self._bare.items():
            bare.hold(self._roles[name].tokens(conversation(question)))
        with watched("base") as watch:
            steps = lockstep(emulator, question, recipe=recipe, max_tokens=STEP_TOKENS)
            try:
                self._time_tokens(self._samples[kind], steps, watch)
            finally:
                steps.close()

    def _time_tokens(self, samples: _Samples, steps: Generator[Step, None, None], watch: Watch) -> None:
        last = next(steps)
        while last.finish_reason is None:
            token, roles = last.token or 0, {}
            step_first = len(samples.tokens) % 2 == 0  # who comes second finds the caches as the other left them
            if step_first:
                last, seconds, inside = _timed(steps, watch)
            for name, bare in self._bare.items():
                self._check(last.finish_reason)
                roles[name] = bare.evaluate([token])
            if not step_first:
                last, seconds, inside = _timed(steps, watch)
            self._check(last.finish_reason)
            samples.tokens.append(TokenTime(seconds, inside, roles))

    def _measure_batches(self, number: int) -> None:
        """So many long answers side by side, with and without drafts: tokens per second after the first of each."""
        texts, emulator = self._texts["long"], self._emulators["batches"]
        self._running = emulator
        block: dict[tuple[str, int], float] = {}
        names = [f"{contender} {size}" for contender in (PLAIN, AUTO) for size in BATCHES]
        for name in rotated(names, number):
            contender, size = name.split()
            first = number * max(BATCHES)
            questions = [texts[(first + i) % len(texts)] for i in range(int(size))]
            recipe = _recipe_of(emulator.recipe, contender)
            answers = emulator.chat(questions, recipe=recipe, parallel=int(size), max_tokens=BATCH_TOKENS)
            for answer in answers:
                self._check(answer.finish_reason)
            timed = [answer for answer in answers if answer.tokens_per_second > 0]
            tokens = sum(len(answer.tokens) - 1 for answer in timed)
            # Each answer's seconds are its share of the steps it had a part in: together they are the batch's.
            block[contender, int(size)] = tokens / sum((len(a.tokens) - 1) / a.tokens_per_second for a in timed)
        self._batches.append(block)

    def _measure_prompt(self, number: int) -> None:
        """A prompt of many questions: the time of its first token, and of the same tokens without us, in turns."""
        emulator = self._emulators[self._plan.kinds[0]]
        self._running = emulator
        recipe = _recipe_of(emulator.recipe, PLAIN)
        self._check(
            emulator.chat(PRIMER, recipe=recipe, max_tokens=1).finish_reason
        )  # so it is known what its cache holds
        text, new = self._long_prompt(number), {}
        for name, bare in self._bare.items():
            primer, prompt = (self._roles[name].tokens(conversation(each)) for each in (PRIMER, text))
            held = common_prefix(primer, prompt)
            bare.hold(prompt[:held])
            new[name] = prompt[held:]
        seconds = self._time_prompt(emulator, recipe, text) if number % 2 else None
        roles = {}
        for name, bare in self._bare.items():
            roles[name] = bare.evaluate(new[name])
            self._check(None)
        seconds = seconds or self._time_prompt(emulator, recipe, text)
        self._prompts.append(PromptTime(seconds, roles, {name: len(tokens) for name, tokens in new.items()}))

    def _time_prompt(self, emulator: Emulator, recipe: Recipe, text: str) -> float:
        """Return the seconds until the answer's first token is there."""
        started = time.perf_counter()
        answer = emulator.chat(text, recipe=recipe, max_tokens=1)
        seconds = time.perf_counter() - started
        self._check(answer.finish_reason)
        return seconds

    def _long_prompt(self, number: int) -> str:
        """Questions one after the other, beginning at another one each time, until the base's prompt is long."""
        texts, base = self._texts["long"], self._roles["base"]
        length = min(PROMPT_TOKENS, self._recipe.context // 2)
        text = ""
        for i in range(len(texts)):
            longer = f"{text} {texts[(number * 7 + i) % len(texts)]}".strip()
            if text and len(base.tokens(conversation(longer))) > length:
                break
            text = longer
        return text

    def _check(self, finish_reason: str | None) -> None:
        if self._stopped or finish_reason == "cancelled":
            raise Cancelled("the benchmark was stopped")


def _recipe_of(recipe: Recipe, contender: str) -> Recipe:
    """Return the recipe with a contender's drafts."""
    if contender in (PLAIN, BASE):
        return recipe.replace(draft="off")
    return recipe.replace(draft=AUTO if contender == AUTO else int(contender.partition("=")[2]))


def _model(role: LoadedRole) -> Model:
    return cast(Model, role.model)


def _shuffled(questions: Questions, kind: str) -> list[str]:
    """Return the held-out questions of a kind, always in the same random order, so that any number is a fair sample."""
    texts = [each.question for each in questions.select(split="held-out", kind=kind).items]
    random.Random(0).shuffle(texts)
    return texts


def _timed(steps: Iterator[Step], watch: Watch) -> tuple[Step, float, float]:
    """Take the next step; return it with its seconds, and those of them inside llama.cpp."""
    watch.clear()
    started = time.perf_counter()
    step = next(steps)
    return step, time.perf_counter() - started, watch.seconds
