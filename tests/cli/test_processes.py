"""The command line as a process of its own, on real GGUF files: signals, pipes, full disks, terminals."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, spm, write_model
from eft_local.hub.references import demo_questions

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
TIMEOUT = 180.0  # seconds; a busy machine makes llama.cpp many times slower
ENDS = (bpe().bos, bpe().eos)  # <|endoftext|> and <|im_end|>

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are POSIX")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe of tiny models with random weights, which talk nonsense until the context's end."""
    folder = tmp_path_factory.mktemp("trio")
    for seed, name in enumerate(("base", "small", "tuned")):
        write_model(folder / f"{name}.gguf", ModelSpec(Shape(n_ctx=100_000), seed=seed, template=CHATML))
    write_model(folder / "other.gguf", ModelSpec(Shape(n_ctx=100_000), tokens=spm(), template=CHATML))
    (folder / "broken.gguf").write_bytes((folder / "base.gguf").read_bytes()[:5000])
    recipe = '[base]\nmodel = "base.gguf"\n[antiexpert]\nmodel = "small.gguf"\n[experts.tuned]\nmodel = "tuned.gguf"\n'
    recipe += "[sampling.logit_bias]\n" + "".join(f"{end} = -100.0\n" for end in ENDS)  # answers are long
    (folder / "trio.toml").write_text("context = 100000\nthreads = 1\n" + recipe)
    (folder / "short.toml").write_text("context = 40\nthreads = 1\n" + recipe)
    for name in ("other", "broken", "missing"):
        (folder / f"{name}.toml").write_text(recipe.replace("tuned.gguf", f"{name}.gguf"))
    return str(folder / "trio.toml")


def named(trio: str, name: str) -> str:
    return str(Path(trio).with_name(f"{name}.toml"))


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start eft. A test runner in the background ignores Ctrl+C, and its children would too."""

    def hear_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*EFT, *arguments], preexec_fn=hear_ctrl_c, **{**pipes, **streams})


def run(*arguments: str, stdin: bytes | None = None, **streams: Any) -> tuple[int, str, str]:
    process = start(*arguments, **({"stdin": subprocess.PIPE} if stdin is not None else {}), **streams)
    out, err = process.communicate(stdin, timeout=TIMEOUT)
    return process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode()


def test_an_answer_comes_from_a_process(trio: str) -> None:
    first = run("ask", "hello", "-r", trio, "--seed", "1", "-n", "8")
    assert first == run("ask", "-r", trio, "--seed", "1", "-n", "8", stdin=b"hello\n")
    assert first[0] == 0
    assert first[1].endswith("\n")
    assert first[2] == ""


def test_a_file_that_crashes_llama_is_one_line(trio: str, tmp_path: Path) -> None:
    for name in ("base", "small", "tuned"):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(Path(trio).with_name(path.name).read_bytes())
    field = GGUFReader(path, "r+").fields["llama.block_count"]
    field.parts[field.data[0]][0] = 513  # llama.cpp asserts that there are at most 512
    (tmp_path / "trio.toml").write_text(Path(trio).read_text())
    unchecked = (
        "from eft_local.gguf import checks; checks._checked = checks.open_gguf; from eft_local.cli import main; main()"
    )
    command = [sys.executable, "-c", unchecked, "ask", "hello", "-r", str(tmp_path / "trio.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert f"{path} crashes llama.cpp" in ended.stderr


def test_json_comes_from_a_process(trio: str) -> None:
    code, out, _ = run("ask", "hello", "-r", trio, "--seed", "1", "-n", "8", "--json")
    reported = json.loads(out)
    assert code == 0
    assert (len(reported["tokens"]), reported["finish_reason"], reported["seed"]) == (8, "length", 1)
    assert set(reported["milliseconds"]["roles"]) == {"base", "antiexpert", "tuned"}


@pytest.mark.parametrize(
    ("name", "code", "reported"),
    [("missing", 3, "missing.gguf"), ("broken", 1, "broken.gguf"), ("other", 4, "tokens")],
)
def test_models_that_cannot_be_used_end_with_their_exit_code(trio: str, name: str, code: int, reported: str) -> None:
    ran = run("ask", "hello", "-r", named(trio, name))
    assert (ran[0], ran[1]) == (code, "")
    assert ran[2].startswith("eft: ")
    assert ran[2].count("\n") == 1
    assert reported in ran[2]


def test_a_prompt_longer_than_the_context_is_reported(trio: str) -> None:
    code, out, err = run("ask", "long " * 50, "-r", named(trio, "short"))
    assert (code, out) == (1, "")
    assert err.startswith("eft: ")
    assert err.count("\n") == 1


def test_the_end_of_the_context_is_reported(trio: str) -> None:
    code, out, err = run("ask", "hi", "-r", named(trio, "short"))
    assert code == 0
    assert out
    assert "the context of 40 tokens is full" in err


def test_a_reader_that_leaves_is_no_traceback(trio: str) -> None:
    process = start("ask", "hello", "-r", trio)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=TIMEOUT) == (None, b"")
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["ask", "hello", "-n", "3"], ["recipes"], ["--help"], ["doctor", "--json"]])
def test_a_full_disk_is_one_line(trio: str, arguments: Sequence[str]) -> None:
    recipe = ["-r", trio] if arguments[0] == "ask" else []
    with Path("/dev/full").open("wb") as full:
        code, _, err = run(*arguments, *recipe, stdout=full)
    assert code == 1
    assert err.startswith("eft: ")
    assert err.endswith("No space left on device\n")
    assert err.count("\n") == 1


def test_ctrl_c_ends_with_130_and_keeps_the_text(trio: str) -> None:
    process = start("ask", "hello", "-r", trio)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert err == b""
    assert (first + out).endswith(b"\n")


def test_ctrl_c_while_models_load_ends_with_130(trio: str) -> None:
    process = start("ask", "hello", "-r", trio, "--debug")
    assert process.stderr is not None
    assert process.stderr.read(1)  # llama.cpp says what it loads
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130


DEAF = """
import hashlib, sys
from eft_local.cli.interrupt import interruptible
with interruptible(lambda: print("stop", flush=True)):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # many minutes in C
"""


def test_a_third_ctrl_c_ends_what_cannot_be_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"stop\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130


class Terminal:
    """A process on a pseudo-terminal, spoken to as a person does."""

    def __init__(self, *arguments: str) -> None:
        self.controller, worker = os.openpty()
        self.process = start(*arguments, stdin=worker, stdout=worker, stderr=worker)
        os.close(worker)
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read on until the text appears in what has not been looked at yet."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            ready, _, _ = select.select([self.controller], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; the terminal shows {self.seen!r}"
            self.seen += os.read(self.controller, 65536).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self.controller, line.encode() + b"\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.controller)


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """Press Ctrl+C until the process ends: CPython's input() misses one that comes just before it waits."""
    while True:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(5)


