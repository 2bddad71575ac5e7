"""The server behind a proxy, asked without blocking: a whole answer in time, or a refusal."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic_core import from_json, to_json

from oneway.serving.http_errors import RefusedError, upstream_failed
from oneway.serving.settings import ServingSettings
from oneway.serving.tracing import trace_headers
from oneway.targets.http_client import json_headers, made_client

T = TypeVar("T")

READY_SECONDS = 3.0
"""How long the upstream may take to say whether it is ready."""


class Upstream:
    """Asks one server. Its errors, headers and texts are not passed on."""

    def __init__(self, settings: ServingSettings) -> None:
        """Prepare; connections are opened inside ``async with``.

        Raises:
            InvalidOptionError: The bearer token in ONEWAY_TOKEN cannot be sent.
        """
        self.timeout_seconds = settings.upstream_timeout_seconds
        self.most_bytes = settings.max_upstream_bytes
        self.most_requests = settings.max_upstream_requests
        self.requests = 0
        # A packed answer could unpack to more than may be read.
        self._headers = {**json_headers(), "Accept-Encoding": "identity"}
        self._client: httpx.AsyncClient | None = None
        self._looks: dict[str, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        # Redirects are not followed: they could carry token and queries to another server. Nor is
        # a proxy of the environment asked: clean scores would pass it. A transport of its own
        # takes only certificates from there.
        self._client = made_client(
            lambda: httpx.AsyncClient(
                timeout=self.timeout_seconds,
                headers=self._headers,
                follow_redirects=False,
                transport=httpx.AsyncHTTPTransport(
                    # One more for the question whether it is ready.
                    limits=httpx.Limits(max_connections=self.most_requests + 1)
                ),
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def get_json(self, url: str) -> Any:
        """Return the JSON value of a successful answer.

        Raises:
            RefusedError: There was no successful answer.
        """
        return await self._in_time(self._ask("GET", url, None), self.timeout_seconds)

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
        return await self._in_time(self._counted(url, to_json(value)), self.timeout_seconds)

    async def is_ready(self, url: str) -> bool:
        """Say whether a server answers there with success. Calls meanwhile share that answer."""
        if url not in self._looks:
            self._looks[url] = self._started(self._look(url))
            self._looks[url].add_done_callback(lambda _: self._looks.pop(url, None))
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await asyncio.shield(self._looks[url])
        except TimeoutError:
            return False

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have given up, and nobody else looks

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Wait so long for work, and let it end by itself if that was not enough.

        It must not be cancelled: a cancelled request keeps its place in the pool of httpcore for
        ever, so that in the end no place is left (https://github.com/encode/httpcore/issues/1093).
        """
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._started(work))
        except TimeoutError:
            raise _too_slow() from None

    async def _counted(self, url: str, body: bytes) -> Any:
        try:
            return await self._ask("POST", url, body)
        finally:
            self.requests -= 1

    async def _ask(self, method: str, url: str, body: bytes | None) -> Any:
        read = bytearray()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeout_seconds
        try:
            headers = trace_headers()
            async with self._opened().stream(method, url, content=body, headers=headers) as answer:
                _check_status(answer.status_code)
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise upstream_failed("upstream_packed")
                async for piece in answer.aiter_raw():
                    read += piece
                    if len(read) > self.most_bytes:
                        raise upstream_failed("upstream_too_large")
                    # httpx limits the wait for each piece; a server may drip for ever.
                    if loop.time() > until:
                        raise _too_slow()
        except httpx.TimeoutException:
            raise _too_slow() from None
        # The texts of these errors may quote the answer.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise upstream_failed("upstream_connection") from None
        try:
            return from_json(bytes(read), allow_inf_nan=False)
        except ValueError:
            raise upstream_failed("upstream_no_json") from None

    async def _look(self, url: str) -> bool:
        try:
            async with self._opened().stream("GET", url, timeout=READY_SECONDS) as answer:
                return answer.is_success  # the body is not read
        except httpx.HTTPError:
            return False

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            raise RuntimeError("the upstream is asked inside `async with` only")
        return self._client


def _too_slow() -> RefusedError:
    return RefusedError(504, "the guarded server did not answer in time", "upstream_timeout")


def _check_status(status: int) -> None:
    if status in (400, 413, 422):
        raise RefusedError(400, "the guarded server refused the request", "upstream_refused")
    if status in (429, 503):
        raise RefusedError(
            503, "the guarded server is busy; ask again later", "upstream_busy", retry_after=1
        )
    if not 200 <= status < 300:
        raise upstream_failed("upstream_status")
