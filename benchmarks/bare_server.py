"""The server that oneway's is compared with: the same model and protocol, and not a check.

One process, uvicorn on uvloop and httptools, a plain ASGI function, JSON by msgspec, no thread, no
batches, no limits, no log. Run by `benchmarks/serving.py`, as `bare_server.py FACTORY`.

`bare_server.py FACTORY CODEBOOK` also reads, checks and guards as oneway's server does, by the same
functions, one request at a time: batches of several clients can cost less.
"""

import importlib
import socket
import sys
from typing import Any

import msgspec
import numpy as np
import torch
import uvicorn

from oneway import CodebookRelease, TorchTarget
from oneway.openinference.messages import binary_parts, parse_request, read_queries
from oneway.releases import looked_up_release


class Tensor(msgspec.Struct):
    """A tensor of a request, in JSON or with its binary data behind it."""

    shape: list[int]
    data: list[float] = []


class Request(msgspec.Struct):
    """A request of the Open Inference Protocol."""

    inputs: list[Tensor]


def main() -> None:
    """Serve until the process ends; print the port."""
    network = getattr(importlib.import_module("served"), sys.argv[1])()
    decoder = msgspec.json.Decoder(Request)
    metadata = msgspec.json.encode(
        {
            "name": "model",
            "platform": "bare",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 32, 32]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
        }
    )

    def answer(body: bytes, head: bytes | None) -> bytes:
        size = len(body) if head is None else int(head)
        (sent,) = decoder.decode(memoryview(body)[:size]).inputs
        flat = (
            np.array(sent.data, np.float32) if head is None else np.frombuffer(body[size:], "<f4")
        )
        with torch.inference_mode():
            scores = network(torch.from_numpy(flat.reshape(sent.shape).copy())).softmax(-1)
        output = {"name": "probabilities", "datatype": "FP32", "shape": list(scores.shape)}
        output["data"] = scores.flatten().tolist()
        return msgspec.json.encode({"model_name": "model", "outputs": [output]})

    def guarded_answer(body: bytes, head: bytes | None) -> bytes:
        request, binary = parse_request(body, None if head is None else head.decode())
        parts, shape = binary_parts(request, binary), tuple(request.inputs[0].shape[1:])
        queries = read_queries(request, parts, input_name="input", input_shape=shape, most_rows=64)
        released = looked_up_release(codebook, target.logits(torch.from_numpy(queries)))
        output = {"name": "probabilities", "datatype": "FP32", "shape": list(released.shape)}
        output["data"] = released.flatten().tolist()
        return msgspec.json.encode({"model_name": "model", "outputs": [output]})

    ask = answer
    if len(sys.argv) > 2:
        codebook, target = CodebookRelease.load(sys.argv[2]), TorchTarget(network)
        ask = guarded_answer

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        text = metadata
        if scope["method"] == "POST":
            text = ask(body, dict(scope["headers"]).get(b"inference-header-content-length"))
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        app, http="httptools", loop="uvloop", lifespan="off", log_level="error", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
