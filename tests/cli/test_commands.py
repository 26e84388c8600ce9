"""The command line on a fake Emulator: what is printed where, and with which exit code."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import eft_local.emulator
from eft_local import errors
from eft_local.cli import app, main, output
from eft_local.cli.answers import as_dict
from eft_local.cli.chat import COMMANDS as SLASH_COMMANDS
from eft_local.cli.chat import chat
from eft_local.cli.failures import exit_code
from eft_local.cli.interrupt import interruptible
from eft_local.machine.cores import CoreUse
from eft_local.prompts.render import conversation
from eft_local.recipe.names import MIXTURE
from tests.helpers.fake_emulator import FakeEmulator, FakeStream, answer

JUDGE = {"correct": "C", "form": "F", "declined": "D", "declined_phrase": "rather not"}


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def emulators(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeEmulator]]:
    """Every emulator that a command loaded; all of them must be closed."""
    loaded: list[FakeEmulator] = []
    monkeypatch.setattr(FakeEmulator, "loaded", loaded, raising=False)
    monkeypatch.setattr(eft_local.emulator, "Emulator", FakeEmulator)
    yield loaded
    assert all(emulator.closed for emulator in loaded)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


def replying(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str, list[dict[str, str]]], str]) -> None:
    monkeypatch.setattr(FakeEmulator, "reply", staticmethod(reply))


# Help


def test_every_command_has_help_with_an_example(run: Run) -> None:
    for name in app.COMMANDS:
        ran = run(name, "--help")
        assert ran.code == 0
        assert f"  eft {name}" in ran.out.partition("Example:")[2], name


def test_the_group_lists_every_command_and_every_exit_code(run: Run) -> None:
    ran = run("--help")
    for name, (_, summary) in app.COMMANDS.items():
        assert f"{name} " in ran.out
        assert summary in ran.out
    for code in ("0", "1", "2", "3", "4", "130"):
        assert f"\n    {code} " in ran.out


def test_the_mixture_answers_unless_another_is_named() -> None:
    (only,) = [option for option in chat.params if option.name == "only"]
    assert only.default == MIXTURE


def test_the_version_is_reported(run: Run) -> None:
    assert run("--version").out == f"eft-local {eft_local.__version__}\n"


# Errors


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["aks"], "No such command 'aks'. Did you mean 'ask'?"),
        (["ask", "--alfa", "1", "x"], "--alpha"),
        (["ask", "--alpha", "much", "x"], "alpha much: needs a number"),
        (["ask", "--alpha", "nan", "x"], "alpha"),
        (["ask", "--alpha", "inf", "x"], "alpha"),
        (["ask", "--beta", "-1", "x"], "beta"),
        (["ask", "--alpha", "nobody=1", "x"], "assistant"),
        (["ask", "--alpha", "1", "--alpha", "2", "x"], "expert's name"),
        (["ask", "--temperature", "-1", "x"], "temperature"),
        (["ask", "--top-k", "many", "x"], "--top-k"),
        (["ask", "--logit-bias", "42", "x"], "TOKEN=NUMBER"),
        (["ask", "--grammar", "missing.gbnf", "x"], "--grammar missing.gbnf: No such file"),
        (["ask", "--json-schema", "missing.json", "x"], "--json-schema missing.json: No such file"),
        (["ask", "--json-schema", "[1]", "x"], "a JSON schema"),
        (["ask", "--json-schema", "{", "x"], "a JSON schema"),
        (["ask", "--json-schema", '{"uniqueItems": true}', "x"], "uniqueItems at # cannot be enforced"),
        (["ask", "--recipe", "demu", "x"], "demo"),
        (["ask", "--recipe", "./missing.toml", "x"], "missing.toml"),
        (["ask", ""], "empty prompt"),
        (["ask", "caf\udce9"], "not valid"),
        (["compare", "--targets", "bass", "x"], "did you mean base"),
        (["compare", "--targets", ",", "x"], "names no target"),
        (["recipes", "show", "demu"], "demo"),
        (["completion", "tcsh"], "tcsh"),
        (["eval", "missing.jsonl"], "missing.jsonl"),
        (["eval", "--plot", "x.gif"], "must end in .png"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, arguments: list[str], reported: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("eft: ")
    assert ran.err.count("\n") == 1
    assert reported in ran.err


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
)
def test_every_error_ends_with_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[errors.EftError]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise kind("what was wrong\nand what to do")

    monkeypatch.setattr(FakeEmulator, "load", refuse)
    ran = run("ask", "x")
    assert ran == (kind.exit_code, "", "eft: what was wrong and what to do\n")


@pytest.mark.parametrize(
    ("error", "code", "reported"),
    [
        (ValueError("odd"), 1, "eft: unexpected ValueError: odd; run again with --debug to see where\n"),
        (OSError(errno.EIO, "Input/output error", "x.gguf"), 1, "eft: x.gguf: Input/output error\n"),
        (MemoryError(), 1, "eft: not enough memory"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_other_failures_are_one_line_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, reported: str
) -> None:
    def fail(only: str, messages: Any) -> str:
        raise error

    replying(monkeypatch, fail)
    ran = run("ask", "x")
    assert ran.code == code
    assert ran.err.strip().startswith(reported.strip())
    assert "Traceback" not in ran.err
    assert ran.err.strip().count("\n") == 0


@pytest.mark.parametrize("arguments", [["--debug", "ask", "x"], ["ask", "x", "--debug"]])
def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    def fail(only: str, messages: Any) -> str:
        raise ValueError("odd")

    monkeypatch.setattr("logging.basicConfig", lambda **_: None)  # it would outlive the test
    replying(monkeypatch, fail)
    ran = run(*arguments)
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "ValueError: odd" in ran.err


def test_exit_codes_of_the_tree_are_the_documented_ones() -> None:
    assert exit_code(errors.ModelNotFoundError("x")) == 3
    assert exit_code(errors.VocabularyMismatchError("x")) == 4
    assert exit_code(click.UsageError("x")) == 2
    assert exit_code(RuntimeError("x")) == 1


# Writing files and stdout


def test_a_full_disk_on_stdout_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    ran = run("ask", "x")
    assert (ran.code, ran.err) == (1, "eft: cannot write to stdout: No space left on device\n")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.png"
    target.write_bytes(b"before")
    output.save(target, b"after")
    assert target.read_bytes() == b"after"

    def full(self: Path, other: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(errors.OutputError, match=r"cannot write .*x.png: No space left on device"):
        output.save(target, b"half")
    assert target.read_bytes() == b"after"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_unwritable_places_are_reported_beforehand(tmp_path: Path) -> None:
    output.check_writable(tmp_path / "new.png")
    with pytest.raises(errors.OutputError, match="does not exist"):
        output.check_writable(tmp_path / "nowhere" / "new.png")
    with pytest.raises(errors.OutputError, match="is a folder"):
        output.check_writable(tmp_path)


# ask


def test_ask_writes_the_answer_and_nothing_else(run: Run, emulators: list[FakeEmulator]) -> None:
    assert run("ask", "What is it?") == (0, "eft answers What is it?\n", "")
    assert emulators[0].requested == [("eft", [{"role": "user", "content": "What is it?"}])]


def test_ask_joins_words_and_reads_stdin(run: Run) -> None:
    assert run("ask", "capital", "of", "peru?").out == "eft answers capital of peru?\n"
    assert run("ask", stdin="où est Lima ?\n".encode()).out == "eft answers où est Lima ?\n"
    assert run("ask", "-", stdin=b"two\nlines\n").out == "eft answers two\nlines\n"


def test_ask_refuses_a_question_that_is_not_text(run: Run) -> None:
    assert run("ask", stdin=b"caf\xe9") == (2, "", "eft: stdin is not UTF-8 text (byte 3); convert it first\n")
    assert "empty prompt" in run("ask", stdin=b"\n").err


def test_a_system_prompt_goes_first(run: Run, emulators: list[FakeEmulator]) -> None:
    run("ask", "--system", "Be brief.", "x", "--only", "base")
    assert emulators[0].requested == [("base", list(conversation("x", "Be brief.")))]


def test_options_change_the_recipe(run: Run, emulators: list[FakeEmulator], tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text('root ::= "yes"\n')
    run(
        *"ask x --alpha 0.5 --beta 1.2 --conservative-filter 0.9 --plausibility-mask 0.1".split(),
        *"--plausibility-top-p 0.8 -t 0 --top-k 5 --top-p 0.5 --min-p 0.1 --typical-p 0.9".split(),
        *"--repeat-penalty 1.1 --repeat-last-n 8 --presence-penalty 0.2 --frequency-penalty 0.3".split(),
        *"--dry-multiplier 0.4 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 9".split(),
        *"--xtc-probability 0.1 --xtc-threshold 0.2 --logit-bias yes=2 --logit-bias 42=-5".split(),
        *"--seed 3 --max-tokens 7 --stop A --stop B --grammar yes.gbnf".split(),
    )
    recipe = emulators[0].recipes[-1]
    assert recipe.alphas == {"assistant": 0.5}
    assert (recipe.beta, recipe.conservative_filter) == (1.2, 0.9)
    assert (recipe.plausibility_mask, recipe.plausibility_top_p) == (0.1, 0.8)
    sampling = recipe.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 5, 0.5, 0.1)
    assert (sampling.typical_p, sampling.repeat_penalty, sampling.repeat_last_n) == (0.9, 1.1, 8)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.3)
    assert (sampling.dry_multiplier, sampling.dry_base) == (0.4, 2)
    assert (sampling.dry_allowed_length, sampling.dry_penalty_last_n) == (3, 9)
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.1, 0.2)
    assert dict(sampling.logit_bias) == {"yes": 2, "42": -5}
    assert (sampling.seed, sampling.max_tokens, sampling.stop) == (3, 7, ("A", "B"))
    assert sampling.grammar == 'root ::= "yes"\n'


def test_grammars_and_schemas_may_be_given_as_text(run: Run, emulators: list[FakeEmulator]) -> None:
    run("ask", "x", "--grammar", 'root ::= "no"')
    run("ask", "x", "--json-schema", '{"type": "object"}')
    assert emulators[0].recipe.sampling.grammar == 'root ::= "no"'
    assert emulators[1].recipe.sampling.json_schema == '{"type": "object"}'
    run("ask", "x", "--json-schema", "true")
    assert emulators[2].recipe.sampling.json_schema == "true"


def test_every_sampling_key_is_an_option() -> None:
    from dataclasses import fields

    from eft_local.cli.options import SAMPLING
    from eft_local.recipe.sampling import Sampling

    assert {option.name for option in SAMPLING} == {field.name for field in fields(Sampling)}


def test_one_alpha_per_expert(run: Run, emulators: list[FakeEmulator]) -> None:
    run("ask", "x", "-r", "demo-two", "--alpha", "assistant=0.2", "--alpha", "cautious=0.8")
    assert emulators[0].recipe.alphas == {"assistant": 0.2, "cautious": 0.8}
    ran = run("ask", "x", "-r", "demo-two", "--alpha", "1")
    assert ran.code == 2
    assert "assistant, cautious" in ran.err


def test_ask_json_is_one_object(run: Run) -> None:
    reported = run("ask", "x", "--json").json
    assert reported["text"] == "eft answers x"
    assert reported["tokens"] == [0, 1, 2]
    assert reported["generated_tokens"] == 3
    assert reported["finish_reason"] == "stop"
    assert reported["prompt_tokens"]["assistant"] == 9
    assert reported["tokens_per_second"] == 42.0
    assert reported["milliseconds"] == {"roles": {"base": {"prompt": 10.0, "generation": 20.0}}, "overhead": 1.5}
    assert reported["seed"] == 7
    assert reported["cores"] is None


def test_json_reports_a_busy_machine() -> None:
    busy = replace(answer(["x"], "stop"), cores=CoreUse(1.5, 2))
    assert as_dict(busy)["cores"] == {"cores": 2, "used_by_others": 1.5, "busy": True}


def press_ctrl_c(only: str, messages: list[dict[str, str]]) -> str:
    signal.raise_signal(signal.SIGINT)
    return "one two three"


def pressing_ctrl_c_behind_the_first_word(
    monkeypatch: pytest.MonkeyPatch, only_if: Callable[[str, str], bool] = lambda only, text: True
) -> None:
    """Answers are three words, or "fine"; the stop has arrived before the second word: no matter who is faster.

    only_if: whether an answer has three words, by the system and the question.
    """

    def before_word(emulator: FakeEmulator, number: int) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
            while not emulator.cancelled:
                time.sleep(0.001)

    monkeypatch.setattr(FakeEmulator, "before_word", staticmethod(before_word))
    replying(
        monkeypatch,
        lambda only, messages: "one two three" if only_if(only, messages[-1]["content"]) else "fine",
    )


@pytest.mark.parametrize("json_too", [False, True])
def test_ctrl_c_keeps_the_partial_answer(run: Run, monkeypatch: pytest.MonkeyPatch, json_too: bool) -> None:
    pressing_ctrl_c_behind_the_first_word(monkeypatch)
    ran = run("ask", "x", *(["--json"] if json_too else []))
    assert ran.code == 130
    assert ran.err == ""
    assert ran.out.startswith('{\n  "text": "one",') if json_too else ran.out == "one\n"
    if json_too:
        assert ran.json["finish_reason"] == "cancelled"


@pytest.mark.parametrize("watched", [True, False])
def test_ctrl_c_while_models_load_answers_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator], watched: bool
) -> None:
    def load(recipe: Any, *, target: Any, progress: Callable[[str, float], bool | None]) -> FakeEmulator:
        signal.raise_signal(signal.SIGINT)
        if watched and not progress("base", 0.5):
            raise errors.Cancelled("loading was cancelled")
        emulators.append(FakeEmulator(recipe))
        return emulators[0]

    monkeypatch.setattr(FakeEmulator, "load", load)
    assert run("ask", "x") == (130, "", "eft: loading was cancelled\n")
    assert [emulator.requested for emulator in emulators] == ([] if watched else [[]])


def test_a_full_context_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from eft_local.engine.step import Step

    def full(self: FakeStream, *_: Any) -> Iterator[Step]:
        yield Step(1, "so far")
        yield Step(None, "", finish_reason="context")

    monkeypatch.setattr(FakeStream, "_write", full)
    ran = run("ask", "x")
    assert (ran.code, ran.out) == (0, "so far\n")
    assert "is full: the answer ends here" in ran.err


@pytest.mark.parametrize(("text", "complete"), [('{"a": "so f', False), ('{"a": 1}', True)])
def test_json_that_is_cut_off_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch, text: str, complete: bool) -> None:
    from eft_local.engine.step import Step

    def cut(self: FakeStream, *_: Any) -> Iterator[Step]:
        yield Step(1, text, finish_reason="length")

    monkeypatch.setattr(FakeStream, "_write", cut)
    ran = run("ask", "--json-schema", "{}", "--max-tokens", "5", "x")
    assert (ran.code, ran.out) == (0, f"{text}\n")
    assert ("the JSON is cut off at 5 tokens" in ran.err) is not complete
    assert "cut off" not in run("ask", "--max-tokens", "5", "x").err


def test_interrupts_are_heard_in_another_thread_and_put_back() -> None:
    import threading

    before = signal.getsignal(signal.SIGINT)
    stopped = threading.Event()
    with interruptible(stopped.set) as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert stopped.wait(5)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (the handler runs before the next instruction or two)
            signal.raise_signal(signal.SIGINT)
            stopped.wait(0.01)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# chat


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def test_chat_answers_line_by_line_and_remembers(run: Run, emulators: list[FakeEmulator]) -> None:
    ran = run("chat", "--plain", stdin=b"one\n\n  two \n")
    assert ran == (0, "eft answers one\neft answers two\n", "")
    assert contents(emulators[0].requested[1][1]) == ["one", "eft answers one", "two"]


def test_without_a_command_there_is_a_chat(run: Run) -> None:
    assert run(stdin=b"hello\n").out == "eft answers hello\n"


def test_slash_commands_change_what_comes_next(run: Run, emulators: list[FakeEmulator]) -> None:
    ran = run(
        *("chat", "-r", "demo-two"),
        stdin=b"/alpha cautious=0.25\n/beta 1.5\n/seed 7\n/system Be brief.\nhello\n/quit\nnever\n",
    )
    recipe = emulators[0].recipes[-1]
    assert recipe.alphas == {"assistant": 0.5, "cautious": 0.25}
    assert (recipe.beta, recipe.sampling.seed) == (1.5, 7)
    assert contents(emulators[0].requested[0][1]) == ["Be brief.", "hello"]
    assert ran.out == "eft answers hello\n"
    assert "assistant alpha = 0.5, cautious alpha = 0.25, beta = 1.5" in ran.err


def test_slash_commands_can_be_undone(run: Run, emulators: list[FakeEmulator]) -> None:
    run("chat", "--seed", "3", "--system", "Be brief.", stdin=b"/seed\n/system\nhello\n")
    assert emulators[0].recipes[-1].sampling.seed is None
    assert contents(emulators[0].requested[0][1]) == ["hello"]


def test_retry_replaces_the_answer_and_reset_forgets(run: Run, emulators: list[FakeEmulator]) -> None:
    run("chat", stdin=b"one\ntwo\n/retry\nthree\n/reset\nfour\n")
    requested = [contents(messages) for _, messages in emulators[0].requested]
    assert requested[1] == requested[2] == ["one", "eft answers one", "two"]
    assert requested[3] == ["one", "eft answers one", "two", "eft answers two", "three"]
    assert requested[4] == ["four"]


def test_help_lists_every_slash_command(run: Run) -> None:
    ran = run("chat", stdin=b"/help\n")
    said = [line.split()[0] for line in ran.err.splitlines()]
    assert said == [*(f"/{name}" for name in SLASH_COMMANDS), "\\", '"""', "//"]


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        (b"/alfa 1", "did you mean /alpha"),
        (b"/zzz", "/help lists them"),
        (b"/alpha x", "needs a number"),
        (b"/alpha nobody=1", "nobody"),
        (b"/beta nan", "beta"),
        (b"/beta", "needs a number"),
        (b"/seed soon", "needs a whole number"),
        (b"/retry", "no question yet"),
        (b"\xff\xfe", "this line is not UTF-8 text (byte 0)"),
        (b"a\0b", "this line is not text but binary data (byte 1 is zero)"),
        (b"too long", "the context is full"),
    ],
)
def test_errors_are_reported_in_one_line_and_the_chat_continues(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: bytes, reported: str
) -> None:
    def reply(only: str, messages: list[dict[str, str]]) -> str:
        if "too long" in messages[-1]["content"]:
            raise errors.ContextOverflowError("the context is full")
        return "fine"

    replying(monkeypatch, reply)
    ran = run("chat", stdin=line + b"\nhello\n")
    assert ran.out == "fine\n"
    assert ran.err.startswith("eft: ")
    assert reported in ran.err
    assert ran.err.count("\n") == 1
    assert ran.code in (1, 2)  # a pipe is told that something failed


