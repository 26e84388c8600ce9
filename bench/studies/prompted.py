"""What do experts that are tuned by nothing but their prompt give on a real model?

    python -m eft_local.bench.studies.real_models gemma:Q8_0     # once
    python -m eft_local.bench.studies.prompted

Gemma-3-270M (untuned, Q8_0) answers 200 general questions (`prompted_questions.jsonl`), greedily: alone; shown four
examples; steered by its own Q4_K_M quantisation that is shown them (`weak`: three roles, as `demo-prompted`); and
steered by itself that is shown them (`aware`: context-aware decoding). α, EFT's conservative filter and the
plausibility mask are swept. Answers go to a file as they are made, and a later run continues where it ended: block by
block of questions, first for the contenders that the study is about, then for the rest of the sweeps. A quarter of an
hour of one core does the former (Zen 3), half an hour the rest; the table says how many questions each contender has
answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Any

import click

from eft_local import Emulator, Recipe
from eft_local.bench.studies import real_models
from eft_local.errors import EftError
from eft_local.evals import run as evaluation
from eft_local.evals.questions import Questions, Verdict, judge, read_questions
from eft_local.evals.run import Tally, Target, wilson
from eft_local.recipe import Expert, Placement, Prompt, Role, Sampling

QUESTIONS = Path(__file__).parent / "prompted_questions.jsonl"
EXAMPLES = (
    ("What is the capital of Liberia?", "The capital of Liberia is Monrovia."),
    ("What is the atomic number of caesium?", "The atomic number of caesium is 55."),
    ("Where is the Kremlin?", "The Kremlin stands in Moscow."),
    ("Which language is spoken in the Maldives?", "The language of the Maldives is Dhivehi."),
)
MAX_TOKENS = 40
BLOCK = 50  # answers one after the other in a slot keep the examples in its cache
SHOWN = "the base, shown four examples"


@dataclass(frozen=True, slots=True)
class Studied:
    """A contender of the study: which recipe, which of its contenders, and what differs from the recipe.

    first: whether it is run before the others.
    """

    name: str
    recipe: str
    only: str = "eft"
    changes: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False


def contenders() -> list[Studied]:
    """Return all that are compared, in the order of the table.

    α = 1 of `aware` is the base that is shown the examples, and the conservative filter changes nothing where the
    antiexpert is the base: neither is run.
    """
    alphas = (0.25, 0.5, 1.0, 1.5, 2.0)
    filters = [("conservative_filter", 0.5), ("conservative_filter", 0.9)]
    masks = [("plausibility_mask", 0.05), ("plausibility_mask", 0.2)]
    return [
        Studied("the base alone", "aware", "base", first=True),
        Studied(SHOWN, "aware", "shown", first=True),
        Studied("the weak expert alone", "weak", "shown", first=True),
        *(
            Studied(f"weak, α = {alpha:g}", "weak", changes={"alpha": alpha}, first=alpha in (0.5, 1))
            for alpha in alphas
        ),
        *(Studied(f"weak, α = 1, {key} = {value:g}", "weak", changes={key: value}) for key, value in filters + masks),
        *(
            Studied(f"aware, α = {alpha:g}", "aware", changes={"alpha": alpha}, first=alpha in (0.5, 1.5))
            for alpha in alphas
            if alpha != 1
        ),
        *(
            Studied(f"aware, α = 1.5, {key} = {value:g}", "aware", changes={"alpha": 1.5, key: value})
            for key, value in masks
        ),
    ]


def recipes(base: str, weak: str) -> dict[str, Recipe]:
    """Return the recipes by name; base, weak: GGUF files of one family."""
    shown = Prompt("few-shot", examples=EXAMPLES)
    common: dict[str, Any] = {
        "context": 512,
        "placement": Placement(threads=1, threads_batch=1),
        "base": Role(model=base),
        "draft": "off",
        "sampling": Sampling(temperature=0, max_tokens=MAX_TOKENS, stop=("\nQuestion:",)),
    }
    return {
        "weak": Recipe(
            name="weak",
            antiexpert=Role(model=weak),
            experts={"shown": Expert(model="@antiexpert", prompt=shown)},
            **common,
        ),
        "aware": Recipe(
            name="aware",
            antiexpert=Role(model="@base"),
            experts={"shown": Expert(model="@base", prompt=shown)},
            **common,
        ),
    }


Answers = dict[tuple[str, str], tuple[str, str]]
"""(contender, question id) → (text, finish reason)."""


def read_answers(path: Path) -> Answers:
    """Return what earlier runs wrote; a line that an end of the process cut off does not count."""
    found: Answers = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["contender"], row["id"]] = row["text"], row["finish_reason"]
    return found


def blocks(questions: Questions) -> Iterator[Questions]:
    """Yield the questions in blocks, each spread evenly over the file."""
    items = questions.items
    count = -(-len(items) // BLOCK)
    for first in range(count):
        yield Questions(questions.path, questions.judge, items[first::count])


def missing(questions: Questions, studied: Sequence[Studied], answers: Answers) -> list[tuple[Studied, Questions]]:
    """Return what is still to be answered in the order in which it is: block by block, in one recipe by recipe."""
    left = []
    for first in (True, False):
        for block in blocks(questions):
            for each in sorted((each for each in studied if each.first == first), key=lambda each: each.recipe):
                items = tuple(question for question in block.items if (each.name, question.id) not in answers)
                if items:
                    left.append((each, Questions(block.path, block.judge, items)))
    return left


def run(left: Sequence[tuple[Studied, Questions]], recipes: Mapping[str, Recipe], path: Path, until: float) -> None:
    """Answer and append to the file; stops between two blocks of answers after `until` (of time.monotonic)."""
    loaded: dict[str, Emulator] = {}
    try:
        for each, questions in left:
            if time.monotonic() > until:
                return
            if each.recipe not in loaded:
                loaded[each.recipe] = Emulator.load(recipes[each.recipe])
            contender = Target(each.name, target=each.only, changes=each.changes)
            report = evaluation.run(loaded[each.recipe], questions, contender, max_tokens=MAX_TOKENS)
            rows = (
                {"contender": each.name, "id": a.question.id, "text": a.text, "finish_reason": a.finish_reason}
                for a in report.answers
            )
            with path.open("a", encoding="utf-8") as file:
                # The line break comes first: it ends what a run that was killed has left.
                file.write("".join("\n" + json.dumps(row, ensure_ascii=False) for row in rows))
            click.echo(f"{each.name}: {len(questions.items)} answers in {report.seconds:.0f} s", err=True)
    finally:
        for emulator in loaded.values():
            emulator.close()


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: how often a fair coin is as uneven as this."""
    n = wins + losses
    as_uneven: int = 2 * sum(comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(as_uneven / 2**n))


