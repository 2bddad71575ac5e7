"""Requests and answers as a server reads and writes them, and as its OpenAPI document says.

Clients do without this module: it needs msgspec.
"""

import re
from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from oneway.openinference.tensors import FLOATS, LAYOUTS, Datatype, MessageError

BINARY_HEADER = "inference-header-content-length"
"""HTTP header that says how many bytes of a body are JSON; tensors follow in binary."""

Text = Annotated[str, Meta(max_length=1024)]

Size = Annotated[int, Meta(ge=0, le=2**31)]

Parameters = dict[Text, str | int | float | bool]

MOST_DIMENSIONS = 16

BYTES_AT_ONCE = 2**16
"""Bytes of JSON whose numbers are Python objects at the same time: up to 16 times as many bytes."""

VALUES: dict[str, tuple[str, Any]] = {
    "f": ("numbers", msgspec.json.Decoder(list[float])),
    "b": ("true or false", msgspec.json.Decoder(list[bool])),
    "i": ("whole numbers", msgspec.json.Decoder(list[int])),
    "u": ("whole numbers", msgspec.json.Decoder(list[int])),
}
"""Values in JSON, by kind of layout, in words and what reads a list of them."""

MOST_VALUES = 2**22
"""Most numbers and texts in the JSON of one request, and a 16th of it the most lists and objects.

As Python's objects they take up to 32 bytes each, however short their text is, and a list 64.
"""

Json = Annotated[
    msgspec.Raw,
    Meta(
        description="Values, flat in row-major order or nested as the shape says.",
        extra_json_schema={"type": "array"},
    ),
]
"""Values in JSON that are not read yet."""

Buffer = bytes | memoryview


class InputTensor(msgspec.Struct, omit_defaults=True):
    """One tensor of a request."""

    name: Text
    shape: Annotated[list[Size], Meta(max_length=MOST_DIMENSIONS)]
    datatype: Datatype
    parameters: Parameters | None = None
    data: Json = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class WantedOutput(msgspec.Struct, omit_defaults=True):
    """One output that a client asks for."""

    name: Text
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, omit_defaults=True):
    """What a client asks."""

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=1024)]
    id: Text | None = None
    parameters: Parameters | None = None
    outputs: Annotated[list[WantedOutput], Meta(max_length=64)] | None = None


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """One tensor of an answer."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(msgspec.Struct, omit_defaults=True):
    """What it gets."""

    model_name: str
    outputs: list[OutputTensor]
    model_version: str | None = None
    id: str | None = None
    parameters: Annotated[
        Parameters | None,
        Meta(description="`guard` and `guard_version`: what stands before the model."),
    ] = None


class TensorMetadata(msgspec.Struct):
    """A tensor as a model declares it; -1 is a size that may vary."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(msgspec.Struct, omit_defaults=True):
    """What a model takes and gives."""

    name: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    platform: str = ""
    versions: list[str] | None = None
    parameters: Parameters | None = None


class ServerMetadata(msgspec.Struct):
    """What a server is."""

    name: str
    version: str
    extensions: list[str]


class ErrorMessage(msgspec.Struct):
    """Why there is no answer."""

    error: str


REQUEST = msgspec.json.Decoder(InferRequest)

COMMA = re.compile(rb",")

NESTED = re.compile(rb"\[\s*\[")


def parse_request(body: bytes, json_bytes: str | None) -> tuple[InferRequest, memoryview]:
    """Read a request.

    Args:
        body: The body of the request.
        json_bytes: The value of :data:`BINARY_HEADER`, or None without that header.

    Returns:
        The request, and the binary data behind it.

    Raises:
        MessageError: The body is no request.
    """
    binary = memoryview(b"")
    if json_bytes is not None:
        if not json_bytes.isdecimal() or len(json_bytes) > 12 or int(json_bytes) > len(body):
            raise MessageError(
                "the header Inference-Header-Content-Length must say how many bytes of the body "
                "are JSON"
            )
        body, binary = body[: int(json_bytes)], memoryview(body)[int(json_bytes) :]
    check_count_of_values(body)
    try:
        return REQUEST.decode(body), binary
    except msgspec.ValidationError as error:
        raise _refused(error) from None
    except (msgspec.DecodeError, RecursionError):
        raise MessageError("the request must be JSON, but is not") from None


def checked_request(value: Any) -> InferRequest:
    """Return a value without tensors' data as a request.

    Raises:
        MessageError: It is none.
    """
    try:
        return msgspec.convert(value, InferRequest)
    except msgspec.ValidationError as error:
        raise _refused(error) from None