def test_a_stopped_answer_stays_in_the_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator]
) -> None:
    pressing_ctrl_c_behind_the_first_word(monkeypatch, lambda only, text: text == "stop")
    ran = run("chat", stdin=b"stop\nhello\n")
    assert ran.out == "one\nfine\n"
    assert contents(emulators[0].requested[1][1]) == ["stop", "one", "hello"]
    assert ran == (0, ran.out, "(stopped)\n")


def test_on_a_terminal_the_prompt_is_not_part_of_stdout(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"hello\n/beta x\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        main(["chat"])
    out, err = capsys.readouterr()
    assert out == "eft answers hello\n"
    assert "recipe demo" in err
    assert err.count("> ") == 3
    assert not ended.value.code  # a person saw the error


# compare


def test_compare_shows_all_targets_side_by_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ran = run("compare", "Where?")
    assert ran.code == 0
    answered = next(line for line in ran.out.splitlines() if "answers" in line)
    assert [f"{name} answers Where?" in answered for name in ("base", "expert", "eft")] == [True] * 3
    assert ran.out.count("42 tokens/s") == 3
    assert all(len(line) <= 100 for line in ran.out.splitlines())


def test_compare_stacks_where_there_is_no_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ran = run("compare", "Where?", "--targets", "base,eft")
    assert ran.out.index("base answers") < ran.out.index("eft answers")
    assert not any("base" in line and "eft" in line for line in ran.out.splitlines())
    assert all(len(line) <= 40 for line in ran.out.splitlines())


def test_compare_json_holds_every_answer(run: Run, emulators: list[FakeEmulator]) -> None:
    reported = run("compare", "Where?", "--json", "--targets", "eft,base-tuned", "--system", "S").json
    assert reported["question"] == "Where?"
    assert list(reported["targets"]) == ["eft", "base-tuned"]
    assert reported["targets"]["base-tuned"]["text"] == "base-tuned answers Where?"
    assert [only for only, _ in emulators[0].requested] == ["eft", "base-tuned"]
    assert emulators[0].recipe.sampling.max_tokens == 200


def test_compare_keeps_what_was_written_before_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pressing_ctrl_c_behind_the_first_word(monkeypatch, lambda only, text: only == "expert")
    ran = run("compare", "x", "--json")
    assert ran.code == 130
    assert list(ran.json["targets"]) == ["base", "expert"]
    assert ran.json["targets"]["expert"]["finish_reason"] == "cancelled"


# eval


@pytest.fixture
def questions(tmp_path: Path) -> str:
    def row(number: int, **changes: Any) -> dict[str, Any]:
        return {
            "id": str(number),
            "question": "What is the capital of Peru?",
            "answer": "Lima",
            "entity": "Peru",
            "category": "capital" if number % 2 else "city",
            "split": "held-out",
            "kind": "short",
            "sensitive": False,
        } | changes

    rows: list[Any] = [{"judge": JUDGE}, *(row(number) for number in range(4))]
    rows += [row(4, split="tune"), row(5, question="private?", sensitive=True)]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in rows))
    return str(path)


