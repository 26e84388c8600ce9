"""lm-evaluation-harness on targets: its `LM`, in process, and its own command line with the model "eft".

    python -m eft_local.evals.harness run --model eft --model_args recipe=demo,target=eft,alpha=1 --tasks eft_gsm8k

Each role reads its own prompt. A text of a task is continued by every role as it stands, but for the papers' tasks,
whose prompts for chat models are known (`evals.papers`); with `--apply_chat_template` a conversation goes through each
role's template or frame, so no text can hold it: it travels through lm-eval as JSON behind a mark.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from eft_local.errors import EftError, UsageError, shown
from eft_local.evals.answering import (
    Answering,
    Done,
    LocalTarget,
    Prompt,
    Writing,
    plain_pair,
    plain_writing,
)
from eft_local.evals.kept import Kept, key_of
from eft_local.evals.papers import FRAMINGS, task_prompt
from eft_local.evals.run import Target, names, plan
from eft_local.prompts.task import TaskPrompt
from eft_local.recipe import Sampling

TASKS = Path(__file__).parent / "tasks"
"""The folder of the papers' task files."""

_CHAT = "<|eft conversation|>"
_SETTINGS = {
    "until": "stop",
    "max_gen_toks": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "temperature": "temperature",
}
_MAX_TOKENS = 256  # lm-eval's own, where a task does not say
_ARGUMENTS = ("recipe", "target", "alpha", "beta", "parallel", "context", "seed", "draft")


class EftLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A model for lm-eval: somebody who answers, and what is kept of that."""

    def __init__(
        self,
        model: Answering,
        *,
        seed: int = 0,
        kept: Kept | None = None,
        progress: Callable[[], None] = lambda: None,
        expected: Callable[[int], None] = lambda number: None,
    ) -> None:
        """seed: of the first answer to a question; further ones to the same have the next.

        kept: where answers are looked up, and kept as they come.
        progress: called for each answer.  expected: called with the number of answers that are wanted next.
        """
        super().__init__()
        self._model = model
        self._seed = seed
        self._kept = Kept() if kept is None else kept
        self._progress = progress
        self._expected = expected
        self._conditions = dict(model.conditions)
        self.cut_short = 0
        """Answers that ended where the context was full."""

    @property
    def tokenizer_name(self) -> str:
        """A name of what prompts go through, for lm-eval's own cache."""
        return "eft-" + key_of(self._conditions)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return what stands for the template in lm-eval's records: there is one for each role."""
        return "each role's own"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text for lm-eval; an assistant's turn at its end is the start of the answer."""
        return _CHAT + json.dumps(list(chat_history), ensure_ascii=False)

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes down of the model."""
        return {"model_source": "eft", "model_name": self._model.name, "conditions": self._conditions}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations of contexts; white space at a context's end belongs to the continuation."""
        questions = [self._moved(self._prompt(each, each.args[0]), each.args[1]) for each in requests]
        return [tuple(row) for row in self._results("score", requests, questions, plain_pair, self._model.score)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts."""
        texts = [each.args[0] for each in requests]
        rows = self._results("score-whole", requests, texts, lambda text: text, self._model.score_whole)
        return [row[0] for row in rows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write answers; equal requests get seeds of their own."""
        drawn: Counter[str] = Counter()
        questions = []
        for each in requests:
            context, settings = each.args
            key = key_of(context, settings)
            prompt, seed = self._prompt(each, context), self._seed + drawn[key]
            questions.append(Writing(prompt, _sampling(settings), seed, tuple(settings.get("banned", ()))))
            drawn[key] += 1
        rows = self._results("write", requests, questions, plain_writing, self._model.write)
        self.cut_short += sum(row[1] == "context" for row in rows)
        return [row[0] for row in rows]

    def _results(
        self,
        kind: str,
        requests: Sequence[Instance],
        questions: Sequence[Any],
        plain: Callable[[Any], Any],
        answer: Callable[[Sequence[Any], Done], None],
    ) -> list[list[Any]]:
        """Return what came of each question, from what is kept or from the model."""
        keys = [key_of(self._conditions, kind, plain(each)) for each in questions]
        self._expected(len(questions))

        def about(place: int) -> dict[str, Any]:
            request = requests[place]
            return {"target": self._model.name, "kind": kind, "task": request.task_name, "item": request.doc_id}

        def ask(places: list[int], done: Done) -> None:
            answer([questions[place] for place in places], done)

        return self._kept.through(keys, about, ask, self._progress)

    def _prompt(self, request: Instance, context: str) -> Prompt:
        """Return what each role reads."""
        task = request.task_name
        if not context.startswith(_CHAT):
            return task_prompt(task, context, alone=self._model.alone) if task in FRAMINGS else context
        messages, end = json.JSONDecoder().raw_decode(context[len(_CHAT) :])
        start = context[len(_CHAT) + end :]
        if task in FRAMINGS and len(messages) == 1:
            return task_prompt(task, messages[0]["content"], alone=self._model.alone)
        if messages and messages[-1]["role"] == "assistant":
            start = messages.pop()["content"] + start
        return TaskPrompt(tuple(messages), None, start)

    @staticmethod
    def _moved(prompt: Prompt, continuation: str) -> tuple[Prompt, str]:
        if isinstance(prompt, TaskPrompt):
            return prompt, continuation
        shorter = prompt.rstrip()
        return shorter, prompt[len(shorter) :] + continuation

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> EftLM:
        """Make the model from lm-eval's `--model_args`, "recipe=demo,target=eft,alpha=1"."""
        pairs = (part.partition("=") for part in arg_string.split(",") if part)
        return cls.create_from_arg_obj({name.strip(): value for name, _, value in pairs}, additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> EftLM:
        """Make the model from a mapping of these arguments; lm-eval's batch size and device mean nothing here.

        Raises: UsageError for an argument that does not exist, and what loading raises.
        """
        unknown = [name for name in arg_dict if name not in _ARGUMENTS]
        if unknown:
            raise UsageError(f"model_args: there is no {unknown[0]!r}; there are {', '.join(_ARGUMENTS)}")
        return cls(_loaded(arg_dict), seed=int(arg_dict.get("seed", 0)))


register_model("eft")(EftLM)


def _loaded(arguments: Mapping[str, Any]) -> LocalTarget:
    from eft_local.emulator import Emulator
    from eft_local.hub.references import find_recipe

    recipe = find_recipe(str(arguments.get("recipe", "demo")))
    changes: dict[str, Any] = {name: arguments[name] for name in ("draft",) if name in arguments}
    try:
        changes |= {name: float(arguments[name]) for name in ("alpha", "beta") if name in arguments}
        changes |= {"context": int(arguments["context"])} if "context" in arguments else {}
        parallel = int(arguments.get("parallel", 8))
    except ValueError as error:
        raise UsageError(f"model_args: {error}; alpha and beta are numbers, context and parallel whole ones") from None
    recipe = recipe.replace(**changes)
    recipe, targets = plan(recipe, names(str(arguments.get("target", "eft"))))
    emulator = Emulator.load(recipe, target=targets[0].target)
    return LocalTarget(emulator, Target(targets[0].name, targets[0].target), parallel)


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """Return how an answer is drawn by lm-eval's `generation_kwargs`: greedily unless these say otherwise.

    Raises: UsageError for a setting that is not known here.
    """
    unknown = [name for name in settings if name not in (*_SETTINGS, "do_sample", "banned")]
    if unknown:
        raise UsageError(
            f"generation_kwargs: {unknown[0]} = {shown(settings[unknown[0]])} is not known here; remove it"
        )
    values = {_SETTINGS[name]: value for name, value in settings.items() if name in _SETTINGS}
    stop = values.get("stop") or ()
    samples = settings.get("do_sample", bool(values.get("temperature")))
    return Sampling(
        temperature=float(values.get("temperature", 1.0)) if samples else 0.0,
        top_k=int(values.get("top_k") or 0),
        top_p=float(values.get("top_p", 1.0)),
        min_p=float(values.get("min_p", 0.0)),
        max_tokens=int(values.get("max_tokens") or _MAX_TOKENS),
        stop=(stop,) if isinstance(stop, str) else tuple(text for text in stop if text),
    )


def main() -> None:
    """Run lm-eval's own command line with the model and the papers' tasks known to it."""
    from lm_eval.__main__ import cli_evaluate

    if "--include_path" not in sys.argv and len(sys.argv) > 2:
        sys.argv += ["--include_path", str(TASKS)]
    try:
        cli_evaluate()
    except EftError as error:
        sys.stderr.write(f"eft: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
