"""Two questions about codebooks, answered by certificates: against what, and with images mixed?

A classifier is trained on private digits; codebooks are fitted on auxiliary ones, and certified on
test ones, which neither has seen. First: our cells beside those of k-means, of fixed-size
microaggregation (MDAV) and of rounding, all in probability space and per label. Second: what the
image weight buys at equal distortion.

A query that is alone in its cell counts as read; so do queries whose cell has fewer calibration
members than asked, by every method alike: nobody promised them company. Of our codebooks these are
the labels with too few calibration queries for a cell.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from torch import Tensor

from oneway.benchmark import bundled_spec, load_data
from oneway.benchmark.runner import split_data, trained_target
from oneway.data import no_progress
from oneway.defenses.codebook import FitSettings, cut_calibration, merge_calibration
from oneway.defenses.codebook.fit import RATE_WEIGHTS
from oneway.defenses.codebook.measures import bits_beyond_label, error_shares
from oneway.evaluation import Store
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.releases import release

WEIGHTS = (0.0, 3.0, 10.0, 30.0, 100.0)
CLUSTERS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (5, 10, 20, 50, 100, 200)

Row = dict[str, Any]
Encode = Callable[[Tensor, int], Tensor]
"""A label's rows and the label, to centers of the label."""


def mdav(rows: Tensor, size: int) -> list[Tensor]:
    """Group rows by fixed-size microaggregation: the farthest from the mean, with its nearest.

    Source: Domingo-Ferrer & Mateo-Sanz, IEEE Transactions on Knowledge and Data Engineering 14,
    2002.
    """
    left, groups = torch.arange(len(rows)), list[Tensor]()
    while len(left) >= 2 * size:
        own = rows[left]
        far = (own - own.mean(0)).square().sum(1).argmax()
        near = (own - own[far]).square().sum(1).argsort()
        groups.append(left[near[:size]])
        left = left[near[size:]]
    return [*groups, left]


def figures(cells: Tensor, released: Tensor, clean: Tensor, images: Tensor, few: Tensor) -> Row:
    """Return what a release moves, and what it certifies; of ``few`` nothing is."""
    values, alone = error_shares(cells, images)
    values = torch.where(few, 0.0, values)
    return {
        "l1_mean": float((released - clean).abs().sum(-1).mean()),
        "certified_error": float(values.mean()),
        "alone_or_few": float((alone | few).double().mean()),
        "bits": bits_beyond_label(cells, clean.argmax(-1)),
    }


def by_centers(fitting: Tensor, clean: Tensor, images: Tensor, members: int, encode: Encode) -> Row:
    """Judge a release of the nearest center of each label."""
    own, labels = fitting.argmax(-1), clean.argmax(-1)
    cells, released = torch.zeros_like(labels), torch.zeros_like(clean)
    few, base = torch.zeros_like(labels, dtype=torch.bool), 0
    for label in range(clean.shape[-1]):
        rows, asked = fitting[own == label], labels == label
        centers = encode(rows, label)
        counts = torch.cdist(rows, centers).argmin(1).bincount(minlength=len(centers))
        near = torch.cdist(clean[asked], centers).argmin(1)
        cells[asked], released[asked] = base + near, centers[near]
        few[asked] = counts[near] < members
        base += len(centers)
    return figures(cells, released, clean, images, few)


def rivals(fitting: Tensor, clean: Tensor, images: Tensor, members: int) -> Iterator[Row]:
    """Yield figures of k-means, microaggregation and rounding."""
    for count in CLUSTERS:

        def means(rows: Tensor, label: int, count: int = count) -> Tensor:
            most = min(count, len(rows.unique(dim=0)))
            found = KMeans(most, n_init=3, random_state=label).fit(rows.numpy())
            return torch.from_numpy(found.cluster_centers_)

        row = by_centers(fitting, clean, images, members, means)
        yield {"method": "k-means", "option": count, **row}
    for size in SIZES:

        def groups(rows: Tensor, _: int, size: int = size) -> Tensor:
            return torch.stack([rows[group].mean(0) for group in mdav(rows, size)])

        row = by_centers(fitting, clean, images, members, groups)
        yield {"method": "microaggregation", "option": size, **row}
    for decimals in (1, 2, 3):
        released = release(clean.log(), dtype=torch.float64, decimals=decimals)
        cells = released.unique(dim=0, return_inverse=True)[1]
        row = figures(cells, released, clean, images, torch.zeros_like(cells, dtype=torch.bool))
        yield {"method": "rounding", "option": decimals, **row}


def ours(
    fitting: Tensor, asked: Tensor, own: Tensor, images: Tensor, members: int, weight: float
) -> Iterator[Row]:
    """Yield figures of our codebooks, for all rate weights."""
    settings = FitSettings(min_members=members, image_weight=weight)
    calibration = cut_calibration(fitting, settings, own)
    clean = asked.double().softmax(-1)
    for rate_weight in RATE_WEIGHTS:
        book = merge_calibration(calibration, rate_weight, weight)
        cells = book(asked)
        few = book.members[cells] < members
        row = figures(cells, book.expand(book.values, cells), clean, images, few)
        told = {"method": "codebook", "option": str(rate_weight), "image_weight": weight}
        yield {**told, **row}


def best_within(rows: list[Row], limit: float) -> str:
    """Return the best certified error among rows within a distortion."""
    found = [row["certified_error"] for row in rows if row["l1_mean"] <= limit]
    return f"{max(found):.4f}" if found else "-"


def show(console: Console, title: str, groups: dict[str, list[Row]], limits: list[float]) -> None:
    """Print the best certified error of each group within each distortion."""
    table = Table(title=title, title_justify="left")
    table.add_column("mean L1 at most")
    for limit in limits:
        table.add_column(f"{limit:.3g}", justify="right")
    for name, rows in groups.items():
        table.add_row(name, *(best_within(rows, limit) for limit in limits))
    console.print(table)


def main() -> None:
    """Fit, certify, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="smoothed", help="preset of the leaderboard")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    spec = bundled_spec("leaderboard", options.data)
    dataset, auxiliary = load_data(spec.data, options.data_root)
    splits = split_data(spec, dataset, auxiliary)
    target = trained_target(spec, splits, Store(options.cache), no_progress)
    own = splits.calibration_images if spec.data.calibration else splits.auxiliary_images
    fitting, asked = target.logits(own), target.logits(splits.test_images)
    images, members = splits.test_images.flatten(1), options.members
    fitted, clean = (logits.double().softmax(-1) for logits in (fitting, asked))
    records: list[Row] = list(rivals(fitted, clean, images, members))
    for weight in WEIGHTS:
        records += ours(fitting, asked, own, images, members, weight)
    plain = [row for row in records if row.get("image_weight", 0.0) == 0]
    methods = ("codebook", "k-means", "microaggregation", "rounding")
    by_method = {name: [row for row in plain if row["method"] == name] for name in methods}
    mixed = [row for row in records if row["method"] == "codebook"]
    by_weight = {
        f"image weight {weight:g}": [row for row in mixed if row["image_weight"] == weight]
        for weight in WEIGHTS
    }
    most = max(row["l1_mean"] for row in by_method["codebook"])
    limits = [most * share for share in (0.05, 0.1, 0.25, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)]
    console = Console(width=120)
    show(console, f"Certified error, {options.data}", by_method, limits)
    show(console, "Certified error with images mixed", by_weight, limits)
    if options.out is not None:
        place = {
            "data": options.data,
            "members": members,
            **origin(),
        }
        write_json_lines(options.out, [{**record, **place} for record in records])


if __name__ == "__main__":
    main()
