"""What must be known before anything loads: headers are read first, and only what answers is loaded."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eft_local import Emulator, Recipe
from eft_local.backends.llamacpp import Model
from eft_local.backends.llamacpp.vocabulary import LlamaVocabulary
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.cli.app import run
from eft_local.errors import UsageError, VocabularyMismatchError
from eft_local.gguf import checks as gguf

GB = 10**9
RECIPE = """
context = 256
threads = 1
[base]
model = "{base}"
[antiexpert]
model = "{small}"
[experts.kind]
model = "{tuned}"
prompt = "{prompt}"
[sampling]
temperature = 0
max_tokens = 6
"""

Eft = Callable[..., tuple[int, str, str]]


def write_recipe(
    folder: Path, base: object, small: object, tuned: object, prompt: str = "plain", name: str = "own"
) -> str:
    path = folder / f"{name}.toml"
    path.write_text(RECIPE.format(base=base, small=small, tuned=tuned, prompt=prompt))
    return str(path)


@pytest.fixture
def eft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Eft:
    def call(*arguments: str) -> tuple[int, str, str]:
        with Path(os.devnull).open() as nothing, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", nothing)
            code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded, and none can be tried."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(Model, "load", refuse)


@pytest.fixture
def mismatch(ggufs: Path, tmp_path: Path) -> str:
    return write_recipe(tmp_path, ggufs / "base-spm.gguf", ggufs / "small.gguf", ggufs / "tuned.gguf")


@pytest.mark.usefixtures("no_weights")
def test_models_that_do_not_fit_are_refused_by_their_headers_in_one_voice(eft: Eft, mismatch: str) -> None:
    planned, requested = eft("plan", mismatch), eft("ask", "--recipe", mismatch, "hello")
    assert planned == requested
    code, out, err = planned
    assert (code, out) == (4, "")
    assert err.startswith("eft: base (268 tokens) and antiexpert (265 tokens) do not share a vocabulary: ")
    assert err.count("\n") == 1
    _, shown, _ = eft("show", mismatch)
    assert f"cannot be loaded: {err.removeprefix('eft: ')}" in shown
    assert json.loads(eft("show", mismatch, "--json")[1])["problem"] == err.removeprefix("eft: ").strip()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("prompt", "reported"),
    [("chat", "small.gguf has no chat template"), ("{{ broken", "cannot be read"), ("bad.jinja", "does not parse")],
)
def test_templates_are_checked_before_anything_is_loaded(
    eft: Eft, ggufs: Path, tmp_path: Path, prompt: str, reported: str
) -> None:
    (tmp_path / "bad.jinja").write_text("{% for %}")
    if prompt == "{{ broken":
        prompt = "missing.jinja"
    recipe = write_recipe(tmp_path, *(ggufs / f"{name}.gguf" for name in ("base", "small", "small")), prompt)
    for command in (["plan", recipe], ["ask", "--recipe", recipe, "hello"]):
        code, out, err = eft(*command)
        assert (code, out) == (2, "")
        assert reported in err


@pytest.mark.usefixtures("no_weights")
def test_lora_adapters_are_checked_before_anything_is_loaded(eft: Eft, ggufs: Path, tmp_path: Path) -> None:
    recipe = Path(write_recipe(tmp_path, *(ggufs / f"{name}.gguf" for name in ("base", "small", "small"))))
    recipe.write_text(recipe.read_text().replace("[sampling]", f'lora = "{ggufs / "tuned.gguf"}"\n[sampling]'))
    for command in (["plan", str(recipe)], ["ask", "--recipe", str(recipe), "hello"]):
        code, _, err = eft(*command)
        assert (code, "is a model, not a LoRA adapter" in err) == (1, True)


def test_recipes_and_doctor_reports_which_are_ready(eft: Eft, ggufs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "recipes"
    own.mkdir()
    trio = [ggufs / f"{name}.gguf" for name in ("base", "small", "tuned")]
    write_recipe(own, *trio, name="fits")
    write_recipe(own, ggufs / "base-spm.gguf", *trio[1:], name="differs")
    write_recipe(own, tmp_path / "nowhere.gguf", *trio[1:], name="misses")
    write_recipe(own, "org/repo:Q4_K_M", *trio[1:], name="away")

    rows = {row["name"]: row["state"] for row in json.loads(eft("recipes", "--json")[1])["recipes"]}
    reported = json.loads(eft("doctor", "--json")[1])
    assert rows == {name: recipe["state"] for name, recipe in reported["recipes"].items()}
    assert rows["fits"] == rows["demo"] == "ready"
    assert "do not share a vocabulary" in rows["differs"]
    assert "nowhere.gguf" in rows["misses"]
    assert rows["away"] == rows["qwen3-laptop"] == "not downloaded"
    mends = {item["what"]: item["mend"] for item in reported["missing"]}
    assert mends["models of recipe qwen3-laptop"] == "eft pull qwen3-laptop"
    assert mends["models of recipe away"] == "eft pull away"
    assert mends[f"recipe differs: {rows['differs']}"] == f"edit {own / 'differs.toml'}"


# Only what answers


def test_one_role_alone_loads_no_other(eft: Eft, ggufs: Path, tmp_path: Path) -> None:
    """Neither files that are not there nor a vocabulary that does not fit concern it."""
    recipe = write_recipe(tmp_path, ggufs / "base.gguf", "nowhere.gguf", ggufs / "tuned-spm.gguf")
    requested = json.loads(eft("ask", "--recipe", recipe, "--only", "base", "--json", "hello")[1])
    assert list(requested["prompt_tokens"]) == ["base"]
    planned = json.loads(eft("plan", recipe, "--only", "base", "--json", "--bandwidth", "10")[1])
    assert [model["roles"] for model in planned["models"]] == [["base"]]
    assert eft("compare", "--recipe", recipe, "--targets", "base,expert", "hello")[0] == 0
    assert eft("ask", "--recipe", recipe, "hello")[0] == 3
    assert eft("plan", recipe)[0] == 3
    assert eft("plan", str(ggufs / "base.gguf"), "--only", "base")[0] == 2


def test_who_cannot_answer_is_reported_before_anything_is_loaded(eft: Eft, ggufs: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "a.gguf", "b.gguf", "c.gguf")
    for command in (["ask", "--only", "bse", "hello"], ["compare", "--targets", "bse", "hello"]):
        code, _, err = eft(command[0], "--recipe", recipe, *command[1:])
        assert (code, "bse" in err) == (2, True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="bounds the address space")
def test_a_base_of_ten_gigabytes_of_recipe_is_loaded_alone(ggufs: Path, tmp_path: Path) -> None:
    """In four gigabytes of address space, beside five and five that are not needed."""
    huge = ModelSpec(Shape(n_embd=8192, n_layer=20, n_head=64, n_head_kv=8, n_ff=8192), zero=True, quantization="F16")
    for name in ("small", "tuned"):
        write_model(tmp_path / f"{name}.gguf", huge)
    assert sum((tmp_path / f"{name}.gguf").stat().st_size for name in ("small", "tuned")) > 10 * GB
    recipe = write_recipe(tmp_path, ggufs / "base.gguf", "small.gguf", "tuned.gguf")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from eft_local.cli.app import run\n"
        "code = run(sys.argv[1:])\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(status['VmHWM'].split()[0], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, "ask", "--recipe", recipe, "--only", "base", "hello"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < 400_000  # kilobytes


def test_what_was_left_out_is_loaded_when_it_is_requested(ggufs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_text(
        RECIPE.format(base="base.gguf", small="small.gguf", tuned="tuned.gguf", prompt="plain"), ggufs
    )
    opened: list[str] = []
    load = Model.load.__func__  # type: ignore[attr-defined]

    def note(cls: type[Model], path: Path, **options: Any) -> Model:
        opened.append(Path(path).stem)
        return load(cls, path, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Model, "load", classmethod(note))
    with Emulator.load(recipe) as whole:
        expected = {only: whole.chat("hello", target=only).tokens for only in ("base", "kind", "eft")}
    assert sorted(opened) == ["base", "small", "tuned"]
    opened.clear()
    with Emulator.load(recipe, target="base") as emulator:
        assert emulator.chat("hello", target="base").tokens == expected["base"]
        assert opened == ["base"]
        assert emulator.exact
        assert emulator.chat(["hello"], target="base")[0].tokens == expected["base"]
        assert emulator.chat("hello", target="expert").tokens == expected["kind"]
        assert opened == ["base", "tuned"]
        stream = emulator.stream_chat("hello", target="base", statistics=True)
        next(stream)
        assert emulator.chat("hello").tokens == expected["eft"], "loaded while another answer is written"
        stream.close()
        assert opened == ["base", "tuned", "small"]
        assert emulator.chat("hello", target="base").tokens == expected["base"]
        emulator.recipe = recipe.replace(alpha=0)
    with Emulator.load(recipe, target=["kind", "base"]) as emulator:
        assert emulator.chat("hello", target="kind").tokens == expected["kind"]
    with pytest.raises(UsageError, match="there is no target 'nobody'"):
        Emulator.load(recipe, target="nobody")


def test_a_misfit_is_reported_when_the_mixture_is_first_requested(ggufs: Path) -> None:
    recipe = Recipe.from_text(
        RECIPE.format(base="base.gguf", small="small-spm.gguf", tuned="tuned-spm.gguf", prompt="plain"), ggufs
    )
    with Emulator.load(recipe, target="base") as emulator:
        with pytest.raises(VocabularyMismatchError):
            emulator.chat("hello")
        assert emulator.chat("hello", target="base").tokens


# Once per file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's header is read."""
    counted: Counter[str] = Counter()
    read = gguf.read_gguf
    gc.collect()  # headers that other tests left in circles are held, and would not be read again

    def count(path: Path) -> Any:
        counted[path.name] += 1
        return read(path)

    monkeypatch.setattr(gguf, "read_gguf", count)
    return counted


def test_each_header_is_read_once_and_llama_is_not_requested_texts(
    ggufs: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EFT_HOME", str(tmp_path))  # nothing is known of these files yet
    monkeypatch.delattr(LlamaVocabulary, "texts")
    for tuned, read in (("tuned", {"base.gguf": 1, "tuned.gguf": 1}), ("base", {"base.gguf": 1})):
        reads.clear()
        text = RECIPE.format(base="base.gguf", small=f"{tuned}.gguf", tuned=f"{tuned}.gguf", prompt="plain")
        with Emulator.load(Recipe.from_text(text, ggufs)):
            assert reads == read


def test_a_file_that_changes_is_read_again(tmp_path: Path, reads: Counter[str]) -> None:
    path = write_model(tmp_path / "model.gguf", ModelSpec(tokens=bpe()))
    first = gguf.check_gguf(path)
    assert gguf.check_gguf(path) is first
    write_model(tmp_path / "new.gguf", ModelSpec(tokens=bpe().padded(3))).replace(path)
    assert len(gguf.check_gguf(path).metadata["tokenizer.ggml.tokens"]) == 268  # type: ignore[arg-type]
    del first
    assert gguf.check_gguf(path)
    assert reads["model.gguf"] == 3
