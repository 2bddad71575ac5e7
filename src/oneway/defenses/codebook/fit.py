"""Fit a codebook: cut each label's rows into boxes, then merge boxes into cells.

Cutting is greedy (each step the cut that removes most L1 distortion), and no side has fewer than
``min_members`` rows. Merging is the entropy-constrained part: cells are joined, whether they
touch or not, for as long as that lowers

    sum of L1(p, center of cell) + rate_weight * rows * H(cell | label)
        - image_weight * rows * E Var(image | cell)

Source: Chou, Lookabaugh & Gray, "Entropy-constrained vector quantization" (IEEE Transactions on
Acoustics, Speech, and Signal Processing 37, 1989) for the objective; LeFevre, DeWitt &
Ramakrishnan, "Mondrian multidimensional k-anonymity" (ICDE 2006) for cuts that keep k on both
sides. Together, and with a term for what a cell mixes, they are ours. Nearest-codeword cells
(k-means with the same objective) were tried first: at the same least number of members they
distort more, since they cut rare rows into cells that are too small to keep.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from oneway.checks import check_count, check_logits, check_weight
from oneway.defenses.codebook.table import MOST_OFFSET, Codebook, seen_through, width_of
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError

LISTED = 32
"""Classes that each label's table tells apart, unless asked otherwise; all of up to 32."""

MOST_BOXES = 64
"""Boxes of a label, at most."""

CENTERS = ("mean", "median")

CUTS_TRIED = 4
"""Axes whose best cut is weighed in L1; they are found by squared distances, which are cheaper."""


TIE = 1e-9
"""Share by which the gains of two cuts must differ, or else they are the same."""


@dataclass(frozen=True)
class FitSettings:
    """How a codebook is fitted.

    Attributes:
        min_members: k: calibration queries behind each released vector, at least. A label with
            fewer is told, and nothing else of it.
        rate_weight: L1 distance of probabilities that one bit beyond the label is worth. 0 joins
            boxes only where that distorts no more; infinity leaves one cell per label.
        image_weight: L1 distance that a mean squared error (per pixel, between the mean images of
            cells) is worth: joins cells whose images differ, since what a cell mixes no attacker
            separates. 0: images are not looked at.
        most_boxes: Of a label, at most.
        listed: Classes that each label's table tells apart.
        center: What is released of a cell. ``"mean"`` of its members' probabilities: calibrated.
            ``"median"``, scaled to sum to 1: nearest to most of them in L1, since in a large cell
            most are nearly sure of the label and a few are not.
    """

    min_members: int = 20
    rate_weight: float = 0.01
    image_weight: float = 0.0
    most_boxes: int = MOST_BOXES
    listed: int = LISTED
    center: Literal["mean", "median"] = "mean"

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InvalidOptionError: One is.
            UnknownNameError: There is no such ``center``.
        """
        if self.center not in CENTERS:
            raise UnknownNameError("center", str(self.center), CENTERS)
        check_count("min_members", self.min_members)
        check_rate_weight(self.rate_weight)
        check_weight("image_weight", self.image_weight)
        check_count("most_boxes", self.most_boxes)
        check_count("listed", self.listed)


def check_rate_weight(value: float) -> None:
    """Refuse a weight of a bit that is neither a number of at least 0 nor infinity.

    Raises:
        InvalidOptionError: It is.
    """
    if value != math.inf:
        check_weight("rate_weight", value)


@dataclass
class LabelRows:
    """One label's calibration rows, cut into boxes, and what joining two boxes costs.

    Attributes:
        classes: ``(T)`` int64, the label's listed classes.
        rows: ``(n, W)`` float64, as the table sees them.
        images: ``(n, D)`` float64, or None.
        offsets: ``(n)`` float64, log of the sum of each row's exponentials.
        center: See :class:`FitSettings`.
        boxes: Each box's upper edges, ``(W)``, and the numbers of its rows, in the order in which
            a table tries them; none if the label has too few rows.
        costs: L1 distortion of unions of boxes, by their numbers. They do not depend on the
            weights, so that a sweep over weights computes them once.
    """

    classes: Tensor
    rows: Tensor
    images: Tensor | None
    offsets: Tensor
    center: str
    boxes: list[tuple[Tensor, Tensor]]
    costs: dict[frozenset[int], float] = field(default_factory=dict)

    def union(self, numbers: frozenset[int]) -> Tensor:
        """Return the row numbers of some boxes together."""
        return torch.cat([self.boxes[number][1] for number in sorted(numbers)])

    def cost(self, numbers: frozenset[int]) -> float:
        """Return the L1 distortion of some boxes' rows about their common center."""
        if numbers not in self.costs:
            self.costs[numbers] = distortion(self.rows[self.union(numbers)], self.center)
        return self.costs[numbers]


