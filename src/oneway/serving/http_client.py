"""Ask a server over HTTP/1.1 on connections that stay open: one whole answer, or a refusal.

A client of a hostile server, and no more than that: no redirects, cookies, proxies or unpacking.
"""

import asyncio
import ssl
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

import httptools

from oneway.serving.connections import MOST_HEADER_BYTES
from oneway.serving.http_errors import RefusedError, upstream_failed

IDLE_SECONDS = 15.0
"""A connection that was idle for longer is not used again."""

DEFAULT_PORTS = {"http": 80, "https": 443}

KEPT = "/?:@!$&'()*+,;=%~[]"
"""Characters of a path and query that are sent as they are."""


@dataclass(frozen=True)
class _Place:
    """Where a request goes: the server, and what stands in the request's head."""

    host: str
    port: int
    encrypted: bool
    target: str
    named: str


@lru_cache(maxsize=64)
def _place_of(url: str) -> _Place:
    """Return where an address is asked.

    Raises:
        ValueError: It is none.
    """
    parts = urlsplit(url)
    if parts.hostname is None or parts.scheme not in DEFAULT_PORTS:
        raise ValueError("the address is not that of an HTTP server")
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    host = parts.hostname.encode("idna").decode() if ":" not in parts.hostname else parts.hostname
    named = f"[{host}]" if ":" in host else host
    if port != DEFAULT_PORTS[parts.scheme]:
        named += f":{port}"
    target = quote(parts.path or "/", safe=KEPT) + ("?" if parts.query else "")
    return _Place(
        host, port, parts.scheme == "https", target + quote(parts.query, safe=KEPT), named
    )


@dataclass
class Answer:
    """A server's answer.

    Attributes:
        status: Its status of HTTP.
        is_packed: Whether its body has a coding.
        body: Its body; what came until then, where the status alone counts.
    """

    status: int
    is_packed: bool
    body: bytearray


class _Connection(asyncio.Protocol):
    """One connection, with one request on it at a time. The parser calls ``on_...``."""

    def __init__(self, most_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self.most_bytes, self.loop = most_bytes, loop
        self.parser = httptools.HttpResponseParser(self)
        self.transport: Any = None
        self.answer: asyncio.Future[Answer] | None = None
        self.is_usable, self.is_silent, self.idle_since = True, True, 0.0
        self._begin()

    def ask(self, request: bytes, *, status_only: bool) -> asyncio.Future[Answer]:
        """Send a request; return what will be its answer."""
        self.is_usable, self.is_silent, self.status_only = False, True, status_only
        self._begin()
        self.answer = self.loop.create_future()
        self.transport.write(request)
        return self.answer

    def abort(self) -> None:
        self.is_usable = False
        if self.transport is not None:
            self.transport.abort()

    def _begin(self) -> None:
        self.got = Answer(0, False, bytearray())
        self.has_end, self.arrived = False, 0

    def _finish(self) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(self.got)

    def _fail(self, refusal: RefusedError) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(refusal)
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_usable = False
        if exc is None and self.got.status >= 200 and not self.has_end:  # that ends the body
            self._finish()
        self._fail(upstream_failed("upstream_connection"))
        # Circles, which would stay until the garbage collector looks at all that is old.
        self.answer = None
        del self.parser

    def data_received(self, data: bytes) -> None:
        if self.answer is None or self.answer.done():  # nobody asked
            self.abort()
            return
        self.is_silent = False
        self.arrived += len(data)  # since headers were complete, or a piece of the body came
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(upstream_failed("upstream_connection"))
        if self.arrived > MOST_HEADER_BYTES:
            self._fail(upstream_failed("upstream_connection"))

    def on_message_begin(self) -> None:
        if self.answer is None or self.answer.done():
            raise ValueError("a second answer to one request: the parser stops here")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self.has_end = True
        if name == b"content-encoding" and value.lower() != b"identity":
            self.got.is_packed = True

    def on_headers_complete(self) -> None:
        self.arrived = 0
        self.got.status = self.parser.get_status_code()
        is_final = self.got.status >= 200
        if is_final and (self.status_only or self.got.status >= 300):
            self._finish()  # the body is not read

    def on_body(self, body: bytes) -> None:
        self.arrived = 0
        self.got.body += body
        if len(self.got.body) > self.most_bytes:
            self._fail(upstream_failed("upstream_too_large"))

    def on_message_complete(self) -> None:
        if self.got.status < 200:  # such as 103: the answer is to come
            self._begin()
            return
        self.is_usable = self.parser.should_keep_alive() and not self.transport.is_closing()
        self._finish()


class HttpClient:
    """Asks servers, one request at a time on each connection, and keeps connections for later."""

    def __init__(self, headers: dict[str, str], most_bytes: int, trusted: ssl.SSLContext) -> None:
        """Prepare; nothing is opened before the first request.

        Args:
            headers: Headers of each request.
            most_bytes: Largest body of an answer.
            trusted: What certificates are checked against.
        """
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._most_bytes, self._trusted = most_bytes, trusted
        self._idle: dict[tuple[str, int, bool], list[_Connection]] = defaultdict(list)

    def close(self) -> None:
        """Close what is idle."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def ask(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        status_only: bool = False,
    ) -> Answer:
        """Send a request, and wait for its answer; a caller who is cancelled closes the connection.

        Args:
            method: ``GET`` or ``POST``.
            url: The address.
            body: The body of the request.
            headers: More headers of this request.
            status_only: Do not wait for the body. That of an answer without success never is.

        Raises:
            RefusedError: The connection ends or breaks HTTP, or the answer is too large.
            OSError: The server cannot be reached, or is not trusted.
            ValueError: The address is none.
        """
        place = _place_of(url)
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        head = f"{method} {place.target} HTTP/1.1\r\nHost: {place.named}\r\n"
        request = f"{head}{self._headers}{more}{length}\r\n".encode() + body
        idle = self._idle[place.host, place.port, place.encrypted]
        kept = self._kept(idle)
        while True:
            connection = kept or await self._opened(place)
            try:
                return await connection.ask(request, status_only=status_only)
            except RefusedError:
                # A server may close an idle connection while a request is on its way: once more.
                if kept is None or not connection.is_silent:
                    raise
            finally:
                if connection.is_usable:
                    connection.idle_since = connection.loop.time()
                    idle.append(connection)
                else:
                    connection.abort()
            kept = None

    def _kept(self, idle: list[_Connection]) -> _Connection | None:
        """Return the connection that was used last; close those that were idle too long."""
        until = asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle and idle[0].idle_since < until:
            idle.pop(0).abort()
        while idle:
            if (connection := idle.pop()).is_usable:
                return connection
        return None

    async def _opened(self, place: _Place) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._most_bytes, loop),
            place.host,
            place.port,
            ssl=self._trusted if place.encrypted else None,
        )
        return connection