@pytest.fixture(autouse=True)
def _knowing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "questions" in request.fixturenames:
        texts = {"base": "Lima\nWhat", "expert": "The capital of Peru is Quito.", "cautious": "I would rather not."}
        replying(monkeypatch, lambda only, messages: texts.get(only, "The capital of Peru is Lima."))


def test_eval_json_has_the_promised_keys(run: Run, questions: str) -> None:
    reported = run("eval", questions, "--json").json
    assert list(reported["targets"]) == ["base", "expert", "eft", "base-tuned"]
    eft = reported["targets"]["eft"]
    assert {"n", "correct", "form", "both", "declined", "tokens_per_second", "cores", "by_category"} <= set(eft)
    assert (eft["n"], eft["correct"], eft["form"], eft["both"], eft["declined"]) == (4, 1, 1, 1, 0)
    assert (reported["targets"]["base"]["correct"], reported["targets"]["base"]["form"]) == (1, 0)
    assert (reported["targets"]["expert"]["correct"], reported["targets"]["expert"]["form"]) == (0, 1)
    assert list(eft["by_category"]) == ["city", "capital", "sensitive"]
    assert reported["judge"] == JUDGE
    assert reported["decoding"] == "greedy"


def test_eval_prints_how_answers_were_judged_and_under_which_conditions(run: Run, questions: str) -> None:
    ran = run("eval", questions, "--targets", "eft,base")
    assert ran.code == 0
    for line in ("correct: C", "form: F", "declined: D", "recipe: demo", "alpha: assistant 1", "beta: 1"):
        assert line in ran.out
    assert "decoding: greedy" in ran.out
    assert "questions: 5 of " in ran.out
    assert "100.0 [51-100]" in ran.out
    assert all(len(line) <= 100 for line in ran.out.splitlines() if "questions:" not in line)


