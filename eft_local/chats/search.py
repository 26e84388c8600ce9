"""Finding words in titles and messages."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from typing import NamedTuple

from eft_local.errors import UsageError

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese put no spaces between words, so a word index does not find theirs."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # characters that no text has
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)
_SNIPPET_LENGTH = 100

Marks = tuple[tuple[int, int], ...]


class Found(NamedTuple):
    """A chat's id, its message that has most of the words (None: its title has more), and a snippet of that."""

    chat: str
    message: int | None
    snippet: str
    marks: Marks


class _Column(NamedTuple):
    """Where words are looked for: a full-text index, and the column that it indexes."""

    words: str
    key: str
    text: str


_TEXTS = _Column("message_words", "m.id", "m.text")
_TITLES = _Column("title_words", "c.number", "c.title")


def search(db: sqlite3.Connection, text: str, limit: int) -> list[Found]:
    """Return the chats that hold all words somewhere, or words that begin so; the newest first.

    Accents and case do not matter. Punctuation and scripts without spaces are looked for letter by letter.
    Raises: UsageError if there are no words.
    """
    terms = text.replace("\0", " ").split()
    if not terms:
        raise UsageError("nothing to search for; give a word")
    places: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for term in terms:
        for chat, message in _holding(db, term):
            places[chat][message].add(term)
    found = {chat: where for chat, where in places.items() if set().union(*where.values()) >= set(terms)}
    rows = db.execute("SELECT id, number, title FROM chat WHERE deleted IS NULL ORDER BY updated DESC, number DESC")
    chosen = [row for row in rows if row["id"] in found][:limit]
    return [_found(db, row, found[row["id"]], terms) for row in chosen]


_TITLE = 0  # stands for a message's number; those begin at 1


def _holding(db: sqlite3.Connection, term: str) -> list[tuple[str, int]]:
    """Return the (chat, message) pairs that hold a term."""
    in_text, in_title = _condition(_TEXTS, term), _condition(_TITLES, term)
    sql = f"""SELECT m.chat, m.id FROM message m WHERE {in_text}
        UNION ALL SELECT c.id, {_TITLE} FROM chat c WHERE {in_title}"""
    return [tuple(row) for row in db.execute(sql, (_sought(term),) * 2)]


def _is_word(term: str) -> bool:
    return any(map(str.isalnum, term)) and not _UNSPACED.search(term)


def _condition(column: _Column, term: str) -> str:
    if _is_word(term):
        return f"{column.key} IN (SELECT rowid FROM {column.words} WHERE {column.words} MATCH ?)"
    return rf"{column.text} LIKE ? ESCAPE '\'"


def _sought(term: str) -> str:
    """Return a term as its condition wants it: words that begin so, or a pattern of letters."""
    if _is_word(term):
        return '"{}"*'.format(term.replace('"', '""'))
    return "%{}%".format(re.sub(r"([%_\\])", r"\\\1", term))


def _found(db: sqlite3.Connection, row: sqlite3.Row, where: dict[int, set[str]], terms: list[str]) -> Found:
    message = max(where, key=lambda place: (len(where[place]), place))
    if message == _TITLE:
        return Found(row["id"], None, *_excerpt(row["title"], _marks(db, _TITLES, row["number"], row["title"], terms)))
    text = db.execute("SELECT text FROM message WHERE id = ?", (message,)).fetchone()[0]
    return Found(row["id"], message, *_excerpt(text, _marks(db, _TEXTS, message, text, terms)))


def _marks(db: sqlite3.Connection, column: _Column, key: int, text: str, terms: list[str]) -> list[tuple[int, int]]:
    """Return where the terms stand in a text, in order."""
    marks = [
        found.span()
        for term in terms
        if not _is_word(term)
        for found in re.finditer(re.escape(term), text, re.IGNORECASE)
    ]
    any_word = " OR ".join(_sought(term) for term in terms if _is_word(term))
    if any_word:
        sql = (
            f"SELECT highlight({column.words}, 0, ?, ?) FROM {column.words} WHERE {column.words} MATCH ? AND rowid = ?"
        )
        row = db.execute(sql, (_OPEN, _CLOSE, any_word, key)).fetchone()
        for number, found in enumerate(_MARKED.finditer(row[0]) if row else ()):
            start = found.start() - 2 * number  # the marks before it are no part of the text
            marks.append((start, start + len(found[1])))
    return sorted(marks)


def _excerpt(text: str, marks: list[tuple[int, int]]) -> tuple[str, Marks]:
    """Cut a text around its first mark, at spaces where there are some, onto one line; move the marks with it."""
    first = marks[0][0] if marks else 0
    start, end = 0, len(text)
    if first > _SNIPPET_LENGTH // 3:
        start = first - _SNIPPET_LENGTH // 3
        start = max(start, text.find(" ", start, first) + 1)
    if end - start > _SNIPPET_LENGTH:
        end = start + _SNIPPET_LENGTH
        end = max(end - 20, text.rfind(" ", start, end))
    before, after = "…" if start else "", "…" if end < len(text) else ""
    moved = [(low - start + len(before), min(high, end) - start + len(before)) for low, high in marks if low < end]
    return before + re.sub(r"\s", " ", text[start:end]) + after, tuple(moved)
