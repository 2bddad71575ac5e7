"""The outermost layer: who may ask, how much, and what is written down of it."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneway.serving.admission import Admission
from oneway.serving.connections import CONNECTION, MOST_HEADER_BYTES
from oneway.serving.http_errors import RefusedError, error_response, refusal_of

OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready")
"""Paths that a probe may ask without a token, and by any name of this machine."""


class AccessMiddleware:
    """Checks the bearer token, answers every exception with an error, logs and counts.

    No exception passes it: the server behind it would log the text.
    """

    def __init__(self, app: ASGIApp, *, admission: Admission, hosts: Sequence[str] | None) -> None:
        """Wrap an application.

        Args:
            app: The application.
            admission: Whom it admits. Probes are always answered.
            hosts: Names, or patterns such as ``"*.example.org"``, that a request's header Host may
                have, without a port; None for any.
        """
        self.app, self.admission, self.hosts = app, admission, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0
        state = scope.setdefault("state", {})
        facts: dict[str, Any] = state.setdefault("facts", {})
        connection = state.get(CONNECTION)
        if connection is not None:
            connection.asking = asyncio.current_task()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if connection is not None:
                    connection.asking = None  # to write the answer ends by itself
            await send(message)

        is_open = scope["path"] in OPEN_ROUTES
        try:
            self._check(scope)
            with self.admission.under_way(counts=not is_open) as take:

                async def counted() -> Message:
                    message = await receive()
                    take(len(message.get("body", b"")))
                    return message

                await self.app(scope, counted, watched)
        except (ClientDisconnect, asyncio.CancelledError) as error:
            is_gone = connection is not None and connection.gone
            if isinstance(error, asyncio.CancelledError) and not is_gone:  # the server ends
                raise
            facts["refused"] = "disconnected"
        # Closed on purpose: an error that passes would be logged with its text.
        except Exception as error:  # noqa: BLE001
            refusal = refusal_of(error, facts)
            if not status:
                await error_response(refusal)(scope, receive, watched)
        # Never the path: it is a client's text.
        route = getattr(scope.get("endpoint"), "__name__", "other")
        self.admission.write(route, status, time.perf_counter() - begin, facts)

    def _check(self, scope: Scope) -> None:
        """Refuse a request before it is read.

        Raises:
            RefusedError: The request is refused.
        """
        headers = dict(scope["headers"])
        codings = [value for name, value in scope["headers"] if name == b"transfer-encoding"]
        hosts = sum(name == b"host" for name, _ in scope["headers"])
        # A gateway before this server may have seen another end of the request, or another host.
        if (
            (codings and (b"content-length" in headers or codings[0].lower() != b"chunked"))
            or len(codings) > 1
            or hosts > 1
            or (hosts == 0 and scope["http_version"] != "1.0")
        ):
            text = "a request must have one length and one host"
            raise RefusedError(400, text, "bad_request", closing=True)
        if b"upgrade" in headers and (codings or headers.get(b"content-length", b"0") != b"0"):
            # The parser drops such a body, which some clients send with their first request.
            text = "a request with a body must not ask for another protocol: leave out Upgrade"
            raise RefusedError(400, text, "bad_request", closing=True)
        # The parser's own limit does not hold for headers that arrive in one piece.
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size + len(scope["raw_path"]) + len(scope["query_string"]) > MOST_HEADER_BYTES:
            text = f"path and headers may have {MOST_HEADER_BYTES} bytes"
            raise RefusedError(431, text, "too_large", closing=True)
        # Whoever guards a path by its text, as a gateway does, must see the text that is served.
        if quote(scope["path"], safe="/:@!$&'()*+,;=~").encode() != scope["raw_path"]:
            text = "the path must be written without percent signs where none are needed"
            raise RefusedError(400, text, "bad_request")
        if scope["path"] in OPEN_ROUTES:
            return
        if not self._serves(headers):
            raise RefusedError(421, "this server is not asked by that name", "host")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise RefusedError(415, "a request must not be packed", "bad_request")
        self.admission.check(
            [value for name, value in scope["headers"] if name == b"authorization"]
        )

    def _serves(self, headers: Mapping[bytes, bytes]) -> bool:
        """Say whether a request names this server: a page elsewhere may point its name here."""
        if self.hosts is None:
            return True
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.partition("]")[0] + "]" if host[:1] == "[" else host.rpartition(":")[0] or host
        return any(
            name == known or (known.startswith("*.") and name.endswith(known[1:]))
            for known in self.hosts
        )
