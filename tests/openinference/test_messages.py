"""Bodies of requests: what is counted before anything is parsed, and binary data beside JSON."""

import json

import numpy as np
import pytest

from oneway.openinference.messages import (
    MOST_VALUES,
    InferRequest,
    binary_parts,
    parse_json,
    read_values,
)
from oneway.openinference.tensors import LAYOUTS, MessageError


@pytest.mark.hostile("JSON of more values than memory should hold", 3, "400, unparsed")
def test_more_values_than_fit_into_memory_are_refused_unparsed(monkeypatch):
    """A body of 15 MB of empty lists would take a gigabyte and seconds of the event loop."""
    monkeypatch.setattr("oneway.openinference.messages.from_json", None)  # never asked
    for body in (
        b"[" + b"[]," * (MOST_VALUES // 16 + 1) + b"[]]",
        b"[" + b"{}," * (MOST_VALUES // 16 + 1) + b"{}]",
        b"[" + b"0," * MOST_VALUES + b"0]",
    ):
        with pytest.raises(MessageError, match="send fewer queries at once, or flat data"):
            parse_json(body)


def test_as_many_as_may_be_are_read():
    rows = [[0.5] * 10] * 5000
    assert parse_json(json.dumps(rows).encode()) == rows
    assert parse_json(b"[1, 2]", most_values=2) == [1, 2]
    with pytest.raises(MessageError, match="may hold 8 numbers"):
        parse_json(b"[" + b"1," * 8 + b"1]", most_values=8)


@pytest.mark.parametrize("datatype", [*LAYOUTS, "BYTES"])
def test_binary_data_are_read_as_they_were_written(datatype):
    if datatype == "BYTES":
        values = ["", "a, [b]", "Übergang"]
        texts = [text.encode() for text in values]
        binary = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    else:
        values = np.array([0, 1, 1]).astype(LAYOUTS[datatype])
        binary = values.tobytes()
    sizes = {"binary_data_size": len(binary)}
    inputs = [
        {"name": "first", "shape": [1], "datatype": "INT8", "data": [7]},
        {"name": "x", "shape": [3], "datatype": datatype, "parameters": sizes},
    ]
    request = InferRequest.model_validate({"inputs": inputs})
    parts = binary_parts(request, binary)
    assert parts.keys() == {"x"}
    assert list(read_values(request.inputs[1], parts["x"])) == list(values)
    for wrong in (binary + b"0", binary[:-1]):
        with pytest.raises(MessageError, match="binary data"):
            binary_parts(request, wrong)
        with pytest.raises(MessageError, match="must have"):
            read_values(request.inputs[1], wrong)
