"""The server behind a proxy, asked without blocking: a whole answer in time, or a refusal."""

import asyncio
import os
import ssl
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from oneway.errors import InvalidOptionError
from oneway.openinference.tensors import MessageError
from oneway.serving.http_client import HttpClient
from oneway.serving.http_errors import RefusedError, upstream_errors, upstream_failed
from oneway.serving.settings import ServingSettings
from oneway.serving.tracing import trace_headers
from oneway.targets.http_client import json_headers

T = TypeVar("T")

READY_SECONDS = 3.0
"""How long the upstream may take to say whether it is ready."""


class Upstream:
    """Asks one server. Its errors, headers and texts are not passed on."""

    def __init__(self, settings: ServingSettings) -> None:
        """Prepare; ask inside ``async with``.

        Raises:
            InvalidOptionError: The bearer token in ONEWAY_TOKEN cannot be sent, or the
                environment's certificates cannot be used.
        """
        self.timeout_seconds = settings.upstream_timeout_seconds
        self.most_bytes = settings.max_upstream_bytes
        self.most_requests = settings.max_upstream_requests
        self.requests = 0
        # A packed answer could unpack to more than may be read.
        headers = {**json_headers(), "Accept-Encoding": "identity"}
        self._client = HttpClient(headers, self.most_bytes, _trusted())
        self._looks: dict[str, asyncio.Task[bool]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for look in self._looks.values():
            look.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)
        self._client.close()

    async def get_json(self, url: str) -> Any:
        """Return the JSON value of a successful answer.

        Raises:
            RefusedError: There was no successful answer.
        """
        return await self._in_time(self._ask("GET", url, b""))

    async def post_json(self, url: str, value: Any) -> Any:
        """Send a JSON value; return that of a successful answer.

        Raises:
            RefusedError: There was no successful answer, or too many requests are under way.
        """
        if self.requests >= self.most_requests:
            raise RefusedError(
                429, "too many queries are under way; ask again later", "busy", retry_after=1
            )
        self.requests += 1
        try:
            return await self._in_time(self._ask("POST", url, msgspec.json.encode(value)))
        finally:
            self.requests -= 1

    async def is_ready(self, url: str) -> bool:
        """Say whether a server answers there with success. Calls meanwhile share that answer."""
        if url not in self._looks:
            self._looks[url] = asyncio.create_task(self._look(url))
            self._looks[url].add_done_callback(lambda _: self._looks.pop(url, None))
        return await asyncio.shield(self._looks[url])

    async def _in_time(self, work: Awaitable[T]) -> T:
        """Wait for work, and cancel it when its time is over, however a server drips."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await work
        except TimeoutError:
            raise RefusedError(
                504, "the guarded server did not answer in time", "upstream_timeout"
            ) from None
        # The texts of these errors may quote the answer.
        except (OSError, ValueError):
            raise upstream_failed("upstream_connection") from None

    async def _ask(self, method: str, url: str, body: bytes) -> Any:
        # Redirects are not followed: they could carry token and queries to another server.
        answer = await self._client.ask(method, url, body, trace_headers())
        _check_status(answer.status)
        with upstream_errors():
            if answer.is_packed:
                raise MessageError("must answer without Content-Encoding, but packs it.", "packed")
            try:
                return msgspec.json.decode(answer.body)
            except (msgspec.DecodeError, RecursionError):
                raise MessageError("must answer with JSON, but does not.", "no_json") from None

    async def _look(self, url: str) -> bool:
        try:
            async with asyncio.timeout(READY_SECONDS):
                answer = await self._client.ask("GET", url, status_only=True)
                return 200 <= answer.status < 300
        except (RefusedError, OSError, ValueError):  # TimeoutError is an OSError
            return False


def _trusted() -> ssl.SSLContext:
    """Return what servers' certificates are checked against.

    Raises:
        InvalidOptionError: The environment's certificates cannot be used.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidOptionError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR name cannot be used "
            f"({type(error).__name__}). Name a PEM file, or a folder of such, or unset them."
        ) from None


def _check_status(status: int) -> None:
    if status in (400, 413, 422):
        raise RefusedError(400, "the guarded server refused the request", "upstream_refused")
    if status in (429, 503):
        raise RefusedError(
            503, "the guarded server is busy; ask again later", "upstream_busy", retry_after=1
        )
    with upstream_errors():
        if not 200 <= status < 300:
            raise MessageError(f"must answer with status 200, but answers with {status}.", "status")
