"""What a benchmark measured, and the ratios that follow from it. All ratios are taken within a block, then summarised.

A block is one question answered by every contender, or one token evaluated both ways: its parts were measured within
seconds of each other, so that what the machine did to one of them it did to all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from eft_local.errors import UsageError
from eft_local.machine.cores import CoreUse

PLAIN, AUTO, BASE = "plain", "auto", "base"


def fixed(length: int) -> str:
    """The name of the contender that always drafts so many tokens; without drafts it is the plain one."""
    return f"k={length}" if length else PLAIN


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of n samples."""

    median: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        return {"median": self.median, "q1": self.low, "q3": self.high, "n": self.n}


def spread(samples: Iterable[float]) -> Spread:
    """Summarise samples. Raises: UsageError if there are none."""
    values = list(samples)
    if not values:
        raise UsageError("nothing was measured; give it more --minutes")
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(median(values), low, high, len(values))


@dataclass(frozen=True, slots=True)
class Run:
    """One answer by one contender, after its first token, whose time is the prompt's.

    tokens: of the whole answer; the token that ends it is none of them.
    steps: choices of a token after the first, the one that ended the answer among them; seconds: what they took.
    drafts: the length of each draft, 0 where none was made (a draft token that ends it there is counted if it was
        right);
    accepted: drafted tokens that became part of the answer, or ended it.
    """

    tokens: tuple[int, ...]
    steps: int
    seconds: float
    drafts: tuple[int, ...] = ()
    accepted: int = 0

    @property
    def ms(self) -> float:
        """Milliseconds per token."""
        return 1000 * self.seconds / self.steps


@dataclass(frozen=True, slots=True)
class TokenTime:
    """One token, in seconds: as a plain step, its part inside llama.cpp, and each role's bare evaluation of it."""

    step: float
    inside: float
    roles: Mapping[str, float]

    @property
    def ratio(self) -> float:
        return self.step / sum(self.roles.values())


@dataclass(frozen=True, slots=True)
class PromptTime:
    """One long prompt: seconds until there is a first token, and of each role's bare evaluation of the same tokens."""

    emulated: float
    roles: Mapping[str, float]
    tokens: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """Our speed, as a share of llama.cpp's."""
        return sum(self.roles.values()) / self.emulated


@dataclass(frozen=True, slots=True)
class Drafts:
    """What became of a contender's drafts, over all questions.

    tokens_per_round: tokens that one evaluation of the base gave. lengths: how often each draft length was chosen.
    """

    drafted: int
    accepted: int
    tokens_per_round: float
    lengths: Mapping[int, int]

    @property
    def acceptance(self) -> float | None:
        """Accepted ÷ drafted tokens; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one kind: per question a run of every contender, and single tokens against the roles alone.

    skipped: questions whose answer ended with its first token, which has no speed.
    """

    kind: str
    questions: Sequence[Mapping[str, Run]]
    tokens: Sequence[TokenTime]
    skipped: int = 0

    @property
    def contenders(self) -> tuple[str, ...]:
        return tuple(self.questions[0]) if self.questions else ()

    def ms(self, contender: str) -> Spread:
        """Milliseconds per token of a contender, over questions."""
        return spread(runs[contender].ms for runs in self.questions)

    def speed(self, contender: str) -> Spread:
        """Tokens per second of a contender, over questions."""
        return spread(1000 / runs[contender].ms for runs in self.questions)

    def speed_over(self, contender: str, other: str) -> Spread:
        """How many times faster than `other` a contender writes the same answer."""
        return spread(runs[other].ms / runs[contender].ms for runs in self.questions)

    def role_ms(self, role: str) -> Spread:
        """Milliseconds of one bare evaluation."""
        return spread(1000 * each.roles[role] for each in self.tokens)

    def plain_over_roles(self) -> Spread:
        """Time of a plain step ÷ the sum of the roles' bare evaluations, token by token."""
        return spread(each.ratio for each in self.tokens)

    def overhead_ms(self) -> Spread:
        """Milliseconds of a plain step outside llama.cpp."""
        return spread(1000 * (each.step - each.inside) for each in self.tokens)

    def best_fixed(self) -> str:
        """The fixed length (no drafts included) that wrote all answers in the least time."""
        candidates = [name for name in self.contenders if name not in (AUTO, BASE)]
        return min(candidates, key=lambda name: sum(runs[name].seconds for runs in self.questions))

    def drafts(self, contender: str) -> Drafts:
        """What became of a contender's drafts."""
        runs = [questions[contender] for questions in self.questions]
        lengths = Counter(length for run in runs for length in run.drafts)
        return Drafts(
            drafted=sum(length * count for length, count in lengths.items()),
            accepted=sum(run.accepted for run in runs),
            tokens_per_round=sum(run.steps for run in runs) / max(lengths.total(), 1),
            lengths=dict(sorted(lengths.items())),
        )

    def same_as_plain(self, contender: str) -> int:
        """How many answers equal the plain one, token for token."""
        return sum(runs[contender].tokens == runs[PLAIN].tokens for runs in self.questions)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: each role's weights (roles on one file have it in common), of all files, and of the process at the end."""

    roles: Mapping[str, int]
    models: int
    process: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One run.

    about: what was run and where (recipe, shape, machine, command, …), ready for JSON.
    batches: per block, tokens per second by (contender, answers side by side).
    parts: seconds of every block of each part of the run; seconds: from the command's start to its end.
    cores: what other programs used of them meanwhile.
    """

    about: Mapping[str, Any]
    answers: Mapping[str, Answers]
    batches: Sequence[Mapping[tuple[str, int], float]]
    prompts: Sequence[PromptTime]
    memory: Memory
    parts: Mapping[str, Sequence[float]]
    seconds: float
    cores: CoreUse | None = None

    def batch_speed(self, contender: str, size: int) -> Spread:
        """Tokens per second of so many answers together."""
        return spread(block[contender, size] for block in self.batches)

    def batch_over_one(self, contender: str, size: int) -> Spread:
        """How many times the tokens per second of one answer so many make together."""
        return spread(block[contender, size] / block[contender, 1] for block in self.batches)

    def prompt_over_llama(self) -> Spread:
        """Our speed of reading a prompt ÷ llama.cpp's for the three roles."""
        return spread(each.ratio for each in self.prompts)

    def prompt_speed(self, role: str) -> Spread:
        """Prompt tokens per second of a role's bare evaluation."""
        return spread(each.tokens[role] / each.roles[role] for each in self.prompts)
