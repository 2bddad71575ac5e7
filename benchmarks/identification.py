"""How many candidates each release tells apart: computed, and measured by matching.

A classifier is trained on private digits, codebooks are fitted on auxiliary ones, and 750 test
digits are the candidates. ``named`` is exact; ``matching`` is the rate of the attack that asks
about each candidate. What several answers tell is in ``repeats.py``.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Tensor

from oneway.attacks import Matching
from oneway.contracts import AttackerKnowledge
from oneway.defenses.codebook import (
    CodebookRelease,
    FitSettings,
    fit_codebook,
    mean_chance_named,
)
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.metrics import expected_hits
from oneway.releases import release
from oneway.targets import TorchTarget

GALLERY = 750
SIZES = (10, 20, 100, GALLERY)
OWN = 256
"""Rows that the attacker chooses a distance on."""

Row = dict[str, Any]
Answer = Callable[[Tensor], Tensor]
"""Clean scores, to released ones."""


def releases(fitting: Tensor) -> Iterator[tuple[str, int | None, Answer]]:
    """Yield name, cells and answers of each release."""
    num_classes = fitting.shape[-1]

    def label(logits: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(logits.argmax(-1), num_classes).float()

    yield "label alone", num_classes, label
    for name, settings in (
        ("codebook, 20 members, 20 cells", FitSettings(min_members=20, max_cells=20)),
        ("codebook, 20 members", FitSettings(min_members=20)),
        ("codebook, 5 members", FitSettings(min_members=5)),
    ):
        book = fit_codebook(fitting, settings)
        yield name, book.sizes.cells, partial(guarded, CodebookRelease(book))
    for decimals in (2, 3):
        yield f"rounding, {decimals} decimals", None, partial(release, decimals=decimals)
    yield "none", None, release


def guarded(guard: CodebookRelease, logits: Tensor) -> Tensor:
    """Return what a codebook releases of ``(N, K)`` clean scores."""
    return release(guard(logits))


def cells_of(answers: Tensor) -> Tensor:
    """Return a number for each different row."""
    numbers: Tensor = answers.flatten(1).unique(dim=0, return_inverse=True)[1]
    return numbers


def matched(target: TorchTarget, answer: Answer, own: Tensor, images: Tensor) -> float:
    """Return the share of candidates that the attack ``matching`` names."""

    def query(asked: Tensor, count: int) -> Tensor:
        return answer(target.logits(asked)).expand(count, -1, -1)

    released = query(own, 1)[0]
    knowledge = AttackerKnowledge(
        own, None, released, torch.arange(len(own)) < len(own) // 3, query=query
    )
    matcher = Matching()(knowledge, torch.clone)
    assert matcher is not None
    distances = matcher.distances(query(images, 1)[0], matcher.ask(images))
    return float(expected_hits(distances, torch.arange(len(images))).mean())


def measure(target: TorchTarget, fitting: Tensor, own: Tensor, images: Tensor) -> Iterator[Row]:
    """Yield figures of all releases on one target."""
    logits = target.logits(images)
    for name, cells, answer in releases(fitting):
        released = answer(logits)
        numbers = cells_of(released)
        row: Row = {"release": name, "cells": cells}
        row |= {f"named_{size}": mean_chance_named(numbers, size) for size in SIZES}
        row["matching"] = matched(target, answer, own, images)
        row["l1_mean"] = float((released - logits.softmax(-1)).abs().sum(-1).mean())
        yield row


def main() -> None:
    """Measure all releases, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin([Matching.name])
    for name in options.data:
        target, splits = trained(name, options.cache)
        own = splits.auxiliary_images
        fitting = target.logits(own)
        for row in measure(target, fitting, own[:OWN], splits.test_images[:GALLERY]):
            records.append({"data": name, **row, **place})
            console.print(name, {key: row[key] for key in row})
    if options.out is not None:
        write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
