"""What Prometheus reads at /metrics; a registry for each application, none for the process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cmt.memory import Memory

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The service's counters.

    Attributes:
        requests: By method, route and status.
        request_seconds: From a request's first byte to the response's last, by route.
        waiting_questions: Questions that wait for a batch.
        batch_size: Questions answered together.
        turn_wait: How long a batch waits for the model while documents are being learned.
        pass_seconds: How long one pass of the compressor keeps the model.
        generated_tokens: Tokens of answers.
        left: Questions whose asker left before the answer's end.
        documents: Documents by what became of them: added, updated, unchanged, failed.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "cmt_requests", "Requests", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "cmt_request_seconds", "Seconds", ["route"], buckets=_SECONDS, registry=registry
        )
        self.waiting_questions = Gauge(
            "cmt_waiting_questions", "Questions that wait for a batch", registry=registry
        )
        self.batch_size = Histogram(
            "cmt_batch_questions",
            "Questions answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.turn_wait = Histogram(
            "cmt_turn_wait_seconds",
            "Wait of a batch for a pass of the compressor to end",
            buckets=_SECONDS,
            registry=registry,
        )
        self.pass_seconds = Histogram(
            "cmt_learning_pass_seconds",
            "One pass of the compressor",
            buckets=_SECONDS,
            registry=registry,
        )
        self.generated_tokens = Counter(
            "cmt_generated_tokens", "Tokens of answers", registry=registry
        )
        self.left = Counter(
            "cmt_left_questions", "Questions whose asker left first", registry=registry
        )
        self.documents = Counter(
            "cmt_documents", "Documents by what became of them", ["outcome"], registry=registry
        )
        self._held = Gauge("cmt_bank", "What the bank holds", ["what"], registry=registry)

    def text(self, memory: Memory) -> bytes:
        """Everything in Prometheus's text format, the bank counted now."""
        count = memory.count()
        self._held.labels("documents").set(count.documents)
        self._held.labels("memories").set(count.memories)
        return generate_latest(self.registry)
