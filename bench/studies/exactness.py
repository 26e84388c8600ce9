"""Does anything change answers: drafts, company, what came before? And how much of a draft does each rule take?

See bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from eft_local.backends.llamacpp.noise import gumbel
from eft_local.bench.studies import company
from eft_local.emulator import Emulator
from eft_local.engine.step import Answer
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe
from eft_local.recipe import DRAFT_RULES, DRAFT_SOURCES, Recipe

LONGEST = 16
ALPHAS = (0.5, 1.0, 1.5)
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
RULE_TEMPERATURES = (0.3, 0.7, 1.0)
RULE_LENGTHS = (3, 7)
SEED = 1
CONTEXTS: Mapping[str, dict[str, object]] = {
    "f32": {"kv_type": "f32", "flash_attention": False},
    "shipped": {},
}
"""A cache in full precision without flash attention, and what a recipe has by default."""


@dataclass(frozen=True)
class Difference:
    """Where an answer with drafts leaves the one without.

    margin: how near the two tokens were to a tie, without drafts: the difference of what the argmax is taken of,
        log-probability (and noise, where tokens are drawn).
    """

    question: str
    alpha: float
    temperature: float
    length: int
    position: int
    margin: float


@dataclass
class Comparison:
    """Answers with drafts beside those without."""

    contexts: str
    source: str
    temperature: float
    answers: int = 0
    tokens: int = 0
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True)
class Taken:
    """What a rule makes of drafts of one length: tokens for each round after the prompt's."""

    kind: str
    temperature: float
    length: int
    rule: str
    tokens: int
    rounds: int

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / self.rounds


def compare(
    loaded: Emulator, plain: Recipe, comparison: Comparison, questions: Sequence[str], lengths: Sequence[Sequence[str]]
) -> None:
    """Answer with drafts of k = 1, 2, … tokens the questions lengths[k − 1], all of them without, and add up."""
    expected = {question: loaded.chat(question, recipe=plain, seed=SEED) for question in questions}
    for length, chosen in enumerate(lengths, 1):
        drafting = plain.replace(draft=length, draft_source=comparison.source)
        made = loaded.chat(list(chosen), recipe=drafting, seed=SEED, parallel=16)
        for question, answer in zip(chosen, made, strict=True):
            comparison.answers += 1
            comparison.tokens += len(answer.tokens)
            if answer.tokens != expected[question].tokens:
                difference = _difference(loaded, plain, question, length, expected[question], answer)
                comparison.differences.append(difference)


def _difference(
    loaded: Emulator, recipe: Recipe, question: str, length: int, plain: Answer, drafted: Answer
) -> Difference:
    pairs = zip((*plain.tokens, None), (*drafted.tokens, None), strict=False)
    position = next(place for place, (left, right) in enumerate(pairs) if left != right)
    (step,) = loaded.stream_chat(
        question, recipe=recipe, seed=SEED, prefix=plain.tokens[:position], max_tokens=1, top=100
    )
    temperature = loaded.recipe.sampling.temperature
    scores = {candidate.token: candidate.roles["eft"].logprob for candidate in step.candidates}
    ids = np.array(list(scores), np.int32)
    values = np.array(list(scores.values()))
    if temperature:
        values = values / temperature + gumbel(SEED, position, ids)
    chosen = [answer.tokens[position] if position < len(answer.tokens) else None for answer in (plain, drafted)]
    others = values[~np.isin(ids, [token for token in chosen if token is not None])]
    # An answer that ended there chose an end, which its tokens do not hold: the best of the other tokens.
    best = [(others if token is None else values[ids == token]).max(initial=-np.inf) for token in chosen]
    margin = abs(best[0] - best[1])
    return Difference(question, loaded.recipe.alphas.popitem()[1], temperature, length, position, float(margin))


def greedy(
    recipe: Recipe, questions: Sequence[str], full: bool, kinds: Sequence[str], sources: Sequence[str]
) -> Iterator[Comparison]:
    """Compare greedy answers, for every alpha; drafts of k tokens for every 16th question, or for all of them."""
    lengths = [questions if full else questions[k::LONGEST] for k in range(LONGEST)]
    for contexts in kinds:
        with Emulator.load(recipe.replace(temperature=0, draft=LONGEST, **CONTEXTS[contexts])) as loaded:
            for source in sources:
                comparison = Comparison(contexts, source, 0.0)
                for alpha in ALPHAS:
                    compare(
                        loaded,
                        loaded.recipe.replace(alpha=alpha, draft="off", draft_source="expert"),
                        comparison,
                        questions,
                        lengths,
                    )
                yield comparison


def sampled(
    recipe: Recipe, questions: Sequence[str], full: bool, kinds: Sequence[str], sources: Sequence[str]
) -> Iterator[Comparison]:
    """Compare answers drawn with shared noise, at several temperatures."""
    lengths = [questions if full else questions[k::LONGEST] for k in range(LONGEST)]
    for contexts in kinds:
        with Emulator.load(recipe.replace(draft=LONGEST, **CONTEXTS[contexts])) as loaded:
            for source in sources:
                for temperature in TEMPERATURES:
                    comparison = Comparison(contexts, source, temperature)
                    plain = loaded.recipe.replace(temperature=temperature, draft="off", draft_source="expert")
                    compare(loaded, plain, comparison, questions, lengths)
                    yield comparison


