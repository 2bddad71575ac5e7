"""Read requests for a model of tables: an input for each column, as other servers take them."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np

from oneway.openinference.messages import (
    Buffer,
    InferRequest,
    InputTensor,
    parse_json,
    read_values,
)
from oneway.openinference.tensors import Datatype, MessageError

ColumnKind = Literal["numbers", "booleans", "texts"]

DATATYPES: dict[ColumnKind, Datatype] = {"numbers": "FP64", "booleans": "BOOL", "texts": "BYTES"}
"""Datatype of a column in the model's metadata."""

TYPES: dict[ColumnKind, tuple[type, ...]] = {
    "numbers": (int, float),
    "booleans": (bool,),
    "texts": (str,),
}
"""JSON values of a column."""


def read_columns(
    request: InferRequest,
    parts: Mapping[str, Buffer],
    *,
    columns: Mapping[str, ColumnKind],
    most_rows: int,
) -> dict[str, list[Any]]:
    """Return the columns of a request.

    Args:
        request: The request. Each input is a column of shape ``(N)`` or ``(N, 1)``; null in JSON
            is a missing value.
        parts: Binary data of inputs, by name.
        columns: Names and kinds of the model's columns, in order.
        most_rows: Most rows in one request.

    Returns:
        N values of each column, in the model's order; None where a value is missing.

    Raises:
        MessageError: The request holds anything else. The text quotes no value.
    """
    sent = {tensor.name: tensor for tensor in request.inputs}
    missing = [name for name in columns if name not in sent]
    extra = len(sent.keys() - columns.keys())
    if missing or extra or len(sent) < len(request.inputs):
        raise MessageError(
            f"the request must hold each of the {len(columns)} columns once, as an input of its "
            f"own, but lacks {', '.join(map(repr, missing)) or 'none'} and holds {extra} others"
        )
    rows = sent[next(iter(columns))].shape[0] if sent[next(iter(columns))].shape else 0
    if not 1 <= rows <= most_rows:
        raise MessageError(
            f"a request must have 1 to {most_rows} rows, but has {rows}",
            most_rows=most_rows if rows > most_rows else None,
        )
    return {
        name: _values(sent[name], parts.get(name), kind, rows) for name, kind in columns.items()
    }


def _values(sent: InputTensor, part: Buffer | None, kind: ColumnKind, rows: int) -> list[Any]:
    """Return the values of a column."""
    datatypes = {
        "numbers": sent.datatype not in ("BOOL", "BYTES"),
        "booleans": sent.datatype == "BOOL",
        "texts": sent.datatype == "BYTES",
    }
    if sent.shape not in ([rows], [rows, 1]) or not datatypes[kind]:
        raise MessageError(
            f"input {sent.name!r} must be {DATATYPES[kind]} of shape [{rows}], but is "
            f"{sent.datatype} of shape {sent.shape}"
        )
    values = parse_json(bytes(sent.data))
    if part is not None:
        read = read_values(sent, part)
        values = read.tolist() if isinstance(read, np.ndarray) else read
    if isinstance(values, list) and set(map(type, values)) == {list}:
        values = list(chain.from_iterable(values))
    if not isinstance(values, list) or len(values) != rows:
        raise MessageError(f"input {sent.name!r} must have {rows} values")
    # True counts as a number elsewhere.
    if not {type(value) for value in values if value is not None} <= set(TYPES[kind]):
        raise MessageError(f"the data of input {sent.name!r} must be {kind}, or null")
    if kind == "numbers" and not all(value is None or _is_finite(value) for value in values):
        raise MessageError(f"the data of input {sent.name!r} must be finite in FP64, or null")
    return values


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond float64
        return False