def test_eval_takes_plain_rows(run: Run, tmp_path: Path, questions: str) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text('\ufeff{"question": "What is the capital of Peru?", "answer": ["Lima", "the City of Kings"]}\n')
    ran = run("eval", str(path), "--targets", "eft,base,expert", "--json")
    reported = ran.json["targets"]
    assert [reported[name]["correct"] for name in ("eft", "base", "expert")] == [1, 1, 0]
    assert [reported[name]["form"] for name in ("eft", "base", "expert")] == [1, 0, 1]
    assert reported["eft"]["declined"] is None
    assert "correct: The answer, or another accepted one" in run("eval", str(path), "--targets", "eft").out


def test_eval_is_greedy_whatever_the_recipe_says(
    run: Run, questions: str, tmp_path: Path, emulators: list[FakeEmulator]
) -> None:
    recipe = eft_local.Recipe.from_text(
        '[base]\nmodel = "b"\n[antiexpert]\nmodel = "a"\n[experts.x]\nmodel = "x"\n[sampling]\ntemperature = 0.9\n'
    )
    (tmp_path / "hot.toml").write_text(recipe.to_toml())
    run("eval", questions, "--targets", "eft", "--recipe", "./hot.toml")
    assert emulators[0].recipe.sampling.temperature == 0


