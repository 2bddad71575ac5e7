"""Measures of membership inference, against scikit-learn and distributions that are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneway.errors import InvalidTensorError
from oneway.metrics.membership import (
    area_under_curve,
    membership_gap,
    membership_measures,
    over_models,
    percentile_interval,
    rates,
    resampled_counts,
    total_variation,
    true_positive_rate,
)
from optional import later

roc_auc_score = later("sklearn.metrics:roc_auc_score")
roc_curve = later("sklearn.metrics:roc_curve")


@st.composite
def scored(draw):
    """Scores with many ties, and members of both kinds."""
    rows = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-3, 3), min_size=rows, max_size=rows))
    members = draw(st.lists(st.booleans(), min_size=rows - 2, max_size=rows - 2))
    return torch.tensor(scores).double(), torch.tensor([True, False, *members])


@settings(max_examples=40)
@given(scored(), st.floats(0, 1))
def test_curve_area_and_rate_are_those_of_scikit_learn_with_ties_interpolated(case, at):
    scores, members = case
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    found = rates(scores, members)
    np.testing.assert_allclose(found[0], false)
    np.testing.assert_allclose(found[1], true)
    assert area_under_curve(scores, members) == pytest.approx(roc_auc_score(members, scores))
    # The upper end of a vertical line: interp takes one of its ends where rates are equal.
    upper = true[np.searchsorted(false, at, side="right") - 1] if at in false else 0
    expected = max(np.interp(at, false, true), upper)
    assert true_positive_rate(scores, members, at) == pytest.approx(expected, abs=1e-9)


def test_one_score_for_all_is_a_guess_at_every_rate():
    members = torch.arange(10) < 5
    assert true_positive_rate(torch.zeros(10), members, 0.01) == pytest.approx(0.01)
    assert area_under_curve(torch.zeros(10), members) == 0.5


@settings(max_examples=20)
@given(scored(), st.integers(0, 2**20))
def test_a_resample_measures_as_if_its_rows_were_repeated(case, seed):
    scores, members = case
    counts = resampled_counts(len(scores), torch.Generator().manual_seed(seed), 2)
    assert (counts[0] == 1).all()
    assert (counts.sum(-1) == len(scores)).all()
    measured = membership_measures(scores, members, counts)
    assert measured.lowest is None
    for row, area, low in zip(counts.long(), measured.area, measured.low, strict=True):
        repeated, inside = scores.repeat_interleave(row), members.repeat_interleave(row)
        if 0 < inside.sum() < len(inside):
            assert float(area) == pytest.approx(area_under_curve(repeated, inside))
            assert float(low) == pytest.approx(true_positive_rate(repeated, inside, 0.01))


def test_the_lowest_rate_takes_ten_thousand_non_members():
    scores = torch.arange(10_001).double()
    counts = torch.ones(1, 10_001).double()
    for members, given_ in ((scores == 10_000, True), (scores >= 9_999, False)):
        assert (membership_measures(scores, members, counts).lowest is not None) is given_


def test_bounds_of_the_total_variation_hold_and_the_plug_in_is_too_high():
    generator, labels = torch.Generator().manual_seed(0), torch.zeros(600, dtype=torch.int64)
    members = torch.arange(600) < 300
    for lead, true in ((0, 0.0), (20, 0.5), (40, 1.0)):
        # Uniform on 40 cells, and on 40 that begin later: they share 40 - lead.
        found = []
        for _ in range(3):
            cells = torch.randint(40, (600,), generator=generator)
            found.append(
                total_variation(cells + lead * members, labels, members, generator=generator)
            )
        assert all(each.low <= true <= each.high + 1e-12 for each in found)
        excess = [each.plug_in - true for each in found]
        assert all(value > -1e-9 for value in excess)
        if true == 0:
            assert all(each.low == 0 for each in found)
            assert sum(excess) / 3 == pytest.approx(found[0].by_chance, abs=0.05)
            assert sum(excess) / 3 > 0.1
        if true == 1:
            assert all(each.low > 0.7 for each in found)


def test_the_true_label_is_read_beside_the_cell():
    cells, labels = torch.tensor([0, 1] * 200), torch.tensor([0, 0, 1, 1] * 100)
    members = cells == labels  # neither alone says anything
    found = total_variation(cells, labels, members, generator=torch.Generator().manual_seed(0))
    assert found.plug_in == 1
    assert found.low > 0.6


def test_the_gap_is_a_share_and_has_no_value_without_a_leak():
    clean, label = torch.tensor([0.9, 0.9, 0.5]), torch.tensor([0.5, 0.5, 0.6])
    gaps = membership_gap(clean, torch.tensor([0.9, 0.5, 0.5]), label)
    assert gaps[:2].tolist() == [0, 1]
    assert gaps[2].isnan()
    draws = torch.cat([torch.tensor([0.5]), torch.full((40,), torch.nan)])
    interval = percentile_interval(draws)
    assert (interval.low, interval.high) == (-torch.inf, torch.inf)


def test_over_models_is_a_mean_and_spreads_with_the_models():
    equal, apart = torch.ones(201), torch.cat([torch.ones(1), torch.full((200,), 3.0)])
    generator = torch.Generator().manual_seed(0)
    assert (over_models([equal, equal], generator) == 1).all()
    drawn = over_models([equal, apart], generator)
    assert drawn[0] == 1
    assert set(drawn[1:].tolist()) == {1.0, 2.0, 3.0}


def test_scores_that_cannot_be_ranked_are_refused():
    members = torch.tensor([True, False])
    for scores, inside in (
        (torch.tensor([torch.nan, 0]), members),
        (torch.zeros(3), members),
        (torch.zeros(2), members.long()),
        (torch.zeros(2), torch.ones(2, dtype=torch.bool)),
    ):
        with pytest.raises(InvalidTensorError, match="members"):
            area_under_curve(scores, inside)
