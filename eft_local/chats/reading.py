"""Rows into records."""

from __future__ import annotations

import json
import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from eft_local.chats.records import AnswerRecord, Chat, FinishReason, Message, Snapshot
from eft_local.errors import UsageError

CHATS = "SELECT c.*, r.name, r.toml, r.folder FROM chat c JOIN recipe r ON r.id = c.recipe"

MESSAGES = """
SELECT m.*, a.written_by, a.system_prompt, a.finish_reason, a.prefix_tokens, a.seed, a.tokens_per_second, a.figures,
    a.tokens, a.facts IS NOT NULL AS has_statistics,
    (SELECT group_concat(s.id) FROM message s WHERE s.chat = m.chat AND s.parent IS m.parent) AS siblings,
    (SELECT group_concat(r.position || ':' || r.recipe) FROM answer_recipe r WHERE r.message = m.id) AS recipes
FROM message m LEFT JOIN answer a ON a.message = m.id
"""

SHOWN = f"""
WITH RECURSIVE down (id, next, depth) AS (
    SELECT id, next, 0 FROM message WHERE id = (SELECT first FROM chat WHERE id = ?)
    UNION ALL SELECT m.id, m.next, depth + 1 FROM message m JOIN down ON m.id = down.next)
{MESSAGES} JOIN down ON down.id = m.id ORDER BY down.depth
"""

BRANCH = f"""
WITH RECURSIVE up (id, parent, height) AS (
    SELECT id, parent, 0 FROM message WHERE id = ?
    UNION ALL SELECT m.id, m.parent, height + 1 FROM message m JOIN up ON m.id = up.parent)
{MESSAGES} JOIN up ON up.id = m.id ORDER BY up.height DESC
"""

ASTRAY = """
WITH RECURSIVE up (id, parent) AS (
    SELECT id, parent FROM message WHERE id = ?
    UNION ALL SELECT m.id, m.parent FROM message m JOIN up ON m.id = up.parent)
SELECT up.id AS child, up.parent FROM up LEFT JOIN message m ON m.id = up.parent WHERE m.next IS NOT up.id
"""
"""Those of a message and its ancestors that are not what is shown after their parents; the first question always."""

LAST_ANSWER = """
WITH RECURSIVE down (id, next, role) AS (
    SELECT id, next, role FROM message WHERE id = (SELECT first FROM chat WHERE id = ?)
    UNION ALL SELECT m.id, m.next, m.role FROM message m JOIN down ON m.id = down.next)
SELECT down.id FROM down LEFT JOIN message m ON m.id = down.next
WHERE down.role = 'assistant' AND m.next IS NULL
"""
"""The last answer of the branch that is shown; it ends with this or with a question after it."""


def now() -> str:
    """Return the time as the tables hold it: UTC, sortable."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def packed(tokens: Sequence[int]) -> bytes:
    """Return token ids as little-endian 32-bit integers."""
    ids = array("i", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpacked(blob: bytes) -> tuple[int, ...]:
    """Return the token ids that `packed` was given."""
    ids = array("i", blob)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)


def number_of(db: sqlite3.Connection, recipe: Snapshot) -> int:
    """Return the row of a recipe's snapshot; equal ones share it."""
    given = (recipe.toml, str(recipe.folder or ""))
    db.execute("INSERT OR IGNORE INTO recipe (name, toml, folder) VALUES (?, ?, ?)", (recipe.name, *given))
    return int(db.execute("SELECT id FROM recipe WHERE toml = ? AND folder = ?", given).fetchone()[0])


def chat_of(row: sqlite3.Row) -> Chat:
    """Return a row of CHATS as a record."""
    return Chat(
        id=row["id"],
        title=row["title"],
        recipe=_snapshot(row),
        system_prompt=row["system_prompt"],
        created=datetime.fromisoformat(row["created"]),
        updated=datetime.fromisoformat(row["updated"]),
        deleted=datetime.fromisoformat(row["deleted"]) if row["deleted"] else None,
    )


def find_chat(db: sqlite3.Connection, beginning: str) -> sqlite3.Row:
    """Return the one chat whose id begins so. Raises: UsageError."""
    sought = beginning.strip().lower()
    rows = (
        db.execute(f"{CHATS} WHERE c.id = ?", (sought,)).fetchall()
        or db.execute(f"{CHATS} WHERE substr(c.id, 1, ?) = ? ORDER BY c.updated DESC", (len(sought), sought)).fetchall()
    )
    if not sought or not rows:
        raise UsageError(f"there is no chat {beginning!r}; `eft history` lists them")
    if len(rows) > 1:
        some = ", ".join(row["id"] for row in rows[:5])
        raise UsageError(f"chat {beginning!r} could be one of {len(rows)} ({some}); give more of its id")
    row: sqlite3.Row = rows[0]
    return row


def messages_of(
    db: sqlite3.Connection, rows: Iterable[sqlite3.Row], being_written: Callable[[int], bool]
) -> list[Message]:
    """Return rows of MESSAGES as records."""

    @cache
    def snapshot(recipe: int) -> Snapshot:
        return _snapshot(db.execute("SELECT name, toml, folder FROM recipe WHERE id = ?", (recipe,)).fetchone())

    return [_message(row, snapshot, being_written) for row in rows]


def _message(row: sqlite3.Row, snapshot: Callable[[int], Snapshot], being_written: Callable[[int], bool]) -> Message:
    return Message(
        id=row["id"],
        chat=row["chat"],
        parent=row["parent"],
        role=row["role"],
        text=row["text"],
        created=datetime.fromisoformat(row["created"]),
        siblings=tuple(sorted(map(int, row["siblings"].split(",")))),
        answer=_answer(row, snapshot, being_written) if row["written_by"] is not None else None,
    )


def _answer(
    row: sqlite3.Row, snapshot: Callable[[int], Snapshot], being_written: Callable[[int], bool]
) -> AnswerRecord:
    pairs = sorted(tuple(map(int, pair.split(":"))) for pair in row["recipes"].split(","))
    reason: FinishReason | None = row["finish_reason"]
    if reason is None and not being_written(row["id"]):
        reason = "interrupted"
    return AnswerRecord(
        written_by=row["written_by"],
        recipes=tuple((position, snapshot(recipe)) for position, recipe in pairs),
        system_prompt=row["system_prompt"],
        finish_reason=reason,
        tokens=unpacked(row["tokens"]),
        prefix_tokens=row["prefix_tokens"],
        seed=row["seed"],
        tokens_per_second=row["tokens_per_second"],
        figures=json.loads(row["figures"]),
        has_statistics=bool(row["has_statistics"]),
    )


def _snapshot(row: sqlite3.Row) -> Snapshot:
    return Snapshot(row["name"], row["toml"], Path(row["folder"]) if row["folder"] else None)
