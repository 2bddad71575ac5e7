"""How a guarded server is asked: where queries and scores stand, and what may pass beside them.

Anything in an answer that is neither guarded nor listed is dropped.
"""

import secrets
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from starlette.responses import Response
from torch import Tensor

from oneway.openinference.key_paths import KeyPath, differing_place, mask
from oneway.openinference.messages import (
    Buffer,
    InferRequest,
    InputTensor,
    as_float32,
    binary_parts,
    has_json,
    parse_json,
    parse_request,
    read_values,
    wants_binary,
)
from oneway.openinference.tensors import (
    FLOATS,
    MessageError,
    MessageTensor,
    read_numbers,
    read_scores,
    read_tensors,
)
from oneway.serving.guarded import Released
from oneway.serving.http_errors import upstream_errors
from oneway.serving.requests import InferenceRequest
from oneway.serving.responses import InferAnswer, infer_response, json_response

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ProxyRequest(InferenceRequest):
    """A client's request to a guarded server.

    Attributes:
        upstream: The request to the server, as a JSON value.
        rows: N, the number of its queries; None if that cannot be told, of plain JSON.
        outputs: Names of the outputs that the client asked for; None for all.
    """

    upstream: Any
    rows: int | None
    outputs: frozenset[str] | None = None


@dataclass(frozen=True)
class OpenInferenceAdapter:
    """The Open Inference Protocol: one output is guarded, outputs in ``passed`` pass as they are.

    Parameters of requests and answers do not pass, nor inputs that are not in ``inputs``: those
    that the server declares. If it declares none, all pass.

    Attributes:
        model_name: The model's name.
        model_version: The only version whose answers are guarded; None if none is known.
        output_name: The guarded output.
        input_name: The input that a guard sees; None for the only one of a request.
        inputs: Datatypes of the server's inputs, by name.
        passed: Names of outputs that pass.
        parameters: The parameters of each answer.
    """

    model_name: str
    model_version: str | None
    output_name: str
    input_name: str | None
    inputs: Mapping[str, str]
    passed: frozenset[str]
    parameters: dict[str, str]

    def read_request(self, body: bytes, json_bytes: str | None = None) -> ProxyRequest:
        """Read a client's request.

        Args:
            body: Its body.
            json_bytes: The value of ``BINARY_HEADER``, or None.

        Raises:
            MessageError: The request cannot be used.
        """
        request, binary = parse_request(body, json_bytes)
        return self.read(request, binary_parts(request, binary))

    def read(self, request: InferRequest, parts: Mapping[str, Buffer]) -> ProxyRequest:
        """Read a client's request, however it came.

        Args:
            request: The request.
            parts: Binary data of inputs, by name.

        Raises:
            MessageError: The request cannot be used.
        """
        known = {self.output_name, *self.passed}
        wanted = None
        if request.outputs:
            wanted = frozenset(output.name for output in request.outputs)
            if not wanted <= known:
                raise MessageError(
                    f"a request may ask for the outputs {', '.join(sorted(known))}, and no other"
                )
        names = [tensor.name for tensor in request.inputs]
        if len(set(names)) < len(names) or not set(names) <= (self.inputs.keys() or set(names)):
            raise MessageError(
                f"a request must hold each input once, of {', '.join(sorted(self.inputs)) or 'any'}"
            )
        for tensor in request.inputs:
            wanted_type = self.inputs.get(tensor.name, tensor.datatype)
            if tensor.datatype != wanted_type:
                raise MessageError(
                    f"input {tensor.name!r} must be {wanted_type}, as the model declares, but is "
                    f"{tensor.datatype}"
                )
        # Every tensor is counted, whatever its datatype: rows are what limits are about.
        values = {
            tensor.name: read_values(tensor, parts.get(tensor.name)) for tensor in request.inputs
        }
        upstream = {
            # An answer must bear it: two answers in one connection must not change places.
            "id": secrets.token_hex(8),
            "inputs": [_sent(tensor, values[tensor.name]) for tensor in request.inputs],
            # The guarded output is always asked for: what passes beside it must not go unguarded.
            "outputs": [{"name": name} for name in sorted((wanted or known) | {self.output_name})],
        }
        seen = [sent for sent in request.inputs if self.input_name in (None, sent.name)]
        rows = max((sent.shape[0] for sent in seen or request.inputs if sent.shape), default=1)
        queries = None
        if len(seen) == 1 and seen[0].datatype in FLOATS and len(seen[0].shape) > 1:
            queries = _floats(seen[0], values[seen[0].name])
        in_binary = wants_binary(request, self.output_name)
        return ProxyRequest(queries, request.id, upstream, rows, wanted, in_binary=in_binary)

    def read_scores(self, answer: Any, request: ProxyRequest) -> Scores:
        """Return the ``(N, K)`` clean scores in the server's answer, N from 1, K from 2.

        Raises:
            RefusedError: The scores are not there, or belong to another request or version.
        """
        with upstream_errors():
            (output,) = _outputs(answer, {self.output_name})
            scores = _as_scores(read_scores(output), request)
            if answer.get("id") not in (None, request.upstream["id"]):
                raise MessageError(
                    "must answer with the id of the request, or without an id, but answers with "
                    "another id: it may mix two answers up.",
                    "id",
                )
            # Of another version neither the guard nor its self test has seen anything.
            version = self.model_version
            if version is not None and answer.get("model_version") not in (None, version):
                raise MessageError(
                    f"must answer with version {version}, but answers with another.", "version"
                )
        return scores

    def infer_answer(self, answer: Any, released: Released, request: ProxyRequest) -> InferAnswer:
        """Return the client's answer: the release, and what is listed.

        Raises:
            RefusedError: What is listed is not as it must be.
        """
        wanted = {self.output_name, *self.passed} if request.outputs is None else request.outputs
        outputs: list[dict[str, Any]] = []
        with upstream_errors():
            for output in _outputs(answer, wanted & self.passed):
                output.check()
                fields = ("name", "shape", "datatype", "data")
                outputs.append({field: getattr(output, field) for field in fields})
        message: dict[str, Any] = {"model_name": self.model_name, "parameters": self.parameters}
        if self.model_version is not None:
            message["model_version"] = self.model_version
        if request.id is not None:
            message["id"] = request.id
        asked = released if self.output_name in wanted else None
        return InferAnswer(message, self.output_name, asked, outputs)

    def write(self, answer: Any, released: Released, request: ProxyRequest) -> Response:
        """Return the client's answer over HTTP; what is listed is in JSON.

        Raises:
            RefusedError: See :meth:`infer_answer`.
        """
        return infer_response(
            self.infer_answer(answer, released, request), in_binary=request.in_binary
        )


