"""Top-k: the kept stay, the others are one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses.top_k import TopK
from oneway.releases import release
from rows import leads, random_rows, score_rows


def by_loop(row, count, rest):
    """What is released of one row of probabilities, as a list."""
    order = sorted(range(len(row)), key=lambda k: (-row[k], k))
    kept, others = order[:count], order[count:]
    told = list(row)
    for k in others:
        told[k] = sum(row[j] for j in others) / len(others) if rest == "spread" else 0.0
    return [value / sum(told) for value in told] if kept else told


@looped("rest", ["spread", "zero"])
@looped("count", [1, 3, 6, 9])
def test_the_kept_stay_and_the_others_are_one(rest, count):
    logits = random_rows(3, 50, 6, torch.float64, 2)
    expected = torch.tensor([by_loop(row, count, rest) for row in logits.softmax(-1).tolist()])
    released = release(TopK(count=count, rest=rest)(logits), dtype=torch.float64)
    torch.testing.assert_close(released, expected.double(), rtol=1e-6, atol=1e-12)


@given(score_rows((torch.float32, torch.float64)), st.integers(1, 8))
def test_the_others_lie_below_the_kept_and_are_equal(logits, count):
    told, classes = TopK(count=count)(logits), logits.shape[-1]
    assert leads(told, logits.argmax(-1))
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranked = told.gather(-1, order)
    if count < classes:
        others = ranked[:, count:]
        assert torch.equal(others, others[:, :1].expand_as(others))
        # Rounding may part equals by a last bit.
        tolerance = 1e-5 * (1 + ranked.abs())
        assert (ranked[:, :count] + tolerance[:, :count] >= others[:, :1]).all()


@given(score_rows((torch.float32, torch.float64)), st.integers(1, 7))
def test_no_more_than_count_are_above_zero_where_the_rest_is_zero(logits, count):
    released = release(TopK(count=count, rest="zero")(logits), dtype=torch.float64)
    assert ((released > 0).sum(-1) <= count).all()
    order = logits.argsort(dim=-1, descending=True, stable=True)
    assert (released.gather(-1, order)[:, count:] == 0).all()


def test_the_others_of_a_saturated_row_keep_their_logs():
    told = TopK(count=1)(torch.tensor([[0.0, -2000.0, -2010.0]], dtype=torch.float64))
    assert told[0, 1] == told[0, 2] == pytest.approx(-2000.6931, abs=1e-3)