@dataclass(frozen=True)
class Calibration:
    """Calibration scores that were cut into boxes: all that a choice of weights needs.

    Attributes:
        labels: One :class:`LabelRows` per label.
        canonical_top: What a label's vector gives it where nothing was seen of it.
        settings: How they were cut.
    """

    labels: tuple[LabelRows, ...]
    canonical_top: float
    settings: FitSettings


def cut_calibration(
    logits: Tensor,
    settings: FitSettings,
    images: Tensor | None = None,
    on_label: Callable[[float], None] | None = None,
) -> Calibration:
    """Cut calibration scores into boxes, label by label.

    Args:
        logits: ``(N, K)`` clean scores of calibration queries; they need no true labels.
        settings: How.
        images: ``(N, ...)`` the queries themselves, if ``image_weight`` is not 0.
        on_label: Called with the share that is done.

    Raises:
        InvalidTensorError: ``logits`` are no finite scores, there are too few of them, or
            ``images`` are not as many.
    """
    check_logits(logits, "calibration logits")
    if logits.ndim != 2 or len(logits) < settings.min_members:
        raise InvalidTensorError(
            f"calibration logits must have shape (N, K) with N >= {settings.min_members}, the "
            f"members of the smallest cell, but got {tuple(logits.shape)}. Pass more calibration "
            "queries, or lower min_members."
        )
    if settings.image_weight and images is None:
        raise InvalidTensorError(
            "images must be given with image_weight: cells are told apart by them."
        )
    if images is not None and len(images) != len(logits):
        raise InvalidTensorError(
            f"images must be as many as calibration logits, {len(logits)}, but got {len(images)}."
        )
    labels = logits.argmax(-1).cpu()
    flat = (
        images.detach().flatten(1).cpu() if settings.image_weight and images is not None else None
    )
    num_classes = logits.shape[-1]
    listed = min(settings.listed, num_classes)
    top = torch.cat([some.double().softmax(-1).amax(-1) for some in logits.split(4096)]).mean()
    found = []
    for label in range(num_classes):
        own = (labels == label).nonzero()[:, 0]
        # Label by label: all rows in float64 would take twice the memory of the scores.
        wide = logits[own.to(logits.device)].detach().double().cpu()
        probabilities = wide.softmax(-1)
        mean = probabilities.mean(0) if len(own) else torch.zeros(num_classes, dtype=torch.float64)
        mean[label] = torch.inf  # the label itself comes first
        classes = mean.topk(listed).indices
        rows = seen_through(probabilities, classes.expand(len(own), -1), listed == num_classes)
        boxes = _cut(rows, settings) if len(own) >= settings.min_members else []
        shown = None if flat is None else flat[own].double()
        found.append(LabelRows(classes, rows, shown, wide.logsumexp(-1), settings.center, boxes))
        if on_label is not None:
            on_label((label + 1) / num_classes)
    return Calibration(tuple(found), max(float(top), 1.5 / num_classes), settings)


