"""Order of the scores against SciPy, scikit-learn, and tie breaking done by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import failure_auroc, rank_correlation, top_accuracy, top_agreement
from optional import later

spearmanr = later("scipy.stats:spearmanr")
roc_auc_score = later("sklearn.metrics:roc_auc_score")

SEEDS = st.integers(0, 10**6)
ROWS = st.integers(1, 8)


def scores(seed, rows, classes, steps):
    """Few steps make ties."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, steps, (2, rows, classes)) / steps


def labels_for(seed, rows, classes):
    return np.random.default_rng(seed + 1).integers(0, classes, rows)


def tops(row, within):
    """Every set of ``within`` classes that some way of breaking ties could put on top."""
    orders = itertools.permutations(range(len(row)))
    return [
        set(order[:within])
        for order in orders
        if all(row[a] >= row[b] for a, b in itertools.pairwise(order))
    ]


@settings(max_examples=60)
@given(SEEDS, ROWS, st.integers(2, 5), st.integers(2, 6), st.data())
def test_top_accuracy_is_the_mean_over_all_ways_to_break_ties(seed, rows, classes, steps, data):
    within = data.draw(st.integers(1, classes))
    released, labels = scores(seed, rows, classes, steps)[0], labels_for(seed, rows, classes)
    expected = np.mean(
        [
            np.mean([label in top for top in tops(row, within)])
            for row, label in zip(released, labels, strict=True)
        ]
    )
    got = top_accuracy(torch.from_numpy(released), torch.from_numpy(labels), within)
    assert got == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(SEEDS, ROWS, st.integers(2, 5), st.integers(2, 6), st.data())
def test_agreement_with_untied_scores_is_the_mean_overlap_over_all_ways_to_break_ties(
    seed, rows, classes, steps, data
):
    within = data.draw(st.integers(1, classes))
    released = scores(seed, rows, classes, steps)[0]
    clean = np.random.default_rng(seed).random((rows, classes))
    expected = np.mean(
        [
            np.mean([len(top & tops(true, within)[0]) / within for top in tops(row, within)])
            for true, row in zip(clean, released, strict=True)
        ]
    )
    got = top_agreement(torch.from_numpy(clean), torch.from_numpy(released), within)
    assert got == pytest.approx(expected, abs=1e-12)


@given(SEEDS, ROWS, st.integers(2, 9), st.integers(1, 6), st.data())
def test_scores_agree_with_themselves_and_with_any_increasing_map_of_them(
    seed, rows, classes, steps, data
):
    within = data.draw(st.integers(1, classes))
    clean = torch.from_numpy(scores(seed, rows, classes, steps)[0])
    assert top_agreement(clean, clean, within) == pytest.approx(1)
    assert top_agreement(clean, 7 * clean.exp() - 3, within) == pytest.approx(1)


def test_top_agreement_of_what_was_cut_off_is_chance():
    clean = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]])
    only_the_label = torch.tensor([[1.0, 0, 0, 0, 0]])
    # The label for sure, and two more of the four that tie: each with a chance of a half.
    assert top_agreement(clean, only_the_label, 3) == pytest.approx((1 + 0.5 + 0.5) / 3)


@settings(max_examples=60)
@given(SEEDS, ROWS, st.integers(2, 9), st.integers(2, 9), st.sampled_from([32, 64]))
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_rank_correlation_equals_scipy(seed, rows, classes, steps, bits):
    clean, released = scores(seed, rows, classes, steps).astype(f"float{bits}")
    each = [spearmanr(*pair).statistic for pair in zip(clean, released, strict=True)]
    got = rank_correlation(torch.from_numpy(clean), torch.from_numpy(released))
    assert got == pytest.approx(np.nan_to_num(each, nan=0).mean(), abs=1e-12)


@given(SEEDS, st.integers(2, 9))
def test_rank_correlation_is_1_kept_and_minus_1_turned_round(seed, classes):
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(classes), (3, 1)), axis=1)
    clean = torch.from_numpy(order / classes)
    assert rank_correlation(clean, clean.exp()) == pytest.approx(1)
    assert rank_correlation(clean, -clean) == pytest.approx(-1)


def test_a_row_of_ties_counts_0():
    clean = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    released = torch.tensor([[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    assert rank_correlation(clean, released) == pytest.approx(0.5)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 40), st.integers(2, 5), st.integers(2, 9))
def test_auroc_equals_scikit_learn(seed, rows, classes, steps):
    released, labels = scores(seed, rows, classes, steps)[0], labels_for(seed, rows, classes)
    right = released.argmax(-1) == labels
    got = failure_auroc(torch.from_numpy(released), torch.from_numpy(labels))
    if right.all() or not right.any():
        assert got is None
    else:
        assert got == pytest.approx(roc_auc_score(right, released.max(-1)), abs=1e-12)


def test_auroc_is_1_where_every_wrong_row_is_less_sure():
    released = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55]])
    assert failure_auroc(released, torch.tensor([0, 1, 1, 0])) == 1
    assert failure_auroc(released, torch.tensor([1, 0, 0, 1])) == 0
    assert failure_auroc(released, torch.tensor([0, 1, 0, 1])) is None


GOOD = torch.full((4, 3), 1 / 3)
LABELS = torch.tensor([0, 1, 2, 0])


@looped("measure", [top_accuracy, failure_auroc])
@looped(
    ("released", "labels", "message"),
    [
        (GOOD, LABELS[:3], r"int64 of shape \(4,\).*got int64 of shape \(3,\)"),
        (GOOD, LABELS.int(), "labels must be int64.*got int32"),
        (GOOD, LABELS + 1, r"\[0, 3\).*1 of 4"),
        (GOOD, LABELS - 1, r"\[0, 3\).*2 of 4"),
        (GOOD[0], LABELS, r"released must have shape \(N, K\)"),
        (GOOD[:0], LABELS[:0], "N >= 1"),
        (GOOD * torch.nan, LABELS, "released must be finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(measure, released, labels, message):
    with pytest.raises(InvalidTensorError, match=message):
        measure(released, labels)


@looped("measure", [top_agreement, rank_correlation])
@looped(
    ("clean", "released", "message"),
    [
        (GOOD, GOOD[:1], r"^released must have the shape"),
        (GOOD[0], GOOD[0], r"^clean must have shape \(N, K\)"),
        (GOOD, GOOD * torch.inf, "^released must be finite"),
    ],
)
def test_what_cannot_be_matched_is_refused(measure, clean, released, message):
    with pytest.raises(InvalidTensorError, match=message):
        measure(clean, released, *([2] if measure is top_agreement else []))


@looped(("within", "message"), [(0, "at least 1"), (4, "at most the 3 classes")])
def test_within_is_checked(within, message):
    with pytest.raises(InvalidOptionError, match=message):
        top_accuracy(GOOD, LABELS, within)
    with pytest.raises(InvalidOptionError, match=message):
        top_agreement(GOOD, GOOD, within)
