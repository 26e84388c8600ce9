"""Kill `eft pull` at random moments, start it again, and count what was fetched twice.

    python tests/kill_pulls.py [--kills 50] [--size MB] [--pace MB/S] [--seed 1]

A hub on loopback sends a file in small pieces, at most so many MB in a second. Every pull is a process, ended by
SIGKILL; the last one ends by itself, and the file is compared with what the hub has. What was sent twice is told in two
parts:

- before the kills: what had been sent, and is not in the file: lost in buffers of the program or of the connection.
- while the processes died: the hub goes on sending until the system has cleared a process away and closes its
  connection. No program can save that; it costs so many milliseconds of any download, slow or fast.

Prints one line, and ends with 1 if more than 0.5 per cent of the file was lost before the kills, or it is damaged.
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
from dataclasses import dataclass
from pathlib import Path

from hub_server import Fault, HubServer, Repo, serving

EFT = [sys.executable, "-c", "from eft_local.cli import main; main()"]
MOST = 0.005  # of the file
PATIENCE = 300.0  # seconds
PIECE = 4096  # bytes
SMOLLM2_135M = 144.810464  # MB of its Q8_0


@dataclass(frozen=True)
class Counted:
    """What became of a file of `size` bytes. before, after: bytes that the hub sent twice, in all.

    dying: seconds from a signal to the end of its process, in all.
    """

    kills: int
    size: int
    before: int
    after: int
    dying: float
    whole: bool

    @property
    def kept(self) -> bool:
        """Whether all was kept that a program can keep."""
        return self.whole and self.before <= MOST * self.size

    def __str__(self) -> str:
        def share(count: int) -> str:
            return f"{100 * count / self.size:.2f} %"

        return (
            f"{self.kills} kills on {self.size / 1e6:.1f} MB: sent twice {share(self.before + self.after)}, "
            f"{share(self.before)} before the kills and {share(self.after)} while the processes died "
            f"({1e3 * self.dying / self.kills:.1f} ms each); the file is {'as on the hub' if self.whole else 'DAMAGED'}"
        )


class Puller:
    """Starts pulls of the hub's one file, into a cache of its own."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self._blobs = folder / "hf" / "hub" / "models--org--Big" / "blobs"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self._environment = kept | {
            "EFT_HOME": str(folder / "eft"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def start(self) -> subprocess.Popen[bytes]:
        silent = subprocess.DEVNULL
        return subprocess.Popen([*EFT, "pull", "org/Big:Q4_0"], env=self._environment, stdout=silent, stderr=silent)

    def size(self) -> int:
        """Return the bytes that are here."""
        return max((path.stat().st_size for path in self._blobs.glob("*")), default=0)

    def content(self) -> bytes:
        (blob,) = self._blobs.iterdir()
        return blob.read_bytes()


def killed(folder: Path, kills: int, size: int, pace: float, seed: int) -> Counted:
    """Kill so many pulls of a file of `size` bytes that is sent at `pace` bytes per second; let another one end."""
    dice = random.Random(seed)
    content = dice.randbytes(size)
    before, dying, last = 0, 0.0, 0
    with serving({"org/Big": Repo([{"big.Q4_0.gguf": content}])}) as server:
        server.always = Fault(piece=PIECE, delay=PIECE / pace)
        puller = Puller(folder, server)
        for moment in sorted(dice.sample(range(1, size * 49 // 50), kills)):
            process = puller.start()
            _wait_for(puller, max(moment, last + 1))
            time.sleep(dice.uniform(0, 2 * PIECE / pace))
            request = server.downloads()[-1]
            sent = request.start + request.sent
            began = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            dying += time.monotonic() - began
            last = puller.size()
            before += max(0, sent - last)
        server.always = Fault()
        ended = puller.start().wait()
        whole = ended == 0 and puller.content() == content
    return Counted(kills, size, before, server.sent() - size - before, dying, whole)


def _wait_for(puller: Puller, size: int) -> None:
    end = time.monotonic() + PATIENCE
    while puller.size() < size:
        assert time.monotonic() < end, f"no pull reached {size} bytes in {PATIENCE:.0f} s"
        time.sleep(0.001)


def main() -> int:
    """Measure, and tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--size", type=float, default=SMOLLM2_135M, help="MB")
    options.add_argument("--pace", type=float, default=4.0, help="MB/s")
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted = killed(Path(folder), asked.kills, round(asked.size * 1e6), asked.pace * 1e6, asked.seed)
    print(counted)
    return int(not counted.kept)


if __name__ == "__main__":
    sys.exit(main())
