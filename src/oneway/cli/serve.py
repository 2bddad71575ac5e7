"""`oneway serve`: a guard before a model, or before a server that runs already."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from oneway.cli.common import (
    Device,
    ModelOptions,
    ModelOutputs,
    Options,
    choose_device,
    command,
    parse_options,
    parse_pairs,
)
from oneway.cli.completion import defense_names
from oneway.cli.sources import model_options
from oneway.errors import InvalidOptionError, TargetFailedError
from oneway.extras import load_extra

if TYPE_CHECKING:
    import torch

    from oneway.cli.serve_summary import Sample
    from oneway.contracts import Target
    from oneway.defenses import ServableDefense
    from oneway.serving import (
        GuardedFrames,
        GuardedModel,
        GuardedTensors,
        ProxyOptions,
        ServingSettings,
        TensorBatch,
    )
    from oneway.serving.routing import Application
    from oneway.targets.onnx_scores import OnnxTensorTarget

    Prepared = tuple[Application, str, dict[str, Any], Sample | None]

Reading = Mapping[str, Sequence[str]]
"""Arguments of :func:`oneway.data.tables.read_table_file`."""

MOST_TEXT = 400
"""Characters of a model's own error at the start; exceptions of compilers have pages."""

File = Path | None
Text = str | None
Texts = list[str] | None

Model = Annotated[
    str,
    typer.Argument(
        help="The undefended model: package.module:factory, or a .pt, .pt2, .onnx, .skops or "
        ".joblib file. Or the address of a server: .../v2/models/NAME, or any with both keys."
    ),
]
InputShape = Annotated[
    Text, Option(help="Shape of one query: 1x32x32 for images, 13 for records. [as a server says]")
]
InputName = Annotated[Text, Option(help="Address: input that a guard sees. [the only one]")]
OutputName = Annotated[Text, Option(help="Address: output to guard. [the only one that fits]")]
RequestKey = Annotated[Text, Option(help="Plain JSON: place of the queries, such as instances.")]
ResponseKey = Annotated[Text, Option(help="Plain JSON: place of the scores, such as predictions.")]
Passed = Annotated[
    Texts, Option("--pass", help="Address: output, or key, that passes as it is; repeatable.")
]
Probe = Annotated[
    File,
    Option(
        help="Address, or .onnx file: request for the self test. Model of tables: a table of rows "
        "like those that clients will send, for the self test and the types of the columns. "
        "[random queries]"
    ),
]
Categorical = Annotated[
    Texts, Option(help="Model of tables: column of the probe that holds codes; repeatable.")
]
MissingValues = Annotated[
    Texts,
    Option(help="Model of tables: text that means a missing value in the probe; repeatable."),
]
GuardFile = Annotated[File, Option(help="Codebook file, from `oneway codebook`.")]
DefenseName = Annotated[
    Text, Option(help="Registered defense, such as rounding.", autocompletion=defense_names)
]
InverterFile = Annotated[File, Option(help="Surrogate inverter, from `oneway train inverter`.")]
StateFile = Annotated[File, Option(help="File of the defense's fitted state, if it has one.")]
AllowCleanScores = Annotated[
    bool,
    Option("--allow-clean-scores", help="With --defense none: release clean scores, unguarded."),
]
RequireGuard = Annotated[
    Text,
    Option(
        envvar="ONEWAY_REQUIRE_GUARD",
        help="Start only with a guard of this version, which answers and the log state.",
    ),
]
Host = Annotated[Text, Option(help="Address to listen on. [127.0.0.1]")]
Port = Annotated[int | None, Option(min=0, max=65535, help="Port; 0 takes a free one. [8000]")]
GrpcPort = Annotated[
    int | None, Option(min=0, max=65535, help="Port for gRPC; 0 takes a free one. [none]")
]
AdminPort = Annotated[
    int | None,
    Option(min=0, max=65535, help="Port for health and metrics alone; 0 takes a free one. [none]"),
]
TokenFile = Annotated[File, Option(help="File with the bearer token that clients must send.")]
SettingsFile = Annotated[File, Option(help="TOML file with settings: docs/serving.md.")]
Setting = Annotated[Texts, Option(help="Setting, such as port=8080; repeatable.")]


