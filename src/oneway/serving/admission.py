"""Who may ask, how much may be under way, and what is written down: alike for HTTP and gRPC."""

import hmac
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from oneway.serving.http_errors import RefusedError
from oneway.serving.metrics import ServerMetrics

log = logging.getLogger("oneway.serving")


class Admission:
    """Admits requests, and logs and counts them when they end.

    Attributes:
        requests: How many requests are under way. Neither probes nor refused requests count.
        bytes: How many bytes they hold.
    """

    def __init__(
        self, token: bytes | None, metrics: ServerMetrics, *, most_bytes: int, most_requests: int
    ) -> None:
        """Admit nobody yet.

        Args:
            token: The bearer token that clients must send; None for none.
            metrics: Where requests are counted.
            most_bytes: Most bytes that all requests under way may hold together.
            most_requests: Most requests under way.
        """
        self.token, self.metrics = token, metrics
        self.most_bytes, self.most_requests = most_bytes, most_requests
        self.bytes = self.requests = 0

    def check(self, authorizations: Sequence[bytes]) -> None:
        """Refuse a request before anything of it is read.

        Args:
            authorizations: All that it sends as ``Authorization``.

        Raises:
            RefusedError: It lacks the token, or too many requests are under way.
        """
        if self.token is not None and not self._is_token(authorizations):
            raise RefusedError(401, "a valid bearer token is needed", "unauthorized")
        if self.requests >= self.most_requests:
            raise RefusedError(
                503, "too many requests are under way; ask again later", "busy", retry_after=1
            )

    def _is_token(self, authorizations: Sequence[bytes]) -> bool:
        if len(authorizations) != 1:
            return False
        scheme, _, token = authorizations[0].partition(b" ")
        # Compared in a time that does not reveal how much of it is right.
        return hmac.compare_digest(token, self.token or b"") and scheme.lower() == b"bearer"

    @contextmanager
    def under_way(self, *, counts: bool) -> Iterator[Callable[[int], None]]:
        """Count one request until the block ends; give what counts its bytes as they arrive.

        Args:
            counts: Whether the request itself is counted. Its bytes always are.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.bytes + size > self.most_bytes:
                raise RefusedError(
                    429, "too many bytes are under way; ask again later", "busy", retry_after=1
                )
            self.bytes, held = self.bytes + size, held + size

        self.requests += counts
        try:
            yield take
        finally:
            self.bytes -= held
            self.requests -= counts

    def write(self, route: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        """Log and count a request that has ended.

        Args:
            route: Which method was asked. Never a path: that is a client's text.
            status: The status of HTTP, also for gRPC; 0 if nothing was sent.
            seconds: How long it took.
            facts: What else the log says; ``refused`` is the reason of a refusal.
        """
        self.metrics.count(route, status, seconds, facts.get("refused"))
        level = logging.ERROR if status >= 500 else logging.INFO
        if log.isEnabledFor(level):
            line = {"route": route, "status": status, "milliseconds": round(1000 * seconds, 3)}
            log.log(level, "request", extra={"facts": line | facts})
