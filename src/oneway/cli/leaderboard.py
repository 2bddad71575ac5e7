"""`oneway leaderboard`: many defenses on several data sets, and the frontier between them."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    progress,
    run_seeds,
)
from oneway.cli.completion import preset_names
from oneway.cli.paths import Writes
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    import torch

    from oneway.benchmark import ExperimentSpec
    from oneway.evaluation import ReleaseRecord


Spec = Annotated[
    Path | None,
    typer.Argument(help="An experiment file of yours, .toml; its presets are data sets."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Preset: faces, people, mnist, digits or smoothed; repeatable. [digits]",
        autocompletion=preset_names,
    ),
]
Seeds = Annotated[list[int] | None, typer.Option(min=0, help="Seed; repeatable. [0 1 2]")]
EntryFile = Annotated[
    Path | None,
    typer.Option(help="Releases of your own, .toml: judged in place of the leaderboard's."),
]
Splits = Annotated[
    Path | None,
    typer.Option(
        help="Write inputs and clean scores of each split to this folder, and judge nothing: "
        "for people who record scores."
    ),
    Writes(("*-seed*.npz",)),
]


@command
def leaderboard(
    spec: Spec = None,
    data: Data = None,
    seed: Seeds = None,
    release: Releases = None,
    entry: EntryFile = None,
    splits: Splits = None,
    left: Left = False,
    data_root: DataRoot = None,
    out: Records = Path("runs"),
    cache: Cache = CACHE,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
    as_json: AsJson = False,
) -> None:
    """Run many defenses under the same attackers, and draw the frontier between them.

    A release is on the frontier if no other closes more of the gap without changing more.
    Writes records to OUT/leaderboard-DATA-seedN.jsonl, one line per release; a rerun resumes.
    Writes a page to read, OUT/leaderboard-DATA.html, and the frontier, OUT/leaderboard-DATA.svg.

    With --entry, records go to OUT/entry-NAME-DATA-seedN.jsonl, and records of the leaderboard that
    are in OUT are shown beside them.

    For example:

        oneway leaderboard --data digits --seed 0

        oneway leaderboard --data digits --entry entry.toml --seed 0

        oneway leaderboard --data digits --seed 0 --splits splits

        oneway leaderboard --data faces --data mnist --data-root ~/datasets --out results

        oneway leaderboard --data digits --data smoothed --out results --left

        RAY_ADDRESS=auto oneway leaderboard --data digits --executor ray
    """
    from oneway.benchmark import bundled_spec, load_spec, summarise
    from oneway.benchmark.entries import entered, read_entry
    from oneway.report.experiments import summary_table, todays
    from oneway.report.findings import report_lines
    from oneway.report.frontier import frontier_lines
    from oneway.report.page.experiments import frontier_charts
    from oneway.report.page.render import write_charts

    if splits is not None and (left or as_json):
        raise InvalidOptionError("--splits judges nothing. Leave out --left and --json.")
    device_used = choose_device(device)
    boards = [
        bundled_spec("leaderboard", name) if spec is None else load_spec(spec, name)
        for name in data or ["digits"]
    ]
    seeds = sorted(set(seed or [0, 1, 2]))
    seeded = [dataclasses.replace(board, seed=number) for board in boards for number in seeds]
    if splits is not None:
        _write_splits(seeded, splits, data_root, cache, device_used)
        return
    if entry is not None:
        named = read_entry(entry)
        seeded = [entered(board, named, entry.parent) for board in seeded]
    runs = [(experiment, chosen_releases(experiment, release)) for experiment in seeded]
    if left:
        print_left(runs, out, cache, as_json=as_json)
        return
    done = run_seeds(runs, data_root, out, cache, device_used, executor=executor)
    printed: list[dict[str, Any]] = []
    for board, experiment in zip(boards, seeded[:: len(seeds)], strict=True):
        records = [record for _ in seeds for record in next(done)]
        if entry is not None:
            records = _beside(records, board, out, seeds)
        summaries = summarise(records)
        table = summary_table(summaries, f"{experiment.name} {experiment.preset}")
        printed += [record.to_json() for record in records]
        if not as_json:
            print_table(table, [*report_lines(summaries), *frontier_lines(todays(summaries))])
        page = out / f"{experiment.name}-{experiment.preset}.html"
        page_of_records(records, page, cache, no_images=no_images)
        picture, charts = page.with_suffix(".svg"), frontier_charts(summaries)
        picture.unlink(missing_ok=True)  # of other records it would be taken for theirs
        if charts:
            write_charts(picture, table.title, charts)
        drawn = f" and {picture.name}" if charts else ""
        typer.echo(f"Wrote {page}{drawn}", err=as_json)
    if as_json:
        print_json(printed)


def _beside(
    entered: "list[ReleaseRecord]", board: "ExperimentSpec", out: Path, seeds: Sequence[int]
) -> "list[ReleaseRecord]":
    """Return records of an entry behind those of the leaderboard in the same folder.

    Records of another classifier or of other inputs, or that do not say of which, are left out.
    """
    from oneway.evaluation import read_records

    def split(record: "ReleaseRecord") -> tuple[int, str, str | None]:
        return record.seed, record.provenance.data, record.provenance.model

    files = [out / f"{board.name}-{board.preset}-seed{number}.jsonl" for number in seeds]
    judged = {split(record) for record in entered}
    stored = [record for file in files if file.is_file() for record in read_records(file)]
    ours = [record for record in stored if split(record) in judged]
    known = {record.release for record in ours}
    return [*ours, *(record for record in entered if record.release not in known)]


def _write_splits(
    boards: "Sequence[ExperimentSpec]",
    folder: Path,
    data_root: Path | None,
    cache: Path,
    device: "torch.device",
) -> None:
    from oneway.benchmark import load_data
    from oneway.benchmark.entries import write_splits
    from oneway.evaluation import Store

    for board in boards:
        path = folder / f"{board.preset or board.name}-seed{board.seed}.npz"
        with progress() as report:
            data = partial(load_data, board.data, data_root, report)
            write_splits(board, data, path, Store(cache), device=device, report=report)
        typer.echo(f"Wrote {path}")
