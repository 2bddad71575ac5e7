"""What a proxy must know of a server: where queries and scores stand, and what may pass beside.

Whatever of an answer is neither guarded nor listed is dropped.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json
from torch import Tensor

from oneway.errors import TargetFailedError
from oneway.serving.protocol import (
    FLOATS,
    InferRequest,
    OutputTensor,
    flat_numbers,
    parse_request,
)
from oneway.serving.refusals import bad_request, upstream_failed
from oneway.targets.http_endpoint import read_numbers

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """A request on its way through a proxy.

    Attributes:
        upstream: What the guarded server is asked, as a JSON value.
        queries: ``(N, ...)`` float32, if they could be read; None otherwise.
        wanted: Names of the outputs that the client asked for; None for all.
        id: To be echoed.
    """

    upstream: Any
    queries: Tensor | None
    wanted: frozenset[str] | None = None
    id: str | None = None


class Dialect(Protocol):
    """One way of asking a server."""

    def read_request(self, body: bytes) -> Asked:
        """Read what a client sends.

        Raises:
            RefusedError: It cannot be used.
        """
        ...

    def read_scores(self, answer: Any) -> Scores:
        """Return the ``(N, K)`` clean scores in the guarded server's answer.

        Raises:
            RefusedError: They are not there.
        """
        ...

    def write(self, answer: Any, released: Any, asked: Asked) -> dict[str, Any] | list[Any]:
        """Return what the client gets: the release, and what is listed, and nothing else.

        Raises:
            RefusedError: What is listed is not as it must be.
        """
        ...


@dataclass(frozen=True)
class OpenInferenceDialect:
    """The Open Inference Protocol: one output is guarded, outputs in ``passed`` pass as they are.

    Parameters of requests and answers do not pass, nor inputs that are not in ``inputs``: those
    that the server says it takes. If it says none, any do.
    """

    model_name: str
    output_name: str
    input_name: str | None
    inputs: frozenset[str]
    passed: frozenset[str] = frozenset()
    told: dict[str, str] = field(default_factory=dict)

    def read_request(self, body: bytes) -> Asked:
        """See :class:`Dialect`."""
        request, _ = parse_request(body, None)
        known = {self.output_name, *self.passed}
        wanted = None
        if request.outputs:
            wanted = frozenset(output.name for output in request.outputs)
            if not wanted <= known:
                raise bad_request(f"the outputs are {', '.join(sorted(known))}, and no other")
        names = [tensor.name for tensor in request.inputs]
        if len(set(names)) < len(names) or not set(names) <= (self.inputs or set(names)):
            raise bad_request(
                f"the inputs are {', '.join(sorted(self.inputs)) or 'free'}, each of them once"
            )
        inputs = []
        for tensor in request.inputs:
            if tensor.data is None:
                raise bad_request("every input must have data in JSON; binary data does not pass")
            told = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
            inputs.append({**told, "data": tensor.data})
        upstream: dict[str, Any] = {
            "inputs": inputs,
            # The guarded output is always asked for: what passes beside it must not go unguarded.
            "outputs": [{"name": name} for name in sorted((wanted or known) | {self.output_name})],
        }
        return Asked(upstream, self._queries(request), wanted, request.id)

    def _queries(self, request: InferRequest) -> Tensor | None:
        tensors = [one for one in request.inputs if self.input_name in (None, one.name)]
        if len(tensors) != 1 or tensors[0].datatype not in FLOATS or len(tensors[0].shape) < 2:
            return None
        with np.errstate(over="ignore"):
            # As the server reads them: draws must not follow digits that it does not see.
            numbers = flat_numbers(tensors[0]).astype(FLOATS[tensors[0].datatype])
        return as_queries(numbers, tensors[0].shape)

    def read_scores(self, answer: Any) -> Scores:
        """See :class:`Dialect`."""
        (output,) = self._outputs(answer, {self.output_name})
        if output.datatype not in FLOATS:
            raise upstream_failed("upstream_datatype")
        return as_scores(output.data, output.shape)

    def write(self, answer: Any, released: Any, asked: Asked) -> dict[str, Any]:
        """See :class:`Dialect`."""
        wanted = asked.wanted if asked.wanted is not None else {self.output_name, *self.passed}
        outputs: list[dict[str, Any]] = []
        if self.output_name in wanted:
            outputs.append(
                {
                    "name": self.output_name,
                    "shape": list(released.shape),
                    "datatype": "FP32",
                    "data": released.ravel().tolist(),
                }
            )
        for output in self._outputs(answer, wanted & self.passed):
            outputs.append(output.model_dump(exclude={"parameters"}))
        written = {"model_name": self.model_name, "parameters": self.told, "outputs": outputs}
        return written if asked.id is None else {**written, "id": asked.id}

    def _outputs(self, answer: Any, names: Sequence[str] | set[str] | frozenset[str]) -> Any:
        """Return the outputs of these names, each of which must be there once."""
        listed = answer.get("outputs") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise upstream_failed("upstream_form")
        found = []
        for name in sorted(names):
            (*same,) = (one for one in listed if one.get("name") == name)
            if len(same) != 1:
                raise upstream_failed("upstream_output_missing")
            try:
                found.append(OutputTensor.model_validate(same[0]))
            except ValidationError:
                raise upstream_failed("upstream_form") from None
        return found


@dataclass(frozen=True)
class PlainDialect:
    """Plain JSON: queries and scores stand at keys such as ``"instances"`` or ``"a.*.scores"``.

    Of a request the queries pass, and nothing else: ``template``, a request of the operator's, says
    what stands beside them. ``passed`` are places in answers that pass as they are.
    """

    request_key: tuple[str, ...]
    response_key: tuple[str, ...]
    template: Any
    passed: tuple[tuple[str, ...], ...] = ()

    def read_request(self, body: bytes) -> Asked:
        """See :class:`Dialect`."""
        value = parse_json(body)
        found = _get(value, self.request_key)
        if found is _MISSING:
            raise bad_request(f"the request must have {'.'.join(self.request_key)!r}")
        upstream = _placed(self.template, self.request_key, found)
        try:
            numbers = read_numbers(found, "the request")
        except TargetFailedError:
            return Asked(upstream, None)
        queries = as_queries(numbers.ravel(), list(numbers.shape)) if numbers.ndim > 1 else None
        return Asked(upstream, queries)

    def read_scores(self, answer: Any) -> Scores:
        """See :class:`Dialect`."""
        found = _get(answer, self.response_key)
        if found is _MISSING:
            raise upstream_failed("upstream_output_missing")
        return as_scores(found, None)

    def write(self, answer: Any, released: Any, asked: Asked) -> Any:  # noqa: ARG002
        """See :class:`Dialect`."""
        rows = iter(released.tolist()) if "*" in self.response_key else None
        whole = None if rows is not None else released.tolist()
        return _masked(answer, self.response_key, rows, whole, self.passed)


_MISSING = object()


def _get(value: Any, path: tuple[str, ...]) -> Any:
    """Return what stands at a path, or a mark that nothing does."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if part == "*" and isinstance(value, list):
        members = [_get(member, rest) for member in value]
        return _MISSING if any(member is _MISSING for member in members) else members
    if isinstance(value, dict) and part in value:
        return _get(value[part], rest)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return _get(value[int(part)], rest)
    return _MISSING