@command
def serve(
    model: Model,
    outputs: ModelOutputs = None,
    input_shape: InputShape = None,
    model_option: ModelOptions = None,
    input_name: InputName = None,
    output_name: OutputName = None,
    request_key: RequestKey = None,
    response_key: ResponseKey = None,
    passed: Passed = None,
    probe: Probe = None,
    categorical: Categorical = None,
    missing_value: MissingValues = None,
    guard: GuardFile = None,
    defense: DefenseName = None,
    option: Options = None,
    inverter: InverterFile = None,
    state: StateFile = None,
    allow_clean_scores: AllowCleanScores = False,
    require_guard: RequireGuard = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    admin_port: AdminPort = None,
    token_file: TokenFile = None,
    settings: SettingsFile = None,
    setting: Setting = None,
    device: Device = "auto",
) -> None:
    r"""Serve a model behind a guard, or guard a server that runs already.

    Speaks the Open Inference Protocol v2 over HTTP, and over gRPC with --grpc-port; before an
    address, also plain JSON. Starts only if the
    guard works on the model's own output. If model or guard fail later, clients get an error and
    no score. Settings may also stand in the environment, such as ONEWAY_SERVE_PORT=8080.

    Of the server at an address, one output is guarded, and whatever --pass does not list is
    dropped. Keep that server out of clients' reach. A bearer token for it is taken from
    ONEWAY_TOKEN.

    For example:

        oneway serve model.pt2 --outputs logits --input-shape 1x28x28 --guard guard.safetensors

        oneway serve http://10.0.0.7:8000/v2/models/digits --outputs confidences \
            --guard guard.safetensors --port 8080

        oneway serve http://10.0.0.7:8000/predict --outputs confidences --request-key instances \
            --response-key predictions --input-shape 13 --defense rounding
    """
    load_serving()
    from oneway.defenses.guard_versions import refuse_other_version
    from oneway.serving import ProxyOptions

    given = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "admin_port": admin_port,
        "token_file": token_file,
    }
    parsed, where = read_settings(settings, setting, given), choose_device(device)
    files = {"inverter": inverter, "state": state}
    opened = guard_of(guard, defense, option, files, parsed, where, allow_clean_scores)
    opened = opened.rounded(parsed.decimals)
    if require_guard is not None:
        refuse_other_version(require_guard, opened.version)
    options = ProxyOptions(
        input_name,
        output_name,
        request_key,
        response_key,
        tuple(passed or ()),
        None if input_shape is None else parse_shape(input_shape),
        probe,
    )
    reading = {"mixed": categorical or (), "missing_values": missing_value or ()}
    prepare = prepare_proxy if re.match(r"https?://", model, re.IGNORECASE) else prepare_model
    app, path, facts, sample = prepare(
        model, outputs, model_option, options, reading, opened, parsed, where
    )
    run_server(app, parsed, opened, path, facts, sample)


def prepare_model(
    model: str,
    outputs: Any,
    model_option: Texts,
    options: "ProxyOptions",
    reading: Reading,
    guard: "ServableDefense",
    settings: "ServingSettings",
    device: "torch.device",
) -> "Prepared":
    """Open a model and test it; return its server, its path, and facts for the log.

    Raises:
        OnewayError: The model cannot be served behind this guard.
    """
    from oneway.serving import ProxyOptions, serving_app
    from oneway.targets.opening import open_served

    shape, table = options.input_shape, options.probe
    if options != ProxyOptions(input_shape=shape, probe=table):
        raise InvalidOptionError(
            "--input-name, --output-name, --request-key, --response-key and --pass are for the "
            "address of a server. Give a model's options by --model-option, and the names that "
            "clients use by --setting."
        )
    target = open_served(
        model,
        outputs=outputs,
        device=device,
        batch_size=settings.most_batch_rows,
        **model_options(model_option, "--model-option"),
    )
    more: dict[str, Any] = {
        "device": device,
        "decimals": settings.decimals,
        "batch_multiple": settings.batch_multiple,
        "batch_size": settings.most_batch_rows,
    }
    served = guarded_model(target, guard, options, reading, more)
    same_bits = self_tested(served)
    facts = {
        "classes": served.classes,
        "same_bits_in_any_batch": same_bits,
        "batch_multiple": served.batch_multiple,
        "max_batch_size": served.batch_size,
        "model_one_by_one": served.one_by_one,
    }
    name = settings.model_name or model_name(model)
    app = serving_app(served, settings.model_copy(update={"model_name": name}))
    return app, f"/v2/models/{name}", facts, None


