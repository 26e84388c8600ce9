"""`eft history`, and the plain chat that is kept."""

# ruff: noqa: F811 (fixtures of test_cli come as arguments)

from __future__ import annotations

import io
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eft_local.chats import AnswerRecord, History, Message, store
from eft_local.cli import main
from eft_local.errors import ContextOverflowError
from eft_local.hub.references import find_recipe
from tests.cli.test_commands import (  # noqa: F401
    Run,
    contents,
    emulators,
    home,
    pressing_ctrl_c_behind_the_first_word,
    replying,
    run,
)
from tests.helpers.fake_emulator import END, OTHER, FakeEmulator
from tests.test_startup import CALL, HEAVY, loaded_by

RECIPE = find_recipe("demo")


@pytest.fixture
def history(home: Path) -> Iterator[History]:
    with History(home / "chats" / "chats.db") as history:
        yield history


def answered(history: History, chat: str) -> list[str]:
    return [message.text for message in history.shown(chat)]


def only_chat(history: History) -> str:
    (chat,) = history.chats()
    return chat.id


def record(message: Message) -> AnswerRecord:
    assert message.answer is not None
    return message.answer


# The plain chat


def test_a_chat_through_a_pipe_is_kept_only_if_requested(run: Run, history: History) -> None:
    run("chat", "--plain", stdin=b"hello\n")
    assert not history.path.exists()
    ran = run("chat", "--plain", "--save", "--system", "Be brief.", "--seed", "3", stdin=b"one\ntwo\n")
    assert ran == (0, "eft answers one\neft answers two\n", "")
    chat = history.chat(only_chat(history))
    assert (chat.title, chat.system_prompt) == ("one", "Be brief.")
    assert answered(history, chat.id) == ["one", "eft answers one", "two", "eft answers two"]
    answer = record(history.shown(chat.id)[-1])
    assert (answer.written_by, answer.seed, answer.finish_reason) == ("eft", 3, "stop")
    assert answer.tokens == (0, 1, 2, 3)
    assert answer.recipe.recipe() == RECIPE.replace(seed=3)


def test_what_is_kept_can_be_inspected(run: Run, history: History) -> None:
    run("chat", "--plain", "--save", stdin=b"one\n")
    code, out, _ = run("inspect", "--chat", only_chat(history), "--json")
    steps = json.loads(out)["steps"]
    assert code == 0
    assert [step["top_changed"] for step in steps[:3]] == [True, False, False]
    assert {each["token"] for each in steps[0]["candidates"]} == {0, OTHER, END}


def test_a_chat_on_a_terminal_is_kept(
    history: History, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    def chat(*arguments: str, stdin: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit):
            main(["chat", "--plain", *arguments])
        return capsys.readouterr().err

    chat("--no-save", stdin=b"secret\n")
    assert history.chats() == []
    chat(stdin=b"hello\n")
    assert answered(history, only_chat(history)) == ["hello", "eft answers hello"]
    reported = chat("--continue", stdin=b"")
    assert f"chat {only_chat(history)} continues: hello\n> hello\neft answers hello\n" in reported


def test_the_last_chat_continues(run: Run, history: History, emulators: list[FakeEmulator]) -> None:
    run("chat", "--save", "-r", "demo-two", "--beta", "1.5", "--system", "Be brief.", stdin=b"one\n/beta 1.25\ntwo\n")
    run("chat", "-c", "--temperature", "0.5", stdin=b"three\n")
    requested = emulators[1].requested[0][1]
    assert contents(requested) == ["Be brief.", "one", "eft answers one", "two", "eft answers two", "three"]
    recipe = emulators[1].recipe
    assert (recipe.name, recipe.beta, recipe.sampling.temperature) == ("demo-two", 1.25, 0.5)
    assert answered(history, only_chat(history))[-2:] == ["three", "eft answers three"]
    run("chat", "--continue", "-r", "demo", "--system", "Be long.", stdin=b"four\n")
    assert emulators[2].recipe == RECIPE
    assert contents(emulators[2].requested[0][1])[0] == "Be long."
    assert history.chat(only_chat(history)).system_prompt == "Be long."


def test_any_chat_continues(run: Run, history: History, emulators: list[FakeEmulator]) -> None:
    for question in (b"first", b"second"):
        run("chat", "--save", stdin=question)
    first = history.chats()[1].id
    run("chat", "--chat", first[:5], stdin=b"/system Be kind.\nmore\n")
    assert contents(emulators[-1].requested[0][1]) == ["Be kind.", "first", "eft answers first", "more"]
    assert history.latest() == history.chat(first)
    assert history.chat(first).system_prompt == "Be kind."
    run("chat", "--chat", first, "--no-save", stdin=b"unsaid\n")
    assert contents(emulators[-1].requested[0][1])[-2:] == ["eft answers more", "unsaid"]
    assert len(history.shown(first)) == 4


def test_retry_is_a_branch_and_reset_a_new_chat(run: Run, history: History) -> None:
    run("chat", "--save", stdin=b"one\n/retry\ntwo\n/reset\nthree\n")
    new, old = history.chats()
    assert answered(history, new.id) == ["three", "eft answers three"]
    assert [message.siblings for message in history.shown(old.id)] == [(1,), (2, 3), (4,), (5,)]
    run("chat", "-c", stdin=b"/retry\n")
    assert history.shown(new.id)[-1].siblings == (7, 8)


def test_what_got_no_answer_is_no_turn(
    run: Run,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    emulators: list[FakeEmulator],
) -> None:
    def reply(only: str, messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] == "long":
            raise ContextOverflowError("too long")
        return "fine"

    replying(monkeypatch, reply)
    run("chat", "--save", stdin=b"one\nlong\ntwo\n")
    assert answered(history, only_chat(history)) == ["one", "fine", "two", "fine"]
    assert [message.text for message in history.messages(only_chat(history))] == ["one", "fine", "long", "two", "fine"]
    run("chat", "-c", stdin=b"long\n")
    run("chat", "-c", stdin=b"three\n")
    assert contents(emulators[-1].requested[0][1]) == ["one", "fine", "two", "fine", "three"]


def test_a_stopped_answer_is_kept_as_such(run: Run, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    pressing_ctrl_c_behind_the_first_word(monkeypatch)
    ran = run("chat", "--save", stdin=b"stop\n")
    _, answer = history.shown(only_chat(history))
    assert answer.text == ran.out.rstrip("\n")
    assert record(answer).finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["-c"], "there is no chat to continue yet"),
        (["--chat", "x"], "there is no chat 'x'"),
        (["--chat", "x", "-c"], "give only one of them"),
    ],
)
def test_a_chat_that_cannot_continue_is_reported(
    run: Run,
    arguments: list[str],
    reported: str,
    emulators: list[FakeEmulator],
) -> None:
    ran = run("chat", *arguments, stdin=b"hello\n")
    assert (ran.code, ran.out) == (2, "")
    assert reported in ran.err
    assert emulators == []


