"""Fitting: what boxes and cells hold, what they release, and that weights do what they say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    FitSettings,
    cut_calibration,
    fit_codebook,
    measure_codebook,
    merge_calibration,
)
from oneway.defenses.codebook.boxes import DIGITS, distances_from_center
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from reference import codebook as slow
from rows import random_rows, same_bits

CUT_OFF = 2.0 ** (1 - DIGITS)
"""Largest change of a released probability, or of an edge, by the digits that a table keeps."""

FEW = FitSettings(min_members=5, rate_weight=0.0, max_boxes=6)


def by_label(logits):
    """Return the row numbers of each label, by a loop."""
    found = {label: [] for label in range(logits.shape[1])}
    for row, scores in enumerate(logits.tolist()):
        found[scores.index(max(scores))].append(row)
    return found


def seen_rows(book, logits, label):
    """Return a label's rows as its table sees them, and their numbers."""
    numbers = by_label(logits)[label]
    order = book.classes[label].tolist()
    probabilities = slow.softmaxes(logits[numbers].double().numpy())
    return np.array([slow.seen(row, order) for row in probabilities]), numbers


def partition(cells, numbers):
    """Return sets of row numbers that have one cell."""
    sets = {}
    for row in numbers:
        sets.setdefault(int(cells[row]), set()).add(row)
    return {frozenset(some) for some in sets.values()}


@pytest.fixture(scope="module")
def logits():
    return scored(1, 240)[0]


def settings_of(min_members, rate_weight=0.0, explicit_classes=32, **more):
    return FitSettings(
        min_members=min_members,
        rate_weight=rate_weight,
        explicit_classes=explicit_classes,
        **more,
    )


def test_boxes_are_those_of_a_tree_of_best_cuts_and_rows_walk_to_theirs(logits):
    fresh = scored(2, 150)[0]
    for explicit in (4, 2, 1):
        book = fit_codebook(logits, settings_of(5, 0.0, explicit, max_boxes=6))
        cells, fresh_cells = book(logits), book(fresh)
        for label in range(4):
            case = f"{explicit} explicit classes, label {label}"
            rows, numbers = seen_rows(book, logits, label)
            tree = slow.grow(rows, 5, 6)
            leaves = [
                [numbers[row] for row in leaf.rows]
                for leaf in sorted(slow.leaves_of(tree), key=lambda leaf: leaf.number)
            ]
            assert len(leaves) > 3, case
            assert partition(cells, numbers) == set(map(frozenset, leaves)), case
            # Rows that the table was not fitted to go where the cuts lead, too.
            cell_of_leaf = [int(cells[leaf[0]]) for leaf in leaves]
            others, their_numbers = seen_rows(book, fresh, label)
            walked = [cell_of_leaf[slow.walk(tree, row)] for row in others]
            assert walked == fresh_cells[their_numbers].tolist(), case


def test_boxes_are_merged_as_the_objective_says(logits):
    for explicit in (4, 2):
        calibration = cut_calibration(logits, settings_of(5, 0.0, explicit, max_boxes=6))
        trees = {}
        for rate_weight in (0.0, 0.003, 0.05):
            book = merge_calibration(calibration, rate_weight)
            cells = book(logits)
            for label in range(4):
                rows, numbers = seen_rows(book, logits, label)
                if label not in trees:
                    trees[label] = [leaf.rows for leaf in slow.leaves_of(slow.grow(rows, 5, 6))]
                merged = slow.merge(trees[label], rows, rate_weight)
                wanted = {frozenset(numbers[row] for row in cell) for cell in merged}
                case = f"{explicit} explicit classes, weight {rate_weight}, label {label}"
                assert partition(cells, numbers) == wanted, case


def test_images_that_differ_are_joined_where_they_count(logits):
    images = scored(1, 240)[1]
    flat = images.flatten(1).numpy()
    rate_weight, image_weight = 1e-4, 100.0
    settings = FitSettings(
        min_members=5, rate_weight=rate_weight, image_weight=image_weight, max_boxes=6
    )
    book = fit_codebook(logits, settings, images)
    plain = fit_codebook(logits, FitSettings(min_members=5, rate_weight=rate_weight, max_boxes=6))
    cells, differ = book(logits), 0
    for label in range(4):
        rows, numbers = seen_rows(book, logits, label)
        weights = (rate_weight, image_weight, flat[numbers])
        leaves = [leaf.rows for leaf in slow.leaves_of(slow.grow(rows, 5, 6))]
        merged = slow.merge(leaves, rows, *weights)
        wanted = {frozenset(numbers[row] for row in cell) for cell in merged}
        assert partition(cells, numbers) == wanted
        differ += wanted != partition(plain(logits), numbers)

    assert differ >= 2
    assert book.sizes.cells < plain.sizes.cells
    assert slow.within_cells(cells.numpy(), flat) > slow.within_cells(plain(logits).numpy(), flat)


