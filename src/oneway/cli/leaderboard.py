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
    check_executor,
    choose_device,
    chosen_releases,
    command,
    page_of_records,
    run_seeds,
)


@command
def leaderboard(
    spec: Annotated[
        Path | None, typer.Argument(help="Your own, a .toml file whose presets are data sets.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A preset: faces, mnist, digits; give it several times. [digits]"),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="A seed; give it several times. [0 1 2]")
    ] = None,
    release: Releases = None,
    data_root: DataRoot = None,
    out: Records = Path("runs"),
    cache: Cache = CACHE,
    device: Device = "auto",
    executor: Executor = "local",
    no_images: NoImages = False,
) -> None:
    """Run many defenses under the same attackers, and draw the frontier between them.

    The frontier are the releases that no other beats in both: how much of the gap they close, and
    how little they change. Records go to OUT/leaderboard-DATA-seedN.jsonl, one per release; a
    rerun goes on where it was. The page to read is OUT/leaderboard-DATA.html, the figure
    OUT/leaderboard-DATA.png.

    For example:

        oneway leaderboard --data digits --seed 0

        oneway leaderboard --data faces --data mnist --data-root ~/datasets --out results

        RAY_ADDRESS=auto oneway leaderboard --data digits --executor ray
    """
    from rich.console import Console

    from oneway.benchmark import bundled_spec, load_spec, summarise
    from oneway.report import (
        SUMMARY_WIDTH,
        draw_frontier,
        frontier_lines,
        summary_remarks,
        summary_table,
    )

    check_executor(executor)
    chosen, where, console = data or ["digits"], choose_device(device), Console()
    specs = [
        bundled_spec("leaderboard", name) if spec is None else load_spec(spec, name)
        for name in chosen
    ]
    only = [chosen_releases(one, release) for one in specs]
    seeds = sorted(set(seed or [0, 1, 2]))
    runs = [
        (dataclasses.replace(one, seed=number), wanted)
        for one, wanted in zip(specs, only, strict=True)
        for number in seeds
    ]
    done = run_seeds(runs, data_root, out, cache, where, executor=executor)
    for one in specs:
        records = [record for _ in seeds for record in next(done)]
        summaries = summarise(records)
        title = f"{one.name} {one.preset}"
        table = summary_table(summaries, title)
        console.print(table, width=max(console.width, SUMMARY_WIDTH), crop=False)
        for line in (*frontier_lines(summaries), *summary_remarks(summaries)):
            console.print(f"• {line}", highlight=False, markup=False)
        path = out / f"{one.name}-{one.preset}.png"
        draw_frontier(summaries, path, title)
        page = path.with_suffix(".html")
        page_of_records(records, page, cache, no_images=no_images)
        console.print(f"Wrote {page} and {path.name}", highlight=False, soft_wrap=True)
