"""Look at a server that is to be guarded: what it takes, what it gives, what will be dropped."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
import torch

from oneway.checks import LooksLikeProbabilities
from oneway.defenses import ServableDefense
from oneway.errors import (
    InvalidOptionError,
    MissingDataError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.openinference.addresses import EndpointOptions, ModelAddress, shown_address
from oneway.openinference.key_paths import KeyPath
from oneway.openinference.messages import ModelMetadata, TensorMetadata, parse_json
from oneway.openinference.tensors import (
    FLOATS,
    MOST_ROWS,
    MessageError,
    choose_output,
    tensor_message,
)
from oneway.serving.guarded import guard_parameters
from oneway.serving.http_errors import RefusedError
from oneway.serving.protocol_adapters import (
    OpenInferenceAdapter,
    PlainJsonAdapter,
    ProtocolAdapter,
)
from oneway.serving.settings import ServingSettings
from oneway.serving.upstream import Upstream

PROBE_ROWS = 2
"""Queries in each request that is made up; a server may take few at once."""

PROBES = -(-LooksLikeProbabilities.LEAST_ROWS // PROBE_ROWS)
"""Requests that are made up: enough to tell logits from probabilities."""

WAIT_SECONDS = 0.5
"""Between two looks at a server that is not up yet."""

SERVER = "the server to guard"


@dataclass(frozen=True)
class ProxyOptions(EndpointOptions):
    """What a user says about a server that is to be guarded.

    Attributes:
        passed: Outputs, or keys of plain JSON, that pass as they are.
        input_shape: The shape of one query, where the server does not declare it.
        probe: File with a request for the self test, where none can be made up.
    """

    passed: Sequence[str] = ()
    input_shape: tuple[int, ...] | None = None
    probe: Path | None = None

    def read_probe(self) -> bytes | None:
        """Return the request in the file ``probe``, or None without a file.

        Raises:
            MissingDataError: The file cannot be read.
        """
        try:
            return None if self.probe is None else self.probe.read_bytes()
        except OSError as error:
            raise MissingDataError(
                f"the request {self.probe} cannot be read ({type(error).__name__}). Check the path."
            ) from error


@dataclass(frozen=True)
class ProxiedModel:
    """A server that is guarded: how it is asked, and what clients see of it.

    Attributes:
        adapter: How requests and answers are read and written.
        infer_url: Where the server is asked.
        ready_url: Where the server says whether it is ready; None if nowhere.
        metadata: The model as clients see it: only what passes. None for plain JSON.
        paths: Where the proxy answers, as the server does.
        probes: Requests for the self test.
        dropped: Names of outputs that clients will not see.
        passed: Names of what passes without a guard.
    """

    adapter: ProtocolAdapter
    infer_url: str
    ready_url: str | None
    metadata: ModelMetadata | None
    paths: tuple[str, ...]
    probes: tuple[bytes, ...]
    dropped: tuple[str, ...]
    passed: tuple[str, ...]


async def open_upstream(
    where: str, settings: ServingSettings, guard: ServableDefense, options: ProxyOptions
) -> ProxiedModel:
    """Look at a server, and settle how it is guarded.

    Args:
        where: ``.../v2/models/NAME``, or any address together with both keys.
        settings: How long the server may take.
        guard: The guard before the server, as clients see it.
        options: What the user says about the server.

    Raises:
        OnewayError: The server does not answer, or cannot be guarded like this.
    """
    shown = shown_address(where)  # refuses an address that cannot be shown
    address = options.model_address(where, f"{SERVER}, {shown},")
    if address is None:
        return _plain(where, guard, options)
    metadata = await _ask_metadata(address, shown, settings)
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    outputs = {tensor.name: tensor for tensor in metadata.outputs}
    guarded = choose_output(outputs, options.output_name, SERVER)
    # By default KServe and MLServer declare neither inputs nor outputs.
    outputs = outputs or {guarded: TensorMetadata(guarded, "FP32", [-1, -1])}
    for name in options.passed:
        if name not in outputs:
            raise UnknownNameError(f"output of {SERVER}", name, outputs)
        if name == guarded:
            raise InvalidOptionError(f"the output {name!r} is guarded: it cannot pass, too.")
    input_name = options.input_name
    if input_name is not None and inputs and input_name not in inputs:
        raise UnknownNameError(f"input of {SERVER}", input_name, inputs)
    if input_name is None and len(inputs) == 1:
        (input_name,) = inputs
    version, paths = _version_of(address, metadata)
    probe = options.read_probe()
    parameters = guard_parameters(guard)
    released = msgspec.structs.replace(outputs[guarded], datatype="FP32")
    return ProxiedModel(
        OpenInferenceAdapter(
            address.name,
            version,
            guarded,
            input_name,
            {name: tensor.datatype for name, tensor in inputs.items()},
            frozenset(options.passed),
            parameters,
        ),
        address.url("/infer"),
        address.url("/ready"),
        ModelMetadata(
            name=address.name,
            versions=None if version is None else [version],
            platform="oneway",
            inputs=metadata.inputs,
            outputs=[released, *(outputs[name] for name in options.passed)],
            parameters={**parameters, MOST_ROWS: settings.max_request_rows},
        ),
        paths,
        _made_up(inputs, options.input_shape) if probe is None else (probe,),
        tuple(name for name in outputs if name != guarded and name not in options.passed),
        tuple(options.passed),
    )


def _version_of(
    address: ModelAddress, metadata: ModelMetadata
) -> tuple[str | None, tuple[str, ...]]:
    """Return the version of the address, or else the only one of the server; and the paths."""
    versions = metadata.versions or []
    if address.version is not None or len(versions) != 1:
        return address.version, address.paths
    (path,) = address.paths
    return versions[0], (path, f"{path}/versions/{quote(versions[0], safe='')}")


async def _ask_metadata(
    address: ModelAddress, shown: str, settings: ServingSettings
) -> ModelMetadata:
    """Ask a server what it serves, once it is ready."""
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.upstream_wait_seconds
    async with Upstream(settings) as upstream:
        while not await upstream.is_ready(address.url("/ready")):
            if loop.time() >= until:
                raise TargetFailedError(
                    f"{SERVER}, {shown}, is not ready. Start it first, or raise the setting "
                    "upstream_wait_seconds."
                )
            await asyncio.sleep(WAIT_SECONDS)
        try:
            answer = await upstream.get_json(address.url())
            return msgspec.convert(answer, ModelMetadata)
        except (RefusedError, msgspec.ValidationError):
            raise TargetFailedError(
                f"{SERVER}, {shown}, does not say what it takes and gives as the Open Inference "
                "Protocol does. Check the address."
            ) from None


def _made_up(
    inputs: Mapping[str, TensorMetadata], input_shape: tuple[int, ...] | None
) -> tuple[bytes, ...]:
    """Return requests with random queries of the shape that the server declares."""
    if not inputs:
        raise InvalidOptionError(
            f"no query can be made up, since {SERVER} declares no input. Give a request in a file "
            "by --probe."
        )
    shapes = {}
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
        shapes[name] = (tensor.shape[0] if tensor.shape[0] > 0 else PROBE_ROWS, *shape)
    return tuple(
        msgspec.json.encode(
            {
                "inputs": [
                    tensor_message(name, inputs[name].datatype, _drawn_as(shape, inputs[name], at))
                    for name, shape in shapes.items()
                ]
            }
        )
        for at in range(PROBES)
    )


def _drawn_as(shape: tuple[int, ...], tensor: TensorMetadata, seed: int) -> np.ndarray:
    drawn = _drawn(shape, seed)
    if tensor.datatype in FLOATS:
        return drawn
    return drawn > 0.5 if tensor.datatype == "BOOL" else drawn.round().astype(np.int64)


def _plain(where: str, guard: ServableDefense, options: ProxyOptions) -> ProxiedModel:
    request_key, response_key = options.keys or (KeyPath(()), KeyPath(()))
    passed = tuple(map(KeyPath.parse, options.passed))
    for key in passed:
        if key.overlaps(response_key):
            raise InvalidOptionError(
                f"what passes, {str(key)!r}, and what is guarded, {str(response_key)!r}, must "
                "stand apart."
            )
    given = options.read_probe()
    probes = _made_up_plain(request_key, options) if given is None else (given,)
    try:
        template = parse_json(probes[0])
    except MessageError:
        raise InvalidOptionError(
            "the request that --probe names is no JSON. Look into it."
        ) from None
    path = urlsplit(where).path or "/"
    headers = {"Oneway-Guard": guard.name, "Oneway-Guard-Version": guard.version}
    adapter = PlainJsonAdapter(request_key, response_key, template, headers, passed)
    return ProxiedModel(adapter, where, None, None, (path,), probes, (), tuple(options.passed))


def _made_up_plain(request_key: KeyPath, options: ProxyOptions) -> tuple[bytes, ...]:
    if options.input_shape is None:
        raise InvalidOptionError(
            "give the shape of one query, by --input-shape, or a request in a file by --probe: "
            "the guard is tested before it serves."
        )
    shape = (PROBE_ROWS, *options.input_shape)
    try:
        return tuple(
            msgspec.json.encode(request_key.wrap(_drawn(shape, at).tolist()))
            for at in range(PROBES)
        )
    except InvalidOptionError as error:
        raise InvalidOptionError(
            f"no request can be made up: {error} Give one in a file by --probe."
        ) from None


def _drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).numpy()
