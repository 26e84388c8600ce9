"""Time to the first token over the turns of one chat: does it grow with the new text, or with the conversation?

See bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import correlation, median
from typing import TYPE_CHECKING, Any

import numpy as np

from eft_local.bench.bare import BareContext
from eft_local.bench.figure import empty_figure, picture
from eft_local.bench.machine import machine, place
from eft_local.bench.shapes import TRIOS, scaled_recipe
from eft_local.emulator import Emulator
from eft_local.engine.loading import Library, LoadedRole, mixed_roles
from eft_local.engine.step import Answer, Step
from eft_local.errors import EftError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe
from eft_local.prompts.render import conversation
from eft_local.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TURNS = 30
CONTEXT = 8192
ANSWER_TOKENS = 16
QUESTIONS = (1, 2, 4, 8)
"""Asked in one turn: the new text grows and shrinks while the conversation only grows."""

PRIMER = "?"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, per role: tokens of its whole prompt, and those of them that were evaluated for it.

    first_ms: until the answer's first token. bare_ms: what llama.cpp's functions alone take for the same tokens after
    the same conversation. anew_ms: as first_ms with nothing in the caches, where it was measured.
    """

    prompt_tokens: Mapping[str, int]
    evaluated_tokens: Mapping[str, int]
    first_ms: float
    bare_ms: float
    anew_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """First tokens' milliseconds as constant + new·(per_new + per_new_and_1000_old·old / 1000).

    new, old: the base's tokens that were evaluated for a turn, and those before them, which each new one attends to.
    new_correlation, old_correlation: Pearson's, of the time with each. over_bare: median of first_ms ÷ bare_ms.
    """

    constant: float
    per_new: float
    per_new_and_1000_old: float
    new_correlation: float
    old_correlation: float
    over_bare: float


def measure(recipe: Recipe, roles: Mapping[str, LoadedRole], turns: int, every: int) -> list[Turn]:
    """Chat for so many turns; every so many of them, let a second Emulator evaluate the whole conversation too."""
    questions = [each.question for each in read_questions(demo_questions()).select(split="held-out").items]
    choose = random.Random(0)
    messages: list[dict[str, str]] = []
    measured = []
    with ExitStack() as cleanup:
        emulator, forgetful = (cleanup.enter_context(Emulator(recipe, roles)) for _ in range(2))
        bare = {name: cleanup.enter_context(BareContext.of(role, recipe.context)) for name, role in roles.items()}
        time_first(emulator, [{"role": "user", "content": PRIMER}])  # weights are touched for the first time
        for number in range(turns):
            question = " ".join(choose.choices(questions, k=choose.choice(QUESTIONS)))
            messages.append({"role": "user", "content": question})
            first_ms, answer = time_first(emulator, messages)
            bare_ms = sum(
                time_bare(bare[name], role.tokens(conversation(messages)), answer.evaluated_tokens[name])
                for name, role in roles.items()
            )
            anew_ms = None
            if number % every == every - 1 or number == 0:
                forgetful.chat(PRIMER, max_tokens=1)
                anew_ms, _ = time_first(forgetful, messages)
            measured.append(Turn(answer.prompt_tokens, answer.evaluated_tokens, first_ms, bare_ms, anew_ms))
            messages.append({"role": "assistant", "content": answer.text})
    return measured


def time_first(emulator: Emulator, messages: Sequence[Mapping[str, str]]) -> tuple[float, Answer]:
    """Answer; return the milliseconds until the first token, and the answer."""
    times: list[float] = []

    def on_step(step: Step) -> None:
        times.append(time.perf_counter())

    started = time.perf_counter()
    answer = emulator.chat(messages, max_tokens=ANSWER_TOKENS, on_step=on_step)
    return 1000 * (times[0] - started), answer


def time_bare(bare: BareContext, prompt: Sequence[int], new: int) -> float:
    """Return the milliseconds of the prompt's last `new` tokens, after the others."""
    bare.hold(prompt[: len(prompt) - new])
    return 1000 * bare.evaluate(prompt[len(prompt) - new :])


def fit(turns: Sequence[Turn]) -> Fit:
    """Tell how first tokens' times depend on the new text and on the conversation before it (least squares)."""
    times = np.array([turn.first_ms for turn in turns])
    new = np.array([turn.evaluated_tokens["base"] for turn in turns])
    old = np.array([turn.prompt_tokens["base"] for turn in turns]) - new
    columns = np.column_stack([np.ones(len(turns)), new, new * old / 1000])
    constant, per_new, attention = map(float, np.linalg.lstsq(columns, times, rcond=None)[0])
    return Fit(
        constant,
        per_new,
        attention,
        correlation(new.tolist(), times.tolist()),
        correlation(old.tolist(), times.tolist()),
        median(turn.first_ms / turn.bare_ms for turn in turns),
    )


