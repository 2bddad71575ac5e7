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

import torch
from torch import Tensor

from oneway.checks import check_logits_to_fit, check_weight
from oneway.defenses.codebook.measures import Measured, measure_codebook
from oneway.defenses.codebook.options import Budget, FitSettings, check_rate_weight
from oneway.defenses.codebook.table import MAX_OFFSET, Codebook, project
from oneway.defenses.codebook.traffic import check_groups
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError

RATE_WEIGHTS = (math.inf, *(10 ** (-power / 4) for power in range(17)), 0.0)
"""Values of ``rate_weight`` that a budget chooses from: one cell per label to all boxes apart."""

CUTS_TRIED = 4
"""Axes whose best cut is weighed in L1; they are found by squared distances, which are cheaper."""

TIE = 1e-9
"""Share by which the gains of two cuts must differ, or else they are the same."""


@dataclass
class LabelRows:
    """One label's calibration rows, cut into boxes, and what joining two boxes costs.

    Attributes:
        classes: ``(T)`` int64, the label's explicit classes.
        rows: ``(n, W)`` float64, probabilities as the table compares them.
        images: ``(n, D)`` float64, or None.
        offsets: ``(n)`` float64, log of the sum of each row's exponentials, in nats.
        center: See :class:`FitSettings`.
        boxes: Each box's upper edges, ``(W)``, and the numbers of its rows, in the order in which
            a table tries them; none if the label has too few rows.
        costs: L1 distortion of unions of boxes, by their numbers. They do not depend on the
            weights, so that a sweep over weights computes them once.
        groups: ``(n)`` int64, the group of each row, or None.
    """

    classes: Tensor
    rows: Tensor
    images: Tensor | None
    offsets: Tensor
    center: str
    boxes: list[tuple[Tensor, Tensor]]
    costs: dict[frozenset[int], float] = field(default_factory=dict)
    groups: Tensor | None = None

    def union(self, numbers: frozenset[int]) -> Tensor:
        """Return the row numbers of several boxes together."""
        return torch.cat([self.boxes[number][1] for number in sorted(numbers)])

    def cost(self, numbers: frozenset[int]) -> float:
        """Return the L1 distortion of several boxes' rows about their common center."""
        if numbers not in self.costs:
            self.costs[numbers] = distortion(self.rows[self.union(numbers)], self.center)
        return self.costs[numbers]

    def group_share(self, numbers: frozenset[int]) -> float:
        """Return the share of the largest group in several boxes; 0 without groups."""
        if self.groups is None:
            return 0.0
        counts = self.groups[self.union(numbers)].unique(return_counts=True)[1]
        return float(counts.max() / counts.sum())


@dataclass(frozen=True)
class Calibration:
    """Calibration scores that were cut into boxes: all that a choice of weights needs.

    Attributes:
        labels: One :class:`LabelRows` per label.
        canonical_top: Probability of the label in the vector of a label with too few rows.
        settings: How the scores were cut.
    """

    labels: tuple[LabelRows, ...]
    canonical_top: float
    settings: FitSettings


def fit_codebook(
    logits: Tensor,
    settings: FitSettings | None = None,
    images: Tensor | None = None,
    on_label: Callable[[float], None] | None = None,
) -> Codebook:
    """Fit a codebook to calibration scores; see the module.

    Args:
        logits: ``(N, K)`` clean scores of calibration queries.
        settings: How to fit; None: the defaults.
        images: ``(N, ...)`` the queries, if ``image_weight`` is not 0.
        on_label: Called with the share that is done.

    Raises:
        InvalidTensorError: See :func:`cut_calibration`.
    """
    settings = settings or FitSettings()
    calibration = cut_calibration(logits, settings, images, on_label)
    return merge_calibration(calibration, settings.rate_weight, settings.image_weight)


