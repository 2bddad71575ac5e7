"""Shapes that labels share where each has too few calibration queries for cells of its own.

With hundreds of classes most labels have a handful of calibration queries. All of these labels
share *levels* of the top score: intervals whose borders are chosen over the queries of all of them
together, with ``min_members`` queries or more in each. A vector of label l at a level t is t for l,
and the *profile* of l for the rest:

    profile_l(j)  ~  sum over calibration queries q of w_l(q) p_j(q),    w_l(q) = p_l(q),

or the square of the sum of w_l(q) sqrt(p_j(q)) where vectors are to be near most queries rather
than calibrated. So all queries that resemble the label shape its vectors, not only those that it
is predicted for. Weights are cut off at the ``min_members``-th largest: no query, and no group, has
more than 1 / ``min_members`` of a profile's weight.

Source: ours. Groups of the second class were tried as well: at equal numbers of cells they distort
more than finer levels do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from oneway.checks import in_parts
from oneway.defenses.codebook.boxes import Matrix, Vector, short
from oneway.defenses.codebook.merging import Cell
from oneway.defenses.codebook.nesting import Nesting
from oneway.defenses.codebook.sorted_rows import Indices
from oneway.defenses.codebook.table import Codebook, rounded_offsets

TOPS = 33
"""Quantiles of the top score at which distances are computed; a level's own lies among them."""

NUMBERS_AT_ONCE = 2**22
"""Probabilities that are compared with vectors at once."""


@dataclass
class SharedRows:
    """The calibration rows of all labels that share levels, cut into boxes by their top score.

    Attributes:
        labels: ``(S)`` int64, the labels.
        owners: ``(n)`` int64, the place in ``labels`` of each row's label.
        profiles: ``(S, K)`` float64, how each label shares out what its top score leaves; 0 for the
            label itself.
        tops: ``(n)`` float64, top scores.
        grid: ``(T)`` float64, top scores at which ``sums`` and ``strays`` are known.
        sums: ``(B, T)`` float64, L1 distortion of each box's rows by the released top score.
        strays: ``(B, T)`` int64, how many of them are beyond the cap.
        boxes: Upper edge, ``(1)``, and row numbers of each box, by rising top score; none where all
            labels together have too few rows.
        offsets: ``(n)`` float64, log of the sum of each row's exponentials, in nats.
        center: See :class:`oneway.defenses.codebook.FitSettings`.
        cap: ``max_l1_worst``; infinite without one.
        groups: ``(n)`` int64, the group of each row, or None.
        fallback: Top score, offset, and number of calibration queries (or groups) of all labels:
            they make the only vector of each label where there are no boxes.
        nesting: None: levels lie in no older table's cells.
        image_distances: None: what a level mixes is not weighed.
        crossings: None: nor is which queries two levels part from their changed copies.
        pairs: See :class:`oneway.defenses.codebook.merging.Mergeable`.
        known: See there.
    """

    labels: Tensor
    owners: Tensor
    profiles: Tensor
    tops: Tensor
    grid: Tensor
    sums: Tensor
    strays: Tensor
    boxes: list[tuple[Tensor, Tensor]]
    offsets: Tensor
    center: str
    cap: float
    groups: Tensor | None
    fallback: tuple[float, float, int]
    nesting: Nesting | None = None
    image_distances: Matrix | None = None
    crossings: Tensor | None = None
    pairs: dict[tuple[Cell, ...], Vector] = field(default_factory=dict)
    known: dict[int, float] = field(default_factory=dict)

    def union(self, numbers: frozenset[int]) -> Tensor:
        """Return the row numbers of several boxes together."""
        return torch.cat([self.boxes[number][1] for number in sorted(numbers)])

    def beyond(self, numbers: Cell) -> int:
        """Return how many of several boxes' rows are beyond the cap from their vector."""
        return int(self.strays[sorted(numbers), self._place(numbers)].sum())

    def group_share(self, numbers: frozenset[int]) -> float:
        """Return the share of the largest group in several boxes; 0 without groups."""
        if self.groups is None:
            return 0.0
        counts = self.groups[self.union(numbers)].unique(return_counts=True)[1]
        return float(counts.max() / counts.sum())

    def behind(self, numbers: frozenset[int]) -> int:
        """Return how many queries, or groups where they are known, several boxes hold."""
        rows = self.union(numbers)
        return len(rows) if self.groups is None else len(self.groups[rows].unique())

    def top(self, numbers: frozenset[int]) -> float:
        """Return the top score that several boxes release."""
        if self.center == "mean":
            return float(self.tops[self.union(numbers)].mean())
        return float(self.grid[self._place(numbers)])

    def _place(self, numbers: frozenset[int]) -> int:
        """Return where in the grid the released top score is, or is nearest to."""
        if self.center == "mean":
            return int((self.grid - self.tops[self.union(numbers)].mean()).abs().argmin())
        return int(self.sums[sorted(numbers)].sum(0).argmin())


