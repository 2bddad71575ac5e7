"""Guarded servers on this machine, over real sockets, as tests want them to behave."""

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor, nn

from endpoints import PATIENCE, WEIGHTS
from grpc_client import GrpcClient
from oneway.defenses import ServableDefense
from oneway.defenses.rounding import Rounding
from oneway.releases import release
from oneway.serving import GuardedModel, ServingSettings, listen, serving_app, start_logging
from oneway.serving.routing import Application
from oneway.serving.running import server_of
from oneway.targets import TorchTarget

SHAPE = (1, 4, 4)
PATH = "/v2/models/digits"
CPU = torch.device("cpu")


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Return once a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition never held"
        time.sleep(0.005)


def linear_model() -> nn.Module:
    """Return the model of ``endpoints``, in PyTorch: 16 pixels, 3 classes."""
    layer = nn.Linear(16, 3, bias=False)
    layer.weight.data = torch.tensor(WEIGHTS.T, dtype=torch.float32)
    return nn.Sequential(nn.Flatten(), layer).eval()


class Held(nn.Module):
    """The linear model; once ``held``, it answers when ``go`` is set, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.held = linear_model(), False
        self.seen: list[Tensor] = []
        self.entered, self.go = threading.Event(), threading.Event()

    def forward(self, images: Tensor) -> Tensor:
        if self.held:
            self.seen.append(images.clone())
            self.entered.set()
            assert self.go.wait(PATIENCE)
        return self.inner(images)


def rounding(decimals: int = 2) -> ServableDefense:
    return ServableDefense("rounding", "7", Rounding(decimals=decimals))


def settings(**given: Any) -> ServingSettings:
    return ServingSettings(port=0, model_name="digits", input_name="image", **given)


def served_model(
    guard: ServableDefense | None = None, *, target: Any = None, check: bool = True, **given: Any
) -> GuardedModel:
    model = GuardedModel(
        target or TorchTarget(linear_model()),
        guard or rounding(),
        input_shape=SHAPE,
        device=CPU,
        batch_multiple=4,
        **given,
    )
    if check:
        model.check()
    return model


@dataclass
class Running:
    """A server that runs: how to ask it, and what it logs."""

    url: str
    client: httpx.Client
    log: io.StringIO
    stop: Callable[[], None]
    grpc: GrpcClient | None = None

    def infer(self, queries: Tensor, **more: Any) -> Any:
        """Ask over gRPC where the server speaks it, else over HTTP."""
        if self.grpc is not None:
            return self.grpc.infer(request_of(queries, **more))
        return self.client.post(f"{PATH}/infer", json=request_of(queries, **more))

    def metric(self, line: str) -> bool:
        """Say whether the metrics hold a line, such as ``"oneway_waiting_queries 3.0"``."""
        return line in self.client.get("/metrics").text.splitlines()

    def address(self) -> tuple[str, int]:
        host, port = self.url.partition("://")[2].split(":")
        return host, int(port)

    def everything(self, answer: httpx.Response) -> str:
        """Return all that an answer has let out: itself, the metrics and the log.

        Times are left out: their digits are anybody's, also those of a score.
        """
        metrics = re.sub(
            r"(_created|_seconds_sum)(\{.*\})? .*", r"\1", self.client.get("/metrics").text
        )
        log = re.sub(r'"(time|milliseconds)": [^,}]+', r"\1", self.log.getvalue())
        return "\n".join([answer.text, str(answer.headers), metrics, log])

    def release(self, queries: Tensor) -> Tensor:
        answer = self.infer(queries)
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        assert output["datatype"] == "FP32"
        return torch.tensor(output["data"]).reshape(output["shape"])


def digits_in(said: str, queries: Tensor) -> list[str]:
    """Return which clean scores of the linear model stand in a text, by how they begin.

    Five digits or more of a logit, or of its softmax in either type, are looked for.
    """
    logits = TorchTarget(linear_model()).logits(queries)
    begun = set()
    for scores in (logits, release(logits), logits.double().softmax(1)):
        for number in scores.abs().flatten().tolist():
            begun |= {f"{number:.{places}f}"[:-1] for places in (6, 7)}
            begun.add(f"{number:.6e}".partition("e")[0][:-1])
    telling = {digits for digits in begun if len(digits.replace(".", "").lstrip("0")) >= 5}
    return [digits for digits in telling if digits in said]


def request_of(queries: Tensor, **more: Any) -> dict[str, Any]:
    tensor = {
        "name": "image",
        "shape": list(queries.shape),
        "datatype": "FP32",
        "data": queries.flatten().tolist(),
    }
    return {"inputs": [tensor], **more}


@contextmanager
def logged(level: str = "debug") -> Iterator[io.StringIO]:
    """Give the log that a server process would write, and restore logging afterwards."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    stream = io.StringIO()
    start_logging(level, stream)
    try:
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(before)


@contextmanager
def running(app: Application, how: ServingSettings, **client: Any) -> Iterator[Running]:
    """Run an application in a thread until the block ends."""
    started = threading.Event()
    with logged() as log, listen(how) as listener:
        server = server_of(app, how, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        scheme = "https" if how.tls_certificate else "http"
        url = f"{scheme}://localhost:{listener.getsockname()[1]}"

        def stop() -> None:
            server.should_exit = True
            thread.join()

        thread.start()
        try:
            assert started.wait(PATIENCE)
            options = {"base_url": url, "trust_env": False, "timeout": PATIENCE, "verify": False}
            port = None if app.grpc is None else app.grpc.port
            with (
                httpx.Client(**(options | client)) as asker,
                nullcontext() if port is None else GrpcClient.to(port) as grpc,
            ):
                yield Running(url, asker, log, stop, grpc)
        finally:
            stop()


@contextmanager
def serving(
    guard: ServableDefense | None = None, *, target: Any = None, **given: Any
) -> Iterator[Running]:
    how = settings(**given)
    model = served_model(guard, target=target)
    with running(serving_app(model, how), how) as server:
        yield server
