"""`oneway demo`: invert a classifier's scores, defend them, and show what still leaks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import (
    CACHE,
    AsJson,
    Cache,
    Device,
    NoImages,
    choose_device,
    command,
    page_of_records,
    print_json,
    print_table,
    progress,
)
from oneway.cli.paths import Shares, Writes

if TYPE_CHECKING:
    from oneway.evaluation import Outcome, ReleaseRecord


@command
def demo(
    data: Annotated[
        str, typer.Option(help="digits: 5,000 bundled digits. mnist: all 70,000.")
    ] = "digits",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with mnist.npz or the four IDX files."), Shares()
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records, page, table and picture. [runs/demo-DATA]"),
        Writes(("records.jsonl", "report.html", "table.md", "reconstructions.png")),
    ] = None,
    cache: Cache = CACHE,
    device: Device = "auto",
    no_images: NoImages = False,
    as_json: AsJson = False,
) -> None:
    """Invert a classifier's scores, defend them, and show what still leaks.

    Trains a target on real digits, the defender's surrogate inverter, and attackers. Releases
    scores undefended, through a codebook, with the paper's noise, and as labels only, and attacks
    each release. Writes a page to read (report.html), a table and a picture. Networks are cached: a
    rerun resumes.

    Exits 1 if a label changed in a defended release.

    For example:

        oneway demo

        oneway demo --data mnist --data-root ~/datasets
    """
    from oneway.benchmark import Experiment, bundled_spec, count_stages, gallery_path, summarise
    from oneway.data import load_dataset
    from oneway.evaluation import Store, write_records
    from oneway.files import atomic_file, write_npz
    from oneway.report.experiments import costs_table, summary_table
    from oneway.report.figure import draw_reconstructions
    from oneway.report.findings import report_lines

    device_used = choose_device(device)
    dataset = load_dataset(data, data_root)
    spec = bundled_spec(f"demo-{data}")
    folder = out or Path("runs") / spec.name
    with progress(count_stages(spec)) as report:
        store = Store(cache)
        experiment = Experiment(spec, dataset, store, device=device_used, report=report)
        outcomes = list(experiment.run())
        records = [outcome.record for outcome in outcomes]
        write_records(folder / "records.jsonl", records)
        galleries = {outcome.record.cell: experiment.gallery(outcome) for outcome in outcomes}
        for cell, images in galleries.items():
            write_npz(gallery_path(store, cell), images)
        (figure := folder / "reconstructions.png").unlink(missing_ok=True)
        if not no_images:
            title = f"What scores give away: {data}, mean squared error per pixel of each attack"
            draw_reconstructions(_rows(outcomes, galleries), figure, title)
    page_of_records(records, folder / "report.html", cache, no_images=no_images)
    summaries = summarise(records)
    table = summary_table(summaries, f"{spec.name}, seed {spec.seed}")
    lines = report_lines(summaries)
    bullets = "".join(f"- {line}\n" for line in lines)
    text = "\n".join((table.markdown(), bullets, costs_table(summaries).markdown()))
    with atomic_file(folder / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    if as_json:
        print_json([record.to_json() for record in records])
    else:
        print_table(table, lines)
    pictures = "" if no_images else " and reconstructions.png"
    typer.echo(f"Wrote {folder}/report.html, records.jsonl, table.md{pictures}", err=as_json)
    raise typer.Exit(1 if any(record.label_changes for record in records) else 0)


def _rows(outcomes: "list[Outcome[ReleaseRecord]]", galleries: Mapping[str, dict[str, Any]]) -> Any:
    """Return the picture's rows: the truth, then what attackers make of each release."""
    rows = {"original": galleries[outcomes[0].record.cell]["truth"]}
    for outcome in outcomes:
        name, images = outcome.record.release, galleries[outcome.record.cell]
        first = outcome is outcomes[0]
        for attack in ("static",) if first else ("static", "retrained"):
            title = "no defense\n" if first else f"{name}\n{attack}"
            rows[f"{title} {outcome.results[attack].error:.4f}"] = images[attack]
    return rows
