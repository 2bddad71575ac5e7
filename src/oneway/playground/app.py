"""The page and its few questions, over HTTP, for this machine alone."""

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneway.errors import DefenseFailedError, InvalidOptionError, OnewayError
from oneway.playground.answers import (
    MOST_SETTINGS,
    answers_json,
    progress_json,
    read_query,
    state_json,
)
from oneway.playground.settings import Setting
from oneway.playground.study import Study
from oneway.playground.workshop import Workshop

MOST_BYTES = 2**16
"""Of a request: a drawing takes a quarter of it."""

HOSTS = ("127.0.0.1", "localhost")
"""What a browser on this machine calls it. Any other name is somebody else's page, whose name was
pointed here (DNS rebinding)."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def playground_app(workshop: Workshop) -> Starlette:
    """Return the application; it ends the workshop when it ends.

    Args:
        workshop: Prepares, and examines.
    """
    page = Path(str(resources.files("oneway.playground") / "static"))
    # One at a time: two that share the cores are both late.
    turn = threading.Lock()

    def answered(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with turn:
            return compute()

    async def index(_: Request) -> Response:
        return FileResponse(page / "index.html")

    async def state(_: Request) -> Response:
        return JSONResponse(state_json(workshop))

    async def answers(request: Request) -> Response:
        study = _ready(workshop)
        match await _read_json(request):
            case {"query": told, "settings": list(listed), **rest} if not rest:
                if not 1 <= len(listed) <= MOST_SETTINGS:
                    raise InvalidOptionError(
                        f"settings must be 1 to {MOST_SETTINGS}, but are {len(listed)}."
                    )
                settings = [Setting.from_json(each) for each in listed]
                query = read_query(told, study)
            case _:
                raise InvalidOptionError(
                    'a request must be {"query": {...}, "settings": [...]} and nothing more.'
                )
        return JSONResponse(
            await run_in_threadpool(
                answered, lambda: answers_json(workshop, study, query, settings)
            )
        )

    async def examine(request: Request) -> Response:
        _ready(workshop)
        setting = Setting.from_json(await _read_json(request))
        workshop.wish(setting)
        return JSONResponse(progress_json(workshop.progress(setting)), 202)

    async def progress(request: Request) -> Response:
        _ready(workshop)
        setting = Setting.from_json(await _read_json(request))
        return JSONResponse(progress_json(workshop.progress(setting)))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(workshop.close)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/api/state", state),
            Route("/api/answers", answers, methods=["POST"]),
            Route("/api/examine", examine, methods=["POST"]),
            Route("/api/progress", progress, methods=["POST"]),
            Mount("/static", StaticFiles(directory=page)),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={OnewayError: _on_refusal, HTTPException: _on_http_error},
        lifespan=lifespan,
    )


def _ready(workshop: Workshop) -> Study:
    study = workshop.study
    if study is None:
        raise HTTPException(503, "the networks are being trained; ask /api/state how far it is")
    return study


async def _read_json(request: Request) -> Any:
    """Read a body of bounded size.

    Raises:
        HTTPException: It is too large, says that it is something else, or is no JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # A form of another site's page can send any other type without being asked.
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a request may have {MOST_BYTES} bytes; scale the drawing")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # The parser's own words may quote the body.
        raise HTTPException(400, "the body is not JSON") from None


async def _on_refusal(_: Request, error: Exception) -> Response:
    status = 500 if isinstance(error, DefenseFailedError) else 400
    return JSONResponse({"error": str(error)}, status)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  narrows the type
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


class _Headers:
    """Adds what every answer says to the browser: nothing from elsewhere, nothing to elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, told if scope["type"] == "http" else send)
