"""What answers took: tokens, and time."""

from __future__ import annotations

from collections.abc import Sequence

from eft_local.engine.step import Answer
from eft_local.server.answers import PromptDetails, RoleTimings, Timings, Usage
from eft_local.server.service import Writing


def prompt_tokens(answer: Writing) -> int:
    """Return the tokens of the longest role's prompt."""
    return max(map(len, answer.request.prompts.values()))


def _cached(answer: Writing, figures: Answer) -> int:
    """Return how many tokens of the longest prompt no role had to evaluate."""
    return max(0, prompt_tokens(answer) - max(figures.evaluated_tokens.values(), default=0))


def usage(answers: Sequence[Writing], prompts: Sequence[Writing]) -> Usage:
    """Return the tokens of some answers. prompts: one of those for each prompt that several share."""
    figures = [answer.answer for answer in answers]
    read, written = sum(map(prompt_tokens, prompts)), sum(len(each.tokens) for each in figures)
    cached = sum(_cached(answer, answer.answer) for answer in prompts)
    details = PromptDetails(cached_tokens=cached)
    return Usage(
        prompt_tokens=read, completion_tokens=written, total_tokens=read + written, prompt_tokens_details=details
    )


def timings(answers: Sequence[Writing]) -> Timings:
    """Return where the time of some answers went; where they shared an evaluation, each has its share."""
    figures = [answer.answer for answer in answers]
    evaluated = sum(max(each.evaluated_tokens.values(), default=0) for each in figures)
    prompt = sum(timing.prompt_ms for each in figures for timing in each.timings.values())
    generation = sum(timing.generation_ms for each in figures for timing in each.timings.values())
    overhead = sum(each.overhead_ms for each in figures)
    written = sum(len(each.tokens) for each in figures)
    roles: dict[str, RoleTimings] = {}
    for each in figures:
        for name, timing in each.timings.items():
            role = roles.setdefault(name, RoleTimings(prompt_ms=0, generation_ms=0))
            role.prompt_ms += timing.prompt_ms
            role.generation_ms += timing.generation_ms
    predicted = generation + overhead
    return Timings(
        cache_n=sum(_cached(answer, each) for answer, each in zip(answers, figures, strict=True)),
        prompt_n=evaluated,
        prompt_ms=prompt,
        prompt_per_second=1000 * evaluated / prompt if prompt else 0,
        predicted_n=written,
        predicted_ms=predicted,
        predicted_per_second=1000 * written / predicted if predicted else 0,
        draft_n_accepted=sum(answer.drafted for answer in answers),
        overhead_ms=overhead,
        roles=roles,
    )
