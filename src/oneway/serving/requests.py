"""Read a request whole and in time, and answer it as long as its client waits."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from oneway.serving.http_errors import RefusedError
from oneway.serving.tracing import span

T = TypeVar("T")


@dataclass(frozen=True)
class InferenceRequest:
    """A client's request, read.

    Attributes:
        queries: N queries as the guard takes them, ``(N, ...)`` float32 and finite, or the rows of
            a table; None if they cannot be read as numbers.
        id: The client's name for the request, to be echoed, or None.
        in_binary: Whether the client asked for the release in binary.
    """

    queries: Any
    id: str | None
    in_binary: bool = field(default=False, kw_only=True)


async def read_body(request: Request, most_bytes: int, timeout_seconds: float) -> bytes:
    """Read the body of a request.

    Args:
        request: The request.
        most_bytes: Largest body.
        timeout_seconds: Longest wait for the whole body.

    Raises:
        RefusedError: The body is larger, or slower.
    """
    too_large = RefusedError(
        413, f"a request may have {most_bytes} bytes; send fewer queries at once", "too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise too_large
    pieces, size = list[bytes](), 0
    try:
        with span("receive"):
            async with asyncio.timeout(timeout_seconds):
                async for piece in request.stream():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most_bytes:
                        raise too_large
    except TimeoutError:
        raise RefusedError(408, "the request did not arrive in time", "timeout") from None
    return b"".join(pieces)


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """Wait for an answer as long as its client does. The request's body must have been read.

    Raises:
        ClientDisconnect: The client has gone; the answer is cancelled.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
