"""Running targets over a question file, and counting how their answers were judged."""

from __future__ import annotations

import difflib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from eft_local.errors import Cancelled, UsageError
from eft_local.evals.questions import Question, Questions, Verdict, judge
from eft_local.machine.cores import CoreMeter, CoreUse
from eft_local.recipe.names import BASE, MIXTURE

if TYPE_CHECKING:
    from eft_local.emulator import Emulator
    from eft_local.engine.step import Answer
    from eft_local.recipe import Recipe

SHARES = ("correct", "form", "both", "declined")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927), (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n one bound is exactly the share; rounding must not move it past.
    low = 0.0 if successes == 0 else (centre - spread) / (1 + z * z / n)
    high = 1.0 if successes == n else (centre + spread) / (1 + z * z / n)
    return low, high


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over n judged answers."""

    n: int = 0
    correct: int = 0
    form: int = 0
    both: int = 0
    declined: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Tally:
        """Count verdicts."""
        listed = list(verdicts)
        return cls(
            n=len(listed),
            correct=sum(v.correct for v in listed),
            form=sum(v.form for v in listed),
            both=sum(v.correct and v.form for v in listed),
            declined=sum(v.declined for v in listed),
        )

    def share(self, name: str) -> float | None:
        """Return a count over n, None for n = 0; name is one of `SHARES`."""
        count: int = getattr(self, name)
        return count / self.n if self.n else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % Wilson interval of that share, None for n = 0."""
        return wilson(getattr(self, name), self.n) if self.n else None

    def as_dict(self) -> dict[str, Any]:
        """Return n, the shares in 0..1, their intervals and the counts behind them, ready for JSON."""
        return {
            "n": self.n,
            **{name: self.share(name) for name in SHARES},
            "interval95": {name: self.interval(name) for name in SHARES},
            "counts": {name: getattr(self, name) for name in SHARES},
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """One question with what a target answered."""

    question: Question
    text: str
    finish_reason: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """What a target did on a question file; tokens are those it wrote, seconds the time that took.

    cores: what other programs used of them meanwhile.
    """

    target: Target
    answers: tuple[Judged, ...]
    tokens: int
    seconds: float
    cores: CoreUse | None = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers over the time they took together."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def ordinary(self) -> Tally:
        """Counts over the questions that are not sensitive: accuracy and form are judged on these."""
        return Tally.of(a.verdict for a in self.answers if not a.question.sensitive)

    @property
    def sensitive(self) -> Tally:
        """Counts over the sensitive questions: declining is judged on these."""
        return Tally.of(a.verdict for a in self.answers if a.question.sensitive)

    @property
    def categories(self) -> dict[str, Tally]:
        """Counts per category, in the file's order."""
        groups: dict[str, list[Verdict]] = {}
        for answer in self.answers:
            groups.setdefault(answer.question.group, []).append(answer.verdict)
        return {name: Tally.of(verdicts) for name, verdicts in groups.items()}

    def overall(self) -> dict[str, tuple[int, int]]:
        """Return (count, n) per share: declined over sensitive questions, the others over ordinary ones."""
        ordinary, sensitive = self.ordinary, self.sensitive
        counts = {name: (getattr(ordinary, name), ordinary.n) for name in SHARES[:3]}
        return {**counts, "declined": (sensitive.declined, sensitive.n)}

    def as_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON; shares are in 0..1, or None where there is nothing to judge."""
        overall = self.overall()
        return {
            "n": self.ordinary.n,
            "n_sensitive": self.sensitive.n,
            **{name: count / n if n else None for name, (count, n) in overall.items()},
            "interval95": {name: wilson(count, n) if n else None for name, (count, n) in overall.items()},
            "counts": {name: count for name, (count, n) in overall.items()},
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "cores": self.cores and self.cores.as_dict(),
            "settings": self.target.settings(),
            "by_category": {name: tally.as_dict() for name, tally in self.categories.items()},
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What is evaluated: who answers, the recipe's changes for it, and how far the mixture steers."""

    name: str
    target: str = MIXTURE
    changes: Mapping[str, Any] = field(default_factory=dict)
    steer_first: int | None = None
    mix: float | None = None

    def settings(self) -> dict[str, Any]:
        """Return what makes this target differ from the recipe, ready for JSON."""
        own = {"mix": self.mix, "steer_first": self.steer_first}
        return {"target": self.target, **self.changes, **{k: v for k, v in own.items() if v is not None}}


def plan(
    recipe: Recipe,
    names: Sequence[str],
    *,
    alphas: Sequence[float | Mapping[str, float]] = (),
    betas: Sequence[float] = (),
    mixes: Sequence[float] = (),
    steer_first: Sequence[int] = (),
) -> tuple[Recipe, tuple[Target, ...]]:
    """Return the recipe and the targets to run: each name once, "eft" once for every combination of values.

    A single alpha or beta is no sweep: it becomes the recipe's.

    alphas: strengths, or {expert: strength}. mixes: λ for two experts, α = (1 − λ, λ); instead of alphas.
    steer_first: for each N once more with the mixture for the first N tokens only, and the base for the rest.
    Raises: UsageError for mixes together with alphas, mixes without two experts, an N below 1, or values for an
        "eft" that does not run; RecipeError for values that no recipe can have.
    """
    if mixes and alphas:
        raise UsageError("--mix sets both experts' alpha; give either --mix or --alpha")
    if mixes and len(recipe.experts) != 2:
        raise UsageError(f"--mix needs a recipe with two experts; {recipe.name} has {len(recipe.experts)}")
    if (alphas or betas or mixes or steer_first) and MIXTURE not in names:
        raise UsageError(
            f"alpha, beta, mix and steer-first change the target eft, which is not among {', '.join(names)}"
        )
    if any(n < 1 for n in steer_first):
        raise UsageError(f"--steer-first {min(steer_first)}: the mixture must write at least 1 token")
    if len(alphas) == 1:
        recipe, alphas = recipe.replace(alpha=alphas[0]), ()
    if len(betas) == 1:
        recipe, betas = recipe.replace(beta=betas[0]), ()
    targets: list[Target] = []
    for name in dict.fromkeys(names):
        if name == MIXTURE:
            swept = _swept(recipe, alphas, betas, mixes)
            targets += swept
            targets += [replace(s, name=f"{s.name} first={n}", steer_first=n) for s in swept for n in steer_first]
        else:
            targets.append(Target(name, target=name))
    for target in targets:
        recipe.replace(**target.changes)
    return recipe, tuple(targets)


def _swept(
    recipe: Recipe,
    alphas: Sequence[float | Mapping[str, float]],
    betas: Sequence[float],
    mixes: Sequence[float],
) -> list[Target]:
    """Return "eft" for every combination of values, which is in its name."""
    first, second = [*recipe.experts, "", ""][:2]
    weights: list[tuple[str, dict[str, Any], float | None]]
    if mixes:
        weights = [(f" mix={mix:g}", {"alpha": {first: 1 - mix, second: mix}}, mix) for mix in mixes]
    else:
        weights = [(f" alpha={_alpha_text(alpha)}", {"alpha": alpha}, None) for alpha in alphas]
    scales = [(f" beta={beta:g}", {"beta": beta}) for beta in betas]
    targets = []
    for (weight_name, weight, mix), (scale_name, scale) in itertools.product(
        weights or [("", {}, None)], scales or [("", {})]
    ):
        targets.append(Target(f"eft{weight_name}{scale_name}", changes={**weight, **scale}, mix=mix))
    return targets


def _alpha_text(alpha: float | Mapping[str, float]) -> str:
    if isinstance(alpha, Mapping):
        return ",".join(f"{name}:{value:g}" for name, value in alpha.items())
    return f"{alpha:g}"


def names(text: str) -> tuple[str, ...]:
    """Return the names in a comma list, each once. Raises: UsageError if there are none."""
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise UsageError(f"--targets {text!r}: names no target, as in base,expert,eft")
    return found


def check_targets(wanted: Iterable[str], known: Sequence[str]) -> None:
    """Raise UsageError for a target that the emulator does not know, naming the nearest that it does."""
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"this recipe knows {', '.join(known)}"
            raise UsageError(f"unknown target {name!r}; {hint}")


def run(
    emulator: Emulator,
    questions: Questions,
    target: Target,
    *,
    max_tokens: int,
    parallel: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Answer and judge all questions with one target.

    parallel: questions answered at a time. progress: called with the number of questions answered so far.
    Raises: Cancelled after `emulator.cancel()`.
    """
    started, meter = time.perf_counter(), CoreMeter()
    prompts = [question.question for question in questions.items]
    answers = _answers(emulator, prompts, target, max_tokens, parallel, progress)
    seconds = time.perf_counter() - started
    phrase = questions.judge["declined_phrase"]
    judged = tuple(
        Judged(question, a.text, a.finish_reason, judge(question, a.text, a.finish_reason, phrase))
        for question, a in zip(questions.items, answers, strict=True)
    )
    return Report(target, judged, tokens=sum(a.tokens for a in answers), seconds=seconds, cores=meter.use())


@dataclass(frozen=True, slots=True)
class Written:
    """A finished answer; `tokens` counts them."""

    text: str
    finish_reason: str
    tokens: int


def _answers(
    emulator: Emulator,
    prompts: Sequence[str],
    target: Target,
    max_tokens: int,
    parallel: int,
    progress: Callable[[int], None] | None,
) -> list[Written]:
    """Return what the target writes for each prompt. Raises: Cancelled if `emulator.cancel` stopped it."""
    recipe = emulator.recipe.replace(**target.changes)
    first = emulator.chat(
        list(prompts),
        target=target.target,
        recipe=recipe,
        max_tokens=min(max_tokens, target.steer_first or max_tokens),
        parallel=parallel,
        progress=None if target.steer_first else progress,
    )
    written = [Written(a.text, a.finish_reason, len(a.tokens)) for a in first]
    if target.steer_first and target.steer_first < max_tokens:
        unfinished = [index for index, answer in enumerate(first) if answer.finish_reason == "length"]
        rest = emulator.chat(
            [prompts[index] for index in unfinished],
            target=BASE,
            recipe=recipe,
            max_tokens=max_tokens - target.steer_first,
            prefix=[first[index].tokens for index in unfinished],
            parallel=parallel,
            progress=progress,
        )
        for index, answer in zip(unfinished, rest, strict=True):
            written[index] = _joined(first[index], answer)
    if any(answer.finish_reason == "cancelled" for answer in written):
        raise Cancelled(f"stopped while {target.name} was answering")
    return written


def _joined(steered: Answer, continued: Answer) -> Written:
    return Written(
        steered.text + continued.text,
        continued.finish_reason,
        len(steered.tokens) + len(continued.tokens),
    )