def guarded_model(
    target: "Target | OnnxTensorTarget",
    guard: "ServableDefense",
    options: "ProxyOptions",
    reading: Reading,
    more: dict[str, Any],
) -> "GuardedModel | GuardedFrames | GuardedTensors":
    """Put a guard before a model, by what the model takes.

    Raises:
        OnewayError: The options do not fit the model, or the guard does not.
    """
    from oneway.contracts import FrameTarget
    from oneway.serving import GuardedFrames, GuardedModel, GuardedTensors
    from oneway.targets.onnx_scores import OnnxTensorTarget

    shape, table = options.input_shape, options.probe
    if isinstance(target, FrameTarget):
        example = read_frame(table, shape, reading)
        return GuardedFrames(target, guard, example=example, **more)
    if isinstance(target, OnnxTensorTarget):
        if shape is not None or any(reading.values()):
            raise InvalidOptionError(
                "the model declares its inputs: give no --input-shape, --categorical or "
                "--missing-value. --probe takes a request in JSON for the self test."
            )
        return GuardedTensors(target, guard, probes=read_probe(options, target), **more)
    if shape is None or table is not None or any(reading.values()):
        raise InvalidOptionError(
            "give the shape of one query: --input-shape 1x32x32 for images, 13 for records; "
            "and no --probe, which is for an address or a model of tables, and no --categorical "
            "or --missing-value, which say how its table is read."
        )
    return GuardedModel(target, guard, input_shape=shape, **more)


def read_probe(options: "ProxyOptions", target: "OnnxTensorTarget") -> "TensorBatch | None":
    """Return the queries of a request in a file, for the self test; None without a file.

    Raises:
        OnewayError: The file cannot be read, or is no request for the model.
    """
    from oneway.openinference.inputs import read_inputs
    from oneway.openinference.messages import parse_request
    from oneway.openinference.tensors import MessageError
    from oneway.serving import TensorBatch

    body = options.read_probe()
    if body is None:
        return None
    try:
        request, _ = parse_request(body, None)
        rows = max(tensor.shape[0] for tensor in request.inputs)
        return TensorBatch(read_inputs(request, {}, declared=target.inputs, most_rows=rows))
    except (MessageError, IndexError) as error:
        raise InvalidOptionError(
            f"the request in {options.probe} must be one for the model: {error}."
        ) from None


def model_name(model: str) -> str:
    """Return the name of a model for clients: its file's stem; of a factory ``"model"``."""
    if not Path(model).is_file():
        return "model"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).stem).strip("._-")
    return stem[:128] or "model"


def self_tested(served: "GuardedModel | GuardedFrames | GuardedTensors") -> bool:
    """Test a guarded model: see its ``check``. Queries that oneway made up may be quoted.

    Raises:
        OnewayError: It must not serve.
    """
    from oneway.serving import GuardedModel

    try:
        return served.check()
    except TargetFailedError as error:
        cause = error.__cause__
        if cause is None or not isinstance(served, GuardedModel):
            raise
        shape = ", ".join(map(str, served.input_shape))
        raise TargetFailedError(
            f"the model must take queries of shape (N, {shape}), as --input-shape says, but "
            f"raised {type(cause).__name__}: {' '.join(str(cause).split())[:MOST_TEXT]}. Check "
            "that the model takes queries of this shape and type; these were random numbers."
        ) from error


def read_frame(table: File, shape: tuple[int, ...] | None, reading: Reading) -> Any:
    """Return the rows of a table as a DataFrame, for a model of tables; print notes on them.

    Raises:
        OnewayError: There is no table, or it cannot be read.
    """
    from oneway.data.tables import read_table_file

    if table is None or shape is not None:
        raise InvalidOptionError(
            "the model takes columns of a table: give some rows by --probe TABLE.csv (or "
            ".parquet), and no --input-shape."
        )
    pandas = load_extra("pandas", extra="records", purpose="serving a model of tables")
    file = read_table_file(table, **reading)
    for note in file.notes:
        typer.echo(f"note: {table}: {note}", err=True)
    return pandas.DataFrame(file.columns)


def prepare_proxy(
    address: str,
    outputs: Any,
    model_option: Texts,
    options: "ProxyOptions",
    reading: Reading,
    guard: "ServableDefense",
    settings: "ServingSettings",
    device: "torch.device",
) -> "Prepared":
    """Look at a server and test it; return its proxy, its path, facts for the log, and a request.

    Raises:
        OnewayError: The server cannot be guarded like this.
    """
    import asyncio

    from oneway.cli.serve_summary import sample_of
    from oneway.serving import GuardedScores, check_proxy, open_upstream, proxy_app

    if model_option or any(reading.values()):
        raise InvalidOptionError(
            "--model-option, --categorical and --missing-value are for a model. Of a server give "
            "--input-name and --output-name, or --request-key and --response-key."
        )
    if outputs is None:
        raise InvalidOptionError(
            "give what the server's scores are, by --outputs logits or --outputs confidences. It "
            "is never guessed from the values."
        )
    guarded = GuardedScores(guard, outputs, device=device, decimals=settings.decimals)
    upstream = asyncio.run(open_upstream(address, settings, guarded.guard, options))
    asyncio.run(check_proxy(upstream, guarded, settings))
    facts = {"passes_unguarded": upstream.passed, "dropped": upstream.dropped}
    app = proxy_app(upstream, guarded, settings)
    sample = sample_of(options)
    return app, upstream.paths[0], {"classes": guarded.classes, **facts}, sample


