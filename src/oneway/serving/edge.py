"""The outermost layer: who may ask, how much, and what is written down of it."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneway.errors import where_raised
from oneway.serving.metrics import ServerMetrics
from oneway.serving.refusals import RefusedError

T = TypeVar("T")

log = logging.getLogger("oneway.serving")

OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready")
"""What a probe may ask without a token."""


class Edge:
    """Checks the bearer token, answers whatever is raised with an error, logs and counts.

    No exception passes it: the server behind it would log the text.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: bytes | None,
        metrics: ServerMetrics,
        most_bytes: int,
        most_requests: int,
    ) -> None:
        """Wrap an application.

        Args:
            app: What is behind.
            token: What clients must send; None for none.
            metrics: Where requests are counted.
            most_bytes: What all requests under way may hold together.
            most_requests: How many may be under way. Probes are always answered.
        """
        self.app, self.metrics = app, metrics
        self.most_bytes, self.most_requests = most_bytes, most_requests
        self.bytes = self.requests = 0
        self._expected = token

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
            held = len(message.get("body", b""))
            if self.bytes + held > self.most_bytes:
                raise RefusedError(
                    429, "too many bytes are under way; ask again later", "busy", retry_after=1
                )
            self.bytes, read = self.bytes + held, read + held
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("facts", {})
        refusal = self._refusal(scope)
        self.requests += 1
        try:
            if refusal is None:
                await self.app(scope, counted, watched)
            else:
                facts["refused"] = refusal.reason
                await refused(refusal)(scope, receive, watched)
        except ClientDisconnect:
            facts["refused"] = "disconnected"
        # Closed on purpose: an error that passes would be logged with its text.
        except Exception as error:  # noqa: BLE001
            facts |= {"refused": "failure", "error": type(error).__name__}
            facts["raised"] = where_raised(error)
            if not status:
                failed = RefusedError(500, "the server failed", "failure")
                await refused(failed)(scope, receive, watched)
        finally:
            self.bytes -= read
            self.requests -= 1
        self._write(scope, status, time.perf_counter() - begin, facts)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        """Return why a request is turned away before it is read, or None."""
        names = {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Whoever stands before this server may have seen another end of the request.
            return RefusedError(400, "a request must have one length", "bad_request", closing=True)
        if scope["path"] in OPEN_ROUTES:
            return None
        if not self._may(scope):
            return RefusedError(401, "a valid bearer token is needed", "unauthorized")
        if self.requests >= self.most_requests:
            return RefusedError(
                503, "too many requests are under way; ask again later", "busy", retry_after=1
            )
        return None

    def _may(self, scope: Scope) -> bool:
        if self._expected is None:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        # Compared in a time that does not tell how much of it is right.
        return hmac.compare_digest(token, self._expected) and scheme.lower() == b"bearer"

    def _write(self, scope: Scope, status: int, seconds: float, facts: dict[str, Any]) -> None:
        # Never the path: it is a client's text.
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if "refused" in facts:
            self.metrics.refused.labels(facts["refused"]).inc()
        level = logging.ERROR if status >= 500 else logging.INFO
        said = {"route": route, "status": status, "milliseconds": round(1000 * seconds, 3), **facts}
        log.log(level, "request", extra={"facts": said})


def refused(error: RefusedError) -> Response:
    """Return the answer that tells a refusal, as the Open Inference Protocol says."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.closing:
        headers["Connection"] = "close"
    return as_json({"error": error.text}, error.status, headers)


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON. Numbers are written so that reading them gives the same bits."""
    return Response(
        to_json(value, exclude_none=True), status, headers, media_type="application/json"
    )


async def on_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal, and note its reason."""
    if not isinstance(error, RefusedError):
        raise error
    request.scope["state"]["facts"]["refused"] = error.reason
    return refused(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the routes refuse, such as a path that is not there."""
    if not isinstance(error, HTTPException):
        raise error
    request.scope["state"]["facts"]["refused"] = "bad_request"
    text = {404: "there is no such path", 405: "this path takes another method"}
    headers = dict(error.headers) if error.headers else None
    said = {"error": text.get(error.status_code, "the request is refused")}
    return as_json(said, error.status_code, headers)


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """Wait for an answer as long as its client does. The request's body must have been read.

    Raises:
        ClientDisconnect: The client has gone; the answer is cancelled.
    """
    asked = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        asked.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, most_bytes: int, timeout_seconds: float) -> bytes:
    """Read a request's body, which may be so large and take so long.

    Raises:
        RefusedError: It is larger, or slower.
    """
    too_large = RefusedError(
        413, f"a request may have {most_bytes} bytes; send fewer queries at once", "too_large"
    )
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, "the request did not arrive in time", "timeout") from None
    return bytes(body)
