"""What answers of two versions of a codebook reveal together: a refit of its own, and a refinement.

A classifier is trained on private digits. The old codebook is fitted to one half of the auxiliary
digits. New ones are fitted freely (a refit) or within the cells of the old one (refined): to the
other half, to all auxiliary digits, and to the other half with fewer members. 750 test digits
certify each by itself, and each together with the old one; they are the candidates, too.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Tensor

from oneway.defenses.codebook import (
    Codebook,
    FitSettings,
    JointCodebook,
    certified_error,
    chance_named,
    cut_calibration,
    merge_calibration,
)
from oneway.defenses.codebook.measures import LEVEL, bits_beyond_label, distances
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines

GALLERY = 750
MEMBERS, FEWER = 20, 10

Row = dict[str, Any]


def fitted(logits: Tensor, members: int, older: Codebook | None = None) -> Codebook:
    """Return a codebook, within the cells of an older one if there is one."""
    settings = FitSettings(min_members=members)
    return merge_calibration(cut_calibration(logits, settings, older=older), settings.rate_weight)


def figures(table: Codebook, first: Codebook, logits: Tensor, images: Tensor) -> Row:
    """Return what answers reveal whose cells are those of a table, and the first version's L1."""
    cells, labels = table(logits), logits.argmax(-1)
    error = certified_error(cells, images.flatten(1), LEVEL)
    released = first.expand(first.values, first(logits))
    return {
        "cells": table.sizes.cells,
        "cells_per_label_most": int(table.labels.bincount().max()),
        "named": chance_named(cells),
        "named_most": min(1.0, table.sizes.cells / len(logits)),
        "bits_measured": bits_beyond_label(cells, labels),
        "error": error.estimate,
        "lower_bound": error.lower_bound,
        "l1_mean": float(distances(released, logits)[0].mean()),
    }


def measure(auxiliary: Tensor, logits: Tensor, images: Tensor) -> Iterator[Row]:
    """Yield figures of each version, and of each together with the old one."""
    # Rows lie in the order of their classes.
    order = torch.randperm(len(auxiliary), generator=torch.Generator().manual_seed(0))
    first, second = auxiliary[order].chunk(2)
    old = fitted(first, MEMBERS)
    yield {"release": "old", "fit": "one half"} | figures(old, old, logits, images)
    for rows, fit, members in (
        (second, "other half", MEMBERS),
        (auxiliary, "all", MEMBERS),
        (second, f"other half, {FEWER} members", FEWER),
    ):
        for kind, older in (("refit", None), ("refined", old)):
            new = fitted(rows, members, older)
            both = JointCodebook([new, old])
            yield {"release": kind, "fit": fit} | figures(new, new, logits, images)
            yield {"release": f"old and {kind}", "fit": fit} | figures(both, new, logits, images)


def main() -> None:
    """Measure all versions, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin()
    for name in options.data:
        target, splits = trained(name, options.cache)
        asked = splits.test_images[:GALLERY]
        for row in measure(target.logits(splits.auxiliary_images), target.logits(asked), asked):
            records.append({"data": name, "rows": len(splits.auxiliary_images), **row, **place})
            console.print(name, row)
    if options.out is not None:
        write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
