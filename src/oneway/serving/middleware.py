"""The outermost layer: who may ask, how much, and what is written down of it."""

import hmac
import logging
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneway.errors import where_raised
from oneway.serving.http_errors import RefusedError, error_response
from oneway.serving.metrics import ServerMetrics

log = logging.getLogger("oneway.serving")

OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready")
"""Paths that a probe may ask without a token, and by any name of this machine."""

MOST_HEADER_BYTES = 64 * 2**10
"""Most bytes of a request's path and headers together."""


class AccessMiddleware:
    """Checks the bearer token, answers every exception with an error, logs and counts.

    No exception passes it: the server behind it would log the text.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: bytes | None,
        metrics: ServerMetrics,
        hosts: Sequence[str] | None,
        most_bytes: int,
        most_requests: int,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            token: The bearer token that clients must send; None for none.
            metrics: Where requests are counted.
            hosts: Names, or patterns such as ``"*.example.org"``, that a request's header Host may
                have, without a port; None for any.
            most_bytes: Most bytes that all requests under way may hold together.
            most_requests: Most requests under way. Probes are always answered, and neither they
                nor refused requests are counted.
        """
        self.app, self.token, self.metrics, self.hosts = app, token, metrics, hosts
        self.most_bytes, self.most_requests = most_bytes, most_requests
        self.bytes = self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            size = len(message.get("body", b""))
            if self.bytes + size > self.most_bytes:
                raise RefusedError(
                    429, "too many bytes are under way; ask again later", "busy", retry_after=1
                )
            self.bytes, read = self.bytes + size, read + size
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("facts", {})
        refusal = self._refusal(scope)
        counts = refusal is None and scope["path"] not in OPEN_ROUTES
        self.requests += counts
        try:
            if refusal is None:
                await self.app(scope, counted, watched)
            else:
                facts["refused"] = refusal.reason
                await error_response(refusal)(scope, receive, watched)
        except ClientDisconnect:
            facts["refused"] = "disconnected"
        # Closed on purpose: an error that passes would be logged with its text.
        except Exception as error:  # noqa: BLE001
            facts |= {"refused": "failure", "error": type(error).__name__}
            facts["raised"] = where_raised(error)
            if not status:
                failed = RefusedError(500, "the server failed", "failure")
                await error_response(failed)(scope, receive, watched)
        finally:
            self.bytes -= read
            self.requests -= counts
        self._write(scope, status, time.perf_counter() - begin, facts)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        """Return why a request is turned away before it is read, or None."""
        headers = dict(scope["headers"])
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            # A gateway before this server may have seen another end of the request.
            return RefusedError(400, "a request must have one length", "bad_request", closing=True)
        # The parser's own limit does not hold for headers that arrive in one piece.
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size + len(scope["raw_path"]) + len(scope["query_string"]) > MOST_HEADER_BYTES:
            text = f"path and headers may have {MOST_HEADER_BYTES} bytes"
            return RefusedError(431, text, "too_large", closing=True)
        # Whoever guards a path by its text, as a gateway does, must see the text that is served.
        if quote(scope["path"], safe="/:@!$&'()*+,;=~").encode() != scope["raw_path"]:
            text = "the path must be written without percent signs where none are needed"
            return RefusedError(400, text, "bad_request")
        if scope["path"] in OPEN_ROUTES:
            return None
        if not self._serves(scope):
            return RefusedError(421, "this server is not asked by that name", "host")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return RefusedError(415, "a request must not be packed", "bad_request")
        if not self._authorized(scope):
            return RefusedError(401, "a valid bearer token is needed", "unauthorized")
        if self.requests >= self.most_requests:
            return RefusedError(
                503, "too many requests are under way; ask again later", "busy", retry_after=1
            )
        return None

    def _serves(self, scope: Scope) -> bool:
        """Say whether a request names this server: a page elsewhere may point its name here."""
        if self.hosts is None:
            return True
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(sent) != 1:
            return False
        host = sent[0].lower()
        name = host.partition("]")[0] + "]" if host[:1] == "[" else host.rpartition(":")[0] or host
        return any(
            name == known or (known.startswith("*.") and name.endswith(known[1:]))
            for known in self.hosts
        )

    def _authorized(self, scope: Scope) -> bool:
        if self.token is None:
            return True
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) != 1:
            return False
        scheme, _, token = sent[0].partition(b" ")
        # Compared in a time that does not reveal how much of it is right.
        return hmac.compare_digest(token, self.token) and scheme.lower() == b"bearer"

    def _write(self, scope: Scope, status: int, seconds: float, facts: dict[str, Any]) -> None:
        # Never the path: it is a client's text.
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if "refused" in facts:
            self.metrics.refused.labels(facts["refused"]).inc()
        level = logging.ERROR if status >= 500 else logging.INFO
        line = {"route": route, "status": status, "milliseconds": round(1000 * seconds, 3), **facts}
        log.log(level, "request", extra={"facts": line})
