"""Bounds on the least error of any attacker, by betting: one step, for any distribution.

Rows are independent draws of a cell and a query. They arrive one by one. A row *waits* or *asks*,
as the cells of earlier rows decide, before anything of the row is seen. For a row that asks,

    X = half its mean squared distance from a row that waits in its cell; 0 if none waits there.

The partner then leaves. A row that found no partner waits itself. Three facts make a bound of it.

- **Never too much.** Of the rows that wait only the cells were used. Given the past they are fresh
  draws from their cells. So X has expectation Var(x | c) where the row falls in a cell c in which a
  row waits, and 0 elsewhere: ``E[X | past] <= E Var(x | cell)``. A row that was compared must not
  come back: given such a row z, the expectation is (Var + |z - mean|^2) / 2.
- **Betting.** X lies in [0, 1/2]. If the error were at most m, the product of 1 + s (X - m), with
  stakes s in [0, 1 / m) that depend on the past alone, would be an e-value: positive, with an
  expectation of at most 1, so that it reaches 1 / risk with a probability of at most the risk. An
  average of e-values is one, too: here over several random orders of the rows.
- **Monotone.** The average falls as m grows. The lower bound is the least m that is not refuted.

The upper end is found alike. There a row without a partner counts as 1/4, the largest variance, so
that ``E[X | past] >= E Var(x | cell)``; and 1/2 - X takes the place of X.

Rows wait while more than ``DRY`` of the traffic, as far as it is known, would find nobody waiting:
with one cell every other row asks, with many cells a stock is built first. Copies of a query are
draws like all others: the bounds hold for traffic in which some queries are frequent.

With groups, whose rows depend on each other, each order takes one row of each group at random:
independent draws of "a group, then one of its rows". What is bounded is the mean over groups of the
mean error over the group's rows.

The orders come from a hash of the rows: the same rows give the same bounds, and there is no seed to
try until they please.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (Journal of
the Royal Statistical Society B 86, 2024), for the products and the stakes. The pairs are ours.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import embedding_bag
from torch.nn.utils.rnn import pad_sequence

from oneway.checks import filled
from oneway.defenses.codebook.traffic import query_keys

ORDERS = 8
"""Random orders of the rows whose e-values are averaged, at most."""

ROWS_OF_ORDERS = 2**15
"""Rows of all orders together beyond which there are fewer orders: of many rows one is enough."""

DRY = 0.01
"""Share of the traffic that may fall into cells where no row waits, while rows ask."""

LATEST = 0.8
"""Share of the rows that wait at most: with very many cells there is never enough in stock."""

MOST = 0.9
"""Largest stake, as a share of the largest that keeps every factor positive."""

LARGEST = 0.25
"""Largest variance of values in [0, 1]."""

STEPS = 14
"""Steps of the search for a bound, by regula falsi: less than a millionth of it is left."""

TINY = 2.0**-33
"""Bound below which it counts as 0."""

NUMBERS_AT_ONCE = 2**17
"""Numbers of queries, or of bets, that are worked on at once: they stay in a processor's cache."""


@dataclass(frozen=True)
class Bounds:
    """What holds of the least mean squared error per pixel of any attacker.

    Attributes:
        low: Lower end of an interval that holds with the level.
        high: Its upper end, at most 1/4, the largest variance of values in [0, 1].
        lower: Bound that holds with the level by itself, so that it is a little above ``low``.
    """

    low: float
    high: float
    lower: float


def bound_error(
    cells: Tensor,
    queries: Tensor,
    level: float,
    groups: Tensor | None = None,
    keys: Tensor | None = None,
) -> Bounds:
    """Return bounds on E Var(query | cell) that hold for any distribution in [0, 1].

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Probability with which interval and bound hold, each by itself, in (0, 1).
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent. See the module for what is bounded then.
        keys: ``(N)`` int64 from :func:`query_keys`, where they are at hand; None: they are made.
    """
    everything = torch.arange(len(cells))
    return bound_errors([everything], cells, queries, level, groups, keys=keys)[0]


