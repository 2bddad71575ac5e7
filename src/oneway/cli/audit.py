"""`oneway audit`: attack somebody's model, with or without a defense, and say what leaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

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
    parse_pairs,
    print_lines,
    progress,
)
from oneway.cli.paths import Reads, Writes, existing_file
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    import torch

    from oneway.audit import AuditOutcome, AuditTarget, Understanding
    from oneway.contracts import Target
    from oneway.data import ProgressCallback, RecordEncoding
    from oneway.data.classes import ClassOrder
    from oneway.evaluation import ReleaseSpec

TABLES = (".csv", ".parquet")
"""Endings of files that hold records rather than images."""

Model = Annotated[
    str,
    typer.Argument(
        help="The undefended model: package.module:factory, a .pt, .pt2, .onnx, .skops or "
        ".joblib file, or an address (Open Inference Protocol v2, or plain JSON)."
    ),
    Reads(),
]
Auxiliary = Annotated[
    Path, typer.Option(help="The attacker's data: .npz or folder of images, or a table.")
]
Test = Annotated[Path, typer.Option(help="Queries that attacks are graded on, same formats.")]
AuditedDefense = Annotated[str, typer.Option(help="Registered defense to audit.")]
Guarded = Annotated[
    str | None,
    typer.Option(help="Model that gives defended answers instead, like MODEL."),
    Reads(),
]
GuardedOutputs = Annotated[
    Literal["logits", "confidences"], typer.Option(help="Output of the guarded model.")
]
GuardedOptions = Annotated[
    list[str] | None, typer.Option(help="Option of the guarded model, NAME=VALUE; repeatable.")
]
Size = Annotated[str | None, typer.Option(help="Scale image files to HxW pixels.")]
Channels = Annotated[int | None, typer.Option(help="Channels of image files: 1 or 3.")]
Label = Annotated[str | None, typer.Option(help="Column of a table that holds the classes.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Names of the model's classes in the order of its scores: cat,dog,fox, or a file "
        "with one name on each line. [the model's own]"
    ),
    Reads(),
]
Categorical = Annotated[
    list[str] | None, typer.Option(help="Column of a table that holds codes; repeatable.")
]
Drop = Annotated[
    list[str] | None, typer.Option(help="Column of a table that is no input; repeatable.")
]
MissingValues = Annotated[
    list[str] | None, typer.Option(help="Text that means a missing value in a table; repeatable.")
]
Minutes = Annotated[float | None, typer.Option(help="Target run time, in minutes. [no limit]")]
Seeds = Annotated[
    int, typer.Option(min=1, help="Number of seeds; use at least 3 for results that you share.")
]
Controls = Annotated[bool, typer.Option(help="Run the controls, which vouch for the attackers.")]
RequireGap = Annotated[
    float | None,
    typer.Option(help="Exit 1 if the closed gap G, or its bound, is below this value."),
]
Out = Annotated[
    Path,
    typer.Option(help="Folder for the report."),
    Writes(("audit.json", "queries.parquet", "pictures.npz", "figure.png", "report.html")),
]
FirstSeed = Annotated[int, typer.Option(min=0, help="First of the seeds.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most queries in one call of the model.")]


@command
def audit(
    context: typer.Context,
    model: Model,
    auxiliary: Auxiliary,
    test: Test,
    outputs: ModelOutputs = None,
    defense: AuditedDefense = "none",
    option: Options = None,
    guarded: Guarded = None,
    guarded_outputs: GuardedOutputs = "confidences",
    guarded_option: GuardedOptions = None,
    model_option: ModelOptions = None,
    size: Size = None,
    channels: Channels = None,
    label: Label = None,
    classes: Classes = None,
    categorical: Categorical = None,
    drop: Drop = None,
    missing_value: MissingValues = None,
    minutes: Minutes = None,
    seeds: Seeds = 3,
    controls: Controls = True,
    require_gap: RequireGap = None,
    out: Out = Path("runs/audit"),
    cache: Cache = CACHE,
    seed: FirstSeed = 0,
    batch_size: BatchSize = 512,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
) -> None:
    r"""Attack a model's scores, with or without a defense, and say what leaks.

    The verdict comes with the attackers behind it, controls that vouch for them, and flags. The
    folder OUT gets report.html, the page to read, and audit.json and queries.parquet; for images
    also pictures.npz and figure.png. Exits 1 if G, or its bound where the trained attackers
    failed, is below --require-gap, or if a flag is raised that nothing explains: --seeds 1 explains
    too-few-seeds, and a bound of G explains attack-failed.

    For example:

        oneway audit model.pt --outputs logits --auxiliary own.npz --test queries.npz \
            --defense adversarial-noise --option step_size=0.1 --minutes 20

        RAY_ADDRESS=auto oneway audit package.models:classifier --auxiliary own.npz \
            --test queries.npz --executor ray
    """
    from oneway.audit import unexplained_flags

    check_executor(executor)
    _check_options(minutes, require_gap)
    where = choose_device(device)
    models = [(model, {"outputs": outputs, **model_options(model_option, "--model-option")})]
    if guarded is not None:
        options = model_options(guarded_option, "--guarded-option")
        models.append((guarded, {"outputs": guarded_outputs, **options}))
    source = Source(
        tuple(models),
        (auxiliary, test),
        _release(defense, parse_options(option, "--option")),
        where,
        batch_size,
        parse_size(size),
        channels,
        label,
        parse_classes(classes),
        tuple(categorical or ()),
        tuple(drop or ()),
        tuple(missing_value or ()),
    )
    settings = {"seeds": seeds, "minutes": minutes, "controls": controls}
    outcome = _run(source, settings, out, cache, seed, executor)
    outcome = replace(outcome, record=replace(outcome.record, command=command_line(context)))
    _write(out, outcome, {} if no_images else outcome.pictures)
    _print(outcome, out)
    record = outcome.record
    gap = record.closed_gap_at_least if record.failed else record.closed_gap
    missed = require_gap is not None and (gap is None or gap < require_gap)
    blind = record.failed and record.closed_gap_at_least is None
    unexplained = unexplained_flags(record.flags, seeds, blind=blind)
    raise typer.Exit(1 if missed or unexplained else 0)


def _check_options(minutes: float | None, require_gap: float | None) -> None:
    """Refuse what would fail only after the work."""
    from oneway.extras import load_extra

    if minutes is not None and not minutes > 0:
        raise InvalidOptionError(f"--minutes must be positive, but got {minutes}.")
    if require_gap is not None and not require_gap <= 1:
        raise InvalidOptionError(f"--require-gap must be at most 1, but got {require_gap}.")
    for module, package, purpose in (
        ("pyarrow", "pyarrow", "keeping every query"),
        ("PIL.Image", "pillow", "drawing pictures"),
    ):
        load_extra(module, extra="audit", purpose=purpose, package=package)


def _release(defense: str, options: dict[str, Any]) -> "ReleaseSpec":
    from oneway.evaluation import ReleaseSpec

    return ReleaseSpec("as it is" if defense == "none" else defense, defense, options)


def _run(
    source: "Source",
    settings: Mapping[str, Any],
    out: Path,
    cache: Path,
    seed: int,
    executor: str,
) -> "AuditOutcome":
    """Open the model and the data, and audit them."""
    from oneway.audit import AuditJob, AuditSettings, ModelAudit, audit_on_ray, understand
    from oneway.evaluation import Store

    with progress() as report:
        audited = source.open(report)
        understanding = understand(audited)
    print_understanding(understanding)
    with progress() as report:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidOptionError(
                f"--out must be a folder, but {out} cannot be made ({type(error).__name__})."
            ) from error
        chosen = AuditSettings.for_rows(len(audited.auxiliary), **settings)
        run_tasks = None
        if executor == "ray":
            job = AuditJob(source.open, Store(cache), chosen, seed, source.device)
            run_tasks = audit_on_ray(job, finished=lambda task: report(task, 1.0))
        audit = ModelAudit(
            audited,
            Store(cache),
            chosen,
            seed=seed,
            report=report,
            understanding=understanding,
        )
        return audit.run(run_tasks)


def print_understanding(understanding: "Understanding") -> None:
    """Print what was understood of a model and its data."""
    from rich.console import Console

    from oneway.report import understanding_lines, understanding_tables

    console = Console()
    print_lines(console, understanding_lines(understanding))
    for table in understanding_tables(understanding):
        console.print(table, crop=False)


def _write(out: Path, outcome: "AuditOutcome", pictures: Mapping[str, Any]) -> None:
    """Write the record, every query, and for images the pictures; and the page last."""
    import json

    from oneway.evaluation import write_queries
    from oneway.files import atomic_file, write_npz
    from oneway.report import draw_reconstructions
    from oneway.report.page import audit_page, write_page

    record = outcome.record
    with atomic_file(out / "audit.json") as path:
        text = json.dumps(record.to_json(), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    write_queries(out / "queries.parquet", outcome.queries)
    # Pictures of another audit would be taken for this audit's.
    for name in ("pictures.npz", "figure.png"):
        (out / name).unlink(missing_ok=True)
    if pictures:
        write_npz(out / "pictures.npz", pictures)
        rows = _figure_rows(record.examples, pictures)
        draw_reconstructions(rows, out / "figure.png", "What the scores give away")
    write_page(out / "report.html", audit_page(record, pictures))


def _print(outcome: "AuditOutcome", out: Path) -> None:
    """Print the verdict, its tables and flags."""
    from rich.console import Console

    from oneway.report import (
        attackers_table,
        distortion_line,
        flag_lines,
        privacy_table,
        utility_table,
        verdict,
    )

    console, record = Console(), outcome.record
    print_lines(console, verdict(record))
    for table in (attackers_table(record), privacy_table(record), utility_table(record)):
        console.print(table, crop=False)
    print_lines(console, [distortion_line(record), *flag_lines(record)])
    print_lines(console, [f"report: {out / 'report.html'}"])


def _figure_rows(examples: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the figure: the queries that are shown, and their reconstructions."""
    strongest = examples["attackers"]["strongest"]
    rows = (
        ("original", "truth"),
        ("label only", "label"),
        ("static", "static"),
        (f"strongest:\n{strongest}", "strongest"),
    )
    count = len(examples["shown"])
    return {title: pictures[view][:count] for title, view in rows}


