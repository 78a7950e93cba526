"""What a server did, for Prometheus: `GET /metrics`.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..inference.engine import Engine
from ..inference.request import Generation, Task

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counts requests by path and outcome, and how answers went; the engine's own counts are read when asked for."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCounts(engine))
        self._requests = Counter(
            "eden_requests", "HTTP requests, by path and status.", ["path", "status"], registry=self._registry
        )
        self._first_token = Histogram(
            "eden_time_to_first_token_seconds",
            "From a question's place in the queue to the first token of its answer.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._answer = Histogram(
            "eden_answer_seconds",
            "From a question's place in the queue to the end of its answer, by outcome.",
            ["outcome"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._speed = Histogram(
            "eden_answer_tokens_per_second",
            "Tokens a second behind the first, one answer at a time.",
            buckets=TOKENS_PER_SECOND,
            registry=self._registry,
        )

    def count_request(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def count_answer(self, task: Task) -> None:
        """Counts an answer or a decision that has ended, however it did."""
        assert task.finished_at is not None
        self._answer.labels(task.finish_reason).observe(task.finished_at - task.submitted_at)
        if isinstance(task, Generation) and task.first_token_at is not None:
            self._first_token.observe(task.first_token_at - task.submitted_at)
            if task.completion_tokens > 1:
                seconds = max(task.finished_at - task.first_token_at, 1e-6)
                self._speed.observe((task.completion_tokens - 1) / seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCounts(Collector):
    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("eden_waiting", "Questions in the queue.", stats.waiting)
        yield GaugeMetricFamily("eden_running", "Answers being written.", stats.running)
        yield GaugeMetricFamily("eden_alive", "1 while the model answers, 0 once it failed.", self._engine.alive)
        yield CounterMetricFamily("eden_prompt_tokens", "Tokens read.", stats.prompt_tokens)
        yield CounterMetricFamily("eden_completion_tokens", "Tokens written.", stats.completion_tokens)
        answers = CounterMetricFamily("eden_answers", "Answers and decisions, by outcome.", labels=["outcome"])
        for outcome, number in stats.finished.items():
            answers.add_metric([outcome], number)
        yield answers
