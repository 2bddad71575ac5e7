"""Merge boxes into cells: the entropy-constrained half of a fit.

Cells are joined, whether they touch or not, for as long as that lowers

    sum of L1(p, center of cell) + rate_weight * rows * H(cell | label)
        - image_weight * rows * E Var(image | cell)
        + variant_weight * rows * P(two answers to changed copies of a query have two cells)

and then, where a table may have no more cells than ``max_cells``, at the least rise. No union
brings a row farther than ``max_l1_worst`` from its cell's vector that was within before.

All unions with one cell are weighed at once, from sums instead of rows: see
:mod:`oneway.defenses.codebook.sorted_rows`.

Source: Chou, Lookabaugh & Gray, "Entropy-constrained vector quantization" (IEEE Transactions on
Acoustics, Speech, and Signal Processing 37, 1989) for the objective; the terms for what a cell
mixes, and the sums, are ours.
"""

import itertools
import math
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from oneway.defenses.codebook.boxes import Matrix, Vector
from oneway.defenses.codebook.nesting import Box, Nesting
from oneway.defenses.codebook.options import FitSettings
from oneway.defenses.codebook.sorted_rows import Indices

LARGEST_RATE_WEIGHT = 1e9
"""Rate weight that counts as infinite: no distortion weighs as much as a bit."""

BROKEN = sys.float_info.max
"""Change of the objective by a union that breaks the cap."""

Cell = frozenset[int]
"""Numbers of the boxes that make a cell."""


class Unions(Protocol):
    """Weighs unions of two cells, which have the numbers of slots."""

    def distortions(self, first: Indices, second: Indices) -> Vector:
        """Return the ``(P)`` L1 distortions of P unions; a slot without a cell is an empty one."""

    def join(self, first: int, second: int, slot: int) -> None:
        """Let a free slot be the union of two, which are given up."""


class Mergeable(Protocol):
    """Boxes of one label, or of all labels that share levels.

    Attributes:
        pairs: L1 distortion of cells and of pairs of them, by cells: what is known of it.
        known: The same of unions, by the sum of 2 to the power of each box. Neither
            depends on the weights, so that a sweep over weights computes it once.
    """

    pairs: dict[tuple[Cell, ...], Vector]
    known: dict[int, float]

    @property
    def boxes(self) -> list[Box]:
        """Upper edges and row numbers of each box."""

    @property
    def cap(self) -> float:
        """``max_l1_worst``; infinite without one."""

    @property
    def nesting(self) -> Nesting | None:
        """How the boxes lie in an older table's cells; None: in no others."""

    @property
    def image_distances(self) -> Matrix | None:
        """``(m, m)`` mean squared differences of the boxes' mean images, or None."""

    @property
    def crossings(self) -> Tensor | None:
        """``(m, m)`` how many queries each pair of boxes parts from changed copies, or None."""

    def beyond(self, numbers: Cell) -> int:
        """Return how many rows of several boxes are beyond the cap from their released vector."""

    def group_share(self, numbers: Cell) -> float:
        """Return the share of the largest group in several boxes; 0 without groups."""


@dataclass
class Merged:
    """A label's cells, and what joining them further costs.

    Attributes:
        cells: The cells, as numbers of boxes, by number of slot.
        ahead: Change of the objective, slots of the two cells, and that of the union, for each
            further union, the cheapest of its time; none unless they were asked for.
        alike: Number of labels that have these cells.
    """

    cells: dict[int, Cell]
    ahead: list[tuple[float, int, int, int]]
    alike: int = 1

    @property
    def cheapest(self) -> float:
        """Change of the objective by the next union; infinite if there is none within the cap."""
        return self.ahead[0][0] if self.ahead else math.inf

    def join(self) -> None:
        """Join the two cells whose union costs least."""
        _, first, second, slot = self.ahead.pop(0)
        self.cells[slot] = self.cells.pop(first) | self.cells.pop(second)


@dataclass(frozen=True)
class Request:
    """What a label needs to know next: unions to make, and pairs of slots to weigh."""

    joins: list[tuple[int, int, int]]
    first: Indices
    second: Indices


