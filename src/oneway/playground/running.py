"""Serve the page on this machine alone."""

import socket
from collections.abc import Callable

import uvicorn

from oneway.errors import InvalidOptionError
from oneway.playground.app import playground_app
from oneway.playground.worker import Worker

ADDRESS = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: Port number; 0: any free port.

    Raises:
        InvalidOptionError: The port is taken.
    """
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise InvalidOptionError(
            f"cannot listen on {ADDRESS} port {port} ({error.strerror}). Pass --port 0 for any "
            "port that is free."
        ) from error


class Server(uvicorn.Server):
    """Serves a worker's page; ends by itself if the session cannot be prepared.

    Attributes:
        failed: Whether the server ended because preparing failed.
    """

    def __init__(self, worker: Worker, started: Callable[[], None]) -> None:
        """Prepare to serve.

        Args:
            worker: Prepares the session that the page shows.
            started: Called once, when the server takes requests.
        """
        config = uvicorn.Config(
            playground_app(worker),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self.failed = False
        self._on_started = started
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._worker.prepared.add_done_callback(self._end_if_failed)
        if self.started:
            self._on_started()

    def _end_if_failed(self, _: object) -> None:
        if self._worker.session is None and not self.should_exit:
            self.failed = self.should_exit = True
