"""Codebooks and their certificate once more, slowly: NumPy, float64, loops, no table.

Rows are split by a tree that is walked; cells are sets of leaves, and what they cost is computed
from their rows every time. Shares no code with the library.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.wen2021 import softmax

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass
class Leaf:
    """A box: the numbers of its rows, and its own number from the lowest side on."""

    rows: list[int]
    number: int = -1


@dataclass
class Branch:
    """A cut: at most ``edge`` along ``axis`` goes low, above it high."""

    axis: int
    edge: float
    low: "Leaf | Branch"
    high: "Leaf | Branch"


def spread_of(rows: Matrix) -> float:
    """L1 distances of rows from their mean."""
    return float(sum(np.abs(row - rows.mean(0)).sum() for row in rows))


def best_cut(rows: Matrix, least: int, tried: int) -> tuple[float, int, float] | None:
    """Return gain in L1, axis and edge of the best cut; None if none gains.

    Of each axis the cut that removes most squared distance is looked for, and of the ``tried``
    axes that remove most the one that removes most L1.
    """
    candidates = []
    for axis in range(rows.shape[1]):
        values = np.sort(rows[:, axis])
        whole = ((values - values.mean()) ** 2).sum()
        found = []
        for count in range(least, len(values) - least + 1):
            low, high = values[:count], values[count:]
            if low[-1] == high[0]:
                continue
            left = sum(((part - part.mean()) ** 2).sum() for part in (low, high))
            found.append((whole - left, (low[-1] + high[0]) / 2))
        if found:
            candidates.append((*max(found), axis))
    best = None
    for _, edge, axis in sorted(candidates, reverse=True)[:tried]:
        low = rows[:, axis] <= edge
        gain = spread_of(rows) - spread_of(rows[low]) - spread_of(rows[~low])
        # The first of those that gain the same.
        if gain > 0 and (best is None or gain > best[0] * (1 + 1e-9)):
            best = (gain, axis, edge)
    return best


def grow(rows: Matrix, least: int, most: int, tried: int = 4) -> "Leaf | Branch":
    """Cut the leaf that gains most, until there are ``most`` or none gains."""
    root: Leaf | Branch = Leaf(list(range(len(rows))))
    while len(leaves_of(root)) < most:
        options = [
            (cut, leaf)
            for leaf in leaves_of(root)
            for cut in [best_cut(rows[leaf.rows], least, tried)]
            if cut is not None
        ]
        if not options:
            break
        (_, axis, edge), leaf = max(options, key=lambda pair: pair[0][0])
        low = Leaf([row for row in leaf.rows if rows[row, axis] <= edge])
        high = Leaf([row for row in leaf.rows if rows[row, axis] > edge])
        root = replaced(root, leaf, Branch(axis, edge, low, high))
    for number, leaf in enumerate(leaves_of(root)):
        leaf.number = number
    return root


def leaves_of(node: "Leaf | Branch") -> list[Leaf]:
    if isinstance(node, Leaf):
        return [node]
    return leaves_of(node.low) + leaves_of(node.high)


def replaced(node: "Leaf | Branch", old: Leaf, new: Branch) -> "Leaf | Branch":
    if node is old:
        return new
    if isinstance(node, Leaf):
        return node
    return Branch(node.axis, node.edge, replaced(node.low, old, new), replaced(node.high, old, new))


def walk(node: "Leaf | Branch", row: Vector) -> int:
    """Return the number of the leaf that the cuts lead to."""
    while isinstance(node, Branch):
        node = node.low if row[node.axis] <= node.edge else node.high
    return node.number


def seen(probabilities: Vector, explicit: list[int]) -> Vector:
    """Return a row as a label's table sees it: its explicit classes, and the sum of all others."""
    entries = [probabilities[k] for k in explicit]
    if len(explicit) == len(probabilities):
        return np.array(entries)
    return np.array([*entries, max(0.0, 1 - sum(entries))])


def explicit_classes_of(probabilities: Matrix, label: int, count: int) -> list[int]:
    """Return the label, and the classes that its rows give most to."""
    mean = probabilities.mean(0)
    others = sorted((k for k in range(len(mean)) if k != label), key=lambda k: -mean[k])
    return [label, *others[: count - 1]]