def test_a_chat_whose_recipe_cannot_be_read_wants_another(run: Run, history: History) -> None:
    run("chat", "--save", stdin=b"hello\n")
    with history._writing() as db:
        db.execute("UPDATE recipe SET toml = 'gamma = 1'")
    ran = run("chat", "-c", stdin=b"more\n")
    assert (ran.code, ran.out) == (2, "")
    assert "gamma" in ran.err
    assert "--recipe" in ran.err
    assert run("chat", "-c", "-r", "demo", stdin=b"more\n").code == 0


def test_a_chat_that_cannot_be_saved_says_so_once_and_continues(run: Run, home: Path) -> None:
    (home / "chats").mkdir(parents=True)
    (home / "chats" / "chats.db").write_bytes(b"nonsense" * 1000)
    ran = run("chat", "--save", stdin=b"one\n/system Be brief.\n/retry\ntwo\n")
    assert ran.out == "eft answers one\neft answers one\neft answers two\n"
    assert ran.err.count("continues unsaved") == 1
    assert "is damaged" in ran.err
    assert (home / "chats" / "chats.db").read_bytes() == b"nonsense" * 1000
    ran = run("chat", "-c", stdin=b"one\n")
    assert (ran.code, ran.out) == (1, "")


def test_a_disk_that_fills_up_is_reported_once(
    run: Run,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(path: Path, *, writing: bool) -> Any:
        db = original(path, writing=writing)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 4}")
        return db

    original = store.open_file
    monkeypatch.setattr(store, "open_file", small)
    replying(
        monkeypatch, lambda only, messages: ("x" * 1000 + " ") * 150 if messages[-1]["content"] == "much" else "fine"
    )
    ran = run("chat", "--save", stdin=b"one\nmuch\ntwo\n")
    assert ran.err.count("the disk is full; free some space; this chat continues unsaved") == 1
    assert ran.out.endswith("\nfine\n")
    assert answered(history, only_chat(history))[:2] == ["one", "fine"]


# eft history


@pytest.fixture
def chats(run: Run, history: History) -> list[str]:
    """A chat about Peru with two answers to the second question, and a newer one about Chile."""
    run("chat", "--save", "--system", "Be brief.", stdin=b"Peru?\nIts capital?\n/retry\n/reset\nChile?\n")
    return [chat.id for chat in reversed(history.chats())]


def test_an_empty_history_is_reported_aside(run: Run, history: History) -> None:
    assert run("history") == (0, "", "no chats yet; `eft chat` starts one\n")
    assert run("history", "--deleted").err == "no deleted chats\n"
    assert run("history", "--json").json == {"path": str(history.path), "chats": []}
    assert run("history", "search", "x") == (0, "", "nothing found\n")
    assert run("history", "search", "x", "--json").json == {"hits": []}
    assert not history.path.exists()


def test_chats_are_listed_newest_first(run: Run, chats: list[str]) -> None:
    peru, chile = chats
    lines = run("history").out.splitlines()
    assert [line.split()[0] for line in lines] == [chile, peru]
    assert [line.split()[-1] for line in lines] == ["Chile?", "Peru?"]
    listed = run("history", "--json", "-n", "1").json["chats"]
    assert [(chat["id"], chat["title"], chat["recipe"], chat["deleted"]) for chat in listed] == [
        (chile, "Chile?", "demo", None)
    ]


