"""A server as a target, by the Open Inference Protocol or plain JSON.

Nothing is cached, so an API whose release is random stays random.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oneway.contracts import Target
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.openinference.addresses import EndpointOptions, ModelAddress, shown_address
from oneway.openinference.key_paths import KeyPath
from oneway.openinference.tensors import (
    FLOATS,
    MOST_ROWS,
    MessageError,
    MessageTensor,
    choose_output,
    read_by_label,
    read_numbers,
    read_scores,
    read_tensors,
    tensor_message,
)
from oneway.releases import Outputs
from oneway.targets.answers import (
    Array,
    fit_shape,
    fixed_size,
    require_batch,
    require_outputs,
)
from oneway.targets.callables import callable_target
from oneway.targets.http_client import HttpClient, RequestTooLargeError

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
    label_key: str | None = None,
    class_names: tuple[str, ...] | None = None,
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

    A server may sort the scores of each query and name their classes, as
    ``[{"label": "cat", "score": 0.9}, ...]``: ``response_key="*.*.score"`` and
    ``label_key="*.*.label"`` read its scores by label, in the order of ``class_names``.

    A request that is too large for the server (status 413, or 400 with the limit of oneway's own
    server) is asked again in smaller parts.

    Args:
        where: The address.
        outputs: What the endpoint answers with.
        device: Not used: the server decides.
        batch_size: Most queries in one request.
        output_name: See :class:`~oneway.openinference.addresses.EndpointOptions`.
        input_name: The same; needed, too, if the server declares no input.
        request_key: The same.
        response_key: The same.
        label_key: Plain JSON: the place of each score's class. None: scores stand in the order
            of the classes.
        class_names: Names of the classes, as ``label_key`` gives them; needed with it.
        timeout_seconds: See :class:`~oneway.targets.http_client.HttpClient`.
        attempts: The same.
        backoff_seconds: The same.
        most_bytes: The same.

    Raises:
        MissingExtraError: httpx is not installed.
        InvalidOptionError: The address or an option cannot be used, or ``outputs`` are not said.
        UnknownNameError: The model has no input or output of that name.
        TargetFailedError: The endpoint is not ready, or does not say what it takes.
    """
    name = f"target {shown_address(where)!r}"
    checked = require_outputs(outputs, name)
    options = EndpointOptions(input_name, output_name, request_key, response_key)
    address = options.model_address(where, name)
    labels = _labels(label_key, class_names, options)
    client = HttpClient(
        name,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        backoff_seconds=backoff_seconds,
        most_bytes=most_bytes,
    )
    if address is None:
        keys = options.keys or (KeyPath(()), KeyPath(()))
        in_parts = _InParts(_PlainJson(client, where, *keys, labels))
        return callable_target(in_parts, checked, batch_size=batch_size, name=name)
    model = _OpenInferenceModel(client, address, options)
    require_batch(model.fixed_batch, batch_size, name, DYNAMIC)
    if model.fixed_batch is not None:
        return callable_target(model, checked, batch_size=batch_size, fill_batches=True, name=name)
    return callable_target(
        _InParts(model, model.most_rows), checked, batch_size=batch_size, name=name
    )


def _labels(
    label_key: str | None, class_names: tuple[str, ...] | None, options: EndpointOptions
) -> "_Labels | None":
    """Return where labels stand, and the order of the classes; None without a place.

    Raises:
        InvalidOptionError: Other options are missing that a place needs.
    """
    if label_key is None:
        return None
    if options.keys is None or class_names is None:
        raise InvalidOptionError(
            "label_key names the classes of scores in plain JSON: it needs request_key, "
            "response_key and class_names (--classes), too. Spell the classes as the server does."
        )
    return _Labels(KeyPath.parse(label_key), class_names)


@dataclass(frozen=True)
class _Labels:
    """Where the class of each score stands, and the order in which classes are wanted."""

    key: KeyPath
    class_names: tuple[str, ...]


