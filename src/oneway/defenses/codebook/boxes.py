"""Cut rows into boxes, best cut first: the greedy half of a fit.

What a cut removes is looked for in two steps. Along each axis, sums of sorted numbers give the cut
that removes most squared distance. Of the ``CUTS_TRIED`` best axes the one is taken that removes
most L1 distance, which takes a pass over the rows. No cut removes more than all squared distance
along its axis, so that most axes of many classes are never sorted. Work goes in parts that stay in
a processor's cache, and a label's rows are the only large thing in memory.

Source: LeFevre, DeWitt & Ramakrishnan, "Mondrian multidimensional k-anonymity" (ICDE 2006) for cuts
that keep k on both sides. The choice among them is ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

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

AXES_AT_ONCE = 16
"""Axes that are sorted at once."""

NUMBERS_AT_ONCE = 2**13
"""Numbers of a box up to which all its axes are sorted: choosing some would take longer."""

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def cap_of(settings: FitSettings) -> float:
    """Return ``max_l1_worst``; infinite without one."""
    return math.inf if settings.max_l1_worst is None else settings.max_l1_worst


def short(values: Vector, rounding: Callable[[Vector], Vector] = np.rint) -> Vector:
    """Return float64 values with ``DIGITS`` binary digits.

    Args:
        values: Of any shape, finite.
        rounding: Rounds to whole numbers.
    """
    mantissas, exponents = np.frexp(values)
    shortened: Vector = np.ldexp(rounding(np.ldexp(mantissas, DIGITS)), exponents - DIGITS)
    return shortened


def center_of(rows: Tensor, center: str) -> Tensor:
    """Return the ``(W)`` mean of ``(n, W)`` rows that sum to 1, or their median, rescaled."""
    if center == "mean":
        return rows.mean(0)
    return torch.from_numpy(_medians(np.ascontiguousarray(rows.numpy().T)))


def _medians(turned: Matrix) -> Vector:
    """Return the medians of ``(W, n)`` columns that sum to 1, rescaled to do so, too."""
    half = turned.shape[1] // 2
    # Several times as fast as `np.median`.
    parted = np.partition(turned, half, axis=1)
    middle = parted[:, half]
    if turned.shape[1] == 2 * half:
        # Of an even number of rows both middle ones count, as in the usual median.
        low = parted[:, :half].max(axis=1)
        middle = low + (middle - low) / 2
    scaled: Vector = middle / middle.sum()
    return scaled


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
    is_capped = settings.max_l1_worst is not None

    def whole(side: Tensor) -> float:
        if len(side) < 2 * settings.min_members:
            return 0.0  # it is never cut, and may have no rows
        return float(distances_from_center(rows[side], settings.center).sum())

    sides = [
        _Side(edges, side, parent, whole(side), is_capped)
        for (edges, side), parent in zip(boxes, parents, strict=True)
    ]
    most = len(boxes) + settings.max_boxes - 1
    while len(sides) < most:
        best = max(sides, key=_ORDER)
        if not best.is_known:
            best.look(rows, tails, groups, settings)
            continue
        cut = best.cut
        if cut is None:
            break
        below = best.edges.clone()
        below[cut.axis] = cut.edge
        place = sides.index(best)
        sides[place : place + 1] = (
            _Side(below, best.rows[cut.is_left], best.parent, cut.sides[0], is_capped),
            _Side(best.edges, best.rows[~cut.is_left], best.parent, cut.sides[1], is_capped),
        )
    return [(side.edges, side.rows) for side in sides], [side.parent for side in sides]


@dataclass(eq=False)
class _Side:
    """One side of a cut: a box, and its own best cut once it is known.

    Attributes:
        edges: ``(W)`` upper edges.
        rows: ``(n)`` int64 numbers of its rows.
        parent: A number that goes to all sides of the box.
        whole: L1 distortion of its rows about their center: no cut removes more.
        is_urgent: Whether a row is, or may be, beyond the cap.
        is_known: Whether its best cut was looked for.
        cut: Its best cut; None if none removes any distortion.
        order: What is largest of the box that is cut, or looked at, next.
    """

    edges: Tensor
    rows: Tensor
    parent: int
    whole: float
    is_urgent: bool
    is_known: bool = False
    cut: "_Cut | None" = None
    order: tuple[bool, float] = field(init=False)

    def __post_init__(self) -> None:
        self.order = self.is_urgent, self.whole

    def look(
        self, rows: Tensor, tails: Tensor | None, groups: Tensor | None, settings: FitSettings
    ) -> None:
        """Look for the best cut; see :func:`cut_boxes`."""
        self.is_known, self.is_urgent, self.order = True, False, (False, -1.0)
        if len(self.rows) < 2 * settings.min_members:
            return
        own = rows[self.rows]
        if settings.max_l1_worst is not None:
            apart = distances_from_center(own, settings.center)
            apart = apart if tails is None else apart + tails[self.rows]
            self.is_urgent = bool((apart > settings.max_l1_worst).any())
        group = None if groups is None else groups[self.rows]
        self.cut = _best_cut(own, self.whole, settings, group)
        if self.cut is not None:
            self.order = self.is_urgent, self.cut.gain


_ORDER = attrgetter("order")


@dataclass(frozen=True)
class _Cut:
    """Where to cut, the L1 distortion that the cut removes, and what the sides are left with.

    Of ``(n)`` bool, ``is_left`` says which rows are on the lower side.
    """

    axis: int
    edge: float
    gain: float
    sides: tuple[float, float]
    is_left: Tensor


def _best_cut(
    rows: Tensor, whole: float, settings: FitSettings, groups: Tensor | None
) -> _Cut | None:
    """Return the cut that removes most L1 distortion; None if no cut removes any.

    Args:
        rows: ``(n, W)`` float64.
        whole: Their L1 distortion about their center.
        settings: How to fit.
        groups: ``(n)`` int64, or None.
    """
    axes, edges = _best_axes(np.ascontiguousarray(rows.numpy().T), settings.min_members, groups)
    if not axes:
        return None
    lefts = torch.from_numpy(edges).unsqueeze(-1) >= rows[:, axes].T
    sides = _sides(rows, lefts, settings.center).tolist()
    best = None
    for axis, edge, left, (low, high) in zip(axes, edges.tolist(), lefts, sides, strict=True):
        gain = whole - low - high
        # Axes that part the rows alike gain alike: the last bits must not decide between them.
        if gain > 0 and (best is None or gain > best.gain * (1 + TIE)):
            best = _Cut(axis, edge, gain, (low, high), left)
    return best


def _best_axes(turned: Matrix, least: int, groups: Tensor | None) -> tuple[list[int], Vector]:
    """Return the ``CUTS_TRIED`` axes whose best cut removes most squared distance, and its edges.

    Axes are sorted in the order of all squared distance along them, which no cut can exceed, for as
    long as one of the rest may be among the best.
    """
    width, count = turned.shape
    tried = min(CUTS_TRIED, width)
    if width <= AXES_AT_ONCE or turned.size <= NUMBERS_AT_ONCE:
        gains, edges = _best_along(turned, least, groups)
    else:
        gains, edges = np.full(width, -1.0), np.empty(width)
        most = count * turned.var(axis=1)
        order = (-most).argsort(kind="stable")
        for start in range(0, width, AXES_AT_ONCE):
            part = order[start : start + AXES_AT_ONCE]
            if most[part[0]] * (1 + TIE) < np.partition(gains, -tried)[-tried]:
                break
            gains[part], edges[part] = _best_along(turned[part], least, groups)
    best = torch.from_numpy(gains).topk(tried).indices.tolist()
    axes = [axis for axis in best if gains[axis] > 0]
    return axes, edges[axes]


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
    edges = short((low[axes, at] + high[axes, at]) / 2)
    for axis in np.flatnonzero((edges >= high[axes, at]) | (edges < low[axes, at])):
        # Nearly equal rows cannot be parted by a short number.
        middles = short((low[axis] + high[axis]) / 2)
        gains[axis, (middles >= high[axis]) | (middles < low[axis])] = -1
        at[axis] = gains[axis].argmax()
        edges[axis] = middles[at[axis]]
    return gains[axes, at], edges


def _sides(rows: Tensor, lefts: Tensor, center: str) -> Tensor:
    """Return the ``(P, 2)`` L1 distortions of both sides of P partings, each about its center.

    Args:
        rows: ``(n, W)`` float64.
        lefts: ``(P, n)`` bool, which of the rows are on the lower side.
        center: See :class:`FitSettings`.
    """
    sides = torch.stack([lefts, ~lefts], 1).flatten(0, 1)
    shares = sides.to(rows)
    if center == "mean":
        centers = shares @ rows / shares.sum(-1, keepdim=True)
    else:
        centers = torch.stack([center_of(rows[side], center) for side in sides])
    apart: Tensor = torch.linalg.vecdot(torch.cdist(rows, centers, p=1).mT, shares)
    return apart.view(-1, 2)


def groups_up_to(groups: Tensor) -> Tensor:
    """Return how many different groups each column of ``(n, W)`` int64 has up to each row."""
    places = torch.arange(len(groups)).unsqueeze(-1).expand_as(groups)
    first = torch.full((int(groups.max()) + 1, groups.shape[1]), len(groups))
    first = first.scatter_reduce(0, groups, places, "amin")
    return (first.gather(0, groups) == places).cumsum(0)
