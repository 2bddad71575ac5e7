"""`oneway results`: every page of a repository that holds measurements, from stored records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import command
from oneway.cli.paths import Reads, Writes

if TYPE_CHECKING:
    from oneway.report.measured import Measurements

OVERVIEW = "smoothed"
"""Preset of the leaderboard that the one picture of all is drawn from."""


@command
def results(
    records: Annotated[
        Path,
        typer.Argument(help="Folder with the records of `oneway reproduce`."),
        Reads("*-seed*.jsonl"),
    ] = Path("runs"),
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of pages: results.md and claims.md are written, measured blocks renewed."
        ),
        Writes(("results.md", "claims.md")),
    ] = Path("runs/pages"),
    page: Annotated[
        list[Path] | None,
        typer.Option(help="A page elsewhere with measured blocks to renew, Markdown; repeatable."),
        Writes(),
    ] = None,
) -> None:
    """Write all pages that hold measurements, from stored records.

    OUT/results.md holds all records of experiments: means over seeds, intervals, and what they say.
    Frontiers of leaderboards, and the overview of one, are drawn into OUT/images. In every other
    page of OUT, and in --page, each block between the HTML comments "measured: ..." and "end of
    measured" is made anew, and each sentence before a comment "claim: ..." is compared with the
    records. OUT/claims.md lists these sentences, each with its record and interval. Numbers that
    older attackers measured are marked. `oneway report` makes a page of HTML from the same records.

    Exits 1 if records contradict a claim, or leave it open.

    For example:

        oneway results results --out docs --page README.md
    """
    from oneway.errors import MissingDataError
    from oneway.files import atomic_file
    from oneway.report.claims import claims_page, renew_claims
    from oneway.report.measured import Measurements, renew_blocks

    for path in page or ():
        if not path.is_file():
            raise MissingDataError(f"there is no page {path}.")
    measurements = Measurements.read(records)
    made = " ".join(
        ("oneway results", f"{records} --out {out}", *(f"--page {p}" for p in page or ()))
    )
    texts = {out / "results.md": _results(measurements, out, made)}
    refuted, claiming = [], {}
    for path in [*(page or ()), *sorted(out.rglob("*.md"))]:
        if path not in (out / "results.md", out / "claims.md"):
            text = path.read_text(encoding="utf-8")
            blocks = renew_blocks(text, measurements, str(path))
            renewed, against = renew_claims(blocks, measurements, str(path))
            refuted += against
            claiming[os.path.relpath(path, out)] = renewed
            if renewed != text:
                texts[path] = renewed
    texts[out / "claims.md"] = claims_page(claiming, measurements, made)
    for path, text in texts.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        typer.echo(f"Wrote {path}")
    rows = list(measurements.rows())
    stale = sum(bool(summary.outdated) for _, summary in rows)
    typer.echo(f"{len(rows)} releases, {stale} of them not measured by today's attackers")
    for line in refuted:
        typer.echo(f"Not supported: {line}")
    raise typer.Exit(1 if refuted else 0)


def _results(measurements: "Measurements", out: Path, made: str) -> str:
    """Return the page of all records; draw its pictures."""
    from oneway.benchmark import published_of
    from oneway.report.experiments import LEADERBOARD
    from oneway.report.page.experiments import frontier_charts, overview_charts, results_page
    from oneway.report.page.render import write_charts

    images = {}
    for (experiment, preset), summaries in measurements.experiments.items():
        charts = frontier_charts(summaries)
        if experiment == LEADERBOARD and charts:
            name = f"images/{experiment}-{preset}.svg"
            write_charts(out / name, f"{experiment} {preset}", charts)
            images[experiment, preset] = name
    charts = overview_charts(measurements.experiments.get((LEADERBOARD, OVERVIEW), ()))
    if charts:
        title = "What releases hide, and what users pay for it: digits, scores not saturated"
        write_charts(out / "images/overview.svg", title, charts)
    return results_page(measurements.records, published_of(measurements.records), made, images)
