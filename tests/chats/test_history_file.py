"""The history's file: who may read it, upgrades, and what goes wrong with files and disks."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_local import locations
from eft_local.chats import KEPT_AFTER_DELETION, History, store
from eft_local.errors import HistoryError, UsageError
from eft_local.hub.references import find_recipe
from tests.helpers import crash_history
from tests.helpers.crash_history import check_file

RECIPE = find_recipe("demo")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a history will be."""
    return tmp_path / "made" / "here" / "chats.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A history with one question."""
    with History(path) as history:
        history.ask(history.create(RECIPE).id, "hello")
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> str:
    """Return why a file can be neither read nor written, and see that it stays as it is."""
    before = path.read_bytes()
    reported = set()
    for attempt in (lambda history: history.chats(), lambda history: history.create(RECIPE)):
        with History(path) as history, pytest.raises(HistoryError) as error:
            attempt(history)
        reported.add(str(error.value))
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    assert len(reported) == 1
    return reported.pop()


def test_the_file_is_made_at_the_first_write_for_the_user_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        with History(path) as history:
            assert (history.chats(), history.chats(deleted=True), history.latest(), history.search("x")) == (
                [],
                [],
                None,
                [],
            )
            with pytest.raises(UsageError):
                history.chat("x")
            assert not path.parent.parent.exists()
            history.create(RECIPE)
            files = list(path.parent.iterdir())
            assert {file.name for file in files} == {"chats.db", "chats.db-wal", "chats.db-shm"}
            assert {mode(file) for file in files} == {0o600}
            assert mode(path.parent) == 0o700
    finally:
        os.umask(mask)
    assert [file.name for file in path.parent.iterdir()] == ["chats.db"]


def test_the_users_own_is_among_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    assert History().path == locations.chats() / "chats.db" == tmp_path / "home" / "chats" / "chats.db"


def test_a_file_that_appears_is_read(path: Path) -> None:
    with History(path) as early:
        assert early.chats() == []
        with History(path) as other:
            other.create(RECIPE)
        assert len(early.chats()) == 1


def test_deleted_chats_go_when_their_time_is_over(filled: Path) -> None:
    with History(filled) as history:
        history.delete(history.chats()[0].id)
    for rest, left in ((1, 1), (-1, 0)):
        db = sqlite3.connect(filled)
        db.execute(
            "UPDATE chat SET deleted = strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', ?) WHERE deleted IS NOT NULL",
            (f"-{KEPT_AFTER_DELETION.total_seconds() - 3600 * rest} seconds",),
        )
        db.commit()
        db.close()
        with History(filled) as history:
            assert len(history.chats(deleted=True)) == 1  # reading changes nothing
            history.create(RECIPE)
            assert len(history.chats(deleted=True)) == left
    check_file(filled)


# Upgrades


def test_an_older_file_is_upgraded(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("CREATE TABLE tag (name TEXT)", "INSERT INTO tag VALUES ('new')")
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, more))
    with History(filled) as history:
        assert history.chats()[0].title == "hello"
    with History(filled) as history:
        history.create(RECIPE)
    db = sqlite3.connect(filled)
    assert db.execute("SELECT name FROM tag").fetchall() == [("new",)]
    assert db.execute("PRAGMA user_version").fetchone() == (len(store.MIGRATIONS),)
    db.close()


def test_an_upgrade_that_fails_changes_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, ("CREATE TABLE tag (name TEXT)", "nonsense")))
        assert "nonsense" in refused(filled)
    with History(filled) as history:
        assert history.chats()[0].title == "hello"


def test_a_newer_file_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIGRATIONS", ())
    assert "a newer eft-local (its schema is 1, this version knows 0); update eft-local" in refused(filled)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE chat (id)")
    db.close()
    assert "belongs to another program" in refused(path)


# Damage


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to have a header" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chats.db"
    path.write_bytes(content)
    reported = refused(path)
    assert "is damaged" in reported
    assert "move it away" in reported
    assert str(path) in reported


