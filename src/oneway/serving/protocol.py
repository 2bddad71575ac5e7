"""The Open Inference Protocol, version 2: its messages, and tensors in them.

Source:
    https://github.com/open-inference/open-inference-protocol, REST; and Triton's extension for
    binary tensor data.
"""

import math
from itertools import chain
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from oneway.serving.refusals import bad_request

Datatype: TypeAlias = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BYTES",
]  # fmt: skip

FLOATS: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""What queries may be sent as, and how binary data is laid out."""

BINARY_HEADER = "inference-header-content-length"
"""HTTP header that says how many bytes of a body are JSON; tensors follow in binary."""

Text = Annotated[str, StringConstraints(max_length=1024)]

Size = Annotated[int, Field(ge=0, le=2**31)]

Parameters = dict[Text, str | int | float | bool]

MOST_DIMENSIONS = 16


class _Message(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)


class InputTensor(_Message):
    """One tensor of a request."""

    name: Text
    shape: list[Size] = Field(max_length=MOST_DIMENSIONS)
    datatype: Datatype
    parameters: Parameters | None = None
    data: list[Any] | None = Field(
        default=None, description="Numbers, flat in row-major order or nested as the shape says."
    )


class WantedOutput(_Message):
    """One output that a client asks for."""

    name: Text
    parameters: Parameters | None = None


class InferRequest(_Message):
    """What a client asks."""

    id: Text | None = None
    parameters: Parameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=64)
    outputs: list[WantedOutput] | None = Field(default=None, max_length=64)


class OutputTensor(_Message):
    """One tensor of an answer."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(_Message):
    """What it gets."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: Parameters | None = Field(
        default=None, description="`guard` and `guard_version`: what stands before the model."
    )
    outputs: list[OutputTensor]


class TensorMetadata(_Message):
    """A tensor as a model declares it; -1 is a size that may vary."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Message):
    """What a model takes and gives."""

    name: str
    versions: list[str] | None = None
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Parameters | None = None


class ServerMetadata(_Message):
    """What a server is."""

    name: str
    version: str
    extensions: list[str]


class ErrorMessage(_Message):
    """Why there is no answer."""

    error: str


def parse_request(body: bytes, json_bytes: str | None) -> tuple[InferRequest, bytes]:
    """Read a request.

    Args:
        body: All of it.
        json_bytes: What the header of binary data says, if it is there.

    Returns:
        The request, and the binary data behind it.

    Raises:
        RefusedError: It is no request.
    """
    binary = b""
    if json_bytes is not None:
        if not json_bytes.isdecimal() or len(json_bytes) > 12 or int(json_bytes) > len(body):
            raise bad_request(
                "the header Inference-Header-Content-Length must say how many bytes of the body "
                "are JSON"
            )
        body, binary = body[: int(json_bytes)], body[int(json_bytes) :]
    try:
        return InferRequest.model_validate_json(body), binary
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # Names of fields and places in lists; a client's own keys are left out.
        place = ".".join(str(part) for part in first["loc"] if part not in ("", None))
        if first["type"] == "json_invalid":
            raise bad_request("the request must be JSON, but is not") from None
        known = place if _is_known(first["loc"]) else "parameters"
        raise bad_request(f"the request's {known or 'body'}: {first['msg']}") from None


def _is_known(place: tuple[int | str, ...]) -> bool:
    return "parameters" not in place


def read_queries(
    request: InferRequest,
    binary: bytes,
    *,
    input_name: str,
    input_shape: tuple[int, ...],
    most_rows: int,
) -> Tensor:
    """Return the queries of a request.

    Args:
        request: What was sent.
        binary: The data behind it.
        input_name: Of the one input.
        input_shape: Of one query.
        most_rows: How many queries a request may hold.

    Returns:
        ``(N, *input_shape)`` float32, finite, N at least 1.

    Raises:
        RefusedError: They are something else.
    """
    names = [tensor.name for tensor in request.inputs]
    if names != [input_name]:
        raise bad_request(f"the request must hold one input, {input_name!r}, but holds others")
    sent = request.inputs[0]
    wanted = f"(N, {', '.join(map(str, input_shape))}) with N from 1 to {most_rows}"
    if tuple(sent.shape[1:]) != input_shape or not 1 <= sent.shape[0] <= most_rows:
        raise bad_request(f"input {input_name!r} must have shape {wanted}, but has {sent.shape}")
    if sent.datatype not in FLOATS:
        raise bad_request(
            f"input {input_name!r} must be FP32 (FP16 and FP64 are converted), but is "
            f"{sent.datatype}; convert it as the model's training did"
        )
    numbers = _numbers(sent, binary)
    with np.errstate(over="ignore"):
        queries = torch.from_numpy(numbers.astype(np.float32).reshape(sent.shape))
    if not bool(torch.isfinite(queries).all()):
        raise bad_request(f"input {input_name!r} must be finite in FP32, but some numbers are not")
    return queries


def _numbers(sent: InputTensor, binary: bytes) -> NDArray[Any]:
    """Return a tensor's numbers, flat."""
    count = math.prod(sent.shape)
    size = (sent.parameters or {}).get("binary_data_size")
    if size is not None:
        kind = FLOATS[sent.datatype]
        if sent.data is not None or size != len(binary) or size != count * kind.itemsize:
            raise bad_request(
                f"input {sent.name!r} must have {count * kind.itemsize} bytes of binary data and "
                "no other data"
            )
        return np.frombuffer(binary, kind)
    if binary or sent.data is None:
        raise bad_request(f"input {sent.name!r} must have data, and nothing may follow the JSON")
    return flat_numbers(sent)


def flat_numbers(sent: InputTensor) -> NDArray[np.float64]:
    """Return the numbers of a tensor in JSON, as many as its shape says, flat.

    Raises:
        RefusedError: They are something else.
    """
    count = math.prod(sent.shape)
    flat: list[Any] = sent.data or []
    sizes = [len(flat)]
    while set(map(type, flat)) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1 or len(sizes) >= len(sent.shape):
            raise bad_request(f"the data of input {sent.name!r} must be flat, or as its shape says")
        sizes.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= {int, float}:  # true and false count as numbers elsewhere
        raise bad_request(f"the data of input {sent.name!r} must be numbers")
    if len(flat) != count or (len(sizes) > 1 and sizes != sent.shape):
        raise bad_request(
            f"the data of input {sent.name!r} must be {count} numbers, flat or nested as its shape "
            "says"
        )
    try:
        return np.array(flat, np.float64)
    except OverflowError:
        raise bad_request(f"input {sent.name!r} must be finite in FP32, but is not") from None


def wants_binary(request: InferRequest, output_name: str) -> bool:
    """Say whether the client asked for the output in binary.

    Raises:
        RefusedError: It asked for an output that is not there, or for another form of it.
    """
    chosen = (request.parameters or {}).get("binary_data_output", False)
    for output in request.outputs or ():
        if output.name != output_name:
            raise bad_request(f"the only output is {output_name!r}")
        given = output.parameters or {}
        if "classification" in given or "shared_memory_region" in given:
            raise bad_request(f"output {output_name!r} comes as JSON or as binary data only")
        chosen = given.get("binary_data", chosen)
    return chosen is True