def load_serving() -> None:
    """Fail early if a serving dependency is missing, and say how to install it.

    Raises:
        MissingExtraError: A package is not installed.
    """
    packages = {"prometheus_client": "prometheus-client", "pydantic_settings": "pydantic-settings"}
    for module in ("httptools", "msgspec", "starlette", "uvicorn", *packages):
        load_extra(module, extra="serve", purpose="serving", package=packages.get(module))


def read_settings(file: File, pairs: Texts, options: Mapping[str, Any]) -> "ServingSettings":
    """Return the settings of file, environment and command line, and begin to log.

    Args:
        file: TOML, or None.
        pairs: Settings as ``name=value``.
        options: Settings that have an option of their own; None where it was not given.

    Raises:
        OnewayError: They cannot be used.
    """
    from oneway.serving import load_settings, start_logging

    # As text, as the environment gives it: a model's version may be 2.
    given: dict[str, Any] = {**parse_pairs(pairs, "--setting")}
    for name, value in options.items():
        if value is not None and name in given:
            raise InvalidOptionError(
                f"give one of --{name.replace('_', '-')} and --setting {name}=..., not both."
            )
    given |= {name: value for name, value in options.items() if value is not None}
    for secret in ("token", "key"):
        if secret in given:
            raise InvalidOptionError(
                f"the {secret} must not stand on a command line, where others see it. Give "
                f"--setting {secret}_file=FILE, or ONEWAY_SERVE_{secret.upper()}."
            )
    settings = load_settings(file, given)
    start_logging(settings.log_level)
    return settings


def guard_of(
    file: File,
    defense: Text,
    options: Texts,
    files: dict[str, File],
    settings: "ServingSettings",
    device: "torch.device",
    allow_clean_scores: bool,
) -> "ServableDefense":
    """Open the guard that the command line names.

    Raises:
        OnewayError: There is none, or it must not serve.
    """
    from oneway import defenses

    if (file is None) is (defense is None):
        raise InvalidOptionError("say what guards the scores: --guard FILE, or --defense NAME.")
    if file is not None:
        if options or any(files.values()):
            raise InvalidOptionError("--option, --inverter and --state are for --defense.")
        return defenses.open_guard_file(file, device=device)
    if defense == "none" and not allow_clean_scores:
        raise InvalidOptionError(
            "--defense none guards nothing: all clients get clean scores. If that is wanted, to "
            "measure what a guard costs, add --allow-clean-scores."
        )
    return defenses.open_guard(
        str(defense),
        parse_options(options, "--option"),
        **files,
        key=settings.guard_key(),
        device=device,
        allow_clean_scores=allow_clean_scores,
    )


def run_server(
    app: "Application",
    settings: "ServingSettings",
    guard: "ServableDefense",
    path: str,
    facts: dict[str, Any],
    sample: "Sample | None",
) -> None:
    """Listen, print where and what, and serve until the process gets a signal to stop."""
    import logging

    from oneway.cli.serve_summary import sample_requests, start_summary
    from oneway.serving import listen, run
    from oneway.serving.settings import LOOPBACK

    log = logging.getLogger("oneway.serving")
    if guard.name == "none":
        log.warning("clean_scores_are_released")
    if settings.bearer_token() is None and settings.host not in LOOPBACK:
        log.warning("no_token_is_needed")
    listener = listen(settings)
    admin = None if settings.admin_port is None else listen(settings, admin=True)
    scheme = "http" if settings.tls_certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    def started() -> None:
        ports = {"port": listener.getsockname()[1]}
        if app.grpc is not None:
            ports["grpc_port"] = app.grpc.port
        if admin is not None:
            ports["admin_port"] = admin.getsockname()[1]
        line = {"guard": guard.name, "guard_version": guard.version, **ports, **facts}
        log.info("started", extra={"facts": line})
        typer.echo(f"serving {scheme}://{host}:{ports['port']}{path} behind {guard.name}")
        for text in start_summary(app.server, ports):
            typer.echo(text)
        for text in sample_requests(app.server, ports, path, sample):
            typer.echo(f"\n{text}")

    run(app, settings, listener, admin=admin, started=started)
    log.info("stopped")


def parse_shape(text: str) -> tuple[int, ...]:
    """Return ``(1, 32, 32)`` of ``"1x32x32"``.

    Raises:
        InvalidOptionError: The text is not sizes joined by x.
    """
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise InvalidOptionError(
            f"--input-shape must be sizes joined by x, such as 1x32x32, but got {text!r}."
        )
    return tuple(map(int, sizes))
