"""Read a request whole and in time."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from oneway.serving.http_errors import RefusedError
from oneway.serving.tracing import span


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
        ClientDisconnect: The client has gone.
    """
    too_large = RefusedError(
        413, f"a request may have {most_bytes} bytes; send fewer queries at once", "too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise too_large
    pieces, size, more = list[bytes](), 0, True
    try:
        with span("receive"):
            async with asyncio.timeout(timeout_seconds):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    pieces.append(piece)
                    size += len(piece)
                    if size > most_bytes:
                        raise too_large
    except TimeoutError:
        raise RefusedError(408, "the request did not arrive in time", "timeout") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