def test_cells_are_joined_by_their_images_alone_where_scores_do_not_tell():
    # Four boxes on a line, equally far apart; the images of the outer ones differ most.
    top = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64).repeat_interleave(10)
    logits = torch.stack([top, 1 - top], -1).log()
    images = torch.tensor([0.0, 0.5, 0.5, 1.0]).repeat_interleave(10).view(-1, 1, 1, 1)
    calibration = cut_calibration(
        logits, FitSettings(min_members=10, rate_weight=0.0, image_weight=1.0), images
    )
    for weight, sets in ((0.0, 4), (3.0, 3)):
        cells = merge_calibration(calibration, 0.0, weight)(logits).view(4, 10)
        assert (cells == cells[:, :1]).all()
        assert len(cells[:, 0].unique()) == sets
    # What is joined first is the pair for which joining costs least of what it gains.
    assert cells[0, 0] != cells[1, 0]


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.sampled_from([0.0, 0.001, 0.03, math.inf]),
    st.sampled_from([1, 3, 9]),
    st.booleans(),
)
def test_every_cell_has_its_members_and_releases_their_mean(
    seed, least, rate_weight, explicit, coarse
):
    logits = random_rows(seed, 120, 5, torch.float32, 2)
    logits[:, 4] -= 6
    if coarse:
        logits = logits.round()  # with ties, within rows and between them
    book = fit_codebook(logits, settings_of(least, rate_weight, explicit, max_boxes=12))
    cells = book(logits)
    for label, numbers in by_label(logits).items():
        own = (book.labels == label).nonzero()[:, 0].tolist()
        if len(numbers) < least:
            assert (book.shared[own] >= least).all()
            continue
        # Cells hold all rows of their label, and no others.
        assert sorted(set(cells[numbers].tolist())) == own
        for cell in own:
            members = [row for row in numbers if cells[row] == cell]
            assert len(members) == book.members[cell] >= least
            mean = slow.softmaxes(logits[members].double().numpy()).mean(0)
            order = book.classes[label].tolist()
            wanted = mean.copy()
            rest = [k for k in range(5) if k not in order]
            wanted[rest] = mean[rest].sum() / max(1, len(rest))
            released = book.expand(book.values, torch.tensor([cell]))[0].numpy()
            np.testing.assert_allclose(released, wanted, rtol=0, atol=CUT_OFF)
            offset = np.logaddexp.reduce(logits[members].double().numpy(), axis=1).mean()
            np.testing.assert_allclose(float(book.offsets[cell]), offset, rtol=0, atol=5.1e-4)
    released = book.expand(book.values, torch.arange(book.sizes.cells))
    assert (released > 0).all()
    assert (released.sum(-1) - 1).abs().max() < 1e-12
    index = book.labels.unsqueeze(-1)
    assert (
        released.gather(-1, index) > released.scatter(-1, index, -1).amax(-1, keepdim=True)
    ).all()


def test_scores_that_all_tie_have_one_cell_whose_label_leads():
    for classes in (3, 40, 300):
        book = fit_codebook(torch.zeros(60, classes), settings_of(5, 0.01, 20))
        assert book.sizes.cells == classes
        released = book.expand(book.values, torch.tensor([0]))[0]
        assert released[0] > released[1:].max(), f"{classes} classes"
        np.testing.assert_allclose(released.numpy(), 1 / classes, rtol=0, atol=CUT_OFF)


def test_a_cut_never_parts_equals_and_stands_between_its_neighbours():
    kinds = torch.tensor([[0.55, 0.45], [0.7, 0.3], [0.9, 0.1]], dtype=torch.float64).log()
    logits = kinds.repeat_interleave(torch.tensor([7, 11, 4]), 0)
    book = fit_codebook(logits, FitSettings(min_members=1, rate_weight=0.0))
    assert partition(book(logits), range(22)) == {
        frozenset(range(7)),
        frozenset(range(7, 18)),
        frozenset(range(18, 22)),
    }
    edges = sorted(value for value in book.edges[0].flatten().tolist() if math.isfinite(value))
    tops = {0.55 + 0.15 / 2, 0.8}
    for edge in edges:
        assert min(abs(edge - top) for top in tops | {1 - top for top in tops}) < CUT_OFF
    # With five on a side at least, the four stay with their neighbours.
    book = fit_codebook(logits, FitSettings(min_members=5, rate_weight=0.0))
    assert partition(book(logits), range(22)) == {frozenset(range(7)), frozenset(range(7, 22))}
    # Two that the type can hardly tell apart may be parted, and land where they were counted.
    close = torch.tensor([[0.0, 0.0], [0.0, torch.finfo(torch.float64).eps]]).double()
    close = close.repeat_interleave(6, 0) - torch.tensor([0.0, 1.0])
    book = fit_codebook(close, FitSettings(min_members=6, rate_weight=0.0))
    counted = book(close).bincount(minlength=book.sizes.cells)
    assert torch.equal(counted, book.members)


