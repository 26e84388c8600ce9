"""Fine-tunes that add or rename special tokens, beside a base that does not know these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eft_local import notices
from eft_local.backends.llamacpp import Model
from eft_local.backends.specials import Special, Specials
from eft_local.backends.vocabulary import CONTROL, Common
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, Tokens, bpe, spm, write_model
from eft_local.emulator import Emulator
from eft_local.engine.ends import Ends
from eft_local.errors import UsageError, VocabularyMismatchError
from eft_local.gguf.header import Pretokenizer, pretokenizer_warnings
from eft_local.recipe import Expert, Prompt, Recipe, Role
from tests.helpers.fake import END, AsciiVocabulary, FakeModel, emulator, noise, recipe, trio
from tests.helpers.gguf_variants import derive, own_end, refusing, renamed_and_added

OWN_END = END + 1
"""An id that only the expert has: where it ends its turns."""


class TunedVocabulary(AsciiVocabulary):
    """The ASCII vocabulary with control tokens at its end; these end a turn, END does not."""

    def __init__(self, *own: bytes) -> None:
        super().__init__(ends=range(OWN_END, OWN_END + len(own)))
        self._own = own
        self.n_tokens += len(own)

    def texts(self) -> list[bytes]:
        return [*AsciiVocabulary().texts(), *self._own]

    def attributes(self) -> np.ndarray:
        return np.concatenate([AsciiVocabulary().attributes(), np.full(len(self._own), CONTROL, np.int32)])

    def specials(self) -> Specials:
        own = (Special(text.decode(), OWN_END + i, CONTROL) for i, text in enumerate(self._own))
        return Specials([*super().specials(), *own])

    def piece(self, token: int) -> bytes:
        return b"" if token > END else super().piece(token)


def ending_at(text: str, end: int, n_tokens: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Says a text after the prompt and then one end token."""
    script = [*text.encode(), end]

    def table(tokens: tuple[int, ...]) -> np.ndarray:
        last = max((index for index, token in enumerate(tokens) if token == ord(":")), default=0)
        row = np.zeros(n_tokens, np.float32)
        row[script[min(len(tokens) - last - 1, len(script) - 1)]] = 20
        return row

    return table


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_given", set())
    # It takes long, and the files are ours.
    monkeypatch.setattr("eft_local.backends.llamacpp.model.probe_file", lambda *_: None)
    monkeypatch.setattr("eft_local.engine.loading.find_in_child", lambda *_: None)


# The expert's own end


@pytest.mark.parametrize("draft", ["off", "auto", 3])
def test_the_experts_own_end_ends_the_answer(draft: object, caplog: pytest.LogCaptureFixture) -> None:
    models = trio()
    models["tuned"] = FakeModel(ending_at("Hi", OWN_END, OWN_END + 1), TunedVocabulary(b"<|im_end|>"))
    with emulator(models, recipe(draft=draft)) as emulated:
        answer = emulated.chat("Where?", statistics=True)
        assert (answer.text, answer.finish_reason) == ("Hi", "stop")
        alone = emulated.chat("Where?", target="helpful")
        assert (alone.text, alone.finish_reason) == ("Hi", "stop")
    assert [record.getMessage() for record in caplog.records] == [
        "helpful has special tokens of its own: id 130 is missing in base and '<|im_end|>' (control) in helpful; "
        "these are never offered, but '<|im_end|>' ends the answer"
    ]


def test_its_probability_stands_against_the_others_ends() -> None:
    """z(end) = base(end) + α·(log(e^expert(end) + e^expert(own end)) − antiexpert(end)); everything else as ever."""
    models = trio()
    models["tuned"] = FakeModel(noise(9, OWN_END + 2, ends=True), TunedVocabulary(b"<|im_end|>", b"<pad>"))
    models["tuned"].vocabulary._ends = frozenset([OWN_END])
    with emulator(models, recipe(alpha=0.7)) as emulated:
        step = next(emulated.stream_chat("Where?", top=130))
    prompt = tuple(emulator(trio()).models.roles["base"].tokens([{"role": "user", "content": "Where?"}]))
    base, anti = (models[name].table(prompt).astype(np.float64) for name in ("base", "small"))
    tuned = models["tuned"].table(prompt).astype(np.float64)
    tuned[END] = tuned[OWN_END]  # END itself is none of the expert's ends, but common: it counts as well
    tuned[END] = np.logaddexp(models["tuned"].table(prompt)[END], tuned[OWN_END])
    scores = base + 0.7 * (tuned[: END + 1] - anti)
    expected = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
    found = {candidate.token: candidate.roles["eft"].logprob for candidate in step.candidates}
    assert set(found) == set(range(END + 1))
    np.testing.assert_allclose([found[token] for token in range(END + 1)], expected, atol=1e-5)


