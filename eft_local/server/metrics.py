"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from eft_local.engine.step import Answer
from eft_local.recipe.names import MIXTURE

if TYPE_CHECKING:
    from eft_local.server.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What a server counts."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("eft_requests", "Requests by path and status", ("path", "status"), registry=registry)
        self.answers = Counter("eft_answers", "Answers by how they ended", ("model", "reason"), registry=registry)
        self.tokens = Counter("eft_tokens", "Tokens written", ("model",), registry=registry)
        self.drafted = Counter(
            "eft_tokens_drafted", "Tokens written that a draft proposed", ("model",), registry=registry
        )
        self.prompts = Counter("eft_prompt_tokens", "Tokens of prompts, by role", ("model", "role"), registry=registry)
        self.evaluated = Counter(
            "eft_prompt_tokens_evaluated", "Tokens of prompts that no cache held", ("model", "role"), registry=registry
        )
        self.seconds = Counter(
            "eft_role_seconds", "Seconds in llama.cpp, by role", ("model", "role"), registry=registry
        )
        self.first_token = Histogram(
            "eft_first_token_seconds",
            "Seconds to the first token, waiting included",
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_State(service))

    def count(self, model: str, answer: Answer, drafted: int) -> None:
        """Count an answer that has ended."""
        self.answers.labels(model, answer.finish_reason).inc()
        self.tokens.labels(model).inc(len(answer.tokens))
        self.drafted.labels(model).inc(drafted)
        for role, tokens in answer.prompt_tokens.items():
            self.prompts.labels(model, role).inc(tokens)
            self.evaluated.labels(model, role).inc(answer.evaluated_tokens.get(role, 0))
        for role, timing in answer.timings.items():
            self.seconds.labels(model, role).inc((timing.prompt_ms + timing.generation_ms) / 1000)

    def text(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is so at the moment."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the queues and the caches."""
        running = GaugeMetricFamily("eft_running", "Answers that are being written", labels=["recipe"])
        waiting = GaugeMetricFamily("eft_waiting", "Answers in the queue", labels=["recipe"])
        used = GaugeMetricFamily(
            "eft_kv_tokens", "Tokens in KV caches: of answers, kept, room", labels=["recipe", "of"]
        )
        for model in self._service.models.values():
            if model.target != MIXTURE:
                continue
            running.add_metric([model.name], model.admission.running)
            waiting.add_metric([model.name], model.admission.waiting)
            sequences = [each for context in model.emulator.engine.cache.contexts for each in context.sequences]
            used.add_metric([model.name, "answers"], sum(each.length for each in sequences if not each.free))
            used.add_metric([model.name, "kept"], sum(each.length for each in sequences if each.free))
            used.add_metric([model.name, "room"], sum(each.context.room for each in sequences))
        yield from (running, waiting, used)