def parse_classes(classes: str | None) -> tuple[str, ...] | None:
    """Return ``("cat", "dog")`` of ``"cat,dog"``, or the lines of a file.

    Raises:
        InvalidOptionError: A name is empty, or stands twice, or the file is not text in UTF-8.
    """
    if classes is None:
        return None
    path = existing_file(classes)
    try:
        text = classes.split(",") if path is None else path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidOptionError(
            f"--classes must be names or a text file in UTF-8, but {path} is in another encoding. "
            "Save it as UTF-8."
        ) from None
    names = tuple(name.strip() for name in text)
    if not all(names) or len(set(names)) != len(names):
        raise InvalidOptionError(
            f"--classes must name each class once, such as cat,dog,fox, but {len(names)} names "
            "hold an empty or a repeated one."
        )
    return names


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return ``(32, 48)`` of ``"32x48"``.

    Raises:
        InvalidOptionError: The text has another form.
    """
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InvalidOptionError(f"--size must be HxW in pixels, such as 32x32, but got {size!r}.")
    return int(height), int(width)


@dataclass(frozen=True)
class Source:
    """Where an audit's model and data come from. It can be sent to another machine.

    Attributes:
        models: The undefended model and, if there is one, the guarded model: each a place and
            options of :func:`oneway.targets.open_target`.
        paths: The auxiliary and the test data.
        release: The defense that is audited.
        device: Device for training and queries.
        batch_size: Most queries in one call of a model.
        size: Height and width that image files are scaled to.
        channels: Channels of image files.
        label: Column of a table that holds the classes.
        class_names: The model's classes, in the order of its scores; None: its own.
        categorical: Columns of a table that hold codes.
        drop: Columns of a table that are no inputs.
        missing_values: Texts that mean a missing value in a table.
    """

    models: tuple[tuple[str, dict[str, Any]], ...]
    paths: tuple[Path, Path]
    release: "ReleaseSpec"
    device: "torch.device"
    batch_size: int
    size: tuple[int, int] | None
    channels: int | None
    label: str | None
    class_names: Sequence[str] | None
    categorical: tuple[str, ...]
    drop: tuple[str, ...]
    missing_values: tuple[str, ...]

    def open(self, report: "ProgressCallback | None" = None) -> "AuditTarget":
        """Open the models, load their data, and check everything.

        Raises:
            OnewayError: A model cannot be opened, or the data cannot be used.
        """
        from oneway.audit import AuditTarget
        from oneway.data import no_progress
        from oneway.data.classes import map_labels
        from oneway.targets import open_target, target_kind

        targets = [
            open_target(
                place,
                device=self.device,
                batch_size=self.batch_size,
                **{"class_names": self.class_names, **options},
            )
            for place, options in self.models
        ]
        are_tables = [path.suffix.lower() in TABLES for path in self.paths]
        if any(are_tables) != all(are_tables):
            raise InvalidOptionError("--auxiliary and --test must both be tables, or both images.")
        if all(are_tables):
            files, encoding = self._load_tables()
            targets = [_of_records(target, encoding) for target in targets]
            columns = encoding.columns
        else:
            files, columns = self._load_images(report or no_progress), ()
        auxiliary, test = (file.rows.to(self.device) for file in files)
        order = self._class_order(targets, test[:1], files)
        labels = [
            None
            if file.labels is None
            else map_labels(file.labels, file.names, order, str(path)).to(self.device)
            for path, file in zip(self.paths, files, strict=True)
        ]
        place = self.models[0][0]
        return AuditTarget(
            targets[0],
            auxiliary,
            test,
            labels[1],
            self.release,
            columns,
            targets[1] if len(targets) > 1 else None,
            _file_hash(place),
            model_kind=target_kind(place),
            class_names=order.names,
            classes_from=order.source,
            auxiliary_labels=labels[0],
            notes=tuple(
                f"{path}: {note}"
                for path, file in zip(self.paths, files, strict=True)
                for note in file.notes
            ),
        )

    def _class_order(
        self, targets: "Sequence[Target]", query: "torch.Tensor", files: "Sequence[_File]"
    ) -> "ClassOrder":
        """Return the model's classes; a guarded model must have the same."""
        from oneway.data.classes import class_order, listed
        from oneway.targets import class_names_of

        order = class_order(
            targets[0](query).shape[-1],
            declared=self.class_names,
            of_model=class_names_of(targets[0]),
            of_data={
                str(path): file.names
                for path, file in zip(self.paths, files, strict=True)
                if file.labels is not None
            },
        )
        for guarded in targets[1:]:
            names = class_names_of(guarded)
            if names is not None and names != order.names:
                raise InvalidOptionError(
                    f"the guarded model must have the model's classes, {listed(order.names)}, in "
                    f"this order, but has {listed(names)}."
                )
        return order

    def _load_images(self, report: "ProgressCallback") -> "list[_File]":
        from oneway.data import load_queries

        loaded = [
            load_queries(path, channels=self.channels, size=self.size, report=report)
            for path in self.paths
        ]
        return [_File(file.images, file.labels, file.names, file.notes) for file in loaded]

    def _load_tables(self) -> "tuple[list[_File], RecordEncoding]":
        from oneway.data import load_records

        load = partial(
            load_records,
            label=self.label,
            categorical=self.categorical,
            drop=self.drop,
            missing_values=self.missing_values,
        )
        auxiliary = load(self.paths[0])
        test = load(self.paths[1], encoding=auxiliary.encoding)
        files = [
            _File(table.encoded, table.labels, table.class_names or None, table.notes)
            for table in (auxiliary, test)
        ]
        return [files[0], files[1].without(files[0])], auxiliary.encoding


