"""`oneway serve`: a model behind a guard, over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.audit import model_options
from oneway.cli.common import (
    Device,
    ModelOptions,
    ModelOutputs,
    choose_device,
    command,
    parse_options,
    parse_pairs,
)
from oneway.errors import InvalidOptionError
from oneway.extras import load_extra

if TYPE_CHECKING:
    import torch

    from oneway.defenses import ServableDefense
    from oneway.serving import ServingSettings

GuardFile = Annotated[
    Path | None, typer.Option("--guard", help="A codebook, from `oneway codebook`.")
]
DefenseName = Annotated[
    str | None, typer.Option("--defense", help="A registered defense, such as rounding.")
]
DefenseOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="Of the defense, such as decimals=2; repeatable."),
]
InverterFile = Annotated[
    Path | None, typer.Option("--inverter", help="The surrogate, if the defense takes one.")
]
StateFile = Annotated[
    Path | None, typer.Option("--state", help="File of the defense's fitted state, if it has one.")
]
AllowCleanScores = Annotated[
    bool,
    typer.Option(
        "--allow-clean-scores",
        help="With --defense none: release clean scores, guarded by nothing.",
    ),
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML with settings: docs/serving.md.")
]
Setting = Annotated[
    list[str] | None, typer.Option("--setting", help="One, such as port=8080; repeatable.")
]


@command
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="The undefended model: package.module:factory, a .pt, .pt2, .onnx, .skops or "
            ".joblib file, or an address."
        ),
    ],
    input_shape: Annotated[
        str, typer.Option(help="Of one query, such as 1x32x32 for images or 13 for records.")
    ],
    outputs: ModelOutputs = None,
    model_option: ModelOptions = None,
    guard: GuardFile = None,
    defense: DefenseName = None,
    option: DefenseOptions = None,
    inverter: InverterFile = None,
    state: StateFile = None,
    allow_clean_scores: AllowCleanScores = False,
    settings: SettingsFile = None,
    setting: Setting = None,
    device: Device = "auto",
) -> None:
    r"""Serve a model behind a guard, by the Open Inference Protocol v2 over HTTP.

    Starts only if the guard works on the model's own output. Where model or guard fail later,
    clients get an error and no score. Settings may also stand in the environment, such as
    ONEWAY_SERVE_PORT=8080.

    For example:

        oneway serve model.pt2 --outputs logits --input-shape 1x28x28 --guard guard.safetensors

        oneway serve model.pt2 --outputs logits --input-shape 1x28x28 \
            --defense rounding --option decimals=2 --setting model_name=digits
    """
    load_serving()
    from oneway.serving import GuardedModel, serving_app
    from oneway.targets import open_target

    how, where = read_settings(settings, setting), choose_device(device)
    shape = parse_shape(input_shape)
    before = guard_of(
        guard,
        defense,
        option,
        inverter,
        state,
        how,
        where,
        allow_clean_scores=allow_clean_scores,
    )
    target = open_target(
        model,
        outputs=outputs,
        device=where,
        batch_size=how.most_batch_rows,
        **model_options(parse_options(model_option, "--model-option")),
    )
    served = GuardedModel(
        target,
        before,
        input_shape=shape,
        device=where,
        decimals=how.decimals,
        batch_multiple=how.batch_multiple,
        batch_size=how.most_batch_rows,
    )
    probed = served.check()
    run_server(
        serving_app(served, how),
        how,
        before,
        f"/v2/models/{how.model_name}",
        {"classes": probed.classes, "same_bits_in_any_batch": probed.same_bits},
    )


def load_serving() -> None:
    """Miss what serves now, with its remedy.

    Raises:
        MissingExtraError: It is not installed.
    """
    packages = {"prometheus_client": "prometheus-client", "pydantic_settings": "pydantic-settings"}
    for module in ("httpx", "starlette", "uvicorn", *packages):
        load_extra(module, extra="serve", purpose="serving", package=packages.get(module))


def read_settings(file: Path | None, pairs: list[str] | None) -> "ServingSettings":
    """Return the settings of file, environment and command line, and begin to log.

    Raises:
        OnewayError: They cannot be used.
    """
    from oneway.serving import load_settings, start_logging

    # As text, as the environment gives it: a model's version may be 2.
    given = parse_pairs(pairs, "--setting")
    for secret in ("token", "key"):
        if secret in given:
            raise InvalidOptionError(
                f"the {secret} must not stand on a command line, where others see it. Give "
                f"--setting {secret}_file=FILE, or ONEWAY_SERVE_{secret.upper()}."
            )
    how = load_settings(file, given)
    start_logging(how.log_level)
    return how


def guard_of(
    file: Path | None,
    defense: str | None,
    options: list[str] | None,
    inverter: Path | None,
    state: Path | None,
    settings: "ServingSettings",
    device: "torch.device",
    *,
    allow_clean_scores: bool,
) -> "ServableDefense":
    """Open the guard that the command line names.

    Raises:
        OnewayError: There is none, or it must not serve.
    """
    from oneway.defenses import open_guard, open_guard_file

    if (file is None) is (defense is None):
        raise InvalidOptionError("say what guards the scores: --guard FILE, or --defense NAME.")
    if file is not None:
        if options or inverter or state:
            raise InvalidOptionError("--option, --inverter and --state are for --defense.")
        return open_guard_file(file, device=device)
    if defense == "none" and not allow_clean_scores:
        raise InvalidOptionError(
            "--defense none guards nothing: all clients get clean scores. If that is wanted, to "
            "measure what a guard costs, add --allow-clean-scores."
        )
    return open_guard(
        str(defense),
        parse_options(options, "--option"),
        inverter=inverter,
        state=state,
        key=settings.guard_key(),
        device=device,
        allow_clean_scores=allow_clean_scores,
    )


def run_server(
    app: Any,
    settings: "ServingSettings",
    guard: "ServableDefense",
    path: str,
    facts: dict[str, Any],
) -> None:
    """Listen, say where, and serve until told to stop."""
    import logging

    from oneway.serving import listen, run

    log = logging.getLogger("oneway.serving")
    if guard.name == "none":
        log.warning("clean_scores_are_released")
    if settings.bearer_token() is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("no_token_is_needed")
    listener = listen(settings)
    port = listener.getsockname()[1]
    scheme = "http" if settings.tls_certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    def started() -> None:
        told = {"guard": guard.name, "guard_version": guard.version, "port": port, **facts}
        log.info("started", extra={"facts": told})
        typer.echo(f"serving {scheme}://{host}:{port}{path} behind {guard.name}")

    run(app, settings, listener, started=started)
    log.info("stopped")


def parse_shape(text: str) -> tuple[int, ...]:
    """Return ``(1, 32, 32)`` of ``"1x32x32"``.

    Raises:
        InvalidOptionError: It is something else.
    """
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise InvalidOptionError(
            f"--input-shape must be sizes joined by x, such as 1x32x32, but got {text!r}."
        )
    return tuple(map(int, sizes))
