"""Question files, and how answers to them are judged.

A question file is JSON lines. The first line says how answers are judged, in words and with the phrase that
marks a declined answer; every other line is one question. `read_questions` checks all of it at once, so that
no evaluation fails half-way.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_local.errors import UsageError

JUDGE_KEYS = ("correct", "form", "declined", "declined_phrase")
QUESTION_KEYS: dict[str, type] = {
    "question": str,
    "answer": str,
    "entity": str,
    "category": str,
    "split": str,
    "kind": str,
    "sensitive": bool,
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `accept`: answers that are as right as `answer`; `facts`: all that a long answer should say."""

    id: str
    question: str
    answer: str
    entity: str
    category: str
    split: str
    kind: str
    sensitive: bool
    accept: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The category it is counted under: sensitive questions are one of their own."""
        return "sensitive" if self.sensitive else self.category


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a file, and how it says that answers are judged (keys: `JUDGE_KEYS`)."""

    path: Path
    judge: Mapping[str, str]
    items: tuple[Question, ...]

    def select(self, *, split: str | None = None, kind: str | None = None, limit: int | None = None) -> Questions:
        """Return the questions of this split and kind; `limit` takes so many, spread evenly over them.

        Raises: UsageError if none is left, naming the splits and kinds that there are.
        """
        items = [q for q in self.items if split in (None, q.split) and kind in (None, q.kind)]
        if not items:
            there = sorted({f"{q.split}/{q.kind}" for q in self.items})
            raise UsageError(
                f"{self.path}: no questions with split {split or 'any'} and kind {kind or 'any'}; "
                f"the file has {', '.join(there) or 'none'}"
            )
        if limit is not None and limit < len(items):
            items = [items[index * len(items) // limit] for index in range(limit)]
        return Questions(self.path, self.judge, tuple(items))


def read_questions(path: Path) -> Questions:
    """Read and check a question file. Raises: UsageError naming the file, the line and the key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: cannot read the questions: {reason}") from error
    rows = [(number, _object(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
    judge = rows[0][1].get("judge") if rows else None
    if not isinstance(judge, dict) or not all(isinstance(judge.get(key), str) for key in JUDGE_KEYS):
        raise UsageError(
            f'{path}: line 1 must say how answers are judged, {{"judge": {{…}}}} with the texts {", ".join(JUDGE_KEYS)}'
        )
    return Questions(path, judge, tuple(_question(path, number, row) for number, row in rows[1:]))


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{path}: line {number} is not a JSON object")
    return row


def _question(path: Path, number: int, row: dict[str, Any]) -> Question:
    for key, kind in QUESTION_KEYS.items():
        if not isinstance(row.get(key), kind):
            raise UsageError(f'{path}: line {number}: "{key}" must be a {kind.__name__}, not {row.get(key)!r}')
    lists = {key: row.get(key) or () for key in ("accept", "facts")}
    for key, texts in lists.items():
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f'{path}: line {number}: "{key}" must be a list of texts, not {texts!r}')
    return Question(
        id=str(row.get("id", number)),
        accept=tuple(lists["accept"]),
        facts=tuple(lists["facts"]),
        **{key: row[key] for key in QUESTION_KEYS},
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one answer was judged."""

    correct: bool
    form: bool
    declined: bool


def judge(question: Question, text: str, finish_reason: str, declined_phrase: str) -> Verdict:
    """Judge one answer, as the question file says."""
    return Verdict(
        correct=is_correct(question, text),
        form=is_form(question, text, finish_reason),
        declined=is_declined(text, declined_phrase),
    )


def is_correct(question: Question, text: str) -> bool:
    """Whether the answer, or one of those to accept, stands as a whole word or phrase in the first line.

    Of a long question, whether every one of its facts does.
    """
    first_line = text.strip().partition("\n")[0]
    if question.facts:
        return all(contains_phrase(first_line, fact) for fact in question.facts)
    return any(contains_phrase(first_line, answer) for answer in (question.answer, *question.accept))


def is_form(question: Question, text: str, finish_reason: str) -> bool:
    """Whether the text is exactly one full sentence that names the entity, and the model ended by itself.

    One line that starts with a capital or a digit and ends with a full stop. Names may hold full stops of
    their own (St. Lucia), so the entity and the answers are left out of the search for a second sentence.
    """
    sentence = text.strip()
    if question.facts:  # a long answer is several sentences
        return finish_reason == "stop" and sentence.endswith(".") and contains_phrase(sentence, question.entity)
    if finish_reason != "stop" or "\n" in sentence or not sentence.endswith("."):
        return False
    if not (sentence[0].isupper() or sentence[0].isdigit()) or not contains_phrase(sentence, question.entity):
        return False
    rest = _folded(sentence)
    for name in (question.entity, question.answer, *question.accept):
        rest = rest.replace(_folded(name), "…")
    return re.search(r"[.!?]\s", rest) is None


def is_declined(text: str, phrase: str) -> bool:
    """Whether the text holds the phrase that marks a declined answer, in any case."""
    return _folded(phrase) in _folded(text)


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, in any case.

    A number is whole too: 1 is not in "1,700" nor in "3.1".
    """
    pattern = rf"(?<!\w)(?<!\d[.,]){re.escape(_folded(phrase.strip()))}(?!\w)(?![.,]\d)"
    return bool(phrase.strip()) and re.search(pattern, _folded(text)) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