def _floats(sent: InputTensor, values: Any) -> Tensor:
    """Return queries as the server reads them: draws must not follow digits that it does not."""
    return _as_queries(values.reshape(sent.shape))


def _sent(tensor: InputTensor, values: Any) -> dict[str, Any]:
    """Return an input in JSON, as it came or from its binary data, without its parameters."""
    data = values.tolist() if isinstance(values, np.ndarray) else values
    if has_json(tensor):
        data = tensor.data
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": data}


def _outputs(answer: Any, names: Set[str]) -> list[MessageTensor]:
    """Return the outputs of these names, each of which must be there."""
    outputs = read_tensors(answer, "outputs")
    missing = sorted(names - outputs.keys())
    if missing:
        named = ", ".join(map(repr, missing))
        raise MessageError(
            f"must answer with outputs named {named}, but does not.", "output_missing"
        )
    return [outputs[name] for name in sorted(names)]


@dataclass(frozen=True)
class PlainJsonAdapter:
    """Plain JSON: queries and scores stand at keys such as ``"instances"`` or ``"a.*.scores"``.

    Of a request, the queries pass, and nothing else. What stands beside them in the operator's
    own request is sent with them; a request with other values there is refused.

    Attributes:
        request_key: The place of the queries.
        response_key: The place of the scores.
        template: The operator's own request: what stands beside the queries.
        headers: Headers of each answer.
        passed: Places in answers that pass as they are.
    """

    request_key: KeyPath
    response_key: KeyPath
    template: Any
    headers: dict[str, str]
    passed: tuple[KeyPath, ...] = ()

    def read_request(self, body: bytes, json_bytes: str | None = None) -> ProxyRequest:
        """See :class:`OpenInferenceAdapter`; binary data do not pass."""
        if json_bytes is not None:
            raise MessageError("binary data do not pass before plain JSON; send JSON")
        request = parse_json(body)
        try:
            data = self.request_key.find(request)
        except MessageError:
            raise MessageError(f"the request must have {str(self.request_key)!r}") from None
        upstream = self.request_key.replace(self.template, data)
        place = differing_place(upstream, request)
        if place is not None:  # such as columns of a table in another order
            raise MessageError(
                f"the request's {'.'.join(place)!r} must be as the operator of this server set it, "
                "or be left out"
            )
        rows = len(data) if isinstance(data, list) else None
        try:
            numbers = read_numbers(data, booleans=True)
        except MessageError:
            return ProxyRequest(None, None, upstream, rows)
        queries = _as_queries(numbers) if numbers.ndim > 1 else None
        return ProxyRequest(queries, None, upstream, rows)

    def read_scores(self, answer: Any, request: ProxyRequest) -> Scores:
        """See :class:`OpenInferenceAdapter`."""
        with upstream_errors():
            return _as_scores(read_numbers(self.response_key.find(answer)), request)

    def write(self, answer: Any, released: Released, request: ProxyRequest) -> Response:  # noqa: ARG002
        """See :class:`OpenInferenceAdapter`; headers say what stands before the model."""
        return json_response(
            mask(answer, self.response_key, released.tolist(), self.passed), headers=self.headers
        )


ProtocolAdapter: TypeAlias = OpenInferenceAdapter | PlainJsonAdapter
"""One way to ask a server."""


def _as_queries(numbers: NDArray[Any]) -> Tensor:
    refusal = "an input's numbers must be finite in FP32, but some are not"
    return torch.from_numpy(as_float32(numbers, refusal))


def _as_scores(values: Scores, request: ProxyRequest) -> Scores:
    if values.ndim != 2 or not len(values) or values.shape[1] < 2:
        raise MessageError("must answer with rows of scores of at least two classes.")
    if request.rows not in (None, len(values)):  # no row would belong to its query for sure
        raise MessageError(
            f"must answer {request.rows} queries with as many rows of scores, but answers with "
            f"{len(values)}.",
            "rows",
        )
    return values