@pytest.mark.parametrize("center", ["mean", "median"])
def test_nobody_finds_in_the_table_whose_scores_are_on_both_sides_of_a_cut(center):
    logits = random_rows(3, 400, 4, torch.float64, 2)
    book = fit_codebook(logits, FitSettings(min_members=5, rate_weight=0.0, center=center))
    rows = logits.softmax(-1)
    for label, numbers in by_label(logits).items():
        own = rows[numbers][:, book.classes[label]]
        # What an attacker would try who holds the table and candidates: all pairs.
        for axis, edges in enumerate(book.edges[label].T):
            middles = (own[:, None, axis] + own[None, :, axis]).flatten() / 2
            assert not torch.isin(edges, middles).any()
        held = book.values[book.labels == label, 1:]
        for numbers_held in (book.edges[label][book.edges[label].isfinite()], held):
            mantissas = numbers_held.frexp().mantissa * 2**DIGITS
            assert (mantissas == mantissas.round()).all()


def test_the_weight_of_a_bit_goes_from_all_boxes_apart_to_one_cell_per_label():
    logits = scored(5, 800)[0]
    calibration = cut_calibration(logits, FitSettings(min_members=10))
    boxes = [len(one.boxes) for one in calibration.labels]
    weights = [0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0, math.inf]
    books = [merge_calibration(calibration, weight) for weight in weights]
    found = [measure_codebook(book, logits) for book in books]
    assert books[0].sizes.cells == sum(boxes) > 40
    assert torch.equal(books[-1](logits), logits.argmax(-1))
    assert found[-1].bits == 0
    bits, moved = [one.bits for one in found], [one.l1_mean for one in found]
    assert bits == sorted(bits, reverse=True)
    assert moved == sorted(moved)
    assert bits[0] > 4 > bits[3] > 2 > bits[4] > 0.5
    assert moved[0] < 0.3 * moved[-1]
    # A sweep computes what a fit does.
    for weight, book in zip(weights, books, strict=True):
        alone = fit_codebook(logits, FitSettings(min_members=10, rate_weight=weight))
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor, book.state_dict()[name])


def test_merging_never_raises_the_objective_and_stops_where_no_pair_lowers_it():
    logits, images = scored(6, 400)
    flat = images.flatten(1).numpy()
    calibration = cut_calibration(logits, settings_of(15, image_weight=1.0), images)
    apart = merge_calibration(calibration, 0.0, 0.0)
    for weights in ((0.0, 0), (0.002, 0), (0.02, 3), (0, 5)):
        book, joined = merge_calibration(calibration, *weights), 0
        for label in range(4):
            rows, numbers = seen_rows(book, logits, label)
            place = {row: at for at, row in enumerate(numbers)}
            costs = []
            for table in (apart, book):
                sets = partition(table(logits), numbers)
                cells = [[place[row] for row in members] for members in sets]
                costs.append(slow.objective(cells, rows, *weights, flat[numbers]))
                joined += len(cells) if table is apart else -len(cells)
            assert costs[1] <= costs[0] + 1e-9, weights
            for at, first in enumerate(cells):
                for second in cells[:at]:
                    rest = [cell for cell in cells if cell not in (first, second)]
                    cost = slow.objective([*rest, first + second], rows, *weights, flat[numbers])
                    assert cost >= costs[1] - 1e-9, weights
        assert (joined > 0) == (sum(weights) > 0), weights


def test_a_sparse_table_is_the_dense_one_where_the_tail_is_even():
    """Scores with all but two classes alike: what a sparse table leaves out tells nothing."""
    few = scored(7, 800, classes=3, pull=0.0)[0]
    logits = torch.cat([few, few.new_full((800, 27), -3.0)], -1)
    dense, sparse = (
        fit_codebook(
            logits, FitSettings(min_members=10, rate_weight=0.002, explicit_classes=listed)
        )
        for listed in (30, 3)
    )
    assert dense.is_dense
    assert sparse.values.shape[1] == 4
    released = [book.expand(book.values, book(logits)) for book in (dense, sparse)]
    assert (released[0] - released[1]).abs().sum(-1).mean() < 0.01
    # L1 over 27 like classes is L1 of their sum, so that the same cuts are best.
    assert dense.sizes.cells == pytest.approx(sparse.sizes.cells, abs=6)
    released = sparse.expand(sparse.values, torch.arange(sparse.sizes.cells))
    assert (released.sum(-1) - 1).abs().max() < 1e-12
    # All classes that are not explicit are released the same, whatever they had.
    labels = sparse.labels.unsqueeze(-1)
    for row, label in zip(released, labels[:, 0].tolist(), strict=True):
        others = [k for k in range(30) if k not in sparse.classes[label].tolist()]
        assert len(row[others].unique()) == 1


