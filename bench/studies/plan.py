"""How near a plan is to the buffers that llama.cpp then makes. See bench/README.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eft_local.backends.base import ContextOptions
from eft_local.backends.llamacpp import Model, library
from eft_local.backends.llamacpp.estimate import EstimateOptions, estimate_memory, read_buffers, read_figures
from eft_local.bench.studies.families import FAMILIES, write_family
from eft_local.machine.memory import Device
from eft_local.placement.planner import ContextEstimate, Load, Placed, plan
from eft_local.placement.survey import SCORED_ROWS, RoleFiles, resolved_placement
from eft_local.recipe.roles import Placement

ALLOWED = 0.10
VOCABULARY = 32_000
LARGE_VOCABULARY = 151_936


@dataclass(frozen=True)
class Case:
    """A model and a context that it is given."""

    family: str
    quantization: str = "Q4_0"
    n_vocab: int = VOCABULARY
    context: int = 4096
    placement: Placement = field(default_factory=Placement)
    n_seq: int = 1

    @property
    def name(self) -> str:
        return f"{self.family} {self.quantization} {self.placement.kv_type} {self.context} × {self.n_seq}"


CASES = (
    Case("llama-0.5b"),
    Case("llama-0.5b", context=16384, placement=Placement(kv_type="q8_0")),
    Case("llama-0.5b", placement=Placement(flash_attention=False, ubatch=512)),
    Case("llama-1b", "Q8_0", context=2048, n_seq=2),
    Case("llama-7b"),
    Case("qwen2-0.5b", "Q8_0", LARGE_VOCABULARY, 8192),
    Case("qwen2-0.5b", "Q4_0", LARGE_VOCABULARY),
    Case("qwen3-1.7b", "Q4_K", LARGE_VOCABULARY, 8192, Placement(kv_type="q4_0")),
    Case("gemma2-2b", "Q8_0", 64_000, 8192),
    Case("gemma3-1b", "F16", 64_000, 8192),
    Case("qwen3moe", "Q4_0"),
    Case("deepseek2", "F16"),
    Case("lfm2-350m", "F16", n_seq=2),
)


def planned(path: Path, case: Case) -> Placed:
    """Return what the plan says of a case on a machine with a CPU only."""
    options = EstimateOptions(
        cells=case.context,
        n_seq=case.n_seq,
        n_outputs=SCORED_ROWS * case.n_seq,
        batch=case.placement.batch,
        ubatch=case.placement.ubatch,
        kv_type=case.placement.kv_type,
        flash_attention=resolved_placement(RoleFiles(path, case.placement), 0, True, case.context).flash_attention,
    )
    load = Load(
        (ContextEstimate(("model",), case.n_seq, estimate_memory(path, options, trusted=True)),),
        mmap=case.placement.mmap,
    )
    ram = Device("CPU", "", "cpu", 1 << 50, 1 << 50)
    return plan([load], [ram], case.context).placed[0]


def allocated(path: Path, case: Case, mmap: bool) -> dict[str, int]:
    """Load the model, make the context, and return the buffers as llama.cpp's log has them. Bytes."""
    placement = resolved_placement(RoleFiles(path, case.placement), 0, mmap, case.context)
    with library.listening() as heard:
        model = Model.load(path, mmap=mmap, trusted=True)
    with model:
        weights = sum(read_buffers(heard).values())
        with (
            library.listening() as heard,
            model.open(
                ContextOptions(
                    n_ctx=case.context,
                    n_seq=case.n_seq,
                    n_outputs=SCORED_ROWS * case.n_seq,
                    n_batch=placement.batch,
                    n_ubatch=placement.ubatch or 0,
                    kv_type=placement.kv_type,
                    flash_attention=placement.flash_attention,
                )
            ),
        ):
            figures = read_figures(heard, case.context)
    return {"weights": weights, "cache": figures.cache + figures.state, "compute": figures.host}


def compared(path: Path, case: Case) -> dict[str, Any]:
    """Return each buffer as planned and as made, and how far they are apart."""
    placed = planned(path, case)
    made = allocated(path, case, placed.mmap)
    said = {name: getattr(placed.total, name) for name in made}
    return {
        "name": case.name,
        "planned": said,
        "made": made,
        "off": {name: said[name] / max(1, made[name]) - 1 for name in made},
    }


def results(folder: Path, cases: tuple[Case, ...] = CASES) -> Iterator[dict[str, Any]]:
    """Yield each case's comparison; files are written for it and deleted."""
    for case in cases:
        path = write_family(folder / "model.gguf", FAMILIES[case.family], case.n_vocab, case.quantization)
        yield compared(path, case)
        path.unlink()


def _cell(row: dict[str, Any], name: str) -> str:
    said, made = row["planned"][name] / 1e6, row["made"][name] / 1e6
    return f"  {name} {said:7.1f} / {made:7.1f} ({row['off'][name]:+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eft_local.bench.studies.plan", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where models are written, one at a time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory(dir=options.folder) as folder:
        for row in results(Path(folder)):
            rows.append(row)
            if not options.json:
                print(f"{row['name']:34}{''.join(_cell(row, name) for name in row['made'])}", flush=True)
    worst = max((abs(off), row["name"]) for row in rows for off in row["off"].values())
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"MB planned / made; at most {worst[0]:.1%} apart ({worst[1]}); allowed are {ALLOWED:.0%}")


if __name__ == "__main__":
    main()
