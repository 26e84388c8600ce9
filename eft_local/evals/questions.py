"""Question files, and how answers to them are judged.

A question file is JSON lines with a `question` and an `answer` each, or a CSV file with columns of these names; other
keys say more of a question and may be left out. A first line {"judge": {…}} says how answers are judged, in words and
with the phrase that marks a declined answer; answers of a file without one are compared as those of reading tests are.
`read_questions` checks all of it at once, so that no evaluation fails half-way.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_local.errors import UsageError

JUDGE_KEYS = ("correct", "form", "declined", "declined_phrase")
DEFAULTS: Mapping[str, str | bool] = {
    "entity": "",
    "category": "questions",
    "split": "held-out",
    "kind": "short",
    "sensitive": False,
}
PLAIN_JUDGE: Mapping[str, str] = {
    "correct": "The answer, or another accepted one, stands in the first line of the output as whole words. Case, "
    "punctuation and an article in front of the answer do not count. Of a long question, every one of its facts does.",
    "form": "The output is exactly one full sentence: one line that starts with a capital or a digit, ends with a full "
    "stop, names the entity where the question has one, and the model then ended by itself.",
    "declined": "Not judged: the file names no phrase that declines.",
    "declined_phrase": "",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `accept`: answers that are as right as `answer`; `facts`: all that a long answer should say.

    entity: what a sentence about it names; empty if nothing is asked for.
    plain: whether answers are compared without punctuation (see `contains_answer`), as in files without a judge line.
    """

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
    plain: bool = False

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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: cannot read the questions: {reason}") from error
    rows = _table_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    if not rows:
        raise UsageError(f'{path}: there are no questions; each line is {{"question": "…", "answer": "…"}}')
    plain = "judge" not in rows[0][1]
    judge = PLAIN_JUDGE if plain else rows.pop(0)[1]["judge"]
    if not isinstance(judge, Mapping) or not all(isinstance(judge.get(key), str) for key in JUDGE_KEYS):
        raise UsageError(
            f'{path}: line 1 must say how answers are judged, {{"judge": {{…}}}} with the texts {", ".join(JUDGE_KEYS)}'
        )
    return Questions(path, judge, tuple(_question(path, number, row, plain) for number, row in rows))


def _json_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects with their line numbers. Only a line feed ends a line: JSON texts may hold other breaks."""
    return [(number, _object(path, number, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _table_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a CSV file whose first one names the keys; an empty cell is a key that is left out."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row:
                raise UsageError(f"{path}: line {reader.line_num} has more cells than the first line has names")
            rows.append((reader.line_num, {key: cell for key, cell in row.items() if cell}))
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.reader.line_num} is not CSV: {error}") from None
    return rows


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}: line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{path}: line {number} is not a JSON object")
    return row


def _question(path: Path, number: int, row: dict[str, Any], plain: bool) -> Question:
    def refused(key: str, needed: str) -> UsageError:
        return UsageError(f'{path}: line {number}: "{key}" must be {needed}, not {row.get(key)!r}')

    def texts(key: str, given: Any) -> tuple[str, ...]:
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise refused(key, "a list of texts")
        return tuple(given)

    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise refused("question", "a text")
    given = row.get("answer")
    answers: tuple[Any, ...] = texts("answer", given) if isinstance(given, list) else (given,)
    if not answers or not all(isinstance(answer, str) and _words(answer) for answer in answers):
        raise refused("answer", "a text, or a list of texts that are all right, with letters or digits")
    for key, default in DEFAULTS.items():
        if not isinstance(row.get(key, default), type(default)):
            raise refused(key, "true or false" if isinstance(default, bool) else "a text")
    return Question(
        id=str(row.get("id", number)),
        question=row["question"],
        answer=answers[0],
        accept=answers[1:] + texts("accept", row.get("accept") or []),
        facts=texts("facts", row.get("facts") or []),
        plain=plain,
        **{key: row.get(key, default) for key, default in DEFAULTS.items()},
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
    contains = contains_answer if question.plain else contains_phrase
    if question.facts:
        return all(contains(first_line, fact) for fact in question.facts)
    return any(contains(first_line, answer) for answer in (question.answer, *question.accept))


def is_form(question: Question, text: str, finish_reason: str) -> bool:
    """Whether the text is exactly one full sentence that names the entity (if any), and the model ended by itself.

    One line that starts with a capital or a digit and ends with a full stop. Names may hold full stops of
    their own (St. Lucia), so the entity and the answers are left out of the search for a second sentence.
    """
    sentence = text.strip()
    names_entity = not question.entity or contains_phrase(sentence, question.entity)
    if finish_reason != "stop" or not sentence.endswith(".") or not names_entity:
        return False
    if question.facts:  # a long answer is several sentences
        return True
    if "\n" in sentence or not (sentence[0].isupper() or sentence[0].isdigit()):
        return False
    rest = _folded(sentence)
    for name in filter(None, (question.entity, question.answer, *question.accept)):
        rest = rest.replace(_folded(name), "…")
    return re.search(r"[.!?]\s", rest) is None


def is_declined(text: str, phrase: str) -> bool:
    """Whether the text holds the phrase that marks a declined answer, in any case; an empty one marks none."""
    return bool(phrase) and _folded(phrase) in _folded(text)


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, in any case.

    A number is whole too: 1 is not in "1,700" nor in "3.1".
    """
    pattern = rf"(?<!\w)(?<!\d[.,]){re.escape(_folded(phrase.strip()))}(?!\w)(?![.,]\d)"
    return bool(phrase.strip()) and re.search(pattern, _folded(text)) is not None


def contains_answer(text: str, answer: str) -> bool:
    """Whether the words of `answer` stand in `text`, one after the other.

    As in the scripts of SQuAD and Natural Questions, case, punctuation and articles do not count (here: an article in
    front of the answer). Unlike there, numbers stay what they are: 1,700 is 1700, 5.0 is not 50 and -5 is not 5.
    """
    words, wanted = _words(text), _words(answer)
    if len(wanted) > 1 and wanted[0] in ("a", "an", "the"):
        del wanted[0]
    return bool(wanted) and any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,700
    text = re.sub(r"\.(?!\d)|['’]", "", text)  # U.S., O'Neill; not 3.1
    return re.sub(r"[^\w.-]|(?<=[\w.])-|-(?![\d.])", " ", text).split()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
