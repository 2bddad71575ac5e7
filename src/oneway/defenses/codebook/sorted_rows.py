"""Weigh unions of two cells from sums of sorted numbers, and not from rows.

With the k rows of a union up to a center c and their sum S, of n rows with the sum T,

    sum of |x - c|  =  c (2 k - n) - 2 S + T.

Of a union, k and S are those of its two cells added up; both are searched in the cells' sorted
numbers. So a pair of cells costs two searches per axis, whatever its number of rows.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from oneway.defenses.codebook.boxes import Matrix, Vector

Indices = NDArray[np.int64]

NUMBERS_AT_ONCE = 2**16
"""Numbers that are searched at once: they stay in a processor's cache."""


class SortedRows:
    """Each cell's rows, sorted along each axis, with their running sums.

    All cells lie in one array, one after the other. A cell's numbers, from 0 to 1, are kept with an
    offset that rises from cell to cell, so that each axis rises throughout, and one search answers
    for many cells. Before them is a number below all of theirs, whose sum is 0. A union is written
    behind all others. What it was made of stays until space is short.

    An offset costs a number its last digits: what differs by less than about 1e-12 counts as equal.
    """

    def __init__(self, cells: dict[int, Matrix], slots: int, center: str) -> None:
        """Sort rows.

        Args:
            cells: ``(W, n)`` numbers from 0 to 1 of the rows of each cell, by its slot. They are
                sorted in place.
            slots: Number of slots. Those without a cell are empty cells.
            center: See :class:`FitSettings`.
        """
        width = len(next(iter(cells.values())))
        space = 3 + sum(values.shape[1] + 1 for values in cells.values())
        self._center, self._axes = center, np.arange(width)[:, None]
        # Of the largest union, too; and one more, which stays infinite.
        self._keys = np.full((width, 2 * space), math.inf)
        self._sums = np.zeros_like(self._keys)
        self._keys[:, 0], self._end, self._offset = -0.5, 1, 2.0  # the empty cell
        self._starts, self._counts = np.zeros((2, slots), dtype=np.int64)
        self._offsets, self._totals = np.zeros(slots), np.zeros((width, slots))
        self._live = dict[int, None]()
        for slot, values in cells.items():
            self._append(slot, values)

    def _append(self, slot: int, values: Matrix) -> None:
        """Write the ``(W, n)`` numbers of a cell behind all others; they are sorted in place."""
        values.sort(axis=1)
        end = self._end + 1 + values.shape[1]
        inner = slice(self._end + 1, end)
        self._keys[:, self._end], self._sums[:, self._end] = self._offset - 0.5, 0
        np.add(values, self._offset, out=self._keys[:, inner])
        values.cumsum(axis=1, out=self._sums[:, inner])
        self._starts[slot], self._counts[slot] = self._end, values.shape[1]
        self._offsets[slot], self._totals[:, slot] = self._offset, self._sums[:, end - 1]
        self._end, self._offset = end, self._offset + 2
        self._live[slot] = None

    def join(self, first: int, second: int, slot: int) -> None:
        """Let a free slot be the union of two, which are given up."""
        pair = first, second
        values = np.concatenate([self._values_of(each) for each in pair], axis=1)
        for each in pair:
            del self._live[each]
        if self._end + 1 + values.shape[1] >= self._keys.shape[1]:
            self._close_up()
        self._append(slot, values)

    def _values_of(self, slot: int) -> Matrix:
        start = self._starts[slot] + 1
        values: Matrix = self._keys[:, start : start + self._counts[slot]] - self._offsets[slot]
        return values

    def _close_up(self) -> None:
        """Move what is live to the front."""
        end = 1
        for slot in self._live:
            start, size = int(self._starts[slot]), int(self._counts[slot]) + 1
            for each in (self._keys, self._sums):
                each[:, end : end + size] = each[:, start : start + size]
            self._starts[slot], end = end, end + size
        self._keys[:, end:], self._end = math.inf, end

    def distortions(self, first: Indices, second: Indices) -> Vector:
        """Return the ``(P)`` L1 distortions of P unions of cells, by their slots."""
        at_once = max(1, NUMBERS_AT_ONCE // len(self._keys))
        parts = range(0, len(first), at_once)
        return np.concatenate(
            [self._weigh(first[at : at + at_once], second[at : at + at_once]) for at in parts]
        )

    def _weigh(self, first: Indices, second: Indices) -> Vector:
        rows = self._counts[first] + self._counts[second]
        totals = self._totals.take(first, axis=1) + self._totals.take(second, axis=1)
        if self._center == "mean":
            centers = totals / rows
        else:
            centers = self._medians(first, second)
            centers /= centers.sum(axis=0)
        counts, sums = -rows, -totals / 2
        keys = torch.from_numpy(self._keys)
        for slots in (first, second):
            wanted = torch.from_numpy(centers + self._offsets[slots])
            place = torch.searchsorted(keys, wanted, right=True).numpy() - 1
            counts = counts + 2 * (place - self._starts[slots])
            sums += self._sums[self._axes, place]
        apart: Vector = (centers * counts - 2 * sums).sum(axis=0)
        return apart

    def _medians(self, first: Indices, second: Indices) -> Matrix:
        """Return the ``(W, P)`` medians of unions, as usual: half way between two middle rows.

        Of the lower half of a union a number of rows is the first cell's: the least of which the
        next row of this cell does not come before the last one of the other cell.
        """
        mine, theirs = self._counts[first], self._counts[second]
        half = (mine + theirs + 1) // 2
        shape = len(self._keys), len(first)
        low = np.broadcast_to(np.maximum(0, half - theirs), shape)
        high = np.broadcast_to(np.minimum(half, mine), shape)

        def at(slots: Indices, rank: Indices) -> Matrix:
            found: Matrix = self._keys[self._axes, self._starts[slots] + 1 + rank]
            return found - self._offsets[slots]

        while (low < high).any():
            middle = (low + high) // 2
            enough = at(first, middle) >= at(second, half - 1 - middle)
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        below = np.maximum(at(first, low - 1), at(second, half - 1 - low))
        above = np.minimum(at(first, low), at(second, half - low))
        is_even = (mine + theirs) % 2 == 0
        found: Matrix = np.where(is_even, below + (above - below) / 2, below)
        return found