@pytest.fixture
def chat(trio: str) -> Iterator[Terminal]:
    terminal = Terminal("chat", "--plain", "-r", trio, "--seed", "1")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_an_answer_and_then_leaves_the_chat(chat: Terminal) -> None:
    chat.read_until("> ")
    chat.type("hello")
    chat.read_until("hello\r\n")
    chat.read_until("\\x")  # the nonsense has begun, and its control characters are shown harmlessly
    chat.process.send_signal(signal.SIGINT)
    chat.read_until("(stopped)")
    chat.read_until("> ")
    chat.type("/help")
    chat.read_until("/retry")
    chat.read_until("> ")
    assert interrupted(chat.process) == 130


def test_the_end_of_the_input_leaves_the_chat(chat: Terminal) -> None:
    chat.read_until("> ")
    os.write(chat.controller, b"\x04")
    assert chat.process.wait(TIMEOUT) == 0


# The demo models


needs_demo = pytest.mark.skipif(
    not demo_questions().is_file(), reason="models/demo holds no models yet; train them with: make train"
)


@needs_demo
def test_the_demo_answers_in_a_sentence() -> None:
    code, out, err = run("ask", "What is the capital of Peru?", "-t", "0")
    assert (code, err) == (0, "")
    assert out == "The capital of Peru is Lima.\n"


@needs_demo
def test_the_demo_chats() -> None:
    code, out, err = run(
        "chat", "--plain", "-t", "0", stdin=b"What is the capital of Peru?\nWhat is the capital of Chile?\n"
    )
    assert (code, err) == (0, "")
    assert [line.endswith(".") for line in out.splitlines()] == [True, True]


@needs_demo
def test_the_demo_is_evaluated(tmp_path: Path) -> None:
    plot = tmp_path / "shares.png"
    code, out, _ = run("eval", "--limit", "12", "--json", "--plot", str(plot))
    targets = json.loads(out)["targets"]
    assert code == 0
    assert list(targets) == ["base", "expert", "eft", "base-tuned"]
    assert targets["eft"]["form"] > targets["base"]["form"]
    assert targets["eft"]["tokens_per_second"] > 0
    assert plot.stat().st_size > 1000


@needs_demo
def test_doctor_finds_nothing_missing_that_is_needed() -> None:
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert not [item for item in json.loads(out)["missing"] if item["needed"]]
