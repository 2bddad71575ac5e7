"""Connections: half a request, or an answer that nobody reads, does not hold one for ever."""

import asyncio
import logging
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from oneway.serving.settings import ServingSettings

MOST_HEADER_BYTES = 64 * 2**10
"""Most bytes of a request's path and headers together, or of what follows the last chunk."""

MOST_PIPELINED = 64
"""Most requests that wait for the answer to one before them on the same connection."""

MOST_WRITTEN = 2**18
"""Most bytes of one write: with TLS, uvloop does not notice that a larger one is not read."""

CONNECTION = "connection"
"""Where the state of a request's scope holds its connection."""

log = logging.getLogger("oneway.serving")


class _WritesTogether:
    """A transport that sends head and body of an answer by one call, so that a client wakes once.

    uvloop sends what is written first at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, list[bytes]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = b"".join(self._held), []
        for start in range(0, len(held), MOST_WRITTEN):
            if not self._transport.is_closing():
                self._transport.write(held[start : start + MOST_WRITTEN])

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Connection(HttpToolsProtocol):
    """A connection of one client.

    Attributes:
        asking: What answers the request at hand; it is cancelled when the client leaves.
        gone: Whether the client has left.
    """

    settings: ClassVar[ServingSettings]
    idle: ClassVar[dict[HttpToolsProtocol, None]]
    deadline: asyncio.TimerHandle | None = None
    taking: asyncio.TimerHandle | None = None
    asking: "asyncio.Task[Any] | None" = None
    gone = False
    is_awaited = False  # a request of which nothing, or not all headers, has come
    arrived = 0  # bytes since headers were complete, a piece of a body came, or a request ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.together = _WritesTogether(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self.together))
        self.await_request()
        longest = next(iter(self.idle))
        if len(self.connections) > self.settings.max_connections and longest is not self:
            log.warning("connection_displaced")
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.arrived += len(data)
        super().data_received(data)
        if self.arrived > MOST_HEADER_BYTES:
            self.cut()
        elif self.is_answering and not self.transport.is_closing():
            self.go_on()
        else:
            self.await_request()

    def send_400_response(self, msg: str) -> None:
        # Answers come in the order of requests: those before the malformed one come first.
        if self.is_answering and not self.cycle.more_body:
            self.cycle.keep_alive = False  # the last of them closes the connection
        elif self.is_answering and (self.pipeline or self.cycle.response_started):
            self.cut()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][CONNECTION] = self

    def on_headers_complete(self) -> None:
        self.arrived = 0
        if len(self.pipeline) >= MOST_PIPELINED:
            self.cut()
        # Whoever guards a path by its text, as a gateway does, must see the text that is served.
        if self.transport.is_closing() or self.url[:1] != b"/" or b"#" in self.url:
            raise ValueError("the parser makes it a malformed request")
        super().on_headers_complete()
        # What follows the last chunk is no header: a gateway may have let it through unseen.
        self.headers = []
        # The parser drops what came behind the one; to the other a client may send no body.
        if self.parser.should_upgrade() or self.expect_100_continue:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self.arrived = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.arrived = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.together.flush()
        if not (self.is_answering or self.gone):
            # Once all is taken, without a deadline: uvicorn closes what stays idle after an answer.
            self.idle[self] = None
            if self.transport.get_write_buffer_size():
                self.start_deadline()

    def pause_writing(self) -> None:
        # Apart from the other deadline: what a client sends meanwhile is no sign that it reads.
        super().pause_writing()
        self.idle[self] = None  # a client that does not read gives way to others
        if self.taking is None:
            self.taking = self.loop.call_later(self.settings.timeout_seconds, self.cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.taken()
        if self.is_answering:
            self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.taken()
        self.go_on()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self.asking is not None:
            self.asking.cancel()
        # Circles, which would stay until the garbage collector looks at all that is old.
        self.pipeline.clear()
        self.cycle = None  # type: ignore[assignment]
        if self.scope is not None:
            del self.scope["state"][CONNECTION]

    @property
    def is_answering(self) -> bool:
        # uvicorn has None there before the first request.
        return self.cycle is not None and not self.cycle.response_complete

    def await_request(self) -> None:
        self.idle[self], self.is_awaited = None, True
        self.start_deadline()

    def start_deadline(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.settings.timeout_seconds, self.miss_deadline)

    def miss_deadline(self) -> None:
        self.deadline = None
        if self.is_awaited or self.transport.get_write_buffer_size():
            self.cut()

    def cut(self) -> None:
        log.info("connection_cut")
        self.transport.abort()

    def taken(self) -> None:
        if self.taking is not None:
            self.taking.cancel()
            self.taking = None

    def go_on(self) -> None:
        if self.taking is None:
            self.idle.pop(self, None)
        self.is_awaited = False
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def protocol_of(settings: ServingSettings) -> type[_Connection]:
    """Return the class that speaks HTTP on the connections of one server.

    A connection is cut if a request's headers are more than 64 KiB, or are not there after
    ``timeout_seconds``. It is also cut if its client has read nothing of an answer for
    ``timeout_seconds``, whatever the client sends meanwhile. Beyond ``max_connections``, a new
    connection replaces the one that is idle longest, or whose client reads nothing.
    """
    return type("Connection", (_Connection,), {"settings": settings, "idle": {}})
