"""A benchmark as JSON and as text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from eft_local.analysis.format import share
from eft_local.bench.machine import place
from eft_local.bench.results import AUTO, BASE, PLAIN, Answers, Benchmark, Spread
from eft_local.machine.cores import CoreUse

_WIDTH = 80


def as_dict(benchmark: Benchmark) -> dict[str, Any]:
    """Return the benchmark ready for JSON; its keys are explained in bench/README.md.

    The figures at the top level are those of the first kind of answers, the long ones unless only short ones were
    requested; those of the second kind are under "short".
    """
    kinds = list(benchmark.answers.values())
    shared = {
        "batch8_over_1": benchmark.batch_over_one(PLAIN, 8),
        "prompt_over_llama": benchmark.prompt_over_llama(),
    }
    first = _answers(kinds[0], shared)
    for name, role in first["roles"].items():
        role["prompt_tokens_per_second"] = benchmark.prompt_speed(name).as_dict()
    sizes = sorted({size for _, size in benchmark.batches[0]})
    return {
        **benchmark.about,
        "seconds": benchmark.seconds,
        "cores": benchmark.cores and benchmark.cores.as_dict(),
        "parts": {name: {"blocks": len(each), "seconds": sum(each)} for name, each in benchmark.parts.items()},
        "memory": {
            "roles": dict(benchmark.memory.roles),
            "models": benchmark.memory.models,
            "process": benchmark.memory.process,
        },
        **first,
        "batches": {
            contender: {str(size): benchmark.batch_speed(contender, size).as_dict() for size in sizes}
            for contender in (PLAIN, AUTO)
        },
        "short": _answers(kinds[1], {}) if len(kinds) > 1 else None,
    }


def _answers(answers: Answers, shared: Mapping[str, Spread]) -> dict[str, Any]:
    """Return one kind's ratios as bare numbers, their spread, then what they were made of."""
    best = answers.best_fixed()
    ratios = {
        "plain_over_roles": answers.plain_over_roles(),
        "speculative_over_plain": answers.speed_over(AUTO, PLAIN),
        "speculative_over_base": answers.speed_over(AUTO, BASE),
        "auto_over_best_fixed": answers.speed_over(AUTO, best),
        "overhead_ms": answers.overhead_ms(),
        **shared,
    }
    return {
        "kind": answers.kind,
        "questions": len(answers.questions),
        "skipped": answers.skipped,
        **{name: ratio.median for name, ratio in ratios.items()},
        "spread": {name: ratio.as_dict() for name, ratio in ratios.items()},
        "best_fixed": best,
        "contenders": {name: _contender(answers, name) for name in answers.contenders},
        "roles": {name: {"decode_ms": answers.role_ms(name).as_dict()} for name in answers.tokens[0].roles},
    }


def _contender(answers: Answers, name: str) -> dict[str, Any]:
    drafts = answers.drafts(name)
    return {
        "tokens_per_second": answers.speed(name).as_dict(),
        "ms_per_token": answers.ms(name).as_dict(),
        "drafted": drafts.drafted,
        "accepted": drafts.accepted,
        "acceptance": drafts.acceptance,
        "tokens_per_round": drafts.tokens_per_round,
        "lengths": {str(length): count for length, count in drafts.lengths.items()},
        "same_as_plain": None if name == BASE else answers.same_as_plain(name),
    }


def text(benchmark: Benchmark) -> str:
    """Return what a person reads."""
    about, memory = benchmark.about, benchmark.memory
    shape = f" at shape {about['shape']}, {about['quantization']}" if about["shape"] else ""
    models = ", ".join(f"{name} {_size(size)}" for name, size in memory.roles.items())
    lines = [
        f"recipe {about['recipe']}{shape}; greedy; drafts by {about['draft_source']}; "
        f"{benchmark.seconds / 60:.1f} minutes",
        place(about["machine"]),
        *(f"exact, {name}: {text}" for name, text in about.get("exact", {}).items()),
        *_busy(benchmark.cores),
        f"weights: {models}; the process holds {_size(memory.process)}",
        "Medians [quartiles]; ratios are taken question by question, or token by token. "
        "base: it alone, for as many tokens; accepted: of the drafted tokens; a round: "
        "tokens that one evaluation of the base gives.",
    ]
    console = Console(file=io.StringIO(), width=2 * _WIDTH, highlight=False, markup=False, emoji=False)
    _say(console, *lines)
    for number, answers in enumerate(benchmark.answers.values()):
        if number == 0:
            _print_roles(console, benchmark, answers)
        _print_answers(console, answers)
    _print_batches(console, benchmark)
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def _busy(cores: CoreUse | None) -> list[str]:
    """Return what to say of other programs, if they were in the way."""
    if cores is None or not cores.busy:
        return []
    return [
        f"The machine was busy: other programs used {cores}, on average. Speeds are lower than on an idle one; ratios "
        "are taken within moments, and hold."
    ]


