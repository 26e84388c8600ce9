"""What people type and pipe into commands: text beside a question, several lines, odd bytes, answers that are empty."""

# ruff: noqa: F811 (fixtures of test_cli come as arguments)

from __future__ import annotations

import codecs
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eft_local import __version__
from eft_local.cli import main, stdin
from eft_local.cli.lines import read_message
from eft_local.errors import UsageError
from tests.cli.test_commands import Run, contents, emulators, home, replying, run  # noqa: F401
from tests.helpers.fake_emulator import FakeEmulator

NOTES = b"Lima is large.\n  It lies at the sea.\n"
TEXT = "Lima is large.\n  It lies at the sea."


def requested(emulators: list[FakeEmulator]) -> str:
    """The last question."""
    return contents(emulators[-1].requested[-1][1])[-1]


# Text beside a question


@pytest.mark.parametrize("command", ["ask", "compare", "inspect"])
@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["Summarise"], f"{TEXT}\n\nSummarise"),
        (["Summarise", "this"], f"{TEXT}\n\nSummarise this"),
        ([], TEXT),
        (["-"], TEXT),
        (["Summarise:", "-"], f"Summarise:\n\n{TEXT}"),
        (["-", "Summarise"], f"{TEXT}\n\nSummarise"),
        (["Read", "this:", "-", "Then", "sum up"], f"Read this:\n\n{TEXT}\n\nThen sum up"),
        (["What is 3 - 2?"], f"{TEXT}\n\nWhat is 3 - 2?"),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else "",
)
def test_piped_text_is_part_of_the_question(
    run: Run, emulators: list[FakeEmulator], command: str, words: list[str], question: str
) -> None:
    assert run(command, *words, stdin=NOTES).code == 0
    assert requested(emulators) == question


@pytest.mark.parametrize("nothing", [b"", b"\n \r\n", codecs.BOM_UTF8])
def test_nothing_on_stdin_is_no_text(run: Run, emulators: list[FakeEmulator], nothing: bytes) -> None:
    ran = run("ask", "Summarise", stdin=nothing)
    assert (ran.code, ran.err, requested(emulators)) == (0, "", "Summarise")
    ran = run("ask", "Summarise", "-", stdin=nothing)
    assert (ran.code, ran.err) == (0, "stdin is empty: the question is sent without it\n")
    assert requested(emulators) == "Summarise"
    assert "empty prompt" in run("ask", stdin=nothing).err


def test_the_place_of_the_text_is_given_once(run: Run) -> None:
    ran = run("ask", "3", "-", "2", "-", "1", stdin=NOTES)
    assert (ran.code, ran.out) == (2, "")
    assert "can be given once" in ran.err


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9", "stdin is not UTF-8 text (byte 3)"),
        ("Lima".encode("utf-16"), "stdin is not UTF-8 text (byte 0)"),
        (b"GGUF\0\0\0", "stdin is not text but binary data (byte 4 is zero)"),
    ],
)
@pytest.mark.parametrize("words", [[], ["Summarise"], ["Summarise", "-"]], ids=["alone", "beside", "placed"])
def test_what_is_no_text_is_one_line(run: Run, words: list[str], data: bytes, said: str) -> None:
    ran = run("ask", *words, stdin=data)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eft: {said}")
    assert ran.err.count("\n") == 1


def test_a_stream_without_end_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdin, "MOST", 2 * 10**6)
    assert run("ask", "Summarise", stdin=b"y\n" * 10**6).code == 0
    ran = run("ask", "Summarise", stdin=b"y\n" * 10**6 + b"y")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "eft: stdin has more than 2 MB, which no context holds; give less of the text\n"


