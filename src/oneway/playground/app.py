"""Serve the page and its JSON requests over HTTP, for this machine alone."""

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
from oneway.playground.session import Session
from oneway.playground.settings import Setting
from oneway.playground.worker import Worker

MOST_BYTES = 2**16
"""Most bytes of a request body: a drawing takes a quarter of it."""

HOSTS = ("127.0.0.1", "localhost")
"""Host names that are answered. Any other name belongs to another site whose name was pointed here
(DNS rebinding)."""

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


def playground_app(worker: Worker) -> Starlette:
    """Return the application, which closes the worker when it ends."""
    page = Path(str(resources.files("oneway.playground") / "static"))
    # One answer at a time: two that share the cores are both late.
    turn = threading.Lock()

    def answered(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with turn:
            return compute()

    async def index(_: Request) -> Response:
        return FileResponse(page / "index.html")

    async def state(_: Request) -> Response:
        return JSONResponse(state_json(worker))

    async def answers(request: Request) -> Response:
        session = _ready(worker)
        match await _read_json(request):
            case {"query": query_json, "settings": list(listed), **rest} if not rest:
                if not 1 <= len(listed) <= MOST_SETTINGS:
                    raise InvalidOptionError(
                        f"settings must be 1 to {MOST_SETTINGS}, but are {len(listed)}."
                    )
                settings = [Setting.from_json(each) for each in listed]
                query = read_query(query_json, session)
            case _:
                raise InvalidOptionError(
                    'a request must be {"query": {...}, "settings": [...]} and nothing more.'
                )
        return JSONResponse(
            await run_in_threadpool(
                answered, lambda: answers_json(worker, session, query, settings)
            )
        )

    async def examine(request: Request) -> Response:
        _ready(worker)
        setting = Setting.from_json(await _read_json(request))
        worker.enqueue(setting)
        return JSONResponse(progress_json(worker.progress(setting)), 202)

    async def progress(request: Request) -> Response:
        _ready(worker)
        setting = Setting.from_json(await _read_json(request))
        return JSONResponse(progress_json(worker.progress(setting)))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(worker.close)

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


def _ready(worker: Worker) -> Session:
    session = worker.session
    if session is None:
        raise HTTPException(503, "the page is starting; ask /api/state whether it is ready")
    return session


async def _read_json(request: Request) -> Any:
    """Read a JSON body of bounded size.

    Raises:
        HTTPException: The body is too large, has another content type, or is not JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # A form on another site's page may send other types without a preflight request.
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a request may have {MOST_BYTES} bytes; scale the drawing")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # The parser's message may quote the body.
        raise HTTPException(400, "the body is not JSON") from None


async def _on_refusal(_: Request, error: Exception) -> Response:
    status = 500 if isinstance(error, DefenseFailedError) else 400
    return JSONResponse({"error": str(error)}, status)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  narrows the type
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


class _Headers:
    """Add ``HEADERS`` to every answer: the browser loads nothing from other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
