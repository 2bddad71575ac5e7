"""Cut rows into boxes, best cut first: the greedy half of a fit.

What a cut removes is looked for in two steps. Along each axis, sums of sorted numbers give the cut
that removes most squared distance. Of the ``CUTS_TRIED`` best axes the one is taken that removes
most L1 distance, which takes a pass over the rows. Work goes in parts that stay in a processor's
cache, and a label's rows are the only large thing in memory.

Source: LeFevre, DeWitt & Ramakrishnan, "Mondrian multidimensional k-anonymity" (ICDE 2006) for cuts
that keep k on both sides. The choice among them is ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.defenses.codebook.nesting import Box
from oneway.defenses.codebook.options import FitSettings

CUTS_TRIED = 4
"""Axes whose best cut is weighed in L1; they are found by squared distances, which are cheaper."""

TIE = 1e-9
"""Share by which the gains of two cuts must differ, or else they are the same."""

DIGITS = 12
"""Binary digits of edges and released values: with all 53, whoever holds the table could test which
candidates it was fitted to, since an edge lies half way between two of them."""

NUMBERS_AT_ONCE = 2**17
"""Numbers of a row of axes, or of a part of the rows, that are worked on at once."""

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def cap_of(settings: FitSettings) -> float:
    """Return ``max_l1_worst``; infinite without one."""
    return math.inf if settings.max_l1_worst is None else settings.max_l1_worst


def short(
    values: Tensor, rounding: Callable[[Tensor], Tensor] = torch.round, digits: int = DIGITS
) -> Tensor:
    """Return float64 values with few binary digits.

    Args:
        values: Of any shape, finite.
        rounding: Rounds to whole numbers.
        digits: Binary digits that stay, at least 1.
    """
    mantissas, exponents = values.frexp()
    return rounding(mantissas * 2.0**digits).ldexp(exponents - digits)


def center_of(rows: Tensor, center: str) -> Tensor:
    """Return the ``(W)`` mean of ``(n, W)`` rows that sum to 1, or their median, rescaled."""
    if center == "mean":
        return rows.mean(0)
    # Of an even number of rows both middle ones count, as in the usual median.
    middle = rows.quantile(0.5, 0)
    return middle / middle.sum()


def distances_from_center(rows: Tensor, center: str) -> Tensor:
    """Return the ``(n)`` L1 distances of ``(n, W)`` rows from their center."""
    return (rows - center_of(rows, center)).abs().sum(-1)


def cut_boxes(
    rows: Tensor,
    tails: Tensor | None,
    settings: FitSettings,
    groups: Tensor | None,
    boxes: list[Box],
    parents: list[int],
) -> tuple[list[Box], list[int]]:
    """Cut boxes of rows further, best cut first, until there are enough or none can be cut.

    Boxes with a row beyond ``max_l1_worst`` are cut before all others.

    A cut puts its lower side before its upper side, in the place of what was cut. So the first
    box whose upper edges a row keeps within is the one that the cuts lead to, and lower edges
    need not be kept.

    Args:
        rows: ``(n, W)`` float64.
        tails: ``(n)`` float64, L1 distances of the rows from what the table can say of them; None:
            0.
        settings: How to fit.
        groups: ``(n)`` int64, or None.
        boxes: What to cut.
        parents: A number of each box.

    Returns:
        The boxes, and the parent of each: that of the box that it was cut from. There are at most
        ``max_boxes`` more than before, less one.
    """

    def cut_of(side: Tensor) -> _Cut | None:
        if len(side) < 2 * settings.min_members:
            return None
        own = rows[side]
        is_urgent = False
        if settings.max_l1_worst is not None:
            apart = distances_from_center(own, settings.center)
            apart = apart if tails is None else apart + tails[side]
            is_urgent = bool((apart > settings.max_l1_worst).any())
        return _best_cut(own, settings, None if groups is None else groups[side], is_urgent)

    cuts, most = [cut_of(side) for _, side in boxes], len(boxes) + settings.max_boxes - 1
    while len(boxes) < most:
        gains = [(False, -1.0) if cut is None else (cut.is_urgent, cut.gain) for cut in cuts]
        best = max(range(len(gains)), key=gains.__getitem__)
        cut = cuts[best]
        if cut is None:
            break
        edges, group = boxes[best]
        below = edges.clone()
        below[cut.axis] = cut.edge
        left = rows[group, cut.axis] <= cut.edge
        sides = (below, group[left]), (edges, group[~left])
        boxes[best : best + 1] = sides
        cuts[best : best + 1] = [cut_of(side) for _, side in sides]
        parents[best : best + 1] = [parents[best]] * 2
    return boxes, parents


@dataclass(frozen=True)
class _Cut:
    """Where to cut, the L1 distortion that the cut removes, and whether a row is beyond the cap."""

    axis: int
    edge: float
    gain: float
    is_urgent: bool


def _best_cut(
    rows: Tensor, settings: FitSettings, groups: Tensor | None, is_urgent: bool
) -> _Cut | None:
    """Return the cut that removes most L1 distortion; None if no cut removes any."""
    turned = np.ascontiguousarray(rows.numpy().T)
    width, count = turned.shape
    at_once = max(1, NUMBERS_AT_ONCE // count)
    most, edges = np.empty(width), np.empty(width)
    for start in range(0, width, at_once):
        part = slice(start, start + at_once)
        most[part], edges[part] = _best_along(turned[part], settings.min_members, groups)
    axes = torch.from_numpy(most).topk(min(CUTS_TRIED, width)).indices.tolist()
    axes = [axis for axis in axes if most[axis] > 0]
    if not axes:
        return None
    lefts = turned[axes] <= edges[axes, None]
    whole, *parted = _distortions(turned, [None, *lefts], settings.center)
    best = None
    for axis, left in zip(axes, parted, strict=True):
        gain = whole - left
        # Axes that part the rows alike gain alike: the last bits must not decide between them.
        if gain > 0 and (best is None or gain > best.gain * (1 + TIE)):
            best = _Cut(axis, float(edges[axis]), gain, is_urgent)
    return best


def _best_along(turned: Matrix, least: int, groups: Tensor | None) -> tuple[Vector, Vector]:
    """Return what the best cut along each of ``(A, n)`` axes removes, and its edge; -1: none."""
    count = turned.shape[1]
    ordered = np.sort(turned, axis=1)
    sums = ordered.cumsum(axis=1)
    total, kept = sums[:, -1:], slice(least - 1, count - least)
    before = np.arange(least, count - least + 1, dtype=np.float64)
    after = count - before
    apart = sums[:, kept] / before - (total - sums[:, kept]) / after
    gains = before * after / count * np.square(apart)
    low, high = ordered[:, kept], ordered[:, least : count - least + 1]
    gains[low == high] = -1
    if groups is not None:
        order = torch.from_numpy(turned.argsort(axis=1).T)
        below, above = groups[order], groups[order.flip(0)]
        few = torch.minimum(groups_up_to(below)[:-1], groups_up_to(above).flip(0)[1:]) < least
        gains[few.T.numpy()[:, kept]] = -1
    at, axes = gains.argmax(axis=1), np.arange(len(gains))
    # Half way between two rows, so that neither's last bit decides.
    edges = _half_way(low[axes, at], high[axes, at])
    for axis in np.flatnonzero((edges >= high[axes, at]) | (edges < low[axes, at])):
        # Nearly equal rows cannot be parted by a short number.
        middles = _half_way(low[axis], high[axis])
        gains[axis, (middles >= high[axis]) | (middles < low[axis])] = -1
        at[axis] = gains[axis].argmax()
        edges[axis] = middles[at[axis]]
    return gains[axes, at], edges


def _half_way(low: Vector, high: Vector) -> Vector:
    halves: Vector = short(torch.from_numpy((low + high) / 2)).numpy()
    return halves


def _distortions(turned: Matrix, lefts: list[NDArray[np.bool_] | None], center: str) -> list[float]:
    """Return the L1 distortion of ``(W, n)`` columns about their centers, for several partings.

    Args:
        turned: The rows, as columns.
        lefts: For each parting, which of the rows are on the one side; None: all.
        center: See :class:`FitSettings`.
    """
    width, count = turned.shape
    shares = np.ones((len(lefts), count))
    for place, left in enumerate(lefts):
        if left is not None:
            shares[place] = left
    if center == "mean":
        sizes = shares.sum(axis=1)
        sums = turned @ shares.T
        firsts = sums / sizes
        others = (turned.sum(axis=1)[:, None] - sums) / np.maximum(1, count - sizes)
    else:
        sides = [np.ones(count, dtype=bool) if left is None else left for left in lefts]
        firsts = np.stack([_middle(turned[:, side]) for side in sides], axis=1)
        others = np.stack([_middle(turned[:, ~side]) for side in sides], axis=1)
    at_once = max(1, NUMBERS_AT_ONCE // (8 * width))
    totals = [0.0] * len(lefts)
    for start in range(0, count, at_once):
        part = turned[:, start : start + at_once]
        for place in range(len(lefts)):
            share = shares[place, start : start + at_once]
            apart = np.multiply.outer(firsts[:, place] - others[:, place], share)
            apart += others[:, place, None]
            np.subtract(part, apart, out=apart)
            totals[place] += float(np.abs(apart, out=apart).sum())
    return totals


def _middle(turned: Matrix) -> Vector:
    """Return the median of ``(W, n)`` columns, rescaled to sum to 1; 0 without any."""
    if not turned.shape[1]:
        return np.zeros(len(turned))
    middle = np.median(turned, axis=1)
    scaled: Vector = middle / middle.sum()
    return scaled


def groups_up_to(groups: Tensor) -> Tensor:
    """Return how many different groups each column of ``(n, W)`` int64 has up to each row."""
    places = torch.arange(len(groups)).unsqueeze(-1).expand_as(groups)
    first = torch.full((int(groups.max()) + 1, groups.shape[1]), len(groups))
    first = first.scatter_reduce(0, groups, places, "amin")
    return (first.gather(0, groups) == places).cumsum(0)
