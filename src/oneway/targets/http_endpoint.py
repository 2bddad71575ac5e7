"""A model behind HTTP as a target: the Open Inference Protocol, or plain JSON by a mapping.

Nothing is cached: an API whose release is random is seen to answer the same query differently.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from oneway.contracts import Target
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.targets.answers import (
    Array,
    Outputs,
    fit_shape,
    fixed_size,
    require_batch,
    require_outputs,
)
from oneway.targets.callables import callable_target
from oneway.targets.http_client import HttpClient

OPEN_INFERENCE = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?$")

DATATYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}

DYNAMIC = "Serve a model that takes batches of any size"


def open_endpoint(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,  # noqa: ARG001  one signature for all kinds
    batch_size: int,
    output_name: str | None = None,
    input_name: str | None = None,
    request_key: str | None = None,
    response_key: str | None = None,
    timeout_seconds: float = 60.0,
    attempts: int = 5,
    backoff_seconds: float = 0.5,
    most_bytes: int = 64 * 2**20,
) -> Target:
    """Open an endpoint. A bearer token is taken from the environment variable ONEWAY_TOKEN.

    ``.../v2/models/NAME`` or ``.../v2/models/NAME/versions/V`` speaks the Open Inference
    Protocol, and is asked at once whether it is ready and what it takes. Any other address, or
    one with both keys, gets plain JSON: ``request_key`` says where the queries go as nested
    lists, such as ``"instances"``, ``"inputs.0.data"`` or ``""`` for the whole body;
    ``response_key`` where the rows of scores are, such as ``"predictions"``,
    ``"outputs.0.data"`` or ``"predictions.*.scores"``, where ``*`` takes each member of a list.

    Args:
        where: The address.
        outputs: What the endpoint answers with.
        device: Not used: the server decides.
        batch_size: Most queries in one request.
        output_name: Open Inference Protocol: which output holds the scores; needed if several
            could.
        input_name: Open Inference Protocol: which input takes the queries; needed if the server
            names none, or several.
        request_key: Plain JSON: the place of the queries.
        response_key: Plain JSON: the place of the scores.
        timeout_seconds: See :class:`HttpClient`, as for those below.
        attempts: How often a request is tried.
        backoff_seconds: The wait before the second attempt.
        most_bytes: Largest answer that is read.

    Raises:
        MissingExtraError: httpx is not installed.
        InvalidOptionError: The address or an option cannot be used, or ``outputs`` are not said.
        UnknownNameError: The model has no input or output of that name.
        TargetFailedError: The endpoint is not ready, or does not say what it takes.
    """
    shown = shown_address(where)
    name = f"target {shown!r}"
    said = require_outputs(outputs, name)
    keys = request_key, response_key
    base, mark, query = where.partition("?")
    base = base.removesuffix("/").removesuffix("/infer")
    plain = request_key is not None and response_key is not None
    if not plain and (keys != (None, None) or not OPEN_INFERENCE.search(base)):
        raise InvalidOptionError(
            f"{name} is asked for plain JSON, unless its address ends in /v2/models/NAME or "
            "/v2/models/NAME/versions/V and no key is given. Say where queries and scores are, "
            "by both of request_key and response_key, such as 'instances' and 'predictions'."
        )
    if plain and (output_name is not None or input_name is not None):
        raise InvalidOptionError(
            "output_name and input_name are for the Open Inference Protocol, request_key and "
            "response_key for plain JSON. Give those of one."
        )
    client = HttpClient(
        name,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        backoff_seconds=backoff_seconds,
        most_bytes=most_bytes,
    )
    if request_key is not None and response_key is not None:
        mapping = _PlainJson(client, where, request_key, response_key)
        return callable_target(mapping, said, batch_size=batch_size, name=name)
    model = _OpenInferenceModel(client, base, mark + query, input_name, output_name)
    require_batch(model.fixed_batch, batch_size, name, DYNAMIC)
    return callable_target(
        model, said, batch_size=batch_size, fill_batches=model.fixed_batch is not None, name=name
    )


class _OpenInferenceModel:
    """One model of a server that speaks the Open Inference Protocol, version 2."""

    def __init__(
        self,
        client: HttpClient,
        base: str,
        query: str,
        input_name: str | None,
        output_name: str | None,
    ) -> None:
        self.client, self.name = client, client.name
        self.infer_url = f"{base}/infer{query}"
        client.get(f"{base}/ready{query}")
        metadata = client.get_json(f"{base}{query}")
        inputs = self._tensors(metadata, "inputs")
        self.input_name, kind, self.shape = self._choose_input(inputs, input_name)
        self.datatype = kind
        self.output_name = self._choose_output(self._tensors(metadata, "outputs"), output_name)
        self.fixed_batch = fixed_size(self.shape[0]) if self.shape else None

    def __call__(self, queries: Array) -> Array:
        fitted = fit_shape(queries, self.shape, self.name)
        with np.errstate(over="ignore"):
            data = fitted.astype(DATATYPES[self.datatype])
        if not np.isfinite(data).all():
            raise InvalidTensorError(
                f"{self.name} takes {self.datatype}, which is too small for some of the queries. "
                "Pass images in [0, 1]."
            )
        request: dict[str, Any] = {
            "inputs": [
                {
                    "name": self.input_name,
                    "shape": list(data.shape),
                    "datatype": self.datatype,
                    "data": data.ravel().tolist(),
                }
            ]
        }
        if self.output_name is not None:
            request["outputs"] = [{"name": self.output_name}]
        return self._read(self.client.post_json(self.infer_url, request))

    def _tensors(self, answer: Any, key: str) -> dict[str, tuple[str, list[Any], Any]]:
        """Return name to datatype, shape and data of the tensors that an answer lists."""
        listed = answer.get(key) or [] if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(
            isinstance(tensor, dict)
            and isinstance(tensor.get("name"), str)
            and isinstance(tensor.get("datatype"), str)
            and isinstance(tensor.get("shape"), list)
            for tensor in listed
        ):
            raise TargetFailedError(
                f"{self.name} must answer with an object whose {key!r} are a list of objects with "
                "name, datatype and shape, as the Open Inference Protocol says, but does not. "
                "Check that the address is that of a model of version 2 of the protocol."
            )
        return {
            tensor["name"]: (tensor["datatype"], tensor["shape"], tensor.get("data"))
            for tensor in listed
        }

    def _choose_input(
        self, inputs: Mapping[str, tuple[str, list[Any], Any]], asked: str | None
    ) -> tuple[str, str, list[Any]]:
        if asked is None and len(inputs) != 1:
            raise InvalidOptionError(
                f"{self.name} names {len(inputs)} inputs ({', '.join(inputs) or 'none'}). Say "
                "which takes the queries, by input_name."
            )
        if not inputs and asked is not None:
            return asked, "FP32", []  # the protocol lets a server say nothing
        chosen = next(iter(inputs)) if asked is None else asked
        if chosen not in inputs:
            raise UnknownNameError(f"input of {self.name}", chosen, inputs)
        datatype, shape, _ = inputs[chosen]
        if datatype not in DATATYPES:
            raise InvalidOptionError(
                f"input {chosen!r} of {self.name} must be one of {', '.join(DATATYPES)}, the "
                f"images in [0, 1], but is {datatype}. Put the conversion into the model."
            )
        return chosen, datatype, shape

    def _choose_output(
        self, outputs: Mapping[str, tuple[str, list[Any], Any]], asked: str | None
    ) -> str | None:
        if asked is not None:
            if outputs and asked not in outputs:
                raise UnknownNameError(f"output of {self.name}", asked, outputs)
            return asked
        fitting = [
            name
            for name, (kind, shape, _) in outputs.items()
            if kind in DATATYPES and len(shape) == 2
        ]
        if len(fitting) == 1:
            return fitting[0]
        if not outputs:
            return None
        told = ", ".join(f"{name} {kind} {shape}" for name, (kind, shape, _) in outputs.items())
        raise InvalidOptionError(
            f"say which output of {self.name} holds the scores, by output_name: {len(fitting)} of "
            f"its {len(outputs)} outputs are floats of shape (N, K). It has {told}."
        )

    def _read(self, answer: Any) -> Array:
        outputs = self._tensors(answer, "outputs")
        chosen = self.output_name
        if chosen is None and len(outputs) == 1:
            chosen = next(iter(outputs))
        if chosen not in outputs:
            raise TargetFailedError(
                f"{self.name} must answer with the output {chosen or 'of the scores'!r}, but "
                f"answers with {len(outputs)} outputs without it. Say which one, by output_name."
            )
        datatype, shape, data = outputs[chosen]
        values = read_numbers(data, self.name)
        if datatype not in DATATYPES:
            raise TargetFailedError(
                f"{self.name} must answer with one of {', '.join(DATATYPES)}, but output "
                f"{chosen!r} is {datatype}. Say which output holds the scores, by output_name."
            )
        sizes = [size for size in shape if type(size) is int and size >= 0]
        if len(sizes) != len(shape) or math.prod(sizes) != values.size:
            raise TargetFailedError(
                f"{self.name} says another shape of output {chosen!r} than fits the {values.size} "
                "numbers that it sends. Look into the server's log."
            )
        with np.errstate(over="ignore"):
            return values.reshape(sizes).astype(DATATYPES[datatype])


class _PlainJson:
    """Any server that takes nested lists somewhere in JSON, and gives rows of scores in it."""

    def __init__(self, client: HttpClient, url: str, request_key: str, response_key: str) -> None:
        self.client, self.url = client, url
        self.request_path = key_parts(request_key)
        self.response_path = key_parts(response_key)
        for part in self.request_path:
            if part == "*" or (part.isdigit() and part != "0"):
                raise InvalidOptionError(
                    f"request_key may hold names and 0, separated by dots, but got {part!r} in "
                    f"{request_key!r}."
                )

    def __call__(self, queries: Array) -> Array:
        request: Any = queries.tolist()
        for part in reversed(self.request_path):
            request = [request] if part == "0" else {part: request}
        answer = self.client.post_json(self.url, request)
        return read_numbers(self._find(answer, self.response_path), self.client.name)

    def _find(self, value: Any, path: Sequence[str]) -> Any:
        if not path:
            return value
        part, rest = path[0], path[1:]
        if part == "*" and isinstance(value, list):
            return [self._find(member, rest) for member in value]
        if isinstance(value, dict) and part in value:
            return self._find(value[part], rest)
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            return self._find(value[int(part)], rest)
        found = "a single value"
        if isinstance(value, dict | list):
            found = "an object without it" if isinstance(value, dict) else "a list"
        raise TargetFailedError(
            f"the answer of {self.client.name} must have {part!r} of the response_key "
            f"{'.'.join(self.response_path)!r}, but there is {found}. Look at one "
            "answer of the server, and name the place of its scores."
        )


def key_parts(key: str) -> list[str]:
    """Return the names in ``"predictions.*.scores"``; none in ``""``.

    Raises:
        InvalidOptionError: A name is empty.
    """
    parts = key.split(".") if key else []
    if not all(parts):
        raise InvalidOptionError(f"a key must be names separated by dots, but got {key!r}.")
    return parts


def read_numbers(data: Any, name: str) -> Array:
    """Return nested lists of numbers as float64, without taking texts or truths for numbers.

    Raises:
        TargetFailedError: They are something else. The message names whose they are.
    """
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):
        values = np.empty(0, object)  # rows of several lengths
    if data is None or values.dtype.kind not in "fiu":
        # NumPy's own error may quote what it could not read.
        raise TargetFailedError(
            f"{name} must answer with rows of numbers of one length, but the scores are something "
            "else. Look at one answer of the server."
        )
    return values.astype(np.float64)


def shown_address(where: str) -> str:
    """Return an address as messages may show it: without query, which may hold a key.

    Raises:
        InvalidOptionError: It is no address, or holds a password.
    """
    try:
        parts = urlsplit(where)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if not parts.hostname:
        raise InvalidOptionError(
            "an address must be like https://host/v2/models/NAME or http://host:8080/path, but "
            "this one has no host or no valid port."
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidOptionError(
            "an address must hold no user name or password, since it is shown and recorded. Put "
            "a bearer token into the environment variable ONEWAY_TOKEN."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
