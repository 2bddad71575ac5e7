"""A client of gRPC that shows errors as HTTP does, so that tests of servers can ask over both."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optional import later

grpc = later("grpc")
messages = later("tritonclient.grpc.service_pb2")

SERVICE = "/inference.GRPCInferenceService/"

STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "CANCELLED": 408,  # by the server: its deadline passed
    "FAILED_PRECONDITION": 412,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""Statuses of HTTP that those of gRPC stand for; 413 and 429 are one there, and so are 502 and 503,
408 and 504."""


@dataclass
class Answer:
    """An answer of gRPC, as httpx would show it."""

    status_code: int
    value: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return json.dumps(self.value)

    def json(self) -> dict[str, Any]:
        return self.value


@dataclass
class GrpcClient:
    """Asks one server."""

    port: int
    channel: Any

    @classmethod
    @contextmanager
    def to(cls, port: int) -> Iterator["GrpcClient"]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield cls(port, channel)

    def call(self, method: str, body: bytes, **metadata: str) -> Answer:
        """Ask for a method with the bytes of a message; ``_`` in names of metadata is ``-``."""
        sent = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        try:
            answer, call = self.channel.unary_unary(SERVICE + method).with_call(body, metadata=sent)
        except grpc.RpcError as error:
            status = STATUSES[error.code().name]
            return Answer(status, {"error": error.details()}, dict(error.trailing_metadata() or ()))
        kind = getattr(messages, f"{method}Response")
        return Answer(200, _as_json(kind.FromString(answer)), dict(call.trailing_metadata()))

    def infer(self, request: dict[str, Any], **metadata: str) -> Answer:
        """Ask what a JSON request asks, with its data in raw form."""
        return self.call("ModelInfer", infer_message(request).SerializeToString(), **metadata)


def infer_message(request: dict[str, Any]) -> Any:
    """Return a JSON request for the model ``digits`` as a message."""
    message = messages.ModelInferRequest(model_name="digits", id=request.get("id", ""))
    for tensor in request["inputs"]:
        names = {name: tensor[name] for name in ("name", "shape", "datatype")}
        message.inputs.add(**names)
        message.raw_input_contents.append(np.array(tensor["data"], "<f4").tobytes())
    for output in request.get("outputs", ()):
        message.outputs.add(name=output["name"])
    return message


def _as_json(message: Any) -> dict[str, Any]:
    if not hasattr(message, "raw_output_contents"):
        return {"message": str(message)}
    outputs = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
            "data": np.frombuffer(raw, {"FP32": "<f4", "INT64": "<i8"}[output.datatype]).tolist(),
        }
        for output, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    ]
    parameters = {name: value.string_param for name, value in message.parameters.items()}
    told = {"model_name": message.model_name, "parameters": parameters, "outputs": outputs}
    return told | ({"id": message.id} if message.id else {})
