"""What `oneway serve` prints at its start: the guarded model, limits, and requests to copy."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from oneway.openinference.key_paths import KeyPath
from oneway.openinference.tensors import FLOATS, LAYOUTS

if TYPE_CHECKING:
    from oneway.openinference.messages import TensorMetadata
    from oneway.serving import ProxyOptions
    from oneway.serving.base_app import GuardedServer

USES = {"port": "HTTP", "grpc_port": "gRPC", "admin_port": "health and metrics"}
"""Uses of ports, by the names of their settings."""

MOST_SHOWN = 64
"""Most values of a request that are written out."""

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  compared, and listened on by nobody here


def start_summary(server: "GuardedServer[Any, Any]", ports: Mapping[str, int]) -> Iterator[str]:
    """Return what is served, line by line.

    Args:
        server: The server.
        ports: The ports that are listened on, by the names of their settings.
    """
    metadata, settings, guard = server.metadata, server.settings, server.guarded.guard
    if metadata is not None:
        inputs, outputs = (
            ", ".join(f"{each.name} {each.datatype} {each.shape}" for each in tensors)
            for tensors in (metadata.inputs, metadata.outputs)
        )
        version = "".join(f", version {each}" for each in metadata.versions or ())
        yield f"model        {metadata.name}{version}: {inputs or 'any inputs'} to {outputs}"
    yield f"guard        {guard.name}, version {guard.version}"
    certificate = getattr(guard.defense, "certificate", None)
    if certificate is not None:
        day = "" if certificate.certified_on is None else f" on {certificate.certified_on}"
        told = [f"certified on {certificate.queries:,} queries{day}"]
        if certificate.bits_most is not None:
            told.append(f"at most {certificate.bits_most:.2f} bits beyond the label")
        if certificate.error is not None:
            told.append(
                f"lower bound of any attacker's mean squared error per pixel "
                f"{certificate.error.lower_bound:.4f} ({100 * certificate.level:g} %)"
            )
        yield f"certificate  {'; '.join(told)}"
    yield f"ports        {', '.join(f'{port} {USES[name]}' for name, port in ports.items())}"
    yield (
        f"limits       {settings.max_request_rows} queries and {server.most_bytes:,} bytes a "
        f"request, {settings.max_waiting_rows} waiting queries, {settings.max_connections} "
        f"requests at once, {settings.timeout_seconds:g} s"
    )
    token = settings.bearer_token()
    yield f"token        {'not needed' if token is None else 'needed, for all but health'}"


@dataclass(frozen=True)
class Sample:
    """The body of a request before an address.

    Attributes:
        word: What curl sends, as a word of the shell.
        program: A Python expression of the request, piped into curl; or None.
    """

    word: str
    program: str | None = None


def sample_of(options: "ProxyOptions") -> Sample | None:
    """Return a request for a server at an address; None where its metadata say enough."""
    if options.probe is not None:
        return Sample(shlex.quote(f"@{options.probe}"))
    if options.request_key is None or options.input_shape is None:
        return None
    query = "0.5"
    for size in reversed((1, *options.input_shape)):
        query = f"[{query}] * {size}"
    wrapped = KeyPath.parse(options.request_key).wrap("@")
    return Sample("@-", json.dumps(wrapped).replace('"@"', query))


def sample_requests(
    server: "GuardedServer[Any, Any]", ports: Mapping[str, int], path: str, sample: Sample | None
) -> Iterator[str]:
    """Return requests that can be copied into a shell: by curl, and by Triton's client.

    Args:
        server: The server.
        ports: The ports that are listened on, by the names of their settings.
        path: The path of the model.
        sample: A request; None: one query is made up from the metadata.
    """
    metadata, settings = server.metadata, server.settings
    host = "localhost" if settings.host in EVERY_ADDRESS else settings.host
    host = f"[{host}]" if ":" in host else host
    tls = settings.tls_certificate
    words = ["curl"]
    if tls is not None:
        words += ["--cacert", shlex.quote(str(tls))]
    inference = path if metadata is None else f"{path}/infer"
    words.append(f"{'http' if tls is None else 'https'}://{host}:{ports['port']}{inference}")
    if settings.token is not None:
        words.append('-H "Authorization: Bearer $ONEWAY_SERVE_TOKEN"')
    elif settings.token_file is not None:
        words.append(f'-H "Authorization: Bearer $(cat {shlex.quote(str(settings.token_file))})"')
    inputs = [] if metadata is None else [_query(each) for each in metadata.inputs]
    if sample is None and any(datatype == "BYTES" for _, _, datatype, *_ in inputs):
        yield '# in place of "a", put a text that the model knows, such as a category'
    sample = sample or _sample_query(inputs)
    if sample.program is not None:
        program = f"import json; print(json.dumps({sample.program}))"
        words = ["python3", "-c", shlex.quote(program), "|", *words]
    yield " ".join([*words, "-d", sample.word])
    if inputs:
        yield f"python3 -c {shlex.quote(_program(server, host, ports, inputs))}"


def _sample_query(inputs: Sequence[tuple[Any, ...]]) -> Sample:
    """Return one query for all inputs, written out if that is short."""
    sent = [dict(zip(("name", "shape", "datatype"), each, strict=False)) for each in inputs]
    values, sizes = [each[3] for each in inputs], [prod(each[1]) for each in inputs]
    if sum(sizes) <= MOST_SHOWN:
        filled = [
            {**each, "data": [value] * size}
            for each, value, size in zip(sent, values, sizes, strict=True)
        ]
        return Sample(shlex.quote(json.dumps({"inputs": filled})))
    listed = ", ".join(
        f'{json.dumps(each)[:-1]}, "data": [{value!r}] * {size}}}'
        for each, value, size in zip(sent, values, sizes, strict=True)
    )
    return Sample("@-", f'{{"inputs": [{listed}]}}')


def _program(
    server: "GuardedServer[Any, Any]",
    host: str,
    ports: Mapping[str, int],
    inputs: Sequence[tuple[Any, ...]],
) -> str:
    """Return a program that asks one query by Triton's client, over gRPC where it is spoken."""
    metadata, settings, kind = server.metadata, server.settings, "grpc"
    assert metadata is not None  # noqa: S101  narrows the type
    port = ports.get("grpc_port")
    if port is None:
        kind, port = "http", ports["port"]
    client, asked, read = [f'"{host}:{port}"'], [json.dumps(metadata.name), "inputs"], None
    if settings.tls_certificate is not None:
        file = json.dumps(str(settings.tls_certificate))
        client.append("ssl=True")
        client.append(
            f"root_certificates={file}" if kind == "grpc" else f'ssl_options={{"ca_certs": {file}}}'
        )
    if settings.token is not None:
        read = 'os.environ["ONEWAY_SERVE_TOKEN"]'
    elif settings.token_file is not None:
        read = f"open({json.dumps(str(settings.token_file))}).read().strip()"
    if read is not None:
        asked.append(f'headers={{"authorization": "Bearer " + {read}}}')
    # What JSON calls false is 0 here.
    listed = json.dumps([[*each[:3], each[3] or 0, each[4]] for each in inputs])
    return (
        f"import os, numpy; from tritonclient import {kind} as triton\n"
        "inputs = [triton.InferInput(name, shape, datatype).set_data_from_numpy("
        "numpy.full(shape, value, kind)) for name, shape, datatype, value, kind in "
        f"{listed}]\n"
        f"client = triton.InferenceServerClient({', '.join(client)})\n"
        f"print(client.infer({', '.join(asked)}).as_numpy({json.dumps(metadata.outputs[0].name)}))"
    )


def _query(declared: "TensorMetadata") -> tuple[str, list[int], str, Any, str]:
    """Return one query made up: name, shape, datatype, the value of all its elements, its type."""
    datatype = declared.datatype
    value: Any = 0.5 if datatype in FLOATS else 0
    value = {"BOOL": False, "BYTES": "a"}.get(datatype, value)
    kind = "object" if datatype == "BYTES" else LAYOUTS[datatype].name
    return declared.name, [max(size, 1) for size in declared.shape], datatype, value, kind