def cut_calibration(
    logits: Tensor,
    settings: FitSettings,
    images: Tensor | None = None,
    on_label: Callable[[float], None] | None = None,
    *,
    groups: Tensor | None = None,
) -> Calibration:
    """Cut calibration scores into boxes, label by label.

    Args:
        logits: ``(N, K)`` clean scores of calibration queries; no true labels are needed.
        settings: How to fit.
        images: ``(N, ...)`` the queries themselves, if ``image_weight`` is not 0.
        on_label: Called with the share that is done.
        groups: ``(N)`` int64, the person, account or device behind each query. Then ``min_members``
            counts different groups.

    Raises:
        InvalidTensorError: ``logits`` are not finite scores, there are too few of them, or
            ``images`` or ``groups`` are not as many.
        InvalidOptionError: ``max_group_share`` is below 1, and there are no groups.
    """
    _check_calibration(logits, settings, images)
    if groups is not None:
        check_groups(groups, len(logits))
    elif settings.max_group_share < 1:
        raise InvalidOptionError(
            f"max_group_share {settings.max_group_share} needs groups, but none were given. Pass "
            "the group of each query, or leave max_group_share at 1."
        )
    labels = logits.argmax(-1).cpu()
    shown = (
        images.detach().flatten(1).cpu() if settings.image_weight and images is not None else None
    )
    num_classes = logits.shape[-1]
    explicit = min(settings.explicit_classes, num_classes)
    top = torch.cat([part.double().softmax(-1).amax(-1) for part in logits.split(4096)]).mean()
    cut = []
    for label in range(num_classes):
        numbers = (labels == label).nonzero()[:, 0]
        # Label by label: all rows in float64 would take twice the memory of the scores.
        wide = logits[numbers.to(logits.device)].detach().double().cpu()
        probabilities = wide.softmax(-1)
        mean = probabilities.mean(0) if len(numbers) else probabilities.new_zeros(num_classes)
        mean[label] = torch.inf  # the label itself comes first
        classes = mean.topk(explicit).indices
        dense = explicit == num_classes
        rows = project(probabilities, classes.expand(len(numbers), -1), dense=dense)
        own = None if groups is None else groups.cpu()[numbers].unique(return_inverse=True)[1]
        company = len(numbers) if own is None else len(own.unique())
        boxes = _cut(rows, settings, own) if company >= settings.min_members else []
        pixels = None if shown is None else shown[numbers].double()
        offsets, center = wide.logsumexp(-1), settings.center
        cut.append(LabelRows(classes, rows, pixels, offsets, center, boxes, groups=own))
        if on_label is not None:
            on_label((label + 1) / num_classes)
    return Calibration(tuple(cut), max(float(top), 1.5 / num_classes), settings)


def _check_calibration(logits: Tensor, settings: FitSettings, images: Tensor | None) -> None:
    check_logits_to_fit(logits, "calibration logits")
    if logits.ndim != 2 or len(logits) < settings.min_members:
        raise InvalidTensorError(
            f"calibration logits must have shape (N, K) with N >= {settings.min_members}, the "
            f"members of the smallest cell, but got {tuple(logits.shape)}. Pass more calibration "
            "queries, or lower min_members."
        )
    if settings.image_weight and images is None:
        raise InvalidTensorError(
            "images must be given with image_weight, but are missing. Pass the queries."
        )
    if images is not None and len(images) != len(logits):
        raise InvalidTensorError(
            f"images must be as many as calibration logits, {len(logits)}, but got {len(images)}."
        )


def merge_calibration(
    calibration: Calibration, rate_weight: float, image_weight: float = 0.0
) -> Codebook:
    """Merge boxes into cells under given weights, and fill a table.

    Args:
        calibration: From :func:`cut_calibration`.
        rate_weight: See :class:`FitSettings`.
        image_weight: See :class:`FitSettings`; needs a calibration that was cut with images.

    Raises:
        InvalidOptionError: A weight is outside its range, or the calibration has no images.
    """
    check_rate_weight("rate_weight", rate_weight)
    check_weight("image_weight", image_weight)
    labels = calibration.labels
    if image_weight and all(each.images is None for each in labels):
        raise InvalidOptionError(
            "image_weight needs a calibration that was cut with images, but this one has none. "
            "Cut it under settings with an image_weight above 0."
        )
    most = calibration.settings.max_group_share
    merged = [_merge(each, rate_weight, image_weight, most) for each in labels]
    book = Codebook(
        len(labels),
        len(labels[0].classes),
        max(1, *(len(each.boxes) for each in labels)),
        sum(max(1, len(cells)) for cells in merged),
    )
    start = 0
    for label, (each, cells) in enumerate(zip(labels, merged, strict=True)):
        book.classes[label] = each.classes
        span = slice(start, start + max(1, len(cells)))
        book.labels[span] = label
        if cells:
            _fill(book, label, span, each, cells)
        else:
            book.assignment[label] = start
            book.values[start] = _canonical(calibration.canonical_top, book)
        start = span.stop
    return book


