"""Inference messages of the protocol's gRPC as those that JSON is read into, and back.

Source:
    https://github.com/open-inference/open-inference-protocol, gRPC, whose messages
    ``tritonclient.grpc.service_pb2`` holds.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from oneway.openinference.messages import (
    MOST_VALUES,
    InferRequest,
    InputTensor,
    checked_request,
)
from oneway.openinference.tensors import LAYOUTS, MessageError

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of a tensor's values, by datatype; FP16 comes in raw form only."""

TYPES: dict[str, set[type]] = {"f": {int, float}, "b": {bool}, "i": {int}, "u": {int}, "U": {str}}
"""Values of JSON, by kind of layout."""

MOST_FIELDS = 2**14
"""Most fields of a request, those of the messages in it among them."""

LENGTHS = {1: 8, 5: 4}
"""Bytes of fields of a fixed length, by the wire type of Protocol Buffers."""

Messages = Mapping[int, "Messages"]

MESSAGES: Messages = {4: {}, 5: {4: {}, 5: {}}, 6: {2: {}}}
"""Numbers of a ``ModelInferRequest``'s fields that are messages, and of theirs: parameters, inputs
with parameters and contents, outputs with parameters."""


def read_request(message: Any) -> tuple[InferRequest, dict[str, bytes]]:
    """Return a ``ModelInferRequest`` as a request, and the binary data of its inputs, by name.

    Raises:
        MessageError: The message is no request.
    """
    inputs = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
            "parameters": _parameters(tensor),
        }
        for tensor in message.inputs
    ]
    outputs = [
        {"name": output.name, "parameters": _parameters(output)} for output in message.outputs
    ]
    request = checked_request(
        {
            "id": message.id or None,
            "parameters": _parameters(message),
            "inputs": inputs,
            "outputs": outputs or None,
        }
    )
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MessageError(
            f"raw_input_contents must hold the data of each of the {len(message.inputs)} inputs, "
            f"but hold {len(raw)}"
        )
    parts = {}
    for at, (tensor, sent) in enumerate(zip(request.inputs, message.inputs, strict=True)):
        if raw and sent.HasField("contents"):
            raise MessageError(
                f"input {tensor.name!r} must have its data in raw_input_contents or in contents, "
                "but not in both"
            )
        parts[tensor.name] = raw[at] if raw else _packed_contents(tensor, sent.contents)
    return request, parts


def _parameters(message: Any) -> dict[str, Any] | None:
    """Return the parameters of a message; values that are not set are left out."""
    chosen = {
        name: value.WhichOneof("parameter_choice") for name, value in message.parameters.items()
    }
    return {
        name: getattr(message.parameters[name], choice)
        for name, choice in chosen.items()
        if choice is not None
    } or None


def _packed_contents(tensor: InputTensor, contents: Any) -> bytes:
    """Return the typed values of a tensor in binary form."""
    field = CONTENTS.get(tensor.datatype)
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        raise MessageError(
            f"input {tensor.name!r} must have its data in {field or 'raw_input_contents'}, as "
            f"{tensor.datatype} has"
        )
    values = getattr(contents, filled[0])
    if len(values) != prod(tensor.shape) or len(values) > MOST_VALUES:
        raise MessageError(
            f"the data of input {tensor.name!r} must be {prod(tensor.shape)} values, at most "
            f"{MOST_VALUES}, but are {len(values)}"
        )
    if tensor.datatype == "BYTES":
        return _texts(values)
    layout = LAYOUTS[tensor.datatype]
    wide = np.fromiter(values, np.dtype(f"{layout.kind}8") if layout.kind in "iu" else layout)
    packed = wide.astype(layout)
    if layout.kind in "iu" and (packed != wide).any():
        raise MessageError(f"the data of input {tensor.name!r} must be within {tensor.datatype}")
    return packed.tobytes()


def _texts(texts: Sequence[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def packed_output(output: Mapping[str, Any]) -> bytes:
    """Return the data of an output in JSON in binary form.

    Args:
        output: The output, which :meth:`oneway.openinference.tensors.MessageTensor.check` passed.

    Raises:
        MessageError: Its data are not those of its datatype and shape.
    """
    datatype, wrong = output["datatype"], "must send the data of each output as it declares them"
    values = np.asarray(output["data"], object).ravel().tolist()
    layout = LAYOUTS.get(datatype, np.dtype(str))
    if len(values) != prod(output["shape"]) or not set(map(type, values)) <= TYPES[layout.kind]:
        raise MessageError(wrong)
    try:
        if datatype == "BYTES":
            return _texts([text.encode() for text in values])
        with np.errstate(over="ignore"):
            return np.array(values, layout).tobytes()
    except (OverflowError, UnicodeEncodeError):
        raise MessageError(wrong) from None


def check_fields(data: bytes) -> None:
    """Refuse a message of more fields than a request needs, before it is parsed.

    A field of two bytes may take a hundred in memory, so that bytes alone are no limit.

    Args:
        data: A message in the wire format of Protocol Buffers.

    Raises:
        MessageError: It has more fields, or is cut off.
    """
    waiting, count = [(0, len(data), MESSAGES)], 0
    while waiting:
        at, end, inner = waiting.pop()
        while at < end:
            count += 1
            key, at = _varint(data, at)
            kind, number = key & 7, key >> 3
            size = LENGTHS.get(kind, 0)
            if kind in (0, 2):
                value, at = _varint(data, at)
                size = value if kind == 2 else 0
            elif kind not in LENGTHS:
                raise MessageError("the message must have no groups")
            if number in inner and kind == 2:
                waiting.append((at, at + size, inner[number]))
            at += size
            if at > end or count > MOST_FIELDS:
                raise MessageError(
                    f"the message must be whole, and have at most {MOST_FIELDS} fields; send data "
                    "in raw_input_contents"
                )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number at a place of a message, and the place behind it."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise MessageError("the message must be whole")
