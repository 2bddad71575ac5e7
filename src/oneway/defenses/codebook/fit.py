"""Fit a codebook: cut each label's rows into boxes, then merge boxes into cells.

:mod:`oneway.defenses.codebook.boxes` cuts: greedily, and no side has fewer than ``min_members``
rows. :mod:`oneway.defenses.codebook.merging` joins what costs least. Boxes with rows beyond
``max_l1_worst`` are cut first; rows that have no ``min_members`` others near stay beyond it.

Probabilities are computed label by label, where they are needed: all of them in float64 would take
several times the memory of the scores.

Source: the sources of both halves; together they are ours. Nearest-codeword cells (k-means with
the same objective) were tried first: at the same least number of members they distort more, since
they cut rare rows into cells that are too small to keep.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_logits_to_fit, check_weight, filled, in_parts
from oneway.defenses.codebook.boxes import cap_of, cut_boxes, short
from oneway.defenses.codebook.crossings import answers_of, check_variants, crossings_between
from oneway.defenses.codebook.label_rows import LabelRows, side_by_side, sorted_rows_of
from oneway.defenses.codebook.measures import Measured, measure_codebook
from oneway.defenses.codebook.merging import Merged, merge
from oneway.defenses.codebook.nesting import Box, check_older, nest, older_boxes, refuse_kept
from oneway.defenses.codebook.options import Budget, FitSettings, check_rate_weight
from oneway.defenses.codebook.sample import labels_of, sample_rows
from oneway.defenses.codebook.shared import (
    LevelSums,
    SharedRows,
    fill_shared,
    profiles_of,
    runs_of,
    share_rows,
)
from oneway.defenses.codebook.table import Codebook, rounded_offsets
from oneway.defenses.codebook.traffic import check_groups
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError

RATE_WEIGHTS = (math.inf, *(10 ** (-power / 4) for power in range(17)), 0.0)
"""Values of ``rate_weight`` that a budget chooses from: one cell per label to all boxes apart."""

BOXES_PER_LEVEL = 8
"""Boxes that are cut for each level that labels share, before they are merged."""


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

    @property
    def rows(self) -> Tensor:
        """The ``(n)`` int64 rows that were cut, on the CPU, in rising order."""
        return torch.cat([each.numbers for each in self.labels]).sort().values


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
    return merge_calibration(calibration, settings.rate_weight, settings.image_weight, once=True)


def cut_calibration(
    logits: Tensor,
    settings: FitSettings,
    images: Tensor | None = None,
    on_label: Callable[[float], None] | None = None,
    *,
    groups: Tensor | None = None,
    older: Codebook | None = None,
    variants: Tensor | None = None,
    rows: Tensor | None = None,
) -> Calibration:
    """Cut calibration scores into boxes, label by label.

    Of a label with very many rows a sample is cut: see ``defenses/codebook/sample.py``. No copy of
    rows is made, except of those of one label at a time, and where labels share levels.

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
        rows: ``(n)`` int64 on the CPU, which of the N rows are cut; None: all.

    Raises:
        InvalidTensorError: ``logits`` are not finite scores, there are too few of them or of their
            groups, ``images``, ``groups`` or ``variants`` are not as many, or the older table is
            over other classes.
        InvalidOptionError: ``max_group_share`` is below 1, and there are no groups; or a vector of
            the older table must stay, and stands for fewer queries than ``min_members``.
    """
    _check_calibration(logits, settings, images, variants, rows)
    if groups is not None:
        check_groups(groups, len(logits))
        _check_enough_groups(groups if rows is None else groups.cpu()[rows], settings)
    elif settings.max_group_share < 1:
        raise InvalidOptionError(
            f"max_group_share {settings.max_group_share} needs groups, but none were given. Pass "
            "the group of each query, or leave max_group_share at 1."
        )
    logits, num_classes = logits.detach(), logits.shape[-1]
    of_labels, answers = sample_rows(logits, rows=rows), None
    if variants is not None and settings.variant_weight:
        kept = torch.cat(of_labels)
        answers = answers_of(logits[kept.to(logits.device)], variants[kept.to(variants.device)])
    if older is not None:
        check_older(older, num_classes)
        older = copy.deepcopy(older).cpu()
    cut = []
    for label, numbers in enumerate(of_labels):
        own = None if groups is None else groups.cpu()[numbers].unique(return_inverse=True)[1]
        each = _cut_label(label, logits, numbers, own, settings, older)
        each.boxes = _packed(each.boxes)
        if images is not None and settings.image_weight and each.boxes:
            each.weigh_images(images.detach().flatten(1))
        if answers is not None and each.boxes:
            edges = torch.stack([edges for edges, _ in each.boxes])
            dense = len(each.classes) == num_classes
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
    calibration = Calibration(tuple(cut), None, settings)
    few = torch.tensor([not each.boxes for each in cut])
    if few.any():
        kept = calibration.rows
        people = None if groups is None else groups.cpu()[kept]
        shared = _share(logits[kept.to(logits.device)], few, settings, people)
        calibration = replace(calibration, shared=shared)
    return calibration


def _share(logits: Tensor, few: Tensor, settings: FitSettings, groups: Tensor | None) -> SharedRows:
    """Cut the rows of labels with too few of them by their top score, all labels together.

    Args:
        logits: See :func:`cut_calibration`.
        few: ``(K)`` bool, the labels.
        settings: How to fit.
        groups: ``(N)`` int64, or None.
    """
    tops_and_offsets = (
        torch.stack([part.amax(-1).double(), part.double().logsumexp(-1)])
        for part in in_parts(logits)
    )
    top_logits, offsets = filled(torch.empty(2, len(logits), dtype=torch.float64), tops_and_offsets)
    labels, rows = few.nonzero()[:, 0], few[labels_of(logits)].nonzero()[:, 0]
    explicit, least = min(settings.explicit_classes, len(few)), settings.min_members
    profiles = profiles_of(logits, labels, least, settings.center, explicit, groups)
    own = None if groups is None else groups[rows].unique(return_inverse=True)[1]
    tops, boxes = (top_logits - offsets).exp(), list[Box]()
    if _company(groups, rows) >= least:
        # The mean of one number per row needs no scaling to sum to 1.
        one = tops[rows].unsqueeze(-1)
        most = min(settings.max_boxes, BOXES_PER_LEVEL * settings.shared_levels)
        open_ended = torch.full((1,), torch.inf, dtype=torch.float64)
        whole = (open_ended, torch.arange(len(rows)))
        by_mean = replace(settings, center="mean", max_boxes=most)
        boxes, _ = cut_boxes(one, None, by_mean, own, [whole], [0])
    everyone = len(tops) if groups is None else len(groups.unique())
    return share_rows(
        logits[rows.to(logits.device)].cpu().double().softmax(-1),
        boxes,
        profiles,
        labels,
        offsets[rows],
        own,
        settings.center,
        cap_of(settings),
        (float(tops.mean()), float(offsets.mean()), everyone),
    )


def _cut_label(
    label: int,
    logits: Tensor,
    numbers: Tensor,
    groups: Tensor | None,
    settings: FitSettings,
    older: Codebook | None,
) -> LabelRows:
    """Cut the rows of one label into boxes; see :class:`LabelRows`."""
    count, num_classes = len(numbers), logits.shape[-1]
    explicit = min(settings.explicit_classes, num_classes)
    nothing = torch.zeros(explicit, dtype=torch.int64)
    own = LabelRows(logits, numbers, nothing, settings.center, cap_of(settings), groups=groups)
    probabilities = own.scores().softmax(-1)
    if older is None:
        mean = probabilities.mean(0) if count else probabilities.new_zeros(num_classes)
        mean[label] = torch.inf  # the label itself comes first
        own.classes = mean.topk(explicit).indices
    else:
        own.classes = older.classes[label]
    rows = own.rows(probabilities)
    tails = own.tails(probabilities) if settings.max_l1_worst is not None else None
    if older is not None:
        boxes, parents = older_boxes(older, label, rows)
        own.boxes, parents = cut_boxes(rows, tails, settings, groups, boxes, parents)
        own.nesting = nest(older, own.boxes, parents, partial(_is_enough, groups, settings))
    elif _has_own_cells(groups, settings, count):
        open_ended = torch.full((rows.shape[1],), torch.inf, dtype=torch.float64)
        whole = [(open_ended, torch.arange(count))]
        own.boxes, _ = cut_boxes(rows, tails, settings, groups, whole, [label])
    return own


def _packed(boxes: list[Box]) -> list[Box]:
    """Return boxes whose edges, and whose rows, lie together in memory.

    Small results between large ones that come and go leave holes in a process's memory.
    """
    if not boxes:
        return []
    edges, rows = zip(*boxes, strict=True)
    return list(zip(torch.stack(edges), torch.cat(rows).split(list(map(len, rows))), strict=True))


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


def _check_enough_groups(groups: Tensor, settings: FitSettings) -> None:
    """Refuse fewer groups than ``min_members``: even a label's only vector is made of its rows."""
    count = len(groups.unique())
    if count < settings.min_members:
        raise InvalidTensorError(
            f"calibration queries must be of {settings.min_members} groups or more, the members of "
            f"the smallest cell, but are of {count}. Pass queries of more groups, or lower "
            "min_members."
        )


