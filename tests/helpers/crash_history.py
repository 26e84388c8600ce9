"""Kill a process that writes chats at random moments, and look what the history has kept.

    python -m tests.helpers.crash_history [KILLS] [SEED]

The child says on a pipe what it has done, when it has done it; so whatever it said must be in the file, but for the
last second of an answer that was being written. Prints one line, and ends with 1 if a promise was broken.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from eft_local.chats import History, Message
from eft_local.hub.references import find_recipe

WORKERS = 4
PROMISED = 1.0  # seconds of text that may be lost


@dataclass
class Reported:
    """What a child said: the pieces of each answer with their times, what ended whole, and which questions it asked."""

    pieces: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    requested: dict[int, str] = field(default_factory=dict)

    def hear(self, line: bytes) -> None:
        """Note one line of the pipe; the last may be half a line."""
        if not line.endswith(b"\n"):
            return
        what, message, *rest = json.loads(line)
        if what == "asked":
            self.requested[message] = rest[0]
        elif what == "began":
            self.pieces[message] = [(rest[0], rest[1])]
        elif what == "added":
            self.pieces[message].append((rest[0], rest[1]))
        else:
            self.ended[message] = rest[0]


# The child


def chat_forever(path: Path, dice: random.Random, pipe: int) -> NoReturn:
    """Ask, answer, edit, answer again, switch, delete and restore, until somebody kills the process."""

    def report(*what: Any) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    recipe = find_recipe("demo")
    history = History(path)
    while True:
        chats = history.chats()
        chat = dice.choice(chats).id if chats and dice.random() < 0.8 else history.create(recipe).id
        questions = [message for message in history.messages(chat) if message.role == "user"]
        action = dice.random()
        if questions and action < 0.25:
            question = dice.choice(questions)  # another answer to it
        elif questions and action < 0.5:
            question = history.edit(dice.choice(questions).id, f"edited {dice.random()}")
        else:
            question = history.ask(chat, f"question {dice.random()}")
        report("asked", question.id, question.text)
        begin = "before " if dice.random() < 0.2 else ""
        writer = history.answer(question.id, recipe, seed=1, text=begin, tokens=[7] * bool(begin))
        report("began", writer.id, time.monotonic(), begin)
        for number in range(dice.choice((0, 3, 30, 100))):
            time.sleep(dice.choice((0.0, 0.001, 0.01, 0.02, 0.15)))
            piece = f" word{number}é"
            writer.add(piece, number)
            report("added", writer.id, time.monotonic(), piece)
            if dice.random() < 0.02:
                writer.steer(recipe.replace(alpha=dice.random()))
        text, reason = writer.text, dice.choice(("stop", "cancelled", "length"))
        writer.finish(reason, tokens_per_second=1.5, figures={"drafted": 3}, statistics=b"statistics" * 100)
        if text != begin or reason not in ("cancelled", "failed"):
            report("ended", writer.id, text)
        history.show(dice.choice(history.messages(chat)).id)
        if dice.random() < 0.3:
            history.delete(chat)
            history.search("word1")
            history.restore(chat)


def start(path: Path, dice: random.Random) -> tuple[int, int]:
    """Start a child; return its process id and the end of the pipe on which it tells."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            chat_forever(path, dice, writing)
        except BaseException:
            os.write(writing, json.dumps(["error", traceback.format_exc()]).encode() + b"\n")
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


# The judge


def reported_until_killed(child: int, pipe: int, seconds: float, reported: Reported) -> float:
    """Listen to a child for so long, kill it, and return when it was killed."""
    end = time.monotonic() + seconds
    heard = b""
    killed = None
    while True:
        left = end - time.monotonic()
        if killed is None and left <= 0:
            killed = time.monotonic()
            os.kill(child, signal.SIGKILL)
        if killed is None and not select.select([pipe], [], [], max(left, 0))[0]:
            continue
        block = os.read(pipe, 1 << 16)
        heard += block
        if not block:
            break
    os.close(pipe)
    os.waitpid(child, 0)
    for line in heard.splitlines(keepends=True):
        if line.startswith(b'["error"'):
            raise AssertionError(json.loads(line)[1])
        reported.hear(line)
    assert killed is not None, "the child ended by itself"
    return killed


def check_file(path: Path) -> None:
    """Assert what SQLite itself can tell: no page, key or word index is wrong."""
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        for index in ("message_words", "title_words"):
            db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
        db.rollback()
    finally:
        db.close()


