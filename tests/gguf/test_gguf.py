"""What `check_gguf` says about sound, damaged and foreign files."""

from __future__ import annotations

import signal
import struct
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from eft_local.backends.llamacpp import Model, file_probe, model
from eft_local.backends.llamacpp.file_probe import probe_file
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, spm, write_model
from eft_local.errors import Cancelled, ModelFileError, ModelNotFoundError, OutOfMemoryError
from eft_local.gguf.checks import check_gguf
from eft_local.gguf.reader import read_gguf


@pytest.fixture
def sound(tmp_path):
    return write_model(tmp_path / "sound.gguf")


def refusal(path):
    with pytest.raises(ModelFileError) as raised:
        check_gguf(path)
    assert str(raised.value).startswith(f"{path} ")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def changed(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def with_number(path, key, value):
    """Overwrite a metadata number in place, whatever it means."""
    field = GGUFReader(path, "r+").fields[key]
    field.parts[field.data[0]][0] = value
    return path


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(),
        ModelSpec(tokens=spm(), template=CHATML),
        ModelSpec(shape=Shape(tied=True), tokens=bpe().padded(9), quantization="Q8_0"),
        ModelSpec(shape=Shape(n_embd=896, n_layer=4, n_head=14, n_head_kv=2, n_ff=4864), zero=True),
        ModelSpec(tokens=replace(bpe(), bos=None)),
        ModelSpec(tokens=replace(spm(), bos=(1 << 32) - 1)),  # a converter's "none"
    ],
)
def test_sound_files_pass(tmp_path, spec):
    check_gguf(write_model(tmp_path / "model.gguf", spec))


def test_the_header_is_read_as_gguf_reads_it(sound):
    ours, theirs = read_gguf(sound), GGUFReader(sound)
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        if isinstance(value, list):
            assert [text.decode() for text in value] == expected
        elif isinstance(value, np.ndarray):
            assert value.tolist() == expected
        else:
            assert value == expected
    assert len(ours.metadata) == theirs.fields["GGUF.kv_count"].contents()
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(tensor.shape.tolist())
        assert entry.size() == tensor.n_bytes
    assert len(ours.tensors) == len(theirs.tensors)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no file .*nothing\.gguf"):
        check_gguf(tmp_path / "nothing.gguf")


def test_a_folder(tmp_path):
    assert "is not a file" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"G", b"GGUF", b"PK\x03\x04" + bytes(100), b"GGUF" + bytes(100), b"\xff" * 99])
def test_files_that_are_not_gguf(tmp_path, data):
    path = tmp_path / "foreign.gguf"
    path.write_bytes(data)
    refusal(path)


def test_every_truncation_is_refused(sound):
    data = sound.read_bytes()
    end = int(GGUFReader(sound).data_offset)
    for size in [*range(0, end, 97), *range(end, len(data) - 32, 4099)]:
        sound.write_bytes(data[:size])
        refusal(sound)


def test_other_byte_order_and_other_versions(sound):
    data = sound.read_bytes()
    for version in (b"\0\0\0\3", struct.pack("<I", 1), struct.pack("<I", 4)):
        sound.write_bytes(data[:4] + version + data[8:])
        assert "version" in refusal(sound)


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [1 << 63, (1 << 64) - 1, 1 << 40, 10_000])
def test_counts_that_do_not_fit(sound, at, count):
    data = bytearray(sound.read_bytes())
    data[at : at + 8] = struct.pack("<Q", count)
    sound.write_bytes(data)
    refusal(sound)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_count", 0, "block_count is 0"),
        ("block_count", 513, "block_count is 513"),
        ("embedding_length", 0, "embedding_length is 0"),
        ("context_length", 0, "context_length is 0"),
        ("attention.head_count", 0, "no attention heads"),
        ("attention.head_count", 3, "cannot share"),
        ("attention.head_count_kv", 3, "cannot share"),
        ("attention.head_count", 16, "dimension_count is 8"),
        ("attention.head_count_kv", 4, r"attn_k.weight' has the shape \(32, 16\)"),
        ("rope.dimension_count", 6, "must be one even number"),
        ("rope.dimension_count", 0, "dimension_count is 0"),
        ("attention.layer_norm_rms_epsilon", -1.0, "epsilon is -1.0"),
        ("attention.layer_norm_rms_epsilon", np.nan, "epsilon is nan"),
        ("rope.freq_base", np.inf, "freq_base is inf"),
    ],
)
def test_impossible_hyper_parameters(sound, key, value, words):
    with_number(sound, f"llama.{key}", value)
    with pytest.raises(ModelFileError, match=words):
        check_gguf(sound)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.expert_count": 2000}, "expert_count is 2000"),
        ({"llama.expert_count": 4}, "0 of 4 experts"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 3}, "3 of 2 experts"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 1, "llama.expert_group_count": 3}, "3 groups"),
        ({"llama.rope.scaling.type": "stretch"}, "stretch"),
        ({"general.type": "imatrix"}, "no language model"),
        ({"llama.attention.value_length": 4}, "must be one even number"),
        ({"general.alignment": 24}, "not a power of two"),
    ],
)
def test_impossible_extra_keys(tmp_path, metadata, words):
    path = write_model(tmp_path / "model.gguf", ModelSpec(metadata=metadata))
    assert words in refusal(path)


