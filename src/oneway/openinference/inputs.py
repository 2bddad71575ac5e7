"""Read requests for a model of several inputs, or of inputs that are no floats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.openinference.messages import Buffer, InferRequest, InputTensor, read_values
from oneway.openinference.tensors import LAYOUTS, DeclaredTensor, MessageError


def read_inputs(
    request: InferRequest,
    parts: Mapping[str, Buffer],
    *,
    declared: Mapping[str, DeclaredTensor],
    most_rows: int,
) -> dict[str, NDArray[Any]]:
    """Return the tensors of a request.

    Args:
        request: The request. It holds each declared input once.
        parts: Binary data of inputs, by name.
        declared: The model's inputs; -1 is a size that may vary.
        most_rows: Most queries in one request.

    Returns:
        ``(N, ...)`` arrays of the declared types by name, N from 1 to ``most_rows``; texts are
        ``str`` objects. Floats are finite.

    Raises:
        MessageError: The request holds anything else. The text quotes no value.
    """
    sent = {tensor.name: tensor for tensor in request.inputs}
    if sent.keys() != declared.keys() or len(sent) < len(request.inputs):
        raise MessageError(
            f"a request must hold the inputs {', '.join(declared)}, each of them once, and no other"
        )
    first = sent[next(iter(declared))].shape
    rows = first[0] if first else 0
    if not 1 <= rows <= most_rows:
        raise MessageError(
            f"a request must have 1 to {most_rows} queries, but has {rows}",
            most_rows=most_rows if rows > most_rows else None,
        )
    return {
        name: _read(sent[name], parts.get(name), tensor, rows) for name, tensor in declared.items()
    }


def _read(
    sent: InputTensor, part: Buffer | None, declared: DeclaredTensor, rows: int
) -> NDArray[Any]:
    wanted = [rows, *declared.shape]
    fits = len(sent.shape) == len(wanted) and all(
        size in (-1, got) for size, got in zip(wanted, sent.shape, strict=True)
    )
    if not fits or sent.datatype != declared.datatype:
        raise MessageError(
            f"input {sent.name!r} must be {declared.datatype} of shape {wanted}, but is "
            f"{sent.datatype} of shape {sent.shape}"
        )
    layout = LAYOUTS.get(sent.datatype, np.dtype(object))
    # A copy: binary data lie in the body, and a model may write to its input.
    array = np.array(read_values(sent, part), layout).reshape(sent.shape)
    if layout.kind == "f" and not np.isfinite(array).all():
        raise MessageError(f"input {sent.name!r} must be finite in {sent.datatype}")
    return array
