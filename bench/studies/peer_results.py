"""What running the same answers in transformers and here has given: rows of figures, and what each is over a peer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median
from typing import Any

from eft_local.bench.results import spread


@dataclass(frozen=True, slots=True)
class Written:
    """One answer.

    tokens: the chosen ones, the end token included. seconds: after the first token, whose time is the prompt's.
    margins: for a peer, which follows our answer, by how much it prefers its choice to our token; else empty.
    """

    tokens: tuple[int, ...]
    seconds: float
    margins: tuple[float, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there is no second one."""
        return (len(self.tokens) - 1) / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Row:
    """One row of the tables: a process, and a way of writing in it.

    weights: their bytes. answers: by question. prompts: tokens per second of long ones. memory: MB, as
    `proxy_tuning.resident` has it.
    """

    weights: int
    answers: dict[int, Written] = field(default_factory=dict)
    prompts: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def remember(self, memory: Mapping[str, float]) -> None:
        """Keep the largest figures of several processes."""
        self.memory = {name: max(value, self.memory.get(name, 0.0)) for name, value in memory.items()}


def summary(rows: Mapping[str, Row], peers: Iterable[str]) -> dict[str, Any]:
    """Return every row's figures, and what each row is over each of `peers`; the first row is the leader."""
    leader = next(iter(rows.values()))
    return {
        "contenders": {name: figures(row) | {"agreement": agreement(row, leader)} for name, row in rows.items()},
        "over": {peer: {name: ratios(row, rows[peer]) for name, row in rows.items() if name != peer} for peer in peers},
    }


def figures(row: Row) -> dict[str, Any]:
    speeds = {index: answer.tokens_per_second for index, answer in sorted(row.answers.items())}
    return {
        "tokens_per_second": spread(speeds.values()).as_dict(),
        "by_question": list(speeds.values()),
        "prompt_tokens_per_second": median(row.prompts),
        "memory_mb": row.memory,
        "weights_mb": row.weights / 1e6,
    }


def ratios(row: Row, other: Row) -> dict[str, Any]:
    """Return one row's figures over another's; tokens per second question by question."""
    pairs = [
        answer.tokens_per_second / other.answers[index].tokens_per_second
        for index, answer in row.answers.items()
        if other.answers[index].tokens_per_second
    ]
    return {
        "tokens_per_second": spread(pairs).as_dict(),
        "prompt_tokens_per_second": median(row.prompts) / median(other.prompts),
        "memory": row.memory["peak"] / other.memory["peak"],
    }


def agreement(row: Row, leader: Row) -> dict[str, Any]:
    """Compare tokens with the leader's: `same` of `tokens`, and the widest margin by which a peer prefers others.

    A peer follows the leader's answer, so that every position counts; other answers agree up to the first token that
    differs.
    """
    same = 0
    for index, answer in leader.answers.items():
        other = row.answers[index]
        agreeing = [a == b for a, b in zip(other.tokens, answer.tokens, strict=False)]
        same += sum(agreeing) if other.margins else sum(takewhile(bool, agreeing))
    margins = [margin for answer in row.answers.values() for margin in answer.margins]
    return {
        "same": same,
        "tokens": sum(len(answer.tokens) for answer in leader.answers.values()),
        "widest_margin": max(margins, default=None),
    }


def report(result: Mapping[str, Any]) -> str:
    """Return what a person reads of a whole result."""
    peer = result["peer"]
    lines = [
        f"{result['recipe']}, shape {result['shape']}; questions: {result['questions']}; "
        f"{result['kind']} answers of at most {result['max_tokens']} tokens, greedy",
        f"{result['machine']}, {result['threads']} threads; torch {peer['torch']} ({peer['instructions']}), "
        f"transformers {peer['transformers']}",
        f"Processes {result['order']}.",
        "",
        _line("medians (quartiles)", "tokens/s", "prompt t/s", "peak GB", "mapped"),
    ]
    for name, row in result["contenders"].items():
        memory = {key: f"{value / 1000:.2f}" for key, value in row["memory_mb"].items()}
        lines.append(_line(name, *_speeds(row), memory["peak"], memory["mapped"]))
    for peer_name, rows in result["over"].items():
        lines += ["", _line(f"× {peer_name}", "tokens/s", "prompt t/s", "memory")]
        lines += [_line(name, *_speeds(row), f"{row['memory']:.2f}") for name, row in rows.items()]
    leader = next(iter(result["contenders"]))
    lines += ["", f"tokens as in the answers of {leader}"]
    for name, row in result["contenders"].items():
        agreed = row["agreement"]
        text = f"; others preferred by at most {agreed['widest_margin']:.3f}" if agreed["widest_margin"] else ""
        lines.append(f"{name:26}{agreed['same']:>7} of {agreed['tokens']}{text}")
    return "\n".join(lines)


def _line(name: str, speed: str, prompt: str, memory: str, mapped: str = "") -> str:
    return f"{name:26}{speed:>22}{prompt:>12}{memory:>10}{mapped:>9}".rstrip()


def _speeds(row: Mapping[str, Any]) -> tuple[str, str]:
    speed = row["tokens_per_second"]
    text = f"{_figure(speed['median'])} ({_figure(speed['q1'])} … {_figure(speed['q3'])})"
    return text, _figure(row["prompt_tokens_per_second"])


def _figure(value: float) -> str:
    """Write three digits, or a whole number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{2 if value < 10 else 1}f}"
