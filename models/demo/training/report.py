"""What the trained family does on the held-out questions, straight from PyTorch: a quick check before `eft eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .evaluate import Term, generate, has_form, is_correct, is_declined
from .model import Llama
from .tune import Chat, chat_prompt, plain_prompt
from .wording import PAPER_FRAME, Marked

System = list[tuple[str, float]]
"""(model, weight) pairs; tuned models see their chat template, the others the plain frame."""

PLAIN = ("base", "small")


def mixture(alpha: float = 1.0, beta: float = 1.0) -> System:
    return [("base", beta), ("small", 1.0 - beta - alpha), ("assistant", alpha)]


SYSTEMS: dict[str, System] = {
    "base": [("base", 1.0)],
    "small": [("small", 1.0)],
    "assistant": [("assistant", 1.0)],
    "cautious": [("cautious", 1.0)],
    "base-tuned": [("base-tuned", 1.0)],
    "eft": mixture(),
    **{f"eft β = {beta}": mixture(beta=beta) for beta in (0.8, 1.2, 1.5)},
    **{f"eft α = {alpha}": mixture(alpha=alpha) for alpha in (0.5, 1.5)},
    **{
        f"two λ = {share}": [("base", 1.0), ("small", -1.0), ("assistant", 1 - share), ("cautious", share)]
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    },
    "down": [("small", 1.0), ("base-tuned", 1.0), ("base", -1.0)],
}


@dataclass
class Row:
    """Shares over one group of questions."""

    n: int
    correct: float
    form: float
    both: float
    declined: float


def read_questions(path: Path, sensitive: bool) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][1:]
    return [r for r in rows if r["split"] == "held-out" and r["kind"] == "short" and r["sensitive"] == sensitive]


def answers(
    models: dict[str, Llama], system: System, tokenizer: Tokenizer, questions: list[str], max_tokens: int = 40
) -> list[tuple[str, bool]]:
    """(text, ended) for each question, greedy."""
    chats = [Chat(question, Marked("")) for question in questions]
    token_ids = {
        True: [plain_prompt(tokenizer, c, PAPER_FRAME) for c in chats],
        False: [chat_prompt(tokenizer, c) for c in chats],
    }
    terms = [Term(models[name], token_ids[name in PLAIN], weight) for name, weight in system if weight]
    return [(tokenizer.decode(output.tokens), output.ended) for output in generate(terms, max_tokens)]


def judge(models: dict[str, Llama], system: System, tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> Row:
    replies = answers(models, system, tokenizer, [row["question"] for row in rows])
    correct = [
        is_correct(text, [row["answer"], *row.get("accept", ())]) for row, (text, _) in zip(rows, replies, strict=True)
    ]
    form = [has_form(text, ended, row["entity"]) for row, (text, ended) in zip(rows, replies, strict=True)]
    both = [c and f for c, f in zip(correct, form, strict=True)]
    declined = [is_declined(text) for text, _ in replies]
    n = len(rows)
    return Row(n, sum(correct) / n, sum(form) / n, sum(both) / n, sum(declined) / n)


def report(models: dict[str, Llama], tokenizer: Tokenizer, questions: Path, say: Callable[[str], None]) -> str:
    """A Markdown table of every system: all but the sensitive questions, and the declined share of those."""
    ordinary, sensitive = read_questions(questions, False), read_questions(questions, True)
    lines = ["| system | right | form | both | sensitive: right | declined |", "|---|---|---|---|---|---|"]
    for name, system in SYSTEMS.items():
        usual, private = (
            judge(models, system, tokenizer, ordinary),
            judge(models, system, tokenizer, sensitive),
        )
        cells = (usual.correct, usual.form, usual.both, private.correct, private.declined)
        lines.append(f"| {name} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
        say(lines[-1])
    return "\n".join(lines) + "\n"