def test_ends_without_own_tokens_change_nothing() -> None:
    common = Common(END + 1, np.array([], np.intp), {})
    ends = Ends.among({"base": AsciiVocabulary(), "kind": AsciiVocabulary()}, common, "kind")
    assert (ends.token, ends.of) == (None, {})
    rows = np.zeros((2, END + 3), np.float32)
    assert ends.fold("kind", rows, END + 1).base is rows


def test_an_end_that_is_renamed_in_its_place() -> None:
    """One id, two names, an end for both: it stays what it is."""
    common = Common(END + 1, np.array([END]), {"kind": "…"})
    ends = Ends.among({"base": AsciiVocabulary(), "kind": AsciiVocabulary()}, common, "kind")
    assert (ends.token, ends.of) == (END, {})


def test_an_end_that_means_another_token_to_the_expert() -> None:
    """The base's only end is a renamed token to the expert: what the expert gives to that token is not its end."""
    common = Common(END + 1, np.array([END]), {"kind": "…"})
    ends = Ends.among({"base": AsciiVocabulary(), "kind": TunedVocabulary(b"<|im_end|>")}, common, "kind")
    assert (ends.token, ends.of) == (END, {"kind": [OWN_END]})
    rows = np.arange(2 * (END + 2), dtype=np.float32).reshape(2, END + 2)
    assert ends.fold("kind", rows, END + 1)[:, END].tolist() == rows[:, OWN_END].tolist()


def test_a_role_alone_has_all_of_its_own_tokens() -> None:
    models = trio()
    models["tuned"] = FakeModel(
        lambda tokens: np.eye(OWN_END + 2, dtype=np.float32)[OWN_END + 1] * 9, TunedVocabulary(b"<|im_end|>", b"<x>")
    )
    models["tuned"].vocabulary._ends = frozenset([OWN_END])
    with emulator(models) as emulated:
        assert emulated.chat("Where?", target="helpful", max_tokens=2).tokens == (OWN_END + 1,) * 2
        assert max(emulated.chat("Where?", max_tokens=2).tokens) <= END
        with pytest.raises(UsageError, match="prefix holds the token 131; the tokens of eft are 0 … 129"):
            emulated.chat("Where?", prefix=[OWN_END + 1])


# Files


def adding(tokens: Tokens, *own: str, kind: int = 3, eos: bool = False) -> Tokens:
    scores = None if tokens.scores is None else [*tokens.scores, *[-1000.0] * len(own)]
    return replace(
        tokens, texts=[*tokens.texts, *own], types=[*tokens.types, *[kind] * len(own)], scores=scores,
        eos=len(tokens.texts) if eos else tokens.eos,
    )  # fmt: skip


def renaming(tokens: Tokens, old: str, new: str) -> Tokens:
    return replace(tokens, texts=[new if text == old else text for text in tokens.texts])


BASE = bpe(add_bos=True, special=("<|endoftext|>", "<|reserved_0|>", "<|reserved_1|>", "</s>"))
SPM = spm()
SIXTEEN = [f"▁<{name}" for name in "SU SUF PRE M MID E EOT PRE> SUF> MID> EOT> EOT><EOT> SUF><SUF> S U P".split()]

