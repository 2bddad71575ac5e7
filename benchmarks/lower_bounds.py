"""How much of the least error lower bounds prove, and how often they are above the truth.

Traffic is drawn with replacement from a population, so that the truth is known: the variance within
cells of the whole population. First: digits through a codebook of 20 members, 400 to 5,000 queries.
Second: 1,000 repetitions of synthetic traffic in which queries repeat or cells are small.

Beside our bound (pairs that arrive one by one, betting) stand what it replaced (disjoint pairs,
Maurer & Pontil's empirical Bernstein bound, then Chernoff's for the cells of the rows) and a limit
that needs to be told the truth: bets on squared distances from the *true* means of the cells. No
bound that estimates these means, such as "Sharp empirical Bernstein bounds for the variance of
bounded random variables" (arXiv 2505.01987) for one cell, can be expected above it.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from oneway.defenses.codebook import FitSettings, fit_codebook
from oneway.defenses.codebook.betting import bound_error, least_means, stakes_for
from oneway.defenses.codebook.measures import error_shares
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines

QUERIES = (400, 1000, 2000, 5000)
FITTING = 1000
"""Digits that the codebook is fitted to; the other 2,000 that the target has not seen are asked."""

LEVEL = 0.95
METHODS = ("betting", "empirical Bernstein and Chernoff", "betting, true means known")

Row = dict[str, Any]


@dataclass(frozen=True)
class Population:
    """Queries with their cells and the share of the traffic that each has."""

    cells: Tensor
    queries: Tensor
    shares: Tensor

    def means(self) -> Tensor:
        """Return the ``(N, D)`` mean of each query's cell."""
        mass = torch.zeros(int(self.cells.max()) + 1, dtype=torch.float64)
        mass.index_add_(0, self.cells, self.shares)
        sums = torch.zeros(len(mass), self.queries.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.cells, self.queries.double() * self.shares.unsqueeze(-1))
        return (sums / mass.clamp_min(1e-300).unsqueeze(-1))[self.cells]

    def squares(self) -> Tensor:
        """Return ``(N)`` squared distances from the means of cells."""
        return (self.queries.double() - self.means()).square().mean(-1)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Return the ``(count)`` numbers of queries drawn with replacement."""
        return torch.multinomial(self.shares, count, replacement=True, generator=generator)


def former(cells: Tensor, queries: Tensor) -> float:
    """Return what disjoint pairs, empirical Bernstein and Chernoff prove, half the risk each."""
    order = cells.argsort(stable=True)
    rows, own = queries[order].double(), cells[order]
    second = (torch.arange(len(own)) - torch.searchsorted(own, own)) % 2 == 1
    scaled = (rows[second] - rows[second.roll(-1)]).square().mean(-1)
    risk, count = (1 - LEVEL) / 2, len(cells)
    if len(scaled) < 2:
        return 0.0
    log = math.log(2 / risk)
    slack = math.sqrt(2 * float(scaled.var()) * log / len(scaled)) + 7 * log / (
        3 * (len(scaled) - 1)
    )
    mean = 4 * max(0.0, (float(scaled.mean()) - slack) / 2) * 2 * len(scaled) / count
    low, high = 0.0, mean
    for _ in range(50):
        middle = (low + high) / 2
        other = ((mean, middle), (1 - mean, 1 - middle))
        apart = sum(p * math.log(p / q) for p, q in other if p > 0) if middle > 0 else math.inf
        low, high = (low, middle) if apart <= math.log(1 / risk) / count else (middle, high)
    return low / 4


def told_means(squares: Tensor) -> float:
    """Return what bets on squared distances from the true means prove."""
    values = squares.view(1, 1, -1)
    stakes = stakes_for(values, len(squares), 1 - LEVEL, 0.0)
    return float(least_means(values, stakes, torch.tensor([1 - LEVEL], dtype=torch.float64)))


def digits(cache: Path) -> Population:
    """Return digits that neither target nor codebook has seen, and their cells."""
    target, splits = trained("digits", cache)
    images = torch.cat([splits.auxiliary_images, splits.test_images])
    logits = target.logits(images)
    book = fit_codebook(logits[:FITTING], FitSettings(min_members=20))
    cells, queries = book(logits[FITTING:]), images[FITTING:].flatten(1)
    return Population(cells, queries, torch.full((len(cells),), 1 / len(cells)).double())


def synthetic() -> Iterator[tuple[str, Population]]:
    """Yield traffic in which one query is frequent, or all are by rank, or cells are small."""
    count = 2000
    queries = torch.rand(count, 4, generator=Generator().manual_seed(1))
    even = torch.full((count,), 1 / count).double()
    for share in (0.5, 0.9, 0.97):
        shares = even * (1 - share)
        shares[7] += share
        yield (
            f"{share:.0%} one query, 20 cells",
            Population(torch.arange(count) % 20, queries, shares),
        )
    for power in (1.1, 1.3):
        shares = torch.arange(1, count + 1).double() ** -power
        shares /= shares.sum()
        yield f"Zipf {power}, 20 cells", Population(torch.arange(count) % 20, queries, shares)
    yield "one cell", Population(torch.zeros(count, dtype=torch.int64), queries, even)
    yield "200 cells", Population(torch.arange(count) % 200, queries, even)


def proven(population: Population, count: int, repetitions: int) -> Iterator[Row]:
    """Yield a record for each method, over repetitions."""
    squares = population.squares()
    truth = float((squares * population.shares).sum())
    generator, estimates = Generator().manual_seed(count), list[float]()
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(repetitions):
        rows = population.draw(count, generator)
        cells, queries = population.cells[rows], population.queries[rows]
        estimates.append(float(error_shares(cells, queries)[0].mean()))
        found[METHODS[0]].append(bound_error(cells, queries, LEVEL).lower)
        found[METHODS[1]].append(former(cells, queries))
        found[METHODS[2]].append(told_means(squares[rows]))
    for method, bounds in found.items():
        yield {
            "method": method,
            "queries": count,
            "repetitions": repetitions,
            "true_error": truth,
            "estimate": sum(estimates) / repetitions,
            "lower_bound": sum(bounds) / repetitions,
            "least": min(bounds),
            "above_truth": sum(bound > truth for bound in bounds),
        }


def label(row: Row) -> str:
    """Return the traffic of a record, and the number of queries."""
    return f"{row['traffic']}, {row['queries']:,}"


def show(console: Console, title: str, rows: list[Row]) -> None:
    """Print mean bound over the true error, and how often it is above."""
    table = Table(title=title, title_justify="left")
    for name in ("traffic", *METHODS):
        table.add_column(name, justify="right")
    for name in dict.fromkeys(map(label, rows)):
        own = {row["method"]: row for row in rows if label(row) == name}
        texts = [
            f"{own[method]['lower_bound']:.4f} "
            f"({own[method]['lower_bound'] / own[method]['true_error']:.1%}, "
            f"{own[method]['above_truth']}/{own[method]['repetitions']})"
            for method in METHODS
        ]
        table.add_row(name, *texts)
    console.print(table)


def main() -> None:
    """Draw, bound, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--draws", type=int, default=10, help="draws of digits")
    parser.add_argument("--repetitions", type=int, default=1000, help="of synthetic traffic")
    parser.add_argument("--queries", type=int, default=300, help="queries of synthetic traffic")
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    place = origin()
    console, records = Console(width=140), list[Row]()
    asked = digits(options.cache)
    for count in QUERIES:
        rows = proven(asked, count, options.draws)
        records += [{"traffic": "digits, codebook of 20", **row, **place} for row in rows]
    show(console, "Digits", records)
    for name, population in synthetic():
        rows = proven(population, options.queries, options.repetitions)
        records += [{"traffic": name, **row, **place} for row in rows]
        if options.out is not None:
            write_json_lines(options.out, records)
        show(console, "Synthetic", records[-len(METHODS) :])


if __name__ == "__main__":
    main()