def bound_errors(
    parts: Sequence[Tensor],
    cells: Tensor,
    queries: Tensor,
    level: float,
    groups: Tensor | None = None,
    together: int = 1,
    keys: Tensor | None = None,
) -> list[Bounds]:
    """Return bounds of several parts of the rows, each as :func:`bound_error` would bound it alone.

    Pairs of all parts are compared cell by cell, so that a cell's queries are in a cache when they
    are wanted again, and all bounds are searched together.

    Args:
        parts: ``(n)`` int64 row numbers of each part, on the CPU.
        cells: See :func:`bound_error`.
        queries: See there.
        level: See there.
        groups: See there.
        together: Number of parts of the traffic whose bounds hold at once with this level.
        keys: See :func:`bound_error`.
    """
    cells, keys = cells.cpu(), query_keys(queries) if keys is None else keys
    groups = None if groups is None else groups.cpu()
    found, draws = list[tuple[Tensor, Tensor]](), list[int]()
    for rows in parts:
        own = None if groups is None else groups[rows]
        found.append(orders_of_pairs(cells[rows], keys[rows], own, rows))
        draws.append(len(rows) if own is None else len(own.unique()))
    if not found:
        return []
    asked, met = (
        torch.cat([each.flatten() for each in column]) for column in zip(*found, strict=True)
    )
    paired, real = met >= 0, asked >= 0
    rank = cells.argsort(stable=True).argsort()
    order = paired.nonzero()[:, 0]
    order = order[rank[asked[order]].argsort()]
    least = torch.zeros(asked.shape, dtype=torch.float64)
    least[order] = half_squared(queries, asked[order], met[order])
    values = torch.stack([least, torch.where(real & ~paired, LARGEST, least), real.double()])
    of_parts = [
        each.view(3, *shape)
        for each, shape in zip(
            values.split([orders.numel() for orders, _ in found], 1),
            (orders.shape for orders, _ in found),
            strict=True,
        )
    ]
    return _bounds_of(of_parts, torch.tensor(draws).double() / 2, (1 - level) / together)


