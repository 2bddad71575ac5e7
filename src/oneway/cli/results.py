"""`oneway results`: Markdown of all stored records, for a repository."""

from pathlib import Path
from typing import Annotated

import typer

from oneway.cli.common import command
from oneway.cli.paths import Reads, Writes


@command
def results(
    records: Annotated[
        Path,
        typer.Argument(help="Folder with the records of `oneway reproduce`."),
        Reads("*-seed*.jsonl"),
    ] = Path("runs"),
    out: Annotated[Path, typer.Option(help="File to write, Markdown."), Writes()] = Path(
        "runs/results.md"
    ),
) -> None:
    """Write Markdown of all stored records: means over seeds, intervals, and what they say.

    Frontiers of leaderboards are drawn into the folder images beside OUT, as .svg.
    `oneway report` makes a page of HTML from the same records, with all charts.

    For example:

        oneway results results --out docs/results.md
    """
    from oneway.benchmark import published_of, summarise
    from oneway.errors import MissingDataError
    from oneway.evaluation import read_records
    from oneway.files import atomic_file
    from oneway.report.experiments import LEADERBOARD, by_experiment
    from oneway.report.page import chart_key, frontier_charts, results_page, write_charts

    files = sorted(records.glob("*-seed*.jsonl"))
    if not files:
        raise MissingDataError(
            f"{records} holds no records named EXPERIMENT-PRESET-seedN.jsonl. Make some with "
            f"`oneway reproduce table1 --out {records}`."
        )
    stored = [record for file in files for record in read_records(file)]
    images = {}
    for (experiment, preset), group in by_experiment(stored).items():
        summaries = summarise(group)
        charts = frontier_charts(summaries)
        if experiment == LEADERBOARD and charts:
            name = f"images/{experiment}-{preset}.svg"
            title = f"{experiment} {preset}"
            write_charts(out.parent / name, title, charts, chart_key(summaries))
            images[experiment, preset] = name
    theirs = published_of(stored)
    page = results_page(stored, theirs, f"oneway results {records} --out {out}", images)
    with atomic_file(out) as path:
        path.write_text(page, encoding="utf-8")
    typer.echo(f"wrote {out}: {len(stored)} records of {len(theirs) or 'no'} published experiments")
