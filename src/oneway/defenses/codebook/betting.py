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
import itertools
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

LEFT = 1e-6
"""Share of a bound that the search for it leaves open, on the safe side."""

MOST_STEPS = 100
"""Steps of that search, by regula falsi, at most: it takes about ten."""

TINY = 2.0**-33
"""Bound below which it counts as 0."""

NUMBERS_AT_ONCE = 2**17
"""Numbers of bets that are worked on at once: they stay in a processor's cache."""


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
    cells: Tensor, queries: Tensor, level: float, groups: Tensor | None = None
) -> Bounds:
    """Return bounds on E Var(query | cell) that hold for any distribution in [0, 1].

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Probability with which interval and bound hold, each by itself, in (0, 1).
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent. See the module for what is bounded then.
    """
    everything = torch.arange(len(cells))
    return bound_errors([everything], cells, queries, level, groups)[0]


def bound_errors(
    parts: Sequence[Tensor],
    cells: Tensor,
    queries: Tensor,
    level: float,
    groups: Tensor | None = None,
    together: Sequence[int] | None = None,
    keys: Tensor | None = None,
) -> list[Bounds]:
    """Return bounds of several parts of the rows, each as :func:`bound_error` would bound it alone.

    Pairs of all parts are compared cell by cell, so that a cell's queries are in a cache when they
    are wanted again, and each pair is compared once. All bounds are searched together.

    Args:
        parts: ``(n)`` int64 row numbers of each part, on the CPU.
        cells: See :func:`bound_error`.
        queries: See there.
        level: See there.
        groups: See there.
        together: For each part, the number of parts whose bounds hold at once with this level;
            None: each bound holds by itself.
        keys: ``(N)`` int64 from :func:`query_keys`, where they are at hand; None: they are made.
    """
    if not parts:
        return []
    cells, keys = cells.cpu(), query_keys(queries) if keys is None else keys
    whole, rank = _in_canonical_order(cells, keys), torch.empty_like(cells)
    rank[whole] = torch.arange(len(cells))
    sizes = list(map(len, parts))
    owners = torch.arange(len(parts)).repeat_interleave(torch.tensor(sizes))
    places = owners.mul_(len(cells)).add_(rank[torch.cat(list(parts))]).sort().values
    rows = whole[places.remainder_(max(1, len(cells)))]
    columns = [each.split(sizes) for each in (rows, cells[rows], keys[rows])]
    people = None if groups is None else groups.cpu()[rows].split(sizes)
    draws = sizes if people is None else [len(each.unique()) for each in people]
    found = list(map(_orders_of_pairs, *columns, people or itertools.repeat(None)))
    shapes = [orders.shape for orders, _ in found]
    asked, met = (
        torch.cat([each.flatten() for each in column]) for column in zip(*found, strict=True)
    )
    found.clear()
    paired, real = met >= 0, asked >= 0
    least = torch.zeros(asked.shape, dtype=torch.float64)
    least[paired] = _halves_of_pairs(queries, rank[asked[paired]], rank[met[paired]], whole)
    del asked, met
    values = torch.stack([least, torch.where(real & ~paired, LARGEST, least), real.double()])
    of_parts = [
        each.view(3, *shape)
        for each, shape in zip(values.split(list(map(math.prod, shapes)), 1), shapes, strict=True)
    ]
    risks = (1 - level) / torch.tensor(together or [1] * len(shapes), dtype=torch.float64)
    return _bounds_of(of_parts, torch.tensor(draws).double() / 2, risks)


