"""Pre-training of base and small on the same stream of documents."""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from .corpus import Corpus
from .model import Llama, Shape
from .tokenizer import BOS_ID, END_ID, EOS_ID

ROW = 256
"""Tokens in a training row."""


@dataclass(frozen=True)
class Schedule:
    """`steps` of `rows` rows each; the learning rate warms up, stays, and falls to zero over the last `decay` share.

    `stop` ends the schedule early, where a next phase takes over at the rate that was reached.
    """

    steps: int
    rate: float
    stop: int | None = None
    rows: int = 8
    warmup: int = 100
    decay: float = 0.4

    def at(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup)
        falling = min(1.0, (self.steps - step) / max(1.0, self.steps * self.decay))
        return self.rate * min(rising, falling)


@dataclass(frozen=True)
class Phase:
    """A schedule, and the file of tokens that it reads in a shuffled order."""

    schedule: Schedule
    tokens: Path


def write_tokens(corpus: Corpus, tokenizer: Tokenizer, count: int, path: Path) -> None:
    """Store `count` tokens of documents (BOS … EOS each) as uint16."""
    stream = corpus.documents()
    pieces: list[NDArray[np.uint16]] = []
    total = 0
    while total < count:
        for encoded in tokenizer.encode_batch(list(itertools.islice(stream, 2000))):
            pieces.append(np.array([BOS_ID, *encoded.ids, EOS_ID], dtype=np.uint16))
            total += len(pieces[-1])
    np.save(path, np.concatenate(pieces)[:count])


def batches(tokens: NDArray[np.uint16], rows: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [rows, ROW + 1] in a shuffled order, another one in every pass."""
    generator = np.random.default_rng(seed)
    usable = (len(tokens) - 1) // ROW
    while True:
        order = generator.permutation(usable)
        for first in range(0, usable - rows + 1, rows):
            starts = order[first : first + rows] * ROW
            yield torch.from_numpy(np.stack([tokens[s : s + ROW + 1] for s in starts]).astype(np.int64))


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which learns rare facts in fewer steps, and AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "token_embd" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "token_embd" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pretrain(shape: Shape, phases: Sequence[Phase], seed: int, log: Callable[[str], None]) -> Llama:
    """Train a model of `shape` through the phases.

    The end-of-turn token never occurs in documents. It starts its life as a copy of the end-of-document token, which
    is how chat tokens are commonly initialised, so that tuning only has to say when, not what, an end is.
    """
    torch.manual_seed(seed)
    model = Llama(shape)

    def loss_of(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    # compiling takes half a minute and a C++ compiler, and saves a quarter of the time
    compiled = torch.compile(loss_of) if shutil.which("g++") else loss_of
    for number, phase in enumerate(phases, 1):
        _train(model, compiled, phase, seed, functools.partial(_prefixed, log, f"phase {number} "))
    with torch.no_grad():
        model.token_embd.weight[END_ID] = model.token_embd.weight[EOS_ID]
    return model


def _prefixed(log: Callable[[str], None], prefix: str, text: str) -> None:
    log(prefix + text)


def _train(
    model: Llama, loss_of: Callable[[Tensor], Tensor], phase: Phase, seed: int, log: Callable[[str], None]
) -> None:
    schedule = phase.schedule
    data = batches(np.load(phase.tokens, mmap_mode="r"), schedule.rows, seed)
    chosen = optimizers(model, schedule.rate)
    began, running = time.monotonic(), 0.0
    for step in range(schedule.stop or schedule.steps):
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
        loss = loss_of(next(data))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            log(f"step {step + 1}/{schedule.stop or schedule.steps}  loss {running / 100:.3f}  {seconds:.0f} s")
            running = 0.0