def test_a_byte_order_mark_is_no_text(run: Run, emulators: list[FakeEmulator]) -> None:
    run("ask", "Summarise", stdin=codecs.BOM_UTF8 + NOTES)
    assert requested(emulators) == f"{TEXT}\n\nSummarise"
    run("chat", "--plain", stdin=codecs.BOM_UTF8 + b"hello\n")
    assert requested(emulators) == "hello"


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end that is written to, of a pipe that is stdin."""
    there, end = os.pipe()
    with os.fdopen(there) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield end
        os.close(end)


def test_a_pipe_that_nobody_writes_to_is_left_alone(
    pipe: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], emulators: list[FakeEmulator]
) -> None:
    monkeypatch.setattr(stdin, "PATIENCE", 0.01)
    with pytest.raises(SystemExit) as ended:
        main(["ask", "Summarise"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (0, "eft answers Summarise\n")
    assert (
        err.splitlines()[1] == "eft: no text arrived on stdin, so the question is sent without it; use - to wait for it"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a pipe")
def test_a_slow_program_in_a_pipeline_is_waited_for(
    pipe: int, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not stdin._is_fed(), "we hold the other end ourselves"
    slow = [sys.executable, "-c", "import sys; sys.stdin.read(); print('late')"]
    with subprocess.Popen(slow, stdin=subprocess.PIPE, stdout=pipe) as program:
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
        assert stdin._is_fed()
        assert program.stdin is not None
        monkeypatch.setattr(stdin, "PATIENCE", 0.01)
        fed = stdin._is_fed

        def seen_waiting() -> bool:
            threading.Timer(0.05, program.stdin.close).start()
            return fed()

        monkeypatch.setattr(stdin, "_is_fed", seen_waiting)
        with pytest.raises(SystemExit):
            main(["ask", "Summarise"])
    assert requested(emulators) == "late\n\nSummarise"
    assert capsys.readouterr().err == "waiting for text on stdin\n"


def test_what_has_begun_to_come_is_read_to_its_end(
    pipe: int, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator]
) -> None:
    monkeypatch.setattr(stdin, "PATIENCE", 30)
    reads = []
    piece = stdin._piece

    def slow() -> bytes | OSError:
        """Write the next part only once somebody waits for it, longer than for a first byte."""
        reads.append(None)
        if len(reads) == 2:
            monkeypatch.setattr(stdin, "PATIENCE", 0)
            threading.Timer(0.05, lambda: (os.write(pipe, b"late"), os.dup2(os.open(os.devnull, 1), pipe))).start()
        return piece()

    os.write(pipe, b"early ")
    monkeypatch.setattr(stdin, "_piece", slow)
    with pytest.raises(SystemExit):
        main(["ask", "Summarise"])
    assert requested(emulators) == "early late\n\nSummarise"


def test_a_placed_text_is_waited_for(pipe: int, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator]) -> None:
    monkeypatch.setattr(stdin, "PATIENCE", 0)
    threading.Timer(0.05, lambda: (os.write(pipe, b"late"), os.dup2(os.open(os.devnull, 1), pipe))).start()
    with pytest.raises(SystemExit):
        main(["ask", "Summarise", "-"])
    assert requested(emulators) == "Summarise\n\nlate"


@pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")
@pytest.mark.parametrize("command", ["ask", "chat --plain", "history rm x", "recipes new x"])
def test_a_closed_stdin_is_an_empty_one(command: str) -> None:
    eft = f"{sys.executable} -c 'from eft_local.cli import main; main()'"
    ran = subprocess.run(f"{eft} {command} <&-", shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert "unexpected" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_package_runs_as_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "eft_local", "-V"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"eft-local {__version__}\n")


# Several lines


def messages(text: str) -> list[tuple[str, bool]]:
    lines = iter(text.splitlines())
    found = []
    while (message := read_message(lambda prompt: next(lines, None))) is not None:
        found.append(tuple(message))
    return found


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("one\ntwo", [("one", False), ("two", False)]),
        ("one\\\ntwo\nthree", [("one\ntwo", False), ("three", False)]),
        ("one\\\n\\\ntwo", [("one\n\ntwo", False)]),
        ("at the end\\", [("at the end\\", False)]),
        ("not at the end\\ \ntwo", [("not at the end\\", False), ("two", False)]),
        ('"""\n  one\n\ntwo \\\n"""\nthree', [("  one\n\ntwo \\", True), ("three", False)]),
        ('"""one\ntwo"""', [("one\ntwo", True)]),
        ('"""one"""\n"""/etc"""', [("one", True), ("/etc", True)]),
        ('"""\n"""', [("", True)]),
        ('say """ once', [('say """ once', False)]),
    ],
)
def test_lines_that_belong_together_are_one_message(typed: str, meant: list[tuple[str, bool]]) -> None:
    assert messages(typed) == meant


def test_a_fence_that_is_not_closed_is_no_message() -> None:
    with pytest.raises(UsageError, match='does not end with """, so it was not sent'):
        messages('"""\none')