def merge(
    labels: Sequence[Mergeable],
    unions: Callable[[list[list[Cell]]], Unions],
    rate_weight: float,
    image_weight: float,
    settings: FitSettings,
    *,
    alike: int = 1,
    to_the_end: bool = False,
) -> list[Merged]:
    """Join cells while that lowers the objective, or one group has too large a share of one.

    Labels do not touch each other. They go on side by side, so that what they need to know is
    answered for all of them at once.

    Args:
        labels: The boxes of each label; at least one box.
        unions: Returns what weighs unions of the cells that each label starts from. A label with m
            of them has 2 m slots, after those of the labels before it.
        rate_weight: See :class:`FitSettings`.
        image_weight: See :class:`FitSettings`.
        settings: Its ``variant_weight`` and ``max_group_share`` count.
        alike: Number of labels that have these cells.
        to_the_end: Whether to look ahead, down to one cell.
    """
    starting = [_starting_cells(label, rate_weight) for label in labels]
    before = [0, *itertools.accumulate(2 * len(cells) for cells in starting)]
    running = [
        _merge_label(
            _Pairs(label, cells, rate_weight, image_weight, settings.variant_weight),
            Merged(dict(enumerate(cells)), [], alike),
            settings.max_group_share,
            to_the_end=to_the_end,
        )
        for label, cells in zip(labels, starting, strict=True)
    ]
    merged, weigher = dict[int, Merged](), None
    answers: dict[int, Any] = dict.fromkeys(range(len(labels)))
    while answers:
        asked = dict[int, Request]()
        for place, answer in answers.items():
            try:
                asked[place] = running[place].send(answer)
            except StopIteration as end:
                merged[place] = end.value
        if not asked:
            break
        # Where all unions are known, rows need not be sorted.
        weigher = unions(starting) if weigher is None else weigher
        for place, request in asked.items():
            for join in request.joins:
                weigher.join(*(before[place] + slot for slot in join))
        first, second = (
            np.concatenate(
                [before[place] + getattr(request, name) for place, request in asked.items()]
            )
            for name in ("first", "second")
        )
        ends = np.cumsum([len(request.first) for request in asked.values()])[:-1]
        answers = dict(zip(asked, np.split(weigher.distortions(first, second), ends), strict=True))
    return [merged[place] for place in range(len(labels))]


def _starting_cells(label: Mergeable, rate_weight: float) -> list[Cell]:
    """Return the cells that joining starts from."""
    if label.nesting is not None:
        return label.nesting.cells
    if rate_weight == math.inf and label.cap == math.inf and label.boxes:
        return [frozenset(range(len(label.boxes)))]
    return [frozenset([number]) for number in range(len(label.boxes))]


def _merge_label(
    pairs: "_Pairs", merged: Merged, most: float, *, to_the_end: bool
) -> Generator[Request, Vector, Merged]:
    """Join the cells of one label; see :func:`merge`."""
    yield from pairs.begin()
    while (pair := pairs.cheapest()) is not None:
        if pairs.changes[pair] > 0:
            uneven = pairs.uneven(merged.cells, most)
            # Also beyond the cap: who is behind a vector counts more. None of an older table's.
            pair = pairs.cheapest(uneven)
            if pair is None:
                break
        merged.ahead.append((yield from pairs.join(*pair)))
        merged.join()
    while to_the_end and (pair := pairs.cheapest()) is not None:
        merged.ahead.append((yield from pairs.join(*pair)))
    return merged


