"""Interrupt `eft pull RECIPE` at random moments, go on with it, count what was sent twice, and ask what was pulled.

    python -m tests.helpers.kill_pulls [RECIPE] [--interruptions 50] [--how kill,ctrl-c,cut] [--pace MB/S] [--seed 1]
    python -m tests.helpers.kill_pulls --size MB ...        # a file of noise instead, and nothing to ask

A hub on loopback has the recipe's repositories. Their files are copies of the demo models in the shapes of SmolLM2's:
as large as the real ones, and they answer. Every pull is a process: SIGKILL and SIGINT end it and the next one
goes on, a cut connection it has to survive. Moments are spread over all files. Afterwards every file is compared with
what the hub has, and `eft ask` answers with the hub gone.

Sent twice is what had left the hub and is not in the file: what waited for the program when the interruption came, and
what came while the process died, for the hub goes on until the system has cleared it away.

Ends with 1 if more than one per cent was sent twice, a pull went back, a file is damaged, or the answer is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from eft_local.bench.gguf_zeros import Shape
from eft_local.bench.shapes import Trio, scaled_recipe
from eft_local.hub.references import find_recipe, hub_names
from tests.helpers.hub_server import Content, Fault, HubServer, Repo, serving, sha256

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
HOW = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT, "cut": None}
MOST = 0.01  # of all bytes
PATIENCE = 300.0  # seconds
QUIET = 0.3  # seconds after which a connection that was closed carries nothing any more
PIECE = 16 << 10  # bytes that are sent at once at a pace, and without one:
LARGE_PIECE = 256 << 10

SMOLLM2 = Trio(
    large=Shape(n_embd=2048, n_layer=24, n_head=32, n_head_kv=32, n_ff=8192),  # 1.7B
    small=Shape(n_embd=960, n_layer=32, n_head=15, n_head_kv=5, n_ff=2560),  # 360M
)
N_VOCAB = 49_152
QUESTION, ANSWER = "What is the capital of Peru?", "The capital of Peru is Lima."


def repositories(recipe: str, shape: Trio, n_vocab: int, folder: Path) -> dict[str, Repo]:
    """Return what a hub has to have for a recipe of real models: the demo's in these shapes, kept in `folder`."""
    wanted = hub_names(find_recipe(recipe)).values()
    copies = scaled_recipe(find_recipe("demo"), shape, vocabulary=n_vocab, quantization="Q8_0", folder=folder)
    repos = {}
    for name, (_, role) in zip(wanted, copies.named_roles(), strict=True):
        with Path(role.model).open("rb") as file:
            content = mmap(file.fileno(), 0, access=ACCESS_READ)
        path = name.file or f"{name.repo.partition('/')[2]}.{name.label}.gguf"
        repos[name.repo] = Repo([{path: content}], hashes=(name.revision,) if name.revision else ())
    return repos


@dataclass
class Counted:
    """What became of a pull of `size` bytes.

    times: interruptions, by what they were.  twice: bytes that were sent twice, by the same.
    went_back: requests that began before an earlier one of the same file.  whole: whether all files are the hub's.
    """

    size: int
    times: Counter[str] = field(default_factory=Counter)
    twice: Counter[str] = field(default_factory=Counter)
    went_back: int = 0
    whole: bool = False

    @property
    def kept(self) -> bool:
        """Whether all continued where it stopped, and ended as it should."""
        return self.whole and not self.went_back and self.twice.total() <= MOST * self.size

    def __str__(self) -> str:
        def share(count: int) -> str:
            return f"{count / 1e6:.2f} MB ({100 * count / self.size:.3f} %)"

        kinds = [f"  {how}: {count}, sent twice {share(self.twice[how])}" for how, count in sorted(self.times.items())]
        return "\n".join(
            [
                f"{self.times.total()} interruptions of {self.size / 1e6:.1f} MB: sent twice "
                f"{share(self.twice.total())}",
                *kinds,
                f"{self.went_back} pulls went back; the files are {'as on the hub' if self.whole else 'DAMAGED'}",
            ]
        )


