"""What a release into cells reveals, and what it costs: pure functions of tensors.

**Error.** For every attacker A, who may know the distribution, the table and all else but x,

    E mean((x - A(release))^2)  >=  E Var(x | cell),

with pixels averaged, since the mean of a cell is the best guess of x that the cell allows. The
variance within the cells of a sample estimates the right side: with n_c rows of N in a cell and
their unbiased variance s_c^2,

    T = sum over cells with n_c >= 2 of n_c / N * s_c^2.

Cells with one row count as 0, so that T errs to the safe side.

**Confidence.** ``low`` and ``high`` are a bootstrap interval of T over each query's jackknife
pseudo-value: how much T changes without the query. In a cell of two that exceeds the query's share,
since both rows depend on each other. ``lower_bound`` holds for any distribution of queries in
[0, 1] and any sample size, in two steps of half the risk each. Rows of a cell are paired off; half
their squared distance is unbiased for the cell's variance, lies in [0, 1/2], and pairs are
independent given the cells, so that an empirical Bernstein bound holds (Maurer & Pontil, "Empirical
Bernstein bounds and sample variance penalization", COLT 2009, Theorem 11). Then the mean over N
rows of their cells' variances, which lie in [0, 1/4], is compared with its expectation by
Chernoff's bound with relative entropy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from oneway.defenses.codebook.shares import lower_expectation
from oneway.defenses.codebook.table import Codebook
from oneway.metrics import bootstrap_mean

LEVEL = 0.95
"""Default level of intervals and bounds."""

L1_QUANTILE = 0.95
"""Quantile of the distances that the limit ``l1_quantile`` of a budget is about."""

TOP = 5
"""Likeliest classes that the limit ``top5_kept`` of a budget is about."""

ROWS_AT_ONCE = 4096
"""Queries that are widened to float64 at once."""


@dataclass(frozen=True)
class CertifiedError:
    """The least mean squared error per pixel that any attacker can reach.

    Attributes:
        estimate: Estimate from the variance within cells.
        low: Lower end of its bootstrap interval.
        high: Upper end of its bootstrap interval.
        lower_bound: Distribution-free lower bound; 0 if there are too few queries.
        queries: Number of queries behind these figures.
        alone: Share of queries that are alone in their cell, and count as 0.
    """

    estimate: float
    low: float
    high: float
    lower_bound: float
    queries: int
    alone: float


@dataclass(frozen=True)
class Measured:
    """What a codebook does to scores; :class:`oneway.defenses.codebook.Budget` says the figures."""

    l1_mean: float
    l1_quantile: float
    logits: float
    top5_kept: float
    bits: float


@torch.no_grad()
def measure_codebook(book: Codebook, logits: Tensor) -> Measured:
    """Return what a codebook does to ``(N, K)`` clean logits, finite and not checked."""
    cells, at_once = book(logits), book.rows_at_once
    parts = [
        _costs(book, *part)
        for part in zip(cells.split(at_once), logits.split(at_once), strict=True)
    ]
    l1, difference, kept = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return Measured(
        l1_mean=float(l1.mean()),
        l1_quantile=float(l1.quantile(L1_QUANTILE)),
        logits=float(difference.mean()),
        top5_kept=float(kept.sum() / (len(kept) * min(TOP, logits.shape[-1]))),
        bits=bits_beyond_label(cells, book.labels[cells]),
    )


def _costs(book: Codebook, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's L1 distance, mean difference of logits, and count of top classes kept."""
    released, top = book.expand(book.values, cells), min(TOP, logits.shape[-1])
    l1, difference = distances(released, logits)
    kept = torch.zeros_like(released).scatter(-1, released.topk(top).indices, 1.0)
    likeliest = logits.double().softmax(-1).topk(top).indices
    return l1, difference, kept.gather(-1, likeliest).sum(-1)