class LevelSums:
    """What each cell of :class:`SharedRows` is moved by at each top score that it may release."""

    def __init__(self, shared: SharedRows, cells: list[Cell]) -> None:
        """Add up what is known of these cells' boxes."""
        slots = 2 * len(cells)
        self._grid, self._center = shared.grid.numpy(), shared.center
        self._sums, self._tops = np.zeros((slots, len(shared.grid))), np.zeros((slots, 2))
        for slot, cell in enumerate(cells):
            own = shared.tops[shared.union(cell)]
            self._sums[slot] = shared.sums[sorted(cell)].sum(0)
            self._tops[slot] = float(own.sum()), len(own)

    def distortions(self, first: Indices, second: Indices) -> Vector:
        """Return the ``(P)`` L1 distortions of P unions; a slot without a cell is an empty one."""
        sums, tops = self._sums[first] + self._sums[second], self._tops[first] + self._tops[second]
        if self._center == "mean":
            place = np.abs(self._grid - tops[:, :1] / tops[:, 1:]).argmin(axis=1)
        else:
            place = sums.argmin(axis=1)
        moved: Vector = sums[np.arange(len(sums)), place]
        return moved

    def join(self, first: int, second: int, slot: int) -> None:
        """Let a free slot be the union of two, which are given up."""
        self._sums[slot] = self._sums[first] + self._sums[second]
        self._tops[slot] = self._tops[first] + self._tops[second]