class Puller:
    """Pulls into a cache of its own."""

    def __init__(self, folder: Path, server: HubServer, what: str) -> None:
        self._what = what
        self._hub = folder / "hf" / "hub"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self._environment = kept | {
            "EFT_HOME": str(folder / "eft"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> subprocess.Popen[bytes]:
        def hear_ctrl_c() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        silent = subprocess.DEVNULL
        command = [*EFT, "pull", self._what]
        return subprocess.Popen(command, env=self._environment, stdout=silent, stderr=silent, preexec_fn=hear_ctrl_c)

    def ask(self, *options: str) -> str:
        """Return what `eft ask` says."""
        command = [*EFT, "ask", "--recipe", self._what, *options, QUESTION]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True).stdout

    def size(self) -> int:
        """Return the bytes that are here."""
        return sum(_size(path) for path in self._hub.glob("models--*/blobs/*"))

    def has(self, repos: Mapping[str, Repo]) -> bool:
        """Whether every file of these repositories is here, byte for byte."""
        for name, repo in repos.items():
            blobs = self._hub / f"models--{name.replace('/', '--')}" / "blobs"
            contents = {sha256(content): content for content in repo.files.values()}
            if {path.name for path in blobs.iterdir()} != set(contents):
                return False
            if not all(_same(blobs / etag, content) for etag, content in contents.items()):
                return False
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed meanwhile
        return 0


def _same(path: Path, content: Content) -> bool:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        return len(mapped) == len(content) and all(
            mapped[start : start + (1 << 24)] == content[start : start + (1 << 24)]
            for start in range(0, len(content), 1 << 24)
        )


def interrupted(
    puller: Puller, server: HubServer, count: int, how: Sequence[str], pace: float | None, seed: int
) -> Counted:
    """Interrupt a pull of all that the hub has so many times, and let it end.

    pace: bytes that the hub sends in a second, None for all that it can.
    """
    dice = random.Random(seed)
    size = sum(len(content) for repo in server.repos.values() for content in repo.files.values())
    counted = Counted(size)
    paced = Fault(piece=PIECE, delay=PIECE / pace) if pace else Fault(piece=LARGE_PIECE)
    server.always = paced
    process, here = puller.start(), 0
    for moment in sorted(dice.sample(range(1, size * 49 // 50), count)):
        kind, least = dice.choice(how), max(moment, here + 1)
        _wait_for(lambda least=least: puller.size() >= least, process)
        time.sleep(dice.uniform(0, 2 * paced.delay))
        if (number := HOW[kind]) is None:
            server.hang_up.set()
            _wait_for(lambda: not server.hang_up.is_set(), process)
        else:
            process.send_signal(number)
            process.wait()
        time.sleep(QUIET)
        here = puller.size()
        counted.times[kind] += 1
        counted.twice[kind] += server.sent() - here - counted.twice.total()
        if number is not None:
            process = puller.start()
    server.hang_up.clear()
    counted.whole = process.wait() == 0 and puller.has(server.repos)
    counted.went_back = _went_back(server)
    return counted


def _went_back(server: HubServer) -> int:
    furthest: dict[str, int] = {}
    count = 0
    for request in server.downloads():
        count += request.start < furthest.get(request.path, 0)
        furthest[request.path] = max(request.start, furthest.get(request.path, 0))
    return count


def _wait_for(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so, or cannot become so as the process has ended."""
    end = time.monotonic() + PATIENCE
    while not reached() and process.poll() is None:
        assert time.monotonic() < end, f"a pull came no further in {PATIENCE:.0f} s"
        time.sleep(0.001)


def noise(size: int) -> dict[str, Repo]:
    """Return a repository with one file of so many bytes, org/Big:Q4_0."""
    return {"org/Big": Repo([{"big.Q4_0.gguf": np.random.default_rng(size).bytes(size)}])}


def main() -> int:
    """Measure, and tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("recipe", nargs="?", default="smollm2-laptop")
    options.add_argument("--interruptions", type=int, default=50)
    options.add_argument("--how", type=lambda text: text.split(","), default=list(HOW))
    options.add_argument("--size", type=float, help="MB")
    options.add_argument("--pace", type=float, help="MB/s; as fast as it goes without")
    options.add_argument("--seed", type=int, default=1)
    requested = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, answers = Path(name), True
        if requested.size:
            what, repos = "org/Big:Q4_0", noise(round(requested.size * 1e6))
        else:
            what, repos = requested.recipe, repositories(requested.recipe, SMOLLM2, N_VOCAB, folder / "models")
        with serving(repos) as server:
            puller = Puller(folder, server, what)
            began = time.monotonic()
            counted = interrupted(
                puller,
                server,
                requested.interruptions,
                requested.how,
                requested.pace and requested.pace * 1e6,
                requested.seed,
            )
            print(f"{counted}\nin {time.monotonic() - began:.0f} s", flush=True)
        if not requested.size:
            answer = puller.ask("--temperature", "0")
            print(f"> {QUESTION}\n{answer}")
            answers = answer.strip() == ANSWER
    return int(not (counted.kept and answers))


if __name__ == "__main__":
    sys.exit(main())