def distances(released: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far released rows are from clean scores, in both spaces.

    Args:
        released: ``(N, K)`` float64 probabilities.
        logits: ``(N, K)`` clean scores.

    Returns:
        ``(N)`` L1 distances of the probabilities, in [0, 2], and ``(N)`` mean absolute differences
        of the centered logits per class, in nats.
    """
    clean = logits.double()
    logs = released.clamp_min(torch.finfo(torch.float64).tiny).log()
    difference = _centered(logs) - _centered(clean)
    return (released - clean.softmax(-1)).abs().sum(-1), difference.abs().mean(-1)


def bits_beyond_label(cells: Tensor, labels: Tensor) -> float:
    """Return the entropy of ``(N)`` int64 cells given their ``(N)`` labels, in bits."""
    joint, alone = (
        numbers.unique(dim=0, return_counts=True)[1].double() / len(cells)
        for numbers in (torch.stack([cells, labels], -1), labels)
    )
    # H(cell, label) - H(label).
    return max(0.0, float((alone * alone.log2()).sum() - (joint * joint.log2()).sum()))


def pairs_in(cells: Tensor) -> int:
    """Return the number of disjoint pairs of queries that share one of ``(N)`` int64 cells."""
    return int((cells.unique(return_counts=True)[1] // 2).sum())


def certified_error(
    cells: Tensor, queries: Tensor, generator: Generator, level: float = LEVEL
) -> CertifiedError:
    """Return the least mean squared error that any attacker can reach; see the module.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        generator: On the CPU; draws the bootstrap, then the pairs.
        level: Level of interval and lower bound, in (0, 1).
    """
    values, alone = error_shares(cells, queries)
    estimate = float(values.mean())
    inverse, sizes = (
        numbers.cpu() for numbers in cells.unique(return_inverse=True, return_counts=True)[1:]
    )
    company = sizes[inverse].double()
    # A cell adds n s^2. Without a row it adds (n - 1) s^2 of the others; with n = 2, nothing.
    whole = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, inverse, values)[inverse]
    # The others' sum of squares: a row takes away its square times n / (n - 1), which it added.
    left = (whole * (company - 1) / company - values).clamp_min(0)
    others = torch.where(company > 2, left * (company - 1) / (company - 2).clamp_min(1), 0.0)
    added = whole - others
    interval = bootstrap_mean(added - added.mean() + estimate, generator=generator, level=level)
    halves = _half_squared_pairs(inverse.to(cells.device), queries, generator)
    return CertifiedError(
        estimate=estimate,
        low=max(0.0, interval.low),
        high=interval.high,
        lower_bound=_lower_bound(halves, len(cells), level),
        queries=len(cells),
        alone=float(alone.double().mean()),
    )


def error_shares(cells: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each query adds to the certified error, whose estimate is their mean.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].

    Returns:
        ``(N)`` float64 on the CPU, and ``(N)`` bool: which are alone in their cell, and add 0.
    """
    inverse = cells.unique(return_inverse=True)[1]
    counts = inverse.bincount()
    company = counts[inverse].double()
    means = queries.new_zeros(len(counts), queries.shape[1], dtype=torch.float64)
    parts = list(zip(queries.split(ROWS_AT_ONCE), inverse.split(ROWS_AT_ONCE), strict=True))
    for rows, numbers in parts:
        means.index_add_(0, numbers, rows.double())
    means /= counts.double().unsqueeze(-1)
    squares = [(rows.double() - means[numbers]).square().mean(-1) for rows, numbers in parts]
    values = torch.where(
        company > 1, torch.cat(squares) * company / (company - 1).clamp_min(1), 0.0
    )
    return values.cpu(), company == 1


def _half_squared_pairs(inverse: Tensor, queries: Tensor, generator: Generator) -> Tensor:
    """Return half the mean squared distance of each pair of queries that share a cell, float64.

    Within each cell neighbours in a random order are pairs; one of an odd number is left over.
    """
    count = len(inverse)
    order = torch.randperm(count, generator=generator).to(inverse.device)
    order = order[inverse[order].argsort(stable=True)]
    cells = inverse[order]
    starts = torch.ones_like(cells, dtype=torch.bool)
    starts[1:] = cells[1:] != cells[:-1]
    places = torch.arange(count, device=order.device)
    first = torch.where(starts, places, 0).cummax(0).values
    odd = places[(places - first) % 2 == 1]
    left, right = (queries[order[rows]].split(ROWS_AT_ONCE) for rows in (odd - 1, odd))
    parts = [
        (one.double() - other.double()).square().mean(-1) / 2
        for one, other in zip(left, right, strict=True)
    ]
    return torch.cat(parts)


def _lower_bound(halves: Tensor, count: int, level: float) -> float:
    """Return a lower bound on E Var(x | cell) that holds for any distribution in [0, 1].

    Args:
        halves: From :func:`_half_squared_pairs`, in [0, 1/2].
        count: N, how many queries there are, with those in no pair.
        level: Probability with which the bound holds.
    """
    pairs = len(halves)
    if pairs < 2:
        return 0.0
    # In [0, 1] for the inequality; half of the risk for each of the two steps.
    scaled, risk = 2 * halves, (1 - level) / 2
    log = math.log(2 / risk)
    slack = math.sqrt(2 * float(scaled.var()) * log / pairs) + 7 * log / (3 * (pairs - 1))
    mean = max(0.0, (float(scaled.mean()) - slack) / 2)
    # Queries in no pair count as 0.
    seen = mean * 2 * pairs / count
    return lower_expectation(4 * seen, count, risk) / 4


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)