def share_rows(
    probabilities: Tensor,
    boxes: list[tuple[Tensor, Tensor]],
    profiles: Tensor,
    labels: Tensor,
    offsets: Tensor,
    groups: Tensor | None,
    center: str,
    cap: float,
    fallback: tuple[float, float, int],
) -> SharedRows:
    """Weigh the boxes of rows at all top scores that a level may release.

    Args:
        probabilities: ``(n, K)`` float64, of the calibration queries of the labels that share.
        boxes: See :class:`SharedRows`.
        profiles: ``(S, K)`` from :func:`profiles_of`.
        labels: ``(S)`` int64, the labels that share.
        offsets: ``(n)`` float64, see :class:`SharedRows`.
        groups: ``(n)`` int64, the group of each row, or None.
        center: See :class:`SharedRows`.
        cap: See :class:`SharedRows`.
        fallback: See :class:`SharedRows`.
    """
    places = torch.full((probabilities.shape[1],), -1).index_copy(0, labels, _count(len(labels)))
    owners, tops = places[probabilities.argmax(-1)], probabilities.amax(-1)
    levels = torch.linspace(0, 1, TOPS, dtype=torch.float64)
    grid = tops.quantile(levels) if len(tops) else levels
    sums = torch.zeros(len(boxes), TOPS, dtype=torch.float64)
    strays = torch.zeros(len(boxes), TOPS, dtype=torch.int64)
    for place, (_, numbers) in enumerate(boxes):
        for part in numbers.split(max(1, NUMBERS_AT_ONCE // probabilities.shape[1])):
            clean, shapes = probabilities[part], profiles[owners[part]]
            for column, top in enumerate(grid.tolist()):
                apart = _distances(clean, tops[part], shapes, top)
                sums[place, column] += apart.sum()
                strays[place, column] += (apart > cap).sum()
    return SharedRows(
        labels,
        owners,
        profiles,
        tops,
        grid,
        sums,
        strays,
        boxes,
        offsets,
        center,
        cap,
        groups,
        fallback,
    )


def profiles_of(
    logits: Tensor,
    labels: Tensor,
    least: int,
    center: str,
    explicit_classes: int,
    groups: Tensor | None,
) -> Tensor:
    """Return how labels share out what their top score leaves; see the module.

    Args:
        logits: ``(N, K)`` clean scores of all calibration queries.
        labels: ``(S)`` int64.
        least: ``min_members``: no query or group weighs more than one of so many.
        center: See :class:`SharedRows`.
        explicit_classes: T; all but the T - 1 largest entries share their sum evenly.
        groups: ``(N)`` int64, or None: each query is a group.

    Returns:
        ``(S, K)`` float64 that sum to 1, 0 for the label itself.
    """
    weights = torch.cat([part[:, labels] for part in _probabilities(logits)])
    members = _count(len(weights)) if groups is None else groups.unique(return_inverse=True)[1]
    sums = weights.new_zeros(int(members.max()) + 1, len(labels)).index_add_(0, members, weights)
    most = sums.topk(min(least, len(sums)), 0).values[-1]
    tiny = torch.finfo(torch.float64).tiny
    weights = weights * (most / sums.clamp_min(tiny)).clamp_max(1)[members]
    power = 1.0 if center == "mean" else 0.5
    shapes = torch.zeros(len(labels), logits.shape[-1], dtype=torch.float64)
    parts = [len(part) for part in in_parts(logits)]
    for weight, part in zip(weights.split(parts), _probabilities(logits), strict=True):
        shapes += weight.mT @ part.pow(power)
    shapes = shapes.pow(1 / power).clamp_min(tiny)
    own = labels.unsqueeze(-1)
    shapes = shapes.scatter(-1, own, 0)
    shapes /= shapes.sum(-1, keepdim=True)
    num_classes = logits.shape[-1]
    if explicit_classes < num_classes:
        kept = shapes.topk(explicit_classes - 1, -1)
        even = (1 - kept.values.sum(-1, keepdim=True)).clamp_min(0)
        even /= num_classes - explicit_classes
        shapes = even.expand_as(shapes).scatter(-1, kept.indices, kept.values).scatter(-1, own, 0)
    return shapes


def _probabilities(logits: Tensor) -> Iterator[Tensor]:
    """Yield ``(n, K)`` float64 probabilities of parts of the scores, on the CPU."""
    return (part.cpu().double().softmax(-1) for part in in_parts(logits))


def _rest(shapes: Tensor, top: float) -> Tensor:
    """Return what is released of other classes: no more of any than of the label."""
    return ((1 - top) * shapes).clamp_max(top)


def _distances(clean: Tensor, tops: Tensor, shapes: Tensor, top: float) -> Tensor:
    """Return the ``(m)`` L1 distances of clean probabilities from their vectors at a level."""
    rest = _rest(shapes, top)
    # What was cut off goes to the label.
    return (clean - rest).abs_().sum(-1) - tops + (tops - (1 - rest.sum(-1))).abs()


def _count(number: int) -> Tensor:
    return torch.arange(number)


def fill_shared(
    book: Codebook,
    start: int,
    shared: SharedRows,
    cells: list[frozenset[int]],
    leading: Callable[[Tensor], Tensor],
) -> int:
    """Write the boxes and cells of all labels that share levels into a table.

    Args:
        book: The table.
        start: Number of the first cell.
        shared: The labels' rows.
        cells: Boxes of each level; none: each label has one vector.
        leading: Makes the label the largest of ``(C, W)`` values.

    Returns:
        The number of the next cell.
    """
    explicit, dense = book.sizes.explicit_classes, book.is_dense
    order = shared.profiles.scatter(-1, shared.labels.unsqueeze(-1), torch.inf)
    classes = order.topk(explicit, -1).indices
    book.classes[shared.labels] = classes
    entries = shared.profiles.gather(-1, classes)
    if not dense:
        left = (1 - entries.sum(-1, keepdim=True)).clamp_min(0)
        entries = torch.cat([entries, left / (book.sizes.num_classes - explicit)], -1)
    levels = [_level(shared, numbers) for numbers in cells] or [shared.fallback]
    assignment, edges = _steps(shared, cells)
    book.edges[shared.labels] = -torch.inf
    book.edges[shared.labels, : len(edges)] = torch.inf
    book.edges[shared.labels, : len(edges), 0] = edges
    of_box = torch.full((len(shared.tops),), 0)
    for number, numbers in enumerate(cells):
        of_box[shared.union(numbers)] = number
    counts = (shared.owners * len(levels) + of_box).bincount(
        minlength=len(shared.labels) * len(levels)
    )
    copies = torch.full((1, explicit + (not dense)), 1.0, dtype=torch.float64)
    copies[:, explicit:] = book.sizes.num_classes - explicit
    for number, (top, offset, behind) in enumerate(levels):
        # Cut off, as values of other labels are: all digits would name who was fitted.
        rest = torch.from_numpy(short(_rest(entries, top).numpy(), np.floor))
        rest[:, 0] = 1 - (rest * copies).sum(-1) + rest[:, 0]
        own = start + number + len(levels) * _count(len(shared.labels))
        book.values[own] = leading(rest)
        book.offsets[own], book.shared[own] = offset, behind
        book.labels[own] = shared.labels
    everywhere = slice(start, start + len(counts))
    book.offsets[everywhere] = rounded_offsets(book.offsets[everywhere])
    # The only vector of a label says nothing of the queries behind it.
    book.members[everywhere] = counts if len(cells) > 1 else 0
    if shared.groups is not None and len(cells) > 1:
        pairs = torch.stack([shared.owners * len(levels) + of_box, shared.groups]).unique(dim=1)
        book.groups[everywhere] = pairs[0].bincount(minlength=len(counts))
    first = start + len(levels) * _count(len(shared.labels)).unsqueeze(-1)
    book.assignment[shared.labels] = first
    book.assignment[shared.labels, : len(assignment)] = first + assignment
    return everywhere.stop


def _level(shared: SharedRows, numbers: frozenset[int]) -> tuple[float, float, int]:
    """Return the top score and the offset that a level releases, and how many are behind it."""
    offset = float(shared.offsets[shared.union(numbers)].mean())
    return shared.top(numbers), offset, shared.behind(numbers)


def _steps(shared: SharedRows, cells: list[frozenset[int]]) -> tuple[Tensor, Tensor]:
    """Return the level and the upper edge of each run of boxes that have the same level."""
    if not cells:
        return torch.zeros(1, dtype=torch.int64), torch.tensor([torch.inf], dtype=torch.float64)
    level = {box: number for number, numbers in enumerate(cells) for box in numbers}
    runs, edges = list[int](), list[Tensor]()
    for box, (edge, _) in enumerate(shared.boxes):
        if runs and runs[-1] == level[box]:
            edges[-1] = edge
        else:
            runs.append(level[box])
            edges.append(edge)
    return torch.tensor(runs), torch.cat(edges)


def runs_of(shared: SharedRows, cells: list[frozenset[int]]) -> int:
    """Return how many boxes a label that shares these levels needs."""
    return len(_steps(shared, cells)[0])
