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

import torch
from torch import Generator, Tensor
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

WAITS = -2
"""Stands for a row that waits, among numbers of partners."""

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
        orders = orders_of_pairs(cells[rows], keys[rows], own)
        found.append(tuple(torch.where(each < 0, -1, rows[each]) for each in orders))  # type: ignore[arg-type]
        draws.append(len(rows) if own is None else len(own.unique()))
    if not found:
        return []
    pairs = [torch.stack(orders)[:, orders[1] >= 0] for orders in found]
    asked, met = torch.cat(pairs, 1)
    order = cells[asked].argsort(stable=True)
    halves = torch.empty(len(order), dtype=torch.float64)
    halves[order] = half_squared(queries, asked[order], met[order])
    each = [pair.shape[1] for pair in pairs]
    values = [
        _values_of(*orders, own) for orders, own in zip(found, halves.split(each), strict=True)
    ]
    return _bounds_of(values, torch.tensor(draws).double() / 2, (1 - level) / together)


def _values_of(asked: Tensor, met: Tensor, halves: Tensor) -> Tensor:
    """Return what each row of a part adds at least, at most, and if it asks: ``(3, O, A)``."""
    real, paired = asked >= 0, met >= 0
    least = torch.zeros(asked.shape, dtype=torch.float64)
    least[paired] = halves
    return torch.stack([least, torch.where(real & ~paired, LARGEST, least), real.double()])


def _bounds_of(parts: Sequence[Tensor], expected: Tensor, risk: float) -> list[Bounds]:
    """Return the bounds of parts; those of like size at once.

    Args:
        parts: ``(3, O, A)`` values of each part, from :func:`_values_of`.
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
    order, seed = canonical_order(cells, keys)
    cells = cells.cpu()[order].unique(return_inverse=True)[1]
    groups = None if groups is None else groups[order.to(groups.device)].cpu()
    generator = Generator().manual_seed(seed)
    orders = range(min(ORDERS, max(1, ROWS_OF_ORDERS // max(1, len(cells)))))
    if groups is None:
        rows = torch.stack([torch.randperm(len(cells), generator=generator) for _ in orders])
    else:
        rows = torch.stack([one_of_each(groups, generator) for _ in orders])
    if cells.any():
        pairs = zip(*(pair_up(cells[each]) for each in rows), strict=True)
        asks, meets = (pad_sequence(list(each), True, padding_value=-1) for each in pairs)
    else:  # in one cell the same places are paired in all orders
        asks, meets = (places.expand(len(rows), -1) for places in pair_up(cells[rows[0]]))
    numbers = torch.cat([order[rows], torch.full((len(rows), 1), -1)], 1)
    row = torch.arange(len(rows)).unsqueeze(-1)
    return numbers[row, asks], numbers[row, meets]


def canonical_order(cells: Tensor, keys: Tensor) -> tuple[Tensor, int]:
    """Return an order of rows that does not depend on the order that they came in, and a seed.

    Args:
        cells: ``(N)`` int64.
        keys: ``(N)`` int64, from :func:`query_keys`.

    Returns:
        ``(N)`` int64 on the CPU, and a number from the SHA-256 of all rows.
    """
    rows = torch.stack([keys.cpu(), cells.cpu()])
    order = rows[0].argsort(stable=True)
    order = order[rows[1, order].argsort(stable=True)]
    whole = hashlib.sha256(rows[:, order].contiguous().numpy().tobytes()).digest()
    return order, int.from_bytes(whole[:8], "big") >> 1


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
        numbers = torch.arange(count)
        asking = numbers[(numbers == 2) | (numbers > 2) & (numbers % 2 == 1)]
        return asking, torch.where(asking == 3, 0, asking - 1)
    waiting = [list[int]() for _ in range(int(cells.max()) + 1)]
    seen, met, latest = [0] * len(waiting), [WAITS] * count, LATEST * count
    # Rows so far in cells where nobody waits, and cells with one row so far: their share of all
    # rows estimates the share of cells not seen yet (Good, Biometrika 40, 1953).
    dry = lone = asked = 0
    for number, cell in enumerate(cells.tolist()):
        rows, before = waiting[cell], seen[cell]
        seen[cell] = before + 1
        asks = dry + lone <= DRY * number and number > 0
        if not asks and number >= latest:
            asks = asked < (1 - LATEST) * number
        if before < 2:
            lone += 1 - 2 * before
        asked += asks
        if not rows:
            dry -= before
            rows.append(number)
            if asks:
                met[number] = -1
        elif asks:
            met[number] = rows.pop()
            if not rows:
                dry += before + 1
        else:
            rows.append(number)
    partners = torch.tensor(met)
    asking = (partners != WAITS).nonzero()[:, 0]
    return asking, partners[asking]


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
    at_once = max(1, NUMBERS_AT_ONCE // max(1, queries.shape[1]))

    def parts() -> Iterator[Tensor]:
        for pair in zip(rows.split(at_once), partners.split(at_once), strict=True):
            one, other = (
                queries.index_select(0, numbers.to(queries.device)).to(wide) for numbers in pair
            )
            one.sub_(other)
            yield torch.linalg.vecdot(one, one)

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
