"""Look at a server that is to be guarded: what it takes, what it gives, what will be dropped."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from pydantic import ValidationError
from pydantic_core import to_json

from oneway.defenses import ServableDefense
from oneway.errors import (
    InvalidOptionError,
    MissingDataError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.serving.dialects import Dialect, OpenInferenceDialect, PlainDialect, parse_json
from oneway.serving.protocol import FLOATS, ModelMetadata, TensorMetadata
from oneway.serving.refusals import RefusedError
from oneway.serving.settings import ServingSettings
from oneway.serving.upstream import Upstream
from oneway.targets.http_endpoint import OPEN_INFERENCE, key_parts, shown_address

PROBE_ROWS = 2

WAIT_SECONDS = 0.5
"""Between two looks at a server that is not up yet."""


@dataclass(frozen=True)
class ProxiedModel:
    """A server that is guarded: how it is asked, and what clients see of it.

    Attributes:
        name: Of the model, or the address's path.
        dialect: How requests and answers are read and written.
        infer_url: Where it is asked.
        ready_url: Where it says whether it is ready, if it does.
        metadata: What clients are told of it: only what passes. None for plain JSON.
        paths: Where the proxy answers, as the server did.
        probe: A request for the self test.
        dropped: Names of outputs that clients will not see.
        passed: Names of what passes without a guard.
    """

    name: str
    dialect: Dialect
    infer_url: str
    ready_url: str | None
    metadata: ModelMetadata | None
    paths: tuple[str, ...]
    probe: bytes
    dropped: tuple[str, ...]
    passed: tuple[str, ...]


async def open_upstream(
    where: str,
    settings: ServingSettings,
    guard: ServableDefense,
    *,
    input_name: str | None = None,
    output_name: str | None = None,
    passed: Sequence[str] = (),
    request_key: str | None = None,
    response_key: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    probe: Path | None = None,
) -> ProxiedModel:
    """Look at a server, and settle how it is guarded.

    Args:
        where: ``.../v2/models/NAME``, or any address together with both keys.
        settings: How long it may take.
        guard: What will stand before it, as clients are told.
        input_name: Open Inference Protocol: the input that a guard sees, if there are several.
        output_name: Open Inference Protocol: the output that is guarded, if several could be.
        passed: Outputs, or keys of plain JSON, that pass as they are.
        request_key: Plain JSON: the place of the queries.
        response_key: Plain JSON: the place of the scores.
        input_shape: Of one query, where the server does not say it.
        probe: File with a request for the self test, where none can be made up.

    Raises:
        OnewayError: The server does not answer, or cannot be guarded like this.
    """
    shown_address(where)  # refuses what cannot be shown
    base, mark, query = where.partition("?")
    base = base.removesuffix("/").removesuffix("/infer")
    given = None if probe is None else _read(probe)
    if request_key is not None and response_key is not None:
        if output_name is not None or input_name is not None:
            raise InvalidOptionError(
                "input_name and output_name are for the Open Inference Protocol, keys for plain "
                "JSON. Give those of one."
            )
        return _plain(where, request_key, response_key, passed, input_shape, given)
    if request_key is not None or response_key is not None or not OPEN_INFERENCE.search(base):
        raise InvalidOptionError(
            "the address must end in /v2/models/NAME or /v2/models/NAME/versions/V; for plain JSON "
            "say where queries and scores are, by both of --request-key and --response-key."
        )
    suffix = mark + query
    metadata = await _ask_metadata(base, suffix, settings)
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    outputs = {tensor.name: tensor for tensor in metadata.outputs}
    output = _choose_output(outputs, output_name)
    for name in passed:
        if name not in outputs:
            raise UnknownNameError("output of the server to guard", name, outputs)
        if name == output:
            raise InvalidOptionError(f"the output {name!r} is guarded: it cannot pass, too.")
    if input_name is not None and input_name not in inputs:
        raise UnknownNameError("input of the server to guard", input_name, inputs)
    told = {"guard": guard.name, "guard_version": guard.version}
    name = unquote(re.sub(r"/versions/[^/]+$", "", base).rpartition("/")[2])
    version = re.search(r"/versions/([^/]+)$", base)
    dialect = OpenInferenceDialect(
        name,
        output,
        input_name if input_name is not None or len(inputs) != 1 else next(iter(inputs)),
        frozenset(inputs),
        frozenset(passed),
        told,
    )
    released = outputs[output].model_copy(update={"datatype": "FP32"})
    shown = ModelMetadata(
        name=name,
        versions=[version[1]] if version else None,
        platform="oneway",
        inputs=metadata.inputs,
        outputs=[released, *(outputs[one] for one in passed)],
        parameters=dict(told),
    )
    path = urlsplit(base).path
    path = path[path.index("/v2/models/") :]
    plain = re.sub(r"/versions/[^/]+$", "", path)
    return ProxiedModel(
        name,
        dialect,
        f"{base}/infer{suffix}",
        f"{base}/ready{suffix}",
        shown,
        (plain, path) if version else (plain,),
        given if given is not None else _made_up(inputs, input_shape),
        tuple(one for one in outputs if one != output and one not in passed),
        tuple(passed),
    )


async def _ask_metadata(base: str, suffix: str, settings: ServingSettings) -> ModelMetadata:
    """Ask a server what it serves, once it is ready."""
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.upstream_wait_seconds
    async with Upstream(settings) as upstream:
        while not await upstream.is_ready(f"{base}/ready{suffix}"):
            if loop.time() >= until:
                raise TargetFailedError(
                    f"the server to guard, {shown_address(base)}, is not ready. Start it first, or "
                    "raise the setting upstream_wait_seconds."
                )
            await asyncio.sleep(WAIT_SECONDS)
        try:
            answer = await upstream.get_json(f"{base}{suffix}")
            return ModelMetadata.model_validate({"platform": "", **answer})
        except (RefusedError, ValidationError, TypeError):
            raise TargetFailedError(
                f"the server to guard, {shown_address(base)}, does not say what it takes and gives "
                "as the Open Inference Protocol does. Check the address."
            ) from None


def _choose_output(outputs: Mapping[str, TensorMetadata], asked: str | None) -> str:
    if asked is not None:
        if asked not in outputs:
            raise UnknownNameError("output of the server to guard", asked, outputs)
        return asked
    fitting = [
        name
        for name, tensor in outputs.items()
        if tensor.datatype in FLOATS and len(tensor.shape) == 2
    ]
    if len(fitting) != 1:
        raise InvalidOptionError(
            f"say which output is guarded, by --output-name: {len(fitting)} of the server's "
            f"{len(outputs)} outputs are floats of shape (N, K). It has "
            f"{', '.join(outputs) or 'none'}."
        )
    return fitting[0]


def _made_up(inputs: Mapping[str, TensorMetadata], input_shape: tuple[int, ...] | None) -> bytes:
    """Return a request with random queries of the shape that the server says."""
    tensors = []
    for name, tensor in inputs.items():
        shape: Sequence[int] = tensor.shape[1:]
        if input_shape is not None and len(inputs) == 1:
            shape = input_shape
        if tensor.datatype == "BYTES" or any(size < 1 for size in shape) or not tensor.shape:
            raise InvalidOptionError(
                f"no query can be made up for the input {name!r}, {tensor.datatype} of shape "
                f"{tensor.shape}, to test the guard with. Give --input-shape, or a request in a "
                "file by --probe."
            )
        rows = tensor.shape[0] if tensor.shape[0] > 0 else PROBE_ROWS
        drawn = _drawn((rows, *shape))
        if tensor.datatype not in FLOATS:
            drawn = drawn.round().long() if tensor.datatype != "BOOL" else drawn > 0.5
        tensors.append(
            {
                "name": name,
                "shape": [rows, *shape],
                "datatype": tensor.datatype,
                "data": drawn.flatten().tolist(),
            }
        )
    return to_json({"inputs": tensors})


def _plain(
    where: str,
    request_key: str,
    response_key: str,
    passed: Sequence[str],
    input_shape: tuple[int, ...] | None,
    probe: bytes | None,
) -> ProxiedModel:
    request_path, response_path = key_parts(request_key), key_parts(response_key)
    passing = [tuple(key_parts(key)) for key in passed]
    for allowed in passing:
        if all(_may_meet(*parts) for parts in zip(allowed, response_path, strict=False)):
            raise InvalidOptionError(
                f"what passes, {'.'.join(allowed)!r}, and what is guarded, {response_key!r}, must "
                "stand apart."
            )
    if probe is None:
        if input_shape is None:
            raise InvalidOptionError(
                "give the shape of one query, by --input-shape, or a request in a file by --probe: "
                "the guard is tested before it serves."
            )
        value: Any = _drawn((PROBE_ROWS, *input_shape)).tolist()
        for part in reversed(request_path):
            if part == "*":
                raise InvalidOptionError("give a request in a file by --probe: none is made up.")
            value = [value] if part.isdecimal() else {part: value}
        probe = to_json(value)
    path = urlsplit(where).path or "/"
    try:
        template = parse_json(probe)
    except RefusedError:
        raise InvalidOptionError(
            "the request that --probe names is no JSON. Look into it."
        ) from None
    return ProxiedModel(
        path,
        PlainDialect(tuple(request_path), tuple(response_path), template, tuple(passing)),
        where,
        None,
        None,
        (path,),
        probe,
        (),
        tuple(passed),
    )


def _may_meet(one: str, other: str) -> bool:
    """Say whether two parts of keys can name the same member."""
    return one == other or ("*" in (one, other) and (one + other).replace("*", "").isdecimal())


def _drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingDataError(
            f"the request {path} cannot be read ({type(error).__name__}). Check the path."
        ) from error