def _fill(
    book: Codebook, label: int, span: slice, rows: LabelRows, cells: list[frozenset[int]]
) -> None:
    """Write a label's boxes and cells into a table, the cells at ``span``."""
    boxes = len(rows.boxes)
    book.edges[label] = -torch.inf
    book.edges[label, :boxes] = torch.stack([edges for edges, _ in rows.boxes])
    book.assignment[label] = span.start
    for number, numbers in enumerate(cells):
        book.assignment[label, sorted(numbers)] = span.start + number
    members = [rows.union(numbers) for numbers in cells]
    book.members[span] = torch.tensor([len(each) for each in members])
    if rows.groups is not None:
        book.groups[span] = torch.tensor([len(rows.groups[each].unique()) for each in members])
    offsets = torch.stack([rows.offsets[each].mean() for each in members])
    book.offsets[span] = offsets.clamp(-MAX_OFFSET, MAX_OFFSET)
    values = torch.stack([center_of(rows.rows[each], rows.center) for each in members])
    if not book.is_dense:
        explicit = book.sizes.explicit_classes
        values[:, explicit:] /= book.sizes.num_classes - explicit
    book.values[span] = with_leading_label(values)


def _canonical(top: float, book: Codebook) -> Tensor:
    """Return the vector of a label with too few rows: ``top``, and the rest evenly."""
    vector = torch.full_like(book.values[0], (1 - top) / (book.sizes.num_classes - 1))
    vector[0] = top
    return vector.clamp_min(torch.finfo(torch.float64).tiny)


def with_leading_label(values: Tensor) -> Tensor:
    """Return ``(C, W)`` values with a logarithm each, the label's (the first) strictly largest."""
    raised = values.clamp_min(torch.finfo(torch.float64).tiny)
    return lift_label(raised, raised.new_zeros(len(raised), dtype=torch.int64), 0)


def choose_codebook(calibration: Calibration, logits: Tensor, budget: Budget) -> Codebook:
    """Return the best codebook within a budget, among all ``RATE_WEIGHTS``.

    Args:
        calibration: From :func:`cut_calibration`.
        logits: ``(N, K)`` the scores that it was cut from.
        budget: Limits that must hold.

    Raises:
        InvalidOptionError: No codebook keeps within the budget; the message says how near the
            nearest comes.
    """
    books = list[tuple[Measured, Codebook]]()
    for rate_weight in RATE_WEIGHTS:
        book = merge_calibration(calibration, rate_weight, calibration.settings.image_weight)
        books.append((measure_codebook(book.to(logits.device), logits), book))
    within = [pair for pair in books if not budget.broken(vars(pair[0]))]
    if not within:
        nearest = []
        for name in budget.limits:
            values = [getattr(measured, name) for measured, _ in books]
            nearest.append(f"{name} {(max if name == 'top5_kept' else min)(values):.4g}")
        raise InvalidOptionError(
            f"no codebook of {calibration.settings.min_members} members keeps within the budget: "
            f"the nearest, each by itself, reach {'; '.join(nearest)}. Allow more, lower "
            "min_members, or pass more calibration queries."
        )
    if budget.limits.keys() == {"bits"}:
        return min(within, key=lambda pair: pair[0].l1_mean)[1]
    return min(within, key=lambda pair: (pair[0].bits, pair[0].l1_mean))[1]


def center_of(rows: Tensor, center: str) -> Tensor:
    """Return the ``(W)`` mean of ``(n, W)`` rows that sum to 1, or their median, rescaled."""
    if center == "mean":
        return rows.mean(0)
    # Of an even number of rows both middle ones count, as in the usual median.
    middle = rows.quantile(0.5, 0)
    return middle / middle.sum()


def distortion(rows: Tensor, center: str) -> float:
    """Return the sum of L1 distances of ``(n, W)`` rows from their center."""
    return float((rows - center_of(rows, center)).abs().sum())


