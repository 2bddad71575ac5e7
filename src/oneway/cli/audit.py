"""`oneway audit`: attack somebody's model, with or without a defense, and say what leaks."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneway.cli.common import (
    CACHE,
    Cache,
    Device,
    Executor,
    ModelOptions,
    ModelOutputs,
    NoImages,
    Options,
    check_executor,
    choose_device,
    command,
    command_line,
    parse_options,
    progress,
)
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    import torch

    from oneway.audit import AuditTarget
    from oneway.contracts import Target
    from oneway.data import ProgressCallback, RecordEncoding
    from oneway.evaluation import ReleaseSpec

TABLES = (".csv", ".parquet")
"""Endings of files that hold records rather than images."""


@command
def audit(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="The undefended model: package.module:factory, a .pt, .pt2, .onnx, .skops or "
            ".joblib file, or an address (Open Inference Protocol v2, or plain JSON)."
        ),
    ],
    auxiliary: Annotated[
        Path, typer.Option(help="The attacker's own data: .npz or folder of images, or a table.")
    ],
    test: Annotated[Path, typer.Option(help="Queries that attacks are graded on, likewise.")],
    outputs: ModelOutputs = None,
    defense: Annotated[str, typer.Option(help="A registered defense to audit.")] = "none",
    option: Options = None,
    guarded: Annotated[
        str | None, typer.Option(help="Where defended answers come from instead, like MODEL.")
    ] = None,
    guarded_outputs: Annotated[
        Literal["logits", "confidences"], typer.Option(help="What the guarded model answers with.")
    ] = "confidences",
    guarded_option: Annotated[
        list[str] | None, typer.Option(help="Of the guarded model's kind; repeatable.")
    ] = None,
    model_option: ModelOptions = None,
    size: Annotated[str | None, typer.Option(help="Scale image files to HxW.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of image files: 1 or 3.")] = None,
    label: Annotated[str | None, typer.Option(help="A table's column of classes.")] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option(help="A table's classes in the model's order; repeatable. [sorted]"),
    ] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="A table's column of codes; repeatable.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="A table's column that is no input; repeatable.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Plan the attackers for so long. [no limit]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often all is repeated.")] = 3,
    controls: Annotated[bool, typer.Option(help="Run the controls, too.")] = True,
    require_gap: Annotated[
        float | None, typer.Option(help="Exit 1 if the closed gap G is below this.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/audit"),
    cache: Cache = CACHE,
    seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Most queries asked at once.")] = 512,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
) -> None:
    r"""Attack a model's scores, with or without a defense, and say what leaks.

    The verdict comes with the attackers behind it, controls that vouch for them, and flags; the
    folder OUT gets report.html, the page to read, and audit.json, queries.parquet, and of images
    pictures.npz and figure.png. Exits 1 if a flag is raised, or
    if G is below --require-gap.

    For example:

        oneway audit model.pt --outputs logits --auxiliary own.npz --test queries.npz \
            --defense adversarial-noise --option step_size=0.1 --minutes 20

        RAY_ADDRESS=auto oneway audit package.models:classifier --auxiliary own.npz \
            --test queries.npz --executor ray
    """
    import json

    from rich.console import Console

    from oneway.audit import AuditJob, AuditSettings, ModelAudit, audit_on_ray
    from oneway.evaluation import ReleaseSpec, Store, sketch_defense, write_pictures, write_queries
    from oneway.extras import load_extra
    from oneway.files import atomic_file
    from oneway.report import (
        attackers_table,
        distortion_line,
        draw_reconstructions,
        flag_lines,
        privacy_table,
        utility_table,
        verdict,
    )
    from oneway.report.page import audit_page, write_page

    check_executor(executor)
    if minutes is not None and not minutes > 0:
        raise InvalidOptionError(f"--minutes must be positive, but got {minutes}.")
    if require_gap is not None and not require_gap <= 1:
        raise InvalidOptionError(f"--require-gap must be at most 1, but got {require_gap}.")
    # What writes the report is missed now rather than after the work.
    for module, package, purpose in (
        ("pyarrow", "pyarrow", "keeping every query"),
        ("PIL.Image", "pillow", "drawing pictures"),
    ):
        load_extra(module, extra="audit", purpose=purpose, package=package)
    where = choose_device(device)
    options = parse_options(option, "--option")
    release = ReleaseSpec("as it is" if defense == "none" else defense, defense, options)
    sketch_defense(release)
    models = [
        (place, {"outputs": told, **model_options(given)})
        for place, told, given in (
            (model, outputs, parse_options(model_option, "--model-option")),
            (guarded, guarded_outputs, parse_options(guarded_option, "--guarded-option")),
        )
        if place is not None
    ]
    opened = partial(
        _open_subject,
        models,
        (auxiliary, test),
        release,
        size=parse_size(size),
        channels=channels,
        label=label,
        class_names=class_name,
        categorical=tuple(categorical or ()),
        drop=tuple(drop or ()),
        batch_size=batch_size,
        device=where,
    )
    with progress() as report:
        audited = opened(report=report)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidOptionError(
                f"--out must be a folder, but {out} cannot be made ({type(error).__name__})."
            ) from error
        settings = AuditSettings.for_rows(
            len(audited.auxiliary), seeds=seeds, minutes=minutes, controls=controls
        )
        spread = None
        if executor == "ray":
            job = AuditJob(opened, Store(cache), settings, seed, where)
            spread = audit_on_ray(job, finished=lambda part: report(part, 1.0))
        outcome = ModelAudit(audited, Store(cache), settings, seed=seed, report=report).run(spread)
    record = outcome.record | {"command": command_line(context)}
    pictures = {} if no_images else outcome.pictures
    with atomic_file(out / "audit.json") as path:
        path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_queries(out / "queries.parquet", outcome.queries)
    # Of another audit, they would be taken for this one's.
    for name in ("pictures.npz", "figure.png"):
        (out / name).unlink(missing_ok=True)
    if pictures:
        write_pictures(out / "pictures.npz", pictures)
        rows = _figure_rows(record["examples"], pictures)
        draw_reconstructions(rows, out / "figure.png", "What the scores give away")
    write_page(out / "report.html", audit_page(record, pictures))
    console = Console()
    for line in verdict(record):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in (attackers_table(record), privacy_table(record), utility_table(record)):
        console.print(table, crop=False)
    console.print(distortion_line(record), highlight=False, markup=False, soft_wrap=True)
    for line in flag_lines(record):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    gap = record["closed_gap"]
    missed = require_gap is not None and (gap is None or gap < require_gap)
    raise typer.Exit(1 if missed or record["flags"] else 0)


def _figure_rows(examples: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the figure: the queries that are shown, and what became of them."""
    strongest = examples["attackers"]["strongest"]
    rows = (
        ("original", "truth"),
        ("label only", "label"),
        ("static", "static"),
        (f"strongest:\n{strongest}", "strongest"),
    )
    count = len(examples["shown"])
    return {label: pictures[source][:count] for label, source in rows}


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return ``(32, 48)`` of ``"32x48"``.

    Raises:
        InvalidOptionError: It is something else.
    """
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InvalidOptionError(f"--size must be HxW in pixels, such as 32x32, but got {size!r}.")
    return int(height), int(width)


def _open_subject(
    models: Sequence[tuple[str, dict[str, Any]]],
    paths: tuple[Path, Path],
    release: "ReleaseSpec",
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    label: str | None,
    class_names: Sequence[str] | None,
    categorical: tuple[str, ...],
    drop: tuple[str, ...],
    batch_size: int,
    device: "torch.device",
    report: "ProgressCallback | None" = None,
) -> "AuditTarget":
    """Open a model, and what guards it if there are two; load their data, and check everything."""
    from oneway.audit import AuditTarget
    from oneway.data import load_queries, load_records, no_progress
    from oneway.targets import open_target

    report = report or no_progress
    opened = [
        open_target(place, device=device, batch_size=batch_size, **options)
        for place, options in models
    ]

    are_tables = [path.suffix.lower() in TABLES for path in paths]
    if any(are_tables) != all(are_tables):
        raise InvalidOptionError("--auxiliary and --test must both be tables, or both images.")
    if all(are_tables):
        own = load_records(
            paths[0], label=label, class_names=class_names, categorical=categorical, drop=drop
        )
        asked = load_records(
            paths[1], label=label, categorical=categorical, drop=drop, encoding=own.encoding
        )
        for name, count in asked.clipped.items():
            report(f"{count} test values of {name} lie outside the auxiliary range: clipped", 1.0)
        opened = [_of_records(target, own.encoding) for target in opened]
        rows, labels = (own.encoded, asked.encoded), asked.labels
        columns = own.encoding.columns
    else:
        first, second = (
            load_queries(path, channels=channels, size=size, report=report) for path in paths
        )
        rows, labels, columns = (first.images, second.images), second.labels, ()
    return AuditTarget(
        opened[0],
        rows[0].to(device),
        rows[1].to(device),
        None if labels is None else labels.to(device),
        release,
        columns,
        opened[1] if len(opened) > 1 else None,
    )


def _of_records(target: "Target", encoding: "RecordEncoding") -> "Target":
    """Let a model of a table's own values answer encoded records, in the type that it takes."""
    from functools import partial

    import numpy as np

    from oneway.targets import TorchTarget, records_target

    single = isinstance(target, TorchTarget)
    return records_target(
        target, partial(encoding.decode, dtype=np.float32 if single else np.float64)
    )


def model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return a model's options with its keys as text: ``0`` is a place in a list."""
    return {name: str(value) if name.endswith("_key") else value for name, value in options.items()}
