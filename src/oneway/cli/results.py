"""`oneway results`: Markdown of all stored records, for a repository."""

from pathlib import Path
from typing import Annotated

import typer

from oneway.cli.common import command


@command
def results(
    records: Annotated[
        Path, typer.Argument(help="Folder with the records that `oneway reproduce` wrote.")
    ] = Path("runs"),
    out: Annotated[Path, typer.Option(help="File to write, Markdown.")] = Path("runs/results.md"),
) -> None:
    """Write Markdown of all stored records: means over seeds, intervals, and what they say.

    `oneway report` makes a page of HTML from the same records, with figures.

    For example:

        oneway results results --out docs/results.md
    """
    from oneway.benchmark import published_of
    from oneway.errors import MissingDataError
    from oneway.evaluation import read_records
    from oneway.files import atomic_file
    from oneway.report import results_page

    files = sorted(records.glob("*-seed*.jsonl"))
    if not files:
        raise MissingDataError(
            f"{records} holds no records named EXPERIMENT-PRESET-seedN.jsonl. Make some with "
            f"`oneway reproduce table1 --out {records}`."
        )
    found = [record for file in files for record in read_records(file)]
    theirs = published_of(found)
    page = results_page(found, theirs, f"oneway results {records} --out {out}")
    with atomic_file(out) as path:
        path.write_text(page, encoding="utf-8")
    typer.echo(f"wrote {out}: {len(found)} records of {len(theirs) or 'no'} published experiments")
