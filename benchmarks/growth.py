"""How time and memory grow with queries, classes, pixels and batch, beside peers at the same job.

All rows run in one process, on one thread, and count its processor time; before each one, memory
that is free goes back to the system. Peers run in the same process: scikit-learn's k-means cuts
each label's confidences into as many cells; ART's postprocessors, top-k, SSD and MemGuard change
the same scores. Rows that a record already has are left out, so that a run that was stopped goes on
where it stopped.
"""

import argparse
import ctypes
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codebook_speed import (
    images_of,
    k_means,
    memory,
    processor_seconds,
    read,
    scores,
)
from rich.console import Console

from oneway.contracts import Defense
from oneway.data.mapped import map_npy
from oneway.defenses import build_defense
from oneway.defenses.class_means import ClassMeans
from oneway.defenses.codebook import CodebookRelease, FitSettings, certify, fit_codebook
from oneway.defenses.trained.memguard import MembershipClassifier
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.releases import guarded_release
from oneway.report.page.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Legend,
    Point,
    plane_chart,
)
from oneway.report.page.render import write_charts
from oneway.report.table import Column, Listing

Row = dict[str, Any]

ROWS: tuple[Row, ...] = (
    *({"job": "fit", "queries": queries, "classes": 10} for queries in (2_000, 8_000, 32_000)),
    *({"job": "fit", "queries": 8_000, "classes": classes} for classes in (30, 100)),
    {"job": "fit", "queries": 200_000, "classes": 100},
    {"job": "fit", "queries": 1_000_000, "classes": 10},
    *(
        {"job": "certify", "queries": queries, "classes": 10, "pixels": 1_024}
        for queries in (2_000, 8_000, 40_000)
    ),
    *(
        {"job": "certify", "queries": 4_000, "classes": 10, "pixels": pixels}
        for pixels in (256, 4_096)
    ),
    *(
        {"job": "fit and certify", "queries": queries, "classes": 10, "pixels": 1_024}
        for queries in (5_000, 20_000, 80_000)
    ),
    {"job": "fit a mapped file", "queries": 1_000_000, "classes": 100},
    *(
        {"job": "release", "batch": batch, "classes": classes}
        for batch, classes in ((1, 10), (16, 10), (128, 10), (16, 100))
    ),
)
"""Jobs and their sizes."""

PEERS = {"k-means": "KMeans", "mini-batch k-means": "MiniBatchKMeans"}
"""Classes of scikit-learn, by name in the chart."""

CALLS = 3
"""Calls of a release, of which the median counts."""


def grown(run: Callable[[], object], data: int) -> Row:
    """Run a job once; return its processor time, and its peak memory over that of its data."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    seconds = processor_seconds(run)
    more = memory("VmHWM") - before
    return {
        "seconds": seconds,
        "data_megabytes": data / 1e6,
        "extra_megabytes": more / 1e6,
        "peak_over_data": 1 + more / data,
    }


def measure_fit(queries: int, classes: int) -> Row:
    """Fit a table, and let k-means make as many cells."""
    logits = scores(queries, classes)
    fit_codebook(logits[:200], FitSettings(min_members=2))  # loads what is loaded once
    row = grown(lambda: fit_codebook(logits), logits.nbytes)
    for peer in PEERS.values():
        row[f"{peer}_over_oneway"] = k_means(logits, peer) / row["seconds"]
    return row


def measure_certify(queries: int, classes: int, pixels: int) -> Row:
    """Certify a table on images."""
    logits = scores(queries, classes)
    images = images_of(logits, pixels)
    book = fit_codebook(logits[:2000])
    certify(book, logits[:200], images[:200])
    return grown(lambda: certify(book, logits, images), logits.nbytes + images.nbytes)


def measure_both(queries: int, classes: int, pixels: int) -> Row:
    """Fit a table to four fifths of the queries, and certify it on images of the others."""
    logits = scores(queries, classes)
    images, generator = images_of(logits, pixels), torch.Generator().manual_seed(0)
    CodebookRelease.fit(logits[:500], images[:500], generator=generator)
    return grown(
        lambda: CodebookRelease.fit(logits, images, generator=generator),
        logits.nbytes + images.nbytes,
    )


def measure_mapped(queries: int, classes: int) -> Row:
    """Fit a table to scores in a file; what is read of it counts as the data in memory."""
    fit_codebook(scores(2000, classes))
    with tempfile.TemporaryDirectory() as folder:
        path, part = Path(folder) / "scores.npy", scores(queries // 20, classes)
        shape = (queries, classes)
        stored = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        noise = torch.Generator().manual_seed(1)
        for rows in np.split(stored, 20):
            rows[:] = part + torch.randn(part.shape, generator=noise) / 4
        del stored, rows
        mapped = map_npy(path)
        assert mapped is not None
        logits = torch.from_numpy(mapped)
        row = grown(lambda: fit_codebook(logits), logits.nbytes)
    # The file was in memory neither before nor beside what was read.
    row["extra_megabytes"] -= row["data_megabytes"]
    row["peak_over_data"] -= 1
    return row


def releases(classes: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return what changes scores, by name; ART's only where it is installed."""
    logits = scores(100 * classes, classes)
    means = ClassMeans(classes)
    means.fit(logits)
    torch.manual_seed(0)
    guards: dict[str, Defense] = {
        "top_k": build_defense("top-k", {"count": 3}, None),
        "SSD": build_defense("ssd", {"label_guarded": True}, None, state=means),
        "MemGuard": build_defense("memguard", {}, None, state=MembershipClassifier(classes)),
    }
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "oneway": CodebookRelease(fit_codebook(logits)).probabilities
    }
    found |= {name: partial(guarded_release, guard) for name, guard in guards.items()}
    try:
        art = import_module("art.defences.postprocessor")
    except ImportError:
        return found
    for name, peer in (
        ("ART_rounding", art.Rounded(decimals=2)),
        ("ART_high_confidence", art.HighConfidence()),
        ("ART_reverse_sigmoid", art.ReverseSigmoid()),
    ):
        found[name] = partial(_asked, peer)
    return found