def test_a_chat_is_shown_with_its_branches(run: Run, chats: list[str]) -> None:
    ran = run("history", "show", chats[0][:5])
    head, system, *turns = ran.out.replace("\n\n", "\n").splitlines()
    assert head.endswith("  Peru?")
    assert system == "system prompt: Be brief."
    assert turns == [
        "[1] Question",
        "Peru?",
        "[2] Answer",
        "eft answers Peru?",
        "[3] Question",
        "Its capital?",
        "[5] Answer (2/2), beside 4",
        "eft answers Its capital?",
    ]
    assert run("history", "show", chats[0], "--message", "4").out.splitlines()[-2] == "[4] Answer (1/2), beside 5"
    reported = run("history", "show", chats[1], "--message", "4")
    assert (reported.code, reported.err) == (2, f"eft: message 4 is not in chat {chats[1]} but in {chats[0]}\n")
    assert run("history", "show", chats[0], "--json").json["shown"] == [1, 2, 3, 5]


def test_search_lists_chats_with_the_words(run: Run, chats: list[str]) -> None:
    lines = run("history", "search", "capit", "PERU").out.splitlines()
    assert lines[0].startswith(chats[0])
    assert len(lines) == 2
    hits = run("history", "search", "answers", "--json", "-n", "1").json["hits"]
    assert [(hit["chat"]["id"], hit["message"], hit["snippet"], hit["marks"]) for hit in hits] == [
        (chats[1], 7, "eft answers Chile?", [[4, 11]])
    ]


def test_a_chat_is_exported(run: Run, chats: list[str], tmp_path: Path) -> None:
    markdown = run("history", "export", chats[0]).out
    assert markdown.startswith("# Peru?\n\n")
    assert markdown.endswith("## Answer (2/2)\n\neft answers Its capital?\n")
    for name, more in (("peru.json", ()), ("peru.txt", ("--format", "json"))):
        assert run("history", "export", chats[0], "-o", name, *more) == (0, "", "")
        assert len(json.loads((tmp_path / name).read_text())["messages"]) == 5
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert run("history", "export", chats[0], "-o", "peru.md").code == 0
    assert (tmp_path / "peru.md").read_text() == markdown
    assert run("history", "export", chats[0], "--format", "json", "--statistics").json["id"] == chats[0]
    assert run("history", "export", chats[0], "--statistics").code == 2
    assert run("history", "export", chats[0], "-o", "missing/peru.md").code == 1


def test_a_chat_is_renamed(run: Run, chats: list[str], history: History) -> None:
    assert run("history", "rename", chats[0], "About", "Peru") == (0, "", "")
    assert history.chat(chats[0]).title == "About Peru"
    assert run("history", "rename", chats[0], " ").code == 2


def test_chats_are_deleted_and_brought_back(run: Run, chats: list[str], history: History) -> None:
    peru, chile = chats
    refused = run("history", "rm", peru)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert run("history", "rm", peru, "nonsense", "--yes").code == 2
    assert len(history.chats()) == 2  # all or none
    assert run("history", "rm", peru, chile[:5], "--yes").code == 0
    assert history.chats() == []
    assert run("history", "--deleted").out.count("\n") == 2
    assert run("chat", "--chat", peru).err == f"eft: chat {peru} is deleted; `eft history undo {peru}` brings it back\n"
    assert run("history", "undo").out.startswith(chile)
    assert run("history", "undo", peru).out.startswith(peru)
    assert run("history", "undo").code == run("history", "undo", peru).code == 2
    assert run("history", "rm", peru, "--forever", "--yes").code == 0
    assert [chat.id for chat in history.chats()] == [chile]
    assert run("history", "undo", peru).code == 2


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", 1), (b"n\n", 2)])
def test_deleting_asks_on_a_terminal(
    chats: list[str], history: History, monkeypatch: pytest.MonkeyPatch, typed: bytes, left: int
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(typed), encoding="utf-8"))
    with pytest.raises(SystemExit):
        main(["history", "rm", chats[0]])
    assert len(history.chats()) == left


def test_options_of_the_list_are_not_ignored(run: Run) -> None:
    ran = run("history", "--json", "show", "x")
    assert (ran.code, ran.out) == (2, "")
    assert "after it" in ran.err


def test_a_damaged_history_is_one_line(run: Run, home: Path) -> None:
    (home / "chats").mkdir(parents=True)
    (home / "chats" / "chats.db").write_bytes(b"nonsense" * 1000)
    ran = run("history")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "move it away" in ran.err


@pytest.mark.parametrize("arguments", [["history"], ["history", "--help"], ["history", "search", "x"]])
def test_the_history_loads_no_engine(arguments: list[str]) -> None:
    modules = loaded_by(CALL.format(arguments))
    assert "eft_local.cli.history" in modules
    assert not modules & {*HEAVY, "numpy", "rich", "eft_local.emulator"}
