"""Fit a codebook: cut each label's rows into boxes, then merge boxes into cells.

Cutting is greedy (each step the cut that removes most L1 distortion), and no side has fewer than
``min_members`` rows. Merging is the entropy-constrained part: cells are joined, whether they
touch or not, for as long as that lowers

    sum of L1(p, center of cell) + rate_weight * rows * H(cell | label)
        - image_weight * rows * E Var(image | cell)
        + variant_weight * rows * P(two answers to changed copies of a query have two cells)

and then, where a table may have no more cells than ``max_cells``, at the least rise. No union
brings a row farther than ``max_l1_worst`` from its cell's vector that was within before, and boxes
with such rows are cut first. Rows that have no ``min_members`` others near stay beyond it.

Source: Chou, Lookabaugh & Gray, "Entropy-constrained vector quantization" (IEEE Transactions on
Acoustics, Speech, and Signal Processing 37, 1989) for the objective; LeFevre, DeWitt &
Ramakrishnan, "Mondrian multidimensional k-anonymity" (ICDE 2006) for cuts that keep k on both
sides. Together, and with a term for what a cell mixes, they are ours. Nearest-codeword cells
(k-means with the same objective) were tried first: at the same least number of members they
distort more, since they cut rare rows into cells that are too small to keep.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from oneway.checks import check_logits_to_fit, check_weight
from oneway.defenses.codebook.crossings import answers_of, check_variants, crossings_between
from oneway.defenses.codebook.measures import Measured, measure_codebook
from oneway.defenses.codebook.nesting import (
    Box,
    Nesting,
    check_older,
    nest,
    older_boxes,
    refuse_kept,
)
from oneway.defenses.codebook.options import Budget, FitSettings, check_rate_weight
from oneway.defenses.codebook.shared import (
    SharedRows,
    fill_shared,
    profiles_of,
    runs_of,
    share_rows,
)
from oneway.defenses.codebook.table import MAX_OFFSET, Codebook, project
from oneway.defenses.codebook.traffic import check_groups
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError

RATE_WEIGHTS = (math.inf, *(10 ** (-power / 4) for power in range(17)), 0.0)
"""Values of ``rate_weight`` that a budget chooses from: one cell per label to all boxes apart."""

LARGEST_RATE_WEIGHT = 1e9
"""Rate weight that counts as infinite: no distortion weighs as much as a bit."""

CUTS_TRIED = 4
"""Axes whose best cut is weighed in L1; they are found by squared distances, which are cheaper."""

BOXES_PER_LEVEL = 8
"""Boxes that are cut for each level that labels share, before they are merged."""

TIE = 1e-9
"""Share by which the gains of two cuts must differ, or else they are the same."""

DIGITS = 12
"""Binary digits of edges and released values: with all 53, whoever holds the table could test which
candidates it was fitted to, since an edge lies half way between two of them."""

OFFSET_DECIMALS = 3
"""Decimal digits of offsets, in nats."""


@dataclass
class LabelRows:
    """One label's calibration rows, cut into boxes, and what joining two boxes costs.

    Attributes:
        classes: ``(T)`` int64, the label's explicit classes.
        rows: ``(n, W)`` float64, probabilities as the table compares them.
        images: ``(n, D)`` float64, or None.
        offsets: ``(n)`` float64, log of the sum of each row's exponentials, in nats.
        tails: ``(n)`` float64, L1 distance of each row from one that shares its rest evenly; 0
            where all classes are explicit.
        center: See :class:`FitSettings`.
        boxes: Each box's upper edges, ``(W)``, and the numbers of its rows, in the order in which
            a table tries them; none if the label has too few rows.
        cap: ``max_l1_worst``; infinite without one.
        costs: L1 distortion of unions of boxes, and their rows beyond the cap, by numbers of boxes.
            They do not depend on the weights, so that a sweep over weights computes them once.
        groups: ``(n)`` int64, the group of each row, or None.
        nesting: How the boxes lie in an older table's cells; None: in no others.
        crossings: ``(m, m)`` float64, how many queries each pair of boxes parts from their changed
            copies; see :mod:`oneway.defenses.codebook.crossings`; None without these.
    """

    classes: Tensor
    rows: Tensor
    images: Tensor | None
    offsets: Tensor
    tails: Tensor
    center: str
    boxes: list[tuple[Tensor, Tensor]]
    cap: float
    costs: dict[frozenset[int], tuple[float, int]] = field(default_factory=dict)
    groups: Tensor | None = None
    nesting: Nesting | None = None
    crossings: Tensor | None = None

    def union(self, numbers: frozenset[int]) -> Tensor:
        """Return the row numbers of several boxes together."""
        return torch.cat([self.boxes[number][1] for number in sorted(numbers)])

    def cost(self, numbers: frozenset[int]) -> float:
        """Return the L1 distortion of several boxes' rows about their common center."""
        return self._costs(numbers)[0]

    def beyond(self, numbers: frozenset[int]) -> int:
        """Return how many of several boxes' rows are beyond the cap from their released vector.

        Where classes share a rest evenly, a row's distance is bounded by the sum of that from its
        own even rest, and that row's from the center.
        """
        return self._costs(numbers)[1]

    def _costs(self, numbers: frozenset[int]) -> tuple[float, int]:
        if numbers not in self.costs:
            rows = self.union(numbers)
            apart = distances_from_center(self.rows[rows], self.center)
            beyond = int((apart + self.tails[rows] > self.cap).sum())
            self.costs[numbers] = float(apart.sum()), beyond
        return self.costs[numbers]

    def crossing(self, first: frozenset[int], second: frozenset[int]) -> float:
        """Return how many queries two cells part from their changed copies; 0 without these."""
        if self.crossings is None:
            return 0.0
        return float(self.crossings[sorted(first)][:, sorted(second)].sum())

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
        shared: The rows of labels without boxes of their own; None if there are no such labels.
        settings: How the scores were cut.
    """

    labels: tuple[LabelRows, ...]
    shared: SharedRows | None
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
    older: Codebook | None = None,
    variants: Tensor | None = None,
) -> Calibration:
    """Cut calibration scores into boxes, label by label.

    Args:
        logits: ``(N, K)`` clean scores of calibration queries; no true labels are needed.
        settings: How to fit.
        images: ``(N, ...)`` the queries themselves, if ``image_weight`` is not 0.
        on_label: Called with the share that is done.
        groups: ``(N)`` int64, the person, account or device behind each query. Then ``min_members``
            counts different groups.
        older: A table whose cells are cut further, and never joined, so that its cells follow from
            those of the new one; its explicit classes are taken.
        variants: ``(N, m, K)`` clean scores of m changed copies of each query, if
            ``variant_weight`` is not 0.

    Raises:
        InvalidTensorError: ``logits`` are not finite scores, there are too few of them,
            ``images``, ``groups`` or ``variants`` are not as many, or the older table is over
            other classes.
        InvalidOptionError: ``max_group_share`` is below 1, and there are no groups; or a vector of
            the older table must stay, and stands for fewer queries than ``min_members``.
    """
    _check_calibration(logits, settings, images, variants)
    if groups is not None:
        check_groups(groups, len(logits))
    elif settings.max_group_share < 1:
        raise InvalidOptionError(
            f"max_group_share {settings.max_group_share} needs groups, but none were given. Pass "
            "the group of each query, or leave max_group_share at 1."
        )
    logits = logits.detach()
    labels = logits.argmax(-1).cpu()
    shown = (
        images.detach().flatten(1).cpu() if settings.image_weight and images is not None else None
    )
    num_classes = logits.shape[-1]
    if older is not None:
        check_older(older, num_classes)
        older = copy.deepcopy(older).cpu()
    cut = []
    for label in range(num_classes):
        numbers = (labels == label).nonzero()[:, 0]
        # Label by label: all rows in float64 would take twice the memory of the scores.
        wide = logits[numbers.to(logits.device)].detach().double().cpu()
        pixels = None if shown is None else shown[numbers].double()
        own = None if groups is None else groups.cpu()[numbers].unique(return_inverse=True)[1]
        each = _cut_label(label, wide, pixels, own, settings, older)
        if variants is not None and settings.variant_weight and each.boxes:
            edges = torch.stack([edges for edges, _ in each.boxes])
            answers, dense = answers_of(logits, variants), len(each.classes) == num_classes
            each.crossings = crossings_between(answers, label, each.classes, edges, dense=dense)
        whole = frozenset(range(len(each.boxes)))
        if older is None and whole and each.group_share(whole) > settings.max_group_share:
            each.boxes = []  # one vector for all of the label's scores
        cut.append(each)
        if on_label is not None:
            on_label((label + 1) / num_classes)
    refuse_kept(
        (each.nesting for each in cut if each.nesting is not None),
        settings.min_members,
        with_groups=groups is not None,
    )
    few = torch.tensor([not each.boxes for each in cut])
    people = None if groups is None else groups.cpu()
    shared = _share(logits, few, settings, people) if few.any() else None
    return Calibration(tuple(cut), shared, settings)


def _share(logits: Tensor, few: Tensor, settings: FitSettings, groups: Tensor | None) -> SharedRows:
    """Cut the rows of labels with too few of them by their top score, all labels together.

    Args:
        logits: See :func:`cut_calibration`.
        few: ``(K)`` bool, the labels.
        settings: How to fit.
        groups: ``(N)`` int64, or None.
    """
    wide = logits.cpu().double()
    probabilities, offsets = wide.softmax(-1), wide.logsumexp(-1)
    labels, rows = few.nonzero()[:, 0], few[wide.argmax(-1)].nonzero()[:, 0]
    explicit, least = min(settings.explicit_classes, len(few)), settings.min_members
    profiles = profiles_of(probabilities, labels, least, settings.center, explicit, groups)
    own = None if groups is None else groups[rows].unique(return_inverse=True)[1]
    tops, boxes = probabilities.amax(-1), list[Box]()
    if _company(groups, rows) >= least:
        # The mean of one number per row needs no scaling to sum to 1.
        one, zero = tops[rows].unsqueeze(-1), torch.zeros(len(rows), dtype=torch.float64)
        most = min(settings.max_boxes, BOXES_PER_LEVEL * settings.shared_levels)
        open_ended = torch.full((1,), torch.inf, dtype=torch.float64)
        whole = (open_ended, torch.arange(len(rows)))
        boxes, _ = _cut(
            one, zero, replace(settings, center="mean", max_boxes=most), own, [whole], [0]
        )
    everyone = len(tops) if groups is None else len(groups.unique())
    return share_rows(
        probabilities,
        boxes,
        profiles,
        labels,
        rows,
        offsets[rows],
        own,
        settings.center,
        _cap_of(settings),
        (float(tops.mean()), float(offsets.mean()), everyone),
    )


def _cut_label(
    label: int,
    logits: Tensor,
    images: Tensor | None,
    groups: Tensor | None,
    settings: FitSettings,
    older: Codebook | None,
) -> LabelRows:
    """Cut the rows of one label into boxes; see :class:`LabelRows`."""
    count, num_classes = logits.shape
    explicit = settings.explicit_classes if older is None else older.sizes.explicit_classes
    probabilities = logits.softmax(-1)
    mean = probabilities.mean(0) if count else probabilities.new_zeros(num_classes)
    mean[label] = torch.inf  # the label itself comes first
    classes = mean.topk(min(explicit, num_classes)).indices
    if older is not None:
        classes = older.classes[label]
    rows = project(probabilities, classes.expand(count, -1), dense=explicit >= num_classes)
    tails = _tails(probabilities, classes)
    nesting, boxes = None, list[Box]()
    if older is not None:
        boxes, parents = older_boxes(older, label, rows)
        boxes, parents = _cut(rows, tails, settings, groups, boxes, parents)
        nesting = nest(older, boxes, parents, partial(_is_enough, groups, settings))
    elif _has_own_cells(groups, settings, count):
        open_ended = torch.full((rows.shape[1],), torch.inf, dtype=torch.float64)
        boxes, _ = _cut(rows, tails, settings, groups, [(open_ended, torch.arange(count))], [label])
    return LabelRows(
        classes,
        rows,
        images,
        logits.logsumexp(-1),
        tails,
        settings.center,
        boxes,
        _cap_of(settings),
        groups=groups,
        nesting=nesting,
    )


def _has_own_cells(groups: Tensor | None, settings: FitSettings, count: int) -> bool:
    """Return whether a label with so many rows has cells of its own."""
    # With fewer than twice the members there is no cut, and levels move answers less.
    times = 1 if settings.shared_levels == 1 else 2
    return _company(groups, torch.arange(count)) >= times * settings.min_members


def _company(groups: Tensor | None, rows: Tensor) -> int:
    """Return how many rows, or groups where these are known, some of a label's rows are."""
    return len(rows) if groups is None else len(groups[rows].unique())


