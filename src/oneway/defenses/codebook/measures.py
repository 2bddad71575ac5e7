"""What a release into cells reveals, and what it costs: pure functions of tensors.

**Error.** For every attacker A, who may know the distribution, the table and all else but x,

    E mean((x - A(release))^2)  >=  E Var(x | cell),

with pixels averaged, since the mean of a cell is the best guess of x that the cell allows. The
variance within the cells of a sample estimates the right side: with n_c rows of N in a cell and
their unbiased variance s_c^2,

    T = sum over cells with n_c >= 2 of n_c / N * s_c^2.

Cells with one row count as 0, so that T errs to the safe side.

**Confidence.** Bootstrap intervals of T are false where few queries are frequent: T lies below the
truth as long as the others are alone in their cells. Interval and lower bound come from
:mod:`oneway.defenses.codebook.betting`, and hold for any distribution and any number of queries.

**Groups.** Of groups of queries that depend on each other, such as the frames of a video, each has
the same weight, and its queries share it: T is an estimate for "a group, then one of its queries".
Only pairs of queries from two groups count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import filled
from oneway.defenses.codebook.betting import Bounds, bound_error
from oneway.defenses.codebook.table import Codebook

NUMBERS_AT_ONCE = 2**16
"""Numbers of queries that are added up at once: in float64 they stay in a processor's cache."""

LEVEL = 0.95
"""Default level of intervals and bounds."""

L1_QUANTILE = 0.95
"""Quantile of the distances that the limit ``l1_quantile`` of a budget is about."""

TOP = 5
"""Likeliest classes that the limit ``top5_kept`` of a budget is about."""


@dataclass(frozen=True)
class CertifiedError:
    """The least mean squared error per pixel that any attacker can reach.

    Attributes:
        estimate: Estimate from the variance within cells.
        low: Lower end of an interval that holds for any distribution.
        high: Upper end of that interval.
        lower_bound: Lower bound that holds for any distribution; 0 if there are too few queries.
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
    cells = book(logits)
    l1, difference = distances_from_table(book, cells, logits)
    return Measured(
        l1_mean=float(l1.mean()),
        l1_quantile=float(l1.quantile(L1_QUANTILE)),
        logits=float(difference.mean()),
        top5_kept=top_kept(book, cells, logits),
        bits=bits_beyond_label(cells, book.labels[cells]),
    )


def top_kept(book: Codebook, cells: Tensor, logits: Tensor) -> float:
    """Return the share of the likeliest classes of ``(N, K)`` scores that ``(N)`` cells keep.

    Where released classes tie across the edge, as those that share a rest evenly do, each is kept
    by its chance if ties are broken at random.
    """
    top, found = min(TOP, logits.shape[-1]), 0.0
    for rows, own in in_cache(logits.detach(), cells):
        released = book.expand(book.values, own)
        edge = released.topk(top).values[:, -1:]
        left, tied = top - (released > edge).count_nonzero(-1), (released == edge).count_nonzero(-1)
        kept = released.gather(-1, rows.topk(top).indices)
        lots = (kept == edge).sum(-1).double() * left / tied
        found += float(((kept > edge).sum(-1) + lots).sum())
    return found / (top * len(logits))


def distances_from_table(book: Codebook, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`distances` of ``(N)`` cells' vectors from ``(N, K)`` clean scores, in parts."""
    parts = (
        torch.stack(distances(book.expand(book.values, own), rows))
        for rows, own in in_cache(logits.detach(), cells)
    )
    l1, difference = filled(book.values.new_empty(2, len(logits)), parts)
    return l1, difference


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
    numbers = labels.unique(return_inverse=True)[1]
    joint = cells.unique(return_inverse=True)[1] * (numbers.max() + 1) + numbers
    shares = [each.unique(return_counts=True)[1].double() / len(cells) for each in (joint, numbers)]
    # H(cell, label) - H(label).
    both, alone = (-float((share * share.log2()).sum()) for share in shares)
    return max(0.0, both - alone)


