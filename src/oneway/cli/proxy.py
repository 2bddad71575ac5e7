"""`oneway proxy`: a guard before a server that is there already."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from oneway.cli.common import Device, choose_device, command
from oneway.cli.serve import (
    AllowCleanScores,
    DefenseName,
    DefenseOptions,
    GuardFile,
    InverterFile,
    Setting,
    SettingsFile,
    StateFile,
    guard_of,
    load_serving,
    parse_shape,
    read_settings,
    run_server,
)


@command
def proxy(
    upstream: Annotated[
        str,
        typer.Argument(
            help="The server to guard: .../v2/models/NAME, or any address with both keys."
        ),
    ],
    outputs: Annotated[Literal["logits", "confidences"], typer.Option(help="What its scores are.")],
    output_name: Annotated[
        str | None, typer.Option(help="The output to guard. [the only one that fits]")
    ] = None,
    input_name: Annotated[
        str | None, typer.Option(help="The input that a guard sees. [the only one]")
    ] = None,
    request_key: Annotated[
        str | None, typer.Option(help="Plain JSON: where the queries are, such as instances.")
    ] = None,
    response_key: Annotated[
        str | None, typer.Option(help="Plain JSON: where the scores are, such as predictions.")
    ] = None,
    passing: Annotated[
        list[str] | None,
        typer.Option("--pass", help="An output, or a key, that passes unguarded; repeatable."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Of one query, if the server does not say it.")
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="A request for the self test, if none can be made up.")
    ] = None,
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
    r"""Guard a server that is there already, by the Open Inference Protocol v2 or plain JSON.

    One output is guarded; whatever else is not listed by --pass is dropped. The server itself must
    be out of clients' reach. A bearer token for it is taken from ONEWAY_TOKEN.

    For example:

        oneway proxy http://10.0.0.7:8000/v2/models/digits --outputs confidences \
            --guard guard.safetensors --setting port=8080

        oneway proxy http://10.0.0.7:8000/predict --outputs confidences --request-key instances \
            --response-key predictions --input-shape 13 --defense rounding
    """
    load_serving()
    import asyncio

    from oneway.serving import GuardedScores, check_proxy, open_upstream, proxy_app

    how, where = read_settings(settings, setting), choose_device(device)
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
    guarded = GuardedScores(before, outputs, device=where, decimals=how.decimals)
    model = asyncio.run(
        open_upstream(
            upstream,
            how,
            before,
            input_name=input_name,
            output_name=output_name,
            passed=tuple(passing or ()),
            request_key=request_key,
            response_key=response_key,
            input_shape=None if input_shape is None else parse_shape(input_shape),
            probe=probe,
        )
    )
    classes = asyncio.run(check_proxy(model, guarded, how))
    run_server(
        proxy_app(model, guarded, how),
        how,
        before,
        model.paths[0],
        {"classes": classes, "passes_unguarded": model.passed, "dropped": model.dropped},
    )
