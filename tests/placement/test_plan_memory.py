"""Machines with little memory: what is said to fit loads and answers, the rest is refused before it is loaded."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import ModelSpec, bpe, write_model
from eft_local.machine import memory
from eft_local.machine.memory import ADDRESS_SPACE, CGROUP, Available

MB = 10**6
WEIGHTS = Shape(n_embd=512, n_layer=8, n_head=8, n_head_kv=8, n_ff=2048, n_ctx=1 << 20)
LIMIT = 1100 * MB
RECIPE = """
context = {context}
threads = 1
[base]
model = "{base}.gguf"
[antiexpert]
model = "{small}.gguf"
[experts.tuned]
model = "{small}.gguf"
prompt = "plain"
[sampling]
temperature = 0
max_tokens = 2
"""


@dataclass
class Machine:
    """Runs eft with little memory."""

    folder: Path
    prepare: Callable[[], None]

    def eft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from eft_local.cli import main; main()", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            preexec_fn=self.prepare,
            # glibc reserves addresses for threads that meet while they allocate: how many depends on what else runs.
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},
            check=False,
        )

    def recipe(self, context: int, base: str = "q8_0", small: str = "q4_0") -> str:
        path = self.folder / f"{base}-{small}-{context}.toml"
        path.write_text(RECIPE.format(context=context, base=base, small=small))
        return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models of the same size and vocabulary, and one that is far too large."""
    folder = tmp_path_factory.mktemp("little")
    for quantization in ("Q8_0", "Q4_0"):
        spec = ModelSpec(WEIGHTS, bpe(), zero=True, quantization=quantization)
        write_model(folder / f"{quantization.lower()}.gguf", spec)
    huge = Shape(n_embd=4096, n_layer=32, n_head=32, n_head_kv=32, n_ff=11008, n_ctx=4096)
    write_model(folder / "huge.gguf", ModelSpec(huge, bpe(), zero=True, quantization="F16"))
    return folder


def limit_addresses() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


@pytest.fixture(scope="module", params=["address space", "cgroup"])
def machine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "address space":
        yield Machine(folder, limit_addresses)
        return
    group = Path(f"/sys/fs/cgroup/memory/eft-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT - 500 * MB))
    except OSError:
        pytest.skip("no control group can be made here")

    def enter() -> None:
        (group / "cgroup.procs").write_text("0")

    yield Machine(folder, enter)
    group.rmdir()


def test_the_longest_context_that_is_said_to_fit_loads_and_answers(machine: Machine) -> None:
    planned = machine.eft("plan", machine.recipe(512), "--json", "--bandwidth", "10")
    assert planned.returncode == 0, planned.stderr
    figures = json.loads(planned.stdout)
    assert 1024 < figures["longest_context"] < figures["trained_context"]
    assert figures["devices"][0]["free"] < LIMIT
    # How much is free differs a little from command to command: the one that answers tells its own limit.
    refused = machine.eft("ask", "-r", machine.recipe(figures["trained_context"]), "hello")
    context = int(refused.stderr.split("set context = ")[1].split(",")[0])
    assert context > 1024
    answered = machine.eft("ask", "-r", machine.recipe(context), "hello")
    assert (answered.returncode, answered.stderr) == (0, "")


def test_what_does_not_fit_is_refused_before_it_is_loaded(machine: Machine) -> None:
    context = 64 * 1024
    refused = machine.eft("ask", "-r", machine.recipe(context), "hello")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("eft: not enough memory for base, antiexpert, tuned: ")
    for words in ("are needed", "are free by the", "set context = ", " limit", ", or "):
        assert words in line
    planned = machine.eft("plan", machine.recipe(context), "--json", "--bandwidth", "10")
    assert planned.returncode == 1
    assert json.loads(planned.stdout)["fits"] is False
    assert "not enough memory" in planned.stderr


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(machine: Machine) -> None:
    refused = machine.eft("ask", "-r", machine.recipe(256, base="huge"), "hello")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "13.2 GB of memory are needed" in line
    assert "choose a smaller quantisation of base" in line


# What is free


def test_the_tightest_bound_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = memory.available()
    assert ours.free > 0
    monkeypatch.setattr(memory, "_cgroup_bounds", lambda: iter([Available(5, CGROUP)]))
    assert memory.available() == Available(5, CGROUP)
    monkeypatch.setattr(memory, "_address_space", lambda: iter([Available(3, ADDRESS_SPACE)]))
    assert memory.available() == Available(3, ADDRESS_SPACE)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_groups_of_the_second_version_bound_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table"
    table.write_text("0::/outer/inner\n")
    root = tmp_path / "root"
    group(root / "outer/inner", memory__max="max", memory__current="10", memory__stat="anon 5\n")
    group(root / "outer", memory__max="1000", memory__current="700", memory__stat="anon 5\ninactive_file 200\n")
    folders = list(memory._cgroup_folders(table, root))
    assert folders == [(2, root / "outer/inner"), (2, root / "outer"), (2, root)]
    assert [memory._bound_v2(folder) for _, folder in folders] == [None, 500, None]


def test_groups_of_the_first_version_and_what_a_container_does_not_see(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text("4:memory:/docker/abc\n3:cpu:/docker/abc\n0::/\n")
    root = tmp_path / "root"
    files = {"memory__usage_in_bytes": "100", "memory__stat": "total_inactive_file 40\n"}
    group(root / "memory", memory__limit_in_bytes="300", **files)
    folders = list(memory._cgroup_folders(table, root))
    assert [version for version, _ in folders] == [1, 1, 1, 2]
    assert folders[2] == (1, root / "memory")
    assert memory._bound_v1(root / "memory") == 240
    assert memory._bound_v1(root / "memory/docker/abc") is None
    group(root / "memory", memory__limit_in_bytes=str(2**63 - 4096), **files)
    assert memory._bound_v1(root / "memory") is None
    assert list(memory._cgroup_folders(tmp_path / "none", root)) == []


# What the plan could not foresee

GREEDY = """
import resource, sys
from eft_local.errors import OutOfMemoryError
from eft_local.backends.base import ContextOptions
from eft_local.backends.llamacpp import Model
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    with Model.load(sys.argv[1], trusted=True, mmap=False) as model:
        model.open(ContextOptions(n_ctx=1 << 20, n_ubatch=128))
except OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "what"), [("huge", "to load"), ("q8_0", "could not make a context of 1048576 tokens")]
)
def test_llama_cpp_without_memory_is_an_error_and_no_crash(folder: Path, name: str, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, str(folder / f"{name}.gguf"), str(LIMIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert what in done.stdout
    assert done.stdout.count("\n") == 1
