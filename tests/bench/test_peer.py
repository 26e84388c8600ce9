"""The transformers peer: its arithmetic without torch; with torch, its answers against ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from eft_local import Emulator, Recipe
from eft_local.bench import shapes
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies import proxy_tuning
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.bench.studies.peer_results import Row, Written, agreement, report, summary
from eft_local.bench.studies.peer_transformers import Contender, Worker, check_peer, fit_together, peer_contender, plan
from eft_local.engine.loading import Library, mixed_roles
from eft_local.errors import EvaluationError, OutOfMemoryError, UnsupportedModelError, UsageError
from eft_local.evals.questions import read_questions
from eft_local.hub.references import demo_questions, find_recipe, resolve_model
from eft_local.prompts.render import conversation
from tests.helpers.reference_llama import ReferenceLlama

TIE = 1e-3  # logits that two exact implementations in float32 may put in either order
GROUPED = Shape(n_embd=48, n_layer=2, n_head=6, n_head_kv=2, n_ff=96, rope_base=50000.0)


@pytest.fixture(scope="session")
def peer_python():
    """Return an interpreter that has torch and transformers: EFT_PEER_PYTHON, or this one."""
    python = os.environ.get("EFT_PEER_PYTHON", sys.executable)
    try:
        check_peer(python)
    except UsageError as error:
        pytest.skip(f"{error} (for tests: EFT_PEER_PYTHON)")
    return python


@pytest.fixture(scope="session")
def exact_recipe(tmp_path_factory):
    """Return the demo in float32, from its weights to its caches."""
    recipe = shapes.unwidened_recipe(find_recipe("demo"), "F32", folder=tmp_path_factory.mktemp("float32"))
    return recipe.replace(temperature=0, kv_type="f32", flash_attention=False)


@pytest.fixture(scope="session")
def grouped(tmp_path_factory):
    """Return a model with grouped heads, an output matrix of its own and random weights."""
    path = tmp_path_factory.mktemp("grouped") / "grouped.gguf"
    return write_model(path, ModelSpec(GROUPED, bpe(), seed=5))


def questions(kind, limit):
    file = read_questions(demo_questions()).select(split="held-out", kind=kind, limit=limit)
    return [item.question for item in file.items]


def alone(path, python, n_vocab, *, unused=(), dtype="float32"):
    """Return the contender that runs one model."""
    job = {"models": {"base": str(path)}, "deltas": [], "dtype": dtype, "threads": 1}
    job |= {"n_vocab": n_vocab, "unused": list(unused)}
    return Contender("alone", (python, "-P", proxy_tuning.__file__), job, weights=0, is_peer=True)


def next_logits(path, prompt, tokens):
    """Return what NumPy computes for each of the tokens that follow a prompt, [len(tokens), n_vocab]."""
    return ReferenceLlama(path).logits([*prompt, *tokens])[len(prompt) - 1 : -1]


def assert_greedy(logits, tokens, tie):
    assert (logits.max(axis=-1) - logits[np.arange(len(tokens)), tokens]).max() < tie
    assert len(set(tokens)) > 5  # not one token again and again


# --- from GGUF to transformers ---------------------------------------------------------------------------------------


def rotated(rows, pairs, frequencies, position):
    """Rotate one vector's pairs of dimensions, as RoPE does."""
    turned = rows.copy()
    for (one, other), frequency in zip(pairs, frequencies, strict=True):
        cos, sin = np.cos(position * frequency), np.sin(position * frequency)
        turned[one] = rows[one] * cos - rows[other] * sin
        turned[other] = rows[one] * sin + rows[other] * cos
    return turned


