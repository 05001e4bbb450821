"""What the server counts, in the format of Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..modeling.aliases import Values

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the folder of the counts of several processes

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Requests by status, their latency by task, passes of the model, and inputs that wait."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Values = {"registry": self.registry, "namespace": "hf_multitask"}
        self.requests = Counter("requests", "Requests to /predict, by status.", ["status"], **own)
        self.seconds = Histogram(
            "request_seconds", "Seconds to the answer of a request, by task.", ["task"], buckets=_SECONDS, **own
        )
        self.batch_size = Histogram("batch_size", "Inputs of a pass of the model.", buckets=_SIZES, **own)
        self.batch_tokens = Histogram(
            "batch_tokens", "Tokens of a pass of the model, padding included.", buckets=_TOKENS, **own
        )
        self.batch_seconds = Histogram("batch_seconds", "Seconds of a pass of the model.", buckets=_SECONDS, **own)
        self.queue = Gauge(
            "queue", "Inputs that are accepted and not yet answered.", multiprocess_mode="livesum", **own
        )

    def on_request(self, status: int, seconds: float, tasks: Iterable[str] = ()) -> None:
        """Count a request."""
        self.requests.labels(str(status)).inc()
        for name in tasks:
            self.seconds.labels(name).observe(seconds)

    def on_pass(self, inputs: int, tokens: int, seconds: float) -> None:
        """Count a pass of the model."""
        self.batch_size.observe(inputs)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All figures, of all processes."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
