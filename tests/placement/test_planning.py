"""The planner: nothing beyond what is free, small models first, numbers obeyed, more memory never worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eft_local.backends.llamacpp import kernels
from eft_local.backends.llamacpp.estimate import Estimate, Figures, at
from eft_local.errors import OutOfMemoryError
from eft_local.gguf.weights import Weights
from eft_local.machine.memory import ADDRESS_SPACE, CGROUP, RAM, Device
from eft_local.placement.planner import ContextEstimate, Load, Plan, gpus, kept, longest_context, plan
from eft_local.placement.shortage import checked_plan, refusal, remedies
from eft_local.placement.speed import seconds_per_token, tokens_per_second
from eft_local.placement.survey import SHORT, RoleFiles, resolved_placement
from eft_local.recipe.roles import Placement

GB = 10**9
MB = 10**6


def figures(per_cell: int, host: int, gpu: int, *, grows: int = 0) -> tuple[Figures, ...]:
    return tuple(
        Figures(cells, cells * per_cell, 0, MB, host + grows * cells, gpu + grows * cells if gpu else 0)
        for cells in (256, 4096, 65536)
    )


def estimate(
    layers: int = 10,
    layer: int = 100 * MB,
    *,
    edge: int = 50 * MB,
    per_cell: int = 10_000,
    repacks: bool = False,
    tied: bool = False,
    trained: int = 65536,
    head: int = 128,
) -> Estimate:
    """A model of so many layers of so many bytes."""
    weights = Weights(
        layers=(layer,) * layers,
        input=edge,
        output=0 if tied else edge,
        tied=edge if tied else 0,
        table_kind=2,
        active=layers * layer,
        active_output=edge,
        trained=trained,
        heads=(head,),
        sharing=2,
    )
    return Estimate(
        weights=weights,
        repacks=repacks,
        copied=edge if tied and repacks else 0,
        on_cpu=figures(per_cell, 10 * MB, 0),
        on_gpu=figures(per_cell, 5 * MB, 20 * MB, grows=100),
        on_both=figures(per_cell, 15 * MB, 30 * MB, grows=100),
    )


def load(name: str, needed: Estimate | None = None, **changes: object) -> Load:
    return replace(Load((ContextEstimate((name,), 1, needed or estimate()),)), **changes)


def cpu(free: int = 64 * GB, limit: str = RAM) -> Device:
    return Device("CPU", "a processor", "cpu", free, free, limit)


def gpu(free: int, name: str = "GPU0", kind: str = "gpu") -> Device:
    return Device(name, "a GPU", kind, free, free)


BASE = estimate(layers=40, layer=200 * MB, edge=200 * MB)
SMALL = estimate(layers=10, layer=50 * MB)


def trio(**base: object) -> list[Load]:
    return [load("base", BASE, **base), load("antiexpert", SMALL), load("tuned", SMALL)]


def on_gpus(planned: Plan) -> dict[str, int]:
    return {placed.load.roles[0]: placed.on_gpu for placed in planned.placed}


def test_without_a_gpu_all_is_in_ram() -> None:
    planned = plan(trio(), [cpu()], 4096)
    assert planned.fits
    assert on_gpus(planned) == {"base": 0, "antiexpert": 0, "tuned": 0}
    weights = sum(each.load.estimate.weights.total for each in planned.placed)
    assert planned.used(planned.devices[0]).weights == weights
    assert planned.used(planned.devices[0]).cache == 3 * 4096 * 10_000


def test_a_large_gpu_takes_everything() -> None:
    planned = plan(trio(), [cpu(), gpu(24 * GB)], 4096)
    assert on_gpus(planned) == {"base": 41, "antiexpert": 11, "tuned": 11}
    in_ram = planned.used(planned.devices[0])
    assert in_ram.weights == sum(each.load.estimate.weights.input for each in planned.placed)  # embeddings stay
    assert in_ram.cache == 0


def test_small_models_are_whole_before_the_base_gets_a_layer() -> None:
    counts = [on_gpus(plan(trio(), [cpu(), gpu(size)], 4096)) for size in range(0, 4 * GB, 100 * MB)]
    assert any(count["base"] for count in counts)
    for count in counts:
        if count["base"]:
            assert count["antiexpert"] == count["tuned"] == 11
        if count["tuned"]:
            assert count["antiexpert"] == 11


def test_the_base_takes_what_is_left_with_its_cache() -> None:
    device = gpu(6 * GB)
    planned = plan(trio(), [cpu(), device], 4096)
    placed = planned.of("base")
    assert 0 < placed.on_gpu < 41
    use = placed.uses["GPU0"]
    assert use.weights == (placed.on_gpu - 1) * 200 * MB + 200 * MB  # the output is the first of them
    assert use.cache == 4096 * 10_000 * (placed.on_gpu - 1) // 40
    left = device.free - kept(device) - planned.used(device).total
    assert 0 <= left < 200 * MB + 4096 * 10_000 // 40 + 1


@pytest.mark.parametrize("offload", [0, 1, 7, 41, 99, -1])
def test_a_number_is_obeyed(offload: int) -> None:
    planned = plan(trio(offload=offload), [cpu(), gpu(24 * GB)], 4096)
    assert planned.of("base").on_gpu == {99: 41, -1: 41}.get(offload, offload)
    assert planned.fits
    assert on_gpus(plan(trio(offload=offload), [cpu()], 4096))["base"] == 0  # there is none


def test_a_number_that_does_not_fit_is_a_shortage_of_that_device() -> None:
    planned = plan(trio(offload=-1), [cpu(), gpu(6 * GB)], 4096)
    assert planned.of("base").on_gpu == 41
    assert [shortage.device.name for shortage in planned.shortages] == ["GPU0"]
    assert on_gpus(planned)["tuned"] == 0  # what the recipe says comes before what we choose
    with pytest.raises(
        OutOfMemoryError, match=r'on GPU0 are needed, 6\.0 GB are free.*; set offload = "auto" for base'
    ):
        checked_plan(trio(offload=-1), [cpu(), gpu(6 * GB)], 4096)


def test_a_gpu_that_does_not_reports_its_memory_is_used_if_the_recipe_says_so() -> None:
    silent = Device("S", "", "gpu", 0, 0)
    assert on_gpus(plan(trio(), [cpu(), silent], 4096)) == {"base": 0, "antiexpert": 0, "tuned": 0}
    planned = plan(trio(offload=7), [cpu(), silent], 4096)
    assert planned.of("base").on_gpu == 7
    assert planned.fits


def test_small_models_share_the_roomiest_gpu_and_a_large_one_is_spread() -> None:
    planned = plan(trio(), [cpu(), gpu(4 * GB, "A"), gpu(8 * GB, "B")], 4096)
    assert planned.of("antiexpert").layers == (0, 11)
    assert planned.of("tuned").layers == (0, 11)
    first, second = planned.of("base").layers
    assert first > 0
    assert second > 0
    assert planned.fits
    use = planned.of("base").uses
    assert use["A"].weights == first * 200 * MB  # the output is on the last GPU
    assert use["B"].weights == second * 200 * MB


def test_a_gpu_in_the_machine_s_memory_takes_from_it() -> None:
    shared = gpu(12 * GB, "MTL0")
    planned = plan(trio(), [cpu(12 * GB), shared], 4096)
    assert planned.fits
    assert on_gpus(planned)["base"] == 41
    assert not plan(trio(), [cpu(8 * GB), shared], 4096).fits
    integrated = gpu(12 * GB, "I", "integrated gpu")
    assert not plan(trio(), [cpu(8 * GB), integrated], 4096).fits
    assert gpus([cpu(), integrated, gpu(GB)]) == (gpu(GB),)


def test_what_the_cpu_reorders_is_read_rather_than_mapped() -> None:
    plain, repacked = load("a", estimate()), load("a", estimate(repacks=True))
    weights = plain.estimate.weights.total
    assert plan([plain], [cpu()], 256).of("a").mmap
    read = plan([repacked], [cpu()], 256)
    assert not read.of("a").mmap
    assert read.used(cpu()).weights == weights
    mapped = plan([replace(repacked, mmap=True)], [cpu()], 256)
    assert mapped.of("a").mmap
    assert mapped.used(cpu()).weights == 2 * weights - 50 * MB  # all but the embeddings twice
    assert plan([repacked], [cpu(), gpu(24 * GB)], 256).of("a").mmap  # a GPU's layers are not reordered
    assert not plan([replace(plain, mmap=False)], [cpu()], 256).of("a").mmap


def test_embeddings_that_are_the_output_too_are_kept_in_both_orders() -> None:
    tied = load("a", estimate(repacks=True, tied=True))
    assert plan([tied], [cpu()], 256).used(cpu()).weights == tied.estimate.weights.total + 50 * MB
    on_gpu = plan([tied], [cpu(), gpu(24 * GB)], 256)
    assert on_gpu.of("a").uses["GPU0"].weights == 1000 * MB + 50 * MB
    assert on_gpu.of("a").uses["CPU"].weights == 50 * MB


def test_a_file_that_is_to_be_mapped_need_not_fit() -> None:
    large = load("a", estimate(layers=100))
    assert not plan([large], [cpu(4 * GB)], 256).fits
    assert plan([replace(large, mmap=True)], [cpu(4 * GB)], 256).fits
    assert not plan([replace(large, mmap=True)], [cpu(4 * GB, ADDRESS_SPACE)], 256).fits
    assert any("mmap = true" in idea for idea in remedies(plan([large], [cpu(4 * GB)], 256)))


def test_roles_that_share_weights_share_them_in_the_plan() -> None:
    two_contexts = Load((ContextEstimate(("small",), 1, SMALL), ContextEstimate(("lora",), 1, SMALL)), adapters=MB)
    both = replace(SMALL, on_cpu=figures(2 * 10_000, 10 * MB, 0), sequences=2)
    one_context = Load((ContextEstimate(("small", "prompted"), 2, both),))
    apart = plan([two_contexts], [cpu()], 4096).used(cpu())
    together = plan([one_context], [cpu()], 4096).used(cpu())
    assert apart.weights == SMALL.weights.total + MB
    assert together.weights == SMALL.weights.total
    assert apart.cache == together.cache == 2 * 4096 * 10_000
    assert apart.compute == 2 * together.compute
    assert plan([one_context], [cpu()], 4096).of("prompted").load is one_context


def test_the_longest_context_fits_and_a_longer_one_does_not() -> None:
    machine = [cpu(11 * GB)]
    longest = longest_context(trio(), machine)
    assert longest % 256 == 0
    assert plan(trio(), machine, longest).fits
    assert not plan(trio(), machine, longest + 256).fits
    assert longest_context(trio(), [cpu(64 * GB)]) == 65536  # what they were trained with
    assert longest_context(trio(), [cpu(2 * GB)]) == 0


def test_the_line_says_what_was_needed_what_is_free_and_three_things_to_try() -> None:
    short = plan(trio(), [cpu(11 * GB)], 65536)
    line = refusal(short)
    (shortage,) = short.shortages
    assert f"{shortage.needed / GB:.1f} GB of memory are needed, 11.0 GB are free" in line
    assert f"set context = {longest_context(trio(), [cpu(11 * GB)])}" in line
    assert "\n" not in line
    for device, word in ((cpu(5 * GB), "close other programs"), (cpu(5 * GB, CGROUP), "container")):
        ideas = remedies(plan(trio(), [device], 4096))
        assert len(ideas) == 3
        assert any(word in idea for idea in ideas)
    assert "address space limit" in refusal(plan(trio(), [cpu(5 * GB, ADDRESS_SPACE)], 4096))
    caches = [load("a", estimate(layers=2, per_cell=10**6))]
    assert any("kv_type" in idea for idea in remedies(plan(caches, [cpu(2 * GB)], 4096)))
    odd = [load("a", estimate(layers=2, per_cell=10**6, head=80))]  # a quantised cache holds blocks of 32
    assert not any("kv_type" in idea for idea in remedies(plan(odd, [cpu(2 * GB)], 4096)))


def test_figures_between_measured_ones_lie_on_a_line_and_are_rounded_up() -> None:
    curve = figures(10, 100, 7, grows=1)
    assert at(curve, 256) == curve[0]
    assert at(curve, 200) == curve[0]  # llama.cpp makes whole multiples of 256
    assert at(curve, 257) == at(curve, 512) == Figures(512, 5120, 0, MB, 612, 519)
    assert at(curve, 65536) == curve[-1]
    assert at(curve, 131072).cache == 1310720  # the line goes on
    assert at(curve[:1], 9999) == curve[0]


def test_speed_is_bytes_by_bandwidth() -> None:
    planned = plan([load("a")], [cpu()], 4096)
    placed = planned.of("a")
    read = 10 * 100 * MB + 50 * MB
    assert seconds_per_token(placed, {"CPU": GB}, 4096) == pytest.approx(read / GB)
    full = seconds_per_token(placed, {"CPU": GB}, 4096, 4096)
    assert full == pytest.approx((read + 4096 * 10_000) / GB)
    assert seconds_per_token(placed, {}, 4096) is None
    assert tokens_per_second(plan(trio(), [cpu()], 4096), {"CPU": GB}) == pytest.approx(
        GB / sum(each.estimate.weights.active + each.estimate.weights.active_output for each in trio())
    )
    split = plan([load("a", offload=6)], [cpu(), gpu(24 * GB)], 4096).of("a")
    assert seconds_per_token(split, {"CPU": GB, "GPU0": 10 * GB}, 4096) == pytest.approx(0.5 + 0.055)
    assert tokens_per_second(plan([load("a", offload=6)], [cpu(), gpu(24 * GB)], 4096), {"CPU": GB}) is None


# Properties

sizes = st.integers(0, 12 * GB)
some_needs = st.builds(
    estimate,
    layers=st.integers(1, 30),
    layer=st.integers(1, 300).map(lambda each: each * MB),
    edge=st.integers(1, 300).map(lambda each: each * MB),
    per_cell=st.integers(0, 200_000),
    repacks=st.booleans(),
    tied=st.booleans(),
)
some_loads = st.lists(
    st.builds(
        lambda needed, offload, mmap: load("x", needed, offload=offload, mmap=mmap),
        some_needs,
        st.just("auto") | st.integers(-1, 35),
        st.sampled_from(["auto", True, False]),
    ),
    min_size=1,
    max_size=4,
).map(
    lambda found: [
        replace(each, contexts=(replace(each.contexts[0], roles=(f"r{i}",)),)) for i, each in enumerate(found)
    ]
)
some_gpus = st.lists(sizes, max_size=3).map(lambda found: [gpu(size or 1, f"GPU{i}") for i, size in enumerate(found)])
contexts = st.integers(1, 65536)


@given(some_loads, sizes, some_gpus, contexts)
@settings(max_examples=150, deadline=None)
def test_a_plan_that_fits_takes_no_more_than_is_free(loads, ram, others, context) -> None:
    devices = [cpu(ram), *others]
    planned = plan(loads, devices, context)
    short = {shortage.device.name for shortage in planned.shortages}
    for device in devices:
        use = planned.used(device)
        mapped = sum(
            placed.uses["CPU"].mapped for placed in planned.placed if placed.load.mmap is True and device.kind == "cpu"
        )
        fits = use.total - mapped + kept(device) <= device.free
        assert fits or use.total == 0 or device.name in short
        assert not (fits and device.name in short)
    for placed in planned.placed:
        assert placed.on_gpu == sum(placed.layers) <= placed.load.units
        if placed.load.offload != "auto":
            wanted = placed.load.units if placed.load.offload == -1 else min(placed.load.offload, placed.load.units)
            assert placed.on_gpu == (wanted if others else 0)
        weights = placed.load.estimate.weights
        assert placed.total.weights >= weights.total  # nothing is forgotten


@given(some_loads, sizes, some_gpus, contexts)
@settings(max_examples=100, deadline=None)
def test_what_was_chosen_for_a_gpu_fits_it(loads, ram, others, context) -> None:
    loads = [replace(each, offload="auto") for each in loads]
    planned = plan(loads, [cpu(ram), *others], context)
    assert {shortage.device.name for shortage in planned.shortages} <= {"CPU"}


@given(some_loads, sizes, sizes, sizes, contexts)
@settings(max_examples=100, deadline=None)
def test_more_memory_is_never_worse(loads, ram, video, more, context) -> None:
    before = plan(loads, [cpu(ram), gpu(video + 1)], context)
    assert plan(loads, [cpu(ram + more), gpu(video + 1)], context).fits or not before.fits
    after = plan(loads, [cpu(ram), gpu(video + more + 1)], context)
    order = sorted(range(len(loads)), key=lambda i: (loads[i].estimate.weights.total, i))
    chosen = [i for i in order if loads[i].offload == "auto"]
    assert [after.placed[i].on_gpu for i in chosen] >= [before.placed[i].on_gpu for i in chosen]


@given(some_loads, sizes, some_gpus, contexts, st.integers(0, 30000))
@settings(max_examples=60, deadline=None)
def test_a_longer_context_takes_no_less(loads, ram, others, context, longer) -> None:
    loads = [replace(each, offload=0) for each in loads]
    before, after = (plan(loads, [cpu(ram), *others], tokens) for tokens in (context, context + longer))
    assert after.used(cpu()).total >= before.used(cpu()).total


@pytest.mark.parametrize(
    ("placement", "context", "ours", "expected"),
    [
        (Placement(), SHORT, True, True),
        (Placement(), SHORT + 1, True, True),
        (Placement(), SHORT, False, "auto"),
        (Placement(), SHORT + 1, False, False),
        (Placement(kv_type="f32"), SHORT + 1, True, False),
        (Placement(kv_type="q8_0"), SHORT + 1, True, "auto"),
        (Placement(flash_attention=True), SHORT + 1, False, True),
        (Placement(flash_attention=False), SHORT, True, False),
    ],
)
def test_a_cpu_has_flash_attention_where_it_is_fast(ggufs, monkeypatch, placement, context, ours, expected) -> None:
    """That is ours, or llama.cpp's behind short texts."""
    monkeypatch.setattr(kernels, "attends", lambda widths: ours)
    files = RoleFiles(ggufs / "base.gguf", replace(placement, offload=0))
    assert resolved_placement(files, 0, True, context).flash_attention == expected
