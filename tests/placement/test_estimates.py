"""What is planned beside the buffers that llama.cpp then makes, for models of several architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eft_local import locations
from eft_local.backends.llamacpp import estimate, kernels
from eft_local.backends.llamacpp.estimate import EstimateOptions, estimate_memory
from eft_local.bench.studies.families import FAMILIES, write_family
from eft_local.bench.studies.gguf_factory import bpe
from eft_local.bench.studies.plan import ALLOWED, Case, compared, planned
from eft_local.placement.survey import SCORED_ROWS, SHORT, RoleFiles, loads
from eft_local.recipe.roles import Placement
from tests.helpers.mamba_factory import write_mamba

NARROW = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_head_kv": 2, "n_ff": 1024, "n_ctx": 4096}
CASES = (
    Case("llama-0.5b"),
    Case("llama-0.5b", "Q4_K", context=1000, n_seq=2, placement=Placement(kv_type="q8_0")),
    Case("llama-0.5b", "Q8_0", placement=Placement(flash_attention=False, ubatch=512, kv_type="f32")),
    Case("llama-0.5b", placement=Placement(mmap=True)),
    Case("llama-7b", "Q4_0", placement=Placement(kv_type="q4_0", flash_attention=True)),
    Case("qwen2-0.5b", "Q4_0", 20_000),
    Case("qwen2-0.5b", "Q6_K", 20_000),
    Case("qwen3-1.7b", "F16", 20_000, placement=Placement(kv_type="q5_1")),
    Case("gemma2-2b", "Q8_0", 20_000),
    Case("gemma3-1b", "IQ4_NL", 20_000),
    Case("qwen3moe", "Q4_0"),
    Case("deepseek2", "F16"),
    Case("lfm2-350m", "F16", n_seq=3),
)


def narrow(name):
    family = FAMILIES[name]
    return replace(family, shape=replace(family.shape, **NARROW, head=128 if family.shape.head else None))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_what_llama_cpp_makes(case, tmp_path):
    path = write_family(tmp_path / "model.gguf", narrow(case.family), case.n_vocab, case.quantization)
    row = compared(path, case)
    assert all(size > 0 for size in row["made"].values())
    assert {name: off for name, off in row["off"].items() if abs(off) > ALLOWED} == {}


def test_rows_of_logits_are_counted_as_many_as_will_be_requested(tmp_path):
    path = write_family(tmp_path / "model.gguf", narrow("llama-0.5b"), 20_000)
    figures = estimate_memory(path, EstimateOptions(256, n_seq=2, n_outputs=16), trusted=True).on_cpu[0]
    assert figures.outputs == pytest.approx(16 * 20_000 * 4, rel=0.05)


def test_a_recurrent_state_does_not_grow_with_the_context(tmp_path):
    path = write_mamba(tmp_path / "mamba.gguf", bpe())
    short, long = (estimate_memory(path, EstimateOptions(cells, n_seq=3), trusted=True).on_cpu for cells in (256, 512))
    assert short[0].cache == long[-1].cache == 0
    assert short[0].state == long[-1].state > 0
    assert (
        planned(path, Case("mamba", context=512)).total.cache
        == estimate_memory(path, EstimateOptions(512), trusted=True).on_cpu[0].state
    )


def test_answers_are_the_same_from_a_child_and_are_kept(tmp_path, ggufs, monkeypatch):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    here = estimate_memory(ggufs / "base.gguf", EstimateOptions(300, n_outputs=4), trusted=True)
    (kept,) = (locations.cache() / "estimates").iterdir()
    kept.unlink()
    assert estimate_memory(ggufs / "base.gguf", EstimateOptions(300, n_outputs=4)) == here
    monkeypatch.setattr(estimate, "_measure_in_child", None)  # it is not estimated again
    assert estimate_memory(ggufs / "base.gguf", EstimateOptions(300, n_outputs=4)) == here
    kept.write_text("{}")
    with pytest.raises(TypeError):  # what is broken is asked again
        estimate_memory(ggufs / "base.gguf", EstimateOptions(300, n_outputs=4))


def test_a_longer_context_is_never_underestimated_between_two_measured_ones(ggufs):
    """Straight lines between the rungs: the longest context that fits is looked for on them."""
    curve = estimate_memory(ggufs / "base.gguf", EstimateOptions(256), trusted=True).on_cpu
    for cells in (512, 768, 2048, 3072):
        exact = estimate.at(estimate_memory(ggufs / "base.gguf", EstimateOptions(cells), trusted=True).on_cpu, cells)
        line = estimate.at(curve, cells)
        assert line.cache >= exact.cache - 6000  # a log line's last digit
        assert line.host >= exact.host - 6000


def test_a_recipe_of_short_contexts_knows_what_long_ones_take(tmp_path, monkeypatch):
    """Those go without llama.cpp's flash attention on a CPU; compute buffers are larger: one curve tells both."""
    monkeypatch.setattr(kernels, "attends", lambda widths: False)
    path = write_family(tmp_path / "model.gguf", narrow("llama-0.5b"), 20_000)
    curves = [
        loads({"model": RoleFiles(path, Placement(offload=0))}, context, SCORED_ROWS)[0].contexts[0]
        for context in (256, 4096)
    ]
    for context in (256, SHORT, SHORT + 256, 2048, 4096):
        attention = "auto" if context <= SHORT else False
        options = EstimateOptions(context, n_outputs=SCORED_ROWS, flash_attention=attention)
        made = estimate.at(estimate_memory(path, options, trusted=True).on_cpu, context)
        for curve in curves:
            assert curve.figures(context, 0) == made
    plain, flash = (
        estimate_memory(path, EstimateOptions(4096, flash_attention=attention), trusted=True).on_cpu[-1].host
        for attention in (False, "auto")
    )
    assert plain > 1.2 * flash, "it makes a difference"