def pairs_in(cells: Tensor, groups: Tensor | None = None) -> int:
    """Return the number of disjoint pairs of queries that share one of ``(N)`` int64 cells.

    With ``(N)`` int64 groups there are none where no two groups share a cell.
    """
    if groups is not None:
        shared = torch.stack([cells, groups.to(cells.device)]).unique(dim=1)[0]
        if len(shared.unique()) == len(shared):
            return 0
    return int((cells.unique(return_counts=True)[1] // 2).sum())


def certified_error(
    cells: Tensor,
    queries: Tensor,
    level: float = LEVEL,
    groups: Tensor | None = None,
) -> CertifiedError:
    """Return the least mean squared error that any attacker can reach; see the module.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of interval and lower bound, in (0, 1).
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent.
    """
    estimate, alone = estimated_error(cells, queries, groups)
    bounds = bound_error(cells, queries, level, groups)
    return error_within(bounds, estimate, alone, len(cells))


def error_within(bounds: Bounds, estimate: float, alone: float, queries: int) -> CertifiedError:
    """Return the certified error of a number of queries, with bounds that its estimate is within.

    Args:
        bounds: From :func:`oneway.defenses.codebook.betting.bound_error`.
        estimate: From :func:`estimated_error`.
        alone: From :func:`estimated_error`.
        queries: Number of queries.
    """
    return CertifiedError(
        estimate=estimate,
        # An end that is moved outwards still holds.
        low=min(bounds.low, estimate),
        high=max(bounds.high, estimate),
        lower_bound=min(bounds.lower, estimate),
        queries=queries,
        alone=alone,
    )


def estimated_error(
    cells: Tensor, queries: Tensor, groups: Tensor | None = None
) -> tuple[float, float]:
    """Return the estimate of :func:`certified_error`, and the share of queries that are alone."""
    if groups is not None:
        return estimate_over_groups(cells, queries, groups)
    values, lone = error_shares(cells, queries)
    return float(values.mean()), float(lone.double().mean())


def error_shares(cells: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each query adds to the certified error, whose estimate is their mean.

    Queries of a cell share what the cell adds evenly, so that one pass over them is enough.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].

    Returns:
        ``(N)`` float64 on the CPU, and ``(N)`` bool: which are alone in their cell, and add 0.
    """
    return CellMoments.of(cells, queries).error_shares()


@dataclass(frozen=True)
class CellMoments:
    """What the variance within cells follows from, without another pass over the queries.

    Attributes:
        cells: ``(N)`` int64 from 0 to C - 1, the cell of each query.
        counts: ``(C)`` float64, number of queries in each cell.
        sums: ``(C, D)`` float64, their sum.
        squares: ``(C)`` float64, the sum of the mean squares of their values.
    """

    cells: Tensor
    counts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of(cls, cells: Tensor, queries: Tensor) -> "CellMoments":
        """Add up queries, cell by cell; no copy of more than a few is made.

        Args:
            cells: ``(N)`` int64, any numbers.
            queries: ``(N, D)`` floating.
        """
        cells = cells.unique(return_inverse=True)[1]
        counts = cells.bincount().double()
        sums = counts.new_zeros(len(counts), queries.shape[1])
        squares = torch.zeros_like(counts)
        for rows, own in in_cache(queries, cells):
            wide = rows.double()
            sums.index_add_(0, own, wide)
            squares.index_add_(0, own, mean_square(wide))
        return cls(cells, counts, sums, squares)

    def joined(self, cells: Tensor) -> "CellMoments":
        """Return the moments of coarser cells, of which each holds whole cells of these.

        Args:
            cells: ``(N)`` int64, the coarser cell of each query.
        """
        cells = cells.unique(return_inverse=True)[1]
        owners = torch.zeros_like(self.cells[: len(self.counts)]).scatter(0, self.cells, cells)
        return CellMoments(
            cells,
            *(
                each.new_zeros(int(owners.max()) + 1, *each.shape[1:]).index_add_(0, owners, each)
                for each in (self.counts, self.sums, self.squares)
            ),
        )

    def error_shares(self) -> tuple[Tensor, Tensor]:
        """Return the same as :func:`error_shares`."""
        within = self.squares - self.sums.square().mean(-1) / self.counts
        company = self.counts > 1
        variances = within.clamp_min(0) / (self.counts - 1).clamp_min(1)
        return torch.where(company, variances, 0.0)[self.cells].cpu(), ~company[self.cells]


def in_cache(queries: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of ``(N, D)`` queries, and of ``(N, ...)`` columns, that a cache holds."""
    at_once = max(1, NUMBERS_AT_ONCE // max(1, queries.shape[1]))
    return zip(*(each.split(at_once) for each in (queries, *columns)), strict=True)


def mean_square(rows: Tensor) -> Tensor:
    """Return the ``(N)`` mean square of each of ``(N, D)`` rows' values."""
    squares: Tensor = torch.linalg.vecdot(rows, rows)
    return squares / rows.shape[-1]


def estimate_over_groups(cells: Tensor, queries: Tensor, groups: Tensor) -> tuple[float, float]:
    """Return the estimate for "a group, then one of its queries", and the share that is alone.

    With weights w that share each group's part among its queries, the variance of a cell is the
    mean of half the squared distances of two queries from different groups, weighted by both.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        groups: ``(N)`` int64, of queries that depend on each other the same number.
    """
    member, sizes = groups.to(cells.device).unique(return_inverse=True, return_counts=True)[1:]
    weights = 1 / (len(sizes) * sizes[member].double())
    # All queries of a group that share a cell: (cell, group) pairs.
    pairs, places = torch.stack([cells, member]).unique(dim=1, return_inverse=True)
    cell = pairs[0].unique(return_inverse=True)[1]
    mass = weights.new_zeros(pairs.shape[1]).index_add(0, places, weights)
    squares = torch.zeros_like(mass)
    sums = weights.new_zeros(len(mass), queries.shape[1])
    for rows, numbers, shares in in_cache(queries, places, weights):
        wide = rows.double()
        sums.index_add_(0, numbers, wide * shares.unsqueeze(-1))
        squares.index_add_(0, numbers, wide.square().mean(-1) * shares)

    def per_cell(values: Tensor) -> Tensor:
        return values.new_zeros(int(cell.max()) + 1, *values.shape[1:]).index_add(0, cell, values)

    # Over all pairs of rows w w' |x - x'|^2 / 2 adds up to mass * squares - |sum|^2.
    within = mass * squares - sums.square().mean(-1)
    whole = per_cell(mass)
    apart = whole * per_cell(squares) - per_cell(sums).square().mean(-1) - per_cell(within)
    of_pairs = whole.square() - per_cell(mass.square())
    company = cell.bincount() > 1
    variances = torch.where(company, apart.clamp_min(0) / of_pairs, 0.0)
    return float((whole * variances).sum()), float(whole[~company].sum())


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)
