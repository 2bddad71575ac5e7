"""Listen, serve until a signal to stop, and let requests end."""

import asyncio
import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import uvicorn

from oneway.errors import InvalidOptionError
from oneway.serving.connections import protocol_of
from oneway.serving.grpc_endpoint import GrpcEndpoint
from oneway.serving.routing import Application
from oneway.serving.settings import ServingSettings

STOPS = (signal.SIGINT, signal.SIGTERM)

OTHER_FILES = 64
"""Most open files beside connections: listeners, models, logs."""


def listen(settings: ServingSettings, *, admin: bool = False) -> socket.socket:
    """Return a socket that listens where the settings say.

    Args:
        settings: The settings.
        admin: Listen on ``admin_port``, which must be given, instead of ``port``.

    Raises:
        InvalidOptionError: The address cannot be used.
    """
    name = "admin_port" if admin else "port"
    port = getattr(settings, name)
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidOptionError(
            f"cannot listen on {settings.host} port {port} ({type(error).__name__}: "
            f"{error.strerror}). Choose another by the settings host and {name}."
        ) from error


def run(
    app: Application,
    settings: ServingSettings,
    listener: socket.socket,
    *,
    admin: socket.socket | None = None,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that are being answered may then end.

    Args:
        app: The application.
        settings: How it is served.
        listener: A socket that listens.
        admin: One for health and metrics, if the settings have an admin port.
        started: Called once requests are taken.

    Raises:
        InvalidOptionError: The certificate or its key cannot be used, or the process may not open
            as many files as all connections need.
    """
    make_room(settings)
    # What has been loaded stays: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    server = server_of(app, settings, started)
    with (
        nullcontext() if admin is None or app.admin is None else beside(app.admin, settings, admin)
    ):
        server.run(sockets=[listener])


def make_room(settings: ServingSettings) -> None:
    """Let the process open a file for each connection. Without one not even health is answered.

    Raises:
        InvalidOptionError: The operating system's limit is lower.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    ports = 1 + (settings.admin_port is not None) + (settings.grpc_port is not None)
    needed = ports * settings.max_connections + settings.max_upstream_requests + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise InvalidOptionError(
            f"the server needs {needed} open files, {settings.max_connections} for each of {ports} "
            f"ports and {needed - ports * settings.max_connections} more, but may open {hard}. "
            "Raise the limit (ulimit -Hn), or lower the setting max_connections."
        )
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def beside(app: Application, settings: ServingSettings, listener: socket.socket) -> Iterator[None]:
    """Serve on a thread and an event loop of its own, so that no load of the other delays it."""
    server = server_of(app, settings)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="oneway-admin", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=2.0)


def server_of(
    app: Application, settings: ServingSettings, started: Callable[[], None] | None = None
) -> uvicorn.Server:
    """Return the server of :func:`run`, not yet running.

    Raises:
        InvalidOptionError: The certificate or its key cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=protocol_of(settings),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise InvalidOptionError(
            f"the TLS certificate {settings.tls_certificate} and its key cannot be used "
            f"({type(error).__name__}). Give PEM files that belong together."
        ) from error
    return _Server(config, started, app.grpc)


class _Server(uvicorn.Server):
    """Reports its start, and ends with exit code 0 at a signal to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_start: Callable[[], None] | None,
        grpc: GrpcEndpoint | None,
    ) -> None:
        super().__init__(config)
        self._on_start, self._grpc = on_start, grpc

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            self._grpc.bind()  # first, since it may fail
        await super().startup(sockets)
        if self.started and self._on_start is not None:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Both take no more requests from now on; the application waits for gRPC, too.
        stopping = None if self._grpc is None else asyncio.create_task(self._grpc.stop())
        await super().shutdown(sockets)
        if stopping is not None:
            await stopping

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again in the end, so that a stop looks like a failure.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.signal(kind, self.handle_exit) for kind in STOPS}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