def test_a_damaged_page_is_reported_when_it_is_met(filled: Path) -> None:
    content = bytearray(filled.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    filled.write_bytes(content)
    with History(filled) as history, pytest.raises(HistoryError, match="is damaged"):
        history.chats()
    assert filled.read_bytes() == content


def test_an_empty_file_is_a_new_history(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    with History(path) as history:
        assert history.chats() == []
        assert history.create(RECIPE).title == ""


# Disks and folders


def test_a_full_disk_is_reported_and_survived(filled: Path) -> None:
    with History(filled) as history:
        chat = history.chats()[0].id
        writer = history.answer(history.shown(chat)[0].id, RECIPE)
        db = history._db
        assert db is not None
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        for word in range(20000):
            writer.add(f" {word}", word)
        for save in (writer.save, lambda: writer.finish("stop"), lambda: history.ask(chat, "x" * 10000)):
            with pytest.raises(HistoryError, match="the disk is full; free some space"):
                save()
        assert "full" in str(writer.error)
        db.execute(f"PRAGMA max_page_count = {pages + 10000}")
        writer.finish("stop")
        assert writer.error is None
        assert history.message(writer.id).text == writer.text
        assert [message.text for message in history.shown(chat)] == ["hello", writer.text]
    check_file(filled)


@pytest.fixture
def locked_folder(filled: Path) -> Iterator[Path]:
    """The filled history in a folder that nobody may write to; the superuser may, so it is another user meanwhile."""
    if os.name != "posix":
        pytest.skip("permissions are POSIX")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "chats.db"
        path.write_bytes(filled.read_bytes())
        path.chmod(0o444)
        path.parent.chmod(0o555)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(me)
        path.parent.chmod(0o755)


def test_a_read_only_folder_can_be_read(locked_folder: Path) -> None:
    with History(locked_folder) as history:
        assert history.chats()[0].title == "hello"
        assert history.search("hello")
        with pytest.raises(HistoryError, match="cannot be written: "):
            history.create(RECIPE)
        assert history.chats()[0].title == "hello"
    with History(locked_folder) as history, pytest.raises(HistoryError, match="cannot be written: "):
        history.create(RECIPE)
    with History(locked_folder.parent / "new" / "chats.db") as history:
        assert history.chats() == []
        with pytest.raises(HistoryError, match="cannot be written: Permission denied"):
            history.create(RECIPE)


def test_a_folder_in_the_files_place_is_reported(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        with pytest.raises(HistoryError, match="cannot be opened"):
            history.chats()
        with pytest.raises(HistoryError, match="cannot be written: Is a directory"):
            history.create(RECIPE)


# Two at once


def test_a_lock_that_stays_is_reported(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with History(filled) as history:
        assert history.chats()[0].title == "hello"  # readers do not wait
        with pytest.raises(HistoryError, match="in use by another program"):
            history.create(RECIPE)
        other.execute("ROLLBACK")
        other.close()
        assert history.create(RECIPE).title == ""


def test_two_histories_write_to_one_file(path: Path) -> None:
    def write() -> None:
        with History(path) as history:
            for number in range(20):
                history.ask(history.create(RECIPE).id, f"{number}")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with History(path) as history:
        assert sorted(chat.title for chat in history.chats()) == sorted(
            f"{number}" for number in range(20) for _ in range(4)
        )
    check_file(path)


def test_a_file_that_is_made_meanwhile_is_no_other_programs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> None:
        with History(path) as other:
            other.create(RECIPE)

    def read_slowly(db: sqlite3.Connection, name: str) -> int:
        value = pragma(db, name)
        if not threads:  # the first time: another process makes the file now, or waits until it may
            threads.append(threading.Thread(target=make))
            threads[0].start()
            threads[0].join(0.3)
        return value

    threads: list[threading.Thread] = []
    pragma = store._pragma
    monkeypatch.setattr(store, "_pragma", read_slowly)
    with History(path) as history:
        history.create(RECIPE)
        threads[0].join()
        assert len(history.chats()) == 2


def test_many_begin_a_file_together(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def begin(path: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            with History(path) as history:
                history.create(RECIPE)
        except BaseException as error:
            failures.append(error)

    for number in range(2):
        path, together = tmp_path / f"{number}.db", threading.Barrier(8)
        threads = [threading.Thread(target=begin, args=(path, together)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with History(path) as history:
            assert len(history.chats()) == 8


def test_processes_begin_a_file_together(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from eft_local.chats import History; "
        "from eft_local.hub.references import find_recipe; recipe = find_recipe('demo'); sys.stdin.readline()\n"
        "with History(Path(sys.argv[1])) as history: history.ask(history.create(recipe).id, 'hi')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with History(path) as history:
        assert [chat.title for chat in history.chats()] == ["hi"] * 3
    check_file(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes by signals")
def test_a_killed_process_leaves_a_whole_file() -> None:
    kills, seconds = os.environ.get("EFT_KILLS", "20"), "2"  # seconds of text: a busy machine may be late
    ran = subprocess.run([sys.executable, crash_history.__file__, kills, "1", seconds], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{kills} kills")
