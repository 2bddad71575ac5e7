"""Successful answers, in JSON or in the protocol's binary form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class InferAnswer:
    """An answer of the Open Inference Protocol, before it is written.

    Attributes:
        message: What stands beside the outputs: name and version of the model, parameters, id.
        output_name: The name of the guarded output.
        released: ``(N, K)`` the release; None if the client did not ask for this output.
        outputs: Other outputs, as JSON.
    """

    message: Mapping[str, Any]
    output_name: str
    released: NDArray[np.float32] | None
    outputs: Sequence[Any] = ()


def infer_response(answer: InferAnswer, *, in_binary: bool) -> Response:
    """Return an answer in JSON, or with the release in binary behind it."""
    released, outputs = answer.released, answer.outputs
    if released is None:
        return json_response({**answer.message, "outputs": list(outputs)})
    output = tensor_message(answer.output_name, "FP32", released)
    if not in_binary:
        return json_response({**answer.message, "outputs": [output, *outputs]})
    del output["data"]
    output["parameters"] = {"binary_data_size": released.nbytes}
    head = msgspec.json.encode({**answer.message, "outputs": [output, *outputs]})
    return Response(
        head + released.astype("<f4").tobytes(),
        headers={BINARY_HEADER: str(len(head))},
        media_type="application/octet-stream",
    )
