"""How near a codebook's distortion is to the best that so few vectors allow, in L1.

Beside our cells at rate weight 0 with medians: k-medians in L1, the best of random starts, and
ModelGuard's offline quantiser (farthest points until all scores are within a cap, then centers
moved; to medians here, and not to means, since L1 counts). Theirs are merged, smallest first into
the nearest center, until each center has ``members`` distinct queries, as ours have. Both make a
label's centers for many numbers and caps; the fewest L1 over all ways to share a number of cells
out to labels is compared, which neither of them offers by itself. Labels with fewer queries than
``members`` are left out. Distances are means over the rows that all are fitted to, and over others.

``nearest`` are our vectors, too, with each row at its label's nearest vector in the place of its
box's; vectors with fewer than ``members`` such rows are dropped, and the others moved.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Generator, Tensor

from oneway.defenses.codebook import FitSettings, cut_calibration, merge_calibration
from oneway.defenses.codebook.boxes import center_of
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines

CLUSTERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CAPS = (1.6, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)
PER_LABEL = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
"""Cells per label, on average, at which all are compared."""

STEPS = 25
"""Steps of k-medians, at most."""

Row = dict[str, Any]


def medians(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the ``(count, W)`` medians of the rows of each place, scaled to sum to 1."""
    return torch.stack([center_of(rows[places == place], "median") for place in range(count)])


