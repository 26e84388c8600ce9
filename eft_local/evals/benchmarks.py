"""Benchmarks: lm-evaluation-harness's tasks and the papers' on several targets, side by side.

What emulation is worth is reported per task, never as a mean over tasks: the share of the gap between the base and the
directly tuned large model that the mixture closes, (mixture − base) / (tuned − base) (Liu et al. 2024, section 3).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eft_local.errors import EftError, UsageError, nearest
from eft_local.evals.answering import Answering
from eft_local.evals.data import SOURCES
from eft_local.evals.kept import Kept

TASKS = tuple(SOURCES)
"""The papers' tasks."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is run.

    tasks: names of the papers' tasks, or lm-eval's.  data: files of items, by the name of a papers' task.
    limit: so many items of each.  fewshot: examples before each item; None for the task's own number.
    chat: whether lm-eval's tasks go through each role's template or frame; the papers' have prompts of their own.
    seed: of draws, and of the choice of examples.  draws: answers per problem where a task samples; None for its own.
    execute: whether code that a model wrote may be run.
    """

    tasks: tuple[str, ...]
    data: Mapping[str, Path] = field(default_factory=dict)
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False
    seed: int = 0
    draws: int | None = None
    execute: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one task for one target: its value, standard error (None where there is none), and the items."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int

    @property
    def key(self) -> tuple[str, str]:
        """What the same figure of another target has in common with it."""
        return self.task, self.metric


@dataclass(frozen=True, slots=True)
class Result:
    """What a target did: its figures, and lm-eval's own results, with every item under `samples`.

    cut_short: answers that ended because the context was full.
    """

    name: str
    figures: tuple[Figure, ...]
    raw: Mapping[str, Any]
    cut_short: int = 0

    def value(self, key: tuple[str, str]) -> float | None:
        """Return a figure by its key."""
        return next((figure.value for figure in self.figures if figure.key == key), None)

    def samples(self) -> dict[str, list[Mapping[str, Any]]]:
        """Return lm-eval's record of each item, by task."""
        return {task: list(rows) for task, rows in self.raw.get("samples", {}).items()}


class Benchmarks:
    """Tasks that are loaded once and run on one target after another."""

    def __init__(self, options: Options) -> None:
        """Raises: UsageError if lm-eval is not installed, or a task does not exist."""
        self.options = options
        self._manager = _task_manager(options)

    def run(
        self, model: Answering, kept: Kept | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Result:
        """Run all tasks on one target.

        kept: where answers are looked up, and kept as they come.
        progress: called with the number of answers that are there, and of those that are wanted.
        Raises: Cancelled, UsageError, DownloadError, and what evaluating raises.
        """
        import lm_eval
        from lm_eval import evaluator

        from eft_local.evals.harness import EftLM

        evaluator.get_git_commit_hash = lambda: None  # of wherever the user stands; outside a checkout git complains

        options, counted = self.options, _Counter(progress)
        lm = EftLM(model, seed=options.seed, kept=kept, progress=counted.one, expected=counted.more)
        try:
            raw = lm_eval.simple_evaluate(
                model=lm,
                tasks=self._loaded(),
                task_manager=self._manager,
                limit=options.limit,
                num_fewshot=options.fewshot,
                apply_chat_template=options.chat,
                bootstrap_iters=1000,
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=None,
                fewshot_random_seed=options.seed,
                confirm_run_unsafe_code=options.execute,
            )
        except (EftError, KeyboardInterrupt):
            raise
        except Exception as error:  # of a task's own code and data
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UsageError(f"lm-eval could not run {', '.join(options.tasks)}: {reason}") from error
        return Result(model.name, tuple(_figures(raw)), raw, lm.cut_short)

    def _loaded(self) -> list[Any]:
        """Return the tasks for lm-eval: by name, and those that sample as objects with as many draws as wanted."""
        tasks: list[Any] = []
        for name in self.options.tasks:
            if name not in TASKS or self.options.draws is None:
                tasks.append(name)
                continue
            task = self._manager.load([name])["tasks"][name]
            if task.config.repeats > 1:
                task.set_config(key="repeats", value=self.options.draws)
            tasks.append(task)
        return tasks


class _Counter:
    """Counts answers for a progress bar."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._progress = progress
        self._done = self._wanted = 0

    def more(self, number: int) -> None:
        self._wanted += number

    def one(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._wanted)


def quiet() -> None:
    """Let lm-eval and its libraries be silent on stderr: no progress bars of theirs, no notes."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "evaluate", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _task_manager(options: Options) -> Any:
    quiet()
    try:
        from lm_eval.tasks import TaskManager

        from eft_local.evals.harness import TASKS as FOLDER
    except ImportError as error:
        raise UsageError(f'--tasks needs lm-eval ({error}); install it with pip install "eft-local[eval]"') from None
    for name in options.tasks:
        if name.startswith("eft_") and name not in TASKS:
            raise _unknown(name, TASKS)
    metadata = {"eft_data": {name: str(file) for name, file in options.data.items()}, "eft_execute": options.execute}
    manager = TaskManager(
        include_path=str(FOLDER),
        include_defaults=not all(name in TASKS for name in options.tasks),  # which takes seconds
        metadata=metadata,
    )
    for name in options.tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise _unknown(name, manager.all_tasks)
    return manager


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    return UsageError(
        f"there is no task {name!r}; did you mean {nearest(name, known)}? The papers' are {', '.join(TASKS)}; "
        "`lm-eval ls tasks` lists all others"
    )


def _figures(raw: Mapping[str, Any]) -> list[Figure]:
    """Return lm-eval's figures: results of task → "metric,filter" → value."""
    figures = []
    for task, metrics in raw["results"].items():
        items = raw.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{kind}")
            known = isinstance(stderr, int | float) and math.isfinite(stderr)
            name = metric if kind == "none" else f"{metric} ({kind})"
            figures.append(Figure(task, name, float(value), float(stderr) if known else None, items))
    return figures


def gap_closed(mixture: float | None, base: float | None, tuned: float | None) -> float | None:
    """Return the share of the gap between base and tuned model that the mixture closes; None where there is no gap.

    Below 0 the mixture is worse than the base, above 1 better than the tuned model.
    """
    if mixture is None or base is None or tuned is None or tuned == base:
        return None
    return (mixture - base) / (tuned - base)


def keys_of(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return the tasks and metrics that results have, in order, each once."""
    return list(dict.fromkeys(figure.key for result in results for figure in result.figures))