def _placed(template: Any, path: tuple[str, ...], found: Any) -> Any:
    """Return a copy of ``template`` with what :func:`_get` found in its place.

    Each member that ``*`` stands for is made like the first.
    """
    if not path:
        return found
    part, rest = path[0], path[1:]
    if part == "*" and isinstance(template, list) and template and isinstance(found, list):
        return [_placed(template[0], rest, member) for member in found]
    if isinstance(template, dict) and part in template:
        return {**template, part: _placed(template[part], rest, found)}
    if isinstance(template, list) and part.isdecimal() and int(part) < len(template):
        return [
            _placed(member, rest, found) if at == int(part) else member
            for at, member in enumerate(template)
        ]
    raise bad_request(f"the request must have {'.'.join(path)!r} as a list of members")


def _masked(
    value: Any,
    guarded: tuple[str, ...] | None,
    rows: Iterator[Any] | None,
    whole: Any,
    passed: Sequence[tuple[str, ...]],
) -> Any:
    """Return a copy of ``value`` that has the release where it is guarded, and what may pass.

    Of a list, members that may not pass become None, so that places stay.
    """
    if guarded == ():
        return whole if rows is None else next(rows)
    if guarded is None and () in passed:
        return value

    def below(part: str) -> tuple[tuple[str, ...] | None, list[tuple[str, ...]]]:
        deeper = None
        if guarded is not None and guarded[0] in (part, "*" if part.isdecimal() else part):
            deeper = guarded[1:]
        allowed = [
            path[1:]
            for path in passed
            if path and path[0] in (part, "*" if part.isdecimal() else part)
        ]
        return deeper, allowed

    if isinstance(value, dict):
        kept = {}
        for key, member in value.items():
            deeper, allowed = below(key)
            if deeper is not None or allowed:
                kept[key] = _masked(member, deeper, rows, whole, allowed)
        return kept
    if isinstance(value, list):
        members = []
        for at, member in enumerate(value):
            deeper, allowed = below(str(at))
            used = deeper is not None or bool(allowed)
            members.append(_masked(member, deeper, rows, whole, allowed) if used else None)
        return members
    return None


def parse_json(body: bytes) -> Any:
    """Return a JSON value.

    Raises:
        RefusedError: It is none.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        raise bad_request("the request must be JSON, but is not") from None


def as_queries(numbers: NDArray[Any], shape: list[int]) -> Tensor:
    """Return queries as a guard sees them.

    Raises:
        RefusedError: They are not finite in float32, or not as many as the shape says.
    """
    if numbers.size != math.prod(shape):
        raise bad_request("an input's data must be as many numbers as its shape says")
    with np.errstate(over="ignore"):
        queries = torch.from_numpy(numbers.astype(np.float32).reshape(shape))
    if not bool(torch.isfinite(queries).all()):
        raise bad_request("an input's numbers must be finite in FP32, but some are not")
    return queries


def as_scores(data: Any, shape: Sequence[int] | None) -> Scores:
    """Return ``(N, K)`` scores from an answer's numbers.

    Raises:
        RefusedError: They are something else.
    """
    try:
        values = read_numbers(data, "the guarded server")
    except TargetFailedError:
        raise upstream_failed("upstream_form") from None
    if shape is not None:
        if any(size < 0 for size in shape) or math.prod(shape) != values.size:
            raise upstream_failed("upstream_form")
        values = values.reshape(tuple(shape))
    if values.ndim != 2 or not len(values) or values.shape[1] < 2:
        raise upstream_failed("upstream_form")
    return values.astype(np.float64)