def test_explicit_classes_are_the_likeliest_of_their_label(logits):
    book = fit_codebook(logits, FitSettings(min_members=5, explicit_classes=2))
    for label, numbers in by_label(logits).items():
        probabilities = slow.softmaxes(logits[numbers].numpy())
        assert book.classes[label].tolist() == slow.explicit_classes_of(probabilities, label, 2)


def test_no_label_has_more_boxes_than_allowed(logits):
    for most in (1, 2, 7):
        book = fit_codebook(logits, settings_of(2, max_boxes=most))
        assert int(book.labels.bincount().max()) == most


def test_calibration_scores_are_left_as_they_are_and_decide_alone(logits):
    before, state = logits.clone(), torch.get_rng_state()
    one, again = (fit_codebook(logits, FEW) for _ in range(2))
    assert same_bits(logits, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items()
    )
    # Their order does not.
    turned = fit_codebook(logits.flip(0), FEW)
    assert torch.equal(turned(logits), one(logits))
    torch.testing.assert_close(turned.values, one.values, rtol=1e-12, atol=1e-15)


def test_progress_is_reported_label_by_label(logits):
    shares = []
    fit_codebook(logits, FEW, on_label=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_distances_are_in_l1_from_the_center():
    rows = random_rows(1, 9, 4, torch.float64, 1).softmax(-1)
    middle = np.median(rows.numpy(), 0)
    centers = {"mean": rows.numpy().mean(0), "median": middle / middle.sum()}
    for center, point in centers.items():
        found = distances_from_center(rows, center)
        np.testing.assert_allclose(found, np.abs(rows.numpy() - point).sum(1), rtol=1e-12)


def test_a_median_is_released_where_it_is_asked_for(logits):
    for explicit in (4, 2):
        book = fit_codebook(logits, settings_of(6, 0.02, explicit, center="median"))
        cells = book(logits)
        assert (cells.bincount(minlength=book.sizes.cells) == book.members).all()
        for cell, label in enumerate(book.labels.tolist()):
            rows, numbers = seen_rows(book, logits, label)
            members = rows[[place for place, row in enumerate(numbers) if cells[row] == cell]]
            middle = np.median(members, 0)
            wanted = middle / middle.sum()
            wanted[explicit:] /= max(1, 4 - explicit)
            np.testing.assert_allclose(book.values[cell].numpy(), wanted, rtol=0, atol=CUT_OFF)


def test_settings_outside_their_range_are_refused_by_name():
    with pytest.raises(UnknownNameError, match=r"unknown center 'mode'.*mean, median"):
        FitSettings(center="mode")
    for name, value in (
        ("min_members", 0),
        ("min_members", 2.0),
        ("rate_weight", -0.1),
        ("rate_weight", math.nan),
        ("rate_weight", True),
        ("image_weight", -1),
        ("image_weight", math.inf),
        ("max_boxes", 0),
        ("explicit_classes", 0),
    ):
        with pytest.raises(InvalidOptionError, match=f"^{name} must be"):
            FitSettings(**{name: value})


def test_scores_that_cannot_be_fitted_to_are_refused_with_the_remedy(logits):
    with pytest.raises(InvalidTensorError, match=r"N >= 20.*got \(19, 4\)\. Pass more"):
        fit_codebook(logits[:19])
    with pytest.raises(InvalidTensorError, match="calibration logits must have shape"):
        fit_codebook(logits[0])
    with pytest.raises(InvalidTensorError, match="calibration logits must be finite"):
        fit_codebook(torch.full((30, 4), torch.nan))
    with pytest.raises(InvalidTensorError, match="images must be given with image_weight"):
        fit_codebook(logits, FitSettings(image_weight=1.0))
    with pytest.raises(InvalidTensorError, match="as many as calibration logits, 240, but got 3"):
        fit_codebook(logits, FitSettings(image_weight=1.0), torch.zeros(3, 1, 4, 4))


def test_weights_of_a_merge_are_checked_and_need_what_they_weigh(logits):
    calibration = cut_calibration(logits, FEW)
    with pytest.raises(InvalidOptionError, match="cut with images, but this one has none"):
        merge_calibration(calibration, 0.01, 1.0)
    with pytest.raises(InvalidOptionError, match="rate_weight must be"):
        merge_calibration(calibration, -1.0)
    with pytest.raises(InvalidOptionError, match="image_weight must be"):
        merge_calibration(calibration, 0.1, math.nan)
