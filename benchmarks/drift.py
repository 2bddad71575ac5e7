"""How soon a change of the traffic shows in the cells of answers, and how often none does.

Traffic is drawn with replacement from digits that neither target nor codebook has seen, anew for
each calibration and each stream. Beside the test of `oneway serve` stand universal inference
(Dirichlet mixtures of calibration and stream over the largest likelihood of both together), which
has the same guarantee, and the same mixture of the stream over the calibration's shares as if they
were the true ones, which has none.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from presets import trained
from rich.console import Console
from torch import Tensor

from oneway.defenses.codebook import DriftTest, FitSettings, fit_codebook
from oneway.defenses.codebook.drift import LARGEST_BAG
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines

FITTING = 1000
"""Digits that the codebook is fitted to; 2,000 others are the traffic."""

RISK = 0.01
METHODS = ("blocks", "universal", "known")
LONGEST = 2000
"""Answers of a stream."""

SOON = 300
EARLIER = 1_000_000
"""Answers before a change that comes late."""

LOOKS = 50
"""Answers between two looks of the methods that look at whole streams."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Cells of a population as certified, and of changed ones."""

    cells: int
    certified: NDArray[np.int64]
    changed: dict[str, NDArray[np.int64]]


def traffic_of(name: str, cache: Path) -> Traffic:
    """Return the cells of digits, and of digits that are changed."""
    target, splits = trained(name, cache)
    images = torch.cat([splits.auxiliary_images, splits.test_images])
    logits = target.logits(images)
    book = fit_codebook(logits[:FITTING], FitSettings(min_members=20))
    asked, labels = images[FITTING:], logits[FITTING:].argmax(-1)
    clean = book(logits[FITTING:])

    def cells(changed: Tensor) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = book(target.logits(changed)).numpy()
        return numbers

    low = labels < labels.unique().median()
    return Traffic(
        book.sizes.cells,
        clean.numpy(),
        {
            "half contrast": cells(asked / 2),
            "four fifths of the contrast": cells(asked * 0.8),
            "blank": cells(torch.zeros_like(asked[:1])),
            "twice as often labels 0 to 3": torch.cat([clean, clean[low]]).numpy(),
        },
    )


def ours(
    traffic: Traffic,
    counts: list[int],
    stream: NDArray[np.int64],
    generator: np.random.Generator,
    *,
    late: bool,
) -> float:
    """Return after how many answers `oneway serve` sees a change; infinity: never."""
    test = DriftTest(counts, risk=RISK, generator=generator)
    if late:
        state, shares = test.as_json(), np.bincount(traffic.certified, minlength=traffic.cells)
        for gambler in state["gamblers"]:
            gambler["blocks"] = EARLIER // gambler["size"]
            gambler["bag"] = generator.multinomial(LARGEST_BAG, shares / shares.sum()).tolist()
        test.resume(state)
    found = test.see(torch.from_numpy(stream))
    return math.inf if found is None else float(found.answers)


def log_mixture(counts: Tensor) -> Tensor:
    """Return the log probability of sequences under the Dirichlet mixture with parameters 1/2.

    Args:
        counts: ``(..., C)``.
    """
    half = torch.tensor(0.5, dtype=torch.float64)
    size, total = counts.shape[-1], counts.sum(-1)
    return (torch.lgamma(counts + half) - torch.lgamma(half)).sum(-1) - (
        torch.lgamma(total + size / 2) - torch.lgamma(size * half)
    )


def log_likelihood(counts: Tensor, shares: Tensor) -> Tensor:
    """Return the log probability of sequences with ``(..., C)`` counts under shares."""
    return torch.xlogy(counts, shares).sum(-1)


def others(counts: list[int], stream: NDArray[np.int64]) -> dict[str, float]:
    """Return after how many answers other tests see a change."""
    reference = torch.tensor(counts).double()
    hot = torch.nn.functional.one_hot(torch.from_numpy(stream), len(counts)).double()
    seen = hot.cumsum(0)[LOOKS - 1 :: LOOKS]
    pooled, known = reference + seen, reference + 0.5
    mixtures = log_mixture(seen)
    evidence = {
        "universal": log_mixture(reference)
        + mixtures
        - log_likelihood(pooled, pooled / pooled.sum(-1, keepdim=True)),
        "known": mixtures - log_likelihood(seen, known / known.sum()),
    }
    found = {}
    for name, logs in evidence.items():
        places = (logs >= math.log(1 / RISK)).nonzero()
        found[name] = LOOKS * (1.0 + float(places[0])) if len(places) else math.inf
    return found


def figures(name: str, answers: list[float]) -> dict[str, float | None]:
    """Return how often, and after how many answers, a method sees a change; None: not asked."""
    seen = np.array(answers)
    median = float(np.median(seen)) if answers else math.inf
    return {
        f"{name}_alarms": float(np.isfinite(seen).mean()) if answers else None,
        f"{name}_within_300": float((seen <= SOON).mean()) if answers else None,
        f"{name}_median": median if math.isfinite(median) else None,
    }


def measure(traffic: Traffic, certified: int, repetitions: int, changes: int) -> Iterator[Row]:
    """Yield a record for each traffic: shares of streams with an alarm, and median answers."""
    for change, population in {"as certified": traffic.certified, **traffic.changed}.items():
        same = change == "as certified"
        for late in (False,) if same else (False, True):
            generator, found = np.random.default_rng(certified), dict[str, list[float]]()
            for _ in range(repetitions if same else changes):
                rows = generator.choice(traffic.certified, certified)
                counts = np.bincount(rows, minlength=traffic.cells).tolist()
                stream = generator.choice(population, LONGEST)
                own = generator.spawn(1)[0]
                seen = {"blocks": ours(traffic, counts, stream, own, late=late)}
                for name, answers in {**seen, **({} if late else others(counts, stream))}.items():
                    found.setdefault(name, []).append(answers)
            row: Row = {
                "cells": traffic.cells,
                "certified": certified,
                "traffic": change,
                "answers_before": EARLIER if late else 0,
                "streams": len(found["blocks"]),
            }
            for name in METHODS:
                row |= figures(name, found.get(name, []))
            yield row


def main() -> None:
    """Draw, test, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--certified", type=int, default=400, help="certified queries")
    parser.add_argument("--repetitions", type=int, default=1000, help="streams as certified")
    parser.add_argument("--changes", type=int, default=100, help="streams of each change")
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    place = origin()
    records, console = list[Row](), Console(width=180)
    for name in options.data:
        traffic = traffic_of(name, options.cache)
        for row in measure(traffic, options.certified, options.repetitions, options.changes):
            records.append({"data": name, **row, **place})
            console.print(name, row)
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
