"""Requests and answers as a server reads and writes them, and as its OpenAPI document says.

Clients do without this module: it needs pydantic.
"""

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from oneway.openinference.tensors import FLOATS, LAYOUTS, Datatype, MessageError

BINARY_HEADER = "inference-header-content-length"
"""HTTP header that says how many bytes of a body are JSON; tensors follow in binary."""

Text = Annotated[str, StringConstraints(max_length=1024)]

Size = Annotated[int, Field(ge=0, le=2**31)]

Parameters = dict[Text, str | int | float | bool]

MOST_DIMENSIONS = 16

VALUES: dict[str, tuple[str, set[type]]] = {
    **dict.fromkeys(FLOATS, ("numbers", {int, float})),
    "BOOL": ("true or false", {bool}),
    "BYTES": ("texts", {str}),
}
"""Values of a datatype in JSON, in words and as types; of every other datatype, whole numbers."""

MOST_VALUES = 2**22
"""Most numbers and texts in the JSON of one request, and a 16th of it the most lists and objects.

As Python's objects they take up to 32 bytes each, however short their text is, and a list 64.
"""


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
    inputs: list[InputTensor] = Field(min_length=1, max_length=1024)
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
        body: The body of the request.
        json_bytes: The value of :data:`BINARY_HEADER`, or None without that header.

    Returns:
        The request, and the binary data behind it.

    Raises:
        MessageError: The body is no request.
    """
    binary = b""
    if json_bytes is not None:
        if not json_bytes.isdecimal() or len(json_bytes) > 12 or int(json_bytes) > len(body):
            raise MessageError(
                "the header Inference-Header-Content-Length must say how many bytes of the body "
                "are JSON"
            )
        body, binary = body[: int(json_bytes)], body[int(json_bytes) :]
    return checked_request(parse_json(body)), binary


def checked_request(value: Any) -> InferRequest:
    """Return a value as a request.

    Raises:
        MessageError: It is none.
    """
    try:
        return InferRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # Names of fields and places in lists; keys that the client chose are left out.
        place = ".".join(str(part) for part in first["loc"] if part not in ("", None))
        known = "parameters" if "parameters" in first["loc"] else place
        raise MessageError(f"the request's {known or 'body'}: {first['msg']}") from None


def parse_json(body: bytes, most_values: int = MOST_VALUES) -> Any:
    """Return the JSON value of a request.

    Args:
        body: The body of the request.
        most_values: Most numbers and texts in it. They are counted before anything is parsed: by
            commas, so that commas within texts count, too.

    Raises:
        MessageError: The body is no JSON, or holds more.
    """
    size, most_lists = len(body), max(most_values // 16, 4096)
    if (size > most_values and body.count(b",") >= most_values) or (
        size > most_lists and body.count(b"[") + body.count(b"{") > most_lists
    ):
        raise MessageError(
            f"the request may hold {most_values} numbers and texts, and a 16th as many lists; send "
            "fewer queries at once, or flat data"
        )
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise MessageError("the request must be JSON, but is not") from None


def read_queries(
    request: InferRequest,
    parts: Mapping[str, bytes],
    *,
    input_name: str,
    input_shape: tuple[int, ...],
    most_rows: int,
) -> NDArray[np.float32]:
    """Return the queries of a request.

    Args:
        request: The request.
        parts: Binary data of inputs, by name: see :func:`binary_parts`.
        input_name: The name of the model's input, the only one.
        input_shape: The shape of one query.
        most_rows: Most queries in one request.

    Returns:
        ``(N, *input_shape)``, finite, N from 1 to ``most_rows``.

    Raises:
        MessageError: The request holds anything else.
    """
    names = [tensor.name for tensor in request.inputs]
    if names != [input_name]:
        raise MessageError(f"the request must hold one input, {input_name!r}, but holds others")
    sent = request.inputs[0]
    wanted = f"(N, {', '.join(map(str, input_shape))}) with N from 1 to {most_rows}"
    if tuple(sent.shape[1:]) != input_shape or not 1 <= sent.shape[0] <= most_rows:
        raise MessageError(
            f"input {input_name!r} must have shape {wanted}, but has {sent.shape}",
            most_rows=most_rows if sent.shape and sent.shape[0] > most_rows else None,
        )
    if sent.datatype not in FLOATS:
        raise MessageError(
            f"input {input_name!r} must be FP32 (FP16 and FP64 are converted), but is "
            f"{sent.datatype}; convert it as the model's training did"
        )
    return as_float32(
        as_numbers(sent, read_values(sent, parts.get(input_name))),
        f"input {input_name!r} must be finite in FP32, but some numbers are not",
    )


def binary_parts(request: InferRequest, binary: bytes) -> dict[str, bytes]:
    """Return the binary data of each input that has some, by its name.

    Args:
        request: The request.
        binary: What follows the JSON: the data of those inputs, in their order.

    Raises:
        MessageError: The sizes that the inputs state are not those of the data.
    """
    parts, start = {}, 0
    for tensor in request.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or size < 0 or tensor.data is not None:
            raise MessageError(
                f"input {tensor.name!r} must have binary data of a stated size, and no other data"
            )
        parts[tensor.name] = binary[start : start + size]
        start += size
    if start != len(binary):
        raise MessageError(
            f"the inputs state {start} bytes of binary data, but {len(binary)} follow the JSON"
        )
    return parts


def read_values(sent: InputTensor, part: bytes | None) -> NDArray[Any] | list[Any]:
    """Return the values of a tensor, flat, as many as its shape says.

    Args:
        sent: The tensor.
        part: Its binary data; None if its data are in JSON.

    Returns:
        An array of the tensor's datatype of binary numbers; else a list.

    Raises:
        MessageError: The data are something else.
    """
    if part is None:
        if sent.data is None:
            raise MessageError(f"input {sent.name!r} must have data")
        return flat_values(sent)
    if sent.datatype == "BYTES":
        return _texts(sent, part)
    layout, count = LAYOUTS[sent.datatype], prod(sent.shape)
    if len(part) != count * layout.itemsize:
        raise MessageError(
            f"input {sent.name!r} must have {count * layout.itemsize} bytes of binary data, but "
            f"has {len(part)}"
        )
    return np.frombuffer(part, layout)


def _texts(sent: InputTensor, part: bytes) -> list[str]:
    """Return texts in binary form: each behind its length, four bytes."""
    texts, start = [], 0
    try:
        while start < len(part):
            begin = start + 4
            start = begin + int.from_bytes(part[start:begin], "little")
            if start > len(part):
                break
            texts.append(part[begin:start].decode())
    except UnicodeDecodeError:
        raise MessageError(f"input {sent.name!r} must hold texts in UTF-8") from None
    if start != len(part) or len(texts) != prod(sent.shape):
        raise MessageError(
            f"input {sent.name!r} must have {prod(sent.shape)} texts, each behind its length"
        )
    return texts


def as_numbers(sent: InputTensor, values: NDArray[Any] | list[Any]) -> NDArray[Any]:
    """Return the values of a tensor of floats as an array of its shape.

    Raises:
        MessageError: A number is beyond FP64.
    """
    try:
        numbers = values if isinstance(values, np.ndarray) else np.array(values, np.float64)
        return numbers.reshape(sent.shape)
    except OverflowError:
        raise MessageError(f"input {sent.name!r} must be finite in FP32, but is not") from None


def flat_values(sent: InputTensor) -> list[Any]:
    """Return the values of a tensor in JSON, of its datatype and as many as its shape says, flat.

    Raises:
        MessageError: The data are something else.
    """
    flat: list[Any] = sent.data or []
    sizes = [len(flat)]
    while (types := set(map(type, flat))) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1 or len(sizes) >= len(sent.shape):
            raise MessageError(
                f"the data of input {sent.name!r} must be flat, or as its shape says"
            )
        sizes.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
    kind, allowed = VALUES.get(sent.datatype, ("whole numbers", {int}))
    if not types <= allowed:  # true and false count as numbers elsewhere
        raise MessageError(f"the data of input {sent.name!r} must be {kind}")
    if len(flat) != prod(sent.shape) or (len(sizes) > 1 and sizes != sent.shape):
        raise MessageError(
            f"the data of input {sent.name!r} must be {prod(sent.shape)} {kind}, flat or nested "
            "as its shape says"
        )
    return flat


def as_float32(numbers: NDArray[Any], refusal: str) -> NDArray[np.float32]:
    """Return numbers as float32, in a copy.

    Args:
        numbers: An array of any floating type.
        refusal: The text of the error.

    Raises:
        MessageError: A number is not finite in float32.
    """
    with np.errstate(over="ignore"):
        converted = numbers.astype(np.float32)
    if not np.isfinite(converted).all():
        raise MessageError(refusal)
    return converted


def wants_binary(request: InferRequest, output_name: str) -> bool:
    """Say whether the client asked for an output in binary.

    Raises:
        MessageError: The client asked for another form of an output.
    """
    chosen = (request.parameters or {}).get("binary_data_output", False)
    for output in request.outputs or ():
        parameters = output.parameters or {}
        if "classification" in parameters or "shared_memory_region" in parameters:
            raise MessageError(f"output {output.name!r} comes as JSON or as binary data only")
        if output.name == output_name:
            chosen = parameters.get("binary_data", chosen)
    return chosen is True
