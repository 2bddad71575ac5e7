"""Connections: half a request, or an answer that nobody reads, does not hold one for ever."""

import asyncio
import logging
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from oneway.serving.settings import ServingSettings

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
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Connection(H11Protocol):
    settings: ClassVar[ServingSettings]
    idle: ClassVar[dict[H11Protocol, None]]
    deadline: asyncio.TimerHandle | None = None
    taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.together = _WritesTogether(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self.together))
        self.await_request()
        longest = next(iter(self.idle))
        if len(self.connections) > self.settings.max_connections and longest is not self:
            log.warning("connection_displaced")
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_answering:
            self.go_on()
        else:
            self.await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.together.flush()
        if not self.is_answering:
            # Without a deadline: uvicorn closes what stays idle after an answer.
            self.idle[self] = None
            if self.transport.get_write_buffer_size():
                self.start_deadline()

    def pause_writing(self) -> None:
        # Apart from the other deadline: what a client sends meanwhile is no sign that it reads.
        super().pause_writing()
        if self.taking is None:
            self.taking = self.loop.call_later(self.settings.timeout_seconds, self.cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.taken()

    def connection_lost(self, exc: Exception | None) -> None:
        self.go_on()
        self.taken()
        super().connection_lost(exc)

    @property
    def is_answering(self) -> bool:
        # uvicorn has None there before the first request.
        return self.cycle is not None and not self.cycle.response_complete

    def await_request(self) -> None:
        self.idle[self] = None
        self.start_deadline()

    def start_deadline(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.settings.timeout_seconds, self.cut)

    def cut(self) -> None:
        log.info("connection_cut")
        self.transport.abort()

    def taken(self) -> None:
        if self.taking is not None:
            self.taking.cancel()
            self.taking = None

    def go_on(self) -> None:
        self.idle.pop(self, None)
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def protocol_of(settings: ServingSettings) -> type[H11Protocol]:
    """Return the class that speaks HTTP on the connections of one server.

    It is always h11, whatever else is installed: h11 takes 64 KiB of headers and no more, and
    httptools takes any number. A connection is cut if a request's headers are not there after
    ``timeout_seconds``, or if its client takes nothing of an answer for as long, whatever else it
    sends. Beyond ``max_connections``, a new connection replaces the one that is idle longest.
    """
    return type("Connection", (_Connection,), {"settings": settings, "idle": {}})