FINE_TUNES = {
    "pad": (BASE, adding(BASE, "<pad>")),
    "PAD": (SPM, adding(SPM, "[PAD]")),
    "PAD-normal": (SPM, adding(SPM, "[PAD]", kind=1)),
    "chatml": (BASE, adding(BASE, "<|im_end|>", "<|im_start|>", eos=True)),
    "chatml-user-defined": (SPM, adding(SPM, "<|im_end|>", "<|im_start|>", kind=4, eos=True)),
    "chatml-in-padding": (BASE.padded(4), adding(BASE, "<|im_end|>", "<|im_start|>", eos=True).padded(2)),
    "codellama": (
        adding(SPM, *(f"w{i}" for i in range(1500)), kind=1),
        adding(adding(SPM, *(f"w{i}" for i in range(1500)), kind=1), *SIXTEEN, kind=1),
    ),
    "renamed": (BASE, renaming(renaming(BASE, "<|reserved_0|>", "<|im_start|>"), "<|reserved_1|>", "<|im_end|>")),
    "renamed-end": (BASE, renaming(BASE, "</s>", "<|eot_id|>")),
}


def files(folder: Path, base: Tokens, tuned: Tokens, **metadata: object) -> Recipe:
    write_model(folder / "base.gguf", ModelSpec(Shape(n_layer=1), base, seed=1))
    write_model(folder / "small.gguf", ModelSpec(Shape(n_layer=1), base, seed=2))
    write_model(folder / "tuned.gguf", ModelSpec(Shape(n_layer=1), tuned, seed=3, template=CHATML))
    return Recipe(
        name="families",
        context=256,
        base=Role(model=str(folder / "base.gguf")),
        antiexpert=Role(model=str(folder / "small.gguf")),
        experts={"kind": Expert(model=str(folder / "tuned.gguf"))},
    ).replace(temperature=1.0, max_tokens=20, seed=3, threads=1, threads_batch=1)


@pytest.mark.parametrize("name", FINE_TUNES)
def test_fine_tunes_run(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    base, tuned = FINE_TUNES[name]
    expected = {text for text, kind in zip(base.texts, base.types, strict=True) if kind != 5}
    with Emulator.load(files(tmp_path, base, tuned)) as emulated:
        voice = emulated.models.roles["kind"].vocabulary
        for seed in range(6):
            answer = emulated.chat("Where <is> it?", seed=seed)
            assert {voice.texts()[token].decode() for token in answer.tokens} <= expected
        emulated.score("Where?", " <|im_end|> w1")
        emulated.chat("Where?", target="kind")
    own = [record.getMessage() for record in caplog.records if record.getMessage().startswith("kind has special")]
    assert len(own) == 1
    assert "in base and '" in own[0]


def test_a_grammar_ends_at_the_experts_own_end(tmp_path: Path) -> None:
    base, tuned = FINE_TUNES["chatml"]
    with Emulator.load(files(tmp_path, base, tuned).replace(grammar='root ::= "ab"')) as emulated:
        answer = emulated.chat("Where?")
        assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_other_text_is_another_family(tmp_path: Path) -> None:
    with pytest.raises(VocabularyMismatchError, match=r"1 id differs: id 260 is 'Ġthe' \(normal\).*one family"):
        Emulator.load(files(tmp_path, BASE, renaming(BASE, "Ġthe", "Ġand")))
    many = adding(SPM, *(f"w{i}" for i in range(40)), kind=1)
    with pytest.raises(VocabularyMismatchError, match="40 ids differ: id 268 is missing in base and 'w0'"):
        Emulator.load(files(tmp_path, SPM, many))


# What is worse for it


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "eft_local"]


def test_files_that_do_not_say_how_they_split_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = files(tmp_path, BASE, BASE)
    write_model(tmp_path / "tuned.gguf", ModelSpec(Shape(n_layer=1), replace(BASE, pre=None)))
    recipe = recipe.replace(experts={"kind": Expert(model=str(tmp_path / "tuned.gguf"), prompt=Prompt("plain"))})
    for _ in range(2):
        Emulator.load(recipe).close()
    assert warnings(caplog) == [
        "tuned.gguf does not say how its tokenizer splits text (tokenizer.ggml.pre is missing): it is split in "
        "llama.cpp's default way, and answers may be worse; convert the model again",
        "tuned.gguf splits text by the pre-tokenizer 'default' and base.gguf by 'gpt-2': they read the same text in "
        "other tokens, and answers may be worse; use files that were converted alike",
    ]


