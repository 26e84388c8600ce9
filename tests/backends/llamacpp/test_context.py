"""Model and Context on tiny GGUF files."""

import ctypes
import logging
import re
import threading
import time
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Context, Model, estimate
from eft_local.backends.llamacpp.context import KV_TYPES
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.errors import (
    Cancelled,
    ContextOverflowError,
    EftError,
    EvaluationError,
    ModelFileError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from eft_local.recipe.roles import KV_TYPES as RECIPE_KV_TYPES
from eft_local.recipe.roles import PLAIN_KV_TYPES

TOKENS = list(range(40, 70))
# An f16 cache rounds differently with every split of a prompt; threads wait for each other where cores are busy.
EXACT = {"kv_type": "f32", "flash_attention": False, "n_threads": 1}


@pytest.fixture(scope="module")
def model(ggufs):
    with Model.load(ggufs / "base.gguf") as model:
        yield model


def evaluated(model: Model, tokens: list[int], **options) -> np.ndarray:
    """Logits after each token, from a context of their own."""
    with model.open(ContextOptions(n_ctx=512, n_outputs=len(tokens), **EXACT | options)) as context:
        context.submit([Rows(0, tokens, len(tokens))])
        return context.logits().copy()


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


def test_different_prefixes_give_different_logits(model):
    """What the other tests compare is no constant."""
    rows = evaluated(model, TOKENS)
    assert np.abs(rows[0] - rows[1]).max() > 1
    assert np.abs(evaluated(model, [7, *TOKENS])[1:] - rows).max() > 0.1


def test_logits_are_a_view_of_llama_cpps_memory(model):
    with model.open(ContextOptions(n_ctx=64, n_outputs=3, **EXACT)) as context:
        context.submit([Rows(0, TOKENS[:5], 3)])
        logits = context.logits()
        assert logits.dtype == np.float32
        assert logits.shape == (3, model.n_vocab)
        pointer = llama_cpp.llama_get_logits(context.handle)
        assert logits.ctypes.data == ctypes.cast(pointer, ctypes.c_void_p).value
        assert np.shares_memory(logits, context.logits())


def test_outputs_are_the_last_rows_in_batch_order(model):
    with model.open(ContextOptions(n_ctx=256, n_seq=3, n_outputs=7, **EXACT)) as context:
        context.submit([Rows(2, TOKENS[:9], 2), Rows(0, TOKENS[3:7], 4), Rows(1, TOKENS[:1], 1)])
        logits = context.logits()
        assert_same(logits[:2], evaluated(model, TOKENS[:9])[-2:])
        assert_same(logits[2:6], evaluated(model, TOKENS[3:7]))
        assert_same(logits[6:], evaluated(model, TOKENS[:1]))


def test_sequences_of_different_lengths_in_one_batch_equal_each_alone(model):
    prompts = [TOKENS[: 3 + 5 * index] for index in range(5)]
    with model.open(ContextOptions(n_ctx=512, n_seq=5, **EXACT)) as context:
        context.submit([Rows(index, prompt) for index, prompt in enumerate(prompts)])
        for index, row in enumerate(context.logits()):
            assert_same(row, evaluated(model, prompts[index])[-1])
        context.submit([Rows(index, [50 + index]) for index in (4, 1, 3)])
        for index, row in zip((4, 1, 3), context.logits(), strict=True):
            assert_same(row, evaluated(model, [*prompts[index], 50 + index])[-1])
        assert [context.length(index) for index in range(5)] == [3, 9, 13, 19, 24]


@pytest.mark.parametrize("n_batch", [1, 3, 7, 16])
def test_a_prompt_longer_than_a_batch_gives_the_same_logits(model, n_batch):
    with model.open(
        ContextOptions(n_ctx=128, n_seq=2, n_outputs=3, n_batch=n_batch, n_ubatch=n_batch, **EXACT)
    ) as context:
        context.submit([Rows(0, TOKENS, 2), Rows(1, TOKENS[4:20])])
        logits = context.logits()
        assert_same(logits[:2], evaluated(model, TOKENS)[-2:])
        assert_same(logits[2], evaluated(model, TOKENS[4:20])[-1])


def test_more_rows_of_logits_than_a_batch_has_tokens(model):
    with model.open(ContextOptions(n_ctx=128, n_outputs=8, n_batch=2, n_ubatch=1, **EXACT)) as context:
        context.submit([Rows(0, TOKENS[:10], 8)])
        assert_same(context.logits(), evaluated(model, TOKENS[:10])[-8:])


def test_a_batch_without_outputs_only_fills_the_cache(model):
    with model.open(ContextOptions(n_ctx=64, **EXACT)) as context:
        context.submit([Rows(0, TOKENS[:4], 0)])
        assert context.logits().shape == (0, model.n_vocab)
        context.submit([Rows(0, TOKENS[4:6])])
        assert_same(context.logits(), evaluated(model, TOKENS[:6])[-1:])


def test_rewind_then_continue_equals_fresh(model):
    with model.open(ContextOptions(n_ctx=128, **EXACT)) as context:
        context.submit([Rows(0, TOKENS)])
        assert context.rewind(0, 11) == 11
        assert context.length(0) == 11
        context.submit([Rows(0, [99, 98])])
        assert_same(context.logits()[0], evaluated(model, [*TOKENS[:11], 99, 98])[-1])
        assert context.rewind(0, 500) == 13, "there is no more than there is"
        assert context.rewind(0, 0) == 0
        context.submit([Rows(0, TOKENS[:2])])
        assert_same(context.logits()[0], evaluated(model, TOKENS[:2])[-1])


def test_a_copied_sequence_goes_its_own_way(model):
    with model.open(ContextOptions(n_ctx=256, n_seq=2, **EXACT)) as context:
        context.submit([Rows(0, TOKENS), Rows(1, [5, 6, 7])])
        context.copy(0, 1)
        assert context.length(1) == len(TOKENS)
        context.submit([Rows(1, [80]), Rows(0, [81])])
        rows = context.logits()
        assert_same(rows[0], evaluated(model, [*TOKENS, 80])[-1])
        assert_same(rows[1], evaluated(model, [*TOKENS, 81])[-1])
        context.rewind(0, 2)
        context.submit([Rows(1, [82])])
        assert_same(context.logits()[0], evaluated(model, [*TOKENS, 80, 82])[-1])
        context.copy(1, 1)
        assert context.length(1) == len(TOKENS) + 2
        context.submit([Rows(1, [83])])
        assert_same(context.logits()[0], evaluated(model, [*TOKENS, 80, 82, 83])[-1])


def test_a_token_that_does_not_exist_is_an_error_and_changes_nothing(model):
    with model.open(ContextOptions(n_ctx=128, n_seq=2, n_batch=8, **EXACT)) as context:
        context.submit([Rows(0, TOKENS[:5]), Rows(1, TOKENS[:3])])
        with pytest.raises(EvaluationError, match=r"base\.gguf"):
            # The wrong token comes in the third chunk: the first two are undone.
            context.submit([Rows(0, [*TOKENS[5:25], 10**6]), Rows(1, [8])])
        assert [context.length(0), context.length(1)] == [5, 3]
        context.submit([Rows(0, TOKENS[5:7]), Rows(1, [9])])
        assert_same(context.logits()[0], evaluated(model, TOKENS[:7])[-1])
        assert_same(context.logits()[1], evaluated(model, [*TOKENS[:3], 9])[-1])


def test_too_many_outputs_are_refused(model):
    with model.open(ContextOptions(n_ctx=64, n_outputs=2, **EXACT)) as context:
        with pytest.raises(UsageError, match="3 rows of logits"):
            context.submit([Rows(0, TOKENS[:5], 3)])
        for tokens, outputs in (([1], 2), ([], 1)):
            with pytest.raises(UsageError, match="than there are new tokens"):
                context.submit([Rows(0, tokens, outputs)])
        assert context.length(0) == 0


def test_overflow_is_refused_before_anything_is_evaluated(model):
    with model.open(ContextOptions(n_ctx=64, n_seq=2, **EXACT)) as context:
        room = context.n_ctx
        context.submit([Rows(0, [1] * (room - 10)), Rows(1, [1] * 5)])
        with pytest.raises(ContextOverflowError, match=f"{room + 1} tokens"):
            context.submit([Rows(0, [1] * 11), Rows(1, [1] * 3)])
        assert [context.length(0), context.length(1)] == [room - 10, 5]
        context.submit([Rows(0, [1] * 10), Rows(1, [1] * (room - 5))])  # each sequence has a room of its own


def test_a_closed_context_says_so(model):
    context = model.open(ContextOptions(n_ctx=64))
    context.close()
    context.close()
    for use in (
        lambda: context.submit([Rows(0, [1])]),
        context.logits,
        lambda: context.rewind(0, 0),
        lambda: context.copy(0, 0),
    ):
        with pytest.raises(EvaluationError, match="closed"):
            use()
    context.abort()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model that one thread cannot run over 3,000 tokens in less than a second."""
    shape = Shape(n_embd=512, n_layer=5, n_head=8, n_head_kv=8, n_ff=1536, n_ctx=4096)
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    with Model.load(write_model(path, ModelSpec(shape, quantization="F16"))) as model:
        yield model


def test_abort_from_another_thread(slow):
    with slow.open(ContextOptions(n_ctx=4096, n_batch=4096, n_ubatch=4096, **EXACT)) as context:
        context.submit([Rows(0, TOKENS[:3])])
        aborted_at = []

        def abort() -> None:
            aborted_at.append(time.perf_counter())
            context.abort()

        timer = threading.Timer(0.2, abort)
        timer.start()
        with pytest.raises(Cancelled):
            context.submit([Rows(0, [65 + index % 50 for index in range(3000)])])
        print(f"\nstopped {1000 * (time.perf_counter() - aborted_at[0]):.0f} ms after abort")
        assert time.perf_counter() - aborted_at[0] < 3
        timer.join()
        assert context.length(0) == 3
        with pytest.raises(Cancelled):
            context.submit([Rows(0, [1])])
        with pytest.raises(Cancelled):
            context.logits()
        context.resume()
        context.submit([Rows(0, TOKENS[3:5])])
        assert_same(context.logits()[0], evaluated(slow, TOKENS[:5])[-1])


@pytest.mark.parametrize("kv_type", sorted(KV_TYPES))
def test_every_kv_type(tmp_path, kv_type):
    """A quantised cache needs rows of whole blocks, 32 values, and has an error of its own."""
    path = write_model(tmp_path / "m.gguf", ModelSpec(Shape(n_embd=64, n_head=2, n_head_kv=2, n_layer=1)))
    with Model.load(path) as model:
        exact = evaluated(model, TOKENS, kv_type="f32")
        assert_same(evaluated(model, TOKENS, kv_type="f16"), exact, 0.02)
        found = evaluated(model, TOKENS, kv_type=kv_type, flash_attention="auto")
        assert np.abs(found - exact).mean() < (0.3 if "q4" in kv_type else 0.2 if "q5" in kv_type else 0.05)
        if kv_type not in ("f32", "f16", "bf16"):
            assert np.abs(found - exact).max() > 1e-5, "the type was not used"


@pytest.mark.parametrize("kv_type", sorted(set(KV_TYPES) - set(PLAIN_KV_TYPES)))
def test_a_kv_type_that_does_not_suit_the_heads_is_reported_as_such(tmp_path, kv_type):
    path = write_model(tmp_path / "m.gguf", ModelSpec(Shape(n_embd=48, n_head=3, n_head_kv=3, n_layer=1)))
    reported = (
        f'kv_type = "{kv_type}" does not suit {path}: it holds numbers in blocks of 32, and the model\'s heads have'
    )
    with Model.load(path) as model:
        with pytest.raises(UnsupportedModelError, match=re.escape(reported)):
            model.open(ContextOptions(n_ctx=64, kv_type=kv_type))
        with pytest.raises(UnsupportedModelError, match="only with flash attention"):
            model.open(ContextOptions(n_ctx=64, kv_type=kv_type, flash_attention=False))
    with pytest.raises(UnsupportedModelError, match=re.escape(reported)):  # before anything is loaded
        estimate.estimate_memory(path, estimate.EstimateOptions(64, kv_type=kv_type))


def test_kv_types_are_those_of_recipes(model):
    assert set(KV_TYPES) == set(RECIPE_KV_TYPES)
    with pytest.raises(UsageError, match="q3_0"):
        model.open(ContextOptions(n_ctx=64, kv_type="q3_0"))


@pytest.mark.parametrize("flash_attention", ["auto", True, False])
def test_flash_attention(model, flash_attention):
    expected = evaluated(model, TOKENS, flash_attention=False, kv_type="f32")
    assert_same(evaluated(model, TOKENS, flash_attention=flash_attention), expected, 0.02)


def test_a_context_has_room_for_so_many_sequences(model):
    with pytest.raises(UsageError, match="300"):
        model.open(ContextOptions(n_ctx=64, n_seq=300))


@pytest.mark.parametrize(("mmap", "mlock"), [(True, False), (False, False), (True, True), (False, True)])
def test_load_modes(ggufs, model, mmap, mlock):
    with Model.load(ggufs / "base.gguf", mmap=mmap, mlock=mlock) as other:
        assert_same(evaluated(other, TOKENS), evaluated(model, TOKENS))


def test_facts_about_a_model(ggufs, model):
    assert (model.n_layer, model.n_ctx_train, model.n_vocab) == (3, 512, 265)
    assert model.size == 4 * model.n_params
    assert model.metadata["general.architecture"] == "llama"
    assert model.chat_template is None
    assert model.capabilities.rewinds
    assert not model.capabilities.caps_logits
    with Model.load(ggufs / "tuned.gguf") as tuned:
        assert tuned.chat_template
        assert "<|im_start|>" in tuned.chat_template


def test_long_metadata_is_whole(tmp_path):
    text = "é" * 5000
    path = write_model(tmp_path / "m.gguf", ModelSpec(metadata={"general.description": text}))
    with Model.load(path) as model:
        assert model.metadata["general.description"] == text


def test_load_progress(ggufs):
    seen = []
    Model.load(ggufs / "base.gguf", progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert 0 <= seen[0] <= 1


@pytest.mark.parametrize("after", [0, 1, -1])
def test_a_load_is_cancelled_wherever_progress_says_so(ggufs, after):
    fractions = []
    Model.load(ggufs / "base.gguf", progress=fractions.append).close()
    calls = iter(range(len(fractions)))
    stop = range(len(fractions))[after]
    with pytest.raises(Cancelled):
        Model.load(ggufs / "base.gguf", progress=lambda _: next(calls) != stop)


def test_an_exception_in_progress_comes_out_of_load(ggufs):
    def progress(fraction: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Model.load(ggufs / "base.gguf", progress=progress)


def test_files_that_are_no_models(tmp_path, ggufs):
    with pytest.raises(ModelNotFoundError, match="none"):
        Model.load(tmp_path / "none.gguf")
    with pytest.raises(EftError, match=tmp_path.name):
        Model.load(tmp_path)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((ggufs / "base.gguf").read_bytes()[:20_000])
    with pytest.raises(ModelFileError, match=r"damaged\.gguf"):
        Model.load(damaged)


def test_llama_cpp_speaks_through_logging_only(ggufs, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "eft_local"), Model.load(ggufs / "base.gguf") as model:
        model.open(ContextOptions(n_ctx=64)).close()
    assert capfd.readouterr() == ("", "")
    assert any("llama" in record.message for record in caplog.records)


def test_a_recurrent_model_starts_over_where_others_rewind(ggufs, caplog):
    with Model.load(ggufs / "mamba.gguf") as model:
        assert not model.capabilities.rewinds
        with model.open(ContextOptions(n_ctx=256, n_seq=2, **EXACT)) as context:
            context.submit([Rows(0, TOKENS), Rows(1, TOKENS[:6])])
            first = context.logits().copy()
            assert context.rewind(0, len(TOKENS)) == len(TOKENS), "nothing to drop"
            assert "rewind" not in caplog.text
            assert context.rewind(0, 5) == 0
            assert "mamba.gguf cannot rewind" in caplog.text
            assert [context.length(0), context.length(1)] == [0, 6]
            context.submit([Rows(0, TOKENS)])
            assert_same(context.logits()[0], first[0])
            context.submit([Rows(1, TOKENS[6:])])
            assert_same(context.logits()[0], first[0])


def test_vocabulary(model, ggufs):
    vocabulary = model.vocabulary
    assert vocabulary.n_tokens == 265 == len(vocabulary.texts()) == len(vocabulary.attributes())
    assert vocabulary.bos == 262
    assert vocabulary.add_bos
    assert vocabulary.text(262) == "<|endoftext|>"
    assert vocabulary.piece(262) == b""
    assert [token for token in range(265) if vocabulary.is_eog(token)] == [262, 264]
    text = "hello the\nnaïve 漢字 <|im_end|>"
    for parse_special in (False, True):
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=parse_special)
        assert (264 in tokens) == parse_special
        written = b"".join(map(vocabulary.piece, tokens)).decode()
        assert written == (text.removesuffix("<|im_end|>") if parse_special else text)
        assert vocabulary.tokenize(text, add_special=True, parse_special=parse_special) == [262, *tokens]
    assert vocabulary.tokenize("", add_special=False, parse_special=False) == []
    with Model.load(ggufs / "base-spm.gguf") as spm:
        assert spm.vocabulary.texts()[3 + 0x0A] == b"<0x0A>"
        assert spm.vocabulary.piece(3 + 0x0A) == b"\n"


def test_a_very_long_piece(tmp_path):
    long = "x" * 300
    tokens = bpe(special=("<|a|>", long))
    with Model.load(write_model(tmp_path / "m.gguf", ModelSpec(tokens=tokens))) as model:
        assert model.vocabulary.text(len(tokens.texts) - 1) == long


def test_a_path_with_other_letters(tmp_path: Path, ggufs):
    path = tmp_path / "модель ü.gguf"
    path.symlink_to(ggufs / "small.gguf")
    Model.load(path).close()


def test_the_context_is_a_context_manager(model):
    with Context(model, ContextOptions(n_ctx=64)) as context:
        assert context.n_ctx >= 64
    with pytest.raises(EvaluationError):
        context.logits()