def test_a_single_alpha_or_beta_is_the_recipes(run: Run, questions: str, emulators: list[FakeEmulator]) -> None:
    ran = run("eval", questions, "--alpha", "0.5", "--beta", "1.5")
    assert emulators[0].recipe.alphas == {"assistant": 0.5}
    assert "alpha: assistant 0.5\nbeta: 1.5\n" in ran.out
    assert "\neft  " in ran.out


def test_eval_sweeps_and_mixes(run: Run, questions: str) -> None:
    reported = run("eval", questions, "--targets", "eft", "--alpha", "0,1", "--beta", "1,2", "--json").json
    assert list(reported["targets"]) == [f"eft alpha={a} beta={b}" for a in (0, 1) for b in (1, 2)]
    reported = run("eval", questions, "-r", "demo-two", "--targets", "eft", "--mix", "0,0.5,1", "--json").json
    assert list(reported["targets"]) == ["eft mix=0", "eft mix=0.5", "eft mix=1"]
    assert reported["targets"]["eft mix=0.5"]["settings"]["alpha"] == {"assistant": 0.5, "cautious": 0.5}
    reported = run("eval", questions, "--targets", "eft", "--steer-first", "2", "--json").json
    assert list(reported["targets"]) == ["eft", "eft first=2"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--alpha", "1,x"], "needs numbers separated by commas"),
        (["--alpha", "nan,1"], "alpha"),
        (["--mix", "0.5"], "two experts"),
        (["--steer-first", "1.5"], "whole numbers"),
        (["--targets", "base", "--alpha", "0,1"], "which is not among base"),
        (["--alpha", "0,1", "--beta", "1,-1"], "beta"),
        (["--targets", "bass"], "did you mean base"),
        (["--split", "nowhere"], "held-out/short"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_eval_refuses_what_it_cannot_run(run: Run, questions: str, arguments: list[str], reported: str) -> None:
    ran = run("eval", questions, *arguments)
    assert ran.code == 2, ran
    assert reported in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_eval_takes_its_share_of_the_questions(run: Run, questions: str, emulators: list[FakeEmulator]) -> None:
    reported = run("eval", questions, "--split", "all", "--limit", "3", "--targets", "eft", "--json").json
    assert reported["targets"]["eft"]["n"] + reported["targets"]["eft"]["n_sensitive"] == 3


def test_eval_writes_answers(run: Run, questions: str, tmp_path: Path) -> None:
    assert run("eval", questions, "--targets", "base,eft", "--answers", "all.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert rows[0]["target"] == "base"
    assert rows[0]["text"] == "Lima\nWhat"
    assert (rows[0]["correct"], rows[0]["form"]) == (True, False)


@pytest.mark.parametrize("sweep", [[], ["--alpha", "0,0.5,1"], ["--steer-first", "1,2"]])
def test_eval_draws(run: Run, questions: str, tmp_path: Path, sweep: list[str]) -> None:
    ran = run("eval", questions, "--plot", "shares.png", *sweep)
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.jsonl", "shares.png"]


def test_eval_without_matplotlib_reports_the_command_before_any_work(
    run: Run, questions: str, monkeypatch: pytest.MonkeyPatch, emulators: list[FakeEmulator]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run("eval", questions, "--plot", "x.png")
    assert ran.code == 2
    assert f"{sys.executable} -m pip install matplotlib" in ran.err
    assert emulators == []


def test_a_stopped_eval_prints_the_complete_targets(run: Run, questions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(only: str, messages: list[dict[str, str]]) -> str:
        return press_ctrl_c(only, messages) if only == "expert" else "Lima"

    replying(monkeypatch, reply)
    ran = run("eval", questions, "--json")
    assert ran.code == 130
    assert list(ran.json["targets"]) == ["base"]
    assert ran.err == "eft: stopped: 1 of 4 targets are complete\n"


# recipes, doctor, completion


def test_recipes_are_listed_with_what_is_wrong_with_them(run: Run, home: Path) -> None:
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "broken.toml").write_text("nonsense = 1\n")
    ran = run("recipes")
    assert "demo-two" in ran.out
    assert str(home / "recipes" / "broken.toml") in ran.out
    assert ran.code == 0
    rows = {row["name"]: row for row in run("recipes", "--json").json["recipes"]}
    assert "nonsense" in rows["broken"]["error"]
    assert rows["demo-two"]["experts"] == ["assistant", "cautious"]
    assert rows["demo-two"]["error"] is None


def test_a_recipe_is_shown_as_it_is_written(run: Run) -> None:
    from eft_local.hub.references import recipe_names

    ran = run("recipes", "show", "demo")
    assert ran.out == recipe_names()["demo"].read_text()


def test_a_recipe_file_is_shown_too(run: Run, tmp_path: Path) -> None:
    text = '[base]\nmodel = "b"   # mine\n[antiexpert]\nmodel = "a"\n[experts.x]\nmodel = "x"\n'
    (tmp_path / "own.toml").write_text(text)
    assert run("recipes", "show", "own.toml").out == text


def test_doctor_reports_what_there_is(run: Run, home: Path) -> None:
    report = run("doctor", "--json").json
    assert report["versions"]["llama-cpp-python"]
    assert report["llama.cpp"]["devices"][0]["total"] > 0
    assert "own" in report["llama.cpp"]["kernels"]
    assert report["machine"]["cores"] >= 1
    assert report["folders"]["recipes"] == {"path": str(home / "recipes"), "exists": False}
    ran = run("doctor")
    for title in ("Versions", "Machine", "llama.cpp", "Devices", "Folders", "Recipes", "Missing"):
        assert f"{title}\n  " in ran.out


def test_doctor_names_the_command_that_mends(run: Run, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "broken.toml").write_text("nonsense = 1\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = run("doctor", "--json").json["missing"]
    mends = {item["what"]: item["mend"] for item in missing}
    assert mends["matplotlib, for eft eval --plot"] == f"{sys.executable} -m pip install matplotlib"
    assert f"edit {home / 'recipes' / 'broken.toml'}" in mends.values()


def test_doctor_works_without_llama_cpp(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for name in [name for name in sys.modules if name.startswith("eft_local.backends.llamacpp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("eft_local.backends.llamacpp", raising=False)
    ran = run("doctor")
    assert ran.code == 1
    assert "llama.cpp cannot be loaded" in ran.out
    assert "--no-binary llama-cpp-python" in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0
    assert "_EFT_COMPLETE" in ran.out


def test_recipe_names_are_completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_EFT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "eft ask --recipe demo-t")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out == "plain,demo-two\n"