def objective(
    cells: list[list[int]],
    rows: Matrix,
    rate_weight: float,
    image_weight: float = 0.0,
    images: Matrix | None = None,
) -> float:
    """Return what one label's cells, lists of row numbers, cost: see the module that fits."""
    total = sum(len(cell) for cell in cells)
    cost = 0.0
    for cell in cells:
        cost += spread_of(rows[cell])
        cost -= rate_weight * len(cell) * math.log2(len(cell) / total)
    if images is not None:
        everyone = images[[row for cell in cells for row in cell]].mean(0)
        for cell in cells:
            apart = images[cell].mean(0) - everyone
            cost += image_weight * len(cell) * float((apart**2).mean())
    return cost


def merge(
    cells: list[list[int]],
    rows: Matrix,
    rate_weight: float,
    image_weight: float = 0.0,
    images: Matrix | None = None,
) -> list[list[int]]:
    """Join the pair that lowers the objective most, until none does."""
    weights = (rate_weight, image_weight, images)
    while len(cells) > 1:
        now = objective(cells, rows, *weights)
        options = []
        for some, other in itertools.combinations(range(len(cells)), 2):
            rest = [cell for at, cell in enumerate(cells) if at not in (some, other)]
            joined = [*rest, cells[some] + cells[other]]
            options.append((objective(joined, rows, *weights) - now, joined))
        change, joined = min(options, key=lambda option: option[0])
        if change > 0:
            break
        cells = joined
    return cells


def softmaxes(logits: Matrix) -> Matrix:
    return np.stack([softmax(row) for row in logits])


def within_cells(cells: Vector, queries: Matrix) -> float:
    """T: the unbiased variance within cells, each counted by its rows; lone rows count as 0."""
    total = 0.0
    for cell in sorted(set(cells.tolist())):
        rows = queries[cells == cell]
        if len(rows) > 1:
            total += len(rows) * float(rows.var(0, ddof=1).mean())
    return total / len(queries)


def entropy_beyond_label(cells: list[int], labels: list[int]) -> float:
    """H(cell | label) in bits, by counting pairs."""
    total, bits = len(cells), 0.0
    for label in set(labels):
        own = [cell for cell, other in zip(cells, labels, strict=True) if other == label]
        for cell in set(own):
            share = own.count(cell) / len(own)
            bits -= len(own) / total * share * math.log2(share)
    return bits


def relative_entropy(mean: float, other: float) -> float:
    """KL between coins that fall heads with these chances, in nats."""
    value = 0.0
    if mean > 0:
        value += mean * (math.log(mean) - math.log(other))
    if mean < 1:
        value += (1 - mean) * (math.log1p(-mean) - math.log1p(-other))
    return value


def chernoff_lower(mean: float, count: int, risk: float) -> float:
    """Return the p below ``mean`` with ``count * KL(mean || p) = log(1 / risk)``, by SciPy."""
    from scipy.optimize import brentq

    if mean <= 0:
        return 0.0
    limit = math.log(1 / risk) / count
    if mean == 1:
        return math.exp(-limit)
    least = 1e-300
    if relative_entropy(mean, least) <= limit:
        return 0.0
    return float(
        brentq(lambda p: relative_entropy(mean, p) - limit, least, mean, xtol=1e-14, rtol=1e-12)
    )


def lower_bound_of(halves: list[float], count: int, level: float) -> float:
    """Return the distribution-free lower bound from the halves of the pairs' mean squared
    differences.

    Maurer & Pontil (COLT 2009), Theorem 11, for twice the halves, which lie in [0, 1]; then
    Hoeffding (1963), Theorem 1, for four times the variances of the cells of all rows.
    """
    if len(halves) < 2:
        return 0.0
    risk, pairs = (1 - level) / 2, len(halves)
    values = [2 * half for half in halves]
    mean = sum(values) / pairs
    variance = sum((one - other) ** 2 for one, other in itertools.combinations(values, 2)) / (
        pairs * (pairs - 1)
    )
    log = math.log(2 / risk)
    least = mean - math.sqrt(2 * variance * log / pairs) - 7 * log / (3 * (pairs - 1))
    of_rows = max(0.0, least / 2) * 2 * pairs / count
    return chernoff_lower(4 * of_rows, count, risk) / 4