def _asked(peer: Callable[[Any], object], rows: torch.Tensor) -> object:
    return peer(rows.softmax(-1).numpy())


def measure_release(batch: int, classes: int) -> Row:
    """Time each release on the same scores; they take turns."""
    logits, jobs = scores(batch, classes), releases(classes)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(CALLS + 1):
        for name, job in jobs.items():
            begin = time.process_time()
            job(logits)
            times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    own = medians.pop("oneway")
    return {
        "microseconds_a_query": 1e6 * own / batch,
        **{f"{name}_over_oneway": taken / own for name, taken in medians.items()},
    }


MEASURES: dict[str, Callable[..., Row]] = {
    "fit": measure_fit,
    "certify": measure_certify,
    "fit and certify": measure_both,
    "fit a mapped file": measure_mapped,
    "release": measure_release,
}


def chart(records: list[Row]) -> Chart:
    """Return the chart of fits over queries, beside both k-means."""
    fits = [row for row in records if row["job"] == "fit" and row["classes"] == 10]
    names = {"oneway": "disc", "k-means": "ring", "mini-batch k-means": "diamond"}
    points = [
        Point(
            name,
            row["queries"],
            _seconds(f"{PEERS.get(name)}_over_oneway", row),
            on=name == "oneway",
            shape=shape,
        )
        for row in fits
        for name, shape in names.items()
    ]
    axes = (
        _axis("queries", [row["queries"] for row in fits], upwards=False),
        _axis("processor seconds", [point.up for point in points], upwards=True),
    )
    columns = {"queries": Column(lambda row: row["queries"], ",d")}
    columns["oneway, s"] = Column(lambda row: row["seconds"], ".2f")
    for name, peer in PEERS.items():
        columns[f"{name}, s"] = Column(partial(_seconds, f"{peer}_over_oneway"), ".2f")
    told = "; ".join(f"{each.name}, {each.across:,} queries, {each.up:.2f} s" for each in points)
    return plane_chart(
        "growth",
        "Cutting ten labels' confidences into cells",
        f"Processor seconds over queries, both logarithmic: {told}.",
        points,
        axes,
        lowest=min(point.up for point in points),
        numbers=Listing("Processor seconds of a fit", columns, fits),
        legend=[
            Legend(shape, "strong" if name == "oneway" else "plain", name)
            for name, shape in names.items()
        ],
    )


def _seconds(ratio: str, row: Row) -> float:
    """Return the processor time of a fit, or of the peer with this ratio to it."""
    return float(row["seconds"] * row.get(ratio, 1.0))


def _axis(label: str, values: list[float], *, upwards: bool) -> Axis:
    """Return a logarithmic axis around values."""
    low, high = math.log(min(values) / 1.6), math.log(max(values) * 1.6)
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    ticks = [
        factor * 10.0**decade
        for decade in decades
        for factor in (1, 2, 5)
        if low < math.log(factor * 10.0**decade) < high
    ]

    def at(value: float) -> float:
        share = (math.log(value) - low) / (high - low)
        if upwards:
            return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    return Axis(label, ticks, at)


def main() -> None:
    """Measure what the record lacks, print it, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-growth.jsonl"))
    parser.add_argument("--picture", type=Path, default=None, help="picture, .svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = origin()
    records = read(options.out) if options.out.exists() else []
    for row in ROWS:
        if any(row.items() <= record.items() for record in records):
            continue
        sizes = {name: size for name, size in row.items() if name != "job"}
        found = {**row, **MEASURES[row["job"]](**sizes)}
        records.append({**found, **facts})
        Console(width=140).print(found)
        write_json_lines(options.out, records)
    if options.picture is not None:
        write_charts(options.picture, "How a fit grows with its queries", [chart(records)])


if __name__ == "__main__":
    main()