def check_tree(history: History, chat: str) -> dict[int, Message]:
    """Assert that a chat's messages form branches, one of which is shown, and return them by id."""
    messages = {message.id: message for message in history.messages(chat)}
    for message in messages.values():
        parent = messages[message.parent] if message.parent is not None else None
        assert message.chat == chat
        assert message.role == ("assistant" if parent and parent.role == "user" else "user")
        assert message.siblings == tuple(each.id for each in messages.values() if each.parent == message.parent)
        assert (message.answer is not None) == (message.role == "assistant")
    shown = history.shown(chat)
    assert bool(shown) == bool(messages)
    assert [message.parent for message in shown] == [None, *(message.id for message in shown[:-1])][: len(shown)]
    if shown:
        assert not any(message.parent == shown[-1].id for message in messages.values()), "a leaf is shown last"
        assert history.branch(shown[-1].id) == shown
    return messages


def check_text(messages: dict[int, Message], reported: Reported, killed: float) -> float:
    """Assert that what the child told is there; return how many seconds of text are lost."""
    lost = 0.0
    for message, text in reported.requested.items():
        assert messages[message].text == text
    for message, text in reported.ended.items():
        assert messages[message].text == text
        assert messages[message].answer.has_statistics
        assert messages[message].answer.finish_reason in ("stop", "cancelled", "length")
    for message, pieces in reported.pieces.items():
        if message in reported.ended or message not in messages:  # a cancelled answer without text leaves no message
            assert message in messages or len(pieces) == 1
            continue
        kept, whole = messages[message], "".join(piece for _, piece in pieces)
        assert kept.text.startswith(whole) or whole.startswith(kept.text)
        begin = 1 if pieces[0][1] else 0
        words = kept.text.count("word")
        assert len(kept.answer.tokens) == words + begin
        if words < len(pieces) - 1:
            lost = max(lost, killed - pieces[words + 1][0])
    return lost


def kill_many(kills: Iterable[int], folder: Path, seed: int, promised: float) -> dict[str, float]:
    """Kill children one after the other; half of them in a file that earlier ones have left."""
    old, lost, interrupted, answers = folder / "old.db", 0.0, 0, 0
    for number in kills:
        dice = random.Random(f"{seed} {number}")
        path = old if number % 2 else folder / f"{number}.db"
        reported = Reported()
        seconds = dice.choice((0.01, 0.05, 0.3, 3.0)) * dice.random() + (0.05 if number % 2 else 0)
        killed = reported_until_killed(*start(path, dice), seconds, reported)
        if not path.exists():
            assert not reported.requested
            continue
        with History(path) as history:
            messages = {}
            for chat in (*history.chats(), *history.chats(deleted=True)):
                messages |= check_tree(history, chat.id)
            reasons = [message.answer.finish_reason for message in messages.values() if message.answer]
            assert None not in reasons
            cut = [message for message in reported.pieces if message in messages and message not in reported.ended]
            interrupted += any(messages[message].answer.finish_reason == "interrupted" for message in cut)
            answers += len(reported.ended) + len(cut)
            lost = max(lost, check_text(messages, reported, killed))
        check_file(path)
        assert lost <= promised, f"{lost:.2f} s of text are lost"
    return {"lost": lost, "interrupted": interrupted, "answers": answers}


def main(kills: int = 200, seed: int = 1, promised: float = PROMISED) -> int:
    """Kill that many children, in several processes at a time. promised: seconds of text that may be lost."""
    with tempfile.TemporaryDirectory() as temporary:
        workers = []
        for worker in range(WORKERS):
            folder = Path(temporary) / str(worker)
            folder.mkdir()
            if (process := os.fork()) == 0:
                try:
                    found = kill_many(range(worker, kills, WORKERS), folder, seed, promised)
                    (folder / "result").write_text(json.dumps(found))
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            workers.append((process, folder / "result"))
        codes = [os.waitpid(process, 0)[1] for process, _ in workers]
        if any(codes):
            return 1
        found = [json.loads(result.read_text()) for _, result in workers]
    lost = max(each["lost"] for each in found)
    interrupted = sum(each["interrupted"] for each in found)
    answers = sum(each["answers"] for each in found)
    print(f"{kills} kills, {interrupted} within an answer; {answers} answers; at most {lost:.2f} s of text lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
