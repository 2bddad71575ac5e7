"""Bodies of requests: what is counted before anything is parsed, and binary data beside JSON."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from oneway.openinference.messages import (
    MOST_VALUES,
    binary_parts,
    parse_json,
    parse_request,
    read_values,
)
from oneway.openinference.tensors import LAYOUTS, MessageError


@pytest.mark.hostile(
    "JSON of so many values that parsing would fill memory", 3, "400; the body is not parsed"
)
def test_more_values_than_fit_into_memory_are_refused_unparsed(monkeypatch):
    """A body of 15 MB of empty lists would take a gigabyte and seconds of the event loop."""
    monkeypatch.setattr("oneway.openinference.messages.msgspec", None)  # never asked
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
    request, _ = parse_request(json.dumps({"inputs": inputs}).encode(), None)
    parts = binary_parts(request, binary)
    assert parts.keys() == {"x"}
    assert list(read_values(request.inputs[1], parts["x"])) == list(values)
    for wrong in (binary + b"0", binary[:-1]):
        with pytest.raises(MessageError, match="binary data"):
            binary_parts(request, wrong)
        with pytest.raises(MessageError, match="must have"):
            read_values(request.inputs[1], wrong)


def tensor_of(shape, data, datatype="FP32"):
    """Return a tensor of a request whose data are a text of JSON."""
    named = f'"name": "x", "shape": {json.dumps(shape)}, "datatype": "{datatype}"'
    request, _ = parse_request(f'{{"inputs": [{{{named}, "data": {data}}}]}}'.encode(), None)
    return request.inputs[0]


@pytest.mark.parametrize("at_once", [1, 7, 2**16])
@given(st.data())
def test_numbers_in_json_are_read_as_they_were_written(at_once, data):
    layout = LAYOUTS[datatype := data.draw(st.sampled_from([*LAYOUTS]))]
    shape = arrays.array_shapes(max_dims=4, max_side=4, min_side=0)
    values = data.draw(arrays.arrays(layout, shape, elements=arrays.from_dtype(
        layout, allow_nan=False, allow_infinity=False
    )))  # fmt: skip
    separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", ":")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oneway.openinference.messages.BYTES_AT_ONCE", at_once)
        for nested in (values, values.ravel()):
            text = json.dumps(nested.tolist(), separators=separators)
            found = read_values(tensor_of(list(values.shape), text, datatype), None)
            assert found.dtype == layout
            assert found.tobytes() == values.tobytes()


def test_data_in_json_that_are_not_as_the_tensor_says_are_refused():
    for shape, datatype, texts in (
        ([2, 2], "FP32", (
            "[1,2,3]", "[1,2,3,4,5]", "[[1,2],[3]]", "[[1,2],[3,4,5]]", "[[1,2,3,4]]", "[]", "5",
            "[[[1,2],[3,4]]]", "[1,2,3,true]", "[1,2,3,null]", '[1,2,3,"4"]', '["1,2",3,4]',
            "[[1,2],[3,[4]]]", "[[1,2],3,4]", '{"a": 1}', '"1234567890"', "[[1,2],[3,{}]]",
            "[[true,2],[3,4]]", "[[1,2],[3,e]]".replace("e", "null"),
        )),
        ([2, 2**31, 0], "FP32", ("[[],[]]",)),
        ([2**31, 2**31], "FP32", ("[1,2]", "[[1],[2]]")),
        ([2], "UINT8", ("[1,2.0]", "[1,true]", "[1.5,2]")),
        ([2], "BOOL", ("[1,0]", '["true",true]')),
        ([2, 1], "BYTES", ("[1,2]", '["a"]', '[["a"],["b","c"]]', '[[["a"]],[["b"]]]', "7")),
    ):  # fmt: skip
        for text in texts:
            with pytest.raises(MessageError, match="flat or nested as its shape says"):
                read_values(tensor_of(shape, text, datatype), None)
    for datatype, text in (
        ("UINT8", "[256]"),
        ("UINT64", "[-1]"),
        ("INT8", "[-129]"),
        ("INT64", f"[{2**63}]"),
        ("FP32", "[1e999]"),
        ("FP64", f"[1{400 * '0'}]"),
    ):
        with pytest.raises(MessageError, match=f"finite in {datatype}"):
            read_values(tensor_of([1], text, datatype), None)


def test_what_is_wrong_with_a_request_is_named_and_never_quoted():
    good = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    for change, said in (
        ({"datatype": "s3cret"}, "inputs.0.datatype: Expected one of BOOL"),
        ({"shape": ["s3cret"]}, "inputs.0.shape.0: Expected `int`"),
        ({"shape": [-1]}, "inputs.0.shape.0"),
        ({"name": 7.1234}, "inputs.0.name"),
        ({"parameters": {"s3cret": [1]}}, "inputs.0.parameters: Expected"),
    ):
        body = json.dumps({"inputs": [{**good, **change}]}).encode()
        with pytest.raises(MessageError, match=re.escape(said)) as caught:
            parse_request(body, None)
        assert "s3cret" not in str(caught.value)
        assert "7.1234" not in str(caught.value)
    for body in (
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"inputs": []}',
        b'{"inputs": [7]}',
        b"[" * 10**5,
        b'{"inputs": [{"name": "x", "data": ' + b"[" * 10**5,
    ):
        with pytest.raises(MessageError, match="the request"):
            parse_request(body, None)


def test_memory_is_at_most_three_times_the_body_however_short_its_numbers_are(monkeypatch):
    monkeypatch.setattr("oneway.openinference.messages.BYTES_AT_ONCE", 2**10)
    for number, datatype in ((b"0", "FP32"), (b"1e1", "FP32"), (b"-7", "FP32"), (b"0.5", "FP64")):
        count = 60_000 // (len(number) + 1)
        kept = {"name": "x", "shape": [count], "datatype": datatype}
        head = json.dumps({"inputs": [kept]}).encode().removesuffix(b"}]}")
        body = head + b', "data": [' + b",".join([number] * count) + b"]}]}"
        tracemalloc.start()
        request, _ = parse_request(body, None)
        read_values(request.inputs[0], None, np.dtype(np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The body itself is there, too; and Python's objects of one part.
        assert len(body) + peak <= 3 * len(body) + 40 * 2**10 + 10_000, (number, datatype)