@pytest.mark.parametrize("turning", [8, 4])
def test_scores_are_the_same_when_pairs_are_put_into_halves(turning):
    """A query times a key, each rotated: neighbours in the file's order, half a head apart in transformers'."""
    head_dim, n = 8, 5
    generator = np.random.default_rng(0)
    frequencies = proxy_tuning.frequencies(head_dim, turning, 100.0)
    neighbours = [(2 * i, 2 * i + 1) for i in range(head_dim // 2)]
    halves = [(i, i + head_dim // 2) for i in range(head_dim // 2)]
    query, key = generator.normal(size=(2, head_dim, n))
    x = generator.normal(size=n)

    def score(query, key, pairs):
        return rotated(query @ x, pairs, frequencies, 7) @ rotated(key @ x, pairs, frequencies, 3)

    reordered = [proxy_tuning.halves_from_pairs(matrix, head_dim) for matrix in (query, key)]
    assert score(*reordered, halves) == pytest.approx(score(query, key, neighbours))
    assert score(query, key, halves) != pytest.approx(score(query, key, neighbours))


def test_every_head_is_reordered_by_itself():
    rows = np.arange(8).repeat(2).reshape(8, 2)  # two heads of four dimensions
    assert proxy_tuning.halves_from_pairs(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_frequencies_that_factors_divide_and_pairs_that_stand_still():
    assert proxy_tuning.frequencies(8, 4, 100.0) == pytest.approx((1.0, 0.1, 0.0, 0.0))
    assert proxy_tuning.frequencies(4, 4, 100.0, np.float32([2, 5])) == pytest.approx((0.5, 0.02))


def test_every_tensor_has_its_name():
    assert proxy_tuning.transformers_name("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    assert proxy_tuning.transformers_name("output_norm.weight") == "model.norm.weight"
    assert proxy_tuning.transformers_name("rope_freqs.weight") is None
    for name in ("blk.0.attn_q.bias", "blk.x.attn_q.weight", "blk.0.ffn_gate_inp.weight"):
        with pytest.raises(proxy_tuning.PeerError, match=name):
            proxy_tuning.transformers_name(name)


@pytest.mark.parametrize("name", ["base", "small"])
def test_shape_and_parameters_of_a_demo_model(name):
    path = resolve_model(f"demo:{name}", None)
    reader = GGUFReader(path)
    shape = proxy_tuning.read_shape(reader, path.name)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    assert shape.parameters == sum(int(tensor.n_elements) for tensor in matrices)
    assert shape.tie_word_embeddings
    assert len(shape.inv_freq) == shape.head_dim // 2


def test_shape_of_grouped_heads(grouped):
    shape = proxy_tuning.read_shape(GGUFReader(grouped), "grouped")
    heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
    assert heads == (GROUPED.n_head, GROUPED.n_head_kv, 8)
    assert not shape.tie_word_embeddings
    assert shape.inv_freq == pytest.approx([50000.0 ** (-i / 4) for i in range(4)])


def test_another_architecture_is_refused_by_name(ggufs):
    with pytest.raises(proxy_tuning.PeerError, match=r"mamba\.gguf has the architecture mamba"):
        proxy_tuning.read_shape(GGUFReader(ggufs / "mamba.gguf"), "mamba.gguf")


@pytest.mark.parametrize("name", ["base", "small"])  # Q8_0 and F16
def test_values_are_read_some_rows_at_a_time(name, monkeypatch):
    path = resolve_model(f"demo:{name}", None)
    reader = GGUFReader(path)
    head_dim = proxy_tuning.read_shape(reader, name).head_dim
    monkeypatch.setattr(proxy_tuning, "_CHUNK", 3 * head_dim)
    for tensor in reader.tensors:
        parts = list(proxy_tuning.chunks(path, tensor, head_dim))
        values = dequantize(tensor.data, tensor.tensor_type)
        if "attn_q." in tensor.name or "attn_k." in tensor.name:
            values = proxy_tuning.halves_from_pairs(values, head_dim)
        assert max(map(len, parts)) <= 3 * head_dim
        np.testing.assert_array_equal(np.concatenate(parts).reshape(values.shape), values)


# --- the run ----------------------------------------------------------------------------------------------------------


def contender(name, weights=0, is_peer=False):
    return Contender(name, ("false",), {}, weights, is_peer)


@pytest.mark.parametrize(("together", "visits"), [(True, 5), (False, 2)])
def test_the_plan_gives_every_question_to_every_system_once(together, visits):
    contenders = [contender(name) for name in ("first", "second", "third")]
    turns = [(each.name, list(part)) for each, part in plan(contenders, 5, together)]
    rounds = [turns[start : start + 3] for start in range(0, len(turns), 3)]
    assert len(rounds) == visits
    for number, parts in enumerate(rounds):
        assert [name for name, _ in parts] == ["first", *(["second", "third"], ["third", "second"])[number % 2]]
    for name in ("first", "second", "third"):
        assert [index for each, part in turns if each == name for index in part] == list(range(5))


def test_processes_run_together_only_where_there_is_room_for_all():
    contenders = [
        contender("small", 10**9),
        contender("large", 10 * 10**9),
    ]  # with what they need besides: 2.1 and 12 GB
    assert fit_together(contenders, 14_200_000_000)
    assert not fit_together(contenders, 14_000_000_000)
    with pytest.raises(OutOfMemoryError, match=r"^large needs 12\.0 GB of memory and 11\.0 GB are free"):
        fit_together(contenders, 11_000_000_000)


def test_the_peer_refuses_what_the_published_method_lacks():
    recipe = find_recipe("demo")
    for change in ({"beta": 1.2}, {"conservative_filter": 0.9}):
        with pytest.raises(UsageError, match="knows alpha alone"):
            peer_contender(recipe.replace(**change), "bfloat16", sys.executable, 1)


def test_the_peer_refuses_other_architectures(ggufs):
    recipe = Recipe.from_text(
        f'[base]\nmodel = "{ggufs / "mamba.gguf"}"\n[antiexpert]\nmodel = "demo:small"\n'
        '[experts.one]\nmodel = "demo:assistant"'
    )
    with pytest.raises(UnsupportedModelError, match="mamba"):
        peer_contender(recipe, "bfloat16", sys.executable, 1)


def test_the_peer_loads_each_file_once_and_knows_every_expert():
    made = peer_contender(find_recipe("demo-two"), "float16", "python", 3)
    parameters = {"base": 4259840, "small": 211840}
    assert made.weights == 2 * (parameters["base"] + 3 * parameters["small"])
    assert [(delta["expert"], delta["antiexpert"]) for delta in made.job["deltas"]] == [
        (name, "antiexpert") for name in find_recipe("demo-two").experts
    ]


def test_an_interpreter_that_is_not_there_is_reported():
    with pytest.raises(UsageError, match="--peer-python no-such-python: No such file"):
        check_peer("no-such-python")


def test_an_interpreter_without_torch_is_reported(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(UsageError, match=r"No module named 'torch'\); install eft-local\[peer\]"):
        check_peer(str(python))


def test_a_process_that_fails_is_reported_with_its_name():
    said = Contender("speaking", (sys.executable, "-c", 'print(\'{"error": "too small"}\')'), {}, 0)
    silent = Contender("silent", (sys.executable, "-c", ""), {}, 0)
    with pytest.raises(EvaluationError, match=r"^speaking: too small$"):
        Worker(said, {})
    with pytest.raises(EvaluationError, match=r"^silent: its process ended"):
        Worker(silent, {})


# --- figures ----------------------------------------------------------------------------------------------------------


def row(speeds, prompt, peak, tokens=None, margins=()):
    """Return a row whose answers have five tokens, at these speeds."""
    answers = {
        index: Written(tuple(tokens or range(5)), 4 / speed, tuple(margins)) for index, speed in enumerate(speeds)
    }
    return Row(2_000_000, answers, [prompt], {"peak": peak, "now": peak / 2, "mapped": 0.0})


def test_ratios_are_taken_question_by_question():
    rows = {"ours": row([8, 30, 100], 60, 50), "peer": row([2, 10, 20], 20, 200)}
    result = summary(rows, ["peer"])
    over = result["over"]["peer"]["ours"]
    assert over["tokens_per_second"]["median"] == pytest.approx(4)  # of 4, 3 and 5; the medians' ratio is 3
    assert over["prompt_tokens_per_second"] == 3
    assert over["memory"] == 0.25
    assert list(result["over"]["peer"]) == ["ours"]
    assert result["contenders"]["peer"]["tokens_per_second"]["median"] == pytest.approx(10)
    assert result["contenders"]["peer"]["by_question"] == pytest.approx([2, 10, 20])
    assert result["contenders"]["peer"]["weights_mb"] == 2


def test_prompts_and_memory_of_several_visits():
    several = row([1], 10, 50)
    several.prompts += [40, 20]
    several.remember({"peak": 70.0, "now": 20.0, "mapped": 1.0})
    assert summary({"ours": several}, [])["contenders"]["ours"]["prompt_tokens_per_second"] == 20
    assert several.memory == {"peak": 70.0, "now": 25.0, "mapped": 1.0}


def test_an_answer_that_follows_agrees_position_by_position_and_another_up_to_its_first_difference():
    leader = row([1], 1, 1)
    follower = row([1], 1, 1, tokens=(0, 9, 2, 3, 8), margins=(0, 0.25, 0, 0, 0.5))
    free = row([1], 1, 1, tokens=(0, 1, 9, 3, 4))
    assert agreement(follower, leader) == {"same": 3, "tokens": 5, "widest_margin": 0.5}
    assert agreement(free, leader) == {"same": 2, "tokens": 5, "widest_margin": None}


def test_the_report_shows_every_row_and_ratio():
    rows = {"eft F16": row([8], 60, 50_000), "peer": row([2], 20, 200_000, margins=(0, 0, 0, 0, 0.125))}
    details = {"recipe": "demo", "shape": "7b", "kind": "long", "questions": 1, "max_tokens": 5, "threads": 2}
    details |= {"order": "take turns", "machine": "a machine"}
    details["peer"] = {"torch": "2", "transformers": "5", "instructions": "AVX512"}
    text = report(details | summary(rows, ["peer"]))
    lines = [line.split() for line in text.splitlines()]
    assert "eft F16 8.00 (8.00 … 8.00) 60.0 50.00 0.00".split() in lines
    assert "eft F16 4.00 (4.00 … 4.00) 3.00 0.25".split() in lines
    assert "peer 5 of 5; others preferred by at most 0.125".split() in lines
    assert max(map(len, text.splitlines())) <= 80


# --- with torch -------------------------------------------------------------------------------------------------------


def test_the_peer_writes_what_the_emulator_writes(peer_python, exact_recipe):
    """In float32, both on their own; where they part, the peer must hold the two tokens for equal."""
    requested = [*questions("short", 40), *questions("long", 3)]
    with closing(Library()) as library:
        roles = library.load(exact_recipe, mixed_roles(exact_recipe))
        ends = [token for token in range(4096) if roles["assistant"].vocabulary.is_eog(token)]
        prompts = [{name: role.tokens(conversation(text)) for name, role in roles.items()} for text in requested]
    with Emulator.load(exact_recipe) as emulator:
        answers = [[step.token for step in emulator.stream_chat(text, max_tokens=80)] for text in requested]
    details = {"n_vocab": 4096, "unused": []}
    with Worker(peer_contender(exact_recipe, "float32", peer_python, 1), details) as peer:
        for roles_prompts, ours in zip(prompts, answers, strict=True):
            request = {"prompts": roles_prompts, "max_tokens": 80, "ends": ends}
            theirs = peer.ask(request)["tokens"]
            if theirs != ours:
                assert max(peer.ask(request | {"follow": ours})["margins"]) < TIE
    assert sum(map(len, answers)) > 500


def test_grouped_heads_an_output_matrix_of_its_own_and_margins(peer_python, grouped):
    prompt = np.random.default_rng(0).integers(0, len(bpe().texts), 40).tolist()
    follow = [11, 12, 13]
    with Worker(alone(grouped, peer_python, len(bpe().texts)), {}) as peer:
        written = peer.ask({"prompts": {"base": prompt}, "max_tokens": 30})["tokens"]
        following = peer.ask({"prompts": {"base": prompt}, "max_tokens": 1, "follow": follow})
    assert_greedy(next_logits(grouped, prompt, written), written, TIE)
    logits = next_logits(grouped, prompt, follow)
    assert following["tokens"] == logits.argmax(axis=-1).tolist()
    assert following["margins"] == pytest.approx(logits.max(axis=-1) - logits[np.arange(3), follow], abs=TIE)


def test_padded_ids_are_never_chosen(peer_python, grouped):
    prompt, n_vocab = [7, 8, 9], 200
    best = next_logits(grouped, prompt, [0])[0, :n_vocab].argsort()[::-1]
    with Worker(alone(grouped, peer_python, n_vocab, unused=best[:3].tolist()), {}) as peer:
        assert peer.ask({"prompts": {"base": prompt}, "max_tokens": 1})["tokens"] == [best[3]]
    assert next_logits(grouped, prompt, [0])[0].argmax() != best[3]


def test_float16_holds_a_scaled_copy(peer_python, tmp_path):
    """Its output norm has a weight beyond float16's range."""
    wide = Shape(n_embd=512, n_layer=5, n_head=8, n_head_kv=8, n_ff=1024)
    source = resolve_model("demo:base", None)
    path = shapes.scaled_model(source, wide, vocabulary=8192, quantization="F16", folder=tmp_path)
    norm = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "output_norm.weight")
    assert norm.data.max() > np.finfo(np.float16).max
    prompt = [0, 100, 200, 300]
    with Worker(alone(path, peer_python, 8192, dtype="float16"), {}) as peer:
        written = peer.ask({"prompts": {"base": prompt}, "max_tokens": 20})["tokens"]
    assert_greedy(next_logits(path, prompt, written), written, tie=0.1)


def test_the_command_in_json(peer_python, monkeypatch, tmp_path):
    monkeypatch.setenv("EFT_HOME", str(tmp_path))
    command = [
        sys.executable,
        "-m",
        "eft_local.bench.studies.peer_transformers",
        "--shape",
        "none",
        "--peer-python",
        peer_python,
    ]
    options = ["--questions", "2", "--max-tokens", "6", "--formats", "F16", "--dtypes", "bfloat16", "--json"]
    done = subprocess.run([*command, *options], text=True, capture_output=True, check=True)
    result = json.loads(done.stdout)
    ours, peer = result["contenders"]["eft F16"], result["contenders"]["transformers bfloat16"]
    assert list(result["contenders"]) == ["eft F16", "eft F16, drafts", "transformers bfloat16"]
    assert list(result["over"]) == ["transformers bfloat16"]
    assert ours["agreement"] == {"same": 12, "tokens": 12, "widest_margin": None}
    assert peer["agreement"]["tokens"] == 12
    assert peer["memory_mb"]["peak"] > peer["memory_mb"]["mapped"] > 0
    assert set(result["peer"]) == {"python", "torch", "transformers", "instructions"}
