"""Metrics for Prometheus: counts and durations, and nothing about any query or score."""

from collections.abc import Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from oneway.defenses.codebook import DriftTest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, guard: Mapping[str, str], test: DriftTest | None = None) -> None:
        """Register all metrics, at zero.

        Args:
            guard: Name and version of the guard.
            test: Watches the traffic; None: nothing does.
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
        if test is not None:
            self._watch(test)
        # Children are looked up behind a lock, by texts: once is enough.
        self._of_route = cache(self.seconds.labels)
        self._of_status = cache(self.requests.labels)

    def count(self, route: str, status: int, seconds: float, refused: str | None) -> None:
        """Count a request that has ended.

        Args:
            route: Which method was asked. Never a path: that is a client's text.
            status: The status of HTTP.
            seconds: How long it took.
            refused: The reason of a refusal, in one word; or None.
        """
        self._of_status(route, status).inc()
        self._of_route(route).observe(seconds)
        if refused is not None:
            self.refused.labels(refused).inc()

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _watch(self, test: DriftTest) -> None:
        """Register whether drift was seen.

        That is one bit, which changes once. What the test has gathered until then is not
        published: who sends most queries of a block could read the cells of the others from it.
        """
        seen = Gauge(
            "oneway_drift_seen",
            "0: no drift of cell shares seen. 1: drift. Changes within a cell stay unseen.",
            registry=self.registry,
        )
        seen.set_function(lambda: float(test.drift is not None))
        since = Gauge(
            "oneway_drift_since_seconds",
            "Unix time from which on the traffic is not as certified; 0: no drift seen.",
            registry=self.registry,
        )
        since.set_function(lambda: 0.0 if test.drift is None else test.drift.since)