@dataclass(frozen=True)
class _File:
    """What was loaded from one file or folder.

    Attributes:
        rows: ``(N, ...)`` queries in ``[0, 1]``.
        labels: ``(N)`` int64 positions in ``names``, or class numbers; or None.
        names: Class names of this file, if it has names.
        notes: What was left out, cut or converted.
    """

    MOST_SHARED: ClassVar = 0.2
    """Greatest share of rows that another file may hold by chance."""

    rows: "torch.Tensor"
    labels: "torch.Tensor | None"
    names: tuple[str, ...] | None
    notes: tuple[str, ...]

    def without(self, other: "_File") -> "_File":
        """Return this file without the records that another file holds, too.

        Records of few columns are equal by chance. Files that share more than a fifth of the rows
        overlap by mistake: they stay as they are, and the audit refuses them.

        Args:
            other: The attacker's file.
        """
        import torch

        from oneway.data import image_hashes

        known = set(image_hashes(other.rows.numpy()))
        kept = torch.tensor([row not in known for row in image_hashes(self.rows.numpy())])
        shared = len(kept) - int(kept.sum())
        if not 0 < shared <= self.MOST_SHARED * len(kept):
            return self
        note = f"{shared} of {len(kept)} rows are left out: auxiliary records are equal to them"
        labels = None if self.labels is None else self.labels[kept]
        return replace(self, rows=self.rows[kept], labels=labels, notes=(*self.notes, note))


def _file_hash(place: str) -> str | None:
    """Return the SHA-256 of a model's file; None if the model is no file."""
    import hashlib

    path = existing_file(place)
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_records(target: "Target", encoding: "RecordEncoding") -> "Target":
    """Let a model of a table's values answer encoded records, in the type that it takes."""
    import numpy as np

    from oneway.contracts import FrameTarget
    from oneway.targets import TorchTarget, records_target

    decode: Any = encoding.decode_frame
    if not isinstance(target, FrameTarget):
        single = isinstance(target, TorchTarget)
        decode = partial(encoding.decode, dtype=np.float32 if single else np.float64)
    return records_target(
        target,
        decode,
        columns=[column.name for column in encoding.columns],
        missing=[column.name for column in encoding.columns if column.missing],
    )


def model_options(given: list[str] | None, flag: str) -> dict[str, Any]:
    """Return a model's options, ``NAME=VALUE``, its keys as text: ``0`` is a place in a list."""
    texts = parse_pairs(given, flag)
    return {
        name: texts[name] if name.endswith("_key") and not isinstance(value, str) else value
        for name, value in parse_options(given, flag).items()
    }
