"""Metrics for Prometheus: counts and durations, and nothing about any query or score."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, guard: Mapping[str, str]) -> None:
        """Register all metrics, at zero.

        Args:
            guard: Name and version of the guard.
        """
        self.registry = CollectorRegistry()
        Info("oneway_guard", "The guard that answers.", registry=self.registry).info(dict(guard))
        self.requests = Counter(
            "oneway_requests_total", "Requests.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "oneway_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "oneway_refused_total",
            "Requests that got no scores, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.released = Counter(
            "oneway_released_queries_total", "Queries that were answered.", registry=self.registry
        )
        self.batches = Histogram(
            "oneway_batch_queries", "Queries in a batch.", buckets=ROWS, registry=self.registry
        )
        self.waiting = Gauge("oneway_waiting_queries", "Queries that wait.", registry=self.registry)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