def merge_calibration(
    calibration: Calibration, rate_weight: float, image_weight: float = 0.0
) -> Codebook:
    """Merge boxes into cells under given weights, and fill a table.

    Args:
        calibration: From :func:`cut_calibration`.
        rate_weight: See :class:`FitSettings`.
        image_weight: See there; needs a calibration that was cut with images.

    Raises:
        InvalidOptionError: A weight is outside its range, or the calibration has no images.
    """
    check_rate_weight(rate_weight)
    check_weight("image_weight", image_weight)
    if image_weight and all(one.images is None for one in calibration.labels):
        raise InvalidOptionError(
            "image_weight needs a calibration that was cut with images, but this one has none. "
            "Cut it under settings with an image_weight above 0."
        )
    merged = [
        _merge(one, rate_weight, image_weight) if one.boxes else [] for one in calibration.labels
    ]
    num_classes = len(calibration.labels)
    listed = len(calibration.labels[0].classes)
    book = Codebook(
        num_classes,
        listed,
        max(1, *(len(one.boxes) for one in calibration.labels)),
        sum(max(1, len(cells)) for cells in merged),
    )
    width, cell = width_of(num_classes, listed), 0
    for label, (one, cells) in enumerate(zip(calibration.labels, merged, strict=True)):
        book.classes[label] = one.classes
        if not cells:
            book.owner[label] = book.labels.new_tensor(cell)
            book.labels[cell] = label
            book.values[cell] = _canonical(calibration.canonical_top, num_classes, width)
            cell += 1
            continue
        book.edges[label] = -torch.inf
        book.edges[label, : len(one.boxes)] = torch.stack([edges for edges, _ in one.boxes])
        owner = torch.empty(len(one.boxes), dtype=torch.int64)
        for number, numbers in enumerate(cells):
            owner[sorted(numbers)] = number
        members = [one.union(numbers) for numbers in cells]
        centers = torch.stack([center_of(one.rows[rows], one.center) for rows in members])
        offsets = torch.stack([one.offsets[rows].mean() for rows in members])
        book.owner[label] = cell
        book.owner[label, : len(owner)] = cell + owner
        own = slice(cell, cell + len(cells))
        book.labels[own] = label
        book.members[own] = torch.tensor([len(rows) for rows in members])
        book.offsets[own] = offsets.clamp(-MOST_OFFSET, MOST_OFFSET)
        book.values[own] = _released(centers, num_classes, listed)
        cell += len(cells)
    return book


def fit_codebook(
    logits: Tensor,
    settings: FitSettings | None = None,
    images: Tensor | None = None,
    on_label: Callable[[float], None] | None = None,
) -> Codebook:
    """Fit a codebook to calibration scores; see the module.

    Args:
        logits: ``(N, K)`` clean scores of calibration queries.
        settings: How; None: the defaults.
        images: ``(N, ...)`` the queries, if ``image_weight`` is not 0.
        on_label: Called with the share that is done.

    Raises:
        InvalidTensorError: See :func:`cut_calibration`.
    """
    settings = settings or FitSettings()
    calibration = cut_calibration(logits, settings, images, on_label)
    return merge_calibration(calibration, settings.rate_weight, settings.image_weight)


def center_of(rows: Tensor, center: str) -> Tensor:
    """Return the ``(W)`` mean of ``(n, W)`` rows that sum to 1, or their median, scaled to."""
    if center == "mean":
        return rows.mean(0)
    # Of an even number of rows both middle ones count, as in everybody's median.
    middle = rows.quantile(0.5, 0)
    return middle / middle.sum()


def distortion(rows: Tensor, center: str) -> float:
    """Return the sum of L1 distances of ``(n, W)`` rows from their center."""
    return float((rows - center_of(rows, center)).abs().sum())


def _cut(rows: Tensor, settings: FitSettings) -> list[tuple[Tensor, Tensor]]:
    """Cut rows into boxes, best cut first, until there are enough or none can be cut.

    A cut puts its lower side before its upper side, in the place of what was cut. So the first
    box whose upper edges a row keeps within is the one that the cuts lead to, and lower edges
    need not be kept.
    """
    open_ended = torch.full((rows.shape[1],), torch.inf, dtype=torch.float64)
    boxes = [(open_ended, torch.arange(len(rows)))]
    cuts = [_best_cut(rows, settings)]
    while len(boxes) < settings.most_boxes:
        gains = [-1.0 if cut is None else cut.gain for cut in cuts]
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
        cuts[best : best + 1] = [_best_cut(rows[side], settings) for _, side in sides]
    return boxes


@dataclass(frozen=True)
class _Cut:
    """Where to cut, and the L1 distortion that it removes."""

    axis: int
    edge: float
    gain: float


