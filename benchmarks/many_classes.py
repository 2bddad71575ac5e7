"""Many classes, few calibration queries of each: what levels that labels share cost and hide.

``people``: 250 people at 64x64, 1,000 calibration queries, other people's pictures for the
attacker, 1,000 queries of the test set. ``synthetic``: K classes on a sphere, in groups that are
alike; queries are noisy classes, and scores are their cosines, scaled. Distances are means over
queries that nothing was fitted to.

Errors are mean squared errors per pixel of kernel ridge regression from released vectors, trained
on all auxiliary pictures: exact, and fast, since pictures with equal answers count as their mean
with a weight. The lowest of four regressions on the test queries counts, which favors the attacker.
G stands beside the clean error and the label's of the leaderboard's record.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Tensor

from oneway.attacks.kernel_ridge import KERNELS
from oneway.attacks.label_means import group_sums
from oneway.defenses.codebook import (
    Codebook,
    FitSettings,
    cut_calibration,
    mean_chance_named,
    merge_calibration,
)
from oneway.evaluation.records import origin
from oneway.evaluation.store import read_json_lines, write_json_lines
from oneway.inversion import INPUT_TRANSFORMS
from oneway.releases import release

LEVELS = (1, 2, 4, 8, 16)
CANDIDATES = 750
LENGTHS, PENALTIES = (0.5, 1.0, 2.0, 4.0), (0.3, 1.0, 3.0, 10.0, 30.0)
"""Length scales of kernels, in median distances, and ridge penalties: held-out pictures choose."""

DIRECTIONS = 64
"""Random directions of the pictures that choose length scale and penalty."""

PULL = 8.0
"""Pictures that the mean of all counts as in the mean of each label."""

SYNTHETIC_TEST = 2000
FEATURES, LIKENESS, NOISE, SCALE = 64, 0.6, 1.2, 24.0
"""Dimensions; share of a class that its group has; noise beside a class; scale of cosines."""

Row = dict[str, Any]
Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scores:
    """Clean scores of the three parties, and pictures where there are any."""

    fitting: Tensor
    asked: Tensor
    own: Tensor | None = None
    own_images: Tensor | None = None
    images: Tensor | None = None


def people(data_root: Path | None, cache: Path, *, attack: bool) -> Scores:
    """Return the scores of the preset ``people``, with pictures if they are to be attacked."""
    target, splits = trained("people", cache, data_root=data_root)

    def scores(images: Tensor) -> Tensor:
        return torch.cat([target.logits(part) for part in images.split(256)])

    found = Scores(scores(splits.calibration_images), scores(splits.test_images))
    if not attack:
        return found
    own = splits.auxiliary_images
    return replace(found, own=scores(own), own_images=own, images=splits.test_images)


def synthetic(num_classes: int, per_label: int) -> Scores:
    """Return scores of classes in groups of ten; see the module."""
    generator = torch.Generator().manual_seed(0)

    def on_sphere(rows: Tensor) -> Tensor:
        return rows / rows.square().sum(-1, keepdim=True).sqrt()

    def drawn(count: int) -> Tensor:
        return on_sphere(torch.randn(count, FEATURES, generator=generator))

    groups = drawn(-(-num_classes // 10)).repeat_interleave(10, 0)[:num_classes]
    classes = on_sphere(LIKENESS * groups + (1 - LIKENESS) * drawn(num_classes))
    total = per_label * num_classes + SYNTHETIC_TEST
    shown = torch.randint(num_classes, (total,), generator=generator)
    strength = NOISE * 2 * torch.rand(total, 1, generator=generator)
    queries = on_sphere(classes[shown] + strength * drawn(total))
    logits = SCALE * queries @ classes.mT
    return Scores(logits[SYNTHETIC_TEST:], logits[:SYNTHETIC_TEST])


def releases(fitting: Tensor, members: int) -> Iterator[tuple[str, int | None, Answer]]:
    """Yield name, cells and answers of each release."""
    num_classes = fitting.shape[-1]
    top = float(fitting.softmax(-1).amax(-1).mean())

    def even(logits: Tensor) -> Tensor:
        rows = torch.full_like(logits, (1 - top) / (num_classes - 1))
        return rows.scatter(-1, logits.argmax(-1, keepdim=True), top)

    yield "none", None, release
    yield "label alone, even rest", num_classes, even
    for explicit in (num_classes, 32):
        settings = FitSettings(
            min_members=members,
            rate_weight=0.0,
            center="median",
            shared_levels=max(LEVELS),
            explicit_classes=explicit,
        )
        calibration = cut_calibration(fitting, settings)
        for levels in LEVELS:
            chosen = replace(calibration, settings=replace(settings, shared_levels=levels))
            book = merge_calibration(chosen, 0.0)
            stored = "all" if explicit == num_classes else explicit
            name = f"{levels} levels, {stored} classes stored"
            yield name, book.sizes.cells, partial(answers, book)
    yield "rounding, 1 decimal", None, partial(release, decimals=1)


def answers(book: Codebook, logits: Tensor) -> Tensor:
    """Return what a table releases of ``(N, K)`` clean scores."""
    return book.expand(book.values, book(logits)).float()


def attacked(scores: Scores, answer: Answer) -> float:
    """Return the lowest error of four regressions on released vectors; see the module."""
    assert scores.own is not None
    assert scores.own_images is not None
    assert scores.images is not None
    own, truth = scores.own_images.flatten(1), scores.images.flatten(1)
    rows = torch.cat([answer(scores.own), answer(scores.asked)])
    vectors, cells = rows.unique(dim=0, return_inverse=True)
    held = torch.arange(len(own)) % 8 == 0
    known, judged, asked = cells[: len(own)][~held], cells[: len(own)][held], cells[len(own) :]
    label = vectors.argmax(-1)
    sums, counts = group_sums(own[~held], label[known], vectors.shape[-1])
    means = (sums + PULL * own[~held].mean(0)) / (counts.unsqueeze(-1) + PULL)
    left, owned = group_sums(own[~held] - means[label[known]], known, len(vectors))
    used = owned.nonzero()[:, 0]
    left = left[used] / owned[used].unsqueeze(-1)
    directions = torch.randn(own.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0))
    few, aim, errors = left @ directions, (own[held] - means[label[judged]]) @ directions, []
    for transform in ("within-label", "standardized"):
        features = INPUT_TRANSFORMS[transform](vectors.shape[-1])
        features.fit(vectors[known])
        places = features(vectors).double()
        for kernel in KERNELS.values():
            apart = torch.cdist(places, places[used], kernel.norm)
            unit = apart[used][apart[used] > 0].median()
            choices = [
                (kernel.value(apart / (length * unit)), penalty / owned[used])
                for length in LENGTHS
                for penalty in PENALTIES
            ]
            found = [_regressed(gram, used, penalty, few)[judged] for gram, penalty in choices]
            best = min(range(len(found)), key=_errors(found, aim).__getitem__)
            guess = _regressed(choices[best][0], used, choices[best][1], left)[asked]
            errors.append(float((guess + means[label[asked]] - truth).square().mean()))
    return min(errors)


def _errors(guesses: list[Tensor], aim: Tensor) -> list[float]:
    return [float((guess - aim).square().mean()) for guess in guesses]


def _regressed(gram: Tensor, used: Tensor, penalties: Tensor, aims: Tensor) -> Tensor:
    """Return ``(C, D)`` predictions of all cells from the ``(U, D)`` means of the used ones."""
    factor = torch.linalg.cholesky(gram[used] + penalties.diag().double())
    return (gram @ torch.cholesky_solve(aims.double(), factor)).float()


def measure(scores: Scores, members: int) -> Iterator[Row]:
    """Yield figures of all releases."""
    for name, cells, answer in releases(scores.fitting, members):
        released = answer(scores.asked)
        numbers = released.unique(dim=0, return_inverse=True)[1]
        row: Row = {"release": name, "cells": cells, "members": members}
        row["per_label"] = None if cells is None else cells / scores.asked.shape[-1]
        row["l1_mean"] = float((released - scores.asked.softmax(-1)).abs().sum(-1).mean())
        row["named"] = mean_chance_named(numbers, CANDIDATES)
        row["error"] = row["closed_gap"] = None
        if scores.images is not None and "all classes" in name:
            row["error"] = attacked(scores, answer)
        yield row


def with_gaps(rows: list[Row], record: Path) -> list[Row]:
    """Add how much of the gap between clean scores and the label each release closes."""
    none = next(each for each in read_json_lines(record) if each["release"] == "none")
    clean, label = none["adaptive_error"], none["errors"]["label-only"]
    for row in rows:
        if row["error"] is not None:
            row["closed_gap"] = (row["error"] - clean) / (label - clean)
    return rows


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument(
        "--record", type=Path, default=Path("results/leaderboard-people-seed0.jsonl")
    )
    parser.add_argument("--attack", action="store_true", help="attack people's releases, too")
    parser.add_argument("--no-people", action="store_true", help="synthetic scores alone")
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    drawn: dict[str, Callable[[], Scores]] = {
        f"synthetic, {count:,} classes, {each} a class": partial(synthetic, count, each)
        for count, each in ((250, 4), (1000, 5), (1000, 20))
    }
    if not options.no_people:
        asked = partial(people, options.data_root, options.cache, attack=options.attack)
        drawn = {"people": asked} | drawn
    records, console = list[Row](), Console(width=200)
    place = origin()
    for name, make in drawn.items():
        rows = list(measure(make(), 20))
        for row in with_gaps(rows, options.record) if name == "people" else rows:
            records.append({"data": name, **row, **place})
            console.print(name, row)
        if options.out is not None:
            write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