def _bounds_of(parts: Sequence[Tensor], expected: Tensor, risk: float) -> list[Bounds]:
    """Return the bounds of parts; those of like size at once.

    Args:
        parts: ``(3, O, A)`` of each part: what each row adds at least, at most, and if it asks.
        expected: ``(P)`` float64, the number of rows of each part that are expected to ask.
        risk: Probability with which each bound may fail.
    """
    found: dict[int, Bounds] = {}
    order = sorted(range(len(parts)), key=lambda part: parts[part].shape[1:])
    risks = torch.tensor([risk / 2, risk, risk / 2], dtype=torch.float64)
    while order:
        largest = parts[order[-1]][0]
        at_once = max(1, NUMBERS_AT_ONCE // max(1, 3 * largest.numel()))
        own = [part for part in order[-at_once:] if parts[part].shape[1] == len(largest)]
        order = order[: -len(own)]
        # Orders are filled up with values that nothing is staked on.
        padded = pad_sequence([parts[part].movedim(-1, 0) for part in own], True).movedim(1, -1)
        least, most, real = padded.unbind(1)
        draws = expected[own].view(-1, 1, 1)
        stakes = [
            stakes_for(least, draws, risk / 2, 0.0),
            stakes_for(least, draws, risk, 0.0),
            stakes_for(most, draws, risk / 2, math.inf),
        ]
        # Of values in [0, 1/2] what is above is below for 1/2 less the values.
        means = least_means(
            torch.stack([least, least, 0.5 - most], 1).flatten(0, 1),
            torch.where(real > 0, torch.stack(stakes), 0.0).movedim(0, 1).flatten(0, 1),
            risks.repeat(len(own)),
        )
        for part, (low, lower, above) in zip(own, means.view(-1, 3).tolist(), strict=True):
            high = min(LARGEST, 0.5 - above)
            found[part] = Bounds(min(low, high), high, min(lower, LARGEST))
    return [found[part] for part in range(len(parts))]


def orders_of_pairs(
    cells: Tensor, keys: Tensor, groups: Tensor | None, names: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return who asks and who is met in each of several random orders; see the module.

    Args:
        cells: ``(N)`` int64.
        keys: ``(N)`` int64, from :func:`query_keys`.
        groups: ``(N)`` int64, of rows that depend on each other the same number; None: all are
            independent.
        names: ``(N)`` int64, the numbers by which rows are returned; None: from 0 on.

    Returns:
        ``(O, A)`` int64 numbers of the rows that asked, filled up with -1, and of their partners;
        -1: none.
    """
    order, seed = canonical_order(cells, keys)
    cells = cells.cpu()[order]
    groups = None if groups is None else groups[order.to(groups.device)].cpu()
    generator = Generator().manual_seed(seed)
    orders = range(min(ORDERS, max(1, ROWS_OF_ORDERS // max(1, len(cells)))))
    if groups is None:
        rows = torch.stack([torch.randperm(len(cells), generator=generator) for _ in orders])
    else:
        rows = torch.stack([one_of_each(groups, generator) for _ in orders])
    order = order if names is None else names[order]
    if len(cells) and cells[0] != cells[-1]:  # in rising order
        places = (cells.diff(prepend=cells[:1]) != 0).cumsum(0)
        pairs = zip(*(pair_up(places[each]) for each in rows), strict=True)
        asks, meets = (pad_sequence(list(each), True, padding_value=-1) for each in pairs)
        numbers = torch.cat([order[rows], torch.full((len(rows), 1), -1)], 1)
        row = torch.arange(len(rows)).unsqueeze(-1)
        return numbers[row, asks], numbers[row, meets]
    # In one cell the same places are paired in all orders, and nobody asks in vain.
    asking, partners = pair_up(torch.zeros(rows.shape[1], dtype=torch.int64))
    return order[rows[:, asking]], order[rows[:, partners]]


def canonical_order(cells: Tensor, keys: Tensor) -> tuple[Tensor, int]:
    """Return an order of rows that does not depend on the order that they came in, and a seed.

    Args:
        cells: ``(N)`` int64.
        keys: ``(N)`` int64, from :func:`query_keys`.

    Returns:
        ``(N)`` int64 on the CPU, and a number from the SHA-256 of all rows.
    """
    # NumPy's small steps cost a fraction of PyTorch's: there may be hundreds of parts.
    columns = keys.cpu().numpy(), cells.cpu().numpy()
    order = np.lexsort(columns)
    whole = hashlib.sha256()
    for column in columns:
        whole.update(column[order])
    return torch.from_numpy(order), int.from_bytes(whole.digest()[:8], "big") >> 1


def pair_up(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Let rows wait or ask, one by one, and pair those that ask; see the module.

    Args:
        cells: ``(N)`` int64 from 0 on, the cell of each row, in the order of arrival.

    Returns:
        ``(A)`` int64 numbers of the rows that asked, and ``(A)`` of their partners; -1: none.
    """
    count = len(cells)
    if not count or not cells.any():
        # What the loop below does in one cell: two rows wait and two ask, then they take turns.
        asking = torch.arange(1, count if count > 2 else 1, 2)
        met = asking - 1
        asking[:1], met[:1], met[1:2] = 2, 1, 0
        return asking, met
    limits, before, quotas = _turns(cells.numpy())
    waiting = [list[int]() for _ in range(int(cells.max()) + 1)]
    asking, partners, dry = list[int](), list[int](), 0
    turns = zip(range(count), cells.tolist(), before, limits, quotas, strict=True)
    for number, cell, seen, limit, quota in turns:
        rows = waiting[cell]
        if dry <= limit or len(asking) < quota:
            asking.append(number)
            if rows:
                partners.append(rows.pop())
                if not rows:
                    dry += seen + 1
                continue
            partners.append(-1)
        if not rows:
            dry -= seen
        rows.append(number)
    # Several times as fast as `torch.tensor`.
    asked, met = (torch.from_numpy(np.array(each, np.int64)) for each in (asking, partners))
    return asked, met


def _turns(cells: NDArray[np.int64]) -> tuple[list[int], list[int], list[float]]:
    """Return what decides whether each of ``(N)`` rows asks, as far as nobody's answer matters.

    Returns:
        Most rows so far in cells where nobody waits, rows so far in the row's own cell, and number
        of rows that asked below which a late row asks anyway.
    """
    numbers = np.arange(len(cells))
    # Of the smallest type, which NumPy sorts in one pass.
    order = cells.astype(np.min_scalar_type(int(cells.max()))).argsort(kind="stable")
    sizes = np.bincount(cells)
    before = np.empty_like(cells)
    before[order] = numbers - np.repeat(sizes.cumsum() - sizes, sizes)
    # Cells with one row so far: their share of all rows estimates the share of cells not seen yet
    # (Good, Biometrika 40, 1953).
    news = (before == 0).astype(np.int64) - (before == 1)
    limits = np.floor(DRY * numbers).astype(np.int64) - (news.cumsum() - news)
    limits[0] = -1
    quotas = np.where(numbers >= LATEST * len(cells), (1 - LATEST) * numbers, 0)
    return limits.tolist(), before.tolist(), quotas.tolist()


def one_of_each(groups: Tensor, generator: Generator) -> Tensor:
    """Return the number of one random row of each of ``(N)`` groups, groups in random order."""
    shuffled = torch.randperm(len(groups), generator=generator)
    by_group = shuffled[groups[shuffled].argsort(stable=True)]
    sizes = groups.unique(return_counts=True)[1]
    first = by_group[sizes.cumsum(0) - sizes]
    # Anew, since a group of many rows would come early.
    return first[torch.randperm(len(first), generator=generator)]


def half_squared(queries: Tensor, rows: Tensor, partners: Tensor) -> Tensor:
    """Return ``(P)`` float64 half mean squared distances of rows from their partners, by number.

    Distances of float32 queries, and of narrower ones, are added up in float32: a bound that rests
    on them is right to about six digits.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    is_read_in_place = queries.dtype == wide and queries.is_contiguous()
    pairs = torch.stack([rows, partners], -1).to(queries.device)
    at_once = max(1, NUMBERS_AT_ONCE // max(1, queries.shape[1]))
    signs = torch.tensor([1.0, -1.0], dtype=wide, device=queries.device).repeat(at_once, 1)

    def parts() -> Iterator[Tensor]:
        for pair in pairs.split(at_once):
            table, numbers = queries, pair
            if not is_read_in_place:
                known, numbers = pair.unique(return_inverse=True)
                table = queries.index_select(0, known).to(wide)
            # A sum with signs, which copies neither row.
            apart = embedding_bag(numbers, table, mode="sum", per_sample_weights=signs[: len(pair)])
            yield torch.linalg.vecdot(apart, apart)

    squared = filled(torch.empty(len(rows), dtype=torch.float64), parts())
    return squared / (2 * max(1, queries.shape[1]))


def stakes_for(values: Tensor, expected: float | Tensor, risk: float, without: float) -> Tensor:
    """Return ``(..., A)`` stakes, each from the values before it; the first is 0.

    Their size is that of the source for a fixed number of values. The variance begins with one
    value as far from the mean as 0 is.

    Args:
        values: ``(..., A)`` float64, in [-1, 1/2].
        expected: Number of values that is expected; one, or as the values.
        risk: Probability with which the bound may fail.
        without: Stake while the mean of the values is 0 or less.
    """
    counts = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64)
    means = values.cumsum(-1) / counts
    squares = values.square().cumsum(-1) - counts * means.square()
    variances = (squares.clamp_min(0) + means.square()) / counts
    sizes = (2 * math.log(1 / risk) / (expected * variances)).sqrt()
    sizes = torch.where(means > 0, sizes, without)
    return torch.cat([torch.zeros_like(sizes[..., :1]), sizes[..., :-1]], -1)


def least_means(values: Tensor, stakes: Tensor, risks: Tensor) -> Tensor:
    """Return the ``(B)`` least means that averages of products do not refute.

    Args:
        values: ``(B, O, A)`` float64, in [0, 1/2], of O orders.
        stakes: ``(B, O, A)`` float64, at least 0; 0 where an order has no value.
        risks: ``(B)`` float64, in (0, 1).
    """
    wanted = (values.shape[1] / risks).log()

    def beyond(means: Tensor) -> Tensor:
        """Return by how much the logarithm of the average product refutes each mean."""
        mean = means[:, None, None]
        logs = torch.log1p(stakes.minimum(MOST / mean) * (values - mean)).sum(-1)
        return logs.logsumexp(-1) - wanted

    low, high = torch.full_like(risks, TINY), torch.full_like(risks, 0.5)
    above, below, moved = beyond(low), beyond(high), torch.zeros_like(low)
    is_zero = above < 0
    for _ in range(STEPS):
        # Where nothing is staked both ends are alike.
        middle = low + (high - low) * (above / (above - below)).nan_to_num(0).clamp(0, 1)
        found = beyond(middle)
        refuted = found >= 0
        # An end that stays for the second time counts half, so that both close in (Illinois).
        above = torch.where(refuted, found, torch.where(moved < 0, above / 2, above))
        below = torch.where(refuted, torch.where(moved > 0, below / 2, below), found)
        low, high = torch.where(refuted, middle, low), torch.where(refuted, high, middle)
        moved = torch.where(refuted, 1.0, -1.0)
    return low.masked_fill(is_zero, 0)  # the end on the safe side
