"""What the server and the proxy have in common: health, metrics, access, and errors."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import oneway
from oneway.serving.batching import Batcher
from oneway.serving.edge import Edge, as_json, on_http_error, on_refusal
from oneway.serving.metrics import ServerMetrics
from oneway.serving.protocol import ServerMetadata
from oneway.serving.refusals import RefusedError
from oneway.serving.settings import ServingSettings

OPENAPI_PATH = "/openapi.json"


def framed_app(
    routes: Sequence[Route],
    settings: ServingSettings,
    *,
    batcher: Batcher[Any, Any],
    metrics: ServerMetrics,
    openapi: dict[str, Any],
    extensions: Sequence[str] = (),
    ready: Callable[[], Awaitable[bool]],
    around: AbstractAsyncContextManager[Any] | None = None,
) -> Starlette:
    """Return an application: the given routes, and those that every guarded server has.

    Args:
        routes: What it serves.
        settings: How.
        batcher: Started and ended with it.
        metrics: Shown at ``/metrics``, unless the settings say no.
        openapi: Its own description, shown at ``/openapi.json``.
        extensions: Of the protocol.
        ready: Whether it can answer now, besides the batcher.
        around: Entered before it starts, and left after it has ended.

    Raises:
        InvalidOptionError: The token in ``settings`` cannot be used.
    """

    async def server_metadata(_: Request) -> Response:
        return as_json(
            ServerMetadata(name="oneway", version=oneway.__version__, extensions=list(extensions))
        )

    async def live(_: Request) -> Response:
        alive = batcher.alive
        return as_json({"live": alive}, 200 if alive else 503)

    async def health_ready(_: Request) -> Response:
        can = batcher.alive and await ready()
        return as_json({"ready": can}, 200 if can else 503)

    async def metrics_text(_: Request) -> Response:
        metrics.waiting.set(batcher.waiting_rows)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi_json(_: Request) -> Response:
        return as_json(openapi)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with around if around is not None else nullcontext():
            await batcher.start()
            yield
            await batcher.close()

    common = [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", health_ready),
        Route(OPENAPI_PATH, openapi_json),
    ]
    if settings.metrics:
        common.append(Route("/metrics", metrics_text))
    app = Starlette(
        routes=[*common, *routes],
        middleware=[
            Middleware(
                Edge,
                token=settings.bearer_token(),
                metrics=metrics,
                most_bytes=settings.max_waiting_bytes,
                most_requests=settings.max_connections,
            )
        ],
        exception_handlers={RefusedError: on_refusal, HTTPException: on_http_error},
        lifespan=lifespan,
    )
    # An address that a client's Host header decides is no place to send others to.
    app.router.redirect_slashes = False
    return app