def report(turns: Sequence[Turn]) -> str:
    """Return the turns as a table, and what they say."""
    roles = list(turns[0].prompt_tokens)
    lines = ["New tokens per role; ms to the first token, of llama.cpp alone, of all anew", ""]
    lines.append(
        "turn  conversation" + "".join(f"{name:>12}" for name in roles) + f"{'first':>9}{'bare':>9}{'anew':>9}"
    )
    for number, turn in enumerate(turns, 1):
        new = "".join(f"{turn.evaluated_tokens[name]:12}" for name in roles)
        anew = "" if turn.anew_ms is None else f"{turn.anew_ms:9.0f}"
        lines.append(f"{number:4}{turn.prompt_tokens['base']:14}{new}{turn.first_ms:9.0f}{turn.bare_ms:9.0f}{anew}")
    found = fit(turns)
    last = next(turn for turn in reversed(turns) if turn.anew_ms is not None)
    says = (
        f"first token ≈ {found.constant:.0f} ms + {found.per_new:.2f} ms per new token of the base, and "
        f"{found.per_new_and_1000_old:.2f} ms more of those for each 1,000 tokens of conversation that they attend to",
        f"correlation with the new text {found.new_correlation:.2f}, "
        f"with the conversation before it {found.old_correlation:.2f}",
        f"time to the first token ÷ llama.cpp's for the same tokens: {found.over_bare:.2f}",
        f"evaluated anew, a conversation of {last.prompt_tokens['base']} tokens takes {last.anew_ms:.0f} ms, "
        f"here {last.first_ms:.0f} ms",
    )
    return "\n".join([*lines, "", *(textwrap.fill(line, 80) for line in says), ""])


def draw(turns: Sequence[Turn], title: str) -> Figure:
    """Draw the times over the turns, beside those of evaluating all anew, and over the new text."""
    figure = empty_figure(11, 4)
    over_turns, over_text = figure.subplots(1, 2)
    numbers = range(1, len(turns) + 1)
    anew = [(number, turn.anew_ms) for number, turn in zip(numbers, turns, strict=True) if turn.anew_ms is not None]
    over_turns.plot(*zip(*anew, strict=True), marker="s", color="C7", label="whole conversation anew")
    over_turns.bar(numbers, [turn.first_ms for turn in turns], color="C0", label="as it is")
    over_turns.set_xlabel("turn")
    over_turns.legend(loc="upper left")
    shades = over_text.scatter(
        [turn.evaluated_tokens["base"] for turn in turns], [turn.first_ms for turn in turns], c=list(numbers)
    )
    over_text.set_xlabel("new tokens of the base")
    over_text.set_ylim(bottom=0)
    figure.colorbar(shades, label="turn")
    for axes in (over_turns, over_text):
        axes.set_ylabel("ms to the first token")
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.turns", description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--shape", default="1b", choices=(*TRIOS, "none"), help="none: the recipe's models as they are")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--every", type=int, default=5, help="turns from one evaluation of everything to the next")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    if options.turns < 3 or options.every < 1:
        parser.error("--turns must be at least 3, --every at least 1")
    if options.plot:
        empty_figure(1, 1)  # without matplotlib it fails before the work, not after it
    try:
        recipe = find_recipe(options.recipe)
        if options.shape != "none":
            recipe = scaled_recipe(recipe, options.shape)
        recipe = recipe.replace(context=CONTEXT, temperature=0, draft="off")
        with ExitStack() as cleanup:
            library = Library()
            cleanup.callback(library.close)
            turns = measure(recipe, library.load(recipe, mixed_roles(recipe)), options.turns, options.every)
    except EftError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    details = machine(recipe)
    if options.json:
        print(json.dumps(as_dict(recipe, details, turns), indent=2))
    else:
        print(f"recipe {recipe.name}; {place(details)}\n{report(turns)}", end="")
    if options.plot:
        options.plot.write_bytes(picture(draw(turns, f"{recipe.name}: {len(turns)} turns of one chat"), options.plot))


def as_dict(recipe: Recipe, details: Mapping[str, Any], turns: Sequence[Turn]) -> dict[str, Any]:
    """Return what was measured ready for JSON."""
    return {
        "recipe": recipe.name,
        "machine": details,
        "turns": [asdict(turn) for turn in turns],
        "fit": asdict(fit(turns)),
    }


if __name__ == "__main__":
    main()