def test_the_plain_chat_takes_several_lines(run: Run, emulators: list[FakeEmulator]) -> None:
    typed = b'Summarise: \\\r\nLima.\r\n"""\n/help me\n\nwith this\n"""\n//etc is what?\n'
    typed += b'/system Be\\\nbrief.\nhello\n"""\nopen\n'
    ran = run("chat", "--plain", stdin=typed)
    questions = [contents(messages)[-1] for _, messages in emulators[-1].requested]
    assert questions == ["Summarise: \nLima.", "/help me\n\nwith this", "/etc is what?", "hello"]
    assert contents(emulators[-1].requested[-1][1])[0] == "Be\nbrief."
    assert (ran.code, ran.err.count("\n")) == (2, 3)
    assert ran.err.splitlines()[-1].endswith("so it was not sent")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU readline on a pseudo-terminal")
def test_pasted_lines_are_one_message() -> None:
    script = "from eft_local.cli.chat import reader; read = reader(True); print(repr((read('> '), read('> '))))"
    controller, worker = os.openpty()
    environment = os.environ | {"TERM": "xterm", "INPUTRC": os.devnull}
    process = subprocess.Popen([sys.executable, "-c", script], stdin=worker, stdout=worker, env=environment)
    os.close(worker)
    shown = b""
    with os.fdopen(controller, "r+b", buffering=0) as terminal:
        while not shown.endswith(b"> "):
            shown += terminal.read(1)
        terminal.write(b"\x1b[200~one\ntwo\x1b[201~\rthree\r")
        with contextlib.suppress(OSError):  # how a terminal ends whose program has
            while piece := terminal.read(1000):
                shown += piece
    assert process.wait(60) == 0
    assert b"('one\\ntwo', 'three')" in shown


# Empty answers


def test_an_empty_answer_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replying(monkeypatch, lambda only, messages: "" if only != "base" else "text")
    empty = "eft: the answer is empty (ended by itself)\n"
    assert run("ask", "x") == (0, "", empty)
    ran = run("ask", "x", "--json")
    assert (json.loads(ran.out)["text"], ran.err) == ("", empty)
    assert run("chat", "--plain", stdin=b"x\n") == (0, "", empty)
    assert run("inspect", "x", "--json").err == empty
    said = [f"eft: {name}: the answer is empty (ended by itself)\n" for name in ("expert", "eft")]
    assert run("compare", "x").err == "".join(said)
    assert run("ask", "x", "--only", "base").err == ""


def test_white_space_alone_is_an_empty_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replying(monkeypatch, lambda only, messages: "  \n ")
    assert run("ask", "x", "-n", "2").err == "eft: the answer is empty (cut off at max tokens)\n"


# Byte order marks in files


def test_a_byte_order_mark_in_a_file_is_no_text(run: Run, emulators: list[FakeEmulator], tmp_path: Path) -> None:
    grammar, schema = tmp_path / "yes.gbnf", tmp_path / "any.json"
    grammar.write_bytes(codecs.BOM_UTF8 + b'root ::= "yes"')
    schema.write_bytes(codecs.BOM_UTF8 + b'{"type": "object"}')
    run("ask", "x", "--grammar", str(grammar))
    assert emulators[-1].recipe.sampling.grammar == 'root ::= "yes"'
    run("ask", "x", "--json-schema", str(schema))
    assert emulators[-1].recipe.sampling.json_schema == '{"type": "object"}'
