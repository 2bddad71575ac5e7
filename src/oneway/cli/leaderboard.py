"""`oneway leaderboard`: many defenses on several data sets, and the frontier between them."""

import dataclasses
from pathlib import Path
from typing import Annotated

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
    choose_device,
    chosen_releases,
    command,
    page_of_records,
    print_table,
    run_seeds,
)
from oneway.cli.completion import preset_names


@command
def leaderboard(
    spec: Annotated[
        Path | None,
        typer.Argument(help="An experiment file of yours, .toml; its presets are data sets."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Preset: faces, people, mnist, digits or smoothed; repeatable. [digits]",
            autocompletion=preset_names,
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Seed; repeatable. [0 1 2]")] = None,
    release: Releases = None,
    data_root: DataRoot = None,
    out: Records = Path("runs"),
    cache: Cache = CACHE,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
) -> None:
    """Run many defenses under the same attackers, and draw the frontier between them.

    A release is on the frontier if no other closes more of the gap without changing more.
    Writes records to OUT/leaderboard-DATA-seedN.jsonl, one line per release; a rerun resumes.
    Writes a page to read, OUT/leaderboard-DATA.html, and the frontier, OUT/leaderboard-DATA.svg.

    For example:

        oneway leaderboard --data digits --seed 0

        oneway leaderboard --data faces --data mnist --data-root ~/datasets --out results

        RAY_ADDRESS=auto oneway leaderboard --data digits --executor ray
    """
    from oneway.benchmark import bundled_spec, load_spec, summarise
    from oneway.report import frontier_lines, report_lines, summary_table
    from oneway.report.experiments import todays
    from oneway.report.page import frontier_charts, write_charts

    device_used = choose_device(device)
    specs = [
        bundled_spec("leaderboard", name) if spec is None else load_spec(spec, name)
        for name in data or ["digits"]
    ]
    seeds = sorted(set(seed or [0, 1, 2]))
    runs = [
        (dataclasses.replace(experiment, seed=number), chosen_releases(experiment, release))
        for experiment in specs
        for number in seeds
    ]
    done = run_seeds(runs, data_root, out, cache, device_used, executor=executor)
    for experiment in specs:
        records = [record for _ in seeds for record in next(done)]
        summaries = summarise(records)
        table = summary_table(summaries, f"{experiment.name} {experiment.preset}")
        print_table(table, [*report_lines(summaries), *frontier_lines(todays(summaries))])
        page = out / f"{experiment.name}-{experiment.preset}.html"
        page_of_records(records, page, cache, no_images=no_images)
        picture, charts = page.with_suffix(".svg"), frontier_charts(summaries)
        picture.unlink(missing_ok=True)  # of other records it would be taken for theirs
        if charts:
            write_charts(picture, table.title, charts)
        drawn = f" and {picture.name}" if charts else ""
        typer.echo(f"Wrote {page}{drawn}")
