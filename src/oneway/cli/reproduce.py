"""`oneway reproduce`: run the paper's tables and figures, theirs beside ours."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import (
    CACHE,
    Cache,
    DataRoot,
    Device,
    Executor,
    NoImages,
    Records,
    Releases,
    check_executor,
    choose_device,
    chosen_releases,
    command,
    page_of_records,
    run_seed,
    run_seeds,
)

if TYPE_CHECKING:
    from oneway.benchmark import Cells, ExperimentSpec

TABLES = ("table1", "table2", "background")
FIGURES = ("figure1", "figure2")


@command
def reproduce(
    what: Annotated[
        str, typer.Argument(help="table1, table2, background, figure1, figure2, or a .toml file.")
    ],
    data: Annotated[str, typer.Option(help="mnist or faces.")] = "mnist",
    preset: Annotated[
        str | None, typer.Option(help="cpu: small networks, minutes. paper: theirs. [cpu]")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A seed; give it several times. [0 1 2; figures 0; a file's own]"),
    ] = None,
    release: Releases = None,
    data_root: DataRoot = None,
    out: Records = Path("runs"),
    cache: Cache = CACHE,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
) -> None:
    """Run a table or a figure of the paper, and show theirs beside ours.

    Each release of each seed is a cell; its record is written when it is done, so that an
    interrupted run loses at most one, and a rerun goes on where it was. Records go to
    OUT/EXPERIMENT-PRESET-seedN.jsonl; a page to read, .html, and figures, as .png and .pdf,
    beside them.

    Faces are read from --data-root: glint_celebs24_grey64.npz as the private set and
    celeba10k_grey64.npz as the auxiliary one; your own sets go in an experiment file.

    Exits 1 if a label changed in a release that promises to keep labels.

    For example:

        oneway reproduce table1 --data mnist --seed 0

        oneway reproduce figure2 --data faces --data-root ~/datasets --preset paper --device cuda

        oneway reproduce my-experiment.toml --out results
    """
    from rich.console import Console

    from oneway.benchmark import bundled_spec, figure_spec, load_spec
    from oneway.errors import InvalidOptionError, UnknownNameError

    check_executor(executor)
    if data not in ("mnist", "faces"):
        raise UnknownNameError("data", data, ("mnist", "faces"))
    own = what.endswith(".toml")
    if not own and what not in (*TABLES, *FIGURES):
        raise UnknownNameError("table or figure", what, (*TABLES, *FIGURES))
    figure = figure_spec(what) if what in FIGURES else None
    if own:
        spec = load_spec(Path(what), preset)
    else:
        spec = bundled_spec(f"{figure.experiment if figure else what}-{data}", preset or "cpu")
    seeds = seed or ([spec.seed] if own or figure else [0, 1, 2])
    if figure and release:
        raise InvalidOptionError(
            f"{what} says itself which releases it shows. Leave --release out, or run a table."
        )
    if figure and no_images:
        raise InvalidOptionError(f"{what} is nothing but images. Leave --no-images out.")
    if figure and executor != "local":
        raise InvalidOptionError(
            f"{what} is drawn where it is run. Leave --executor out, or run a table."
        )
    wanted = chosen_releases(spec, release)
    where, console = choose_device(device), Console()
    records: list[dict[str, Any]] = []
    seeded = [dataclasses.replace(spec, seed=number) for number in sorted(set(seeds))]
    if figure is None:
        runs = [(one, wanted) for one in seeded]
        for found in run_seeds(runs, data_root, out, cache, where, executor=executor):
            records += found
    else:
        shown = {row.release for row in figure.rows}
        for one in seeded:
            cells, found = run_seed(one, data_root, out, cache, where, shown, drawn=True)
            records += found
            title = f"{figure.title}, {data}, seed {one.seed}"
            last = f"seed{one.seed}" if len(seeds) > 1 else ""
            name = "-".join(part for part in (what, data, spec.preset, last) if part)
            for path in _draw(figure.rows, cells, found, out / name, title):
                console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    if figure is None:
        _print_table(console, spec, records)
    parts = (*((what, data) if figure else (spec.name,)), spec.preset)
    path = out / f"{'-'.join(part for part in parts if part)}.html"
    page_of_records(records, path, cache, no_images=no_images)
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    broken = any(record["label_changes"] and record["keeps_label"] for record in records)
    raise typer.Exit(1 if broken else 0)


def _draw(
    rows: Sequence[Any], cells: "Cells", records: list[dict[str, Any]], path: Path, title: str
) -> list[Path]:
    from oneway.report import draw_reconstructions

    by_release = {record["release"]: record for record in records}
    images: dict[str, Any] = {}
    for row in rows:
        gallery = cells.gallery(row.release) or {}
        if row.attack in gallery:
            error = by_release[row.release]["errors"][row.attack]
            images.setdefault("truth", gallery["truth"])
            images[f"{row.label}\n{error:.4f}"] = gallery[row.attack]
    written = []
    for ending in (".png", ".pdf"):
        draw_reconstructions(images, path.with_name(path.name + ending), title)
        written.append(path.with_name(path.name + ending))
    return written


def _print_table(console: Any, spec: "ExperimentSpec", records: list[dict[str, Any]]) -> None:
    from oneway.benchmark import published_of, summarise
    from oneway.report import SUMMARY_WIDTH, published_table, summary_remarks, summary_table

    summaries = summarise(records)
    title = " ".join(part for part in (spec.name, spec.preset) if part)
    table = summary_table(summaries, f"{title}: ours")
    console.print(table, width=max(console.width, SUMMARY_WIDTH), crop=False)
    for line in summary_remarks(summaries):
        console.print(f"• {line}", highlight=False)
    theirs = published_of(records).get(spec.name)
    if theirs is None:
        return
    if theirs.rows:
        console.print(published_table(theirs, summaries), width=max(console.width, 100), crop=False)
    for remark in theirs.remarks:
        console.print(f"• {remark.text}", highlight=False)