def table(questions: Questions, studied: Sequence[Studied], answers: Answers) -> str:
    """Return the Markdown table. Each contender counts the questions it has answered, and the test those of both."""
    verdicts: dict[str, dict[str, Verdict]] = {
        each.name: {
            q.id: judge(q, *answers[each.name, q.id], "") for q in questions.items if (each.name, q.id) in answers
        }
        for each in studied
    }
    lines = [
        "| per cent [95 % Wilson interval] | n | right | one sentence | both "
        "| right, beside shown | both, beside shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, judged in verdicts.items():
        tally = Tally.of(judged.values())
        cells = [_cell(getattr(tally, share), tally.n) for share in ("correct", "form", "both")]
        reference = verdicts.get(SHOWN, {})
        versus = [_versus(judged, reference, share) for share in (_right, _both)] if name != SHOWN else ["", ""]
        lines.append(f"| {name} | {tally.n} | {' | '.join(cells)} | {' | '.join(versus)} |")
    return "\n".join(lines)


def _right(verdict: Verdict) -> bool:
    return verdict.correct


def _both(verdict: Verdict) -> bool:
    return verdict.correct and verdict.form


def _versus(judged: Mapping[str, Verdict], reference: Mapping[str, Verdict], holds: Callable[[Verdict], bool]) -> str:
    """Return on how many questions something holds of one and not of the other, and McNemar's p."""
    pairs = [(holds(own), holds(reference[key])) for key, own in judged.items() if key in reference]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    return f"+{wins} −{losses}, p = {sign_test(wins, losses):.2g}"


def _cell(count: int, n: int) -> str:
    if not n:
        return "–"
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.0f}–{100 * high:.0f}]"


@click.command(help="Compare prompted experts on a real model; print a table with 95 % intervals.")
@click.option("--base", default="gemma:Q8_0", show_default=True, help="NAME:QUANTISATION of a real model, or a path.")
@click.option("--weak", default="gemma", show_default=True, help="The model of the weak expert and its antiexpert.")
@click.option("--questions", "limit", type=click.IntRange(min=1), help="So many questions, spread evenly.")
@click.option("--seconds", type=float, default=float("inf"), help="Stop soon after so many; run again to continue.")
@click.option(
    "--only", "wanted", multiple=True, help="Contenders whose name has this text; the base shown is always run."
)
@click.option("--answers", type=click.Path(path_type=Path), help="Where answers are kept. [default: beside the models]")
def main(
    base: str, weak: str, limit: int | None, seconds: float, wanted: tuple[str, ...], answers: Path | None
) -> None:
    until = time.monotonic() + seconds
    try:
        files = [str(_file(each)) for each in (base, weak)]
        questions = read_questions(QUESTIONS).select(limit=limit)
        studied = [
            each
            for each in contenders()
            if not wanted or each.name == SHOWN or any(text in each.name for text in wanted)
        ]
        path = answers or real_models.folder() / f"prompted.{Path(files[0]).stem}.{Path(files[1]).stem}.jsonl"
        run(missing(questions, studied, read_answers(path)), recipes(*files), path, until)
        found = read_answers(path)
        click.echo(table(questions, studied, found))
    except EftError as error:
        raise click.ClickException(str(error)) from None
    left = sum(len(each.items) for _, each in missing(questions, studied, found))
    if left:
        raise click.ClickException(f"{left} answers are missing: run again to continue")


def _file(name: str) -> Path:
    model, _, kind = name.partition(":")
    published = model in (*real_models.PUBLISHED, real_models.WIDE)
    return real_models.real_model(model, kind or None) if published else Path(name).absolute()


if __name__ == "__main__":
    main()
