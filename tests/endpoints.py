"""A real HTTP server on this machine, as tests want it to behave."""

import atexit
import functools
import json
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

PATIENCE = 120
"""Seconds after which a test gives up waiting, on a machine however busy."""

WEIGHTS = np.random.default_rng(1).normal(size=(16, 3))
"""Of the model that the servers serve: images of 16 pixels, 3 classes."""


KINDS = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "UINT8": np.uint8,
    "BYTES": str,
}
"""Types of a request's numbers."""


def served_logits(queries) -> np.ndarray:
    return np.asarray(queries, np.float64).reshape(len(queries), -1) @ WEIGHTS


def served_confidences(queries) -> np.ndarray:
    grown = np.exp(served_logits(queries))
    return grown / grown.sum(1, keepdims=True)


@functools.cache
def one_authority() -> str:
    """Return a file with one certificate: to read all that a system trusts takes 40 ms a client."""
    folder = tempfile.mkdtemp(prefix="authority-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder, "authority.pem")
    trustme.CA().cert_pem.write_to_path(file)
    return str(file)


def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients use no proxy and no token of whoever runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("ONEWAY_TOKEN", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", one_authority())


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What a server sends; it says ``promised`` bytes, if that is more than it has.

    ``raw`` is sent in place of all of it; then the connection ends.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None
    drip: Callable[[], None] | None = None
    raw: bytes | None = None


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


@dataclass
class Endpoint:
    """A running server: its address, what it was asked, and faults to answer with first."""

    answer: Callable[[Asked], Reply]
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    faults: deque[Reply] = field(default_factory=deque)

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "POST"]


@contextmanager
def running(answer: Callable[[Asked], Reply]) -> Iterator[Endpoint]:
    endpoint = Endpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = Asked(self.command, self.path, dict(self.headers), self.rfile.read(length))
            endpoint.asked.append(asked)
            faulty = self.command == "POST" and endpoint.faults
            reply = endpoint.faults.popleft() if faulty else endpoint.answer(asked)
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(reply.promised or len(reply.body)))
            self.end_headers()
            if reply.drip is not None:
                for byte in reply.body:
                    reply.drip()
                    try:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                    except OSError:  # the client has had enough
                        break
            else:
                self.wfile.write(reply.body)
            if reply.promised or reply.drip:
                self.close_connection = True

        do_GET = do_POST = handle_any  # noqa: N815  the standard library's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class OpenInferenceServer:
    """Answers as the Open Inference Protocol says, for one model named ``digits``."""

    path: str = "/v2/models/digits"
    inputs: list[dict[str, Any]] = field(
        default_factory=lambda: [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    )
    outputs: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ]
    )
    versions: tuple[str, ...] = ()
    ready: int = 200
    model: Callable[[Any], np.ndarray] = served_confidences
    nested: bool = False
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer

    def __call__(self, asked: Asked) -> Reply:
        path = asked.path.partition("?")[0]
        if (asked.method, path) == ("GET", f"{self.path}/ready"):
            return as_json({"name": "digits", "ready": self.ready == 200}, self.ready)
        if (asked.method, path) == ("GET", self.path):
            told = {"versions": list(self.versions)} if self.versions else {}
            told |= {"name": "digits", "inputs": self.inputs, "outputs": self.outputs}
            return as_json(told)
        if (asked.method, path) != ("POST", f"{self.path}/infer"):
            return as_json({"error": "no such path"}, 404)
        (tensor,) = asked.json["inputs"]
        kind = KINDS[tensor["datatype"]]
        queries = np.array(tensor["data"], kind).reshape(tensor["shape"])
        scores = self.model(queries)
        data = scores if self.nested else scores.ravel()
        output = {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(scores.shape),
            "data": data.tolist(),
        }
        return as_json(self.change({"model_name": "digits", "outputs": [output]}))
