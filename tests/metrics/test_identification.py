"""Identification by distances: ties count in expectation, as a slow oracle counts them."""

from fractions import Fraction
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import expected_hits


@st.composite
def distances_and_places(draw):
    """Few distinct distances, so that many tie."""
    candidates = draw(st.integers(1, 5))
    row = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=candidates, max_size=candidates)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    places = [draw(st.integers(0, candidates - 1)) for _ in rows]
    return rows, places


def slow_hits(row, place, within):
    """Return the share of all orders of candidates in which the right one is ranked in time."""
    orders = list(permutations(range(len(row))))
    ranked = [sorted(order, key=lambda candidate: row[candidate]) for order in orders]
    return Fraction(sum(place in order[:within] for order in ranked), len(orders))


@given(distances_and_places(), st.integers(1, 6))
def test_hits_are_those_of_all_orders_of_tied_candidates(case, within):
    rows, places = case
    hits = expected_hits(torch.tensor(rows), torch.tensor(places), within)
    expected = [float(slow_hits(*each, within)) for each in zip(rows, places, strict=True)]
    assert hits.dtype == torch.float64
    assert hits.tolist() == pytest.approx(expected, abs=1e-12)


@given(distances_and_places(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_changes_nothing(case, within, random):
    rows, places = torch.tensor(case[0]), torch.tensor(case[1])
    order = list(range(rows.shape[1]))
    random.shuffle(order)
    moved = torch.tensor([order.index(place) for place in places.tolist()])
    hits = expected_hits(rows[:, order], moved, within)
    assert torch.equal(hits, expected_hits(rows, places, within))


@looped("count", [1, 2, 7])
def test_who_sees_nothing_is_right_by_chance_and_not_always(count):
    hits = expected_hits(torch.zeros(count, count), torch.arange(count))
    assert hits.tolist() == pytest.approx([1 / count] * count)


@looped(
    ("distances", "places", "message"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), r"distances must be floating.*int64"),
        (torch.zeros(3), torch.zeros(3).long(), r"distances must be floating.*shape \(3,\)"),
        (torch.full((2, 3), torch.nan), torch.zeros(2).long(), "with 6 NaN"),
        (torch.zeros(2, 3), torch.zeros(3).long(), r"places must be int64 of shape \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2), r"places must be int64.*float32"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"in \[0, 3\)"),
    ],
)
def test_what_are_no_distances_or_places_is_refused(distances, places, message):
    with pytest.raises(InvalidTensorError, match=message):
        expected_hits(distances, places)


def test_ranks_are_counted_from_one():
    with pytest.raises(InvalidOptionError, match="within"):
        expected_hits(torch.zeros(2, 2), torch.arange(2), 0)
