"""Changes to a chat's rows, each inside somebody's transaction."""

from __future__ import annotations

import json
import secrets
import sqlite3

from eft_local.chats.reading import ASTRAY, now, number_of, packed
from eft_local.chats.writer import Draft, Ending

_ID_LETTERS = "abcdefghjkmnpqrstvwxyz23456789"  # none that looks like another
_ID_LENGTH = 6
_TITLE_LENGTH = 80


def new_id(db: sqlite3.Connection) -> str:
    """Return a chat's id that no chat has."""
    while True:
        chat = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
        if db.execute("SELECT 1 FROM chat WHERE id = ?", (chat,)).fetchone() is None:
            return chat


def title_of(question: str) -> str:
    """Return the first line of a question, cut visibly if it is long."""
    first = " ".join(question.strip().partition("\n")[0].split())
    return first if len(first) <= _TITLE_LENGTH else first[: _TITLE_LENGTH - 1].rstrip() + "…"


def insert(db: sqlite3.Connection, chat: str, parent: int | None, role: str, text: str) -> int:
    """Add a message, show it, and return its id."""
    when = now()
    message = db.execute(
        "INSERT INTO message (chat, parent, role, text, created) VALUES (?, ?, ?, ?, ?)",
        (chat, parent, role, text, when),
    ).lastrowid
    assert message is not None
    show(db, chat, message)
    db.execute("UPDATE chat SET updated = ? WHERE id = ?", (when, chat))
    return message


def show(db: sqlite3.Connection, chat: str, message: int) -> None:
    """Let `next` lead to a message from the first question on; other branches keep theirs, to be found as left."""
    for child, parent in db.execute(ASTRAY, (message,)).fetchall():
        if parent is None:
            db.execute("UPDATE chat SET first = ? WHERE id = ?", (child, chat))
        else:
            db.execute("UPDATE message SET next = ? WHERE id = ?", (child, parent))


def update(db: sqlite3.Connection, message: int, draft: Draft, ending: Ending | None) -> None:
    """Write how far an answer has come; nothing, if its chat has gone."""
    if db.execute("SELECT 1 FROM answer WHERE message = ?", (message,)).fetchone() is None:
        return
    db.execute("UPDATE message SET text = ? WHERE id = ? AND text IS NOT ?", (draft.text, message, draft.text))
    db.execute("UPDATE answer SET tokens = ? WHERE message = ?", (packed(draft.tokens), message))
    for position, snapshot in draft.recipes:
        number = number_of(db, snapshot)
        db.execute("INSERT OR REPLACE INTO answer_recipe VALUES (?, ?, ?)", (message, position, number))
        db.execute("UPDATE chat SET recipe = ? WHERE id = (SELECT chat FROM message WHERE id = ?)", (number, message))
    if ending is not None:
        figures = json.dumps(dict(ending.figures), allow_nan=False)
        db.execute(
            "UPDATE answer SET finish_reason = ?, tokens_per_second = ?, figures = ?, facts = coalesce(?, facts) "
            "WHERE message = ?",
            (ending.reason, ending.tokens_per_second, figures, ending.statistics, message),
        )


def discarded(db: sqlite3.Connection, message: int, shown_before: int | None) -> bool:
    """Remove an answer without text and show what was shown before it; False if something follows it already."""
    row = db.execute("SELECT parent FROM message WHERE id = ?", (message,)).fetchone()
    if row is None or db.execute("SELECT 1 FROM message WHERE parent = ?", (message,)).fetchone():
        return False
    siblings = db.execute(
        "SELECT id FROM message WHERE parent = ? AND id <> ? ORDER BY id", (row[0], message)
    ).fetchall()
    left = [sibling[0] for sibling in siblings]
    instead = shown_before if shown_before in left else next(reversed(left), None)
    db.execute("UPDATE message SET next = ? WHERE next = ?", (instead, message))
    db.execute("DELETE FROM message WHERE id = ?", (message,))
    return True


def purge(db: sqlite3.Connection, condition: str, value: str) -> None:
    """Remove chats, the recipes that nothing refers to any more, and their words from the indexes."""
    if db.execute(f"DELETE FROM chat WHERE {condition}", (value,)).rowcount:
        db.execute(
            "DELETE FROM recipe WHERE id NOT IN (SELECT recipe FROM chat UNION SELECT recipe FROM answer_recipe)"
        )
        for index in ("message_words", "title_words"):  # where words are only crossed out until parts are merged
            db.execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')")