def _best_cut(rows: Tensor, settings: FitSettings) -> _Cut | None:
    """Return the cut that removes most L1 distortion; None if no cut removes any."""
    count, least, center = len(rows), settings.min_members, settings.center
    if count < 2 * least:
        return None
    ordered = rows.sort(0).values
    sums = ordered.cumsum(0)
    before = torch.arange(1, count, dtype=torch.float64).unsqueeze(-1)
    after = count - before
    apart = sums[:-1] / before - (sums[-1] - sums[:-1]) / after
    gains = before * after / count * apart.square()
    # Half way between two rows, so that neither's last bit decides; equals cannot be parted.
    edges = (ordered[:-1] + ordered[1:]) / 2
    gains[(edges >= ordered[1:]) | (edges < ordered[:-1])] = -1
    gains[: least - 1], gains[count - least :] = -1, -1
    best, at = gains.max(0)
    whole, found = distortion(rows, center), None
    for axis in best.topk(min(CUTS_TRIED, rows.shape[1])).indices.tolist():
        if best[axis] <= 0:
            break
        edge = float(edges[at[axis], axis])
        left = rows[:, axis] <= edge
        gain = whole - distortion(rows[left], center) - distortion(rows[~left], center)
        # Axes that part the rows alike gain alike: the last bits must not decide between them.
        if gain > 0 and (found is None or gain > found.gain * (1 + TIE)):
            found = _Cut(axis, edge, gain)
    return found


def _merge(one: LabelRows, rate_weight: float, image_weight: float) -> list[frozenset[int]]:
    """Join a label's boxes while that lowers the objective; return cells, as numbers of boxes."""
    cells = [frozenset([number]) for number in range(len(one.boxes))]
    if rate_weight == math.inf:
        return [frozenset(range(len(one.boxes)))]
    counts = {cell: len(one.union(cell)) for cell in cells}
    images = one.images if image_weight else None
    means = {} if images is None else {cell: images[one.union(cell)].mean(0) for cell in cells}

    def change(some: frozenset[int], other: frozenset[int]) -> float:
        distance = one.cost(some | other) - one.cost(some) - one.cost(other)
        own, others = counts[some], counts[other]
        both = own + others
        # n H(cell | label) = - sum of n_cell log2(n_cell / n), where n drops out of a difference.
        bits = own * math.log2(both / own) + others * math.log2(both / others)
        between = 0.0
        if means:
            apart = float((means[some] - means[other]).square().mean())
            between = own * others / both * apart
        return distance - rate_weight * bits - image_weight * between

    changes = {
        (some, other): change(some, other)
        for place, some in enumerate(cells)
        for other in cells[:place]
    }
    while changes:
        pair = min(changes, key=changes.__getitem__)
        if changes[pair] > 0:
            break
        some, other = pair
        joined = some | other
        counts[joined] = counts[some] + counts[other]
        if means:
            share = counts[some] / counts[joined]
            means[joined] = share * means[some] + (1 - share) * means[other]
        cells = [cell for cell in cells if cell not in pair]
        changes = {key: value for key, value in changes.items() if not {*key} & {*pair}}
        changes.update({(joined, cell): change(joined, cell) for cell in cells})
        cells.append(joined)
    return sorted(cells, key=min)


def _canonical(top: float, num_classes: int, width: int) -> Tensor:
    """Return the vector of a label of which too little is known: ``top``, and the rest evenly."""
    vector = torch.full((width,), (1 - top) / (num_classes - 1), dtype=torch.float64)
    vector[0] = top
    return vector.clamp_min(torch.finfo(torch.float64).tiny)


def _released(centers: Tensor, num_classes: int, listed: int) -> Tensor:
    """Return released values from the center of each cell, as a table sees it."""
    values = centers.clone()
    if listed < num_classes:
        values[:, listed:] /= num_classes - listed
    return positive_and_led(values)


def positive_and_led(values: Tensor) -> Tensor:
    """Return ``(C, W)`` values that have a logarithm each, the label's strictly largest."""
    raised = values.clamp_min(torch.finfo(torch.float64).tiny)
    # The label is each table's first column; where it ties, one step up.
    return lift_label(raised, raised.new_zeros(len(raised), dtype=torch.int64), 0)
