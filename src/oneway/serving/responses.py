"""Successful answers, in JSON or in the protocol's binary form."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from oneway.openinference.messages import BINARY_HEADER
from oneway.openinference.tensors import tensor_message


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON. Numbers are written so that reading them gives the same bits."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def infer_response(
    message: dict[str, Any],
    name: str,
    released: NDArray[np.float32] | None,
    *,
    in_binary: bool,
    outputs: Sequence[Any] = (),
) -> Response:
    """Return a release as an answer of the Open Inference Protocol.

    Args:
        message: The rest of the answer.
        name: The name of the output.
        released: ``(N, K)`` the release; None if the client did not ask for this output.
        in_binary: Send it in binary, behind the JSON.
        outputs: Other outputs, as JSON.
    """
    if released is None:
        return json_response({**message, "outputs": list(outputs)})
    output = tensor_message(name, "FP32", released)
    if not in_binary:
        return json_response({**message, "outputs": [output, *outputs]})
    del output["data"]
    output["parameters"] = {"binary_data_size": released.nbytes}
    head = msgspec.json.encode({**message, "outputs": [output, *outputs]})
    return Response(
        head + released.astype("<f4").tobytes(),
        headers={BINARY_HEADER: str(len(head))},
        media_type="application/octet-stream",
    )