def _check_calibration(
    logits: Tensor,
    settings: FitSettings,
    images: Tensor | None,
    variants: Tensor | None,
    rows: Tensor | None,
) -> None:
    check_logits_to_fit(logits, "calibration logits")
    if logits.ndim != 2 or len(logits if rows is None else rows) < settings.min_members:
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
    calibration: Calibration,
    rate_weight: float,
    image_weight: float = 0.0,
    *,
    once: bool = False,
) -> Codebook:
    """Merge boxes into cells under given weights, and fill a table.

    Args:
        calibration: From :func:`cut_calibration`.
        rate_weight: See :class:`FitSettings`.
        image_weight: See :class:`FitSettings`; needs a calibration that was cut with images.
        once: Whether no other weights follow: distortions of unions are not kept then.

    Raises:
        InvalidOptionError: A weight is outside its range, the calibration has no images, or
            ``max_cells`` is too few.
    """
    check_rate_weight("rate_weight", rate_weight)
    check_weight("image_weight", image_weight)
    labels = calibration.labels
    if image_weight and all(each.image_distances is None for each in labels):
        raise InvalidOptionError(
            "image_weight needs a calibration that was cut with images, but this one has none. "
            "Cut it under settings with an image_weight above 0."
        )
    merged, levels = _merge(calibration, rate_weight, image_weight, once=once)
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
    owners, members = [span.start] * book.sizes.boxes, [0] * len(cells)
    for cell, numbers in enumerate(cells):
        for box in numbers:
            owners[box] = span.start + cell
            members[cell] += len(rows.boxes[box][1])
    book.assignment[label], book.members[span] = torch.tensor(owners), torch.tensor(members)
    if rows.groups is not None:
        groups = [len(rows.groups[rows.union(numbers)].unique()) for numbers in cells]
        book.groups[span] = torch.tensor(groups)
    # A cell that stays as it was may have no new rows.
    offsets, values = rows.vectors_of(cells)
    book.offsets[span] = rounded_offsets(offsets)
    # Cut off, not rounded: what is left goes to the label, which stays on top.
    others = torch.from_numpy(short(values[:, 1:].numpy(), np.floor))
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


