"""What more calibration queries buy, and what they cost: distortion, cells, identification.

Classifiers are those of the leaderboard's ``digits`` and ``smoothed``; queries are digits of MNIST
that neither they nor their codebooks have seen. ``named`` is the mean over all sets of 750 test
queries. Errors are those of cell means, estimated on the test queries by the variance within cells;
queries that are alone count as read. G compares them with kernel ridge regression on clean scores.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Tensor

from oneway.attacks.kernel_ridge import KernelRidge
from oneway.contracts import AttackerKnowledge
from oneway.data import load_dataset, split_dataset
from oneway.defenses.codebook import (
    FitSettings,
    cut_calibration,
    mean_chance_named,
    merge_calibration,
)
from oneway.defenses.codebook.measures import error_shares
from oneway.defenses.codebook.traffic import query_bytes
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines

TEST, CANDIDATES, ATTACKER_ROWS = 2000, 750, 1000
CAPS = (None, 40)
"""Most cells of the table."""

Row = dict[str, Any]


def clean_error(logits: Tensor, images: Tensor) -> float:
    """Return the lowest error of kernel ridge regressions on clean scores, half of the rows."""
    own, rest = slice(0, len(images) // 2), slice(len(images) // 2, None)
    rows = logits.softmax(-1)
    held_out = torch.arange(len(rows[own])) % 8 == 0
    knowledge = AttackerKnowledge(images[own], rows[own], rows[own], held_out)
    found = KernelRidge().run(knowledge, lambda *_: torch.nn.Identity())
    return min(
        float((each.reconstruct(rows[rest].unsqueeze(0)) - images[rest]).square().mean())
        for each in found.values()
    )


def measure(logits: Tensor, images: Tensor, sizes: list[int]) -> Iterator[Row]:
    """Yield figures by number of calibration queries; the first rows are the test's."""
    asked, shown = logits[:TEST], images[:TEST].flatten(1)
    clean = clean_error(logits[: 2 * ATTACKER_ROWS], images[: 2 * ATTACKER_ROWS])
    label = float(error_shares(asked.argmax(-1), shown)[0].mean())
    for size in sizes:
        calibration = cut_calibration(logits[TEST : TEST + size], FitSettings())
        for cap in CAPS:
            limited = replace(calibration, settings=FitSettings(max_cells=cap))
            book = merge_calibration(limited, limited.settings.rate_weight)
            cells = book(asked)
            released = book.expand(book.values, cells)
            apart = (released - asked.double().softmax(-1)).abs().sum(-1)
            error = float(error_shares(cells, shown)[0].mean())
            yield {
                "queries": size,
                "max_cells": cap,
                "cells": book.sizes.cells,
                "l1_mean": float(apart.mean()),
                "l1_p95": float(apart.quantile(0.95)),
                "named": mean_chance_named(cells, CANDIDATES),
                "at_most": min(1.0, book.sizes.cells / CANDIDATES),
                "error": error,
                "closed_gap": (error - clean) / (label - clean),
            }


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 12000, 40000])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin([KernelRidge.name])
    count = TEST + max(options.sizes)
    # Those that a target was trained on are dropped below.
    mnist = split_dataset(
        load_dataset("mnist", options.data_root),
        private=10,
        auxiliary=count + 2000,
        test=10,
        seed=0,
    )
    for name in options.data:
        target, splits = trained(name, options.cache, data_root=options.data_root)
        known = set(query_bytes(splits.private_images))
        drawn = enumerate(query_bytes(mnist.auxiliary_images))
        fresh = [place for place, one in drawn if one not in known]
        images = mnist.auxiliary_images[fresh[:count]]
        logits = torch.cat([target.logits(part) for part in images.split(512)])
        for row in measure(logits, images, options.sizes):
            records.append({"data": name, **row, **place})
            console.print(name, row)
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
