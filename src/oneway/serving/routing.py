"""Which endpoint answers which path. Paths are exact, so that a request costs one look-up."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from oneway.serving.http_errors import RefusedError

if TYPE_CHECKING:
    from oneway.serving.base_app import GuardedServer
    from oneway.serving.grpc_endpoint import GrpcEndpoint

Endpoint = Callable[[Request], Awaitable[Response]]

Routes = Mapping[str, tuple[str, Endpoint]]
"""Method and endpoint of each path."""


class RoutedApp:
    """Answers each path by its endpoint; its errors are to be caught outside."""

    def __init__(self, routes: Routes, lifespan: Any = None) -> None:
        """Prepare.

        Args:
            routes: The endpoints, by paths as they are written in addresses.
            lifespan: What is entered before the first request; see Starlette.
        """
        self.routes = {unquote(path): route for path, route in routes.items()}
        self._lifespan = Router(lifespan=lifespan).lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            RefusedError: There is no such path, or the request is refused.
        """
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["path"] not in self.routes:
            raise RefusedError(404, "there is no such path, model or version", "bad_request")
        method, endpoint = self.routes[scope["path"]]
        if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
            raise RefusedError(405, f"this path takes {method} alone", "bad_request", allow=method)
        scope["endpoint"] = endpoint
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


@dataclass(frozen=True)
class Application:
    """The ASGI application of a server, and what runs in the same process.

    Attributes:
        app: Serves requests.
        server: The server.
        admin: The application of the admin port, or None.
        grpc: What listens on the gRPC port, or None.
    """

    app: ASGIApp
    server: "GuardedServer[Any, Any]"
    admin: "Application | None" = None
    grpc: "GrpcEndpoint | None" = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.app(scope, receive, send)
