"""`oneway reproduce`: run the paper's tables and figures, theirs beside ours."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneway.cli.common import (
    CACHE,
    AsJson,
    Cache,
    DataRoot,
    Device,
    Executor,
    Left,
    NoImages,
    Records,
    Releases,
    choose_device,
    chosen_releases,
    command,
    page_of_records,
    print_json,
    print_left,
    print_table,
    run_seed,
    run_seeds,
)
from oneway.cli.completion import preset_names
from oneway.cli.paths import Reads
from oneway.errors import InvalidOptionError, UnknownNameError

if TYPE_CHECKING:
    from oneway.benchmark import Cells, ExperimentSpec, FigureRow, FigureSpec
    from oneway.evaluation import ReleaseRecord

TABLES = ("table1", "table2", "background")
FIGURES = ("figure1", "figure2")


@command
def reproduce(
    what: Annotated[
        str,
        typer.Argument(help="table1, table2, background, figure1, figure2, or a .toml file."),
        Reads(),
    ],
    data: Annotated[Literal["mnist", "faces"], typer.Option(help="Data set.")] = "mnist",
    preset: Annotated[
        str | None,
        typer.Option(
            help="cpu: small networks. paper: theirs, for a GPU. [cpu]", autocompletion=preset_names
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Seed; repeatable. [0 1 2; figures 0; a file: its seed]"),
    ] = None,
    release: Releases = None,
    left: Left = False,
    data_root: DataRoot = None,
    out: Records = Path("runs"),
    cache: Cache = CACHE,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
    as_json: AsJson = False,
) -> None:
    """Run a table or a figure of the paper, and show theirs beside ours.

    Each release of each seed is a cell, whose record is written when the cell is done: an
    interrupted run loses one cell at most, and a rerun resumes. Writes records to
    OUT/EXPERIMENT-PRESET-seedN.jsonl; beside them a page to read, .html, and figures, .png and
    .pdf.

    Faces are read from --data-root: glint_celebs24_grey64.npz as the private set and
    celeba10k_grey64.npz as the auxiliary set. Name your own data sets in an experiment file.

    --release draws the rows of a release alone. A figure of faces is for your own eyes: most sets
    of faces may not be shown.

    Exits 1 if a label changed in a release that promises to keep labels.

    For example:

        oneway reproduce table1 --data mnist --seed 0

        oneway reproduce figure2 --data faces --data-root ~/datasets --preset paper --device cuda

        oneway reproduce my-experiment.toml --out results
    """
    spec, figure = _chosen(what, data, preset)
    wanted = chosen_releases(spec, release)
    rows = figure.rows if figure else ()
    if figure:
        _check_figure(what, executor, no_images=no_images, left=left)
        rows = _chosen_rows(what, figure, wanted)
    device_used = choose_device(device)
    single = figure or _is_file(what)
    seeds = sorted(set(seed or ([spec.seed] if single else [0, 1, 2])))
    specs = [dataclasses.replace(spec, seed=number) for number in seeds]
    records: list[ReleaseRecord] = []
    if figure is None:
        runs = [(seeded, wanted) for seeded in specs]
        if left:
            print_left(runs, out, cache, as_json=as_json)
            return
        for done in run_seeds(runs, data_root, out, cache, device_used, executor=executor):
            records += done
        if not as_json:
            _print_tables(spec, records)
    else:
        shown = {row.release for row in rows}
        for seeded in specs:
            cells, done = run_seed(seeded, data_root, out, cache, device_used, shown, drawn=True)
            records += done
            title = f"{figure.title}, {data}, seed {seeded.seed}"
            last = f"seed{seeded.seed}" if len(seeds) > 1 else ""
            path = out / _join(what, data, spec.preset, last)
            for written in _draw(rows, cells, done, path, title):
                typer.echo(f"Wrote {written}", err=as_json)
    name = _join(*((what, data) if figure else (spec.name,)), spec.preset)
    page_of_records(records, out / f"{name}.html", cache, no_images=no_images)
    typer.echo(f"Wrote {out / name}.html", err=as_json)
    if as_json:
        print_json([record.to_json() for record in records])
    broken = any(record.label_changes and record.keeps_label for record in records)
    raise typer.Exit(1 if broken else 0)


def _chosen(what: str, data: str, preset: str | None) -> "tuple[ExperimentSpec, FigureSpec | None]":
    """Return the experiment of a table, a figure or a file; and the figure, or None."""
    from oneway.benchmark import bundled_spec, figure_spec, load_spec

    if _is_file(what):
        return load_spec(Path(what), preset), None
    UnknownNameError.check("table or figure", what, (*TABLES, *FIGURES))
    figure = figure_spec(what) if what in FIGURES else None
    return bundled_spec(f"{figure.experiment if figure else what}-{data}", preset or "cpu"), figure


def _is_file(what: str) -> bool:
    return what.lower().endswith(".toml")


def _chosen_rows(
    what: str, figure: "FigureSpec", wanted: set[str] | None
) -> "tuple[FigureRow, ...]":
    """Return the rows of a figure that show the wanted releases; None: all rows."""
    shown = {row.release for row in figure.rows}
    for name in wanted or ():
        UnknownNameError.check(f"release of {what}", name, shown)
    return tuple(row for row in figure.rows if wanted is None or row.release in wanted)


def _check_figure(what: str, executor: str, *, no_images: bool, left: bool) -> None:
    """Refuse options that a figure cannot take."""
    if left:
        raise InvalidOptionError(f"{what} shows rows of a table. Pass --left with the table.")
    if no_images:
        raise InvalidOptionError(f"{what} consists of images. Leave --no-images out.")
    if executor != "local":
        raise InvalidOptionError(
            f"{what} is drawn where it is run. Leave --executor out, or run a table."
        )


def _join(*parts: str) -> str:
    return "-".join(part for part in parts if part)


def _draw(
    rows: Sequence[Any], cells: "Cells", records: "list[ReleaseRecord]", path: Path, title: str
) -> list[Path]:
    """Draw the rows of a figure, as PNG and PDF; return the files."""
    from oneway.report.figure import draw_reconstructions

    by_release = {record.release: record for record in records}
    images: dict[str, Any] = {}
    for row in rows:
        gallery = cells.gallery(row.release) or {}
        if row.attack in gallery:
            error = by_release[row.release].errors[row.attack]
            images.setdefault("truth", gallery["truth"])
            images[f"{row.label}\n{error:.4f}"] = gallery[row.attack]
    paths = [path.with_name(path.name + ending) for ending in (".png", ".pdf")]
    for written in paths:
        draw_reconstructions(images, written, title)
    return paths


def _print_tables(spec: "ExperimentSpec", records: "list[ReleaseRecord]") -> None:
    from oneway.benchmark import published_of, summarise
    from oneway.report.experiments import published_table, summary_table
    from oneway.report.findings import report_lines

    summaries = summarise(records)
    table = summary_table(summaries, " ".join(part for part in (spec.name, spec.preset) if part))
    print_table(table, report_lines(summaries))
    theirs = published_of(records).get(spec.name)
    if theirs is not None:
        print_table(published_table(theirs, summaries), [remark.text for remark in theirs.remarks])
