"""How near a codebook's distortion is to the best that so few vectors allow, in L1.

Beside our cells at rate weight 0 with medians: k-medians in L1 (20 restarts), and ModelGuard's
offline quantiser (farthest points until all scores are within a cap, then centers moved). Theirs
are merged, smallest first into the nearest center, until each center has ``members`` distinct
queries, as ours have. Distances are means over the rows that all are fitted to, and over others.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Generator, Tensor

from oneway.defenses.codebook import FitSettings, cut_calibration, merge_calibration
from oneway.defenses.codebook.fit import center_of
from oneway.evaluation.records import environment, source_commit
from oneway.evaluation.store import write_json_lines

CLUSTERS = (1, 2, 4, 8, 16, 32)
CAPS = (1.2, 0.8, 0.5, 0.3, 0.2, 0.1)
RESTARTS, STEPS = 20, 25
"""Random starts of k-medians for each label, and steps of each, at most."""

Row = dict[str, Any]


def medians(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the ``(count, W)`` medians of the rows of each place, scaled to sum to 1."""
    return torch.stack([center_of(rows[places == place], "median") for place in range(count)])


def nearest(rows: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's L1 distance from the nearest of the centers, and its number."""
    least = torch.cdist(rows, centers, p=1).min(1)
    return least.values, least.indices


def improved(rows: Tensor, centers: Tensor) -> Tensor:
    """Move centers to the medians of their rows until nothing changes; empty ones are dropped."""
    before = torch.inf
    for _ in range(STEPS):
        apart, places = nearest(rows, centers)
        if float(apart.sum()) >= before - 1e-12:
            break
        before = float(apart.sum())
        places = places.unique(return_inverse=True)[1]
        centers = medians(rows, places, int(places.max()) + 1)
    return centers


def merged(rows: Tensor, centers: Tensor, members: int) -> Tensor:
    """Drop the center of fewest rows, and move the others, until each has enough rows."""
    while len(centers) > 1:
        counts = nearest(rows, centers)[1].bincount(minlength=len(centers))
        least = int(counts.argmin())
        if counts[least] >= members:
            break
        centers = torch.cat([centers[:least], centers[least + 1 :]])
        places = nearest(rows, centers)[1].unique(return_inverse=True)[1]
        centers = medians(rows, places, int(places.max()) + 1)
    return centers


def k_medians(rows: Tensor, count: int, members: int, generator: Generator) -> Tensor:
    """Return the best centers of ``RESTARTS`` starts, each merged to enough members."""
    best, least = rows[:1], torch.inf
    for _ in range(RESTARTS):
        start = rows[torch.randperm(len(rows), generator=generator)[:count]]
        centers = merged(rows, improved(rows, start), members)
        total = float(nearest(rows, centers)[0].sum())
        if total < least:
            best, least = centers, total
    return best


def within_cap(rows: Tensor, cap: float, members: int) -> Tensor:
    """Return ModelGuard's offline centers: farthest points until all rows are within a cap."""
    centers = center_of(rows, "median").unsqueeze(0)
    while len(centers) < len(rows):
        apart = nearest(rows, centers)[0]
        if float(apart.max()) <= cap:
            break
        centers = torch.cat([centers, rows[apart.argmax()].unsqueeze(0)])
    return merged(rows, improved(rows, centers), members)


def ours(fitting: Tensor, members: int) -> Iterator[tuple[str, float, int, Any]]:
    """Yield our tables, from few cells to all that members allow."""
    settings = FitSettings(min_members=members, rate_weight=0.0, center="median")
    calibration = cut_calibration(fitting, settings)
    most = merge_calibration(calibration, 0.0)
    sizes = {fitting.shape[-1] * count for count in CLUSTERS} | {most.sizes.cells}
    for size in sorted(sizes):
        if size <= most.sizes.cells:
            limited = replace(calibration, settings=replace(settings, max_cells=size))
            book = merge_calibration(limited, 0.0)
            yield "codebook", size, book.sizes.cells, book


def measure(fitting: Tensor, asked: Tensor, members: int) -> Iterator[Row]:
    """Yield the distances of all methods."""
    parts = [logits.double().softmax(-1) for logits in (fitting, asked)]
    labels = [rows.argmax(-1) for rows in parts]

    def row(method: str, option: float, cells: int, apart: list[float]) -> Row:
        told = {"method": method, "option": option, "members": members, "cells": cells}
        return {**told, "l1_fitted": apart[0], "l1_mean": apart[1]}

    for method, option, cells, book in ours(fitting, members):
        apart = []
        for logits, rows in zip((fitting, asked), parts, strict=True):
            released = book.expand(book.values, book(logits))
            apart.append(float((released - rows).abs().sum(-1).mean()))
        yield row(method, option, cells, apart)
    few = labels[0].bincount(minlength=fitting.shape[-1])
    if (few < 2 * members).any():
        return
    for method, options in (("k-medians", CLUSTERS), ("ModelGuard, offline", CAPS)):
        for option in options:
            cells, totals = 0, [0.0, 0.0]
            for label in range(fitting.shape[-1]):
                own = parts[0][labels[0] == label]
                generator = torch.Generator().manual_seed(label)
                centers = (
                    k_medians(own, int(option), members, generator)
                    if method == "k-medians"
                    else within_cap(own, option, members)
                )
                cells += len(centers)
                for place in (0, 1):
                    rows = parts[place][labels[place] == label]
                    totals[place] += float(nearest(rows, centers)[0].sum())
            means = [total / len(rows) for total, rows in zip(totals, parts, strict=True)]
            yield row(method, option, cells, means)


def with_excess(rows: list[Row]) -> list[Row]:
    """Add how much more our tables move the fitted rows than the best rival of as few cells."""
    for row in rows:
        best = [
            each["l1_fitted"]
            for each in rows
            if each["method"] != "codebook" and each["cells"] <= row["cells"]
        ]
        is_ours = row["method"] == "codebook"
        row["excess"] = row["l1_fitted"] / min(best) - 1 if is_ours and best else None
    return rows


def main() -> None:
    """Measure all methods, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--members", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = {"environment": asdict(environment(torch.device("cpu"))), "commit": source_commit()}
    for name in options.data:
        target, splits = trained(name, options.cache, data_root=options.data_root)
        own = (
            splits.calibration_images if len(splits.calibration_images) else splits.auxiliary_images
        )
        fitting, asked = target.logits(own), target.logits(splits.test_images)
        for members in options.members:
            for row in with_excess(list(measure(fitting, asked, members))):
                records.append({"data": name, **row, **place})
                console.print(name, row)
    if options.out is not None:
        write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
