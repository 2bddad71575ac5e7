"""Listen on this machine alone, and serve until told to stop."""

import socket
from collections.abc import Callable

import uvicorn

from oneway.errors import InvalidOptionError
from oneway.playground.app import playground_app
from oneway.playground.workshop import Workshop

ADDRESS = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: Of it; 0: any that is free.

    Raises:
        InvalidOptionError: It is taken.
    """
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise InvalidOptionError(
            f"cannot listen on {ADDRESS} port {port} ({error.strerror}). Pass --port 0 for any "
            "port that is free."
        ) from error


class Server(uvicorn.Server):
    """Serves a workshop's page; ends by itself if the workshop cannot be prepared.

    Attributes:
        failed: Whether that is why it ended.
    """

    def __init__(self, workshop: Workshop, started: Callable[[], None]) -> None:
        """Prepare to serve.

        Args:
            workshop: Whose page it is.
            started: Called once requests are taken.
        """
        config = uvicorn.Config(
            playground_app(workshop),
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
        self._told = started
        self._workshop = workshop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._workshop.prepared.add_done_callback(self._end_if_failed)
        if self.started:
            self._told()

    def _end_if_failed(self, _: object) -> None:
        if self._workshop.study is None and not self.should_exit:
            self.failed = self.should_exit = True