def test_names_of_one_pretokenizer(tmp_path: Path) -> None:
    def said(base: str | None, tuned: str | None, model: str = "gpt2") -> int:
        roles = {"base": base, "kind": tuned, "small": base}
        return len(pretokenizer_warnings({n: Pretokenizer(Path(f"{n}.gguf"), model, p) for n, p in roles.items()}))

    assert said("llama-bpe", "llama3") == said("qwen2", "qwen2") == said(None, "default", model="llama") == 0
    assert said("llama-bpe", "smaug-bpe") == 1
    assert said("default", None) == 1
    assert said(None, None) == 3


def test_what_llama_warns_of_is_passed_on_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = adding(bpe(add_bos=True, special=("<|endoftext|>",)), "<|im_end|>", "<PAD>", kind=1)
    tokens = adding(tokens, "<|stop|>", eos=True)
    path = write_model(tmp_path / "odd.gguf", ModelSpec(Shape(n_layer=1), tokens))
    for _ in range(2):
        Model.load(path).close()
    said = warnings(caplog)
    assert len(said) == 2
    assert said[0].startswith("odd.gguf: llama.cpp warns: control-looking token: ")
    assert said[0].endswith("its type will be overridden (1 more likewise)")
    assert said[1] == (
        "odd.gguf: llama.cpp warns: special_eos_id is not in special_eog_ids - the tokenizer config may be incorrect"
    )


def test_a_context_beyond_training_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Emulator.load(files(tmp_path, BASE, BASE).replace(context=600)).close()
    assert "context = 600, but tuned.gguf was trained with 512 tokens: beyond them it may ramble" in warnings(caplog)


# Stop strings


@pytest.mark.parametrize("only", ["eft", "helpful", "base"])
@pytest.mark.parametrize("stop", [["<file_sep>"], ["no", " <file_sep>\n"]])
def test_a_stop_string_that_names_a_control_token_stops_there(only: str, stop: list[str]) -> None:
    vocabulary = TunedVocabulary(b"<file_sep>", b"<other>")
    vocabulary._ends = frozenset([END])
    table = ending_at("Hi", OWN_END, OWN_END + 2)
    models = {name: FakeModel(table, vocabulary) for name in ("base", "small", "tuned")}
    with emulator(models, recipe(stop=stop, draft=3)) as emulated:
        answer = emulated.chat("Where?", target=only)
        assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("Hi", "stop", 2)
        steps = list(emulated.stream_chat("Where?", target=only, top=2))
        assert [[each.ends for each in step.candidates if each.token == step.token] for step in steps] == [
            [False], [False], [True]
        ]  # fmt: skip
        emulated.recipe = emulated.recipe.replace(stop=["<other>"])
        assert emulated.chat("Where?", target=only).finish_reason == "length"
        emulated.recipe = emulated.recipe.replace(stop=["i"])
        assert emulated.chat("Where?", target=only).text == "H"


# A real model's


@pytest.mark.parametrize(
    ("change", "rows", "drop", "said"),
    [
        (renamed_and_added, 1, (), "in kind, id 49152 is missing in base and '<pad>' (control) in kind; these are"),
        (own_end, 1, (), "these are never offered, but '<|turn_end|>' ends the answer"),
        (refusing, 0, ("tokenizer.ggml.pre",), "variant.gguf does not say how its tokenizer splits text"),
    ],
)
def test_variants_of_a_real_model(
    smollm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, rows: int, drop: Any, said: str
) -> None:
    """Beside the file that it was made of, which it cancels out: the mixture is the variant."""
    variant = derive(smollm2, tmp_path / "variant.gguf", change, rows=rows, drop=drop)
    recipe = Recipe(
        name="variants",
        context=512,
        base=Role(model=str(smollm2)),
        antiexpert=Role(model=str(smollm2)),
        experts={"kind": Expert(model=str(variant))},
    ).replace(temperature=0, max_tokens=8, draft="off", threads=1, threads_batch=1)
    requested = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "List three fruits."}]
    with Emulator.load(recipe) as emulated:
        answer = emulated.chat(requested)
        assert answer.text == emulated.chat(requested, target="kind").text
        assert answer.text
    assert sum(said in line for line in warnings(caplog)) == 1
    moved = "variant.gguf takes no system text: it goes before the first question"
    assert sum(moved in line for line in warnings(caplog)) == (change is refusing)