def test_duplicates(sound):
    data = sound.read_bytes()
    changed(sound, b"llama.rope.freq_base", b"llama.context_length")
    assert "'llama.context_length' occurs twice" in refusal(sound)
    sound.write_bytes(data)
    changed(sound, b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")
    assert "'blk.0.ffn_up.weight' occurs twice" in refusal(sound)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (replace(bpe(), texts=[*bpe().texts[:-1], "a"]), "same text"),
        (replace(bpe(), texts=[*bpe().texts[:-1], "a\0b"]), "same text"),  # to llama.cpp it ends at the NUL
        (replace(bpe(), types=bpe().types[:-1]), "token_type"),
        (replace(spm(), scores=spm().scores[:-1]), "scores"),
        (replace(bpe(), bos=300), "bos_token_id is 300"),
        (replace(spm(), texts=[text.replace("<0x41>", "<0x4 >") for text in spm().texts]), "byte token <0x41>"),
    ],
)
def test_impossible_vocabularies(tmp_path, tokens, words):
    assert words in refusal(write_model(tmp_path / "model.gguf", ModelSpec(tokens=tokens)))


def test_two_empty_tokens_are_reported_apart_by_llama_cpp(tmp_path):
    texts = [*bpe().texts[:-5], "", "", *bpe().texts[-3:]]
    check_gguf(write_model(tmp_path / "model.gguf", ModelSpec(tokens=replace(bpe(), texts=texts))))


@pytest.mark.parametrize(("kind", "words"), [(26, "weights cannot have"), (12, "blocks"), (99, None)])
def test_tensor_types(sound, kind, words):
    field = next(t.field for t in GGUFReader(sound, "r+").tensors if t.name == "blk.0.ffn_up.weight")
    field.parts[4][0] = kind
    if words is None:  # newer than our table: llama.cpp decides
        check_gguf(sound)
    else:
        assert words in refusal(sound)


def test_shards_are_checked_together(tmp_path):
    first, second = (tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2))
    write_model(first, ModelSpec(metadata={"split.count": 2}))
    with pytest.raises(ModelNotFoundError, match="model-00002-of-00002"):
        check_gguf(first)
    for number, name, words in [(1, "extra", None), (0, "extra", "split.no"), (1, "output.weight", "in two of")]:
        writer = GGUFWriter(second, "llama")
        writer.add_uint16("split.no", number)
        writer.add_tensor(name, np.zeros((4, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if words is None:
            check_gguf(first)
        else:
            assert words in refusal(first)
    write_model(second, ModelSpec(metadata={"split.count": 2}))
    assert f"is part 2 of a model in 2 files; name the first, {first}" in refusal(second)
    assert "download" not in refusal(second)
    assert "not named" in refusal(first.rename(tmp_path / "model.gguf"))
    assert refusal(second).endswith(f"name the first, {first}, which is missing")


def test_a_probe_passes_sound_files_and_remembers_them(sound, tmp_path):
    passed = tmp_path / "passed"
    probe_file(sound, passed)
    assert len(list(passed.iterdir())) == 1
    probe_file(sound, passed)
    assert len(list(passed.iterdir())) == 1


def test_a_probe_catches_a_crash(sound, tmp_path):
    with_number(sound, "llama.block_count", 513)  # llama.cpp asserts that there are at most 512
    with pytest.raises(ModelFileError, match=r"crashes llama\.cpp .*GGML_ASSERT"):
        probe_file(sound, tmp_path / "passed")
    assert not (tmp_path / "passed").exists()


def test_a_crash_is_caught_when_a_model_is_loaded(sound, monkeypatch):
    with_number(sound, "llama.block_count", 513)
    monkeypatch.setattr(model, "check_gguf", lambda path: None)  # as if nobody had thought of it
    for _ in range(2):  # what crashed is not remembered as sound
        with pytest.raises(ModelFileError, match=r"crashes llama\.cpp .*GGML_ASSERT"):
            Model.load(sound)


def test_a_probe_can_be_cancelled(sound):
    requested = []
    with pytest.raises(Cancelled):
        Model.load(sound, progress=lambda fraction: bool(requested.append(fraction)))
    assert requested == [0.0]  # before llama.cpp was asked to load


def test_a_probe_that_hangs_ends(sound, monkeypatch):
    monkeypatch.setattr(file_probe, "_PATIENCE", -1e9)
    with pytest.raises(ModelFileError, match="hangs"):
        probe_file(sound)


def test_a_probe_that_is_killed_says_so(sound, monkeypatch):
    monkeypatch.setattr(file_probe, "run_child", lambda *_: file_probe.Ended(-signal.SIGKILL))
    with pytest.raises(OutOfMemoryError, match="killed"):
        probe_file(sound)
