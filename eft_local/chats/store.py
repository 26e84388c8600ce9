"""The file: its tables, their upgrades, and what SQLite's errors mean to a person."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eft_local.errors import HistoryError, UsageError, shown

APPLICATION_ID = 0x45465431  # "EFT1" in the file's header: this is our file, and `file` can recognise it
BUSY_SECONDS = 5.0

# Foreign keys hold what a branch is: a parent is in the same chat, and `next`, the child that is shown after a
# message, is one of its children. They are deferred, since a chat goes with all its messages at once.
_TABLES = (
    """CREATE TABLE recipe (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, toml TEXT NOT NULL, folder TEXT NOT NULL,
        UNIQUE (toml, folder))""",
    """CREATE TABLE chat (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL,
        recipe INTEGER NOT NULL REFERENCES recipe (id), system_prompt TEXT,
        created TEXT NOT NULL, updated TEXT NOT NULL, deleted TEXT, first INTEGER,
        FOREIGN KEY (first, id) REFERENCES message (id, chat) DEFERRABLE INITIALLY DEFERRED)""",
    "CREATE INDEX chat_by_update ON chat (updated)",
    "CREATE INDEX chat_by_first ON chat (first, id)",
    "CREATE INDEX chat_by_recipe ON chat (recipe)",
    """CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT, chat TEXT NOT NULL REFERENCES chat (id) ON DELETE CASCADE,
        parent INTEGER, next INTEGER, role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        text TEXT NOT NULL, created TEXT NOT NULL,
        UNIQUE (id, chat), UNIQUE (id, parent),
        FOREIGN KEY (parent, chat) REFERENCES message (id, chat) DEFERRABLE INITIALLY DEFERRED,
        FOREIGN KEY (next, id) REFERENCES message (id, parent) DEFERRABLE INITIALLY DEFERRED)""",
    "CREATE INDEX message_by_family ON message (chat, parent)",
    "CREATE INDEX message_by_parent ON message (parent, chat)",
    "CREATE INDEX message_by_next ON message (next, id)",
    # The column "facts" holds the statistics of its tokens; it keeps the name that older versions read.
    """CREATE TABLE answer (
        message INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
        written_by TEXT NOT NULL, system_prompt TEXT, finish_reason TEXT, prefix_tokens INTEGER NOT NULL,
        seed INTEGER, tokens_per_second REAL, figures TEXT NOT NULL, tokens BLOB NOT NULL, facts BLOB)""",
    """CREATE TABLE answer_recipe (
        message INTEGER NOT NULL REFERENCES answer (message) ON DELETE CASCADE, position INTEGER NOT NULL,
        recipe INTEGER NOT NULL REFERENCES recipe (id), PRIMARY KEY (message, position)) WITHOUT ROWID""",
    "CREATE INDEX answer_recipe_by_recipe ON answer_recipe (recipe)",
)


def _words(index: str, table: str, column: str, key: str) -> tuple[str, ...]:
    """Return the SQL of a full-text index over one column, kept by triggers."""
    add = f"INSERT INTO {index} (rowid, {column}) VALUES (new.{key}, new.{column});"
    drop = f"INSERT INTO {index} ({index}, rowid, {column}) VALUES ('delete', old.{key}, old.{column});"
    return (
        f"CREATE VIRTUAL TABLE {index} USING fts5 ({column}, content = '{table}', content_rowid = '{key}', "
        "tokenize = 'unicode61 remove_diacritics 2')",
        f"CREATE TRIGGER {index}_insert AFTER INSERT ON {table} BEGIN {add} END",
        f"CREATE TRIGGER {index}_delete AFTER DELETE ON {table} BEGIN {drop} END",
        f"CREATE TRIGGER {index}_update AFTER UPDATE OF {column} ON {table} BEGIN {drop} {add} END",
    )


MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        *_TABLES,
        *_words("message_words", "message", "text", "id"),
        *_words("title_words", "chat", "title", "number"),
    ),
)
"""The statements that lead from schema n to n + 1; `PRAGMA user_version` says where a file stands."""


def open_file(path: Path, *, writing: bool) -> sqlite3.Connection:
    """Open the file, and bring an older one up to date; when writing, make one that nobody else can read.

    A file in a folder that cannot be written to can be read, as long as no unfinished log stands beside it.
    Raises: HistoryError, with the file untouched.
    """
    with explaining(path):
        if writing:
            _make(path)
        try:
            return _opened(path, "mode=rw")
        except sqlite3.OperationalError as error:
            log = path.with_name(path.name + "-wal")
            if writing or not _is(error, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or log.exists():
                raise
            return _opened(path, "immutable=1")


def open_empty() -> sqlite3.Connection:
    """Return a history without chats, in memory."""
    db = _connect(":memory:")
    _migrate(db)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def identity(path: Path | None) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one that takes its name; None if there is none."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its own files beside it the same mode
    except OSError as error:
        raise HistoryError(f"the history {path} cannot be written: {error.strerror or error}") from error


def _connect(database: str) -> sqlite3.Connection:
    db = sqlite3.connect(database, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    db = _connect(f"{path.absolute().as_uri()}?{mode}")
    try:
        _check(db, path)
        if mode != "immutable=1":
            _use_log(db)
        _migrate(db)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # with the log: a dead process loses nothing, a power cut the last second
        db.execute("PRAGMA secure_delete = ON")  # what is purged is overwritten
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raise HistoryError for a file of another program or of a newer version."""
    with transaction(db):  # another process may be making the file
        owner, version = _pragma(db, "application_id"), _pragma(db, "user_version")
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (owner or version or tables):
        raise HistoryError(f"{path} belongs to another program; move it away, and eft starts a new history")
    if version > len(MIGRATIONS):
        raise HistoryError(
            f"the history {path} was written by a newer eft-local (its schema is {version}, this version knows "
            f"{len(MIGRATIONS)}); update eft-local"
        )