def _cut(rows: Tensor, settings: FitSettings, groups: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Cut rows into boxes, best cut first, until there are enough or none can be cut.

    A cut puts its lower side before its upper side, in the place of what was cut. So the first
    box whose upper edges a row keeps within is the one that the cuts lead to, and lower edges
    need not be kept.
    """
    open_ended = torch.full((rows.shape[1],), torch.inf, dtype=torch.float64)
    boxes = [(open_ended, torch.arange(len(rows)))]
    cuts = [_best_cut(rows, settings, groups)]
    while len(boxes) < settings.max_boxes:
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
        cuts[best : best + 1] = [
            _best_cut(rows[side], settings, None if groups is None else groups[side])
            for _, side in sides
        ]
    return boxes


@dataclass(frozen=True)
class _Cut:
    """Where to cut, and the L1 distortion that the cut removes."""

    axis: int
    edge: float
    gain: float


def _best_cut(rows: Tensor, settings: FitSettings, groups: Tensor | None) -> _Cut | None:
    """Return the cut that removes most L1 distortion; None if no cut removes any."""
    count, least, center = len(rows), settings.min_members, settings.center
    if count < 2 * least:
        return None
    ordered, order = rows.sort(0)
    sums = ordered.cumsum(0)
    before = torch.arange(1, count, dtype=torch.float64).unsqueeze(-1)
    after = count - before
    apart = sums[:-1] / before - (sums[-1] - sums[:-1]) / after
    gains = before * after / count * apart.square()
    # Half way between two rows, so that neither's last bit decides; equals cannot be parted.
    edges = (ordered[:-1] + ordered[1:]) / 2
    gains[(edges >= ordered[1:]) | (edges < ordered[:-1])] = -1
    gains[: least - 1], gains[count - least :] = -1, -1
    if groups is not None:
        below, above = groups[order], groups[order.flip(0)]
        few = torch.minimum(groups_up_to(below)[:-1], groups_up_to(above).flip(0)[1:]) < least
        gains[few] = -1
    most, at = gains.max(0)
    whole, best = distortion(rows, center), None
    for axis in most.topk(min(CUTS_TRIED, rows.shape[1])).indices.tolist():
        if most[axis] <= 0:
            break
        edge = float(edges[at[axis], axis])
        left = rows[:, axis] <= edge
        gain = whole - distortion(rows[left], center) - distortion(rows[~left], center)
        # Axes that part the rows alike gain alike: the last bits must not decide between them.
        if gain > 0 and (best is None or gain > best.gain * (1 + TIE)):
            best = _Cut(axis, edge, gain)
    return best


def groups_up_to(groups: Tensor) -> Tensor:
    """Return how many different groups each column of ``(n, W)`` int64 has up to each row."""
    places = torch.arange(len(groups)).unsqueeze(-1).expand_as(groups)
    first = torch.full((int(groups.max()) + 1, groups.shape[1]), len(groups))
    first = first.scatter_reduce(0, groups, places, "amin")
    return (first.gather(0, groups) == places).cumsum(0)


def _merge(
    label: LabelRows, rate_weight: float, image_weight: float, max_group_share: float
) -> list[frozenset[int]]:
    """Join a label's boxes while that lowers the objective; return cells, as numbers of boxes.

    Cells in which one group has too large a share are joined all the same. None is returned where
    that holds of all boxes together.
    """
    cells = [frozenset([number]) for number in range(len(label.boxes))]
    whole = frozenset(range(len(cells)))
    if cells and label.group_share(whole) > max_group_share:
        return []
    if rate_weight == math.inf and cells:
        return [whole]
    counts = {cell: len(label.union(cell)) for cell in cells}
    images = label.images if image_weight else None
    means = {} if images is None else {cell: images[label.union(cell)].mean(0) for cell in cells}

    def change(first: frozenset[int], second: frozenset[int]) -> float:
        distance = label.cost(first | second) - label.cost(first) - label.cost(second)
        one, other = counts[first], counts[second]
        both = one + other
        # n H(cell | label) = - sum of n_cell log2(n_cell / n), where n drops out of a difference.
        bits = one * math.log2(both / one) + other * math.log2(both / other)
        between = 0.0
        if means:
            between = one * other / both * float((means[first] - means[second]).square().mean())
        return distance - rate_weight * bits - image_weight * between

    changes = {
        (first, second): change(first, second)
        for place, first in enumerate(cells)
        for second in cells[:place]
    }
    while changes:
        pair = min(changes, key=changes.__getitem__)
        if changes[pair] > 0:
            uneven = {cell for cell in cells if label.group_share(cell) > max_group_share}
            if not uneven:
                break
            pair = min(filter(uneven.intersection, changes), key=changes.__getitem__)
        first, second = pair
        joined = first | second
        counts[joined] = counts[first] + counts[second]
        if means:
            share = counts[first] / counts[joined]
            means[joined] = share * means[first] + (1 - share) * means[second]
        cells = [cell for cell in cells if cell not in pair]
        changes = {key: value for key, value in changes.items() if not {*key} & {*pair}}
        changes.update({(joined, cell): change(joined, cell) for cell in cells})
        cells.append(joined)
    return sorted(cells, key=min)