def _halves_of_pairs(queries: Tensor, asked: Tensor, met: Tensor, order: Tensor) -> Tensor:
    """Return ``(P)`` float64 :func:`half_squared` distances; several parts may have a pair.

    Args:
        queries: See :func:`bound_error`.
        asked: ``(P)`` int64 places in ``order``.
        met: As ``asked``.
        order: ``(N)`` int64 numbers of rows, cell by cell.
    """
    count = len(order)
    # Cell by cell, the earlier place first.
    pairs = torch.minimum(asked, met).mul_(count).add_(torch.maximum(asked, met))
    pairs, copies = pairs.unique(return_inverse=True)
    return half_squared(queries, order[pairs // count], order[pairs % count])[copies]


def _bounds_of(parts: Sequence[Tensor], expected: Tensor, risks: Tensor) -> list[Bounds]:
    """Return the bounds of parts; those of like size at once.

    Args:
        parts: ``(3, O, A)`` of each part: what each row adds at least, at most, and if it asks.
        expected: ``(P)`` float64, the number of rows of each part that are expected to ask.
        risks: ``(P)`` float64, the probability with which each bound may fail.
    """
    found: dict[int, Bounds] = {}
    order = sorted(range(len(parts)), key=lambda part: parts[part].shape[1:])
    while order:
        largest = parts[order[-1]][0]
        at_once = max(1, NUMBERS_AT_ONCE // max(1, 3 * largest.numel()))
        own = [part for part in order[-at_once:] if parts[part].shape[1] == len(largest)]
        order = order[: -len(own)]
        # Orders are filled up with values that nothing is staked on.
        padded = pad_sequence([parts[part].movedim(-1, 0) for part in own], True).movedim(1, -1)
        least, most, real = padded.unbind(1)
        draws, risk = (each[own].view(-1, 1, 1) for each in (expected, risks))
        stakes = [
            *stakes_for(least, draws, torch.stack([risk / 2, risk]), 0.0),
            stakes_for(most, draws, risk / 2, math.inf),
        ]
        # Of values in [0, 1/2] what is above is below for 1/2 less the values.
        means = least_means(
            torch.stack([least, least, 0.5 - most], 1).flatten(0, 1),
            torch.where(real > 0, torch.stack(stakes), 0.0).movedim(0, 1).flatten(0, 1),
            torch.stack([risk / 2, risk, risk / 2], 1).flatten(),
        )
        for part, (low, lower, above) in zip(own, means.view(-1, 3).tolist(), strict=True):
            high = min(LARGEST, 0.5 - above)
            found[part] = Bounds(min(low, high), high, min(lower, LARGEST))
    return [found[part] for part in range(len(parts))]


def orders_of_pairs(cells: Tensor, keys: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return who asks and who is met in each of several random orders; see the module.

    Args:
        cells: ``(N)`` int64.
        keys: ``(N)`` int64, from :func:`query_keys`.
        groups: ``(N)`` int64, of rows that depend on each other the same number; None: all are
            independent.

    Returns:
        ``(O, A)`` int64 numbers of the rows that asked, filled up with -1, and of their partners;
        -1: none.
    """
    cells, keys = cells.cpu(), keys.cpu()
    order = _in_canonical_order(cells, keys)
    groups = None if groups is None else groups.cpu()[order]
    return _orders_of_pairs(order, cells[order], keys[order], groups)


def _orders_of_pairs(
    order: Tensor, cells: Tensor, keys: Tensor, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the same of rows in canonical order, with their ``(n)`` int64 numbers."""
    generator = Generator().manual_seed(_seed_of(cells, keys))
    orders = range(min(ORDERS, max(1, ROWS_OF_ORDERS // max(1, len(cells)))))
    if groups is None:
        rows = torch.stack([torch.randperm(len(cells), generator=generator) for _ in orders])
    else:
        rows = torch.stack([one_of_each(groups, generator) for _ in orders])
    if len(cells) and cells[0] != cells[-1]:
        places = (cells.diff(prepend=cells[:1]) != 0).cumsum(0)
        pairs = zip(*(pair_up(each) for each in places[rows]), strict=True)
        asks, meets = (pad_sequence(list(each), True, padding_value=-1) for each in pairs)
        numbers = torch.cat([order[rows], torch.full((len(rows), 1), -1)], 1)
        row = torch.arange(len(rows)).unsqueeze(-1)
        return numbers[row, asks], numbers[row, meets]
    return pairs_in_one_cell(order[rows])


def canonical_order(cells: Tensor, keys: Tensor) -> tuple[Tensor, int]:
    """Return an order of rows that does not depend on the order that they came in, and a seed.

    Args:
        cells: ``(N)`` int64.
        keys: ``(N)`` int64, from :func:`query_keys`.

    Returns:
        ``(N)`` int64 on the CPU, and a number from the SHA-256 of all rows.
    """
    cells, keys = cells.cpu(), keys.cpu()
    order = _in_canonical_order(cells, keys)
    return order, _seed_of(cells[order], keys[order])


def _in_canonical_order(cells: Tensor, keys: Tensor) -> Tensor:
    """Return the ``(N)`` int64 numbers of rows by cell, and those of a cell by key."""
    order = keys.argsort(stable=True)
    return order[cells[order].argsort(stable=True)]


def _seed_of(cells: Tensor, keys: Tensor) -> int:
    """Return a number from the SHA-256 of rows in canonical order."""
    whole = hashlib.sha256(keys.numpy().data)
    whole.update(cells.numpy().data)
    return int.from_bytes(whole.digest()[:8], "big") >> 1


def pair_up(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Let rows wait or ask, one by one, and pair those that ask; see the module.

    Args:
        cells: ``(N)`` int64 from 0 on, the cell of each row, in the order of arrival.

    Returns:
        ``(A)`` int64 numbers of the rows that asked, and ``(A)`` of their partners; -1: none.
    """
    count = len(cells)
    if not count or not cells.any():
        return pairs_in_one_cell(torch.arange(count))
    limits, before = _turns(cells.numpy())
    waiting = [list[int]() for _ in range(int(cells.max()) + 1)]
    asking, partners = list[int](), list[int]()
    dry, latest = 0, LATEST * count  # rows so far in cells where nobody waits; see the module
    for number, cell, limit in zip(range(count), cells.tolist(), limits, strict=True):
        rows = waiting[cell]
        if dry <= limit or (number >= latest and len(asking) < (1 - LATEST) * number):
            asking.append(number)
            if rows:
                partners.append(rows.pop())
                if not rows:
                    dry += before[number] + 1
                continue
            partners.append(-1)
        if not rows:
            dry -= before[number]
        rows.append(number)
    # Several times as fast as `torch.tensor`.
    asked, met = (torch.from_numpy(np.array(each, np.int64)) for each in (asking, partners))
    return asked, met


def pairs_in_one_cell(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`pair_up` does if all rows are of one cell.

    Two rows wait and two ask, and then they take turns: in all orders at the same places.

    Args:
        rows: ``(..., N)`` int64 numbers of the rows, in the order of arrival.

    Returns:
        ``(..., A)`` int64 numbers of the rows that asked, and of their partners.
    """
    count = rows.shape[-1]
    if count < 3:
        return rows[..., :0], rows[..., :0]
    turns = torch.cat([rows[..., 1:3], rows[..., :1], rows[..., 3:]], -1)
    return turns[..., 1::2], turns[..., : count - 1 : 2]


def _turns(cells: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Return what decides whether each of ``(N)`` rows asks, and does not depend on who asked.

    Returns:
        Most rows so far in cells where nobody waits, for the row to ask; and rows so far in the
        row's own cell.
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
    return limits.tolist(), before.tolist()


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
            yield apart.square_().sum(-1)

    squared = filled(torch.empty(len(rows), dtype=torch.float64), parts())
    return squared / (2 * max(1, queries.shape[1]))


def stakes_for(
    values: Tensor, expected: float | Tensor, risk: float | Tensor, without: float
) -> Tensor:
    """Return ``(..., A)`` stakes, each from the values before it; the first is 0.

    Their size is that of the source for a fixed number of values. The variance begins with one
    value as far from the mean as 0 is.

    Args:
        values: ``(..., A)`` float64, in [-1, 1/2].
        expected: Number of values that is expected; one, or as the values.
        risk: Probability with which the bound may fail; one, or as the values.
        without: Stake while the mean of the values is 0 or less.
    """
    counts = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64)
    means = values.cumsum(-1) / counts
    squares = values.square().cumsum(-1) - counts * means.square()
    variances = (squares.clamp_min(0) + means.square()) / counts
    logs = -torch.as_tensor(risk, dtype=torch.float64).log()
    sizes = (2 * logs / (expected * variances)).sqrt()
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
        logs = stakes.minimum(MOST / mean).mul_(values - mean).log1p_().sum(-1)
        return logs.logsumexp(-1) - wanted

    low, high = torch.full_like(risks, TINY), torch.full_like(risks, 0.5)
    above, below, moved = beyond(low), beyond(high), torch.zeros_like(low)
    is_zero = above < 0
    for _ in range(MOST_STEPS):
        # Each bound stops by itself: it is the same whatever it is searched together with.
        is_found = is_zero | (above == 0) | (high - low <= LEFT * low)
        if bool(is_found.all()):
            break
        # Where nothing is staked both ends are alike.
        middle = low + (high - low) * (above / (above - below)).nan_to_num(0).clamp(0, 1)
        found = beyond(middle)
        refuted = found >= 0
        # An end that stays for the second time counts half, so that both close in (Illinois).
        above = torch.where(refuted, found, torch.where(moved < 0, above / 2, above))
        below = torch.where(refuted, torch.where(moved > 0, below / 2, below), found)
        low = torch.where(refuted & ~is_found, middle, low)
        high = torch.where(refuted | is_found, high, middle)
        moved = torch.where(refuted, 1.0, -1.0)
    return low.masked_fill(is_zero, 0)  # the end on the safe side