def _use_log(db: sqlite3.Connection) -> None:
    """Switch to write-ahead logging. SQLite does not wait by itself when two processes do so at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(db: sqlite3.Connection) -> None:
    """Apply what is missing, all of it or nothing."""
    if _pragma(db, "user_version") == len(MIGRATIONS):
        return
    with transaction(db, "IMMEDIATE"):
        for statements in MIGRATIONS[_pragma(db, "user_version") :]:  # another process may have been faster
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def transaction(db: sqlite3.Connection, kind: str = "") -> Iterator[None]:
    """Commit what is done inside, or take it back."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def explaining(path: Path | None) -> Iterator[None]:
    """Turn SQLite's errors into HistoryError, and texts that cannot be stored into UsageError."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise UsageError(f"{shown(error.object)} is not valid Unicode at character {error.start}") from None
    except OSError as error:
        raise HistoryError(f"the history {path} cannot be used: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise HistoryError(_explained(error, path)) from error


def _is(error: sqlite3.Error, *codes: int) -> bool:
    """Whether an error is of one of these kinds; SQLite's extended codes keep theirs in the low byte."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in codes


def _explained(error: sqlite3.Error, path: Path | None) -> str:
    if _is(error, sqlite3.SQLITE_FULL):
        return f"the history {path} cannot be saved: the disk is full; free some space"
    if _is(error, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return (
            f"the history {path} is damaged ({error}) and is left as it is; move it away to start a new one "
            "(`sqlite3 FILE .recover` may save what it holds)"
        )
    if _is(error, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"the history {path} cannot be written: no permission, or a read-only disk"
    if _is(error, sqlite3.SQLITE_CANTOPEN):
        return f"the history {path} cannot be opened; it and its folder must be readable and writable"
    if _is(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"the history {path} is in use by another program that does not let go; end it, or try again"
    if "fts5" in str(error):
        return "this Python's SQLite lacks FTS5, which the history needs; use another Python, as from python.org"
    return f"the history {path} fails: {error}"