def nearest(rows: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's L1 distance from the nearest of the centers, and its number."""
    least = torch.cdist(rows, centers, p=1).min(1)
    return least.values, least.indices


def mean_apart(part: list[Tensor], centers: list[Tensor]) -> float:
    """Return the mean L1 distance of all labels' rows from the nearest of their centers."""
    apart = [nearest(*pair)[0] for pair in zip(part, centers, strict=True)]
    return float(torch.cat(apart).mean())


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


def k_medians(rows: Tensor, members: int, restarts: int, generator: Generator) -> Iterator[Tensor]:
    """Yield centers of every random start, each merged to enough members."""
    for count in CLUSTERS:
        if (count - 1) * members >= len(rows):
            break
        for _ in range(restarts):
            start = rows[torch.randperm(len(rows), generator=generator)[:count]]
            yield merged(rows, improved(rows, start), members)


def within_caps(rows: Tensor, members: int) -> Iterator[Tensor]:
    """Yield ModelGuard's offline centers: farthest points until all rows are within a cap."""
    centers = center_of(rows, "median").unsqueeze(0)
    for cap in CAPS:
        while len(centers) < len(rows):
            apart = nearest(rows, centers)[0]
            if float(apart.max()) <= cap:
                break
            centers = torch.cat([centers, rows[apart.argmax()].unsqueeze(0)])
        yield merged(rows, improved(rows, centers), members)


def shared_out(labels: list[list[Tensor]], fitted: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield, for 0 cells and up, the centers of all labels that fit so few cells best.

    Args:
        labels: For each label, centers to choose from.
        fitted: The rows of each label.
    """
    best: list[tuple[float, list[Tensor]]] = [(0.0, [])]
    for choices, rows in zip(labels, fitted, strict=True):
        costs: dict[int, tuple[float, Tensor]] = {}
        for centers in choices:
            cost = float(nearest(rows, centers)[0].sum())
            if cost < costs.get(len(centers), (torch.inf, rows))[0]:
                costs[len(centers)] = cost, centers
        longer = [(torch.inf, list[Tensor]())] * (len(best) + max(costs))
        for count, (total, chosen) in enumerate(best):
            for more, (cost, centers) in costs.items():
                if total + cost < longer[count + more][0]:
                    longer[count + more] = total + cost, [*chosen, centers]
        best = longer
    least: tuple[float, list[Tensor]] = (torch.inf, [])
    for each in best:
        least = min(least, each, key=lambda pair: pair[0])
        yield least[1]


def rivals(
    parts: list[list[Tensor]], members: int, restarts: int
) -> Iterator[tuple[str, int, list[float]]]:
    """Yield method, cells and mean distances of both rivals, for every number of cells.

    Args:
        parts: The rows of each label that are fitted, and those of others.
        members: Rows of each center, at least.
        restarts: Random starts of k-medians.
    """
    methods: dict[str, Callable[[Tensor, int], Iterator[Tensor]]] = {
        "k_medians": lambda rows, label: k_medians(
            rows, members, restarts, torch.Generator().manual_seed(label)
        ),
        "model_guard": lambda rows, _: within_caps(rows, members),
    }
    for name, method in methods.items():
        labels = [list(method(rows, label)) for label, rows in enumerate(parts[0])]
        for cells, chosen in enumerate(shared_out(labels, parts[0])):
            if chosen:
                yield name, cells, [mean_apart(part, chosen) for part in parts]


def measure(fitting: Tensor, asked: Tensor, members: int, restarts: int) -> Iterator[Row]:
    """Yield the distances of all methods, a row for each number of our cells."""
    counts = fitting.argmax(-1).bincount(minlength=fitting.shape[-1])
    labels = (counts >= members).nonzero()[:, 0]
    kept = [logits[torch.isin(logits.argmax(-1), labels)] for logits in (fitting, asked)]
    parts = [
        [logits[logits.argmax(-1) == label].double().softmax(-1) for label in labels.tolist()]
        for logits in kept
    ]
    settings = FitSettings(
        min_members=members,
        rate_weight=0.0,
        center="median",
        explicit_classes=fitting.shape[-1],
    )
    calibration = cut_calibration(kept[0], settings)
    most, left_out = merge_calibration(calibration, 0.0).sizes.cells, len(counts) - len(labels)
    beside: dict[str, dict[int, list[float]]] = {}
    for name, cells, apart in rivals(parts, members, restarts):
        beside.setdefault(name, {})[cells] = apart
    for size in sorted({min(most, left_out + int(len(labels) * each)) for each in PER_LABEL}):
        limited = replace(calibration, settings=replace(settings, max_cells=size))
        book = merge_calibration(limited, 0.0)
        cells = book.sizes.cells - left_out
        row: Row = {"members": members, "labels": len(labels), "cells": cells}
        for place, logits in zip(("fitted", "mean"), kept, strict=True):
            released = book.expand(book.values, book(logits))
            moved = (released - logits.double().softmax(-1)).abs().sum(-1)
            row[f"l1_{place}"] = float(moved.mean())
        vectors = book.expand(book.values, torch.arange(book.sizes.cells))
        own = [
            merged(rows, vectors[book.labels == label], members)
            for label, rows in zip(labels.tolist(), parts[0], strict=True)
        ]
        row["nearest_cells"] = sum(map(len, own))
        row["nearest_l1_fitted"], row["nearest_l1_mean"] = (mean_apart(part, own) for part in parts)
        best = {"fitted": torch.inf, "mean": torch.inf}
        for name, found in beside.items():
            apart = found[min(cells, max(found))]
            for number, place in enumerate(best):
                row[f"{name}_l1_{place}"] = apart[number]
                best[place] = min(best[place], apart[number])
        row |= {f"excess_{key}": row[f"l1_{key}"] / best[key] - 1 for key in best}
        yield row | {f"nearest_excess_{k}": row[f"nearest_l1_{k}"] / best[k] - 1 for k in best}


def largest(rows: list[Row]) -> Row:
    """Return the largest excesses of a data set's rows with so many members."""
    sizes = [row["cells"] for row in rows]
    summary: Row = {"sizes": f"{min(sizes)} to {max(sizes)}", "members": rows[0]["members"]}
    for excess in ("excess_fitted", "excess_mean", "nearest_excess_fitted", "nearest_excess_mean"):
        summary[f"largest_{excess}"] = max(row[excess] for row in rows)
    return summary


def main() -> None:
    """Measure all methods, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed", "faces"])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--members", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin()
    for name in options.data:
        target, splits = trained(name, options.cache, data_root=options.data_root)
        own = (
            splits.calibration_images if len(splits.calibration_images) else splits.auxiliary_images
        )
        fitting, asked = (
            torch.cat([target.logits(part) for part in images.split(256)])
            for images in (own, splits.test_images)
        )
        for members in options.members:
            rows = list(measure(fitting, asked, members, options.restarts))
            for row in [*rows, largest(rows)]:
                records.append({"data": name, **row, "restarts": options.restarts, **place})
                console.print(name, row)
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