class _Pairs:
    """Pairs of cells, and how joining each changes the objective.

    Matrices are of slots, of which the later one comes first. So of equal changes the first stands
    for the pair that has been there longest. A union has the next free slot.

    Attributes:
        changes: ``(S, S)``; infinite where two cells may not be joined, and ``BROKEN`` where that
            breaks the cap, as far as it was checked.
    """

    def __init__(
        self,
        label: Mergeable,
        cells: list[Cell],
        rate_weight: float,
        image_weight: float,
        variant_weight: float,
    ) -> None:
        self._label, self._cells = label, list(cells)
        # An infinite weight would leave no order among pairs.
        self._rate_weight = min(rate_weight, LARGEST_RATE_WEIGHT)
        self._image_weight, self._variant_weight = image_weight, variant_weight
        slots = 2 * len(cells)
        member = np.zeros((slots, len(label.boxes)))
        for slot, cell in enumerate(cells):
            member[slot, sorted(cell)] = 1
        sizes = np.array([len(rows) for _, rows in label.boxes], dtype=np.float64)
        self._counts, self._parents = member @ sizes, np.zeros(slots, dtype=np.int64)
        if label.nesting is not None:
            parents = [label.nesting.parents[min(cell)] for cell in cells]
            self._parents[: len(cells)] = parents
        self._images = self._crossings = None
        if image_weight and label.image_distances is not None:
            share = member * sizes / np.maximum(1, self._counts[:, None])
            # |mean - mean'|^2 of cells is that of their parts, less half of that within each.
            apart = share @ label.image_distances @ share.T
            within = np.diagonal(apart) / 2
            self._images = apart - within - within[:, None]
        if variant_weight and label.crossings is not None:
            self._crossings = member @ label.crossings.numpy() @ member.T
        self._codes = [sum(1 << number for number in cell) for cell in cells]
        self._joins = list[tuple[int, int, int]]()
        self._gone = np.zeros(slots, dtype=bool)
        self._costs, self._distorted = np.zeros(slots), np.zeros((slots, slots))
        self._keeps_cap = np.zeros((slots, slots), dtype=bool)
        self.changes = np.full((slots, slots), math.inf)

    def begin(self) -> Generator[Request, Vector, None]:
        """Weigh all pairs of the cells that joining starts from."""
        count, pairs = len(self._cells), self._label.pairs
        later, earlier = np.tril_indices(count, -1)
        alike = self._parents[later] == self._parents[earlier]
        later, earlier = later[alike], earlier[alike]
        if not len(later):
            return
        alone, cells = np.unique([later, earlier]), tuple(self._cells)
        if cells not in pairs:
            pairs[cells] = yield from self._distortions(
                np.concatenate([alone, later]),
                np.concatenate([np.full_like(alone, 2 * count - 1), earlier]),
            )
        self._costs[alone], apart = np.split(pairs[cells], [len(alone)])
        self._weigh(later, earlier, apart)

    def _distortions(self, first: Indices, second: Indices) -> Generator[Request, Vector, Vector]:
        found = yield Request(self._joins, first, second)
        self._joins = []
        return found

    def uneven(self, cells: dict[int, Cell], most: float) -> list[int]:
        """Return the slots of cells of which one group has a larger share."""
        return [slot for slot, cell in cells.items() if self._label.group_share(cell) > most]

    def _weigh(self, later: Indices, earlier: Indices, distorted: Vector) -> None:
        """Write what joining pairs costs, given the distortions of their unions."""
        self._distorted[later, earlier] = distorted
        one, other = self._counts[later], self._counts[earlier]
        total = one + other
        # n H(cell | label) = - sum of n_cell log2(n_cell / n), where n drops out of a difference.
        bits = one * np.log2(total / one) + other * np.log2(total / other)
        change = distorted - self._costs[later] - self._costs[earlier] - self._rate_weight * bits
        if self._images is not None:
            between = one * other / total * self._images[later, earlier]
            change -= self._image_weight * between
        if self._crossings is not None:
            change -= self._variant_weight * self._crossings[later, earlier]
        self.changes[later, earlier] = change

    def cheapest(self, uneven: list[int] | None = None) -> tuple[int, int] | None:
        """Return the pair that costs least; None if none may be joined.

        Args:
            uneven: Slots of which the pair must have one; None: any.
        """
        changes = self.changes
        if uneven is not None:
            asked = np.isin(np.arange(len(changes)), uneven)
            changes = np.where(asked | asked[:, None], changes, math.inf)
        while changes.size:
            first, second = divmod(int(changes.argmin()), len(changes))
            if changes[first, second] == math.inf:
                break
            if changes[first, second] == BROKEN or self._is_within(first, second):
                return first, second
            changes[first, second] = self.changes[first, second] = BROKEN
        return None

    def _is_within(self, first: int, second: int) -> bool:
        """Return whether joining two cells brings no row beyond the cap."""
        if self._label.cap < math.inf and not self._keeps_cap[first, second]:
            cells = self._cells[first], self._cells[second]
            both = self._label.beyond(cells[0] | cells[1])
            self._keeps_cap[first, second] = both <= sum(map(self._label.beyond, cells))
            return bool(self._keeps_cap[first, second])
        return True

    def join(
        self, first: int, second: int
    ) -> Generator[Request, Vector, tuple[float, int, int, int]]:
        """Make a union of two cells, weigh all unions with it, and return what ``ahead`` holds."""
        slot = len(self._cells)
        self._joins.append((first, second, slot))
        self._codes.append(self._codes[first] | self._codes[second])
        self._cells.append(self._cells[first] | self._cells[second])
        one, other = self._counts[first], self._counts[second]
        self._counts[slot], self._parents[slot] = one + other, self._parents[first]
        self._costs[slot] = self._distorted[first, second]
        if self._crossings is not None:
            both = self._crossings[first] + self._crossings[second]
            self._crossings[slot], self._crossings[:, slot] = both, both
        if self._images is not None:
            share = one / (one + other)
            both = share * self._images[first] + (1 - share) * self._images[second]
            both -= share * (1 - share) * self._images[first, second]
            self._images[slot], self._images[:, slot] = both, both
        pair = [first, second]
        change = float(self.changes[first, second])
        self.changes[pair] = self.changes[:, pair] = math.inf
        self._gone[pair] = True
        mates = np.flatnonzero(~self._gone[:slot] & (self._parents[:slot] == self._parents[slot]))
        if len(mates):
            later, known = np.full_like(mates, slot), self._label.known
            codes = [self._codes[slot] | self._codes[mate] for mate in mates.tolist()]
            new = [place for place, code in enumerate(codes) if code not in known]
            if new:
                apart = yield from self._distortions(later[new], mates[new])
                known.update(zip((codes[place] for place in new), apart.tolist(), strict=True))
            self._weigh(later, mates, np.array([known[code] for code in codes]))
        return math.inf if change == BROKEN else change, first, second, slot