def _is_enough(groups: Tensor | None, settings: FitSettings, rows: Tensor) -> bool:
    """Return whether some of a label's rows may stand behind a vector."""
    if _company(groups, rows) < settings.min_members:
        return False
    if groups is None:
        return True
    counts = groups[rows].unique(return_counts=True)[1]
    return float(counts.max() / counts.sum()) <= settings.max_group_share


def _cap_of(settings: FitSettings) -> float:
    return math.inf if settings.max_l1_worst is None else settings.max_l1_worst


def _tails(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return the ``(n)`` L1 distances of rows from rows that share their rest evenly."""
    rest = probabilities.index_fill(-1, classes, 0)
    others = max(1, probabilities.shape[-1] - len(classes))
    even = (rest.sum(-1, keepdim=True) / others).expand_as(rest).index_fill(-1, classes, 0)
    return (rest - even).abs().sum(-1)


def _check_calibration(
    logits: Tensor, settings: FitSettings, images: Tensor | None, variants: Tensor | None
) -> None:
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
    if variants is not None:
        check_variants(variants, logits)
    elif settings.variant_weight:
        raise InvalidTensorError(
            "variants must be given with variant_weight, but are missing. Pass the scores of "
            "changed copies of the queries."
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
        InvalidOptionError: A weight is outside its range, the calibration has no images, or
            ``max_cells`` is too few.
    """
    check_rate_weight("rate_weight", rate_weight)
    check_weight("image_weight", image_weight)
    labels = calibration.labels
    if image_weight and all(each.images is None for each in labels):
        raise InvalidOptionError(
            "image_weight needs a calibration that was cut with images, but this one has none. "
            "Cut it under settings with an image_weight above 0."
        )
    merged, levels = _merge(calibration, rate_weight, image_weight)
    shared = calibration.shared
    alike = 0 if shared is None else len(shared.labels)
    book = Codebook(
        len(labels),
        len(labels[0].classes),
        max(
            1 if shared is None else runs_of(shared, levels), *(len(each.boxes) for each in labels)
        ),
        sum(map(len, merged)) + alike * max(1, len(levels)),
    )
    start = 0
    for label, (each, cells) in enumerate(zip(labels, merged, strict=True)):
        if each.boxes:
            span = slice(start, start + len(cells))
            _fill(book, label, span, each, cells)
            start = span.stop
    if shared is not None:
        fill_shared(book, start, shared, levels, with_leading_label)
    return book


def _fill(
    book: Codebook, label: int, span: slice, rows: LabelRows, cells: list[frozenset[int]]
) -> None:
    """Write a label's boxes and cells into a table, the cells at ``span``."""
    boxes = len(rows.boxes)
    book.classes[label] = rows.classes
    book.labels[span] = label
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
    offsets = offsets.round(decimals=OFFSET_DECIMALS)
    book.offsets[span] = offsets.clamp(-MAX_OFFSET, MAX_OFFSET)
    # A cell that stays as it was may have no new rows.
    values = torch.zeros(len(members), rows.rows.shape[1], dtype=torch.float64)
    for number, each in enumerate(members):
        if len(each):
            values[number] = center_of(rows.rows[each], rows.center)
    # Cut off, not rounded: what is left goes to the label, which stays on top.
    others = short(values[:, 1:], torch.floor)
    values = torch.cat([1 - others.sum(-1, keepdim=True), others], -1)
    if not book.is_dense:
        explicit = book.sizes.explicit_classes
        values[:, explicit:] /= book.sizes.num_classes - explicit
    book.values[span] = with_leading_label(values)
    if rows.nesting is not None:
        rows.nesting.keep(book, span, cells)


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


def distortion(rows: Tensor, center: str) -> float:
    """Return the sum of L1 distances of ``(n, W)`` rows from their center."""
    return float(distances_from_center(rows, center).sum())


def _cut(
    rows: Tensor,
    tails: Tensor,
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

    Returns:
        The boxes, and the parent of each: that of the box that it was cut from. There are at most
        ``max_boxes`` more than before, less one.
    """

    def cut_of(side: Tensor) -> _Cut | None:
        own = None if groups is None else groups[side]
        return _best_cut(rows[side], tails[side], settings, own)

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
    rows: Tensor, tails: Tensor, settings: FitSettings, groups: Tensor | None
) -> _Cut | None:
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
    # Half way between two rows, so that neither's last bit decides; nearly equal rows cannot be
    # parted by a short number.
    edges = short((ordered[:-1] + ordered[1:]) / 2)
    gains[(edges >= ordered[1:]) | (edges < ordered[:-1])] = -1
    gains[: least - 1], gains[count - least :] = -1, -1
    if groups is not None:
        below, above = groups[order], groups[order.flip(0)]
        few = torch.minimum(groups_up_to(below)[:-1], groups_up_to(above).flip(0)[1:]) < least
        gains[few] = -1
    most, at = gains.max(0)
    apart = distances_from_center(rows, center)
    is_urgent = bool((apart + tails > _cap_of(settings)).any())
    whole, best = float(apart.sum()), None
    for axis in most.topk(min(CUTS_TRIED, rows.shape[1])).indices.tolist():
        if most[axis] <= 0:
            break
        edge = float(edges[at[axis], axis])
        left = rows[:, axis] <= edge
        gain = whole - distortion(rows[left], center) - distortion(rows[~left], center)
        # Axes that part the rows alike gain alike: the last bits must not decide between them.
        if gain > 0 and (best is None or gain > best.gain * (1 + TIE)):
            best = _Cut(axis, edge, gain, is_urgent)
    return best


def groups_up_to(groups: Tensor) -> Tensor:
    """Return how many different groups each column of ``(n, W)`` int64 has up to each row."""
    places = torch.arange(len(groups)).unsqueeze(-1).expand_as(groups)
    first = torch.full((int(groups.max()) + 1, groups.shape[1]), len(groups))
    first = first.scatter_reduce(0, groups, places, "amin")
    return (first.gather(0, groups) == places).cumsum(0)


class _Merging:
    """A label's boxes on their way to cells.

    Attributes:
        cells: The cells so far, as numbers of boxes.
        cheapest: Least change of the objective by joining two cells; infinite if none may join.
    """

    def __init__(
        self,
        label: LabelRows | SharedRows,
        rate_weight: float,
        image_weight: float,
        settings: FitSettings,
        alike: int = 1,
    ) -> None:
        """Weigh all pairs of a label's boxes.

        Args:
            label: The label's rows.
            rate_weight: See :class:`FitSettings`.
            image_weight: See :class:`FitSettings`.
            settings: Its ``variant_weight`` and ``max_group_share`` count.
            alike: Number of labels that have these cells.
        """
        self.alike = alike
        self._label, self._image_weight = label, image_weight
        self._max_group_share = settings.max_group_share
        self._variant_weight = settings.variant_weight
        # An infinite weight would leave no order among pairs.
        self._rate_weight = min(rate_weight, LARGEST_RATE_WEIGHT)
        self.cells = [frozenset([number]) for number in range(len(label.boxes))]
        whole = frozenset(range(len(self.cells)))
        if label.nesting is not None:
            self.cells = label.nesting.cells
        elif rate_weight == math.inf and whole and label.cap == math.inf:
            self.cells = [whole]
        self._counts = {cell: len(label.union(cell)) for cell in self.cells}
        images = label.images if image_weight else None
        self._means = (
            {}
            if images is None
            else {cell: images[label.union(cell)].mean(0) for cell in self.cells}
        )
        self._changes = {
            (first, second): self._change(first, second)
            for place, first in enumerate(self.cells)
            for second in self.cells[:place]
            if self._may_join(first, second)
        }

    @property
    def cheapest(self) -> float:
        return min(self._changes.values(), default=math.inf)

    def settle(self) -> None:
        """Join cells while that lowers the objective, or one group has too large a share of one."""
        while self._changes:
            if self.cheapest <= 0:
                self.join()
                continue
            most = self._max_group_share
            uneven = {cell for cell in self.cells if self._label.group_share(cell) > most}
            if not uneven:
                break
            # Also beyond the cap: who is behind a vector counts more.
            pairs = list(filter(uneven.intersection, self._changes))
            if not pairs:  # an older table's cell, which stays as it was
                break
            self._join(min(pairs, key=self._changes.__getitem__))

    def join(self) -> None:
        """Join the two cells whose union costs least."""
        self._join(min(self._changes, key=self._changes.__getitem__))

    def _join(self, pair: tuple[frozenset[int], frozenset[int]]) -> None:
        first, second = pair
        joined = first | second
        self._counts[joined] = self._counts[first] + self._counts[second]
        if self._means:
            share = self._counts[first] / self._counts[joined]
            self._means[joined] = share * self._means[first] + (1 - share) * self._means[second]
        self.cells = [cell for cell in self.cells if cell not in pair]
        self._changes = {key: value for key, value in self._changes.items() if not {*key} & {*pair}}
        mates = [cell for cell in self.cells if self._may_join(joined, cell)]
        self._changes.update({(joined, cell): self._change(joined, cell) for cell in mates})
        self.cells.append(joined)

    def _may_join(self, first: frozenset[int], second: frozenset[int]) -> bool:
        nesting = self._label.nesting
        return nesting is None or nesting.may_join(first, second)

    def _change(self, first: frozenset[int], second: frozenset[int]) -> float:
        label, both = self._label, first | second
        if label.beyond(both) > label.beyond(first) + label.beyond(second):
            return math.inf
        distance = label.cost(both) - label.cost(first) - label.cost(second)
        one, other = self._counts[first], self._counts[second]
        total = one + other
        # n H(cell | label) = - sum of n_cell log2(n_cell / n), where n drops out of a difference.
        bits = one * math.log2(total / one) + other * math.log2(total / other)
        between = 0.0
        if self._means:
            apart = self._means[first] - self._means[second]
            between = one * other / total * float(apart.square().mean())
        crossing = self._variant_weight * label.crossing(first, second)
        return distance - self._rate_weight * bits - self._image_weight * between - crossing


def _merge(
    calibration: Calibration, rate_weight: float, image_weight: float
) -> tuple[list[list[frozenset[int]]], list[frozenset[int]]]:
    """Join boxes while that lowers the objective, then down to ``max_cells``.

    Returns:
        The cells of each label, and those of the labels that share levels, as numbers of boxes.

    Raises:
        InvalidOptionError: More cells are left than ``max_cells``.
    """
    settings, shared = calibration.settings, calibration.shared
    most, cap = settings.max_cells, settings.max_l1_worst
    mergings = [
        _Merging(each, rate_weight, image_weight, settings)
        for each in calibration.labels
        if each.boxes
    ]
    if shared is not None:
        mergings.append(_Merging(shared, rate_weight, 0.0, settings, len(shared.labels)))
    for each in mergings:
        each.settle()
    # A level of one label has few queries: nothing is known of the groups that will be behind it.
    few = settings.shared_levels if settings.max_group_share == 1 else 1
    while shared is not None and len(mergings[-1].cells) > few:
        mergings[-1].join()
    # A label without cells has one vector.
    cells = sum(each.alike * max(1, len(each.cells)) for each in mergings)
    while most is not None and cells > most:
        least = min(mergings, key=lambda each: each.cheapest / each.alike)
        if least.cheapest == math.inf:
            within = "" if cap is None else f" within a max_l1_worst of {cap:g}"
            raise InvalidOptionError(
                f"max_cells must be at least {cells} for {len(calibration.labels)} labels{within}, "
                f"but got {most}. Raise it."
            )
        least.join()
        cells -= least.alike
    chosen = [sorted(each.cells, key=min) for each in mergings]
    levels = [] if shared is None else chosen.pop()
    own = iter(chosen)
    return [next(own) if each.boxes else [] for each in calibration.labels], levels
