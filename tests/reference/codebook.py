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


def within_cells_of_groups(cells: list[int], queries: Matrix, groups: list[int]) -> float:
    """Return the variance within cells for "a group, then one of its rows", pair by pair."""
    weights = [1 / (len(set(groups)) * groups.count(group)) for group in groups]
    total = 0.0
    for cell in set(cells):
        rows = [at for at, other in enumerate(cells) if other == cell]
        pairs = [(i, j) for i in rows for j in rows if groups[i] != groups[j]]
        if pairs:
            shares = np.array([weights[i] * weights[j] for i, j in pairs])
            halves = np.array([((queries[i] - queries[j]) ** 2).mean() / 2 for i, j in pairs])
            total += sum(weights[at] for at in rows) * float((shares * halves).sum() / shares.sum())
    return total


def pairs_in_turn(cells: list[int], dry: float, latest: float) -> list[tuple[int, int]]:
    """Return (row, partner or -1) of rows that ask: each from the whole past, as one reads it."""
    pairs = list[tuple[int, int]]()
    gone = set[int]()
    for row, cell in enumerate(cells):
        waiting = [at for at in range(row) if at not in gone]
        stocked = {cells[at] for at in waiting}
        missing = sum(cells[at] not in stocked for at in range(row))
        once = sum(cells[:row].count(other) == 1 for other in set(cells[:row]))
        late = row >= latest * len(cells) and len(pairs) < (1 - latest) * row
        if row and (late or missing + once <= dry * row):
            partner = max((at for at in waiting if cells[at] == cell), default=-1)
            pairs.append((row, partner))
            if partner >= 0:
                gone |= {row, partner}
    return pairs


def least_mean(orders: list[list[float]], count: float, risk: float, most: float) -> float:
    """Return the m at which the average over orders of the products of bets is 1 / risk."""
    from scipy.optimize import brentq

    def excess(mean: float) -> float:
        total = 0.0
        for values in orders:
            product = 1.0
            for at in range(1, len(values)):
                past = np.array(values[:at])
                if past.mean() > 0:
                    variance = (((past - past.mean()) ** 2).sum() + past.mean() ** 2) / at
                    stake = math.sqrt(2 * math.log(1 / risk) / (count * variance))
                    product *= 1 + min(stake, most / mean) * (values[at] - mean)
            total += product / len(orders)
        return math.log(total * risk)

    least = 1e-9
    return float(brentq(excess, least, 0.5, xtol=1e-13)) if excess(least) > 0 else 0.0