def _print_roles(console: Console, benchmark: Benchmark, answers: Answers) -> None:
    """What llama.cpp alone takes for each role, and a plain step beside it."""
    rows = [
        (name, _cell(answers.role_ms(name)), _cell(benchmark.prompt_speed(name))) for name in answers.tokens[0].roles
    ]
    _print_table(console, "llama.cpp alone", ("role", "ms per token", "prompt tokens/s"), rows)
    _say(
        console,
        f"plain step ÷ sum of the roles: {_cell(answers.plain_over_roles())}, {len(answers.tokens)} tokens; "
        f"outside llama.cpp: {_cell(answers.overhead_ms())} ms per token",
        f"our prompts ÷ llama.cpp's: {_cell(benchmark.prompt_over_llama())} of its speed, "
        f"{benchmark.prompts[0].tokens['base']} tokens",
    )


def _print_answers(console: Console, answers: Answers) -> None:
    """One kind of answers: every contender's speed, and what became of its drafts."""
    rows = []
    for name in answers.contenders:
        drafts = answers.drafts(name)
        accepted = drafts.acceptance
        rows.append(
            (
                name,
                _cell(answers.speed(name)),
                _cell(answers.speed_over(name, PLAIN)),
                _cell(answers.speed_over(name, BASE)),
                "" if accepted is None else share(accepted),
                "" if accepted is None else f"{drafts.tokens_per_round:.2f}",
            )
        )
    steps = sum(runs[PLAIN].steps for runs in answers.questions) / len(answers.questions)
    count = _count(len(answers.questions), "question")
    title = f"{answers.kind.capitalize()} answers: {count}, {steps:.0f} tokens each on average"
    _print_table(console, title, ("drafts", "tokens/s", "÷ plain", "÷ base", "accepted", "a round"), rows)
    best, lengths = answers.best_fixed(), answers.drafts(AUTO).lengths
    rounds = sum(lengths.values())
    shares = ", ".join(f"{length} ({share(count / rounds)})" for length, count in lengths.items())
    unlike = {name: answers.same_as_plain(name) for name in answers.contenders if name != BASE}
    text = [f"{name} {same}" for name, same in unlike.items() if same < len(answers.questions)]
    lines = [
        f"auto ÷ best fixed length ({best}): {_cell(answers.speed_over(AUTO, best))}",
        f"lengths that auto drafted: {shares}",
        f"answers equal to plain's, of {len(answers.questions)}: {', '.join(text)}; all with the others"
        if text
        else "all wrote the same answers, token for token",
    ]
    if answers.skipped:
        lines.append(f"left out: {_count(answers.skipped, 'question')} where an answer ended with its first token")
    _say(console, *lines)


def _print_batches(console: Console, benchmark: Benchmark) -> None:
    sizes = sorted({size for _, size in benchmark.batches[0]})
    rows = [
        (
            str(size),
            _cell(benchmark.batch_speed(PLAIN, size)),
            f"{benchmark.batch_over_one(PLAIN, size).median:.2f}",
            _cell(benchmark.batch_speed(AUTO, size)),
            f"{benchmark.batch_over_one(AUTO, size).median:.2f}",
        )
        for size in sizes
    ]
    title = f"Answers side by side: tokens/s of all together, {_count(len(benchmark.batches), 'round')}"
    _print_table(console, title, ("answers", "plain", "÷ one", "auto", "÷ one"), rows)


def _print_table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(f"\n{title}")
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(textwrap.fill(line, _WIDTH), soft_wrap=True)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _cell(figure: Spread) -> str:
    """Return the median and the quartiles with as many significant digits as are meaningful."""
    digits = 2 if figure.median < 10 else 1 if figure.median < 100 else 0
    if figure.n == 1:
        return f"{figure.median:.{digits}f}"
    return f"{figure.median:.{digits}f} [{figure.low:.{digits}f}-{figure.high:.{digits}f}]"