def _refused(error: msgspec.ValidationError) -> MessageError:
    """Return what is wrong with a request: place and type, without a value of the client."""
    text, _, place = str(error).partition(" - at `$")
    if text.startswith("Invalid enum value"):  # it quotes the value
        text = f"Expected one of {', '.join([*LAYOUTS, 'BYTES'])}"
    # Names of fields and places in lists; of keys that the client chose there is none.
    place = re.sub(r"\[(\d+)\]", r".\1", place.partition("`")[0]).replace("[...]", "")
    return MessageError(f"the request's {place.strip('.') or 'body'}: {text}")


def check_count_of_values(body: bytes, most_values: int = MOST_VALUES) -> None:
    """Refuse JSON of too many values, before anything is parsed.

    Args:
        body: The body of the request.
        most_values: Most numbers and texts in it. They are counted by commas, so that commas
            within texts count, too.

    Raises:
        MessageError: The body holds more.
    """
    size, most_lists = len(body), max(most_values // 16, 4096)
    if (size > most_values and body.count(b",") >= most_values) or (
        size > most_lists and body.count(b"[") + body.count(b"{") > most_lists
    ):
        raise MessageError(
            f"the request may hold {most_values} numbers and texts, and a 16th as many lists; send "
            "fewer queries at once, or flat data"
        )


def parse_json(body: bytes, most_values: int = MOST_VALUES) -> Any:
    """Return the JSON value of a request.

    Args:
        body: The body of the request.
        most_values: Most numbers and texts in it.

    Raises:
        MessageError: The body is no JSON, or holds more.
    """
    check_count_of_values(body, most_values)
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise MessageError("the request must be JSON, but is not") from None


def read_queries(
    request: InferRequest,
    parts: Mapping[str, Buffer],
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
    if tuple(sent.shape[1:]) != input_shape or not 1 <= sent.shape[0] <= most_rows:
        wanted = f"(N, {', '.join(map(str, input_shape))}) with N from 1 to {most_rows}"
        raise MessageError(
            f"input {input_name!r} must have shape {wanted}, but has {sent.shape}",
            most_rows=most_rows if sent.shape and sent.shape[0] > most_rows else None,
        )
    if sent.datatype not in FLOATS:
        raise MessageError(
            f"input {input_name!r} must be FP32 (FP16 and FP64 are converted), but is "
            f"{sent.datatype}; convert it as the model's training did"
        )
    numbers = read_values(sent, parts.get(input_name), np.dtype(np.float32))
    return as_float32(
        np.asarray(numbers).reshape(sent.shape),
        f"input {input_name!r} must be finite in FP32, but some numbers are not",
    )


def binary_parts(request: InferRequest, binary: Buffer) -> dict[str, Buffer]:
    """Return the binary data of each input that has some, by its name.

    Args:
        request: The request.
        binary: What follows the JSON: the data of those inputs, in their order.

    Raises:
        MessageError: The sizes that the inputs state are not those of the data.
    """
    parts: dict[str, Buffer] = {}
    start = 0
    for tensor in request.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or size < 0 or has_json(tensor):
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


def read_values(
    sent: InputTensor, part: Buffer | None, kept: np.dtype[Any] | None = None
) -> NDArray[Any] | list[Any]:
    """Return the values of a tensor, flat, as many as its shape says.

    Args:
        sent: The tensor.
        part: Its binary data; None if its data are in JSON.
        kept: The type that numbers in JSON are kept in; None: the tensor's.

    Returns:
        An array of numbers; a list of texts for BYTES.

    Raises:
        MessageError: The data are something else.
    """
    if part is None and not has_json(sent):
        raise MessageError(f"input {sent.name!r} must have data")
    if sent.datatype == "BYTES":
        return _texts_in_json(sent) if part is None else _texts(sent, part)
    layout, count = LAYOUTS[sent.datatype], prod(sent.shape)
    if part is None:
        return _numbers_in_json(sent, layout, kept or layout)
    if len(part) != count * layout.itemsize:
        raise MessageError(
            f"input {sent.name!r} must have {count * layout.itemsize} bytes of binary data, but "
            f"has {len(part)}"
        )
    return np.frombuffer(part, layout)


def has_json(tensor: InputTensor) -> bool:
    """Say whether a tensor has its data in JSON."""
    return bytes(memoryview(tensor.data)[:4]) != b"null"


def _numbers_in_json(sent: InputTensor, layout: np.dtype[Any], kept: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in JSON, in memory that the bytes of their text bound.

    A list of Python objects takes up to 16 times as many: it never holds more than a part.
    """
    kind, decoder = VALUES[layout.kind]
    text: Any = memoryview(sent.data)
    count = prod(sent.shape)
    if 2 * count > len(text) or text[:1] != b"[":  # a number and a comma take two bytes
        raise _wrong_data(sent, kind)
    whole = bytes(text) if NESTED.match(text) or not count else b""
    if not count and whole.translate(None, b" \t\r\n") not in (b"[]", _brackets(sent, len(text))):
        raise _wrong_data(sent, kind)
    if whole and count:
        if whole.translate(None, b"0123456789.eE+-truefals \t\r\n") != _brackets(sent, len(text)):
            raise _wrong_data(sent, kind)
        text = memoryview(b"[%b]" % whole.translate(None, b"[]"))
    numbers = np.empty(count, kept)
    start, end, filled = 1, len(text) - 1 if count else 0, 0
    while start < end:
        comma = COMMA.search(text, min(start + BYTES_AT_ONCE, end))
        stop = end if comma is None else comma.start()
        piece = text if stop - start == len(text) - 2 else b"[%b]" % text[start:stop]
        try:
            values = _as_layout(decoder.decode(piece), layout)
        except (msgspec.DecodeError, OverflowError) as error:
            if isinstance(error, OverflowError) or str(error).startswith("Number out of range"):
                raise MessageError(
                    f"input {sent.name!r} must be finite in {sent.datatype}, but some numbers are "
                    "not"
                ) from None
            raise _wrong_data(sent, kind) from None
        if filled + len(values) > count:
            raise _wrong_data(sent, kind)
        with np.errstate(over="ignore"):
            numbers[filled : filled + len(values)] = values
        filled, start = filled + len(values), stop + 1
    if filled < count:
        raise _wrong_data(sent, kind)
    return numbers


def _as_layout(values: list[Any], layout: np.dtype[Any]) -> NDArray[Any]:
    """Return values as an array.

    Raises:
        OverflowError: The layout does not hold a whole number.
    """
    if layout.kind in "iu":
        wide = np.array(values, f"{layout.kind}8")
        if (wide != wide.astype(layout)).any():
            raise OverflowError
        return wide
    with np.errstate(over="ignore"):
        return np.array(values, layout)


def _wrong_data(sent: InputTensor, kind: str) -> MessageError:
    return MessageError(
        f"the data of input {sent.name!r} must be {prod(sent.shape)} {kind}, flat or nested as "
        "its shape says"
    )


def _brackets(sent: InputTensor, most: int) -> bytes:
    """Return the brackets and commas of nested data; empty if these were more than ``most``."""
    pattern, shape = b"", sent.shape
    for size in reversed(shape[: shape.index(0) + 1] if 0 in shape else shape):
        if size * (len(pattern) + 1) > most:
            return b""
        pattern = b"[%b]" % b",".join([pattern] * size)
    return pattern


def _texts_in_json(sent: InputTensor) -> list[str]:
    """Return texts in JSON."""
    wrong = _wrong_data(sent, "texts")
    try:
        flat = msgspec.json.decode(sent.data)
    except (msgspec.DecodeError, RecursionError):
        raise wrong from None
    if not isinstance(flat, list):
        raise wrong
    sizes = [len(flat)]
    while set(map(type, flat)) == {list} and len(sizes) < len(sent.shape):
        lengths = set(map(len, flat))
        sizes.append(lengths.pop() if len(lengths) == 1 else -1)
        flat = list(chain.from_iterable(flat))
    if (
        len(flat) != prod(sent.shape)
        or (len(sizes) > 1 and sizes != sent.shape)
        or not all(isinstance(text, str) for text in flat)
    ):
        raise wrong
    return flat


def _texts(sent: InputTensor, part: Buffer) -> list[str]:
    """Return texts in binary form: each behind its length, four bytes."""
    texts, start = [], 0
    try:
        while start < len(part):
            begin = start + 4
            start = begin + int.from_bytes(part[start:begin], "little")
            if start > len(part):
                break
            texts.append(str(part[begin:start], "utf-8"))
    except UnicodeDecodeError:
        raise MessageError(f"input {sent.name!r} must hold texts in UTF-8") from None
    if start != len(part) or len(texts) != prod(sent.shape):
        raise MessageError(
            f"input {sent.name!r} must have {prod(sent.shape)} texts, each behind its length"
        )
    return texts


def as_float32(numbers: NDArray[Any], refusal: str) -> NDArray[np.float32]:
    """Return numbers as float32, in memory that may be written to.

    Args:
        numbers: An array of any floating type.
        refusal: The text of the error.

    Raises:
        MessageError: A number is not finite in float32.
    """
    with np.errstate(over="ignore"):
        converted = numbers.astype(np.float32, copy=not numbers.flags.writeable)
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
