"""Damaged GGUF files never take the process down: we refuse them, or llama.cpp does, or they load and decode.

Child processes change bytes, check, load (which tries the file in a process of its own first) and decode; a child
that dies or hangs is blamed on the file it was at, and that file is kept. EFT_FUZZ_MUTATIONS sets how many files are
tried per model, EFT_FUZZ_SEED which, and EFT_FUZZ_KEEP where those are kept that took a child down.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from eft_local.backends.base import ContextOptions, Rows
from eft_local.backends.llamacpp import Adapter, Model
from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.studies.gguf_factory import CHATML, ModelSpec, bpe, spm, write_adapter, write_model
from eft_local.errors import EftError
from eft_local.gguf.adapter import check_adapter
from eft_local.gguf.checks import check_gguf

MUTATIONS = int(os.environ.get("EFT_FUZZ_MUTATIONS", "120"))
SEED = int(os.environ.get("EFT_FUZZ_SEED", "1"))
PATIENCE = 5.0  # seconds of computing for one file

SMALL = Shape(n_embd=16, n_layer=2, n_head=2, n_head_kv=1, n_ff=32)
MORE_KEYS = {  # what real files say as well
    "general.alignment": 32,
    "general.type": "model",
    "llama.attention.key_length": 8,
    "llama.attention.value_length": 8,
    "llama.attention.layer_norm_epsilon": 1e-5,
    "llama.attention.causal": True,
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.original_context_length": 256,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.eot_token_id": 2,
}
MODELS = {
    "bpe": ModelSpec(shape=SMALL, tokens=bpe(), template=CHATML),
    "spm": ModelSpec(shape=replace(SMALL, tied=True), tokens=spm(), seed=1, metadata=MORE_KEYS),
    "quantised": ModelSpec(
        shape=Shape(n_embd=32, n_layer=1, n_head=4, n_head_kv=2, n_ff=64),
        tokens=bpe().padded(3),
        quantization="Q4_0",
    ),
}

REFUSED_BY_US, REFUSED_BY_LLAMA, DECODED = "refused by the check", "refused by llama.cpp", "decoded"
CRASHED_THE_PROBE = "caught by the probe"


def demo_model() -> Path:
    """Return the smallest of the bundled models."""
    models = sorted(
        (Path(__file__).parents[2] / "models" / "demo").glob("*.gguf"), key=lambda path: path.stat().st_size
    )
    return models[0] if models else pytest.skip("the demo models are not trained yet")


@dataclass(frozen=True)
class Target:
    """A sound file and where its meaning is."""

    path: Path
    data: bytes
    header: int  # bytes before the first tensor's data
    numbers: list[tuple[int, int]]  # (offset, bytes) of every number, length, type and dimension in the header

    @classmethod
    def read(cls, path: Path) -> Target:
        reader = GGUFReader(path)
        fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
        start = reader.data.ctypes.data
        # The first few of each: a vocabulary's hundreds of lengths shall not crowd out the rest.
        parts = [part for field in fields for part in [p for p in field.parts if p.dtype != "u1"][:8]]
        return cls(
            path,
            path.read_bytes(),
            int(reader.data_offset),
            [(part.ctypes.data - start, part.nbytes) for part in parts],
        )

    def mutation(self, number: int, seed: int) -> bytes:
        """Return a damaged copy: most changes hit the header, and half of these a number."""
        chance = random.Random(f"{seed} {number}")
        damaged = bytearray(self.data)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            self._damage(damaged, chance)
        if chance.random() < 0.05:
            del damaged[chance.randrange(len(damaged)) :]
        return bytes(damaged)

    def _damage(self, damaged: bytearray, chance: random.Random) -> None:
        if chance.random() < 0.5:
            at, size = chance.choice(self.numbers)
            at += chance.randrange(size)
        else:
            at = chance.randrange(self.header if chance.random() < 0.8 else len(self.data))
        at = min(at, len(damaged) - 1)
        match chance.randrange(8):
            case 0 | 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                damaged[at] = chance.randrange(256)
            case 3:
                damaged[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 4:
                damaged[at : at + 4] = chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000)).to_bytes(4, "little")
            case 5:
                damaged[at:at] = chance.randbytes(chance.choice((1, 4, 8, 32)))
            case 6:
                del damaged[at : at + chance.choice((1, 4, 8, 32))]
            case 7:
                other, size = chance.choice(self.numbers)
                damaged[at : at + size] = self.data[other : other + size]


def try_file(path: Path, model: Path | None = None) -> str:
    """Check, load, tokenise and decode, as the emulator does; any error of ours is a refusal.

    model: what an adapter is for.
    """
    if model is not None:
        return try_adapter(path, model)
    try:
        check_gguf(path)
    except EftError:
        return REFUSED_BY_US
    try:
        with (
            Model.load(path) as model,
            model.open(ContextOptions(n_ctx=64, n_batch=16, n_ubatch=16, n_threads=1)) as context,
        ):
            vocabulary = model.vocabulary
            vocabulary.texts(), vocabulary.attributes()
            tokens = vocabulary.tokenize("Hello, ünï ▁ \x00\x01 <|im_end|> 123\n", add_special=True, parse_special=True)
            b"".join(vocabulary.piece(token) for token in range(vocabulary.n_tokens))
            tokens = (tokens or [0])[:24]
            for _ in range(3):
                context.submit([Rows(0, tokens)])
                tokens = [int(context.logits()[0].argmax())]
    except EftError as error:
        return CRASHED_THE_PROBE if "crashes llama.cpp" in str(error) else REFUSED_BY_LLAMA
    return DECODED


def try_adapter(path: Path, model: Path) -> str:
    """Check an adapter, load and decode with it."""
    try:
        check_adapter(path, model)
    except EftError:
        return REFUSED_BY_US
    try:
        with (
            Model.load(model, trusted=True) as opened,
            Adapter.load(opened, path) as adapter,
            opened.open(ContextOptions(n_ctx=64, n_batch=16, n_ubatch=16, n_threads=1, adapter=adapter)) as context,
        ):
            context.submit([Rows(0, list(range(24)))])
            context.submit([Rows(0, [int(context.logits()[0].argmax())])])
            context.logits()
    except EftError as error:
        return CRASHED_THE_PROBE if "crashes llama.cpp" in str(error) else REFUSED_BY_LLAMA
    return DECODED


def child(source: Path, seed: int, first: int, last: int, model: Path | None = None) -> None:
    """Try the mutations first … last − 1, naming each before it starts and what became of it after."""
    target = Target.read(source)
    path = source.with_name(f"{source.stem}-{first}.mutated")
    for number in range(first, last):
        path.write_bytes(target.mutation(number, seed))
        print(f"try {number}", flush=True)
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)  # its signal ends the process, wherever it is
        print(f"done {try_file(path, model)}", flush=True)
    path.unlink(missing_ok=True)


def fuzz(source: Path, seed: int, count: int, *model: Path) -> tuple[Counter[str], dict[int, str]]:
    """Return what became of the mutations, and those that ended or hung a child."""
    outcomes: Counter[str] = Counter()
    killers: dict[int, str] = {}
    first = 0
    while first < count:
        number, fate = _run_child(outcomes, source, seed, first, count, *model)
        if fate is not None:
            killers[number] = fate
        first = number + 1
    return outcomes, killers


def _run_child(
    outcomes: Counter[str], source: Path, seed: int, first: int, last: int, *model: Path
) -> tuple[int, str | None]:
    """Return the last mutation that a child tried and, if that ended the child, how."""
    process = subprocess.run(
        [sys.executable, __file__, *map(str, (source, seed, first, last, *model))],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # it would start a debugger
        check=False,
    )
    number = first
    for line in process.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == "try":
            number = int(rest)
        elif word == "done":
            outcomes[rest] += 1
    if process.returncode == -signal.SIGVTALRM:
        return number, "hung"
    if process.returncode:
        return number, f"ended the process with {process.returncode}: {process.stderr[-600:]}"
    return number, None


@pytest.mark.parametrize("name", [*MODELS, "demo"])
def test_damaged_files_never_end_the_process(name, tmp_path, capsys):
    source = tmp_path / f"{name}.gguf"
    if name in MODELS:
        write_model(source, MODELS[name])
    else:
        shutil.copy(demo_model(), source)
    assert try_file(source) == DECODED  # undamaged
    assess(source, MUTATIONS, capsys)


def test_damaged_adapters_never_end_the_process(tmp_path, capsys):
    model = write_model(tmp_path / "model.gguf", MODELS["bpe"])
    source = tmp_path / "adapter.gguf"
    write_adapter(source, model, targets=("attn_q", "ffn_down"))
    assert try_file(source, model) == DECODED
    assess(source, MUTATIONS // 2, capsys, model)


def assess(source: Path, count: int, capsys: pytest.CaptureFixture[str], *model: Path) -> None:
    """Damage a file so many times, and fail if that took a process down."""
    name = source.stem
    outcomes, killers = fuzz(source, SEED, count, *model)
    with capsys.disabled():
        print(f"\n{name}: {count} damaged files, {dict(outcomes)}", end=" ")
    for number in killers:
        path = Path(os.environ.get("EFT_FUZZ_KEEP", source.parent)) / f"{name}-killer-{SEED}-{number}.gguf"
        path.write_bytes(Target.read(source).mutation(number, SEED))
    assert not killers, killers
    assert outcomes.total() == count
    assert outcomes[REFUSED_BY_US] > 0  # otherwise nothing was tried
    assert outcomes[DECODED] > 0


if __name__ == "__main__":
    child(Path(sys.argv[1]), *map(int, sys.argv[2:5]), *map(Path, sys.argv[5:]))
