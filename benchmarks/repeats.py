"""What several answers to changed copies of a query reveal, by release and number of answers.

A classifier is trained on private digits, and codebooks are fitted to auxiliary ones. Each query is
asked with 15 changed copies: turned by up to .1 radians, shifted by up to 1.5 pixels, with noise of
.05. ``named`` is the share of 750 queries, and the mean over all sets of 20 of them, that is told
apart by an attacker who can make the same copies of each: exact for these copies. ``error`` is that
of a mixture of kernel ridge regressions on the mean answer and on the mean log answer, of codebooks
on the share of each cell; fitted to 400 auxiliary queries with as many answers. Better attacks may
exist. G compares with the same attack on one clean answer (0) and on one label (1).

``remembered`` is a server that keeps what it has told a client: scores of the same label that lie
near others which it answered before get that answer again. A client of the copies' rows asks about
one query and its copies. Four clients share a query's copies evenly in ``named_16_by_4_clients``;
in ``named_by_others`` another user of the same client asks about 50 pictures of their own after a
query, whose answer they do not see. ``l1_busy`` is of a client who asks about all queries.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from oneway.attacks import KernelRidge, Stack
from oneway.attacks.averaging import mean_answer
from oneway.defenses.codebook import (
    CodebookRelease,
    FitSettings,
    chance_named,
    cut_calibration,
    mean_chance_named,
    merge_calibration,
)
from oneway.defenses.codebook.composition import ANSWERS, WARD, largest_share, sequences
from oneway.defenses.codebook.fit import Calibration
from oneway.evaluation.records import numerics_of, origin
from oneway.evaluation.store import write_json_lines
from oneway.evaluation.yardsticks import ridge_errors
from oneway.releases import release
from oneway.targets import ask_variants

QUERIES, ROWS = 750, 400
"""Queries that are told apart, and auxiliary rows that attacks are fitted to."""

GRADED = 400
"""Queries that attacks are graded on."""

RADII = (0.1, 0.3, 0.5, 2.0)
"""L1 distances of probabilities within which an answer is remembered."""

CLIENTS, PROBES = 4, 50
"""Clients who share the copies of a query, and queries of another user of the same client."""

CODEBOOKS = {
    "codebook, 5 members": FitSettings(min_members=5, rate_weight=0.003),
    "codebook, 20 members": FitSettings(),
    "codebook, 20 members, 20 cells": FitSettings(max_cells=20),
    "codebook, 20 members, rate .05": FitSettings(rate_weight=0.05),
    "codebook, 20 members, rate .1": FitSettings(rate_weight=0.1),
    "codebook, 20 members, variants .1": FitSettings(variant_weight=0.1),
    "codebook, 20 members, variants .3": FitSettings(variant_weight=0.3),
    "label alone": FitSettings(rate_weight=math.inf),
}

REMEMBERED = "codebook, 20 members"
"""The codebook whose answers are remembered, too."""

BESIDE = (
    REMEMBERED,
    "codebook, 20 members, rate .05",
    "codebook, 20 members, variants .1",
    "codebook, 20 members, variants .3",
    "label alone",
)
"""Releases that a memory is compared with."""

ON_LEADERBOARD = {
    "none": "none",
    "rounding, 2 decimals": "rounding, 2 decimals",
    "codebook, 5 members": "codebook, 5 members",
    "codebook, 20 members": "codebook, 20 members",
    "codebook, 20 members, rate .1": "codebook, 20 members, fewer bits",
    "label alone": "label only",
}
"""What the leaderboard calls releases with the same options."""

Row = dict[str, Any]
Answer = Callable[[Tensor], Tensor]
"""``(N, m, K)`` clean scores of N clients with m queries each, in their order, to released ones."""


def remembered(guard: CodebookRelease, radius: float, clean: Tensor) -> Tensor:
    """Return ``(N, m, K)`` answers to N clients with a memory each, of what they were told before.

    Scores get the answer to the nearest ones of the same label that were answered by their own
    cell, if these are within ``radius``.
    """
    own, rows, labels = guard.probabilities(clean), clean.softmax(-1), clean.argmax(-1)
    told, kept = own.clone(), torch.zeros(labels.shape, dtype=torch.bool)
    for place in range(labels.shape[1]):
        before = slice(0, place)
        apart = (rows[:, before] - rows[:, place, None]).abs().sum(-1)
        apart[~kept[:, before] | (labels[:, before] != labels[:, place, None])] = torch.inf
        kept[:, place] = True
        if place:
            near = apart.min(1)
            again = (near.values <= radius).nonzero()[:, 0]
            told[again, place] = own[again, near.indices[again]]
            kept[again, place] = False
    return told


def releases(logits: Tensor, variants: Tensor) -> Iterator[tuple[str, int | None, Answer]]:
    """Yield name, cells and answers of each release."""
    yield "none", None, release
    yield "rounding, 2 decimals", None, lambda scores: release(scores, decimals=2)
    cuts: dict[int, Calibration] = {}
    for name, settings in CODEBOOKS.items():
        members = settings.min_members
        if members not in cuts:
            with_crossings = replace(settings, variant_weight=1.0)
            cuts[members] = cut_calibration(logits, with_crossings, variants=variants)
        calibration = replace(cuts[members], settings=settings)
        book = merge_calibration(calibration, settings.rate_weight)
        guard = CodebookRelease(book)
        yield name, book.sizes.cells, guard.probabilities
        if name == REMEMBERED:
            for radius in RADII:
                told = f"{name}, remembered within {radius:g}"
                yield told, book.sizes.cells, partial(remembered, guard, radius)


def features(answers: Tensor, table: Tensor | None) -> list[Tensor]:
    """Return what an attacker reads of ``(N, m, K)`` answers, each ``(N, F)``.

    Args:
        answers: Released confidences.
        table: ``(C, K)`` the vectors that a codebook released; None for other releases.
    """
    mean = answers.mean(1)
    if answers.shape[1] == 1:
        return [mean]
    if table is None:
        return [mean, mean_answer(answers.transpose(0, 1))]
    cells = (answers.unsqueeze(-2) - table).abs().sum(-1).argmin(-1)
    return [mean, one_hot(cells, len(table)).float().mean(1)]


def told_apart(asked: Tensor, cells: int | None) -> Row:
    """Return how many queries ``(N, m, K)`` answers name; ``cells`` are those of a codebook."""
    row: Row = {}
    numbers = sequences(asked.flatten(0, 1)).view(asked.shape[:2])
    for count in ANSWERS:
        apart = sequences(numbers[:, :count])
        row[f"named_{count}"] = chance_named(apart)
        row[f"named_of_{WARD}_{count}"] = mean_chance_named(apart, WARD)
        row[f"most_{count}"] = None if cells is None else largest_share(len(asked), cells, count)
    return row


def attacked(
    answers: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], *, has_cells: bool
) -> Row:
    """Return the errors of attacks on one release, and their versions.

    Args:
        answers: ``(n, m, K)`` of the attacker's rows, and ``(N, m, K)`` of the queries.
        images: Those of both.
        has_cells: Whether the release is a codebook.
    """
    row, least = Row(numerics=numerics_of([KernelRidge.name, Stack.name])), 1.0
    table = torch.cat(answers).flatten(0, 1).unique(dim=0) if has_cells else None
    for count in ANSWERS:
        parts = (answers[0][:ROWS], answers[1][:GRADED])
        known = list(zip(*(features(each[:, :count], table) for each in parts), strict=True))
        found = ridge_errors(known, images[0][:ROWS], images[1][:GRADED])
        least = min(least, float(found.mean()))
        row[f"error_{count}"] = least
    return row


def with_memory(answer: Answer, clean: Tensor, probes: Tensor) -> Row:
    """Return figures that a memory of answers changes.

    Args:
        answer: The release.
        clean: ``(N, m, K)`` clean scores of queries and their copies.
        probes: ``(P, K)`` those of another user's queries.
    """
    count, copies, classes = clean.shape
    shared = answer(clean.reshape(count * CLIENTS, copies // CLIENTS, classes))
    after = torch.cat([clean[:, :1], probes.expand(count, -1, -1)], 1)
    first, rows = clean[:, 0], clean.softmax(-1)
    return {
        "l1_copies": float((answer(clean) - rows).abs().sum(-1).mean()),
        "l1_busy": float((answer(first.unsqueeze(0))[0] - rows[:, 0]).abs().sum(-1).mean()),
        f"named_{copies}_by_{CLIENTS}_clients": named(shared.reshape(clean.shape)),
        "named_by_others": named(answer(after)[:, 1:]),
    }


def named(answers: Tensor) -> float:
    """Return the share of queries that is told apart by ``(N, m, K)`` answers."""
    numbers = sequences(answers.flatten(0, 1)).view(answers.shape[:2])
    return chance_named(sequences(numbers))


def measured(name: str, cache: Path, seed: int) -> list[Row]:
    """Return a record for each release of one data set, from clean scores to the label alone."""
    target, splits = trained(name, cache)
    generator = Generator().manual_seed(seed)
    images = splits.auxiliary_images, splits.test_images[:QUERIES]
    clean = [
        torch.cat([target.logits(each).unsqueeze(1), ask_variants(target, each, 15, generator)], 1)
        for each in images
    ]
    rows = list[Row]()
    for name_of_release, cells, answer in releases(clean[0][:, 0], clean[0][:, 1:]):
        own, asked = answer(clean[0][:ROWS]), answer(clean[1])
        row: Row = {"data": name, "release": name_of_release, "seed": seed, "cells": cells}
        l1 = (asked[:, 0] - clean[1][:, 0].softmax(-1)).abs().sum(-1)
        row |= {"l1_mean": float(l1.mean())}
        if name_of_release in ON_LEADERBOARD:
            row["leaderboard"] = ON_LEADERBOARD[name_of_release]
        if name_of_release in BESIDE or isinstance(answer, partial):
            row |= with_memory(answer, clean[1], clean[0][-PROBES:, 0])
        row |= told_apart(asked, cells)
        if not isinstance(answer, partial):
            row |= attacked((own, asked), images, has_cells=cells is not None)
        rows.append(row)
    clean_error, label = rows[0]["error_1"], rows[-1]["error_1"]
    for row in rows:
        for count in ANSWERS if "error_1" in row else ():
            row[f"gap_{count}"] = (row[f"error_{count}"] - clean_error) / (label - clean_error)
    return rows


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    place = origin()
    records, console = list[Row](), Console(width=160)
    for name in options.data:
        for row in measured(name, options.cache, options.seed):
            records.append({**row, **place})
            console.print({key: row[key] for key in row})
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
