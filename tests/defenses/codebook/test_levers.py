"""Levers of a fit: at most so many cells, and no join that brings a query beyond a cap."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    Budget,
    CodebookRelease,
    FitSettings,
    choose_codebook,
    cut_calibration,
    fit_codebook,
    merge_calibration,
)
from oneway.errors import InvalidOptionError

RATE = 0.02


@pytest.fixture(scope="module")
def logits():
    return scored(1, 300)[0]


def settings_of(**more):
    return FitSettings(**{"min_members": 8, "rate_weight": RATE} | more)


@pytest.fixture(scope="module")
def calibration(logits):
    return cut_calibration(logits, settings_of())


def limited(calibration, most):
    """A table of so many cells; what boxes cost is computed once."""
    settings = settings_of(max_cells=most)
    return merge_calibration(dataclasses.replace(calibration, settings=settings), RATE)


def parts_of(book):
    """The boxes of each cell, by label."""
    sets = [
        {frozenset((row == cell).nonzero()[:, 0].tolist()) for cell in row.unique()}
        for row in book.assignment
    ]
    return [{part for part in cells if part} for cells in sets]


def beyond(book, logits, cap):
    """Whether each row is farther than a cap from its answer."""
    released = book.expand(book.values, book(logits))
    return (released - logits.softmax(-1)).abs().sum(-1) > cap


def test_no_more_cells_than_allowed_and_each_a_union_of_those_without_a_limit(calibration, logits):
    free = limited(calibration, None)
    assert free.sizes.cells > 12
    for most in (4, 7, free.sizes.cells - 1, 500):
        book = limited(calibration, most)
        assert book.sizes.cells == min(most, free.sizes.cells)
        assert torch.equal(book.edges, free.edges)
        for joined, apart in zip(parts_of(book), parts_of(free), strict=True):
            for part in apart:
                assert sum(part <= other for other in joined) == 1
        assert book.fault() is None
        assert int(book.members.min()) >= 8
        assert int(book.members.sum()) == len(logits)


def objective(rows):
    """What one cell's rows add to the objective of their label, but for a constant."""
    return np.abs(rows - rows.mean(0)).sum() - RATE * len(rows) * math.log2(len(rows))


def test_cells_are_joined_where_that_costs_least_among_all_labels(calibration, logits):
    free = limited(calibration, None)
    cells, labels = free(logits), logits.argmax(-1)
    rows = logits.softmax(-1).numpy()
    groups = {
        (int(label), (int(cell),)): rows[(cells == cell).numpy()]
        for label in labels.unique()
        for cell in cells[labels == label].unique()
    }
    for most in range(free.sizes.cells - 1, 3, -1):
        pairs = [pair for pair in itertools.combinations(groups, 2) if pair[0][0] == pair[1][0]]

        def rise(pair):
            one, other = (groups[key] for key in pair)
            return objective(np.concatenate([one, other])) - objective(one) - objective(other)

        first, second = min(pairs, key=rise)
        joined = np.concatenate([groups.pop(first), groups.pop(second)])
        groups[first[0], first[1] + second[1]] = joined
        if most % 4 == 0:
            book = limited(calibration, most)
            wanted = {frozenset(names) for _, names in groups}
            new = book(logits)
            found = {
                frozenset(cells[new == cell].unique().tolist()) for cell in new.unique().tolist()
            }
            assert found == wanted


def test_a_budget_chooses_among_tables_of_so_few_cells_and_the_impossible_is_refused(
    calibration, logits
):
    nine = dataclasses.replace(calibration, settings=settings_of(max_cells=9))
    book = choose_codebook(nine, logits, Budget(bits=3.0))
    assert book.sizes.cells == 9
    with pytest.raises(InvalidOptionError, match=r"max_cells must be at least 4 for 4 labels, .*3"):
        limited(calibration, 3)
    with pytest.raises(InvalidOptionError, match=r"within a max_l1_worst of 0\.05, but got 5"):
        fit_codebook(logits, settings_of(max_cells=5, max_l1_worst=0.05))
    for name, wrong in (("max_cells", 0), ("max_l1_worst", 0.0), ("max_l1_worst", 2.1)):
        with pytest.raises(InvalidOptionError, match=name):
            settings_of(**{name: wrong})


def test_no_join_brings_a_query_beyond_the_cap(logits):
    cap = 0.3
    calibration = cut_calibration(logits, settings_of(max_l1_worst=cap))
    # All boxes apart: rows without enough others near are beyond it there, too.
    boxes = merge_calibration(calibration, 0.0)
    stray = int(beyond(boxes, logits, cap).sum())
    sizes = []
    for weight in (0.0, 0.1, 1.0, math.inf):
        book = merge_calibration(calibration, weight)
        assert int(beyond(book, logits, cap).sum()) <= stray
        sizes.append(book.sizes.cells)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] > 4
    # Without the cap more are: the joins at these weights are those that it forbids.
    free = merge_calibration(cut_calibration(logits, settings_of()), 1.0)
    assert int(beyond(free, logits, cap).sum()) > 2 * stray


def test_a_table_of_a_shared_rest_counts_the_distance_of_the_rest(logits):
    cap = 0.5
    settings = settings_of(explicit_classes=2, max_l1_worst=cap)
    calibration = cut_calibration(logits, settings)
    book = merge_calibration(calibration, math.inf)
    bounded = sum(
        label.beyond(frozenset([box]))
        for label in calibration.labels
        for box in range(len(label.boxes))
    )
    assert int(beyond(book, logits, cap).sum()) <= bounded
    assert bounded < len(logits) / 4
    assert book.sizes.cells > 4


def test_boxes_with_a_query_beyond_the_cap_are_cut_first():
    # Most rows lie in four places near each other; few in two places that are far apart.
    places = [(0.6, 250), (0.64, 250), (0.68, 250), (0.72, 250), (0.85, 10), (0.97, 10)]
    tops = torch.cat([torch.full((count,), top, dtype=torch.float64) for top, count in places])
    # The other label has a few rows, in one place.
    tops = torch.cat([tops, torch.full((10,), 0.1, dtype=torch.float64)])
    rows = torch.stack([tops, 1 - tops], -1).log()
    counts = []
    for cap in (None, 0.1):
        settings = FitSettings(min_members=5, rate_weight=0.0, max_boxes=4, max_l1_worst=cap)
        counts.append(int(beyond(fit_codebook(rows, settings), rows, 0.1).sum()))
    assert counts[0] > 0
    assert counts[1] == 0


def test_a_release_is_certified_with_its_cap_and_its_cells():
    logits, images = scored(1, 300)
    fitted = CodebookRelease.fit(
        logits,
        images,
        generator=torch.Generator().manual_seed(0),
        settings=settings_of(max_cells=14, max_l1_worst=0.6),
        held_out=0.5,
        sensitive=torch.arange(300) % 2,
    )
    certificate = fitted.certificate
    assert certificate.identification.cells <= 14
    assert certificate.worst_case.limit == 0.6
    assert certificate.sensitive.values == 2
    # Values follow their queries through the split.
    decided = CodebookRelease.fit(
        logits,
        images,
        generator=torch.Generator().manual_seed(0),
        settings=settings_of(max_cells=4),
        held_out=0.5,
        sensitive=logits.argmax(-1),
    )
    assert decided.certificate.sensitive.release == 1