class _InParts:
    """Asks a server in smaller parts, once it refuses a request as too large."""

    def __init__(self, ask: Callable[[Array], Array], most: int | None = None) -> None:
        """Ask by ``ask``, with at most ``most`` queries at once; None: as many as come."""
        self.ask, self.most = ask, most

    def __call__(self, queries: Array) -> Array:
        parts: list[Array] = []
        begin = 0
        while begin < len(queries):
            part = queries[begin : begin + (self.most or len(queries))]
            try:
                parts.append(self.ask(part))
            except RequestTooLargeError as error:
                if len(part) == 1:
                    raise
                # A server that names no limit, or one that is no help, is asked for half.
                limit = error.most_rows or len(part)
                self.most = limit if limit < len(part) else len(part) // 2
            else:
                begin += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _OpenInferenceModel:
    """One model of a server that speaks the Open Inference Protocol, version 2."""

    def __init__(self, client: HttpClient, address: ModelAddress, options: EndpointOptions) -> None:
        self.client, self.name, self.infer_url = client, client.name, address.url("/infer")
        client.get(address.url("/ready"))
        metadata = client.get_json(address.url())
        inputs, outputs = (self._declared(metadata, key) for key in ("inputs", "outputs"))
        chosen = self._choose_input(inputs, options.input_name)
        self.input_name, self.datatype, self.shape = chosen.name, chosen.datatype, chosen.shape
        self.output_name = options.output_name
        if outputs:  # the protocol lets a server declare nothing
            self.output_name = choose_output(outputs, options.output_name, self.name)
        self.fixed_batch = fixed_size(self.shape[0]) if self.shape else None
        self.most_rows = _most_rows(metadata)

    def __call__(self, queries: Array) -> Array:
        fitted = fit_shape(queries, self.shape, self.name)
        with np.errstate(over="ignore"):
            data = fitted.astype(FLOATS[self.datatype])
        if not np.isfinite(data).all():
            raise InvalidTensorError(
                f"{self.name} takes {self.datatype}, which is too small for some of the queries. "
                "Pass images in [0, 1]."
            )
        request: dict[str, Any] = {"inputs": [tensor_message(self.input_name, self.datatype, data)]}
        if self.output_name is not None:
            request["outputs"] = [{"name": self.output_name}]
        answer = self.client.post_json(self.infer_url, request)
        try:
            return self._read(answer)
        except MessageError as error:
            raise TargetFailedError(f"{self.name} {error}") from None

    def _declared(self, metadata: Any, key: str) -> dict[str, MessageTensor]:
        """Return the inputs or outputs that the server declares, by name; it may declare none."""
        if isinstance(metadata, dict) and not metadata.get(key) and "error" not in metadata:
            return {}
        try:
            return read_tensors(metadata, key)
        except MessageError as error:
            raise TargetFailedError(f"{self.name} {error}") from None

    def _choose_input(
        self, inputs: Mapping[str, MessageTensor], input_name: str | None
    ) -> MessageTensor:
        if input_name is None and len(inputs) != 1:
            raise InvalidOptionError(
                f"{self.name} names {len(inputs)} inputs ({', '.join(inputs) or 'none'}). Say "
                "which takes the queries, by input_name. A server with an input for each column "
                "of a table cannot be asked: give the model that it serves."
            )
        if input_name is not None and not inputs:
            return MessageTensor(input_name, "FP32", [])
        name = next(iter(inputs)) if input_name is None else input_name
        UnknownNameError.check(f"input of {self.name}", name, inputs)
        if inputs[name].datatype not in FLOATS:
            raise InvalidOptionError(
                f"input {name!r} of {self.name} must be one of {', '.join(FLOATS)}, the images in "
                f"[0, 1], but is {inputs[name].datatype}. Put the conversion into the model."
            )
        return inputs[name]

    def _read(self, answer: Any) -> Array:
        outputs = read_tensors(answer, "outputs")
        name = self.output_name
        if name is None and len(outputs) == 1:
            name = next(iter(outputs))
        if name not in outputs:
            raise MessageError(
                f"must answer with the output {name or 'of the scores'!r}, but answers with "
                f"{len(outputs)} outputs without it. Say which one, by output_name.",
                "output_missing",
            )
        with np.errstate(over="ignore"):
            return read_scores(outputs[name]).astype(FLOATS[outputs[name].datatype])


def _most_rows(metadata: Any) -> int | None:
    """Return most queries of a request, where the metadata of oneway's own server say so."""
    parameters = metadata.get("parameters") if isinstance(metadata, dict) else None
    most = parameters.get(MOST_ROWS) if isinstance(parameters, dict) else None
    return most if type(most) is int and most > 0 else None


class _PlainJson:
    """Any server that takes nested lists somewhere in JSON, and gives rows of scores in it."""

    def __init__(
        self,
        client: HttpClient,
        url: str,
        request_key: KeyPath,
        response_key: KeyPath,
        labels: _Labels | None,
    ) -> None:
        self.client, self.url, self.labels = client, url, labels
        self.request_key, self.response_key = request_key, response_key
        request_key.wrap([])  # refuses a place that no request can have

    def __call__(self, queries: Array) -> Array:
        answer = self.client.post_json(self.url, self.request_key.wrap(queries.tolist()))
        try:
            scores = self.response_key.find(answer)
            if self.labels is None:
                return read_numbers(scores)
            return read_by_label(scores, self.labels.key.find(answer), self.labels.class_names)
        except MessageError as error:
            raise TargetFailedError(f"{self.client.name} {error}") from None