def _merge(
    calibration: Calibration, rate_weight: float, image_weight: float, *, once: bool
) -> tuple[list[list[frozenset[int]]], list[frozenset[int]]]:
    """Join boxes while that lowers the objective, then down to ``max_cells``.

    Returns:
        The cells of each label, and those of the labels that share levels, as numbers of boxes.

    Raises:
        InvalidOptionError: More cells are left than ``max_cells``.
    """
    settings, shared = calibration.settings, calibration.shared
    most, cap = settings.max_cells, settings.max_l1_worst
    merged = list[Merged]()
    for labels in side_by_side(calibration.labels):
        unions = partial(sorted_rows_of, labels)
        merged += merge(
            labels, unions, rate_weight, image_weight, settings, to_the_end=most is not None
        )
        for label in labels if once else ():
            label.pairs.clear()
            label.known.clear()
    if shared is not None:
        alike = len(shared.labels)
        (levels,) = merge(
            [shared],
            lambda cells: LevelSums(shared, cells[0]),
            rate_weight,
            0.0,
            settings,
            alike=alike,
            to_the_end=True,
        )
        # A level of one label has few queries: nothing is known of the groups that will be behind
        # it.
        few = settings.shared_levels if settings.max_group_share == 1 else 1
        while len(levels.cells) > few:
            levels.join()
        merged.append(levels)
    # A label without cells has one vector.
    cells = sum(each.alike * max(1, len(each.cells)) for each in merged)
    while most is not None and cells > most:
        least = min(merged, key=lambda each: each.cheapest / each.alike)
        if least.cheapest == math.inf:
            within = "" if cap is None else f" within a max_l1_worst of {cap:g}"
            raise InvalidOptionError(
                f"max_cells must be at least {cells} for {len(calibration.labels)} labels{within}, "
                f"but got {most}. Raise it."
            )
        least.join()
        cells -= least.alike
    chosen = [sorted(each.cells.values(), key=min) for each in merged]
    of_levels = [] if shared is None else chosen.pop()
    own = iter(chosen)
    return [next(own) if each.boxes else [] for each in calibration.labels], of_levels
