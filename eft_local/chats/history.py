"""The History: chats and their branches, read and written from any thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from eft_local import locations
from eft_local.chats import store
from eft_local.chats.reading import (
    BRANCH,
    CHATS,
    LAST_ANSWER,
    MESSAGES,
    SHOWN,
    chat_of,
    find_chat,
    messages_of,
    now,
    number_of,
    packed,
)
from eft_local.chats.records import Chat, Hit, Message, Snapshot
from eft_local.chats.search import search
from eft_local.chats.tree import discarded, insert, new_id, purge, show, title_of, update
from eft_local.chats.writer import AnswerWriter, Draft, Ending
from eft_local.errors import HistoryError, UsageError
from eft_local.recipe import Recipe
from eft_local.recipe.names import MIXTURE

KEPT_AFTER_DELETION = timedelta(days=30)
"""A deleted chat can be restored for so long; the first write after that purges it."""


class History:
    """All chats of one file. Close it, or use it in a `with`.

    The methods may be called from any thread. Two processes may share the file: each waits for the other's write.
    Every method raises HistoryError where the file cannot be read or written, and leaves it as it was.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: the file, made at the first write; None is the user's own, which a user without a home lacks."""
        if path is None and (folder := locations.chats()):
            path = folder / "chats.db"
        self.path = path
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._on_disk = False
        self._file: tuple[int, int] | None = None  # what stands at the path, when it was opened
        self._tidied = False
        self._closed = False
        self._writers: dict[int, AnswerWriter] = {}
        self._shown_before: dict[int, int | None] = {}

    @classmethod
    def unsaved(cls) -> History:
        """Return an empty history that is forgotten when it is closed."""
        history = cls(Path(":memory:"))
        history._db, history._on_disk = store.open_empty(), True
        return history

    def close(self) -> None:
        """Save what is being written, and close the file. Raises: HistoryError."""
        try:
            for writer in tuple(self._writers.values()):
                writer.close()
        finally:
            with self._lock:
                self._closed = True
                if self._db is not None:
                    self._db.close()
                self._db = None

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Chats

    def create(self, recipe: Recipe, *, system_prompt: str | None = None, title: str = "") -> Chat:
        """Begin a chat; without a title its first question gives it one."""
        with self._writing() as db:
            given = (" ".join(title.split()), number_of(db, Snapshot.of(recipe)), system_prompt, now())
            chat = new_id(db)
            db.execute(
                "INSERT INTO chat (id, title, recipe, system_prompt, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (chat, *given, given[-1]),
            )
            return chat_of(find_chat(db, chat))

    def chats(self, *, deleted: bool = False, limit: int | None = None) -> list[Chat]:
        """Return the chats, those with the newest messages first; `deleted`: only those that can be restored."""
        order = "c.deleted IS NOT NULL ORDER BY c.deleted" if deleted else "c.deleted IS NULL ORDER BY c.updated"
        with self._reading() as db:
            rows = db.execute(
                f"{CHATS} WHERE {order} DESC, c.number DESC LIMIT ?", (-1 if limit is None else limit,)
            ).fetchall()
            return [chat_of(row) for row in rows]

    def chat(self, chat: str) -> Chat:
        """Return the chat with this id, or this beginning of one, deleted or not. Raises: UsageError."""
        with self._reading() as db:
            return chat_of(find_chat(db, chat))

    def latest(self) -> Chat | None:
        """Return the chat with the newest message."""
        return next(iter(self.chats(limit=1)), None)

    def rename(self, chat: str, title: str) -> None:
        """Give a chat another title, on one line. Raises: UsageError."""
        line = " ".join(title.split())
        if not line:
            raise UsageError("an empty title: give a chat a name that can be read")
        self._set(chat, "title", line)

    def set_system_prompt(self, chat: str, text: str | None) -> None:
        """Give a chat another system prompt, or none. Raises: UsageError."""
        self._set(chat, "system_prompt", text)

    def set_recipe(self, chat: str, recipe: Recipe) -> None:
        """Note the recipe with which a chat continues. Raises: UsageError."""
        with self._writing() as db:
            self._set(chat, "recipe", number_of(db, Snapshot.of(recipe)))

    def delete(self, chat: str) -> None:
        """Put a chat aside; it can be restored for KEPT_AFTER_DELETION. Raises: UsageError."""
        self._set(chat, "deleted", now())

    def restore(self, chat: str | None = None) -> Chat:
        """Bring back a deleted chat; None is the one that was deleted last. Raises: UsageError."""
        with self._writing():
            if chat is None:
                last = self.chats(deleted=True, limit=1)
                if not last:
                    raise UsageError("no deleted chat is left to restore")
                chat = last[0].id
            self._set(chat, "deleted", None)
            return self.chat(chat)

    def purge(self, chat: str) -> None:
        """Remove a chat for good, with all that was said. Raises: UsageError."""
        with self._writing() as db:
            purge(db, "id = ?", find_chat(db, chat)["id"])

    # Messages

    def ask(self, chat: str, text: str, *, parent: int | None = None) -> Message:
        """Add a question after an answer, by default after the last that is shown, and show it.

        A question at the end of what is shown, which got no answer, stays as the new one's sibling.
        Raises: UsageError.
        """
        with self._writing() as db:
            found = find_chat(db, chat)["id"]
            if parent is None:
                last = db.execute(LAST_ANSWER, (found,)).fetchone()
                parent = last and last[0]
            return self._insert_question(found, parent, text)

    def edit(self, message: int, text: str) -> Message:
        """Add another question in the place of one, which stays as its sibling. Raises: UsageError."""
        with self._writing():
            old = self.message(message)
            if old.role != "user":
                raise UsageError(f"message {message} is an answer; only questions are edited")
            return self._insert_question(old.chat, old.parent, text)

    def answer(
        self,
        question: int,
        recipe: Recipe,
        *,
        written_by: str = MIXTURE,
        seed: int | None = None,
        text: str = "",
        tokens: Sequence[int] = (),
    ) -> AnswerWriter:
        """Begin an answer and show it; earlier ones to the same question stay as its siblings.

        text, tokens: what it begins with, when it continues from a stopped answer or from another token.
        Raises: UsageError.
        """
        with self._writing() as db:
            origin = self.message(question)
            if origin.role != "user":
                raise UsageError(f"message {question} is an answer; only questions are answered")
            chat = find_chat(db, origin.chat)
            number = number_of(db, Snapshot.of(recipe))
            before = db.execute("SELECT next FROM message WHERE id = ?", (question,)).fetchone()[0]
            message = insert(db, origin.chat, question, "assistant", text)
            db.execute(
                "INSERT INTO answer (message, written_by, system_prompt, prefix_tokens, seed, figures, tokens) "
                "VALUES (?, ?, ?, ?, ?, '{}', ?)",
                (message, written_by, chat["system_prompt"], len(tokens), seed, packed(tokens)),
            )
            db.execute("INSERT INTO answer_recipe VALUES (?, ?, ?)", (message, len(tokens), number))
            db.execute("UPDATE chat SET recipe = ? WHERE id = ?", (number, origin.chat))
            writer = AnswerWriter(message, self._save, text, tokens)
            self._writers[message], self._shown_before[message] = writer, before
        return writer

    def shown(self, chat: str) -> list[Message]:
        """Return the branch that is shown, from the first question to its end. Raises: UsageError."""
        with self._reading() as db:
            return self._messages(db, SHOWN, find_chat(db, chat)["id"])

    def branch(self, message: int) -> list[Message]:
        """Return what leads to a message, from the first question to the message itself. Raises: UsageError."""
        with self._reading() as db:
            return _found(message, self._messages(db, BRANCH, message))

    def messages(self, chat: str) -> list[Message]:
        """Return the messages of all branches, oldest first. Raises: UsageError."""
        with self._reading() as db:
            return self._messages(db, f"{MESSAGES} WHERE m.chat = ? ORDER BY m.id", find_chat(db, chat)["id"])

    def message(self, message: int) -> Message:
        """Return one message. Raises: UsageError."""
        with self._reading() as db:
            return _found(message, self._messages(db, f"{MESSAGES} WHERE m.id = ?", message))[0]

    def show(self, message: int) -> list[Message]:
        """Show the branch with a message and what was last shown after it, and return it. Raises: UsageError."""
        with self._writing() as db:
            chat = self.message(message).chat
            show(db, chat, message)
            return self.shown(chat)

    def statistics(self, message: int) -> bytes | None:
        """Return what was kept of an answer for the inspector. Raises: UsageError."""
        with self._reading() as db:
            self.message(message)
            row = db.execute("SELECT facts FROM answer WHERE message = ?", (message,)).fetchone()
            return bytes(row[0]) if row and row[0] is not None else None

    def set_statistics(self, message: int, statistics: bytes) -> None:
        """Keep something with an answer for the inspector. Raises: UsageError."""
        with self._writing() as db:
            if self.message(message).answer is None:
                raise UsageError(f"message {message} is a question; only answers have statistics")
            db.execute("UPDATE answer SET facts = ? WHERE message = ?", (statistics, message))

    def search(self, text: str, *, limit: int = 50) -> list[Hit]:
        """Return the chats that hold all words somewhere, or words that begin so; the newest first.

        Accents and case do not matter. Punctuation and scripts without spaces are looked for letter by letter.
        Raises: UsageError if there are no words.
        """
        with self._reading() as db:
            return [
                Hit(chat_of(find_chat(db, found.chat)), found.message, found.snippet, found.marks)
                for found in search(db, text, limit)
            ]

    # Below

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, store.explaining(self.path):
            db = self._connected(writing=False)
            if db.in_transaction:
                yield db
                return
            with store.transaction(db):
                yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, store.explaining(self.path):
            db = self._connected(writing=True)
            if db.in_transaction:
                yield db
                return
            if self._file is not None and store.identity(self.path) != self._file:  # SQLite would write on, to nowhere
                raise HistoryError(f"the history {self.path} was moved or removed; put it back, or start eft again")
            with store.transaction(db, "IMMEDIATE"):
                if not self._tidied:
                    purge(db, "deleted < ?", (datetime.now(UTC) - KEPT_AFTER_DELETION).isoformat())
                    self._tidied = True
                yield db

    def _connected(self, *, writing: bool) -> sqlite3.Connection:
        """Return the file's connection; while there is no file, what is read is empty."""
        if self._closed:
            raise UsageError("the history is closed; open it again")
        if writing and self.path is None:
            raise HistoryError(f"chats cannot be saved: {locations.NO_HOME}; set EFT_HOME to a folder for them")
        if self._db is None or not self._on_disk:
            there = self.path if self.path is not None and (writing or self.path.exists()) else None
            if self._db is None or there:
                db = store.open_file(there, writing=writing) if there else store.open_empty()
                if self._db is not None:
                    self._db.close()
                self._db, self._on_disk = db, there is not None
                self._file = store.identity(there) if there else None
        return self._db

    def _messages(self, db: sqlite3.Connection, sql: str, key: str | int) -> list[Message]:
        return messages_of(db, db.execute(sql, (key,)).fetchall(), self._writers.__contains__)

    def _set(self, chat: str, column: str, value: str | int | None) -> None:
        with self._writing() as db:
            db.execute(f"UPDATE chat SET {column} = ? WHERE id = ?", (value, find_chat(db, chat)["id"]))

    def _insert_question(self, chat: str, parent: int | None, text: str) -> Message:
        with self._writing() as db:
            if parent is not None:
                before = self.message(parent)
                if before.chat != chat or before.role != "assistant":
                    raise UsageError(f"message {parent} is no answer of chat {chat}; questions follow answers")
            message = insert(db, chat, parent, "user", text)
            db.execute("UPDATE chat SET title = ? WHERE id = ? AND title = ''", (title_of(text), chat))
            return self.message(message)

    def _save(self, message: int, draft: Draft, ending: Ending | None) -> None:
        """Write what an AnswerWriter has."""
        with self._writing() as db:
            in_vain = ending and draft.is_empty and ending.reason in ("cancelled", "failed")
            if not (in_vain and discarded(db, message, self._shown_before[message])):
                update(db, message, draft, ending)
        if ending:
            self._writers.pop(message, None)
            self._shown_before.pop(message, None)


def _found(message: int, messages: list[Message]) -> list[Message]:
    if not messages:
        raise UsageError(f"there is no message {message}; `eft history show ID --json` lists a chat's messages")
    return messages
