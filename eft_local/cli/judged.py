"""`eft eval --judge`: answers of several targets before a judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eft_local.analysis.format import interval
from eft_local.cli import output, progress, reports
from eft_local.cli.benchmarks import answering
from eft_local.cli.interrupt import interruptible
from eft_local.cli.reports import aligned, listed
from eft_local.errors import Cancelled, UsageError
from eft_local.evals import judging
from eft_local.evals.endpoint import Address
from eft_local.evals.run import Target, check_targets
from eft_local.recipe import Sampling
from eft_local.recipe.names import MIXTURE

if TYPE_CHECKING:
    from eft_local.evals.answering import Answering
    from eft_local.recipe import Recipe


def run(
    judge: str,
    file: Path,
    recipe: Recipe,
    planned: Sequence[Target],
    addresses: Sequence[Address],
    *,
    limit: int | None,
    parallel: int,
    max_tokens: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Let all targets answer the prompts, and the judge judge; write what it said. Raises: Cancelled."""
    from eft_local.evals.kept import Kept

    if len(planned) + len(addresses) < 2:
        raise UsageError("a judge compares: name at least two targets, as --targets base,eft")
    own_recipe, who, where = _judge(judge)
    prompts = judging.read_prompts(file, limit)
    sampling = recipe.sampling
    seed = sampling.seed or 0
    own = Sampling(temperature=sampling.temperature, top_k=0, top_p=1.0, min_p=0.0, max_tokens=max_tokens)
    with Kept(folder / "answers.jsonl" if folder else None) as kept:
        answers: dict[str, list[str]] = {}
        with _asking(recipe, planned, addresses, parallel, len(prompts)) as (models, counting):
            for model in models:
                answers[model.name] = judging.answers_of(model, prompts, own, seed, kept, counting(model.name))
        first, *others = answers
        pairs = [(each, first) for each in others]
        number = judging.questions_asked(len(prompts), len(answers), len(pairs))
        with _asking(own_recipe or recipe, who, where, parallel, number) as (models, counting):
            name = models[0].name if where else judge
            verdicts = judging.compare(models[0], prompts, answers, pairs, kept, counting("judging"))
    preferences = [judging.preference(verdicts, axis, *pair) for axis in judging.AXES for pair in pairs]
    counts = [judging.count(verdicts, axis, each) for axis in judging.COUNTED for each in answers]
    if folder:
        lines = [json.dumps(_verdict(each, prompts, name), ensure_ascii=False) + "\n" for each in verdicts]
        output.save(folder / "verdicts.jsonl", "".join(lines).encode("utf-8", "backslashreplace"))
    conditions = {"judge": name, "prompts": f"{len(prompts)} of {file}", **reports.conditions(recipe)}
    if as_json:
        output.write_json({
            **conditions,
            "preferences": [each.as_dict() for each in preferences],
            "counts": [each.as_dict() for each in counts],
            "verdicts": [_verdict(each, prompts, name) for each in verdicts],
        })  # fmt: skip
    else:
        output.write(_tables(conditions, preferences, counts))
    output.flush()


@contextmanager
def _asking(
    recipe: Recipe, planned: Sequence[Target], addresses: Sequence[Address], parallel: int, number: int
) -> Iterator[tuple[list[Answering], Callable[[str], Callable[[], None]]]]:
    """Yield those who answer, and a function from what is being done to one that counts an answer; Ctrl+C stops them.

    number: questions to each of them.
    """
    with ExitStack() as opened:
        models, stop = answering(recipe, planned, addresses, parallel, opened)
        interrupt = opened.enter_context(interruptible(stop))
        show = opened.enter_context(progress.bar("count", number * len(models)))
        done = count(1)

        def counting(text: str) -> Callable[[], None]:
            def one() -> None:
                show(next(done), text)
                if interrupt.requested:
                    raise Cancelled("stopped; with --output the same command continues")

            return one

        yield models, counting


def _judge(text: str) -> tuple[Recipe | None, Sequence[Target], Sequence[Address]]:
    """Return who judges: the target of a recipe, RECIPE or RECIPE:TARGET, or an endpoint. Raises: UsageError."""
    address = Address.parse(text)
    if address:
        return None, (), (address,)
    from eft_local.engine.targets import targets_of
    from eft_local.hub.references import find_recipe

    name, colon, target = text.rpartition(":")
    if not colon or "/" in target or "\\" in target:
        name, target = text, MIXTURE
    recipe = find_recipe(name)
    check_targets([target], targets_of(recipe))
    return recipe, (Target(target, target),), ()


def _verdict(verdict: judging.Verdict, prompts: Sequence[str], judge: str) -> dict[str, Any]:
    return {
        "judge": judge,
        "prompt": prompts[verdict.prompt],
        "axis": verdict.axis,
        "first": verdict.first,
        "second": verdict.second or None,
        "verdict": verdict.preferred if verdict.second else verdict.number,
        "text": verdict.text,
    }


def _tables(
    conditions: dict[str, Any], preferences: Sequence[judging.Preference], counts: Sequence[judging.Count]
) -> str:
    """Return what a person reads: whose verdicts, preferences with intervals and self-agreement, and counts."""
    lines = listed(conditions)
    lines += ["", f"Preferred by {conditions['judge']}, in both orders; per cent of the decided prompts [95 %]"]
    rows = [
        (each.axis, f"{each.target} over {each.other}", str(each.wins), str(each.losses), str(each.undecided),
         _rate(each), f"{100 * each.agreement:.0f} %")
        for each in preferences
    ]  # fmt: skip
    lines += aligned(("axis", "pair", "wins", "losses", "undecided", "rate", "agrees with itself"), rows)
    lines += ["", f"Counted by {conditions['judge']} in each answer: mean ± standard error"]
    counted = [
        (judging.COUNTED[each.axis], each.target, str(each.n), _mean(each), f"{each.clean} of {each.n}",
         str(each.missing))
        for each in counts
    ]  # fmt: skip
    lines += aligned(("counted", "target", "n", "mean", "none found", "no number given"), counted)
    return "\n".join(lines) + "\n"


def _rate(preference: judging.Preference) -> str:
    if preference.rate is None:
        return "-"
    low, high = preference.interval
    return interval(preference.rate, low, high)


def _mean(counted: judging.Count) -> str:
    if counted.mean is None:
        return "-"
    return f"{counted.mean:.2f}" + (f" ± {counted.stderr:.2f}" if counted.stderr is not None else "")