def rules(recipe: Recipe, questions: Mapping[str, Sequence[str]]) -> Iterator[Taken]:
    """Count the tokens that both rules take, on the same questions and seeds."""
    with Emulator.load(recipe.replace(draft=LONGEST)) as loaded:
        for kind, chosen in questions.items():
            for temperature in RULE_TEMPERATURES:
                for length in RULE_LENGTHS:
                    for rule in DRAFT_RULES:
                        drawn = loaded.recipe.replace(temperature=temperature, draft=length, draft_rule=rule)
                        tokens = rounds = 0
                        for seed, question in enumerate(chosen):
                            steps = list(loaded.stream_chat(question, recipe=drawn, seed=seed))[1:]
                            tokens += len(steps)
                            # A round ends with a token that was not drafted, or with the answer.
                            rounds += sum(not step.drafted or step.finish_reason is not None for step in steps)
                        yield Taken(kind, temperature, length, rule, tokens, rounds)


def shown(comparison: Comparison) -> str:
    """Return a comparison as a line of the table."""
    margins = [difference.margin for difference in comparison.differences]
    ties = f"margins {min(margins):.1e} … {max(margins):.1e}" if margins else ""
    return (
        f"{comparison.contexts:9} {comparison.source:12} {comparison.temperature:11.1f} {comparison.answers:8}"
        f" {comparison.tokens:8} {len(comparison.differences):8}  {ties}"
    ).rstrip()


def _company(options: argparse.Namespace) -> int:
    """Compare answers alone and in company; return 1 if any differ that should not, or nothing was compared."""
    found = []
    if not options.json:
        print("differ  answers  tokens  model, recipe, context, temperature, circumstance")
    for each in company.measure(
        options.model,
        options.kind or list(company.KINDS),
        options.context or (1024, 4096),
        options.questions,
        options.max_tokens,
        options.threads,
    ):
        found.append(each)
        if not options.json:
            about = f"{each.model}, {each.kind}, {each.context}, {each.temperature}, {each.circumstance}"
            print(f"{each.differ:6}  {each.answers:7}  {each.tokens:6}  {about}; exact: {each.exact}", flush=True)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    return int(any((each.differ and each.exact == "yes") or each.tokens < each.answers for each in found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.exactness", description=__doc__)
    parser.add_argument("--only", choices=("greedy", "sampled", "rules"))
    parser.add_argument(
        "--model", type=Path, action="append", help="compare answers alone with those in company, on this file"
    )
    parser.add_argument("--kind", choices=company.KINDS, action="append", help="with --model; all, if none is named")
    parser.add_argument("--context", type=int, action="append", help="with --model; 1024 and 4096, if none is given")
    parser.add_argument("--full", action="store_true", help="every length of drafts for every question")
    parser.add_argument("--contexts", choices=CONTEXTS, action="append", help="both, if none is named")
    parser.add_argument("--source", choices=DRAFT_SOURCES, action="append", help="all of them, if none is named")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--questions", type=int, default=320, help="held-out questions to compare answers to")
    parser.add_argument("--max-tokens", type=int, default=40, help="of each compared answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.model:
        sys.exit(_company(options))
    recipe = find_recipe(options.recipe).replace(threads=options.threads)
    held_out = read_questions(demo_questions()).select(split="held-out")
    chosen = [question.question for question in held_out.select(limit=options.questions).items]
    parts = ("greedy", "sampled", "rules") if options.only is None else (options.only,)
    found: dict[str, list[dict[str, object]]] = {}

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    for part, measure in (("greedy", greedy), ("sampled", sampled)):
        if part in parts:
            say(f"\n{part}: with drafts and without")
            say(f"{'contexts':9} {'source':12} temperature  answers   tokens   differ")
            found[part] = []
            kinds, sources = options.contexts or list(CONTEXTS), options.source or DRAFT_SOURCES
            for comparison in measure(
                recipe.replace(max_tokens=options.max_tokens), chosen, options.full, kinds, sources
            ):
                say(shown(comparison))
                found[part].append(asdict(comparison))
    if "rules" in parts:
        say("\nrules: tokens per round\nquestions  temperature  length  rule           tokens  per round")
        found["rules"] = []
        questions = {
            kind: [q.question for q in held_out.select(kind=kind, limit=options.questions).items]
            for kind in ("short", "long")
        }
        for taken in rules(recipe, questions):
            say(
                f"{taken.kind:9}  {taken.temperature:11}  {taken.length:6}  {taken.rule:12}  {taken.tokens:7}"
                f"  {taken.tokens_per_round:9.3f}"
            )
            found["rules"].append(asdict(taken) | {"tokens_per_round": taken.tokens_per_round})
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
